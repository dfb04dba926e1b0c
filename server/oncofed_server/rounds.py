"""A round as the aggregator sees it: who is asked, who has answered, and how far the sites' updates were apart."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from oncofed_shared.messages import Trial
from oncofed_shared.plan import Strategy

__all__ = ["SINGLE_UPDATES", "Cost", "Divergence", "Tally", "chosen"]

SINGLE_UPDATES = frozenset({"none", "site"})
"""Kinds of `privacy.noise` under which the aggregator sees each site's update; under others divergence is not computed."""

_SCALE = 80


def chosen(rule: Strategy, trial: Trial, number: int, sites: Sequence[str]) -> tuple[str, ...]:
    """The sites that are asked in a round: those with the smallest SHA-256 of trial, round and name.

    A keyed hash and not a generator with a state: the choice depends on nothing but its arguments, so that a resumed run
    repeats it, and a site that has left takes nobody else's place away.

    Returns:
        At least `participation` of the sites and at least `minimum_sites`, as far as there are so many; in the order of `sites`.
    """
    count = max(rule.minimum_sites, math.ceil(rule.participation * len(sites) - 1e-9))
    if count >= len(sites):
        return tuple(sites)

    def rank(site: str) -> bytes:
        return hashlib.sha256(f"participation|{trial}|{number}|{site}".encode()).digest()

    most = set(sorted(sites, key=rank)[:count])
    return tuple(s for s in sites if s in most)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What exchanges cost: bytes from and to sites, and the sites' seconds."""

    bytes_up: int = 0
    bytes_down: int = 0
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            bytes_up=self.bytes_up + other.bytes_up,
            bytes_down=self.bytes_down + other.bytes_down,
            seconds=self.seconds + other.seconds,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Divergence:
    """How far the sites' updates of a round were apart (G-06).

    With u_i the change at site i, p_i its share of the patients, m = sum p_i u_i and r = sqrt(sum p_i ||u_i||^2):

    Attributes:
        mean: sqrt(sum p_i ||u_i - m||^2) / r, the typical distance of a site's update from the mean one; 0 all alike, 1 they
            cancel. 1 - mean^2 is ||m||^2 / r^2, the inverse of B^2 in Li et al. 2020 (FedProx), definition 3.
        max: max ||u_i|| / r, the longest update; 1 all equally long.
    """

    mean: float
    max: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Tally:
    """What is kept of single updates while they are added up: two numbers, however many sites there are.

    Attributes:
        sites: who has answered.
        squares: sum of p_i ||u_i||^2 times all patients and 2^80; an integer, so that the order of replies does not matter.
        longest: max ||u_i||.
    """

    sites: tuple[str, ...] = ()
    squares: int = 0
    longest: float = 0.0

    def add(self, site: str, change: NDArray[np.float64] | None, patients: float) -> Tally:
        """Take one site's reply.

        Args:
            change: (d,) patients x change; None where the aggregator must not look at it.
        """
        sites = (*self.sites, site)
        if change is None or patients < 1:
            return Tally(sites=sites, squares=self.squares, longest=self.longest)
        square = float(change @ change)
        return Tally(
            sites=sites,
            squares=self.squares + round(math.ldexp(square / patients, _SCALE)),
            longest=max(self.longest, math.sqrt(square) / patients),
        )

    def divergence(self, change: NDArray[np.float64], patients: float) -> Divergence | None:
        """What the tally and the sum over the sites say; None with one site, or when nothing moved.

        Args:
            change: (d,) sum over the sites of patients x change.
            patients: of these sites.
        """
        power = math.ldexp(float(self.squares), -_SCALE) / patients
        if len(self.sites) < 2 or power <= 0:
            return None
        mean = float(change @ change) / patients**2
        return Divergence(mean=math.sqrt(max(0.0, 1 - mean / power)), max=self.longest / math.sqrt(power))
