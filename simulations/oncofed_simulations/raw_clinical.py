"""A site's clinical export: names, dates and units as the hospital's own system has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from oncofed_simulations.population import COLUMNS
from oncofed_simulations.raw_draw import RawSite
from oncofed_simulations.raw_identity import DATE_FORMS
from oncofed_simulations.synthetic import LABEL, write_shuffled

__all__ = ["clinical_settings", "write_clinical"]


def _form(site: RawSite) -> str:
    return DATE_FORMS[site.index % len(DATE_FORMS)]


def _centigray(site: RawSite) -> bool:
    return site.index % 2 == 1


def _death_dates(site: RawSite) -> bool:
    """Whether the site notes when somebody died, in place of a last date and whether it was death."""
    return site.index % 2 == 0


def clinical_settings(site: RawSite) -> dict[str, Any]:
    """Make the site's `[tables]`: dates become durations, units are declared."""
    ends = ["death_date", "last_seen"] if _death_dates(site) else ["last_seen"]
    clinical: dict[str, Any] = {
        "file": "clinical.csv",
        "date_format": _form(site),
        "durations": {
            "age": {"since": "birth_date", "until": ["diagnosis_date"], "unit": "years"},
            "os_days": {"since": "diagnosis_date", "until": ends},
        },
    }
    if _death_dates(site):
        clinical["events"] = {"os_event": "death_date"}
    if _centigray(site):
        clinical["units"] = {"dose_gy": "cGy"}
    return {"clinical": clinical, "labels": {"file": "labels.csv"}}


def write_clinical(folder: Path, site: RawSite, gaps: float) -> None:
    """Write `clinical.csv` and `labels.csv`; `gaps` is the part of values that are missing."""
    rng = site.streams["clinical"]
    form, patients, count = _form(site), site.patients, len(site.people)
    dose = patients.dose * (100 if _centigray(site) else 1)
    optional = {
        "birth_date": np.array([p.born.strftime(form) for p in site.people]),
        "sex": patients.sex,
        "stage": patients.stage,
        "treatment": patients.treatment,
        "dose_gy": np.where(np.isnan(dose), "", np.char.mod("%.1f", dose)),
        "response": np.where(site.responded, "responder", "non-responder"),
    }
    columns = {name: np.where(rng.random(count) < gaps, "", texts).tolist() for name, texts in optional.items()}
    columns["patient_name"] = [f"{p.family}, {p.given}" for p in site.people]
    columns["telephone"] = [p.phone for p in site.people]
    columns["diagnosis_date"] = [p.diagnosed.strftime(form) for p in site.people]
    last = np.array([p.last_seen.strftime(form) for p in site.people])
    if _death_dates(site):
        columns["death_date"] = np.where(site.died, last, "").tolist()
        columns["last_seen"] = np.where(site.died, "", last).tolist()
    else:
        columns["last_seen"] = last.tolist()
        columns["os_event"] = np.where(site.died, "1", "0").tolist()
    columns["consent"] = np.where(site.consents, "yes", "no").tolist()
    columns["remark"] = [f"{p.given} asked for a call on {p.scanned.strftime(form)}" for p in site.people]
    ids = [p.number for p in site.people]
    rows = [list(row) for row in zip(ids, *columns.values(), strict=True)]
    write_shuffled(folder / "clinical.csv", ["patient_id", *columns], rows, rng)
    mutated = [""] * count
    if "mutations" in site.values:
        carried = site.values["mutations"][:, COLUMNS["mutations"].index(LABEL)]
        mutated = [
            "" if a else "mutant" if x else "wildtype" for x, a in zip(carried, site.absent["mutations"], strict=True)
        ]
    labels = [list(row) for row in zip(ids, map(str, patients.kind), mutated, strict=True)]
    write_shuffled(folder / "labels.csv", ["patient_id", "cancer_type", "tp53"], labels, rng)
