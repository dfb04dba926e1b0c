"""A site's doors with a stranger's files behind them, under limits: run as a program, one child process per case.

    python doors.py dicom FOLDER     every subfolder of FOLDER is one case

Each child may use 1.5 GiB more than the program has at rest, may write to no file, and has a minute. What came of it is
one JSON object on standard output: per case the messages, or what else ended it, the memory it took at most, and seconds.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

from oncofed_client.genomics.inputs import open_files
from oncofed_client.genomics.settings import GenomicsSettings
from oncofed_client.imaging.regions import read_region
from oncofed_client.imaging.series import Inventory, Series, find_series
from oncofed_client.imaging.settings import ImagingSettings
from oncofed_client.imaging.volume import read_volume
from oncofed_shared.errors import DataError
from oncofed_shared.plan_genomics import Drivers, MutationFeatures, Severity
from oncofed_shared.strict import validate

ROOM = 1536 * 2**20
SECONDS = 60
IMAGING = validate(
    ImagingSettings,
    {
        "series": {"ct": {"modality": "CT"}, "pet": {"modality": "PT"}, "mr": {"modality": "MR", "description": "*"}},
        "regions": {"tumour": {"names": ["gtv*", "tumo*"]}},
    },
    "imaging",
)
FILES = validate(
    ImagingSettings,
    {
        "patient": {"source": "file"},
        "series": {"mr": {"files": ["*.nii", "*.nii.gz", "*.nrrd"], "kind": "MR"}},
    },
    "imaging",
)
MUTATIONS = MutationFeatures(
    kind="mutations",
    severity=Severity(source="one for all, in tests", terms={"missense_variant": 1.0, "stop_gained": 2.0}),
    drivers=Drivers(source="one for all, in tests", oncogenes={"KRAS": 1.0}, suppressors={"TP53": 1.0}),
)


def _one(series: Series, inventory: Inventory, settings: ImagingSettings) -> None:
    image = read_volume(series, settings)
    for region in settings.regions:
        read_region(region, image, series, inventory, settings)


def images(folder: Path, settings: ImagingSettings) -> list[str]:
    """Everything that is wrong with an export, by reading all of it."""
    try:
        inventory = find_series(folder, settings)
    except DataError as error:
        return list(error.problems)
    messages = list(inventory.problems)
    for series in inventory.series:
        if series.role is None:
            continue
        try:
            _one(series, inventory, settings)
        except DataError as error:
            messages += error.problems
    return messages


def dicom(folder: Path) -> list[str]:
    """The door for DICOM."""
    return images(folder, IMAGING)


def volumes(folder: Path) -> list[str]:
    """The door for NIfTI and NRRD."""
    return images(folder, FILES)


def variants(folder: Path) -> list[str]:
    """The door for VCF and MAF."""
    from oncofed_client.genomics.impact import read_mutations  # noqa: PLC0415

    names = sorted(p.name for p in folder.iterdir() if p.is_file() and ".settings" not in p.name)
    content: dict[str, object] = {"mutations": {"files": names, "panel": "exome"}}
    try:
        files = open_files(folder, validate(GenomicsSettings, content, "genomics"))
        return list(read_mutations(files, MUTATIONS).problems)
    except DataError as error:
        return list(error.problems)


DOORS: dict[str, Callable[[Path], list[str]]] = {"dicom": dicom, "volumes": volumes, "variants": variants}


def _limit() -> None:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    room = pages * resource.getpagesize() + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def run(door: Callable[[Path], list[str]], folder: Path) -> dict[str, object]:
    """Let a door read one folder in a child process."""
    reading, writing = os.pipe()
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            _limit()
            outcome: dict[str, object] = {"messages": door(folder)}
        except BaseException as error:  # noqa: BLE001 - whatever it is, the test must hear of it
            outcome = {"raised": f"{type(error).__name__}: {error}"}
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(json.dumps(outcome).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        content = pipe.read()
    _, status, usage = os.wait4(child, 0)
    outcome = json.loads(content) if content else {"raised": f"ended with status {status}"}
    return outcome | {"rss_mb": usage.ru_maxrss // 1024, "seconds": round(time.monotonic() - began, 2)}


def main() -> None:
    """Read every case."""
    door = DOORS[sys.argv[1]]
    cases = sorted(p for p in Path(sys.argv[2]).iterdir() if p.is_dir())
    print(json.dumps({case.name: run(door, case) for case in cases}))


if __name__ == "__main__":
    main()
