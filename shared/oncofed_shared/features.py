"""From a site's values in the plan's units to what the network reads: transform, scale, mask.

The statistics of scaling are sums over patients, added over sites; the resulting `Preparation` is one value that
training, evaluation and prediction share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from oncofed_shared.errors import DataError, LocalProtocolError, RemoteProtocolError
from oncofed_shared.harmonise import Harmony, check_harmonisation, constant_harmonisation, harmonised
from oncofed_shared.messages import Arrays, Columns
from oncofed_shared.plan import ClassificationTask, Modality, NumericColumn, Plan, compile_pattern, voxels_of
from oncofed_shared.plan_modalities import numeric_range
from oncofed_shared.reduced import check_reduction, reduced, reduced_columns
from oncofed_shared.robust import BINS, NORMAL, histogram, quantile

__all__ = [
    "HARMONISATION",
    "REDUCTION",
    "Preparation",
    "aligned",
    "check_columns",
    "check_sums",
    "column_ranges",
    "column_sums",
    "encoded_columns",
    "histogram_counts",
    "moment_columns",
    "network_columns",
    "no_sums",
    "prepare",
    "prepared_input",
    "robust_columns",
    "scaled_input",
    "unite",
    "voxel_input",
    "with_kept",
]

Values = NDArray[np.float64]
REDUCTION, HARMONISATION = "reduction.", "harmonisation."
"""Before the names of a reduction's and a harmonisation's arrays, in messages and checkpoints."""
STATISTICS = "statistics"
MINMAX_SPREAD = 3.0
"""Without a declared range, min-max scaling maps mean - 3 sd .. mean + 3 sd to 0 .. 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Preparation:
    """What a session fixed before training.

    Attributes:
        columns: encoded column names of each modality, modalities sorted by name.
        center, spread: (columns,) over all modalities in that order, after the transform.
        fill: (columns,) the consortium's mean, scaled: what `missing = "impute"` puts into a gap.
        class_weights: per classification task (classes,).
        reduction: what a plan's reductions fixed, flat, by `<modality>.<what>`; see `reduced`.
        harmonisation: what its harmonisations fixed, likewise; see `harmonise`.
        statistics: what was released with noise, and all of the above follows from; empty where nothing was. See
            `charged_statistics`.
    """

    columns: Columns
    center: Values
    spread: Values
    fill: Values
    class_weights: Mapping[str, Values]
    reduction: Mapping[str, Values] = field(default_factory=dict)
    harmonisation: Mapping[str, Values] = field(default_factory=dict)
    statistics: Values = field(default_factory=lambda: np.zeros(0))

    @property
    def width(self) -> int:
        """Number of columns over all modalities."""
        return sum(len(c) for c in self.columns.values())

    @property
    def bound(self) -> Values:
        """What masks of a private run are bound to: what was released, and what reductions made of it, to the last bit.

        The rest follows from these and the plan, and a site finds it equal or refuses. Eigenvectors it can only find nearly equal.
        """
        return np.concatenate([self.statistics, *(self.reduction[name] for name in sorted(self.reduction))])

    def arrays(self) -> Arrays:
        """The numbers, by name, for a message or a checkpoint."""
        weights = {f"class_weights.{task}": w for task, w in self.class_weights.items()}
        fixed = {f"{REDUCTION}{name}": a for name, a in self.reduction.items()}
        fixed |= {f"{HARMONISATION}{name}": a for name, a in self.harmonisation.items()}
        released = {STATISTICS: self.statistics} if len(self.statistics) else {}
        return {"center": self.center, "spread": self.spread, "fill": self.fill, **weights, **fixed, **released}

    @classmethod
    def from_arrays(cls, plan: Plan, columns: Columns, arrays: Arrays, *, reduced: bool = True) -> Preparation:
        """Inverse of `arrays`.

        Args:
            reduced: whether the plan's reductions are agreed; before that there are none of their arrays.

        Raises:
            RemoteProtocolError: a name or a length does not fit the plan and the columns, or a number is not finite.
        """
        check_columns(plan, columns)
        fixed, common = _under(REDUCTION, arrays), _under(HARMONISATION, arrays)
        arrays = {n: a for n, a in arrays.items() if not n.startswith((REDUCTION, HARMONISATION))}
        check_harmonisation(plan, columns, common)
        released = arrays.pop(STATISTICS, np.zeros(0))
        if released.ndim != 1 or released.dtype != np.float64 or not np.isfinite(released).all():
            raise RemoteProtocolError("the released statistics are no numbers")
        if reduced:
            check_reduction(plan, columns, fixed)
        width = sum(len(c) for c in columns.values())
        classes = {n: len(t.classes) for n, t in plan.tasks.items() if isinstance(t, ClassificationTask)}
        wanted = dict.fromkeys(("center", "spread", "fill"), width) | {
            f"class_weights.{n}": k for n, k in classes.items()
        }
        ok = {n: a.shape for n, a in arrays.items()} == {n: (k,) for n, k in wanted.items()}
        ok = ok and all(a.dtype == np.float64 and bool(np.isfinite(a).all()) for a in arrays.values())
        if not ok or np.any(arrays["spread"] <= 0) or any(np.any(arrays[f"class_weights.{n}"] < 0) for n in classes):
            raise RemoteProtocolError("preparation does not fit the plan's modalities and tasks")
        return cls(
            columns={m: columns[m] for m in sorted(columns)},
            center=arrays["center"],
            spread=arrays["spread"],
            fill=arrays["fill"],
            class_weights={n: arrays[f"class_weights.{n}"] for n in classes},
            reduction=fixed if reduced else {},
            harmonisation=common,
            statistics=released,
        )


