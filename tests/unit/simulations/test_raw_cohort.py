"""What a raw cohort promises: same bytes, files that other programs read, and the planted signal in each of them."""

from __future__ import annotations

import csv
import gzip
import json
import tomllib
from collections.abc import Iterator
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
import radiomics
import SimpleITK as sitk
from radiomics.featureextractor import RadiomicsFeatureExtractor

from oncofed_client.genomics.settings import GenomicsSettings
from oncofed_shared.errors import ConfigError
from oncofed_shared.plan import load
from oncofed_simulations.folders import site_folders
from oncofed_simulations.population import COLUMNS
from oncofed_simulations.raw_anatomy import CT_GRID, MR_GRID, PET_GRID, body, draw_lesion, hounsfield
from oncofed_simulations.raw_cohort import write_raw_cohort
from oncofed_simulations.raw_draw import RawSite, draw_sites, identifying_values
from oncofed_simulations.raw_genome import ALIASES, GENES, HOUSEKEEPING, POSITIONS, base_counts
from oncofed_simulations.raw_genomics import unmeasured
from oncofed_simulations.synthetic import read_settings

STUDIES = Path(__file__).resolve().parents[3] / "simulations" / "studies"
SIZE = {"sites": 4, "patients": 26, "seed": 5}
HARMFUL = {"missense_variant", "stop_gained", "frameshift_variant", "splice_donor_variant"}
HARMFUL_MAF = {"Missense_Mutation", "Nonsense_Mutation", "Frame_Shift_Del", "Splice_Site"}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("raw") / "sites"
    write_raw_cohort(out, **SIZE)
    return out


@pytest.fixture(scope="module")
def drawn() -> list[RawSite]:
    return draw_sites(read_settings(SIZE))


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def rows(path: Path, delimiter: str = ",") -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader((line for line in file if not line.startswith("#version")), delimiter=delimiter))


def dicom_files(folder: Path) -> dict[str, list[pydicom.Dataset]]:
    """Every DICOM file of a site, by patient number in the header."""
    found: dict[str, list[pydicom.Dataset]] = {}
    for path in sorted((folder / "imaging").rglob("IM*")):
        data = pydicom.dcmread(path)
        found.setdefault(str(data.PatientID), []).append(data)
    return found


def of(files: list[pydicom.Dataset], modality: str, description: str = "") -> list[pydicom.Dataset]:
    """One series, from the feet up."""
    own = [f for f in files if f.Modality == modality and description in f.SeriesDescription]
    return sorted(own, key=lambda f: float(f.ImagePositionPatient[2]))


def volume(series: list[pydicom.Dataset]) -> np.ndarray:
    return np.stack([f.pixel_array * float(f.RescaleSlope) + float(f.RescaleIntercept) for f in series])


def imaged(site: RawSite) -> Iterator[tuple[int, str]]:
    """Patients with images: their row, and their number in the headers."""
    for i, person in enumerate(site.people):
        if not site.absent["radiomics"][i]:
            yield i, person.at_pacs().number if site.index % 3 == 1 else person.number


# -- files -------------------------------------------------------------------------------------------------------------


def test_same_seed_same_bytes_other_seed_other_patients(cohort: Path, tmp_path: Path) -> None:
    write_raw_cohort(tmp_path / "again", **SIZE)
    assert contents(tmp_path / "again") == contents(cohort)
    other = draw_sites(read_settings(SIZE | {"seed": 6}))
    here = draw_sites(read_settings(SIZE))
    assert not {p.number for s in here for p in s.people} & {p.number for s in other for p in s.people}


def test_sites_have_what_they_are_said_to_have(cohort: Path) -> None:
    folders = site_folders(cohort)
    assert [f.name for f in folders] == ["site-1", "site-2", "site-3", "site-4"]
    assert [(f / "imaging").is_dir() for f in folders] == [True, True, False, True]
    assert [(f / "genomics").is_dir() for f in folders] == [True, True, True, False]
    assert sum(len(rows(f / "clinical.csv")) for f in folders) == SIZE["patients"]
    assert next((folders[0] / "genomics/variants").iterdir()).suffix == ".vcf"
    assert (folders[1] / "genomics/mutations.maf").is_file()
    assert (folders[2] / "genomics/cohort.vcf.gz").is_file()
    kinds = [{f.Modality for files in dicom_files(folders[k]).values() for f in files} for k in (0, 1, 3)]
    assert kinds == [{"CT", "MR", "RTSTRUCT"}, {"CT", "PT", "SEG"}, {"CT", "MR", "PT", "RTSTRUCT"}]


