"""DP-SGD over the patients of all sites as one frozen value: what a site adds, what the sum guarantees, what it costs.

Each site Poisson-samples its own patients, clips each of them whole, makes the result integer and adds a share of discrete Gaussian
noise. A secure sum opens the total alone. The shares are so wide that those of sites which neither drop nor collude carry the whole
noise; `docs/noise.md` has the proof. Trainer, ledger, report and audit read this one value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
from dp_accounting import DpEvent, GaussianDpEvent, PoissonSampledDpEvent
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import log_ndtr

from oncofed_shared.errors import ConfigError
from oncofed_shared.integer_noise import (
    SAMPLER_ERROR,
    SMALLEST_SHARE,
    TAIL,
    UNLIKE_GAUSSIAN,
    IntegerNoise,
    less_errors,
    own_multiplier,
    sampled_rate,
    see_errors,
    share_width,
)
from oncofed_shared.plan import ConsortiumPrivacy, Plan
from oncofed_shared.privacy import COARSE, ROUGH, calibrate, epsilon_of

__all__ = ["ConsortiumMechanism", "TablesMechanism", "gaussian_epsilon", "server_counts", "server_gradient"]

SMALLEST_ACCOUNTED = 0.5
"""Noise multiplier of a share alone below which it is bounded as if nobody were sampled: the grid of losses would be slow."""
WIDE_SHARE = 64.0
"""A table's share of noise is at least this many integer steps wide, so that rounding at random costs a thousandth of it."""


def _consortium(plan: Plan) -> ConsortiumPrivacy:
    privacy = plan.privacy
    if not isinstance(privacy, ConsortiumPrivacy):
        raise ConfigError(f"privacy.noise: is '{privacy.noise}'; shares of noise are for 'consortium'")
    return privacy


def gaussian_epsilon(*, noise_multiplier: float, delta: float) -> float:
    """Epsilon of one Gaussian release, exactly (Balle & Wang 2018, theorem 8).

    `steps` steps, each with everybody in it, are one release with the multiplier divided by sqrt(steps).
    """
    mu = 1 / noise_multiplier

    def beyond(epsilon: float) -> float:
        first, second = log_ndtr(mu / 2 - epsilon / mu), log_ndtr(-mu / 2 - epsilon / mu)
        return float(np.exp(first) - np.exp(epsilon + second)) - delta

    if beyond(0.0) <= 0:
        return 0.0
    high = mu * mu / 2 + mu * math.sqrt(2 * math.log(1 / delta)) + 1
    return float(brentq(beyond, 0.0, high, xtol=1e-9))


def _room(ring_bits: int, sites: int, tail: int) -> int:
    """Largest magnitude of a site's coordinate before noise, so that no sum of all sites wraps."""
    return ((1 << (ring_bits - 1)) - 1) // sites - tail


