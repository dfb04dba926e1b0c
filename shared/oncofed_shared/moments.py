"""Sums of products over patients: what principal components and the LASSO need of a site, and what they make of the sums.

Sums over sites are sums over patients, so that what follows from them is what pooled patients give.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from oncofed_shared.errors import RemoteProtocolError

__all__ = ["Moments", "components", "lasso_weights", "moment_sums", "moments_size", "strongest"]

Values = NDArray[np.float64]
SMALLEST_VARIANCE = 1e-10
"""Of the largest: a direction with less is rounding and not data."""
ROUNDING = 1e-13
PATH = np.geomspace(1, 1e-3, 100)[1:]
"""Alphas of the LASSO, over the least at which all weights are zero."""


def moments_size(columns: int, responses: int) -> int:
    """Length of what `moment_sums` gives."""
    return 1 + columns + columns * (columns + 1) // 2 + responses + columns * responses


def moment_sums(values: Values, responses: Values) -> Values:
    """Number of patients, sums, products of each two columns, sums of responses, products of each column with each response.

    Args:
        values: (n, columns), 0 where missing.
        responses: (n, responses), any number of them.

    Returns:
        (moments_size,) floats, additive over sites.
    """
    products = values.T @ values
    upper = products[np.triu_indices(values.shape[1])]
    parts = [[float(len(values))], values.sum(axis=0), upper, responses.sum(axis=0), (values.T @ responses).ravel()]
    return np.concatenate(parts, dtype=np.float64)


@dataclass(frozen=True, kw_only=True, slots=True)
class Moments:
    """What sums of products say of all patients.

    Attributes:
        patients: how many.
        mean: (columns,).
        covariance: (columns, columns), divided by patients.
        cross: (columns, responses), covariance with each response.
    """

    patients: float
    mean: Values
    covariance: Values
    cross: Values

    @classmethod
    def parse(cls, sums: Values, columns: int, responses: int) -> Self:
        """From summed `moment_sums`.

        Raises:
            RemoteProtocolError: another length, a number that is not finite, or a negative number of patients.
        """
        if len(sums) != moments_size(columns, responses) or not np.isfinite(sums).all() or sums[0] < 0:
            raise RemoteProtocolError("sums of products do not fit the columns that were asked for")
        patients = max(float(sums[0]), 1.0)
        cut = np.cumsum([1, columns, columns * (columns + 1) // 2, responses])
        _, total, upper, wanted, cross = np.split(sums, cut)
        products = np.zeros((columns, columns))
        products[np.triu_indices(columns)] = upper
        products = np.triu(products) + np.triu(products, 1).T
        mean, aim = total / patients, wanted / patients
        expected = np.outer(mean, aim)
        both = cross.reshape(columns, responses) / patients - expected
        return cls(
            patients=float(sums[0]),
            mean=mean,
            covariance=products / patients - np.outer(mean, mean),
            # A covariance below the rounding error of its own computation is none: a response may be constant.
            cross=np.where(np.abs(both) > ROUNDING * np.abs(expected), both, 0.0),
        )


def components(moments: Moments, count: int) -> tuple[Values, Values]:
    """Principal components.

    Returns:
        (k, columns) directions of length 1, that of most variance first, each with its largest weight above zero; and (k,)
        their variances. k is `count`, or how many directions have any variance.
    """
    from scipy.linalg import eigh  # noqa: PLC0415 - takes a while to import, and most runs do not need it

    # All 1,544 directions of a table take seconds, and are asked for by the federation and by each hospital's own model.
    columns = len(moments.covariance)
    variances, vectors = eigh(moments.covariance, subset_by_index=[max(columns - count, 0), columns - 1])
    order = np.argsort(variances)[::-1]
    order = order[variances[order] > SMALLEST_VARIANCE * max(float(variances[-1]), np.finfo(np.float64).tiny)]
    directions = vectors[:, order].T
    largest = directions[np.arange(len(directions)), np.abs(directions).argmax(axis=1)]
    return directions * np.sign(largest)[:, None], variances[order]


def _made_up(moments: Moments) -> tuple[Values, Values]:
    """Patients with these moments, at most as many as columns: X'X and X'Y are all that the LASSO knows of its data.

    A Cholesky factor with pivots gives them in a tenth of the time that eigenvectors take.

    Returns:
        (k, columns) X and (k, responses) Y, with X'X / k the covariance and X'Y / k that with the responses.
    """
    from scipy.linalg import solve_triangular  # noqa: PLC0415 - takes a while to import, and most runs do not need it
    from scipy.linalg.lapack import dpstrf  # noqa: PLC0415

    covariance, cross = moments.covariance, moments.cross
    factor, order, rank, _ = dpstrf(covariance, tol=SMALLEST_VARIANCE * float(covariance.diagonal().max()))
    order = order - 1
    upper = np.triu(factor)[:rank]
    rows = np.empty_like(upper)
    rows[:, order] = upper
    answers = solve_triangular(upper[:, :rank], cross[order[:rank]], trans="T")
    return np.asfortranarray(rows * np.sqrt(rank)), answers * np.sqrt(rank)


def lasso_weights(moments: Moments, keep: int) -> Values:
    """Weights of the LASSO, or of the group LASSO where there are several responses, where it first has `keep` columns.

    It minimises ||Y - X W||^2 / (2 n) + alpha x the sum over columns of the length of their weights (Tibshirani 1996; Yuan & Lin
    2006), for one alpha after the other of `PATH`, and stops where enough columns are in.

    Returns:
        (columns, responses); where several columns came in at once, or the path ended before, more or fewer are not zero.
    """
    from sklearn.linear_model import lasso_path  # noqa: PLC0415 - takes a second to import, and most runs do not need it

    cross = moments.cross
    weights: Values = np.zeros_like(cross)
    if not cross.any() or moments.covariance.diagonal().max() <= 0:
        return weights
    rows, answers = _made_up(moments)
    several = cross.shape[1] > 1
    first = float(np.linalg.norm(cross, axis=1).max())
    for share in PATH:
        start = weights.T if several else weights[:, 0]
        _, path, _ = lasso_path(
            rows,
            np.asfortranarray(answers) if several else answers[:, 0],
            alphas=[first * share],
            coef_init=np.asfortranarray(start),
            tol=1e-8,
            max_iter=100_000,
        )
        weights = path[:, :, 0].T if several else path
        if np.count_nonzero(weights.any(axis=1)) >= keep:
            break
    return weights


def strongest(scores: Values, keep: int) -> NDArray[np.int64]:
    """Places of the `keep` largest scores above minus infinity, sorted; of equal ones the first."""
    order = np.argsort(-scores, kind="stable")[:keep]
    return np.sort(order[np.isfinite(scores[order])])