def test_nothing_is_overwritten_and_nothing_half_written(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ConfigError, match="is not empty"):
        write_raw_cohort(tmp_path / "full", **SIZE)
    with pytest.raises(ConfigError, match="at least 4 per site"):
        write_raw_cohort(tmp_path / "small", sites=4, patients=5, seed=0)
    assert [p.name for p in tmp_path.iterdir()] == ["full"]


def test_genomics_settings_are_those_of_a_site(cohort: Path) -> None:
    for folder in site_folders(cohort):
        content = tomllib.loads((folder / "site.toml").read_text(encoding="utf-8"))
        assert ("genomics" in content) == (folder / "genomics").is_dir()
        if "genomics" in content:
            settings = GenomicsSettings.model_validate_json(json.dumps(content["genomics"]))
            parts = (settings.expression, settings.copy_number, settings.mutations)
            assert all(any(folder.glob(pattern)) for part in parts for pattern in part.files)


def test_every_identifying_value_is_in_the_files_so_that_its_absence_elsewhere_means_something(
    cohort: Path, drawn: list[RawSite]
) -> None:
    known = identifying_values(read_settings(SIZE))
    for site in drawn:
        joined = b"\n".join(path.encode() + content for path, content in contents(cohort / site.name).items())
        assert set(known[site.name]) == {"", *(p.number for p in site.people)}
        for i, person in enumerate(site.people):
            assert person.family.encode() in joined
            assert person.phone.encode() in joined
            assert str(person.diagnosed.year).encode() in joined
            assert {person.family, person.given, person.number} <= set(known[site.name][person.number])
            if "radiomics" in site.values and not site.absent["radiomics"][i]:
                shown = person.at_pacs() if site.index % 3 == 1 else person
                for value in (shown.uid_root, shown.number, person.accession, person.scanned.strftime("%Y%m%d")):
                    assert value.encode() in joined
                    assert value in known[site.name][person.number]


def test_dates_are_those_of_the_outcomes(drawn: list[RawSite]) -> None:
    for site in drawn:
        for person, age, days in zip(site.people, site.patients.age, site.days, strict=True):
            assert (person.last_seen - person.diagnosed).days == days
            assert abs((person.diagnosed - person.born).days / 365.25 - age) < 0.002


# -- images ------------------------------------------------------------------------------------------------------------


def test_simpleitk_reads_the_volumes(cohort: Path, drawn: list[RawSite]) -> None:
    folder = next((cohort / "site-1" / "imaging").glob("*/*/ST000"))
    number = str(pydicom.dcmread(next(folder.iterdir())).PatientID)
    row = next(i for i, n in imaged(drawn[0]) if n == number)
    reader = sitk.ImageSeriesReader()
    sizes = {}
    for uid in reader.GetGDCMSeriesIDs(str(folder)):
        names = reader.GetGDCMSeriesFileNames(str(folder), uid)
        if len(names) > 1:
            reader.SetFileNames(names)
            image = reader.Execute()
            sizes[uid] = (image.GetSize()[::-1], image.GetSpacing()[::-1], image.GetOrigin()[::-1])
            if image.GetSize()[::-1] == CT_GRID.shape:
                hu = sitk.GetArrayFromImage(image)
                inside = drawn[0].lesions[row].mask(CT_GRID)
                assert abs(hu[inside].mean() - drawn[0].lesions[row].brightness) < 8
                assert np.all(hu[~body(CT_GRID)] == -1000)
    expected = [(g.shape, g.spacing, g.origin) for g in (CT_GRID, MR_GRID, MR_GRID)]
    assert np.allclose(np.array(sorted(sizes.values())), np.array(sorted(expected)))