@dataclass(frozen=True, kw_only=True, slots=True)
class ConsortiumMechanism:
    """One step of DP-SGD over all sites' patients on integers, and what a run of them costs. Build it with `for_plan`.

    Attributes:
        sampling_rate: probability that a patient enters a step.
        steps: of the whole run, the spare ones counted.
        patients: public number of all sites' training patients.
        epsilon_target, delta: the plan's bound.
        noise_multiplier: of the sum, in clip norms: what the shares of honest sites guarantee after smoothing.
        sites, drop, collude: of the roster; the guarantee counts on `sites - drop - collude` shares.
        integers: the grid, and the width of one share on it.
        ring_bits: width of the integers that are summed.

    Guarantees:
        - Everything in it is a constant of the plan.
        - `epsilon()` is at most the plan's, and what approximation costs is within delta.
        - No sum of all sites' coordinates leaves the ring, whoever is there.
    """

    sampling_rate: float
    steps: int
    patients: int
    epsilon_target: float
    delta: float
    noise_multiplier: float
    sites: int
    drop: int
    collude: int
    integers: IntegerNoise
    ring_bits: int

    @classmethod
    def for_plan(cls, plan: Plan, *, parameters: int) -> Self:
        """The mechanism that a plan asks for, its noise calibrated for all rounds and spare steps.

        Args:
            parameters: of the network.

        Raises:
            ConfigError: no sensible noise reaches the plan's epsilon, a share would be too narrow, or the ring is too small.
        """
        privacy = _consortium(plan)
        steps, rate = plan.training.rounds + privacy.spare_steps, sampled_rate(privacy.sampling_rate)
        noise = calibrate(
            epsilon=privacy.epsilon, delta=less_errors(privacy.step_delta), sampling_rate=rate, steps=steps
        )  # fmt: skip
        integers = IntegerNoise.sized(
            parameters=parameters, clip_norm=privacy.clip_norm, noise_multiplier=noise, shares=privacy.honest
        )
        made = cls(
            sampling_rate=rate,
            steps=steps,
            patients=sum(privacy.patients.values()),
            epsilon_target=privacy.epsilon,
            delta=privacy.step_delta,
            noise_multiplier=noise,
            sites=len(privacy.patients),
            drop=privacy.drop,
            collude=privacy.collude,
            integers=integers,
            ring_bits=privacy.ring_bits,
        )
        made._check(max(privacy.patients.values()))
        return made

    def _check(self, largest: int) -> None:
        if not see_errors(error=self.error(), epsilon=self.epsilon_target, delta=self.delta):
            raise ConfigError(
                f"privacy.epsilon: {self.epsilon_target:g} is so large that the errors of drawing noise are no longer small "
                "beside delta; lower it"
            )
        if self.room < largest * self.bound:
            raise ConfigError(
                f"privacy.ring_bits: {self.ring_bits} bits have no room for {self.sites} sites of up to {largest} patients, "
                f"{self.bound} integer steps each, and their noise"
                + ("; take 64" if self.ring_bits == 32 else "; take fewer sites or patients")
            )

    @property
    def clip_norm(self) -> float:
        """What one patient changes in a step's sum, at most."""
        return self.integers.clip_norm

    @property
    def expected_batch(self) -> float:
        """What a step's sum is divided by: a constant of the plan, never a count."""
        return self.sampling_rate * self.patients

    @property
    def grain(self) -> float:
        """Float value of one integer step."""
        return self.integers.grain

    @property
    def bound(self) -> int:
        """Euclidean bound of one patient's integers: the exact sensitivity."""
        return self.integers.bound

    @property
    def share_sigma(self) -> float:
        """Standard deviation of one site's share of noise, in integer steps."""
        return self.integers.share_sigma

    @property
    def tail(self) -> int:
        """Largest magnitude of one coordinate of a share of noise, in integer steps."""
        return self.integers.tail

    @property
    def room(self) -> int:
        """Magnitude at which a site cuts each coordinate of its patients' sum, so that nothing wraps; hardly ever reached."""
        return _room(self.ring_bits, self.sites, self.tail)

    @property
    def own_noise_multiplier(self) -> float:
        """What holds by one site's own share alone, all others colluding, in clip norms."""
        return own_multiplier(self.share_sigma, self.bound)

    def noise_std(self, present: int) -> float:
        """Standard deviation of the noise on a coordinate of the decoded sum when this many sites are in it, as a float."""
        return math.sqrt(present) * self.share_sigma * self.grain

    def error(self, steps: int | None = None) -> float:
        """Total variation between what is drawn in a run and what is accounted."""
        return self.integers.error(steps=self.steps if steps is None else steps, sites=self.sites)

    def charge(self) -> tuple[DpEvent, DpEvent]:
        """One step as an accountant sees it: against at most `collude` sites, and against all others together."""
        pooled, own = (GaussianDpEvent(m) for m in (self.noise_multiplier, self.own_noise_multiplier))
        return PoissonSampledDpEvent(self.sampling_rate, pooled), PoissonSampledDpEvent(self.sampling_rate, own)

    def epsilon(self, steps: int | None = None) -> float:
        """Epsilon of the whole run, or of its first `steps` steps, against everybody but `collude` sites that tell their noise."""
        return epsilon_of(
            sampling_rate=self.sampling_rate,
            noise_multiplier=self.noise_multiplier,
            steps=self.steps if steps is None else steps,
            delta=less_errors(self.delta),
        )

    def epsilon_alone(self, steps: int | None = None) -> float:
        """Epsilon by a site's own share alone, should all others collude: larger, and infinite where nothing is left."""
        steps = self.steps if steps is None else steps
        noise, delta = self.own_noise_multiplier, less_errors(self.delta)
        if steps == 0:
            return 0.0
        plain = gaussian_epsilon(noise_multiplier=noise / math.sqrt(steps), delta=delta)
        found = plain
        if noise >= SMALLEST_ACCOUNTED and self.sampling_rate < 1:
            grid = COARSE if noise >= 1 else ROUGH
            sampled = epsilon_of(
                sampling_rate=self.sampling_rate, noise_multiplier=noise, steps=steps, delta=delta, grid=grid
            )
            found = min(plain, sampled)
        return found if see_errors(error=self.error(steps), epsilon=found, delta=self.delta) else math.inf


