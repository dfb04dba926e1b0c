"""What preprocessing costs: two processes beside one, a cut volume beside a whole one, the second run, and memory.

The site is made of NRRD volumes with a textured lesion each; everything after that is the real code.
"""

from __future__ import annotations

import hashlib
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import radiomics
import SimpleITK as sitk
from radiomics.featureextractor import RadiomicsFeatureExtractor

from oncofed_client.imaging.series import find_series
from oncofed_client.prepare.cases import Case, image_cases, perform
from oncofed_client.prepare.pool import outcomes
from oncofed_client.prepare.preprocess import preprocess
from oncofed_client.prepare.radiomics import extract, load_extraction, parse_extraction
from oncofed_client.settings import load_settings
from oncofed_shared.plan import Plan, parse
from oncofed_simulations.bench_measure import MEBIBYTE, Measure
from oncofed_simulations.folders import write_table

__all__ = ["lesion", "preprocessing", "write_site"]

SETTINGS = "setting:\n  binWidth: 20\nimageType:\n  Original: {}\n  Wavelet: {}\n"
SITE = """
[site]
name = "bench"
[tables.clinical]
file = "clinical.csv"
[consent]
table = "clinical"
column = "consent"
value = "yes"
[imaging]
folder = "images"
patient = { source = "folder" }
series.ct = { files = ["ct.nrrd"], kind = "CT" }
regions.tumour = { files = ["mask.nrrd"] }
"""
WHOLE, RADIUS = 128, 12.0
EDGE, CASES, FEW = 80, 24, 8
REPEATS = 3
SETTLE_SECONDS = 2.2
"""Until time stamps are believed."""


def lesion(edge: int, radius: float, seed: int) -> tuple[sitk.Image, sitk.Image]:
    """A cube of noise with a ball of another texture in it, and the ball's mask."""
    rng = np.random.default_rng(seed)
    place = np.indices((edge,) * 3) - rng.uniform(0.4, 0.6, 3)[:, None, None, None] * edge
    inside = np.sum(place**2, axis=0) <= radius**2
    values = rng.normal(40, 15, inside.shape) + inside * rng.normal(60, 40, inside.shape)
    return sitk.GetImageFromArray(values.astype(np.float32)), sitk.GetImageFromArray(inside.astype(np.uint8))


def write_site(folder: Path, cases: int, edge: int) -> Plan:
    """Write a site of NRRD volumes with a study beside it; gives the study."""
    for number in range(cases):
        own = folder / "site" / "images" / f"P{number:03d}"
        own.mkdir(parents=True)
        for image, name in zip(lesion(edge, RADIUS, number), ("ct", "mask"), strict=True):
            sitk.WriteImage(image, str(own / f"{name}.nrrd"))
    rows = [[f"P{number:03d}", "yes", "1" if number % 2 else "0"] for number in range(cases)]
    write_table(folder / "site" / "clinical.csv", ["patient_id", "consent", "label"], rows)
    (folder / "site" / "site.toml").write_text(SITE, encoding="utf-8")
    (folder / "radiomics.yaml").write_text(SETTINGS, encoding="utf-8")
    wanted = {"file": "radiomics.yaml", "sha256": hashlib.sha256(SETTINGS.encode()).hexdigest()}
    return parse(
        {
            "study": {"name": "bench", "purpose": "see what preprocessing costs"},
            "tasks": {"label": {"kind": "classification", "label": "label", "classes": ["0", "1"]}},
            "modalities": {"radiomics": {"patterns": ["*_*"], "extraction": wanted}},
            "training": {"rounds": 1},
        }
    )


def _cases(folder: Path, plan: Plan) -> list[Case]:
    wanted, rules = plan.modalities["radiomics"].extraction, load_settings(folder / "site").imaging
    if wanted is None or rules is None:
        message = "the bench's site has images"
        raise AssertionError(message)
    found = find_series(folder / "site", rules)
    made = load_extraction(folder / wanted.file, wanted.sha256)
    return list(image_cases("radiomics", wanted, made, inventory=found, patients=found.patients(), settings=rules))


