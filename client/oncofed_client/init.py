"""A first `site.toml` for a folder of tables and raw files: commented, consent left to a person."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

from oncofed_client.prepare.propose_genomics import propose_genomics
from oncofed_client.prepare.propose_imaging import propose_imaging
from oncofed_client.prepare.propose_tables import propose_columns
from oncofed_client.settings import SETTINGS_FILE
from oncofed_client.tables import Problems, Records, read_records
from oncofed_shared.errors import ConfigError, DataError
from oncofed_shared.storage import write_whole

__all__ = ["propose_settings", "write_settings"]

_ID_NAMES = (
    "patient_id",
    "patientid",
    "patient",
    "pid",
    "id",
    "case",
    "case_id",
    "case_submitter_id",
    "submitter_id",
    "bcr_patient_barcode",
    "patient_barcode",
    "barcode",
    "subject",
    "subject_id",
    "subjectid",
    "participant_id",
    "record_id",
    "mrn",
)
"""Usual names of a patient id column, the likeliest first."""

_HEADER = """\
# What this site tells its own oncofed daemon. This file stays here.
# Written by `oncofed-site init`; read it line by line, correct it, then run `oncofed-site check`.

[site]
name = {name}

# One block per table. A file that is not there is a table that the site lacks.
# Optional keys of a table:
#   rename   = {{ our_name = "name_in_the_study" }}   the file's column name -> the study's
#   units    = {{ age = "months" }}                   by the study's name; converted to the study's
#   missing  = ["", "NA", "unknown"]                 texts that mean "no value", in place of the
#                                                    usual: NA, [Not Available], nan, NaN, null
#   durations = {{ os_days = {{ since = "diagnosed", until = ["died", "seen"] }} }}
#                                                    dates become durations and are not kept
#   required = true                                  a missing file is then an error
"""

_FOOTER = """
# Consent. While this is empty nobody may enter. Choose ONE of the two forms and remove its '#'.
[consent]
# Form 1, each patient: only patients with exactly this value enter. It is read again before every
# round, so a withdrawal holds from the next round on.
# table  = {table}
# column = "consent"
# value  = "yes"
#
# Form 2, all patients in these tables: why no consent per patient is needed, where that is
# written, who decided it.
# basis       = "waiver of consent for retrospective data"
# reference   = "ethics committee, number and date"
# approved_by = "name and role"

[policy]
# Fewest patients with whom this site takes part in a study.
minimum_cohort = 10
# How much one patient's privacy may be spent, in private studies: in one study, and in all of them together. What was spent, and
# what is left, says `oncofed-site ledger`.
epsilon_study = 4.0
epsilon_total = 10.0
delta_total = 1e-5
# The same total if all other sites collude against this one. Studies that share their noise spend more of this one.
# epsilon_alone = 30.0
# Studies that share their noise: fewest sites, and how many of the others might collude.
minimum_sites = 3
maximum_colluders = 1
# What may leave at all. Without "statistics", "tables" and "updates" only what carries noise does.
release = ["statistics", "tables", "updates", "noised-sums"]
"""


def _plain(name: str) -> str:
    return re.sub(r"[\s-]+", "_", name.strip().casefold())


def _quoted(text: str) -> str:
    """Write a TOML string. JSON's escapes are TOML's."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _name(text: str, taken: set[str]) -> str:
    """Make a name that settings accept, not yet taken."""
    name = re.sub(r"[^A-Za-z0-9_.+ -]+", "-", text).lstrip("_.+ -")[:60] or "table"
    unique, n = name, 1
    while unique in taken:
        n += 1
        unique = f"{name}-{n}"
    taken.add(unique)
    return unique


def _candidates(records: Records) -> dict[str, frozenset[str]]:
    """Columns that could be the id by name and by unique, complete values; the likeliest first."""
    found: list[tuple[int, str, frozenset[str]]] = []
    for i, column in enumerate(records.header):
        if _plain(column) not in _ID_NAMES or records.header.count(column) > 1:
            continue
        values = [row[i].strip() for row in records.rows]
        ids = frozenset(values)
        if values and "" not in ids and len(ids) == len(values):
            found.append((_ID_NAMES.index(_plain(column)), column, ids))
    return {column: ids for _, column, ids in sorted(found, key=lambda f: f[0])}