def server_gradient(total: NDArray[np.int64], mechanism: ConsortiumMechanism) -> NDArray[np.float64]:
    """The noisy mean gradient from the opened sum, (parameters,) to the same: over the plan's expected batch, never a count."""
    return np.asarray(total * (mechanism.grain / mechanism.expected_batch), dtype=np.float64)


@dataclass(frozen=True, kw_only=True, slots=True)
class TablesMechanism:
    """One release of numbers of patients, by integer shares of noise. Build it with `for_plan` or `for_statistics`.

    Tables of counts are over test patients, who never train, so what one tells of them is charged beside training and not added to
    it. Statistics are over training patients, who pay for them beside their steps.

    Attributes:
        cells: numbers in all tables together.
        entries: cells in which one patient counts one, at most; or what the squares of his numbers add up to.
        epsilon_target, delta: bound for one patient.
        noise_multiplier: of the sum, in sqrt(entries) counts, after smoothing.
        unit: integer steps of one count.
        share_sigma: standard deviation of one site's share, in integer steps.
    """

    cells: int
    entries: float
    epsilon_target: float
    delta: float
    noise_multiplier: float
    sites: int
    drop: int
    collude: int
    unit: int
    share_sigma: float
    ring_bits: int

    @classmethod
    def for_plan(cls, plan: Plan, *, cells: int, entries: int = 1) -> Self:
        """The mechanism for tables of `cells` numbers.

        Raises:
            ConfigError: the plan charges no tables, or their sums do not fit the ring.
        """
        privacy = _consortium(plan)
        if privacy.score_epsilon is None:
            raise ConfigError("privacy.score_epsilon: is missing, so no table leaves; give it, or do not evaluate")
        return cls._sized(
            privacy,
            cells=cells,
            entries=entries,
            promised=("score_epsilon", privacy.score_epsilon),
            delta=privacy.delta,
        )

    @classmethod
    def for_statistics(cls, plan: Plan, *, cells: int, entries: float, finest: int) -> Self:
        """The mechanism for statistics of training patients, `cells` numbers of which one patient moves `entries` squared.

        Args:
            finest: integer steps of one patient, at least. His values are rounded to them one by one, so that coarse steps would
                move a whole column's mean.

        Raises:
            ConfigError: the plan charges none, or their sums do not fit the ring.
        """
        privacy = _consortium(plan)
        if privacy.statistics_epsilon is None:
            raise ConfigError(
                "privacy.statistics_epsilon: is missing, so no statistics leave; give it, or use constants"
            )
        return cls._sized(
            privacy,
            cells=cells,
            entries=entries,
            promised=("statistics_epsilon", privacy.statistics_epsilon),
            delta=privacy.step_delta,
            finest=finest,
        )

    @classmethod
    def for_location(cls, plan: Plan, *, cells: int, entries: float, finest: int) -> Self:
        """The mechanism for one hospital's own location, with all the noise its own; arguments as of `for_statistics`.

        Raises:
            ConfigError: the plan charges none.
        """
        privacy = _consortium(plan)
        if privacy.harmonise_epsilon is None:
            raise ConfigError("privacy.harmonise_epsilon: is missing, so no hospital finds its location")
        alone = {"patients": {"one": max(privacy.patients.values())}, "drop": 0, "collude": 0, "ring_bits": 64}
        return cls._sized(
            privacy.model_copy(update=alone),
            cells=cells,
            entries=entries,
            promised=("harmonise_epsilon", privacy.harmonise_epsilon),
            delta=privacy.step_delta,
            finest=finest,
        )

    @classmethod
    def _sized(
        cls,
        privacy: ConsortiumPrivacy,
        *,
        cells: int,
        entries: float,
        promised: tuple[str, float],
        delta: float,
        finest: int = 1,
    ) -> Self:
        key, epsilon = promised
        noise = calibrate(epsilon=epsilon, delta=less_errors(delta), sampling_rate=1.0, steps=1)
        root, unit = math.sqrt(entries), finest
        while share_width(noise, root * unit, privacy.honest) < max(WIDE_SHARE, SMALLEST_SHARE):
            unit *= 2
        made = cls(
            cells=cells,
            entries=entries,
            epsilon_target=epsilon,
            delta=delta,
            noise_multiplier=noise,
            sites=len(privacy.patients),
            drop=privacy.drop,
            collude=privacy.collude,
            unit=unit,
            share_sigma=share_width(noise, root * unit, privacy.honest),
            ring_bits=privacy.ring_bits,
        )
        if made.room < unit * max(privacy.patients.values()):
            raise ConfigError(f"privacy.ring_bits: {privacy.ring_bits} bits have no room for noised tables; take 64")
        if not see_errors(error=made.error(), epsilon=made.epsilon_target, delta=made.delta):
            raise ConfigError(f"privacy.{key}: is so large that errors of drawing noise count; lower it")
        return made

    @property
    def tail(self) -> int:
        """Largest magnitude of one number of a share of noise, in integer steps."""
        return math.ceil(TAIL * self.share_sigma)

    @property
    def room(self) -> int:
        """Magnitude at which a site cuts each number, so that nothing wraps."""
        return _room(self.ring_bits, self.sites, self.tail)

    @property
    def own_noise_multiplier(self) -> float:
        """What holds by one site's own share alone."""
        return own_multiplier(self.share_sigma, self.unit * math.sqrt(self.entries))

    def noise_std(self, present: int) -> float:
        """Standard deviation of the noise on a decoded count when this many sites are in the sum."""
        return math.sqrt(present) * self.share_sigma / self.unit

    def error(self) -> float:
        """Total variation between what is drawn and what is accounted."""
        return self.cells * (self.sites * SAMPLER_ERROR + UNLIKE_GAUSSIAN)

    def charge(self) -> tuple[DpEvent, DpEvent]:
        """The release as an accountant sees it: against at most `collude` sites, and against all others together."""
        return GaussianDpEvent(self.noise_multiplier), GaussianDpEvent(self.own_noise_multiplier)

    def epsilon(self) -> float:
        """Epsilon of the release for one patient."""
        return gaussian_epsilon(noise_multiplier=self.noise_multiplier, delta=less_errors(self.delta))

    def epsilon_alone(self) -> float:
        """Epsilon by a site's own share alone, should all others collude."""
        found = gaussian_epsilon(noise_multiplier=self.own_noise_multiplier, delta=less_errors(self.delta))
        return found if see_errors(error=self.error(), epsilon=found, delta=self.delta) else math.inf


def server_counts(total: NDArray[np.int64], mechanism: TablesMechanism) -> NDArray[np.float64]:
    """Noisy counts from the opened sum, (cells,) to the same; some are below zero."""
    return np.asarray(total / mechanism.unit, dtype=np.float64)
