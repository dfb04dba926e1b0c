"""What follows from noised sums of products: principal components, and the columns that a LASSO takes up; all post-processing.

The released numbers of a modality give the covariance of its columns, with symmetric Gaussian noise on it. Noise alone has
eigenvalues up to 2 sqrt(columns) of its standard deviations (Wigner 1958); a direction with less variance than that is noise. The
components are those above it. For the LASSO smaller eigenvalues are raised to it, because a covariance has none below zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from oncofed_shared.charged_products import Block, blocks
from oncofed_shared.errors import RemoteProtocolError
from oncofed_shared.features import Preparation, column_ranges, encoded_columns, no_sums, prepare, with_kept
from oncofed_shared.messages import Columns
from oncofed_shared.moments import Moments, lasso_weights, strongest
from oncofed_shared.plan import Plan
from oncofed_shared.plan_reduction import Lasso, PrincipalComponents
from oncofed_shared.reduction import fixed_components

__all__ = ["all_columns", "read_columns", "stand_in", "with_reductions"]

Values = NDArray[np.float64]


def all_columns(plan: Plan, columns: Columns) -> Columns:
    """The columns before a LASSO left some out: it chooses among those that the plan names.

    Args:
        columns: those of a preparation.
    """
    chosen = {n for n, m in plan.modalities.items() if isinstance(m.reduction, Lasso)}
    return {n: (encoded_columns(plan.modalities[n]) or own) if n in chosen else own for n, own in columns.items()}


def read_columns(plan: Plan, columns: Columns) -> Columns:
    """As many names as the network will read, known before any sum: a component has no other, a chosen column one of them.

    Args:
        columns: before any reduction.
    """
    made: Columns = {}
    for name, own in columns.items():
        settings = plan.modalities[name].reduction
        if isinstance(settings, PrincipalComponents) and own:
            made[name] = tuple(f"component_{i}" for i in range(1, min(settings.components, len(own)) + 1))
        else:
            made[name] = own[: settings.keep] if isinstance(settings, Lasso) else own
    return made


def stand_in(plan: Plan, columns: Columns) -> Preparation:
    """A private plan's preparation before any is agreed: of the size that it will have, and learned from nobody.

    Args:
        columns: before any reduction.
    """
    whole = prepare(plan, columns, no_sums(plan, columns))
    kept, arrays = {}, {}
    for name, own in columns.items():
        settings = plan.modalities[name].reduction
        if isinstance(settings, Lasso):
            kept[name] = np.arange(min(settings.keep, len(own)))
        elif isinstance(settings, PrincipalComponents) and own:
            arrays |= {
                f"{name}.mean": np.zeros(len(own)),
                f"{name}.map": np.eye(len(own))[: settings.components].ravel(),
            }
    return replace(with_kept(whole, kept), reduction=arrays, harmonisation={})


def with_reductions(
    plan: Plan, preparation: Preparation, released: Values, *, noise: float, least: float
) -> Preparation:
    """The preparation with the plan's reductions, from noised sums of products.

    Args:
        preparation: of all columns.
        released: (products_size,) decoded, in patients.
        noise: standard deviation of the noise on each number.
        least: noised number of patients below which they are nobody's.

    Raises:
        RemoteProtocolError: fewer patients than that have a modality (code `too-few-to-reduce`).
    """
    columns = preparation.columns
    middle, half = column_ranges(plan, columns)
    # From -1..1 to what scaling makes of it.
    factor, beginning = half / preparation.spread, (middle - preparation.center) / preparation.spread
    arrays: dict[str, Values] = {}
    kept: dict[str, NDArray[np.int64]] = {}
    start = 0
    for block in blocks(plan, columns):
        own, start = released[start : start + block.size], start + block.size
        if own[0] < least:
            raise RemoteProtocolError(
                f"modality {block.name}: fewer patients have it than a reduction may be made of, after noise",
                code="too-few-to-reduce",
            )
        found = _parsed(block, own, noise)
        if isinstance(block.settings, PrincipalComponents):
            scaled = found.scaled(found.above(), factor[block.part], beginning[block.part])
            arrays |= _components(plan, block, block.settings, scaled)
        else:
            scaled = found.scaled(found.raised(), factor[block.part], beginning[block.part])
            kept[block.name] = _chosen(block.settings, replace(scaled, cross=_answers(block, found, factor)))
    return replace(with_kept(preparation, kept), reduction=arrays)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Noised:
    """What a modality's noised sums say, in -1..1.

    Attributes:
        mean: (columns,).
        values, vectors: of the columns' covariance: (columns,) ascending, and (columns, columns).
        edge: the largest eigenvalue that noise alone has.
        totals: (totals,) means.
        cross: (columns, answers) means of products.
    """

    patients: float
    mean: Values
    values: Values
    vectors: Values
    edge: float
    totals: Values
    cross: Values

    def above(self) -> Values:
        """Eigenvalues without those that noise alone would have; the largest is kept."""
        kept = np.where(self.values > self.edge, self.values, 0.0)
        kept[-1] = max(float(self.values[-1]), 0.0)
        return kept

    def raised(self) -> Values:
        """Eigenvalues, none of them below what noise alone has."""
        return np.maximum(self.values, self.edge)

    def scaled(self, values: Values, factor: Values, start: Values) -> Moments:
        """Mean and covariance of the columns as they are scaled.

        Args:
            values: eigenvalues in place of its own.
            factor, start: (columns,) what scaling makes of -1..1.
        """
        covariance = (self.vectors * values) @ self.vectors.T
        return Moments(
            patients=self.patients,
            mean=start + factor * self.mean,
            covariance=factor[:, None] * covariance * factor,
            cross=np.zeros((len(factor), 0)),
        )


def _parsed(block: Block, released: Values, noise: float) -> _Noised:
    patients = max(float(released[0]), 1.0)
    _, total, products, totals, cross = np.split(released / patients, np.cumsum(block.sizes)[:-1])
    first, second = np.triu_indices(block.columns)
    square = np.zeros((block.columns, block.columns))
    square[first, second] = products * np.where(first == second, math.sqrt(2), 1.0)
    square = np.triu(square) + np.triu(square, 1).T
    values, vectors = np.linalg.eigh(square - np.outer(total, total))
    return _Noised(
        patients=patients,
        mean=total,
        values=values,
        vectors=vectors,
        edge=2 * math.sqrt(block.columns) * noise / patients,
        totals=totals,
        cross=cross.reshape(block.columns, block.answers),
    )


def _components(plan: Plan, block: Block, settings: PrincipalComponents, moments: Moments) -> dict[str, Values]:
    """As many components as the plan asks for; those that do not rise above the noise are always 0."""
    made = fixed_components(plan, block.name, settings, moments)
    directions = made[f"{block.name}.map"].reshape(-1, block.columns)
    wanted = np.zeros((min(settings.components, block.columns), block.columns))
    # The network divides by the root of the number of its inputs, whether they are components or always 0.
    rescaled = plan.model.block_scaling and not settings.whiten
    wanted[: len(directions)] = directions * (math.sqrt(len(wanted) / max(len(directions), 1)) if rescaled else 1.0)
    return made | {f"{block.name}.map": wanted.ravel()}


def _chosen(settings: Lasso, moments: Moments) -> NDArray[np.int64]:
    """Places of the columns that stay, as many as the plan asks for: the LASSO's, and then those that go best with the answers."""
    lengths = np.linalg.norm(lasso_weights(moments, settings.keep), axis=1)
    strength = np.linalg.norm(moments.cross, axis=1)
    return strongest(np.where(lengths > 0, 1 + lengths, strength / (1 + strength.max())), settings.keep)


def _answers(block: Block, found: _Noised, factor: Values) -> Values:
    """(columns, answers) covariance of each column as it is scaled with what columns are chosen by.

    Args:
        factor: of all columns.
    """
    own = factor[block.part, None]
    if block.totals == block.answers:
        cross = found.cross - np.outer(found.mean, found.totals)
        return np.asarray(own * cross * (factor[block.against] if block.against.stop else 1.0))
    happened, at_risk = np.split(found.totals, 2)
    # A patient's events, less what the hazards of all patients expect of him in the intervals in which he is at risk.
    root = math.sqrt(len(at_risk))
    hazards = np.clip(happened / np.maximum(at_risk * root, np.finfo(float).tiny), 0.0, 1.0)
    means = np.concatenate([[happened.sum()], at_risk])
    return np.asarray(
        own * ((found.cross - np.outer(found.mean, means)) @ np.concatenate([[1.0], -hazards * root]))[:, None]
    )
