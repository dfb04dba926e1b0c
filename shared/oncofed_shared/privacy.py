"""The private mechanism of a site as one frozen value: what the trainer does and what the accountant charges.

`Mechanism.for_plan(plan, site)` is the only constructor. Trainer, report and accountant read the same value, so that nobody
passes a noise multiplier twice and nothing is accounted that was not done.

The mechanism is DP-SGD (Abadi et al. 2016, algorithm 1) with Poisson sampling: per local step every training patient enters with
the plan's rate, his gradient over all parameters is clipped to the plan's norm and made integer, discrete Gaussian noise is added
to the sum, and the sum is divided by a public constant. An empty sample is a step like any other. Neighbours differ in one patient
added or removed. docs/noise.md proves that integers cost what a Gaussian costs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from dp_accounting import DpEvent, GaussianDpEvent, NeighboringRelation, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant

from oncofed_shared.errors import ConfigError
from oncofed_shared.integer_noise import IntegerNoise, less_errors, sampled_rate, see_errors
from oncofed_shared.plan import ConsortiumPrivacy, Plan, SitePrivacy

__all__ = [
    "LARGEST_NOISE",
    "SMALLEST_NOISE",
    "Mechanism",
    "calibrate",
    "epsilon_of",
    "in_roster",
    "step_events",
]

RELATION = NeighboringRelation.ADD_OR_REMOVE_ONE
SMALLEST_NOISE, LARGEST_NOISE = 0.3, 1000.0
"""Noise multipliers between which a plan makes sense: less hides nobody, more leaves nothing but noise."""
FINE, COARSE, ROUGH = 1e-4, 1e-3, 1e-2
"""Grids of the privacy loss. All round pessimistically; a coarser one is faster and overstates more."""
PRECISION = 1e-3
"""Relative width at which the search for the noise multiplier ends."""


def step_events(*, sampling_rate: float, noise_multiplier: float, steps: int) -> DpEvent:
    """What `steps` steps of Poisson-sampled Gaussian noise are to an accountant."""
    step = PoissonSampledDpEvent(sampling_rate, GaussianDpEvent(noise_multiplier))
    return SelfComposedDpEvent(step, steps)


@lru_cache(maxsize=256)
def epsilon_of(*, sampling_rate: float, noise_multiplier: float, steps: int, delta: float, grid: float = FINE) -> float:
    """Epsilon by privacy loss distributions (Koskela et al. 2020; Doroshenko et al. 2022), never below the true one.

    Guarantees:
        - It is an upper bound: losses are rounded up to the grid.
        - It is within 2 % of the PRV accountant (Gopi et al. 2021) and never above the Renyi accountant.
        - No step costs nothing; each step more costs more.
    """
    if steps == 0:
        return 0.0
    accountant = PLDAccountant(RELATION, grid)
    accountant.compose(step_events(sampling_rate=sampling_rate, noise_multiplier=noise_multiplier, steps=steps))
    return float(accountant.get_epsilon(delta))


@lru_cache(maxsize=64)
def calibrate(*, epsilon: float, delta: float, sampling_rate: float, steps: int) -> float:
    """The smallest noise multiplier under which `steps` steps cost at most `epsilon`.

    Guarantees:
        - The epsilon that it costs is at most the target, and at least 0.97 of it.

    Raises:
        ConfigError: no multiplier between SMALLEST_NOISE and LARGEST_NOISE does it.
    """
    grid = min(COARSE, max(FINE, epsilon / 2000))

    def cost(noise: float, grid: float = grid) -> float:
        return epsilon_of(sampling_rate=sampling_rate, noise_multiplier=noise, steps=steps, delta=delta, grid=grid)

    high = 2 * SMALLEST_NOISE
    # With little noise the fine grid is slow; what suffices on a rough one suffices.
    while high < LARGEST_NOISE and cost(high, ROUGH) > epsilon:
        high = min(2 * high, LARGEST_NOISE)
    low = max(SMALLEST_NOISE, high / 4)
    if high >= LARGEST_NOISE and cost(high) > epsilon:
        raise ConfigError(
            f"privacy.epsilon: {epsilon:g} at delta {delta:g} is impossible in {steps} steps with privacy.sampling_rate "
            f"{sampling_rate:g}: even noise of {LARGEST_NOISE:g} times the clip norm costs {cost(high):.3g}; take fewer "
            "training.rounds or training.local_steps, a lower sampling rate, or a larger epsilon"
        )
    if low == SMALLEST_NOISE and cost(low, ROUGH) <= epsilon:
        raise ConfigError(
            f"privacy.epsilon: {epsilon:g} is so large that noise of {SMALLEST_NOISE:g} times the clip norm would do, "
            "which hides nobody; lower epsilon, or say noise = 'none'"
        )
    while high / low > 1 + PRECISION:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if cost(middle) > epsilon else (low, middle)
    return high


def in_roster(privacy: SitePrivacy | ConsortiumPrivacy, site: str) -> None:
    """See that a plan counts on a site.

    Raises:
        ConfigError: it is not in the roster.
    """
    if site not in privacy.patients:
        raise ConfigError(
            f"privacy.patients: has no '{site}', so this site cannot train; add it with its public count",
            code="not-in-roster",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Mechanism:
    """What one site does to its gradients, and what that costs a patient. Build it with `for_plan`.

    Attributes:
        site: whose it is.
        sampling_rate: probability that a patient enters a step.
        clip_norm: what one patient changes in a step's sum, at most (Euclidean, over all parameters).
        noise_multiplier: standard deviation of the noise in units of `clip_norm`.
        steps: of the whole run, the empty ones counted.
        patients: public count of the plan: the site's weight in the mean.
        epsilon_target: the plan's bound.
        delta: probability with which epsilon need not hold.

    Guarantees:
        - Everything in it is a constant of the plan; no patient, present, absent or withdrawn, changes any of it.
        - `epsilon()` is at most the plan's.
    """

    site: str
    sampling_rate: float
    clip_norm: float
    noise_multiplier: float
    steps: int
    patients: int
    epsilon_target: float
    delta: float

    @classmethod
    def for_plan(cls, plan: Plan, site: str) -> Mechanism:
        """The mechanism that a plan asks of a site, its noise calibrated to the plan's epsilon.

        Raises:
            ConfigError: the plan is not private at the sites, the site is not in its roster, or no sensible noise reaches its
                epsilon.
        """
        privacy = plan.privacy
        if not isinstance(privacy, SitePrivacy):
            raise ConfigError(f"privacy.noise: is '{privacy.noise}'; a site adds noise only under 'site'")
        in_roster(privacy, site)
        steps, rate = plan.training.rounds * plan.training.local_steps, sampled_rate(privacy.sampling_rate)
        return cls(
            site=site,
            sampling_rate=rate,
            clip_norm=privacy.clip_norm,
            noise_multiplier=calibrate(
                epsilon=privacy.epsilon, delta=less_errors(privacy.delta), sampling_rate=rate, steps=steps
            ),
            steps=steps,
            patients=privacy.patients[site],
            epsilon_target=privacy.epsilon,
            delta=privacy.delta,
        )

    def integers(self, parameters: int) -> IntegerNoise:
        """The grid on which gradients and noise are drawn, for a network of so many parameters.

        Raises:
            ConfigError: epsilon is so large that errors of drawing noise count beside delta.
        """
        made = IntegerNoise.sized(
            parameters=parameters, clip_norm=self.clip_norm, noise_multiplier=self.noise_multiplier
        )
        if not see_errors(error=made.error(steps=self.steps), epsilon=self.epsilon_target, delta=self.delta):
            raise ConfigError(
                f"privacy.epsilon: {self.epsilon_target:g} is so large that the errors of drawing noise are no longer small "
                "beside delta; lower it"
            )
        return made

    @property
    def noise_scale(self) -> float:
        """Standard deviation of the noise that is accounted on every coordinate of a step's sum; what is drawn is a hair wider."""
        return self.noise_multiplier * self.clip_norm

    @property
    def expected_batch(self) -> float:
        """What a step's sum is divided by: a constant of the plan, never a count."""
        return self.sampling_rate * self.patients

    @property
    def relation(self) -> NeighboringRelation:
        """Which cohorts are neighbours: one patient added or removed."""
        return RELATION

    @property
    def event(self) -> DpEvent:
        """The whole run as an accountant sees it."""
        return step_events(sampling_rate=self.sampling_rate, noise_multiplier=self.noise_multiplier, steps=self.steps)

    def epsilon(self, steps: int | None = None) -> float:
        """Epsilon that the whole run spends, or its first `steps` steps."""
        return epsilon_of(
            sampling_rate=self.sampling_rate,
            noise_multiplier=self.noise_multiplier,
            steps=self.steps if steps is None else steps,
            delta=less_errors(self.delta),
        )
