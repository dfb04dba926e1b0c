"""A study whose network reads patches, from DICOM files to a model: what enters, what it learns, and who has none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file

from oncofed_client.check import check_study
from oncofed_client.cohort import Cohort, consented, read_cohort
from oncofed_client.prepare.cache import open_cache
from oncofed_client.prepare.patches import prepared_patches_of
from oncofed_client.session import training_set
from oncofed_client.settings import load_settings
from oncofed_client.source import FolderSource
from oncofed_shared.features import column_sums, prepare, unite
from oncofed_shared.network import build
from oncofed_shared.plan import Plan, parse
from oncofed_simulations.pooled import merge
from oncofed_simulations.run import Options, run_study

STUDIES = Path(__file__).resolve().parents[2] / "simulations" / "studies"
CT = {"region": "tumour", "size": [4, 8, 8], "spacing": [6.0, 4.0, 4.0], "window": [-160.0, 240.0]}


@pytest.fixture(scope="module")
def plan(demo_plan: Plan) -> Plan:
    content = demo_plan.model_dump(mode="json")
    kept = {"clinical": content["modalities"]["clinical"], "scan": {"encoder": "cnn", "patch": {"ct": CT}}}
    content |= {"modalities": kept, "model": {"width": 8, "heads": 2, "layers": 1, "feedforward": 12}}
    content["training"] |= {"rounds": 2}
    content["evaluation"] |= {"minimum_shown": 1, "minimum_events": 1, "bootstrap": 50}
    return parse(content)


@pytest.fixture(scope="module")
def finished(raw_sites: Path, plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over both hospitals, and pooled."""
    out = tmp_path_factory.mktemp("images") / "out"
    options = Options(sites=raw_sites, external=None, out=out, min_patients=1, baselines=True, study=STUDIES, jobs=2)
    run_study(plan, options)
    return out


def cohorts(raw_sites: Path, plan: Plan, finished: Path) -> list[Cohort]:
    """As the run's sites read them."""
    made = []
    for name in ("site-1", "site-2"):
        folder = raw_sites / name
        made.append(FolderSource(folder, load_settings(folder), state=finished / "sites" / name).cohort(plan))
    return made


def kept_patches(
    raw_sites: Path, plan: Plan, finished: Path, read: list[Cohort]
) -> list[dict[str, NDArray[np.float32]]]:
    """What lies in the caches of the run's sites, of the patients who take part."""
    made = []
    for name, cohort in zip(("site-1", "site-2"), read, strict=True):
        settings, cache = load_settings(raw_sites / name), open_cache(finished / "sites" / name)
        found = prepared_patches_of("scan.patch.ct", settings, plan, cache, cohort.patients)
        made.append({patient: entry.voxels for patient, entry in found.items()})
    return made


def test_the_network_trains_on_what_was_cut(plan: Plan, finished: Path) -> None:
    trained = load_file(finished / "model.safetensors")
    first = build(plan, unite(plan, [{"clinical": (), "scan": ()}]), seed=0)
    kernels = {n: p for n, p in first.named.items() if n.startswith("tokenisers.encoders.0.convolutions")}
    assert len(kernels) == 6
    for name, kernel in kernels.items():
        (found,) = [a for n, a in trained.items() if n.endswith(name)]
        assert not np.allclose(found, kernel.detach().numpy()), name


def test_voxels_come_behind_the_columns_as_they_were_kept(raw_sites: Path, plan: Plan, finished: Path) -> None:
    ours = cohorts(raw_sites, plan, finished)
    both = merge(plan, ours, ["a", "b"])
    columns = both.columns
    assert columns["scan"] == ("ct",)
    sums = column_sums(plan, columns, both.values, columns, both.labels)
    preparation = prepare(plan, columns, sums)
    pooled = training_set(plan, preparation, both, slice(None))
    width = sum(len(c) for c in columns.values())
    assert pooled.values.shape == (len(both.patients), width + 4 * 8 * 8)
    assert pooled.seen.shape == (len(both.patients), width)
    apart = [training_set(plan, preparation, cohort, slice(None)) for cohort in ours]
    assert torch.equal(torch.cat([a.values for a in apart]), pooled.values)
    assert torch.equal(torch.cat([a.seen for a in apart]), pooled.seen)
    has = pooled.seen[:, width - 1] > 0
    assert int(has.sum()) == sum(len(p) for p in kept_patches(raw_sites, plan, finished, ours)) > 0
    assert not bool(pooled.values[~has][:, width:].any())
    assert not bool(pooled.values[:, width - 1].any()), "the linear path reads nothing of a mark"
    for letter, found in zip("ab", kept_patches(raw_sites, plan, finished, ours), strict=True):
        for patient, voxels in found.items():
            row = both.patients.index(f"{letter}/{patient}")
            np.testing.assert_array_equal(pooled.values[row, width:].numpy(), voxels.ravel())


def test_who_withdraws_takes_his_patch_along(copy_of: Callable[[str], Any], plan: Plan) -> None:
    hospital = copy_of("site-1")
    hospital = type(hospital)(hospital.folder, hospital.state, plan)
    hospital.preprocess()
    settings = load_settings(hospital.folder)
    allowed = consented(hospital.folder, settings)
    cohort = read_cohort(hospital.folder, settings, plan, hospital.cache)
    assert set(cohort.patients) <= allowed
    warnings = check_study(hospital.folder, settings, plan, hospital.state).warnings
    assert not any("no encoder" in w for w in warnings)
    reports = {m.name: m for m in check_study(hospital.folder, settings, plan, hospital.state).modalities}
    assert reports["scan"].patients == int((~np.isnan(cohort.values["scan"])).sum()) + sum(
        p not in cohort.patients for p in prepared_patches_of("scan.patch.ct", settings, plan, hospital.cache, allowed)
    )


def test_a_hospital_without_images_takes_part(copy_of: Callable[[str], Any], plan: Plan) -> None:
    hospital = copy_of("site-2")
    path = hospital.folder / "site.toml"
    kept = [part for part in path.read_text(encoding="utf-8").split("\n[") if not part.startswith("imaging")]
    path.write_text("\n[".join(kept), encoding="utf-8")
    settings = load_settings(hospital.folder)
    cohort = read_cohort(hospital.folder, settings, plan, hospital.cache)
    assert len(cohort.patients) > 0
    assert cohort.columns["scan"] == ()
    assert cohort.images["scan"].shape == (len(cohort.patients), 0, 4, 8, 8)
    warnings = check_study(hospital.folder, settings, plan, hospital.state).warnings
    assert any("modality scan: no patch is prepared" in w for w in warnings)