def even_odd(x: np.ndarray, y: np.ndarray, polygon: np.ndarray) -> np.ndarray:
    """Whether points lie inside a polygon: a ray to the right crosses its edges an odd number of times."""
    inside = np.zeros(np.broadcast(x, y).shape, dtype=bool)
    for (x1, y1), (x2, y2) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        crosses = ((y1 > y) != (y2 > y)) & (x < (x2 - x1) * (y - y1) / (y2 - y1 + (y1 == y2)) + x1)
        inside ^= crosses
    return inside


def test_outlines_are_those_of_the_lesions_with_their_holes(cohort: Path, drawn: list[RawSite]) -> None:
    zs, ys, xs = (axis.ravel() for axis in CT_GRID.axes())
    hollow = 0
    for site in (drawn[0], drawn[3]):
        files = dicom_files(cohort / site.name)
        for i, number in imaged(site):
            (outlines,) = of_any(files[number], "RTSTRUCT")
            mask = np.zeros(CT_GRID.shape, dtype=bool)
            for contour in outlines.ROIContourSequence[0].ContourSequence:
                points = np.array(contour.ContourData, dtype=float).reshape(-1, 3)
                index = int(np.argmin(np.abs(zs - points[0, 2])))
                mask[index] ^= even_odd(xs[None, :], ys[:, None], points[:, :2])
            truth = site.lesions[i].mask(CT_GRID)
            hollow += site.lesions[i].hollow
            assert (mask ^ truth).sum() <= 0.03 * truth.sum()
            uids = {f.SOPInstanceUID for f in of(files[number], "CT")}
            frame = outlines.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0]
            named = frame.RTReferencedSeriesSequence[0].ContourImageSequence
            assert {image.ReferencedSOPInstanceUID for image in named} == uids
    assert hollow


def of_any(files: list[pydicom.Dataset], modality: str) -> list[pydicom.Dataset]:
    return [f for f in files if f.Modality == modality]


def test_highdicom_reads_the_segments_and_their_overlap(cohort: Path, drawn: list[RawSite], tmp_path: Path) -> None:
    site = drawn[1]
    files = dicom_files(cohort / site.name)
    for i, number in list(imaged(site))[:3]:
        (data,) = of_any(files[number], "SEG")
        data.save_as(tmp_path / "seg.dcm")
        read = hd.seg.segread(tmp_path / "seg.dcm")
        assert [read.get_segment_description(k).segment_label for k in (1, 2)] == ["Tumor", "Body"]
        uids = [f.SOPInstanceUID for f in of(files[number], "CT")]
        planes = read.get_pixels_by_source_instance(uids, assert_missing_frames_are_empty=True)
        assert np.array_equal(planes[..., 0].astype(bool), site.lesions[i].mask(CT_GRID))
        assert np.array_equal(planes[..., 1].astype(bool), body(CT_GRID))


def test_pet_gives_its_uptake_back_by_the_headers_dose_decay_and_weight(cohort: Path, drawn: list[RawSite]) -> None:
    site = drawn[3]
    files = dicom_files(cohort / site.name)
    for i, number in imaged(site):
        series = of(files[number], "PT")
        first, drug = series[0], series[0].RadiopharmaceuticalInformationSequence[0]
        clock = [int(t[:2]) * 3600 + int(t[2:4]) * 60 for t in (first.SeriesTime, drug.RadiopharmaceuticalStartTime)]
        left = 0.5 ** ((clock[0] - clock[1]) / float(drug.RadionuclideHalfLife))
        suv = volume(series) * float(first.PatientWeight) * 1000 / (float(drug.RadionuclideTotalDose) * left)
        core = site.lesions[i].mask(PET_GRID)
        assert clock[0] - clock[1] == 3600
        assert 1.5 < np.percentile(suv[core], 90) < 7
        assert 0.8 < np.median(suv[body(PET_GRID) & ~core]) < 1.3
        assert suv.max() / first.RescaleSlope < 65535


