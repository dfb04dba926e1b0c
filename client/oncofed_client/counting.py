"""About how many patients a site has for a study, before the study begins: what its data officer may approve by itself."""

from __future__ import annotations

import numpy as np

from oncofed_client.cohort import Cohort
from oncofed_client.site import Site
from oncofed_shared.messages import Count, Counted
from oncofed_shared.plan import Plan, SurvivalTask

__all__ = ["ROUNDED_TO", "count", "rounded_counts"]

ROUNDED_TO = 10


def rounded_counts(plan: Plan, cohort: Cohort, *, minimum: int) -> dict[str, int]:
    """Numbers of a cohort's patients, to the nearest ten: all, per modality, per task with a label, per event or class.

    Args:
        minimum: fewest patients behind a number.

    Guarantees:
        - Every number is a multiple of ROUNDED_TO.
        - A number with fewer than `minimum` patients behind it, or so few beside it in its whole, is not there.
    """
    whole = len(cohort.patients)
    exact: dict[str, tuple[int, int]] = {"patients": (whole, 0)}
    for name, values in cohort.values.items():
        seen = int(np.count_nonzero(~np.isnan(values).all(axis=1))) if values.shape[1] else 0
        exact[f"modality {name}"] = (seen, whole)
    for name, task in plan.tasks.items():
        labels = cohort.labels[name]
        if isinstance(task, SurvivalTask):
            labelled = int(np.count_nonzero(~np.isnan(labels).any(axis=1)))
            exact[f"event {name}"] = (int(np.count_nonzero(labels[:, 1] == 1)), labelled)
        else:
            labelled = int(np.count_nonzero(labels >= 0))
            for k in range(len(task.classes)):
                exact[f"class {name}.{k}"] = (int(np.count_nonzero(labels == k)), labelled)
        exact[f"task {name}"] = (labelled, whole)
    found = {}
    for name, (number, of) in exact.items():
        # "All but one have it" tells of one patient as much as "one has it".
        others = of - number
        if number >= minimum and (others <= 0 or others >= minimum):
            found[name] = (number + ROUNDED_TO // 2) // ROUNDED_TO * ROUNDED_TO
    return found


def count(site: Site, plan: Plan, request: Count) -> Counted:
    """Answer `Count`.

    Raises:
        PolicyRefusal: the site's policy does not allow the plan, or fewer patients than it asks for could take part.
        DataError: the files are wrong.
    """
    cohort, _ = site.admit(plan, request.head.trial)
    return Counted(head=request.head, site=site.name, counts=rounded_counts(plan, cohort, minimum=site.minimum_cohort))