def _under(prefix: str, arrays: Arrays) -> dict[str, Values]:
    return {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}


def network_columns(plan: Plan, preparation: Preparation) -> Columns:
    """Names of what the network reads, by modality: the columns, or what they are reduced to."""
    return reduced_columns(plan, preparation.columns, preparation.reduction)


def with_kept(preparation: Preparation, kept: Mapping[str, NDArray[np.int64]]) -> Preparation:
    """The preparation with some columns of some modalities.

    Args:
        kept: modality -> places of the columns that stay.
    """
    columns, places, start = {}, [], 0
    for name, own in preparation.columns.items():
        chosen = kept.get(name, np.arange(len(own)))
        columns[name] = tuple(own[i] for i in chosen.tolist())
        places.append(start + chosen)
        start += len(own)
    whole = np.concatenate(places)
    return replace(
        preparation,
        columns=columns,
        center=preparation.center[whole],
        spread=preparation.spread[whole],
        fill=preparation.fill[whole],
    )


def encoded_columns(modality: Modality) -> tuple[str, ...] | None:
    """Names of a modality's columns as the plan alone fixes them; None where it has patterns without a vocabulary.

    A modality whose patches the network reads has a column for each role of a series.
    """
    if modality.encoder == "cnn":
        return tuple(modality.patch or ())
    if modality.columns is None:
        return None if modality.vocabulary is None else tuple(sorted(modality.vocabulary))
    names: list[str] = []
    excluded = [compile_pattern(p) for p in modality.exclude]
    for name, column in modality.columns.items():
        if any(p.fullmatch(name) for p in excluded):
            continue
        if column.kind == "categorical":
            names += [f"{name}={category}" for category in column.categories]
            continue
        names.append(name)
        if isinstance(column, NumericColumn):
            names += [name + bend for bend in column.bends]
    return tuple(names)


def check_columns(plan: Plan, columns: Columns) -> None:
    """Compare agreed columns with the plan.

    Raises:
        RemoteProtocolError: a modality is too many or too few, none has a column, or a name occurs twice.
    """
    ok = set(columns) == set(plan.modalities) and any(columns.values())
    if not ok or any(len(set(names)) != len(names) for names in columns.values()):
        raise RemoteProtocolError("columns do not fit the plan's modalities")


def unite(plan: Plan, described: Iterable[Columns]) -> Columns:
    """Agree on columns: those of the plan, or the union of what the sites have, sorted.

    A site that lacks a column has missing values there, never zeros (B-24).
    """
    found = list(described)
    return {
        name: encoded_columns(modality) or tuple(sorted({c for columns in found for c in columns.get(name, ())}))
        for name, modality in sorted(plan.modalities.items())
    }


