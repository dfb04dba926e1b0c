"""Coverage-guided fuzzing of one door; run as a program, because it instruments what it imports.

    python fuzz_door.py DOOR CORPUS [options of libFuzzer]

Every input goes through the door as the site's own commands take it. A `DataError` of one line per problem is what is
expected; whatever else is raised ends the run and keeps the input.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["oncofed_client", "pydicom"], enable_loader_override=False):
    import doors
    import SimpleITK as sitk

    from oncofed_client.genomics.impact import read_mutations
    from oncofed_client.genomics.inputs import open_files
    from oncofed_client.genomics.settings import GenomicsSettings
    from oncofed_client.imaging.contours import rasterise, region_headers
    from oncofed_client.imaging.headers import read_header
    from oncofed_client.imaging.segmentation import read_segments
    from oncofed_client.imaging.series import find_series
    from oncofed_client.imaging.volume import read_volume
    from oncofed_shared.errors import DataError
    from oncofed_shared.strict import validate

import small_export

LIMITS = {"voxels": 4096, "points": 10_000, "items": 1000}
IMAGING = validate(
    doors.ImagingSettings, doors.IMAGING.model_dump(mode="json", exclude_none=True) | {"limits": LIMITS}, "imaging"
)
SETTINGS = {
    kind: validate(
        GenomicsSettings,
        {"mutations": {"files": [f"a.{kind}"], "panel": "exome"}, "limits": {"line_mb": 1, "file_gb": 1}},
        "genomics",
    )
    for kind in ("vcf", "vcf.gz", "maf")
}


def blank() -> sitk.Image:
    """An image of the small export's grid."""
    image = sitk.Image([*small_export.GRID.shape[::-1]], sitk.sitkFloat32)
    image.SetSpacing(small_export.GRID.spacing[::-1])
    image.SetOrigin(small_export.GRID.origin[::-1])
    return image


IMAGE = blank()
RULE = IMAGING.regions["tumour"]


def clear(error: DataError) -> None:
    """Hold an error to its promise: one printable line per problem."""
    assert error.problems
    for problem in error.problems:
        assert problem.isprintable(), "a message with control characters"
        assert len(problem) < 1000, "a message without an end"


def attempt(work: Callable[[], object]) -> None:
    """Do it, or refuse it clearly."""
    try:
        work()
    except DataError as error:
        clear(error)


def outlines(path: Path) -> None:
    """Fill every region of a structure set."""
    header = read_header(path, IMAGING.limits)
    for _, contours in region_headers(header, IMAGING.limits).values():
        if contours is not None:
            attempt(lambda region=contours: rasterise(region, IMAGE, IMAGING.limits))


def dicom(folder: Path, content: bytes) -> None:
    """One file as the whole of an export, read as what its header says it is."""
    path = folder / "one.dcm"
    path.write_bytes(content)
    inventory = find_series(folder, IMAGING)
    assert all(p.isprintable() for p in inventory.problems)
    for series in inventory.series:
        if series.kind == "RTSTRUCT":
            attempt(lambda: outlines(path))
        elif series.kind == "SEG":
            attempt(lambda: read_segments(path, IMAGE, RULE, IMAGING.limits))
        else:
            attempt(lambda one=series: read_volume(one, IMAGING))


def variants(folder: Path, content: bytes) -> None:
    """The first byte chooses the kind of file."""
    kind = ("vcf", "maf", "vcf.gz")[content[0] % 3] if content else "vcf"
    (folder / f"a.{kind}").write_bytes(content[1:])
    attempt(lambda: read_mutations(open_files(folder, SETTINGS[kind]), doors.MUTATIONS))


DOORS: dict[str, Callable[[Path, bytes], None]] = {"dicom": dicom, "variants": variants}


def main() -> None:
    """Fuzz until libFuzzer's limits are reached."""
    door = DOORS[sys.argv[1]]
    warnings.simplefilter("error")  # one that comes through quotes what a header holds
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        atheris.Setup([sys.argv[0], *sys.argv[2:]], lambda content: door(folder, content))
        atheris.Fuzz()


if __name__ == "__main__":
    main()
