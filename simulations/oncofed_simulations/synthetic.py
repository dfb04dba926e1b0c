"""A synthetic consortium in a site's own file formats: who has what, with which gaps.

The signal is that of `population`, or of `interaction`. Around it lies what makes real consortia hard: unequal sizes,
scanners that shift the radiomics, sites without a modality, patients without one, missing values,
patients who withhold consent.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tomli_w
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from oncofed_shared.errors import ConfigError
from oncofed_shared.plan import validate
from oncofed_simulations.folders import new_folder, write_table
from oncofed_simulations.interaction import COLUMNS as INTERACTING
from oncofed_simulations.interaction import draw_tables, draw_tumours
from oncofed_simulations.population import (
    COLUMNS,
    MODALITIES,
    Patients,
    draw_features,
    draw_outcomes,
    draw_patients,
)

__all__ = [
    "GENOMICS",
    "LABEL",
    "WITHHELD",
    "CohortSettings",
    "choose_part",
    "lacking_modalities",
    "read_settings",
    "site_sizes",
    "write_cohort",
    "write_shuffled",
]

GENOMICS = ("expression", "cnv", "mutations")
LABEL = "TP53_mut"
"""Column of the mutations that is also a label."""
WITHHELD = 0.03
"""Part of a site's patients who do not consent."""
_SMALLEST_SITE = 4


