"""Order of the counts in a `Tables` message: every task over all patients, then over each subgroup."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from oncofed_shared.errors import RemoteProtocolError
from oncofed_shared.metrics import table_size, tally
from oncofed_shared.plan import Plan

__all__ = ["WHOLE", "blocks", "dense", "sparse", "split_vector", "tabulate", "vector_size"]

WHOLE = ("", "")


def blocks(plan: Plan, *, subgroups: bool) -> Iterator[tuple[str, str]]:
    """(subgroup, group) of each block; `WHOLE` first."""
    yield WHOLE
    if subgroups:
        for name, subgroup in sorted(plan.evaluation.subgroups.items()):
            for group in subgroup.groups:
                yield name, group


def vector_size(plan: Plan, *, subgroups: bool) -> int:
    """Number of cells over all blocks and tasks."""
    per_block = sum(table_size(plan.tasks[t], plan.evaluation) for t in plan.task_names)
    return per_block * len(list(blocks(plan, subgroups=subgroups)))


def sparse(vector: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(m,) counts as the (k,) places that are not zero and what stands there."""
    # Compared first: numpy finds true ones several times faster than floats that are not zero.
    cells = np.flatnonzero(vector != 0).astype(np.int64)
    return cells, vector[cells]


def dense(size: int, cells: NDArray[np.int64], counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Inverse of `sparse`.

    Raises:
        RemoteProtocolError: a place beyond `size`, not ascending, or a count that is not finite and positive.
    """
    ok = len(cells) == len(counts) and bool((np.isfinite(counts) & (counts > 0)).all())
    # Compared, not subtracted: a difference of hostile places could wrap.
    ok = ok and bool(((cells >= 0) & (cells < size)).all() and (cells[1:] > cells[:-1]).all())
    if not ok:
        raise RemoteProtocolError("tables with cells that do not exist")
    vector = np.zeros(size)
    vector[cells] = counts
    return vector


def tabulate(
    plan: Plan,
    predictions: Mapping[str, NDArray[np.float64]],
    labels: Mapping[str, NDArray[np.float64]],
    membership: Mapping[str, NDArray[np.int64]],
    *,
    subgroups: bool,
) -> NDArray[np.float64]:
    """Count predictions against labels, (n rows each), into one additive vector."""
    parts = []
    for name, group in blocks(plan, subgroups=subgroups):
        rows: slice | NDArray[np.bool_] = slice(None)
        if name:
            rows = membership[name] == plan.evaluation.subgroups[name].groups.index(group)
        parts += [tally(plan.tasks[t], plan.evaluation, predictions[t][rows], labels[t][rows]) for t in plan.task_names]
    return np.concatenate(parts)


def split_vector(
    plan: Plan, vector: NDArray[np.float64], *, subgroups: bool
) -> dict[tuple[str, str], dict[str, NDArray[np.float64]]]:
    """Inverse of the order: {(subgroup, group): {task: counts}}.

    Raises:
        RemoteProtocolError: the length is not the plan's.
    """
    made: dict[tuple[str, str], dict[str, NDArray[np.float64]]] = {}
    start = 0
    for block in blocks(plan, subgroups=subgroups):
        made[block] = {}
        for task in plan.task_names:
            stop = start + table_size(plan.tasks[task], plan.evaluation)
            made[block][task] = vector[start:stop]
            start = stop
    if start != len(vector):
        raise RemoteProtocolError(f"tables of {len(vector)} counts; the plan has {start}")
    return made