def _transform(values: Values, modality: Modality, name: str) -> Values:
    if modality.transform == "none":
        return values
    if modality.transform == "log":
        if np.any(values < 0):
            raise DataError(
                f"modality {name}: a value is negative, which transform = 'log' cannot take; use 'signed_log'"
            )
        return np.log1p(values)
    return np.sign(values) * np.log1p(np.abs(values))


def aligned(
    plan: Plan, columns: Columns, values: Mapping[str, Values], own: Columns, harmony: Harmony | None = None
) -> Values:
    """Put a site's values into the agreed column order, transformed and harmonised; (n, columns) with NaN for what it lacks.

    Args:
        values: per modality (n, own columns).
        own: this site's column names per modality.
        harmony: what harmonises them; without it they are left as they are.
    """
    n = next(iter(values.values())).shape[0]
    blocks = []
    for name in sorted(columns):
        modality = plan.modalities[name]
        place = {c: i for i, c in enumerate(columns[name])}
        block = np.full((n, len(place)), np.nan)
        pairs = [(place[c], i) for i, c in enumerate(own[name]) if c in place]
        if pairs:
            into, out_of = (list(side) for side in zip(*pairs, strict=True))
            block[:, into] = _transform(values[name][:, out_of], modality, name)
        if modality.missing == "drop":
            block[np.isnan(block).any(axis=1)] = np.nan
        blocks.append(block)
    table = np.concatenate(blocks, axis=1)
    return table if harmony is None else harmonised(plan, columns, table, harmony)


def _where(plan: Plan, columns: Columns, wanted: Callable[[Modality], bool]) -> NDArray[np.int64]:
    """Places of the columns of some modalities."""
    marks = [wanted(plan.modalities[m]) for m in sorted(columns) for _ in columns[m]]
    return np.flatnonzero(marks)


def moment_columns(plan: Plan, columns: Columns) -> NDArray[np.int64]:
    """Places of the columns of which a mean or a standard deviation is wanted."""
    return _where(plan, columns, lambda m: m.scaling == "zscore" or m.missing == "impute")


def robust_columns(plan: Plan, columns: Columns) -> NDArray[np.int64]:
    """Places of the columns of which quantiles are wanted."""
    return _where(plan, columns, lambda m: m.scaling == "robust")


def column_ranges(plan: Plan, columns: Columns) -> tuple[Values, Values]:
    """Middle and half width of each column's declared range, transformed; 0 and 1 where none is declared."""
    ends = []
    for name in sorted(columns):
        modality = plan.modalities[name]
        for column in columns[name]:
            bounds = numeric_range(modality, column)
            ends.append((-1.0, 1.0) if bounds is None else _transform(np.asarray(bounds, np.float64), modality, name))
    low, high = np.asarray(ends, dtype=np.float64).reshape(-1, 2).T
    return (low + high) / 2, np.where(high > low, (high - low) / 2, 1.0)


def histogram_counts(plan: Plan, columns: Columns, table: Values) -> Values:
    """(robust columns, BINS) counts of an aligned table's values over the columns' declared ranges."""
    places = robust_columns(plan, columns)
    middle, half = column_ranges(plan, columns)
    return histogram((table[:, places] - middle[places]) / half[places])


def column_sums(
    plan: Plan,
    columns: Columns,
    values: Mapping[str, Values],
    own: Columns,
    labels: Mapping[str, NDArray[np.float64]],
    *,
    harmony: Harmony | None = None,
) -> Values:
    """Sums over patients: per column count, sum and sum of squares; histograms of robust columns; counts of classes.

    Args:
        values: per modality (n, own columns).
        own: this site's column names per modality.
        labels: per task (n,) or (n, 2), as in a cohort.
        harmony: what harmonises the values, where the plan asks for it.

    Returns:
        (3 * columns + BINS * robust columns + all classes,) floats, additive over sites.
    """
    table = aligned(plan, columns, values, own, harmony)
    seen = ~np.isnan(table)
    filled = np.where(seen, table, 0.0)
    parts = [seen.sum(axis=0, dtype=np.float64), filled.sum(axis=0), (filled**2).sum(axis=0)]
    parts.append(histogram_counts(plan, columns, table).ravel())
    for name, task in sorted(plan.tasks.items()):
        if isinstance(task, ClassificationTask):
            counts = [np.count_nonzero(labels[name] == k) for k in range(len(task.classes))]
            parts.append(np.asarray(counts, dtype=np.float64))
    return np.concatenate(parts)


