"""Import of FLamby's Fed-TCGA-BRCA: one table of all patients becomes the folders of six sites.

FLamby (du Terrail et al., "FLamby: Datasets and Benchmarks for Cross-Silo Federated Learning in
Realistic Healthcare Settings", NeurIPS 2022) ships `brca.csv` and `train_test_split.csv`. The
region is the digit at the end of the split's `fold2`. The texts of `brca.csv` are kept as they are.
"""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import tomli_w

from oncofed_shared.errors import ConfigError, DataError, StorageError
from oncofed_simulations.folders import new_folder, write_table

__all__ = ["CLINICAL_COLUMNS", "REGIONS", "import_flamby"]

REGIONS = ("northeast", "south", "west", "midwest", "europe", "canada")
"""Names of the sites, in the order of FLamby's digits 0 to 5."""

CLINICAL_COLUMNS = 39
_ID, _EVENT, _TIME = "pid", "E", "T"
_FOLDS = ("train", "test")
_TABLE, _SPLIT = "brca.csv", "train_test_split.csv"
_REFERENCE = (
    "TCGA-BRCA, open-access tier of the NCI Genomic Data Commons, as published in FLamby's datasets/fed_tcga_brca"
)
_SHOWN = 5

Row = dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """What was read: `brca.csv` row by row, and for a patient his region and fold."""

    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    folds: dict[str, tuple[str, str]]

    @property
    def dropped(self) -> tuple[int, ...]:
        """Row numbers of the patients in no fold, where the header is row 1."""
        return tuple(n for n, row in enumerate(self.rows, start=2) if row[_ID] not in self.folds)


def import_flamby(src: Path, out: Path) -> str:
    """Make six site folders of FLamby's Fed-TCGA-BRCA.

    Each of `out/northeast`, `south`, `west`, `midwest`, `europe` and `canada` gets `site.toml`,
    `clinical.csv` (`patient_id`, the 39 clinical columns under their own names, `E` 1 for a death,
    `T` in days) and `split.csv` (`patient_id`, `fold`: train or test, as published).

    Args:
        src: FLamby's folder `fed_tcga_brca`, with `brca.csv` and `train_test_split.csv`.
        out: a new folder, or an empty one.

    Returns:
        What was imported and what was not, in words.

    Raises:
        ConfigError: a file is absent, or `out` exists and is not empty.
        DataError: a file is not what FLamby publishes.
        StorageError: something cannot be read or written.
    """
    source = _read(src)
    with new_folder(out) as partial:
        for region in REGIONS:
            _write_site(partial / region, region, source)
    return _summary(source, out)


def _read(src: Path) -> _Source:
    columns, rows = _read_table(src / _TABLE, (_ID, _EVENT, _TIME))
    clinical = len(columns) - 3
    if clinical != CLINICAL_COLUMNS:
        raise DataError(
            f"{src / _TABLE}: {clinical} columns beside {_ID}, {_EVENT} and {_TIME}; expected "
            f"{CLINICAL_COLUMNS}; use the file that FLamby ships"
        )
    _, split_rows = _read_table(src / _SPLIT, (_ID, "fold", "fold2"))
    problems = [*_unusable(src / _TABLE, rows), *_unknown_folds(src / _SPLIT, split_rows)]
    if problems:
        raise DataError(*problems)
    folds = {r[_ID]: (REGIONS[int(r["fold2"].rpartition("_")[2])], r["fold"]) for r in split_rows}
    absent = len(set(folds) - {row[_ID] for row in rows})
    if absent:
        raise DataError(
            f"{src / _SPLIT}: {absent} of its patients are not in {_TABLE}; take both files from one copy of FLamby"
        )
    return _Source(columns=columns, rows=rows, folds=folds)


def _read_table(path: Path, needed: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[Row, ...]]:
    if not path.is_file():
        raise ConfigError(
            f"{path}: there is no such file; expected FLamby's folder fed_tcga_brca with {_TABLE} and {_SPLIT}"
        )
    try:
        with path.open(encoding="utf-8", newline="") as file:
            header, *lines = list(csv.reader(file)) or [[]]
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({error.strerror})") from None
    except (UnicodeDecodeError, csv.Error):
        raise DataError(f"{path}: is not a UTF-8 CSV file; use the one that FLamby ships") from None
    missing = [name for name in needed if name not in header]
    problems = []
    if missing:
        problems.append(f"{path}: row 1: no column {', '.join(missing)}; use the file that FLamby ships")
    if len(set(header)) != len(header):
        problems.append(f"{path}: row 1: two columns have the same name")
    uneven = [n for n, line in enumerate(lines, start=2) if len(line) != len(header)]
    if uneven:
        problems.append(f"{path}: {_places(uneven)}: expected {len(header)} values in a row")
    if problems:
        raise DataError(*problems)
    rows = tuple(dict(zip(header, line, strict=True)) for line in lines)
    if not missing and len({row[_ID] for row in rows}) != len(rows):
        counts = Counter(row[_ID] for row in rows)
        twice = [n for n, row in enumerate(rows, start=2) if counts[row[_ID]] > 1]
        raise DataError(f"{path}: {_places(twice)}: column {_ID}: one patient in several rows")
    return tuple(header), rows


