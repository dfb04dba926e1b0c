"""From scaled columns to what the network reads, where a plan reduces a modality: components, or a code.

Columns that a LASSO or ReliefF left out are not here: they are no columns of the preparation any more.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from oncofed_shared import autoencoder
from oncofed_shared.errors import RemoteProtocolError
from oncofed_shared.messages import Columns
from oncofed_shared.plan import Plan
from oncofed_shared.plan_reduction import Autoencoder, PrincipalComponents

__all__ = ["check_reduction", "reduced", "reduced_columns"]

Values = NDArray[np.float64]
Fixed = Mapping[str, Values]


def check_reduction(plan: Plan, columns: Columns, arrays: Fixed) -> None:
    """Compare what a reduction fixed with the plan.

    Args:
        arrays: by `<modality>.<what>`; flat.

    Raises:
        RemoteProtocolError: an array is too many or too few, has a wrong length, or holds what cannot be.
    """
    wanted: set[str] = set()
    for name, modality in plan.modalities.items():
        settings, count = modality.reduction, len(columns.get(name, ()))
        if isinstance(settings, PrincipalComponents) and count:
            wanted |= {f"{name}.mean", f"{name}.map"}
            size = len(arrays.get(f"{name}.map", ()))
            ok = len(arrays.get(f"{name}.mean", ())) == count and size % count == 0
            ok = ok and size // count <= min(settings.components, count)
        elif isinstance(settings, Autoencoder) and count:
            wanted |= {f"{name}.{what}" for what in ("parameters", "center", "spread")}
            sizes = [len(arrays.get(f"{name}.{what}", ())) for what in ("parameters", "center", "spread")]
            code = autoencoder.width(settings, count)
            ok = sizes == [autoencoder.parameter_count(settings, count), code, code]
            ok = ok and bool((arrays[f"{name}.spread"] > 0).all())
        else:
            continue
        if not ok:
            raise RemoteProtocolError(f"the reduction of modality {name} does not fit the plan")
    if wanted != set(arrays) or any(a.dtype != np.float64 or not np.isfinite(a).all() for a in arrays.values()):
        raise RemoteProtocolError("reductions do not fit the plan's modalities")


def _components(arrays: Fixed, modality: str, columns: int) -> Values:
    return arrays[f"{modality}.map"].reshape(-1, columns)


def reduced_columns(plan: Plan, columns: Columns, arrays: Fixed) -> Columns:
    """Names of what the network reads, by modality: those of the columns, or `component_1`, `component_2`, .."""
    made: Columns = {}
    for name, own in columns.items():
        settings = plan.modalities[name].reduction
        if not own or not arrays or not isinstance(settings, PrincipalComponents | Autoencoder):
            made[name] = own
            continue
        pca = isinstance(settings, PrincipalComponents)
        count = len(_components(arrays, name, len(own))) if pca else len(arrays[f"{name}.center"])
        made[name] = tuple(f"component_{i}" for i in range(1, count + 1))
    return made


def reduced(
    plan: Plan, columns: Columns, arrays: Fixed, values: Values, seen: NDArray[np.bool_]
) -> tuple[Values, NDArray[np.bool_]]:
    """Replace the columns of each reduced modality.

    A column that was not observed counts as 0, its mean where columns have z-scores. Whoever has no column of the modality has no
    component of it either.

    Args:
        values: (n, columns) scaled, 0 where missing.
        seen: (n, columns).

    Returns:
        (n, inputs) both.
    """
    if not arrays:
        return values, seen
    tables, marks, start = [], [], 0
    for name in sorted(columns):
        settings, own = plan.modalities[name].reduction, len(columns[name])
        part = slice(start, start + own)
        start += own
        table, mark = values[:, part], seen[:, part]
        if own and isinstance(settings, PrincipalComponents | Autoencoder):
            has = mark.any(axis=1, keepdims=True)
            if isinstance(settings, PrincipalComponents):
                made = (table - arrays[f"{name}.mean"]) @ _components(arrays, name, own).T
            else:
                raw = autoencoder.codes(settings, arrays[f"{name}.parameters"], table)
                made = (raw - arrays[f"{name}.center"]) / arrays[f"{name}.spread"]
            mark = np.repeat(has, made.shape[1], axis=1)
            table = np.where(mark, made, 0.0)
        tables.append(table)
        marks.append(mark)
    return np.concatenate(tables, axis=1), np.concatenate(marks, axis=1)
