"""Sensitivity and noise on integers, as one frozen value: how fine the grid is, how wide a share, and what approximation costs.

Floating-point noise can be read off its low bits (Mironov 2012). So the sum of clipped gradients is made integer, the noise is a
discrete Gaussian (Canonne, Kamath & Steinke 2020), and what leaves is integers. `docs/noise.md` has the proof of what is said here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

from oncofed_shared.errors import ConfigError

__all__ = [
    "CANCELLED",
    "ERRORS",
    "FLOATS",
    "MOST_PATIENTS",
    "MOST_PLACES",
    "MOST_TERMS",
    "SAMPLER_ERROR",
    "SMALLEST_SHARE",
    "SMOOTHING",
    "TAIL",
    "UNLIKE_GAUSSIAN",
    "IntegerNoise",
    "less_errors",
    "own_multiplier",
    "sampled_rate",
    "see_errors",
    "see_sums",
    "share_width",
]

SMALLEST_SHARE = 8.0
"""Smallest standard deviation of one share, in integer steps: below it a sum of shares is not close to a Gaussian."""
SMOOTHING = 3.0
"""A sum of discrete Gaussians is a continuous Gaussian, whose variance is less by the square of this, rounded at random."""
UNLIKE_GAUSSIAN = 1e-76
"""How far the probability of any value is from that of the rounded Gaussian, as a ratio, for one coordinate of one step."""
SAMPLER_ERROR = 2.0**-108
"""Total variation between what the sampler draws, tails cut off, and a discrete Gaussian, for one number."""
TAIL = 16
"""No share is larger than this many of its standard deviations: the sampler has no such value."""
ERRORS = 1e-6
"""Part of delta that is kept for the two errors above, over all numbers of the whole run."""
FINEST, PER_ROOT = 2**12, 1000
"""Rounding two vectors of d coordinates moves them apart by sqrt(d) at most: a thousandth of a bound of 1000 sqrt(d)."""
FINE, LEAST_PER_ROOT = 2**17, 128
"""A bound is no larger than the first as long as rounding takes no more than a 128th of it: a finer grid of a large model needs
rings of 64 bits where 32 do (docs/adr/0026)."""
FLOATS = 2.0**-11
"""Part of the bound that is kept for floating point: half for the one other patient who changes his place when one is removed, half
for sums."""
CANCELLED = 2.0**-24
"""Part of the sum of squares without signs by which a patient's squared length is taken for longer: more than rounding may have
taken off it where numbers cancelled."""
MOST_TERMS, MOST_PLACES, MOST_PATIENTS = 2**25, 512, 2**19
"""Patients of a batch squared, times the numbers of which one patient's gradient is a sum; patients of a batch; of a sample. Up to
these, sums in double precision err by less than half of FLOATS."""
LARGEST_BOUND = 2**26
"""Squares of longer vectors would not be exact in doubles; 10^10 parameters do not reach it."""
UNIFORM = 2**53


def sampled_rate(rate: float) -> float:
    """The rate with which a patient enters when coins are multiples of 2**-53: the plan's, rounded up."""
    return math.ceil(rate * UNIFORM) / UNIFORM


def share_width(noise_multiplier: float, bound: float, shares: int) -> float:
    """Standard deviation of a share, in steps, so that `shares` of them carry `noise_multiplier` x `bound` after smoothing."""
    return math.sqrt(((noise_multiplier * bound) ** 2 + SMOOTHING**2) / shares)


def own_multiplier(share_sigma: float, bound: float) -> float:
    """The noise multiplier on which one share alone can count."""
    return math.sqrt(share_sigma**2 - SMOOTHING**2) / bound


def less_errors(delta: float) -> float:
    """What of delta is left for the Gaussian mechanism."""
    return delta * (1 - ERRORS)


def see_errors(*, error: float, epsilon: float, delta: float) -> bool:
    """Whether (1 + e^epsilon) x error, what approximation adds to delta, is within what is kept for it."""
    return math.log(error) + math.log1p(math.exp(-epsilon)) + epsilon <= math.log(ERRORS * delta)


def see_sums(*, places: int, tokens: int) -> None:
    """See that sums over a batch stay within the margin that is kept for them.

    Args:
        places: of a batch.
        tokens: products of which a patient's gradient is a sum, for one layer.

    Raises:
        ConfigError: they may not.
    """
    if places * places * tokens > MOST_TERMS:
        raise ConfigError(
            f"model: a layer reads {tokens} vectors of each of {places} patients; rounding their sum could move it by more than is "
            "kept for it; lower privacy.microbatch, or take fewer tokens"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class IntegerNoise:
    """The grid of a step's integers and the noise on it. Build it with `sized`.

    Attributes:
        parameters: length of the vector.
        clip_norm: what one patient changes at most, as floats.
        bound: the same in integer steps: the Euclidean sensitivity of the rounded sum.
        share_sigma: standard deviation of one share of noise, in integer steps.

    Guarantees:
        - Rounding shortens what a patient may contribute by less than a thousandth of the clip norm up to 17,179 parameters, and
          by no more than a 128th for any number; floating point by `FLOATS`.
        - The parameter of the discrete Gaussian is at least SMALLEST_SHARE.
    """

    parameters: int
    clip_norm: float
    bound: int
    share_sigma: float

    @classmethod
    def sized(cls, *, parameters: int, clip_norm: float, noise_multiplier: float, shares: int = 1) -> Self:
        """The grid for a vector of `parameters`, and noise of which `shares` together have the multiplier.

        Raises:
            ConfigError: a share would be too narrow.
        """
        root = math.sqrt(parameters)
        finest = max(FINEST, min(PER_ROOT * root, FINE), LEAST_PER_ROOT * root)
        bound = 2 ** math.ceil(math.log2(finest))
        if bound > LARGEST_BOUND:
            raise ConfigError(f"model: {parameters} parameters are more than integers of a step are exact for")
        sigma = share_width(noise_multiplier, bound, shares)
        if sigma < SMALLEST_SHARE:
            raise ConfigError(
                f"privacy: a site's share of the noise would be {sigma:.3g} integer steps wide, below {SMALLEST_SHARE:g}; "
                "lower privacy.epsilon"
            )
        return cls(parameters=parameters, clip_norm=clip_norm, bound=bound, share_sigma=sigma)

    @property
    def grain(self) -> float:
        """Float value of one integer step."""
        return self.clip_norm / self.bound

    @property
    def clip_to(self) -> float:
        """Length in steps to which a patient's gradient is shortened, so that the rounded sum moves by at most the bound."""
        return self.bound * (1 - FLOATS) - math.sqrt(self.parameters)

    @property
    def tail(self) -> int:
        """Largest magnitude of one coordinate of a share, in steps."""
        return math.ceil(TAIL * self.share_sigma)

    def error(self, *, steps: int, sites: int = 1) -> float:
        """Total variation between `steps` steps as they are drawn and the Gaussian mechanism that is accounted."""
        return steps * self.parameters * (sites * SAMPLER_ERROR + UNLIKE_GAUSSIAN)
