"""The aggregation rules that a plan may name: what each reads from `[strategy]`, and where it may be used.

Both sides look a rule up here: a plan refuses parameters that its rule does not read, and combinations that would break a promise.
What the rules do is in `oncofed_strategies` (the aggregator's half) and `oncofed_client.rounds` (the site's half).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

__all__ = ["MODES", "RULES", "Rule", "Verdict", "verdict"]

MODES = ("secure sums", "site", "consortium")
"""What a rule may be combined with: only sums seen by the aggregator; noise of each site's own; noise over the consortium."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """Whether something is legal, and why."""

    legal: bool
    why: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """What is known of an aggregation rule without running it.

    Attributes:
        source: the paper.
        parameters: keys of `[strategy]` that this rule reads beside those that all read, with their defaults.
        extra: coordinates that a site appends to its update.
        site_memory: whether a site keeps something of its own between rounds.
        under: whether the rule is legal under each of `MODES`.
    """

    source: str
    parameters: Mapping[str, Any]
    extra: int = 0
    site_memory: bool = False
    under: Mapping[str, Verdict]

    @property
    def secure_sums(self) -> Verdict:
        """Whether the rule does with sums over sites alone."""
        return self.under["secure sums"]


def _under(secure_sums: Verdict, site: Verdict, consortium: Verdict) -> Mapping[str, Verdict]:
    return MappingProxyType(dict(zip(MODES, (secure_sums, site, consortium), strict=True)))


_SUM = Verdict(legal=True, why="needs only the sum over sites of patients x change, and of patients")
_AFTER = Verdict(legal=True, why="works on what noised updates add up to: post-processing")
_SERVER = _under(_SUM, _AFTER, _AFTER)
_REDDI = "Reddi et al. 2021, Adaptive federated optimization, algorithm 2"

RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "fedavg": Rule(source="McMahan et al. 2017", parameters={}, under=_SERVER),
        "fedavgm": Rule(source="Hsu et al. 2019", parameters={"momentum": 0.9}, under=_SERVER),
        "fedadam": Rule(
            source=_REDDI,
            parameters={"betas": (0.9, 0.999), "tau": 1e-3, "bias_correction": "adam"},
            under=_SERVER,
        ),
        "fedyogi": Rule(source=_REDDI, parameters={"betas": (0.9, 0.99), "tau": 1e-3}, under=_SERVER),
        "fedadagrad": Rule(source=_REDDI, parameters={"tau": 1e-3}, under=_SERVER),
        "fedprox": Rule(
            source="Li et al. 2020, Federated optimization in heterogeneous networks, algorithm 2",
            parameters={"mu": 0.01},
            under=_under(
                _SUM,
                Verdict(legal=True, why="the proximal term depends on parameters alone, not on a patient"),
                Verdict(legal=True, why="at the first local step, the only one there, the proximal term is zero"),
            ),
        ),
        "scaffold": Rule(
            source="Karimireddy et al. 2020, SCAFFOLD, algorithm 1, option II",
            parameters={},
            site_memory=True,
            under=_under(
                Verdict(legal=True, why="the controls' change follows from the sum of updates; nothing more is sent"),
                Verdict(legal=True, why="a site's control is computed from its own noised update: post-processing"),
                Verdict(
                    legal=False,
                    why="a site's control would be its gradient without noise, and enter the next update unclipped",
                ),
            ),
        ),
        "qfedavg": Rule(
            source="Li et al. 2020, Fair resource allocation in federated learning, algorithm 2",
            parameters={"q": 0.1},
            extra=1,
            under=_under(
                Verdict(legal=True, why="needs the sums over sites of F^q x change and of h, weighted by patients"),
                Verdict(legal=False, why="the weight F^q is a site's loss over its patients, and has no noise"),
                Verdict(
                    legal=False,
                    why="F^q x change is not a sum over patients, so clipping each patient does not bound it",
                ),
            ),
        ),
    }
)
"""By the name that a plan uses."""

_LOCAL = {
    "secure sums": Verdict(legal=True, why="local layers are in no message"),
    "site": Verdict(legal=True, why="local layers are trained by the same noised steps and are in no message"),
    "consortium": Verdict(
        legal=False,
        why="local layers would be trained without noise and change every patient's gradient at their site beyond its clip",
    ),
}


def verdict(name: str, mode: str, *, local: bool = False) -> Verdict:
    """Whether a rule, with or without local layers, may be used in a mode.

    Args:
        name: of the rule, a key of `RULES`.
        mode: one of `MODES`.
        local: whether layers stay at the sites.
    """
    own = RULES[name].under[mode]
    return _LOCAL[mode] if local and own.legal else own