def _unusable(path: Path, rows: tuple[Row, ...]) -> list[str]:
    problems = []
    events = [n for n, row in enumerate(rows, start=2) if _number(row[_EVENT]) not in {0.0, 1.0}]
    if events:
        problems.append(f"{path}: {_places(events)}: column {_EVENT}: expected 0 or 1")
    times = [n for n, row in enumerate(rows, start=2) if not 0 <= _number(row[_TIME]) < float("inf")]
    if times:
        problems.append(f"{path}: {_places(times)}: column {_TIME}: expected days, 0 or more")
    return problems


def _unknown_folds(path: Path, rows: tuple[Row, ...]) -> list[str]:
    known = {f"{fold}_{digit}" for fold in _FOLDS for digit in range(len(REGIONS))}
    wrong = [
        n
        for n, row in enumerate(rows, start=2)
        if row["fold2"] not in known or row["fold2"].rpartition("_")[0] != row["fold"]
    ]
    if not wrong:
        return []
    return [
        (
            f"{path}: {_places(wrong)}: columns fold and fold2: expected train or test, "
            f"and the same with a region's digit 0 to {len(REGIONS) - 1}, such as train_0"
        )
    ]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _places(rows: list[int] | tuple[int, ...], shown: int = _SHOWN) -> str:
    more = f" and {len(rows) - shown} more" if len(rows) > shown else ""
    return f"row{'s' if len(rows) > 1 else ''} {', '.join(map(str, rows[:shown]))}{more}"


def _write_site(folder: Path, region: str, source: _Source) -> None:
    folder.mkdir()
    mine = sorted(
        (row for row in source.rows if source.folds.get(row[_ID], ("", ""))[0] == region),
        key=lambda row: row[_ID],
    )
    columns = [c for c in source.columns if c not in {_ID, _EVENT, _TIME}]
    write_table(
        folder / "clinical.csv",
        ["patient_id", *columns, _EVENT, _TIME],
        ([row[c] for c in (_ID, *columns, _EVENT, _TIME)] for row in mine),
    )
    write_table(
        folder / "split.csv",
        ["patient_id", "fold"],
        ([row[_ID], source.folds[row[_ID]][1]] for row in mine),
    )
    settings = {
        "site": {"name": region},
        "tables": {"clinical": {"file": "clinical.csv"}, "split": {"file": "split.csv"}},
        "consent": {
            "basis": "public de-identified data",
            "reference": _REFERENCE,
            "approved_by": "NCI Genomic Data Commons: open-access data need no approval",
        },
        "policy": {"minimum_cohort": 10},
    }
    (folder / "site.toml").write_text(tomli_w.dumps(settings), encoding="utf-8", newline="\n")


def _summary(source: _Source, out: Path) -> str:
    kept = [row for row in source.rows if row[_ID] in source.folds]
    lines = [f"{len(kept)} of {len(source.rows)} patients imported into {out}:"]
    for region in REGIONS:
        here = [row for row in kept if source.folds[row[_ID]][0] == region]
        events = [source.folds[r[_ID]][1] for r in here if float(r[_EVENT]) == 1]
        folds = Counter(source.folds[r[_ID]][1] for r in here)
        lines.append(
            f"  {region}: {folds['train']} train (events: {events.count('train')}), "
            f"{folds['test']} test (events: {events.count('test')})"
        )
    dropped = source.dropped
    if dropped:
        lines.append(
            f"{_patients(len(dropped))} dropped, being in no fold of {_SPLIT} "
            "(of hospitals outside the six regions): "
            f"{_places(dropped, len(dropped))} of {_TABLE}, the header being row 1."
        )
    zero = sum(float(row[_TIME]) == 0 for row in kept)
    if zero:
        lines.append(f"{_patients(zero)} with time 0 kept; that is a valid time.")
    return "\n".join(lines)


def _patients(count: int) -> str:
    return f"{count} patient{'s' if count != 1 else ''}"
