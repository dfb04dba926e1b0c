"""What a site says of itself before a run: its columns, and numbers of patients where the plan has no privacy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from oncofed_client.cohort import Cohort
from oncofed_shared.features import encoded_columns
from oncofed_shared.messages import Description, Head
from oncofed_shared.plan import ClassificationTask, NoPrivacy, Plan

__all__ = ["PART_CODES", "describe"]

PART_CODES = {"train": 0, "validation": 1, "test": 2}
"""Of the parts in a split."""


def describe(plan: Plan, head: Head, site: str, cohort: Cohort, split: NDArray[np.int64]) -> Description:
    """Answer `Describe`.

    Args:
        split: (patients,) codes of PART_CODES.

    Guarantees:
        - Under a private plan it holds no number of patients: theirs are the plan's, and the true ones stay here.
        - Under a private plan a modality whose columns the plan names has those names, whatever this site has of them.
    """
    columns = dict(cohort.columns)
    if not isinstance(plan.privacy, NoPrivacy):
        columns = {name: encoded_columns(plan.modalities[name]) or own for name, own in columns.items()}
        return Description(head=head, site=site, columns=columns, parts={}, modalities={}, events={})
    events: dict[str, int] = {}
    for name, task in plan.tasks.items():
        labels = cohort.labels[name]
        if isinstance(task, ClassificationTask):
            for k in range(len(task.classes)):
                events[f"{name}.{k}"] = int(np.count_nonzero(labels == k))
        else:
            events[name] = int(np.count_nonzero(labels[:, 1] > 0))
    parts = {p: int(np.count_nonzero(split == c)) for p, c in PART_CODES.items()}
    return Description(
        head=head,
        site=site,
        columns=columns,
        parts=parts | {"all": len(cohort.patients)},
        modalities={
            m: int(np.count_nonzero(~np.isnan(v).all(axis=1))) if v.shape[1] else 0 for m, v in cohort.values.items()
        },
        events=events,
    )
