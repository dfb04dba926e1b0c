"""Canaries through a whole study: what their scores prove of epsilon, and whether sums have the noise that they should have."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oncofed_client.cohort import Cohort
from oncofed_client.session import training_set
from oncofed_client.site import Site
from oncofed_client.training import TrainingSet
from oncofed_shared.features import unite
from oncofed_shared.messages import Trial
from oncofed_shared.plan import NoPrivacy, Plan
from oncofed_simulations.audit_canaries import CanarySource, invented_canaries, joined, shared_out
from oncofed_simulations.audit_gradients import Attacker
from oncofed_simulations.audit_path import Claim, Heard, Release, claim_of, hear, open_sites, with_source
from oncofed_simulations.audit_statistics import (
    Bound,
    SumCheck,
    correlation_check,
    gaussian_bound,
    one_run_bound,
    variance_check,
)

__all__ = ["CANARIES", "CanaryAudit", "audit_canaries"]

Floats = NDArray[np.float64]
CANARIES = 1000
DRAWS = 64
"""Samples of patients that are drawn to know what sampling alone does to a sum."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CanaryAudit:
    """What a run with canaries showed.

    Attributes:
        bound: by the Gaussian auditor, who knows everybody but the one canary whose score he takes.
        one_run: without an assumption about scores, by an auditor who knows no canary's coin; `guesses`, of which `correct`.
        change: what a canary changes in a release's mean, in clip norms: its clipped length times the sampling rate; and `error`.
        clipped: part of the canaries' gradients that were longer than the clip norm.
        variance: squared length of the sums' rests.
        correlation: between the rests of two releases.
    """

    claim: Claim
    canaries: int
    bound: Bound
    one_run: float
    guesses: int
    correct: int
    change: float
    error: float
    clipped: float
    variance: SumCheck
    correlation: SumCheck

    @property
    def wrong(self) -> tuple[str, ...]:
        """Names of the checks that say that the code does not do what it claims."""
        found = {
            "epsilon": self.bound.epsilon > self.claim.epsilon,
            "one run": self.one_run > self.claim.epsilon,
            "variance": self.variance.wrong,
            "correlation": self.correlation.wrong,
        }
        return tuple(name for name, bad in found.items() if bad)

    def facts(self) -> dict[str, Any]:
        """For `audit.json`."""
        checks = {n: asdict(c) | {"wrong": c.wrong} for n, c in self._checks().items()}
        kept = ("canaries", "one_run", "guesses", "correct", "change", "error", "clipped")
        return {
            "claim": asdict(self.claim),
            "gaussian": asdict(self.bound),
            **{name: getattr(self, name) for name in kept},
            "checks": checks,
            "wrong": list(self.wrong),
        }

    def _checks(self) -> Mapping[str, SumCheck]:
        return {"variance": self.variance, "correlation": self.correlation}


@dataclass(frozen=True, kw_only=True)
class _Known:
    """Whom an auditor knows of a site: its patients, and the canaries that are or are not there."""

    patients: TrainingSet
    canaries: TrainingSet
    numbers: NDArray[np.int64]


def audit_canaries(
    plan: Plan, folder: Path, out: Path, *, seed: int, canaries: int = CANARIES
) -> tuple[CanaryAudit, Heard]:
    """Run an attacked plan once with canaries.

    Args:
        plan: of `attacked_plan`.
        folder: of the hospitals.
        out: for keys and ledgers; deleted afterwards.
        seed: of the canaries, their coins, and the trial.

    Raises:
        ConfigError, RemoteProtocolError: the study cannot be audited, or its run failed.
    """
    assert not isinstance(plan.privacy, NoPrivacy)  # noqa: S101 - `attacked_plan` makes no other
    trial = Trial(seed=seed)
    shutil.rmtree(out, ignore_errors=True)
    sites = open_sites(plan, folder, out / "sites", only=plan.privacy.patients)
    cohorts = {n: s.source.cohort(plan) for n, s in sites.items()}
    made = invented_canaries(plan, unite(plan, [c.columns for c in cohorts.values()]), count=canaries, seed=seed)
    inside = np.random.default_rng((seed, 1)).random(canaries) < 0.5
    places = shared_out(canaries, len(sites))
    audited = {
        name: with_source(site, CanarySource.of(site.source, made, inside & (places == i)))
        for i, (name, site) in enumerate(sites.items())
    }
    heard = hear(plan, audited, trial, out=out)
    shutil.rmtree(out, ignore_errors=True)
    known = {
        name: _known(plan, heard, site, made, np.flatnonzero(places == i))
        for i, (name, site) in enumerate(sites.items())
    }
    return _judged(plan, heard, known, inside), heard


def _known(plan: Plan, heard: Heard, site: Site, made: Cohort, numbers: NDArray[np.int64]) -> _Known:
    cohort = site.source.cohort(plan)
    rows = site.source.split(plan, cohort, heard.trial) == 0
    chosen = np.zeros(len(made.patients), dtype=bool)
    chosen[numbers] = True
    return _Known(
        patients=training_set(plan, heard.preparation, cohort, rows),
        canaries=training_set(plan, heard.preparation, made, chosen),
        numbers=numbers,
    )