def no_sums(plan: Plan, columns: Columns) -> Values:
    """The sums of nobody: enough where everything is a constant of the plan."""
    classes = sum(len(t.classes) for t in plan.tasks.values() if isinstance(t, ClassificationTask))
    return np.zeros(3 * sum(len(c) for c in columns.values()) + BINS * len(robust_columns(plan, columns)) + classes)


def check_sums(plan: Plan, columns: Columns, sums: Values) -> None:
    """Compare a site's answer with what `column_sums` can give.

    Raises:
        RemoteProtocolError: another length, a number that is not finite, or a negative count or sum of squares.
    """
    width = sum(len(c) for c in columns.values())
    ok = len(sums) == len(no_sums(plan, columns)) and bool(np.isfinite(sums).all())
    if not ok or np.any(np.delete(sums, slice(width, 2 * width)) < 0):
        raise RemoteProtocolError("sums do not fit the columns that were asked for")


def _declared_range(modality: Modality, column: str, name: str) -> Values | None:
    spec = (modality.columns or {}).get(column)
    if modality.columns is not None and spec is None:
        return np.array([0.0, 1.0])  # one category of a one-hot column
    bounds = (spec.range if isinstance(spec, NumericColumn) else None) or modality.range
    return None if bounds is None else _transform(np.asarray(bounds, np.float64), modality, name)


def _constants(modality: Modality, column: str) -> tuple[float, float]:
    """Centre and spread of a column under `constants`: its own, the modality's, or none at all."""
    own = (modality.columns or {}).get(column)
    source = own if isinstance(own, NumericColumn) and own.spread is not None else modality
    return source.center or 0.0, source.spread or 1.0


def prepare(
    plan: Plan, columns: Columns, sums: Values, harmonisation: Mapping[str, Values] | None = None
) -> Preparation:
    """Turn summed statistics, and what was agreed of the plan's harmonisations, into a preparation.

    Robust: centre = median, spread = distance of the quartiles over NORMAL, both from histograms over the declared range.
    Z-score: centre = mean, spread = standard deviation (1 for a constant column). Balanced class weights are
    patients / (classes x patients of the class), as scikit-learn's `balanced`.
    """
    width = sum(len(c) for c in columns.values())
    count, total, squares = (sums[i * width : (i + 1) * width] for i in range(3))
    safe = np.maximum(count, 1)
    mean = total / safe
    variance = np.maximum(squares / safe - mean**2, 0)
    # A variance below the rounding error of its own computation is that of a constant column.
    deviation = np.sqrt(np.where(variance > 1e-12 * np.maximum(mean**2, 1e-30), variance, 0))
    center, spread = np.zeros(width), np.ones(width)
    robust = robust_columns(plan, columns)
    stop = 3 * width + BINS * len(robust)
    center[robust], spread[robust] = _robust(plan, columns, sums[3 * width : stop].reshape(len(robust), BINS))
    counts = sums[stop:]
    start = 0
    for name in sorted(columns):
        modality = plan.modalities[name]
        stop = start + len(columns[name])
        part = slice(start, stop)
        if modality.scaling == "zscore":
            center[part], spread[part] = mean[part], np.where(deviation[part] > 0, deviation[part], 1)
        elif modality.scaling == "constants":
            for i, column in enumerate(columns[name], start):
                center[i], spread[i] = _constants(modality, column)
        elif modality.scaling == "minmax":
            for i, column in enumerate(columns[name], start):
                bounds = _declared_range(modality, column, name)
                sd = MINMAX_SPREAD * deviation[i]
                low, high = (mean[i] - sd, mean[i] + sd) if bounds is None else bounds
                center[i], spread[i] = low, high - low if high > low else 1.0
        start = stop
    return Preparation(
        columns=columns,
        center=center,
        spread=spread,
        fill=np.where(count > 0, (mean - center) / spread, 0.0),
        class_weights=_class_weights(plan, counts),
        harmonisation=harmonisation or constant_harmonisation(plan, columns, *column_ranges(plan, columns)),
    )