def _shortest(*works: Callable[[], object]) -> list[float]:
    """Shortest of a few times of each, in turn, so that a busy machine disturbs all alike."""
    times: list[list[float]] = [[] for _ in works]
    for _ in range(REPEATS):
        for own, work in zip(times, works, strict=True):
            started = time.perf_counter()
            work()
            own.append(time.perf_counter() - started)
    return [min(own) for own in times]


def _cut() -> Measure:
    """One case from the smallest part of its volume, beside pyradiomics on the whole volume."""
    image, mask = lesion(WHOLE, RADIUS, 1)
    parameters = {"setting": {"binWidth": 20}, "imageType": {"Original": {}, "Wavelet": {}}}
    made = parse_extraction(parameters)
    radiomics.setVerbosity(60)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = RadiomicsFeatureExtractor(parameters)
        ours, theirs = _shortest(lambda: extract(image, mask, made), lambda: plain.execute(image, mask))
    note = (
        f"{1e3 * ours:.0f} ms, and {1e3 * theirs:.0f} ms with the whole of {WHOLE}^3 voxels: {theirs / ours:.1f} times"
    )
    return Measure(name="radiomics: cut / whole", value=ours / theirs, unit="x", goal=1 / 1.5, note=note)


def _parallel(folder: Path, plan: Plan) -> Measure:
    """All cases in two processes, beside one; starting the processes is part of it."""
    cases = _cases(folder, plan)
    one, two = _shortest(lambda: list(outcomes(cases, perform, 1)), lambda: list(outcomes(cases, perform, 2)))
    note = f"{len(cases)} cases in {one:.1f} s and {two:.1f} s: {one / two:.2f} times; needs two idle cores"
    return Measure(name="cases: two processes / one", value=two / one, unit="x", goal=1 / 1.8, note=note)


def _peak(work: Callable[[], object]) -> float:
    """Most memory of all child processes together while something is done, in bytes."""
    most, over = 0.0, threading.Event()

    def look() -> None:
        nonlocal most
        while not over.wait(0.01):
            held = 0
            for child in psutil.Process().children(recursive=True):
                try:
                    # Shared pages once: while it has no child, all pages of the server that forks them would be its own.
                    held += child.memory_full_info().pss
                except psutil.Error:
                    continue
            most = max(most, held)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        work()
    finally:
        over.set()
        watcher.join()
    return most


def _memory(folder: Path, plan: Plan) -> Measure:
    """Memory for many cases beside that for a few, two in flight both times."""
    cases = _cases(folder, plan)
    few = _peak(lambda: list(outcomes(cases[:FEW], perform, 2)))
    many = _peak(lambda: list(outcomes(cases, perform, 2)))
    note = f"{many / MEBIBYTE:.0f} MiB for {len(cases)} cases, {few / MEBIBYTE:.0f} MiB for {FEW}"
    return Measure(name="memory: all cases / a few", value=many / few, unit="x", goal=1.15, note=note)


def _twice(folder: Path, plan: Plan) -> Measure:
    """The second run over an unchanged folder, beside the first."""
    settings = load_settings(folder / "site")
    times = []
    for _ in range(2):
        started = time.perf_counter()
        preprocess(folder / "site", settings, plan, study=folder, state=folder / "state", jobs=2)
        times.append(time.perf_counter() - started)
    note = f"{times[1] * 1e3:.0f} ms after {times[0]:.1f} s"
    return Measure(name="preprocess: second / first", value=times[1] / times[0], unit="x", goal=0.02, note=note)


def preprocessing(folder: Path) -> list[Measure]:
    """All of the above over one site of NRRD volumes."""
    plan = write_site(folder, CASES, EDGE)
    time.sleep(SETTLE_SECONDS)
    return [_cut(), _twice(folder, plan), _parallel(folder, plan), _memory(folder, plan)]
