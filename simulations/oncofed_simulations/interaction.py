"""A population in which neither images nor genes tell anything, and both together nearly everything.

A tumour has `PATHWAYS` pathways, of which half are active and half are not, at random. Its image shows which of them drives
it: the habitat of that number is enhanced. It responds to treatment where the driving pathway is active:

    response = activity[driver], and a coin decides in a part 1 - interaction of the patients

As half of the pathways are active in everybody, genes alone say nothing about the response (P(response | genes) = 1/2 for
every patient), and neither does the image, which has not seen the genes. Nothing here depends on the seed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["COLUMNS", "PATHWAYS", "Tumours", "draw_tables", "draw_tumours"]

PATHWAYS = 8
_EACH = 3
"""Columns of a habitat, and genes of a pathway."""
_LOADING, _ENHANCED = 0.85, 2.0
_FEATURES = ("Mean", "Entropy", "Contrast")
_GENES = "ABC"

COLUMNS = {
    "radiomics": tuple(f"habitat{k + 1}_{feature}" for k in range(PATHWAYS) for feature in _FEATURES),
    "expression": tuple(f"PATH{k + 1}{gene}_rnaseq" for k in range(PATHWAYS) for gene in _GENES),
}
"""Columns of either table, pathway by pathway. No such gene exists."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Tumours:
    """Patients of one site.

    Attributes:
        age: (n,) years.
        driver: (n,) the pathway that the image shows.
        active: (n, pathways), half of each row.
        responded: (n,) whether the tumour responded.
    """

    age: Floats
    driver: NDArray[np.int64]
    active: NDArray[np.bool_]
    responded: NDArray[np.bool_]


def draw_tumours(rng: np.random.Generator, count: int, interaction: float) -> Tumours:
    """Draw the patients of one site.

    Args:
        rng: this site's stream.
        count: n.
        interaction: part of the patients whose response is the driver's activity; of the others a coin's.
    """
    half = np.arange(PATHWAYS) < PATHWAYS // 2
    active = rng.permuted(np.tile(half, (count, 1)), axis=1)
    driver = rng.integers(PATHWAYS, size=count)
    decided = active[np.arange(count), driver]
    coin, chance = rng.random((2, count))
    return Tumours(
        age=np.asarray(np.round(np.clip(62 + 10 * rng.standard_normal(count), 21, 94), 1), dtype=np.float64),
        driver=driver,
        active=active,
        responded=np.where(chance < interaction, decided, coin < 0.5),
    )


def draw_tables(rng: np.random.Generator, tumours: Tumours, site_effect: float) -> dict[str, Floats]:
    """Draw the columns that `COLUMNS` names, (n, columns) each: what they measure, noise, and the site's own shift."""
    count = len(tumours.driver)
    enhanced = np.zeros((count, PATHWAYS))
    enhanced[np.arange(count), tumours.driver] = _ENHANCED
    measured = {"radiomics": enhanced, "expression": np.where(tumours.active, 1.0, -1.0)}
    made = {}
    for name, factor in measured.items():
        noise = rng.standard_normal((count, PATHWAYS * _EACH))
        shift = 0.15 * site_effect * rng.standard_normal(PATHWAYS * _EACH)
        made[name] = _LOADING * np.repeat(factor, _EACH, axis=1) + np.sqrt(1 - _LOADING**2) * noise + shift
    return made
