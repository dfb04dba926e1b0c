"""Sums of products under a privacy budget: what principal components and the LASSO need, as one bounded vector per patient.

    a patient's row, each value in -1..1 -> shortened to a constant length -> count, sums, products -> whole numbers

The products of each two columns of a row are bounded by the square of its length (Dwork et al. 2014, Analyze Gauss). All of it goes
the way of the other charged statistics, in the same sum; see `charged_statistics`. What is made of the noised sums is in
`charged_reductions`. docs/statistics.md says what it costs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from oncofed_shared.features import column_ranges
from oncofed_shared.losses import targets
from oncofed_shared.messages import Columns
from oncofed_shared.plan import Plan, SurvivalTask
from oncofed_shared.plan_reduction import Lasso, PrincipalComponents

__all__ = ["FINEST", "Block", "blocks", "patient_products", "products_entries", "products_size", "unseen_values"]

Values = NDArray[np.float64]
Labels = Mapping[str, NDArray[np.float64]]
FINEST = 1024
"""Integer steps of one, at least: rounding then costs a hundredth of what a bound allows, and no bias that could be seen."""
WITHIN = 1 - 1e-12
"""Rows are shortened to this part of their bound, so that the last bits of a root do not matter."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """The numbers of one reduced modality.

    Attributes:
        name: of the modality.
        settings: what the plan wants of it.
        part: its columns in a table of all columns; `against` those of the modality that they are chosen by, or nothing.
        length: to which a row is shortened.
        answers: numbers of a patient that products are made with; `totals` those of which only sums are wanted.
        reach: largest length of the answers together; of the totals it is as large.
    """

    name: str
    settings: PrincipalComponents | Lasso
    part: slice
    against: slice
    length: float
    answers: int
    totals: int
    reach: float

    @property
    def columns(self) -> int:
        """How many."""
        return int(self.part.stop - self.part.start)

    @property
    def sizes(self) -> tuple[int, int, int, int, int]:
        """Lengths of: patients, sums of columns, products of each two, sums of answers, products of columns with answers."""
        own = self.columns
        return 1, own, own * (own + 1) // 2, self.totals, own * self.answers

    @property
    def size(self) -> int:
        """Numbers in all."""
        return sum(self.sizes)

    @property
    def entries(self) -> float:
        """What the squares of one patient's numbers add up to, at most, rounding to whole steps counted."""
        row, reach = self.length**2, self.reach**2
        exact = math.sqrt(1 + row + row**2 / 2 + reach + row * reach)
        return (exact + math.sqrt(self.size) / (2 * FINEST)) ** 2


def _answers(plan: Plan, columns: Columns, settings: PrincipalComponents | Lasso) -> tuple[int, int, float]:
    """Answers, totals and reach of what columns are chosen by."""
    task = plan.tasks[plan.main_task]
    if isinstance(settings, PrincipalComponents):
        return 0, 0, 0.0
    if settings.against is not None:
        count = len(columns[settings.against])
        return count, count, settings.bound * math.sqrt(count)
    if isinstance(task, SurvivalTask):
        # An event or none, and being at risk in each interval over the root of their number: two squares of at most 1.
        return 1 + task.intervals, 2 * task.intervals, math.sqrt(2)
    count = 1 if len(task.classes) == 2 else len(task.classes)
    return count, count, 1.0


def blocks(plan: Plan, columns: Columns) -> list[Block]:
    """The modalities whose products are summed, sorted."""
    parts, start = {}, 0
    for name in sorted(columns):
        parts[name], start = slice(start, start + len(columns[name])), start + len(columns[name])
    made = []
    for name in sorted(columns):
        settings = plan.modalities[name].reduction
        if not isinstance(settings, PrincipalComponents | Lasso) or not columns[name]:
            continue
        against = settings.against if isinstance(settings, Lasso) else None
        answers, totals, reach = _answers(plan, columns, settings)
        made.append(
            Block(
                name=name,
                settings=settings,
                part=parts[name],
                against=slice(0, 0) if against is None else parts[against],
                length=settings.bound * math.sqrt(len(columns[name])),
                answers=answers,
                totals=totals,
                reach=reach,
            )
        )
    return made


def products_size(plan: Plan, columns: Columns) -> int:
    """Length of what `patient_products` gives."""
    return sum(b.size for b in blocks(plan, columns))


def products_entries(plan: Plan, columns: Columns) -> float:
    """What the squares of one patient's numbers add up to, at most."""
    return sum(b.entries for b in blocks(plan, columns))