def test_two_sequences_are_told_apart_by_their_headers(cohort: Path, drawn: list[RawSite]) -> None:
    files = dicom_files(cohort / "site-1")
    for i, number in imaged(drawn[0]):
        t1, flair = of(files[number], "MR", "t1_mprage"), of(files[number], "MR", "FLAIR")
        assert (len(t1), len(flair)) == (MR_GRID.shape[0],) * 2
        assert (float(t1[0].EchoTime), float(flair[0].EchoTime)) == (2.9, 120)
        mask = drawn[0].lesions[i].mask(MR_GRID)
        assert np.stack([f.pixel_array for f in flair])[mask].mean() > 500
        assert np.stack([f.pixel_array for f in t1])[mask].mean() < 400


def test_files_lie_in_no_order(cohort: Path) -> None:
    folder = next((cohort / "site-1" / "imaging").glob("*/*/ST000"))
    slices = [pydicom.dcmread(p) for p in sorted(folder.iterdir())]
    heights = [float(s.ImagePositionPatient[2]) for s in slices if s.Modality == "CT"]
    assert heights not in (sorted(heights), sorted(heights, reverse=True))
    assert len({s.Modality for s in slices[:8]}) > 1


def test_lesions_lie_inside_the_body_whatever_their_factors() -> None:
    rng = np.random.default_rng(0)
    for u in (-4.0, 0.0, 4.0):
        for _ in range(40):
            mask = draw_lesion(rng, u, -u).mask(CT_GRID)
            assert mask.sum() > 60
            assert not (mask & ~body(CT_GRID)).any()
            assert not mask[[0, -1]].any()


# pyradiomics' check of its settings file calls load_module.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_plain_pyradiomics_finds_the_hidden_factors_in_the_images() -> None:
    radiomics.setVerbosity(60)
    extractor = RadiomicsFeatureExtractor(str(STUDIES / "demo_radiomics.yaml"), additionalInfo=False)
    rng = np.random.default_rng(3)
    u, v = rng.standard_normal((2, 60))
    found = []
    for i in range(60):
        lesion = draw_lesion(rng, u[i], v[i])
        arrays = (hounsfield(rng, lesion, CT_GRID), lesion.mask(CT_GRID).astype(np.uint8))
        image, mask = (sitk.GetImageFromArray(a) for a in arrays)
        for part in (image, mask):
            part.SetSpacing(CT_GRID.spacing[::-1])
        found.append({k.removeprefix("original_"): float(x) for k, x in extractor.execute(image, mask).items()})
    assert set(found[0]) == set(COLUMNS["radiomics"])

    def agrees(name: str, factor: np.ndarray) -> float:
        return float(np.corrcoef([f[name] for f in found], factor)[0, 1])

    assert agrees("shape_MeshVolume", u) > 0.75
    assert agrees("shape_Elongation", u) < -0.25
    assert agrees("firstorder_Mean", u) > 0.4
    assert agrees("glcm_Correlation", v) > 0.7
    assert agrees("glcm_SumEntropy", v) > 0.7
    assert abs(agrees("shape_MeshVolume", v)) < 0.35


# -- genomics ----------------------------------------------------------------------------------------------------------


def own_numbers(site: RawSite, modality: str) -> dict[str, int]:
    """Sample -> row of its patient."""
    maf = site.index % 3 == 1
    return {
        p.at_laboratory() if maf else p.number: i
        for i, p in enumerate(site.people)
        if not site.absent[modality][i] and not (maf and site.absent["mutations"][i])
    }


def test_counts_say_what_the_population_expresses(cohort: Path, drawn: list[RawSite]) -> None:
    approved = {old: new for new, old in ALIASES.items()}
    for site in drawn[:3]:
        table = rows(cohort / site.name / "genomics/counts.tsv", "\t")
        samples = own_numbers(site, "expression")
        if site.index % 2 == 0:
            counts = {s: {r["gene"]: int(r[s]) for r in table} for s in samples}
        else:
            counts = {r["sample"]: {g: int(x) for g, x in r.items() if g != "sample"} for r in table}
        assert set(counts) == set(samples)
        for sample, row in samples.items():
            own = {approved.get(g, g): np.log2(x + 0.5) for g, x in counts[sample].items()}
            assert set(own) == set(base_counts())
            centred = {g: own[g] - np.log2(base_counts()[g]) for g in own}
            depth = np.median([centred[g] for g in HOUSEKEEPING])
            z = np.array([centred[g] - depth for g in GENES["expression"]])
            assert np.corrcoef(z, site.values["expression"][row])[0, 1] > 0.9