def _choose(candidates: Mapping[str, dict[str, frozenset[str]]]) -> dict[str, tuple[str, bool]]:
    """Per file the id column, and whether it shares patients with another file's."""
    chosen: dict[str, tuple[str, bool]] = {}
    for file, columns in candidates.items():
        others = [ids for f, c in candidates.items() if f != file for ids in c.values()]
        shared = [c for c, ids in columns.items() if any(ids & other for other in others)]
        if columns:
            chosen[file] = (shared or list(columns))[0], bool(shared) or len(candidates) == 1
    return chosen


def _read(folder: Path) -> tuple[dict[str, Records], dict[str, str]]:
    """Readable tables by file name, and why the others are not."""
    try:
        paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in {".csv", ".tsv"})
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be read as a folder ({error.strerror}); check its name and rights",
            code="folder",
        ) from None
    records: dict[str, Records] = {}
    broken: dict[str, str] = {}
    for path in paths:
        problems = Problems()
        read = read_records(path, problems)
        if read is not None:
            records[path.name] = read
        else:
            broken[path.name] = problems.lines()[0].removeprefix(str(path)).lstrip(":, ")
    return records, broken


def propose_settings(folder: Path) -> str:
    """Write down a commented `site.toml` for a folder, as text.

    Every .csv and .tsv with a column that looks like a patient id becomes a table; the others are
    named in comments. Images and sequencing files become `[imaging]` and `[genomics]`.

    Raises:
        DataError: the folder cannot be read, or has neither a usable table nor raw files.
    """
    records, broken = _read(folder)
    candidates = {file: _candidates(r) for file, r in records.items() if not _is_link(r)}
    chosen = _choose(candidates)
    people = {p for file, (column, _) in chosen.items() for p in candidates[file][column]}
    raw = propose_imaging(folder, people) + propose_genomics(folder, people, set(chosen))
    if not chosen and not raw:
        raise _nothing(folder, records, broken)
    taken: set[str] = set()
    blocks = []
    for file, (column, shared) in chosen.items():
        name = _name(Path(file).stem, taken)
        note = "" if shared else "   # shares no patient with the other tables: is it the id?"
        key = name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _quoted(name)
        blocks.append(f"\n[tables.{key}]\nfile = {_quoted(file)}\nid = {_quoted(column)}{note}\n")
        blocks.append(propose_columns(records[file]))
    left = dict.fromkeys(records, "no column looks like a patient id with one row per patient")
    left = {f: why for f, why in (left | broken).items() if f not in chosen}
    if left:
        blocks.append("\n# Not used:\n")
        blocks += [f"#   {_quoted(f)}: {why}\n" for f, why in sorted(left.items())]
    header = _HEADER.format(name=_quoted(_name(folder.resolve().name, set())))
    first = next(iter(sorted(taken, key=lambda n: (n != "clinical", n))), "clinical")
    return header + "".join(blocks) + raw + _FOOTER.format(table=_quoted(first))


def _is_link(records: Records) -> bool:
    """Whether it only says which number of an archive is which patient."""
    return set(records.header) == {"source", "patient_id"}


def _nothing(folder: Path, records: Mapping[str, Records], broken: Mapping[str, str]) -> DataError:
    """Nothing that `init` knows lies in the folder."""
    if not records and not broken:
        return DataError(
            f"{folder}: has no .csv or .tsv file, no images and no sequencing files; put the site's files there first"
        )
    return DataError(
        f"{folder}: no table has a patient id column that `init` knows (such as patient_id), "
        f"with one row per patient; rename it, or write {SETTINGS_FILE} by hand",
    )


def write_settings(folder: Path) -> Path:
    """Write the proposed `site.toml`, all of it or nothing.

    Raises:
        ConfigError: there is one already; it is left alone.
        DataError: the folder has no usable table.
        StorageError: it cannot be written.
    """
    target = folder / SETTINGS_FILE
    if os.path.lexists(target):
        raise ConfigError(
            f"{target}: exists already and is left as it is; move it away to write a new one",
            code="exists",
        )
    write_whole(target, propose_settings(folder).encode())
    return target