class CohortSettings(BaseModel):
    """`[simulation.cohort]` of a study.

    Attributes:
        sites: number of sites; from three on, some lack a modality altogether.
        patients: patients of all sites together, those without consent included; at least four per
            site.
        seed: of everything that is drawn.
        signal: multiplies every planted effect; 0 leaves nothing to be found.
        site_effect: multiplies the differences between sites.
        gaps: part of the values that are missing; twice this part of the patients lack a modality.
        interaction: the population of `interaction` in place of that of `population`, and how much of its response is decided
            by image and genes together; no site lacks a modality then, and there is no other signal.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    sites: Annotated[int, Field(ge=1, le=1000)]
    patients: Annotated[int, Field(ge=_SMALLEST_SITE, le=1_000_000)]
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    signal: Annotated[float, Field(ge=0, le=10)] = 1.0
    site_effect: Annotated[float, Field(ge=0, le=10)] = 1.0
    gaps: Annotated[float, Field(ge=0, le=0.3)] = 0.03
    interaction: Annotated[float, Field(ge=0, le=1)] | None = None


def read_settings(content: dict[str, Any], where: str = "simulation.cohort") -> CohortSettings:
    """Parse `[simulation.cohort]`; `write_cohort(out, **settings.model_dump())` then writes it.

    Raises:
        ConfigError: one line per mistake, each with its path.
    """
    settings = validate(CohortSettings, content, where)
    if settings.patients < _SMALLEST_SITE * settings.sites:
        raise ConfigError(
            f"{where}: patients: {settings.patients} for {settings.sites} sites; expected at least "
            f"{_SMALLEST_SITE} per site, {_SMALLEST_SITE * settings.sites}"
        )
    return settings


def write_cohort(
    out: Path,
    *,
    sites: int,
    patients: int,
    seed: int,
    signal: float = 1.0,
    site_effect: float = 1.0,
    gaps: float = 0.03,
    interaction: float | None = None,
) -> None:
    """Write a synthetic consortium: `out/site-1` to `out/site-K`, each with `site.toml` and tables.

    Sites are of unequal size, the first the largest. From three sites on, the last sixth of them
    (at least one) has no genomics and the sixth before it no radiomics. `CohortSettings` says what
    the arguments mean.

    Args:
        out: a new folder, or an empty one.
        sites: K.
        patients: of all sites together.
        seed: of everything that is drawn.
        signal: strength of the planted effects.
        site_effect: strength of the differences between sites.
        gaps: part of the values that are missing.
        interaction: None for the population of `population`, else a part of that of `interaction`.

    Guarantees:
        - Same arguments, same bytes.
        - `out` is there whole or not at all, and nothing is overwritten.

    Raises:
        ConfigError: an argument is out of range, or `out` exists and is not empty.
        StorageError: the folder cannot be written.
    """
    required = {"sites": sites, "patients": patients, "seed": seed}
    options = {"signal": signal, "site_effect": site_effect, "gaps": gaps, "interaction": interaction}
    settings = read_settings({**required, **options}, "cohort")
    streams = np.random.SeedSequence(seed).spawn(sites + 1)
    ids = _opaque_ids(np.random.default_rng(streams[0]), patients)
    with new_folder(out) as partial:
        for k, size in enumerate(site_sizes(sites, patients)):
            mine, ids = ids[:size], ids[size:]
            rng = np.random.default_rng(streams[k + 1])
            folder = partial / f"site-{k + 1}"
            if settings.interaction is None:
                _write_site(folder, mine, lacking_modalities(k, sites), settings, rng)
            else:
                _write_interaction(folder, mine, settings, rng, settings.interaction)


def site_sizes(sites: int, patients: int) -> list[int]:
    """Sizes that fall with the rank like rank**-0.7, in total `patients`."""
    weights = np.arange(1, sites + 1) ** -0.7
    spare = patients - _SMALLEST_SITE * sites
    sizes = [_SMALLEST_SITE + int(s) for s in spare * weights / weights.sum()]
    rest = patients - sum(sizes)
    return [size + (k < rest) for k, size in enumerate(sizes)]


def lacking_modalities(k: int, sites: int) -> tuple[str, ...]:
    """Modalities that site k, counted from 0, has not got."""
    several = max(1, sites // 6) if sites > 2 else 0
    if k >= sites - several:
        return GENOMICS
    return ("radiomics",) if k >= sites - 2 * several else ()


def _opaque_ids(rng: np.random.Generator, count: int) -> list[str]:
    """`count` distinct ids that tell neither the site nor an order."""
    ids: dict[str, None] = {}
    while len(ids) < count:
        ids[f"P-{int(rng.integers(2**40)):010X}"] = None
    return list(ids)


def choose_part(rng: np.random.Generator, part: float, count: int) -> NDArray[np.bool_]:
    """Choose a fixed part of `count` patients, and at least one of twenty unless the part is 0."""
    chosen = np.zeros(count, dtype=np.bool_)
    number = round(part * count)
    if part > 0 and count >= 20:
        number = max(1, number)
    chosen[rng.permutation(count)[:number]] = True
    return chosen


def _write_site(
    folder: Path,
    ids: list[str],
    lacking: tuple[str, ...],
    settings: CohortSettings,
    rng: np.random.Generator,
) -> None:
    """Write one site. Every table has a stream of its own and its rows in an order of its own."""
    folder.mkdir()
    people, outcomes, *streams = rng.spawn(2 + len(MODALITIES))
    patients = draw_patients(people, len(ids), settings.site_effect)
    files = {"clinical": "clinical.csv", "labels": "labels.csv"}
    mutated = [""] * len(ids)
    for modality, stream in zip(MODALITIES[1:], streams[1:], strict=True):
        values = draw_features(stream, modality, patients, settings.site_effect)
        if modality in lacking:
            continue
        files[modality] = f"{modality}.csv"
        absent = choose_part(stream, 2 * settings.gaps, len(ids))
        if modality == "mutations":
            column = values[:, COLUMNS[modality].index(LABEL)]
            mutated = ["" if a else "mutant" if x else "wildtype" for x, a in zip(column, absent, strict=True)]
        cells = _cells(stream, modality, values, settings.gaps)
        rows = [[i, *row] for i, row, a in zip(ids, cells, absent, strict=True) if not a]
        write_shuffled(folder / files[modality], ["patient_id", *COLUMNS[modality]], rows, stream)
    _write_clinical(folder / files["clinical"], ids, patients, settings, outcomes)
    labels = [list(row) for row in zip(ids, map(str, patients.kind), mutated, strict=True)]
    write_shuffled(folder / files["labels"], ["patient_id", "cancer_type", "tp53"], labels, streams[0])
    _write_settings(folder, files, len(ids))


def _write_interaction(
    folder: Path, ids: list[str], settings: CohortSettings, rng: np.random.Generator, interaction: float
) -> None:
    """Write one site of the population in which two modalities tell something only together."""
    folder.mkdir()
    people, measured, written = rng.spawn(3)
    tumours = draw_tumours(people, len(ids), interaction)
    files = {"clinical": "clinical.csv"}
    for name, values in draw_tables(measured, tumours, settings.site_effect).items():
        files[name] = f"{name}.csv"
        absent = choose_part(written, 2 * settings.gaps, len(ids))
        cells = _cells(written, name, values, settings.gaps)
        rows = [[i, *row] for i, row, a in zip(ids, cells, absent, strict=True) if not a]
        write_shuffled(folder / files[name], ["patient_id", *INTERACTING[name]], rows, written)
    columns = {
        "age": np.char.mod("%.1f", tumours.age).tolist(),
        "consent": np.where(choose_part(written, WITHHELD, len(ids)), "no", "yes").tolist(),
        "response": np.where(tumours.responded, "responder", "non-responder").tolist(),
    }
    clinical = [list(row) for row in zip(ids, *columns.values(), strict=True)]
    write_shuffled(folder / files["clinical"], ["patient_id", *columns], clinical, written)
    _write_settings(folder, files, len(ids))


def _cells(rng: np.random.Generator, modality: str, values: NDArray[np.float64], gaps: float) -> list[list[str]]:
    form: Callable[[float], str] = "{:.6g}".format if modality == "radiomics" else "{:.4f}".format
    if modality in {"cnv", "mutations"}:
        form = "{:.0f}".format
    missing = rng.random(values.shape) < gaps
    return [
        ["" if gap else form(x) for x, gap in zip(row, holes, strict=True)]
        for row, holes in zip(values.tolist(), missing.tolist(), strict=True)
    ]


def _write_clinical(
    path: Path,
    ids: list[str],
    patients: Patients,
    settings: CohortSettings,
    rng: np.random.Generator,
) -> None:
    days, died, responded = draw_outcomes(rng, patients, settings.signal)
    count = len(ids)
    dose = np.where(np.isnan(patients.dose), "", np.char.mod("%.1f", patients.dose))
    optional = {
        "age": np.char.mod("%.1f", patients.age),
        "sex": patients.sex,
        "stage": patients.stage,
        "treatment": patients.treatment,
        "dose_gy": dose,
        "response": np.where(responded, "responder", "non-responder"),
    }
    columns = {
        name: np.where(rng.random(count) < settings.gaps, "", texts).tolist() for name, texts in optional.items()
    }
    columns["consent"] = np.where(choose_part(rng, WITHHELD, count), "no", "yes").tolist()
    columns["os_event"] = np.where(died, "1", "0").tolist()
    columns["os_days"] = np.char.mod("%d", days).tolist()
    header = [
        "age",
        "sex",
        "stage",
        "treatment",
        "dose_gy",
        "consent",
        "os_event",
        "os_days",
        "response",
    ]
    rows = [list(row) for row in zip(ids, *(columns[name] for name in header), strict=True)]
    write_shuffled(path, ["patient_id", *header], rows, rng)


def write_shuffled(path: Path, header: list[str], rows: list[list[str]], rng: np.random.Generator) -> None:
    """Write a table whose rows are in an order that tells nothing."""
    write_table(path, header, [rows[int(i)] for i in rng.permutation(len(rows))])


def _write_settings(folder: Path, files: dict[str, str], patients: int) -> None:
    settings = {
        "site": {"name": folder.name},
        "tables": {name: {"file": file} for name, file in files.items()},
        "consent": {"table": "clinical", "column": "consent", "value": "yes"},
        # A tiny synthetic site takes part as well; a real one keeps 10.
        "policy": {"minimum_cohort": max(1, min(10, patients // 2))},
    }
    (folder / "site.toml").write_text(tomli_w.dumps(settings), encoding="utf-8", newline="\n")
