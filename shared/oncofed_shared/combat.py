"""ComBat (Johnson et al. 2007; Fortin et al. 2017) from sums: what hospitals' scanners do to a column, beside what patients do.

A value of column f of patient j of hospital i is taken as

    y = alpha_f + x_j' beta_f + sigma_f (gamma_if + delta_if e),

x the covariates, whose part stays. Least squares with an intercept for each hospital is least squares of what is left when each
hospital's own means are taken away (Frisch & Waugh 1933), so that beta, alpha and sigma follow from one sum over hospitals of
products within each. gamma and delta are a hospital's own: it finds them by itself, shrunken by the priors that its own columns
give, and they are sent nowhere.

Every column has the patients of whom it was observed. Where all were observed of everybody the result is neuroCombat's, but that a
hospital's equations are solved to the end and not to 1e-4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from oncofed_shared.errors import RemoteProtocolError

__all__ = ["Location", "Pooled", "combat_size", "combat_sums", "located", "location_of", "pooled_of", "standardised"]

Values = NDArray[np.float64]
ROUNDING = 1e-12
"""Part of a column's squared mean below which its variance is rounding, and the column constant."""
TOLERANCE, MOST = 1e-13, 10_000
"""When a hospital's equations are solved, and after how many repetitions they are left as they are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pooled:
    """What all hospitals together say of the columns of a modality.

    Attributes:
        mean: (columns,) alpha: the mean over hospitals' intercepts, by patients.
        spread: (columns,) sigma; 0 for a constant column, which is left as it is.
        effects: (covariates, columns) beta.
        middle: (covariates,) the covariates' means, for whom one is not known.
    """

    mean: Values
    spread: Values
    effects: Values
    middle: Values

    def flat(self) -> dict[str, Values]:
        """The numbers by name, each flat."""
        return {"mean": self.mean, "spread": self.spread, "effects": self.effects.ravel(), "middle": self.middle}

    @classmethod
    def parse(cls, arrays: dict[str, Values], *, columns: int, covariates: int) -> Self:
        """Inverse of `flat`.

        Raises:
            RemoteProtocolError: a number is missing, or cannot be one of these.
        """
        sizes = {"mean": columns, "spread": columns, "effects": covariates * columns, "middle": covariates}
        ok = {n: a.shape for n, a in arrays.items()} == {n: (k,) for n, k in sizes.items()}
        ok = ok and all(a.dtype == np.float64 and bool(np.isfinite(a).all()) for a in arrays.values())
        if not ok or np.any(arrays["spread"] < 0):
            raise RemoteProtocolError("what is agreed of a harmonisation does not fit the plan")
        return cls(
            mean=arrays["mean"],
            spread=arrays["spread"],
            effects=arrays["effects"].reshape(covariates, columns),
            middle=arrays["middle"],
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Location:
    """A hospital's own gamma and delta, after shrinking: (columns,) each; delta is a variance. They stay at the hospital."""

    shift: Values
    scale: Values