def _robust(plan: Plan, columns: Columns, counts: Values) -> tuple[Values, Values]:
    """Median and spread of the robust columns."""
    places = robust_columns(plan, columns)
    middle, half = (v[places] for v in column_ranges(plan, columns))
    low, median, high = (middle + half * quantile(counts, share) for share in (0.25, 0.5, 0.75))
    return median, np.where(high > low, (high - low) / NORMAL, 1.0)


def _class_weights(plan: Plan, counts: Values) -> dict[str, Values]:
    weights: dict[str, Values] = {}
    chosen = plan.training.class_weights
    for name, task in sorted(plan.tasks.items()):
        if not isinstance(task, ClassificationTask):
            continue
        k = len(task.classes)
        own, counts = counts[:k], counts[k:]
        if chosen == "balanced":
            weights[name] = np.where(own > 0, own.sum() / (k * np.maximum(own, 1)), 1.0)
        elif isinstance(chosen, dict) and name in chosen:
            weights[name] = np.asarray(chosen[name], dtype=np.float64)
        else:
            weights[name] = np.ones(k)
    return weights


def prepared_input(
    plan: Plan, preparation: Preparation, values: Mapping[str, Values], own: Columns, harmony: Harmony | None = None
) -> tuple[Values, NDArray[np.bool_]]:
    """Scale and reduce a site's values: what the network reads.

    Returns:
        (n, inputs) both, as `scaled_input`, in the order of `network_columns`.
    """
    scaled, seen = scaled_input(plan, preparation, values, own, harmony)
    return reduced(plan, preparation.columns, preparation.reduction, scaled, seen)


def scaled_input(
    plan: Plan, preparation: Preparation, values: Mapping[str, Values], own: Columns, harmony: Harmony | None = None
) -> tuple[Values, NDArray[np.bool_]]:
    """Harmonise and scale a site's values.

    Args:
        harmony: what harmonises them, where the preparation says that they are.

    Returns:
        (n, columns) scaled values with 0 where missing, and (n, columns) what was observed. Under `missing = "impute"`
        a patient who has the modality at all counts as observed everywhere in it, at the consortium's mean.

    Raises:
        LocalProtocolError: the preparation is of harmonised values, and these are not.
    """
    if preparation.harmonisation and harmony is None:
        raise LocalProtocolError("a preparation of harmonised values needs the hospital's own location")
    table = aligned(plan, preparation.columns, values, own, harmony)
    seen = ~np.isnan(table)
    scaled = (table - preparation.center) / preparation.spread
    start = 0
    for name in sorted(preparation.columns):
        modality = plan.modalities[name]
        stop = start + len(preparation.columns[name])
        part = slice(start, stop)
        if modality.missing == "impute":
            has = seen[:, part].any(axis=1, keepdims=True)
            scaled[:, part] = np.where(seen[:, part], scaled[:, part], preparation.fill[part])
            seen[:, part] |= has
        if modality.clip is not None:
            np.clip(scaled[:, part], -modality.clip, modality.clip, out=scaled[:, part])
        start = stop
    return np.where(seen, scaled, 0.0), seen


def voxel_input(
    plan: Plan, columns: Columns, images: Mapping[str, NDArray[np.float32]], own: Columns
) -> NDArray[np.float32] | None:
    """A site's patches as they stand behind the scaled values in the network's input.

    Args:
        columns: as agreed; a modality of patches has a column for each channel.
        images: per modality (n, own columns, z, y, x).
        own: this site's column names per modality.

    Returns:
        (n, voxels): modalities by name, in each its channels one after another, 0 where a channel is missing; None where the
        network reads no patch.
    """
    parts = []
    for name in sorted(images):
        volume = voxels_of(plan.modalities[name]) if name in plan.modalities else 0
        if not volume or not columns[name]:
            continue
        given = images[name]
        whole = np.zeros((len(given), len(columns[name]), volume), dtype=np.float32)
        for channel, role in enumerate(own[name]):
            whole[:, columns[name].index(role)] = given[:, channel].reshape(len(given), volume)
        parts.append(whole.reshape(len(given), len(columns[name]) * volume))
    return np.concatenate(parts, axis=1) if parts else None