def test_segments_say_the_copy_number_of_every_gene(cohort: Path, drawn: list[RawSite]) -> None:
    edges = load(STUDIES / "demo.toml").modalities["cnv"].genomics.thresholds.edges
    for site in drawn[:3]:
        segments: dict[str, list[dict[str, str]]] = {}
        for row in rows(cohort / site.name / "genomics/segments.seg", "\t"):
            segments.setdefault(row["ID"], []).append(row)
        samples = own_numbers(site, "cnv")
        assert set(segments) == set(samples)
        for sample, i in samples.items():
            calls = []
            for gene in GENES["cnv"]:
                chromosome, start, end = POSITIONS[gene]
                (over,) = [
                    s
                    for s in segments[sample]
                    if s["chrom"] == chromosome and int(s["loc.start"]) <= start and int(s["loc.end"]) >= end
                ]
                calls.append(np.digitize(float(over["seg.mean"]), edges) - 2)
            assert calls == site.values["cnv"][i].tolist()


def carriers_of_vcf(text: str, annotation: str, position: int) -> dict[str, set[str]]:
    """Sample -> genes with a harmful variant, by splitting lines and nothing else."""
    lines = [line.split("\t") for line in text.splitlines() if not line.startswith("##")]
    found: dict[str, set[str]] = {name: set() for name in lines[0][9:]}
    for line in lines[1:]:
        assert line[3] != line[4]
        entries = [e.split("|") for e in line[7].removeprefix(f"{annotation}=").split(",")]
        genes = {e[position] for e in entries if set(e[1].split("&")) & HARMFUL}
        for name, call in zip(lines[0][9:], line[9:], strict=True):
            if call.startswith("0/1"):
                found[name] |= genes
    return found


def test_variants_are_the_mutations_of_the_population(cohort: Path, drawn: list[RawSite]) -> None:
    def expected(site: RawSite) -> dict[str, set[str]]:
        return {
            sample: {
                g for g, x in zip(GENES["mutations"], site.values["mutations"][i], strict=True) if x
            } - set(unmeasured(site))
            for sample, i in own_numbers(site, "mutations").items()
        }  # fmt: skip

    vep = {
        path.name.removesuffix(".vcf"): carriers_of_vcf(path.read_text(encoding="utf-8"), "CSQ", 3)
        for path in (cohort / "site-1/genomics/variants").iterdir()
    }
    assert {sample: found["TUMOR"] for sample, found in vep.items()} == expected(drawn[0])
    assert not any(found["NORMAL"] for found in vep.values())
    snpeff = gzip.decompress((cohort / "site-3/genomics/cohort.vcf.gz").read_bytes()).decode()
    assert carriers_of_vcf(snpeff, "ANN", 3) == expected(drawn[2])
    links = {r["sample_id"]: r["patient_id"] for r in rows(cohort / "site-2/genomics/samples.csv")}
    maf: dict[str, set[str]] = {sample: set() for sample in links}
    approved = {old: new for new, old in ALIASES.items()}
    for row in rows(cohort / "site-2/genomics/mutations.maf", "\t"):
        if row["Variant_Classification"] in HARMFUL_MAF:
            maf[row["Tumor_Sample_Barcode"]].add(approved.get(row["Hugo_Symbol"], row["Hugo_Symbol"]))
    assert maf == expected(drawn[1])
    panel = (cohort / "site-2/genomics/panel_genes.txt").read_text(encoding="utf-8").split()
    assert {approved.get(g, g) for g in panel} == set(GENES["mutations"]) - set(unmeasured(drawn[1]))
    assert unmeasured(drawn[1])


def test_the_demo_plan_is_about_the_genes_and_counts_of_the_population() -> None:
    plan = load(STUDIES / "demo.toml")
    made = {m: plan.modalities[m].genomics for m in GENES}
    assert made["expression"].genes == GENES["expression"]
    assert made["expression"].reference.counts == base_counts()
    assert made["cnv"].genes == GENES["cnv"]
    assert made["mutations"].all_genes == tuple(sorted(GENES["mutations"]))
