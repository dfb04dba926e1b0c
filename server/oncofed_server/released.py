"""What a private study releases as its scores: rows of `result.json` from the opened, noised sum of coarse counts."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from oncofed_shared.consortium import TablesMechanism
from oncofed_shared.noised_scores import noised_scores, noised_totals
from oncofed_shared.noised_tables import CoarseGrid
from oncofed_shared.plan import Plan

__all__ = ["released_scores"]


def released_scores(
    plan: Plan,
    counts: NDArray[np.float64],
    mechanism: TablesMechanism,
    present: int,
    grid: CoarseGrid | None = None,
) -> list[dict[str, Any]]:
    """Rows for `result["released"]`, one per task and metric, the main task first.

    Args:
        counts: (coarse_size,) decoded sum, in patients, as opened.
        mechanism: of the release; its epsilon and delta are for one test patient, over all rows together.
        present: sites whose noise is in the sum.
        grid: of the counts, where it is not the plan's fixed one.

    Returns:
        Each with `task`, `metric`, `value`, `ci`, `why`, `epsilon`, `delta`, `noise_std` (of a cell), `patients` and `events`
        (noised totals; of a classification, patients of the rarest class), and for a calibration `points`. Ready for JSON.
    """
    noise = mechanism.noise_std(present)
    totals = noised_totals(plan, counts, grid)
    return [
        {
            "task": task,
            "metric": metric,
            **score,
            "epsilon": mechanism.epsilon_target,
            "delta": mechanism.delta,
            "noise_std": noise,
            "patients": round(totals[task][0]),
            "events": round(totals[task][1]),
        }
        for task, metrics in noised_scores(plan, counts, noise_std=noise, grid=grid).items()
        for metric, score in metrics.items()
    ]