def combat_size(columns: int, covariates: int) -> int:
    """Length of what `combat_sums` gives."""
    return columns * (3 + 2 * covariates + covariates * (covariates + 1) // 2)


def combat_sums(table: Values, covariates: Values) -> Values:
    """One hospital's part.

    Args:
        table: (n, columns), NaN where missing.
        covariates: (n, covariates); a patient with a NaN counts for nothing.

    Returns:
        (combat_size,) floats, additive over hospitals: per column patients, sum, and squares about the hospital's mean; then per
        covariate and column sums, products with the column, and per two covariates products, all about the hospital's means.
    """
    kept = ~np.isnan(covariates).any(axis=1)
    table, x = table[kept], covariates[kept]
    seen = ~np.isnan(table)
    marks = seen.astype(np.float64)
    count = marks.sum(axis=0)
    total = np.where(seen, table, 0.0).sum(axis=0)
    apart = np.where(seen, table - total / np.maximum(count, 1), 0.0)
    sums = x.T @ marks
    # (covariates, n, columns): each covariate about its mean over the patients of whom the column was observed.
    about = (x.T[:, :, None] - (sums / np.maximum(count, 1))[:, None, :]) * marks
    first, second = np.triu_indices(x.shape[1])
    parts = [
        count,
        total,
        (apart**2).sum(axis=0),
        sums.ravel(),
        np.einsum("knf,nf->kf", about, apart).ravel(),
        (about[first] * about[second]).sum(axis=1).ravel(),
    ]
    return np.concatenate(parts)


def pooled_of(sums: Values, *, columns: int, covariates: int) -> Pooled:
    """What follows from the sums of all hospitals, of at least one column.

    A covariate that says nothing new of the patients of whom a column was observed has no effect on it.

    Raises:
        RemoteProtocolError: another length, a number that is not finite, or a negative count or sum of squares.
    """
    if len(sums) != combat_size(columns, covariates) or not np.isfinite(sums).all():
        raise RemoteProtocolError("sums do not fit the columns that are harmonised")
    count, total, squares, *rest = np.split(sums, len(sums) // columns)
    if np.any(count < 0) or np.any(squares < 0):
        raise RemoteProtocolError("sums do not fit the columns that are harmonised")
    x = np.reshape(rest[:covariates], (covariates, columns))
    cross = np.reshape(rest[covariates : 2 * covariates], (covariates, columns))
    products = np.zeros((columns, covariates, covariates))
    for (i, j), row in zip(zip(*np.triu_indices(covariates), strict=True), rest[2 * covariates :], strict=True):
        products[:, i, j] = products[:, j, i] = row
    effects = np.zeros((covariates, columns))
    if covariates:
        # In units of their own spread, so that years and yes-or-no weigh alike in what counts as nothing new.
        unit = np.sqrt(np.maximum(np.einsum("fii->fi", products), np.finfo(float).tiny))
        inverse = np.linalg.pinv(products / (unit[:, :, None] * unit[:, None, :]), rcond=1e-10, hermitian=True)
        effects = (np.einsum("fij,jf->fi", inverse, cross / unit.T) / unit).T
    safe = np.maximum(count, 1)
    plain = total / safe
    variance = np.maximum(squares - np.einsum("kf,kf->f", effects, cross), 0) / safe
    patients = count.sum()
    return Pooled(
        mean=(total - np.einsum("kf,kf->f", effects, x)) / safe,
        spread=np.sqrt(np.where(variance > ROUNDING * np.maximum(plain**2, 1e-30), variance, 0.0)),
        effects=effects,
        middle=x.sum(axis=1) / max(patients, 1.0),
    )


def _expected(pooled: Pooled, covariates: Values) -> Values:
    """(n, columns) what patients have by their covariates; at the mean for whom one is not known."""
    x = np.where(np.isnan(covariates), pooled.middle, covariates)
    return np.asarray(pooled.mean + x @ pooled.effects)


def standardised(pooled: Pooled, table: Values, covariates: Values) -> Values:
    """(n, columns) values less what covariates explain, in standard deviations; a constant column is NaN, and so is a gap."""
    spread = np.where(pooled.spread > 0, pooled.spread, np.nan)
    return np.asarray((table - _expected(pooled, covariates)) / spread)


def location_of(table: Values) -> Location:
    """A hospital's gamma and delta from its own standardised values, (n, columns) with NaN for gaps.

    Its columns give the priors: gamma is normal, delta inverse gamma, both fitted by their moments. A column of which it has fewer
    than two values has the priors' means. With fewer than two columns there is nothing to shrink by.
    """
    columns = table.shape[1]
    seen = ~np.isnan(table)
    count = seen.sum(axis=0).astype(np.float64)
    mean = np.where(seen, table, 0.0).sum(axis=0) / np.maximum(count, 1)
    squares = np.where(seen, (table - mean) ** 2, 0.0).sum(axis=0)
    known = count > 1
    if not known.any():
        return Location(shift=np.zeros(columns), scale=np.ones(columns))
    variance = squares / np.maximum(count - 1, 1)
    shift, scale = _shrunken(mean[known], variance[known], count[known])
    centre, width = float(mean[known].mean()), float(variance[known].mean())
    made = Location(shift=np.full(columns, centre), scale=np.full(columns, width))
    made.shift[known], made.scale[known] = shift, scale
    # A hospital whose values are all alike has no scale that could be divided by.
    made.scale[made.scale <= 0] = 1.0
    return made


def _shrunken(mean: Values, variance: Values, count: Values) -> tuple[Values, Values]:
    """Posterior means, by repetition as in Johnson et al. 2007, section 3.2."""
    if len(mean) < 2:
        return mean, variance
    centre, tau = mean.mean(), mean.var(ddof=1)
    m, s = variance.mean(), variance.var(ddof=1)
    if s <= ROUNDING * max(m * m, np.finfo(float).tiny):
        # The prior of delta is a point.
        d = np.full_like(variance, max(m, np.finfo(float).tiny))
        return (tau * count * mean + d * centre) / (tau * count + d), np.full_like(variance, m)
    a, b = (2 * s + m * m) / s, (m * s + m**3) / s
    g, d = mean, variance
    for _ in range(MOST):
        before = d
        g = (tau * count * mean + d * centre) / np.maximum(tau * count + d, np.finfo(float).tiny)
        d = (0.5 * ((count - 1) * variance + count * (mean - g) ** 2) + b) / (count / 2 + a - 1)
        if np.all(np.abs(d - before) <= TOLERANCE * d):
            break
    return g, d


def located(pooled: Pooled, location: Location, table: Values, covariates: Values) -> Values:
    """(n, columns) harmonised values; NaN where missing, and a constant column as it was."""
    expected = _expected(pooled, covariates)
    spread = np.where(pooled.spread > 0, pooled.spread, 1.0)
    moved = expected + spread * ((table - expected) / spread - location.shift) / np.sqrt(location.scale)
    return np.where(pooled.spread > 0, moved, table)