def unseen_values(plan: Plan, columns: Columns) -> Values:
    """What counts for a missing value, (columns,) in -1..1: what the network reads there, as far as the plan says it.

    The network reads 0 after scaling. That is a constant of the plan under `constants`, `minmax` and `none`; under the others it is
    learned in the same sum, and the middle of the range stands for it.
    """
    middle, half = column_ranges(plan, columns)
    found, start = np.zeros(len(middle)), 0
    for name in sorted(columns):
        modality, own = plan.modalities[name], columns[name]
        for i, column in enumerate(own, start):
            spec = (modality.columns or {}).get(column)
            center = getattr(spec, "center", None)
            if modality.scaling == "constants":
                wanted = center if center is not None else modality.center or 0.0
                found[i] = (wanted - middle[i]) / half[i]
            elif modality.scaling == "minmax":
                found[i] = -1.0
            elif modality.scaling == "none":
                found[i] = -middle[i] / half[i]
        start += len(own)
    return np.clip(found, -1, 1)


def _shortened(row: Values, length: float) -> Values:
    found = math.sqrt(float(row @ row))
    return row if found <= length * WITHIN else row * (length * WITHIN / found)


def _survival(plan: Plan, labels: Labels) -> tuple[Values, Values]:
    """(n, intervals) events, and who is at risk over the root of the number of intervals."""
    nothing = {name: np.ones(len(t.classes)) for name, t in plan.tasks.items() if not isinstance(t, SurvivalTask)}
    made = targets(plan, labels, nothing)[plan.main_task]
    at_risk = made.weight.numpy().astype(np.float64)
    return made.goal.numpy().astype(np.float64), at_risk / math.sqrt(at_risk.shape[1])


def _answered(
    plan: Plan, block: Block, filled: Values, seen: NDArray[np.bool_], labels: Labels
) -> tuple[Values, Values, NDArray[np.bool_]]:
    """Answers (n, answers), totals (n, totals), and of whom they are known (n,)."""
    settings, task, n = block.settings, plan.tasks[plan.main_task], len(filled)
    if isinstance(settings, PrincipalComponents):
        return np.zeros((n, 0)), np.zeros((n, 0)), np.ones(n, dtype=bool)
    if settings.against is not None:
        other = np.ascontiguousarray(filled[:, block.against])
        rows = np.array([_shortened(r, block.reach) for r in other]).reshape(other.shape)
        return rows, rows, np.asarray(seen[:, block.against].any(axis=1), dtype=bool)
    if isinstance(task, SurvivalTask):
        happened, at_risk = _survival(plan, labels)
        answers = np.concatenate([happened.sum(axis=1, keepdims=True), at_risk], axis=1)
        return answers, np.concatenate([happened, at_risk], axis=1), np.asarray(at_risk.any(axis=1), dtype=bool)
    label = np.asarray(labels[plan.main_task], dtype=np.int64)
    marks = (label[:, None] == np.arange(len(task.classes))).astype(np.float64)
    marks = marks[:, 1:] if len(task.classes) == 2 else marks
    return marks, marks, np.asarray(label >= 0, dtype=bool)


def patient_products(plan: Plan, columns: Columns, bounded: Values, labels: Labels, *, unit: int) -> NDArray[np.int64]:
    """Sum over patients of what each of them adds, (products_size,), in integer steps of `unit`.

    Args:
        bounded: (n, columns) values in -1..1, NaN where missing.
        labels: per task, as in a cohort.
        unit: FINEST at least.

    Returns:
        Per modality: patients who have it; sums of columns; products of each two, a column's square over the root of 2, which
        makes the noise on the products that of a symmetric matrix; sums of answers; products of columns with answers.

    Guarantees:
        - One patient more or less changes it by a vector of length unit x sqrt(products_entries) at most, whatever his values are,
          and each number by `unit` at most.
        - What a patient adds does not depend on who else is there.
    """
    seen = ~np.isnan(bounded)
    filled = np.where(seen, bounded, unseen_values(plan, columns))
    parts = []
    for block in blocks(plan, columns):
        total = np.zeros(block.size, dtype=np.int64)
        upper = np.triu_indices(block.columns)
        weight = np.where(upper[0] == upper[1], math.sqrt(0.5), 1.0)
        answers, totals, known = _answered(plan, block, filled, seen, labels)
        has = seen[:, block.part].any(axis=1)
        for i in np.flatnonzero(has & known):
            row = _shortened(np.ascontiguousarray(filled[i, block.part]), block.length)
            products = np.outer(row, row)[upper] * weight
            own = [np.ones(1), row, products, totals[i], np.outer(row, answers[i]).ravel()]
            total += np.rint(np.concatenate(own) * unit).astype(np.int64)
        parts.append(total)
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)