def _judged(plan: Plan, heard: Heard, known: Mapping[str, _Known], inside: NDArray[np.bool_]) -> CanaryAudit:
    attacker = Attacker.of(plan, heard.preparation)
    claim = claim_of(plan, parameters=attacker.layout.size)
    auditor = _Auditor(claim=claim, attacker=attacker, clip_norm=_clip_norm(plan), inside=inside)
    close, blind, lengths = (np.zeros(len(inside)) for _ in range(3))
    seen = np.zeros(len(inside), dtype=np.int64)
    rests, found, expected, variances, dimensions = [], [], [], [], []
    rng = np.random.default_rng(0)
    for release in heard.releases:
        part = auditor.look(release, [known[s] for s in release.sites])
        close[part.numbers] += part.close
        blind[part.numbers] += part.blind
        lengths[part.numbers] += part.lengths
        seen[part.numbers] += 1
        mean, variance, counted = part.by_chance(claim, rng)
        rests.append(part.rest.astype(np.float32))
        found.append(float(part.rest @ part.rest))
        expected.append(mean)
        variances.append(variance)
        dimensions.append(counted)
    close, blind = close / np.sqrt(seen), blind / np.sqrt(seen)
    guessed, guesses, correct = one_run_bound(blind, inside, delta=claim.delta)
    spread = np.sqrt(close[inside].var(ddof=1) / inside.sum() + close[~inside].var(ddof=1) / (~inside).sum())
    root = float(np.sqrt(seen.mean()))
    return CanaryAudit(
        claim=claim,
        canaries=len(inside),
        bound=gaussian_bound(close[inside], close[~inside], delta=claim.delta),
        one_run=guessed,
        guesses=guesses,
        correct=correct,
        change=float(close[inside].mean() - close[~inside].mean()) / root / claim.rate,
        error=float(spread) / root / claim.rate,
        clipped=float((lengths / seen).mean()),
        variance=variance_check(found, expected, variances),
        correlation=correlation_check(np.array(rests), dimensions=min(dimensions), shifted=_neighbours(heard.releases)),
    )


def _neighbours(releases: tuple[Release, ...]) -> list[tuple[int, int]]:
    """Pairs of releases of one round, and of one site in two rounds one after the other, of the first rounds."""
    first = [i for i, r in enumerate(releases) if r.round <= 4]
    return [
        (i, j)
        for i in first
        for j in first
        if i < j and (releases[i].round == releases[j].round or releases[i].sites == releases[j].sites)
    ]


@dataclass(frozen=True, kw_only=True)
class _Part:
    """A release beside what an auditor knows.

    Attributes:
        numbers: of the canaries whose site is in it.
        close, blind: their scores by an auditor who knows everybody else, and by one who knows no coin.
        lengths: 1 where a canary was clipped.
        rest: the sum without what its patients add on average.
        patients: (patients that are in, parameters), what each adds.
    """

    numbers: NDArray[np.int64]
    close: Floats
    blind: Floats
    lengths: Floats
    rest: Floats
    patients: Floats

    def by_chance(self, claim: Claim, rng: np.random.Generator) -> tuple[float, float, float]:
        """Mean and variance of the rest's squared length under correct code, and for how many independent coordinates it counts."""
        rate, variance, size = claim.rate, claim.noise**2, self.rest.size
        coins = (rng.random((DRAWS, len(self.patients))) < rate) - rate
        sampled = coins @ self.patients
        lengths = np.einsum("ij,ij->i", sampled, sampled)
        products = sampled @ sampled.T
        squares = float((products**2)[~np.eye(DRAWS, dtype=bool)].mean())
        trace = float(rate * (1 - rate) * np.einsum("ij,ij->", self.patients, self.patients))
        whole = size * variance**2 + 2 * variance * trace + squares
        mean = size * variance + trace
        spread = 2 * size * variance**2 + 4 * variance * trace + float(lengths.var(ddof=1))
        return mean, spread, mean**2 / whole


@dataclass(frozen=True, kw_only=True)
class _Auditor:
    claim: Claim
    attacker: Attacker
    clip_norm: float
    inside: NDArray[np.bool_]

    def look(self, release: Release, known: list[_Known]) -> _Part:
        """Work out everybody's gradient at the release's parameters, and score."""
        claim = self.claim
        numbers = np.concatenate([k.numbers for k in known])
        real = (
            self.attacker.clipped(release.parameters, joined([k.patients for k in known]), self.clip_norm) * claim.clip
        )
        mine = (
            self.attacker.clipped(release.parameters, joined([k.canaries for k in known]), self.clip_norm) * claim.clip
        )
        lengths = np.linalg.norm(mine, axis=1)
        towards = mine / np.maximum(lengths, 1e-12)[:, None]
        coins = self.inside[numbers]
        others = release.total - claim.rate * real.sum(axis=0)
        rest = others - claim.rate * mine[coins].sum(axis=0)
        # How much of each is in the sum, he does not believe but measures: what is left otherwise would hide a canary.
        sums = np.stack([real.sum(axis=0), mine[coins].sum(axis=0)], axis=1)
        measured = np.linalg.lstsq(sums, release.total)[0]
        return _Part(
            numbers=numbers,
            close=towards @ (release.total - sums @ measured) + measured[1] * lengths * coins,
            blind=towards @ (others - claim.rate / 2 * mine.sum(axis=0)),
            lengths=(lengths > claim.clip * (1 - 1e-9)).astype(np.float64),
            rest=rest,
            patients=np.concatenate([real, mine[coins]]),
        )


def _clip_norm(plan: Plan) -> float:
    assert not isinstance(plan.privacy, NoPrivacy)  # noqa: S101 - `attacked_plan` makes no other
    return plan.privacy.clip_norm
