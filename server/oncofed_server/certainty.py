"""`certainty` of `result.json`: what a prediction of the released model has meant for patients it had not learned from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oncofed_shared.calibrated import BAND_LEVEL, SET_LEVEL, bands, coverage, threshold
from oncofed_shared.metrics import counts
from oncofed_shared.plan import ClassificationTask, Plan
from oncofed_shared.scoring import WHOLE, split_vector

__all__ = ["certainty"]

Vector = NDArray[np.float64]


def certainty(plan: Plan, validation: Vector | None, tests: Mapping[str, Vector]) -> dict[str, Any]:
    """Calibrated sets and bands per task, from sums over all sites.

    Args:
        validation: tables of the validation patients after the last round, or None where there are none.
        tests: test tables by site, with subgroups: what the sets are checked on.

    Returns:
        {task: {patients, bands, band_level, sets}}; see docs/result-json.md. A task is absent where too few patients stand
        behind it for a number to be shown.
    """
    if validation is None:
        return {}
    made: dict[str, Any] = {}
    tested = split_vector(plan, np.sum(list(tests.values()), axis=0), subgroups=True)[WHOLE] if len(tests) else {}
    for name, vector in split_vector(plan, validation, subgroups=False)[WHOLE].items():
        task, rule = plan.tasks[name], plan.evaluation
        patients, rarest = counts(task, rule, vector)
        if patients < rule.minimum_shown or rarest < rule.minimum_events:
            continue
        entry: dict[str, Any] = {
            "patients": patients,
            "band_level": BAND_LEVEL,
            "bands": [asdict(b) | {"interval": list(b.interval)} for b in bands(task, rule, vector)],
            "sets": None,
        }
        at = threshold(task, rule, vector) if isinstance(task, ClassificationTask) else None
        if isinstance(task, ClassificationTask) and at is not None:
            seen = tested.get(name)
            enough = seen is not None and counts(task, rule, seen)[0] >= rule.minimum_shown
            found = coverage(task, rule, seen, at) if seen is not None and enough else None
            entry["sets"] = {
                "level": SET_LEVEL,
                "threshold": at,
                "covered": found.covered if found else None,
                "size": found.size if found else None,
                "test_patients": counts(task, rule, seen)[0] if found and seen is not None else None,
            }
        made[name] = entry
    return made
