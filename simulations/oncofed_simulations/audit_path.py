"""A study as it runs, with an attacker who hears what leaves: real sites, ledgers, messages, sums, and the real aggregator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oncofed_client.scratch import Scratch
from oncofed_client.site import Site
from oncofed_client.source import Source
from oncofed_server.aggregator import Aggregator
from oncofed_server.run_state import Outgoing, Phase, Roster
from oncofed_server.secure_aggregator import SecureAggregator
from oncofed_shared.consortium import ConsortiumMechanism
from oncofed_shared.errors import ConfigError, RemoteProtocolError
from oncofed_shared.features import Preparation, network_columns
from oncofed_shared.integer_noise import IntegerNoise
from oncofed_shared.layout import Layout
from oncofed_shared.messages import Arrays, Head, Open, Train, Trial, Update, from_bytes
from oncofed_shared.network import build
from oncofed_shared.penalties import strengths
from oncofed_shared.plan import ConsortiumPrivacy, NoPrivacy, Plan, parse
from oncofed_shared.plan_reduction import Charged
from oncofed_shared.privacy import Mechanism
from oncofed_shared.ring import COUNT_SCALE, decode
from oncofed_simulations.consortium import federated_roster, open_site
from oncofed_simulations.folders import site_folders
from oncofed_simulations.keys import aggregator_key
from oncofed_simulations.loopback import FakeClock, Tap, drive

__all__ = [
    "Claim",
    "Heard",
    "Release",
    "attacked_plan",
    "claim_of",
    "hear",
    "open_sites",
    "with_source",
    "without_ledger",
]

Floats = NDArray[np.float64]
Planted = Callable[[Arrays, int], Arrays]
"""From a model and the number of the round to the model that is sent."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Release:
    """One noised sum, as an attacker reads it off what he hears.

    Attributes:
        sites: whose patients are in it.
        parameters: (parameters,) at which gradients were taken.
        total: (parameters,) in clip norms; without privacy the sum of gradients as it is.
    """

    round: int
    sites: tuple[str, ...]
    parameters: Floats
    total: Floats


@dataclass(frozen=True, kw_only=True, slots=True)
class Heard:
    """All releases of a run, and what its sites were told."""

    trial: Trial
    preparation: Preparation
    releases: tuple[Release, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """What a plan promises, and what its code says that it does, per release.

    Attributes:
        epsilon, delta: of the whole run, by the accountant.
        noise: standard deviation of a coordinate of a release, in clip norms.
        clip: length to which a patient is shortened, in clip norms; a little below one, which leaves room for rounding.
    """

    epsilon: float
    delta: float
    rate: float
    noise: float
    clip: float
    releases: int


def attacked_plan(plan: Plan) -> Plan:
    """The plan with the same mechanism, from whose messages each noised sum can be read off.

    What is done with a noised sum costs nothing more: optimiser, rule of aggregation and number of local steps between two messages
    are set to plain descent, one step a round. Scores are not released: they are of other patients.

    Raises:
        ConfigError: the plan has no privacy, not all layers are shared, or it reduces or harmonises inside its budget.
    """
    if isinstance(plan.privacy, NoPrivacy):
        raise ConfigError("privacy.noise: is 'none'; there is no claim to audit")
    if plan.strategy.local:
        raise ConfigError("strategy.local: the audit reads sums of all layers; take a study without local layers")
    before = [n for n, m in plan.modalities.items() if isinstance(m.reduction, Charged) or m.harmonise is not None]
    if before:
        raise ConfigError(
            f"modalities.{before[0]}: is reduced or harmonised by what a charged release says, and canaries are of steps over its "
            "columns as they are; leave reduction and harmonise out"
        )
    content: dict[str, Any] = plan.model_dump(mode="json")
    training, rounds = content["training"], plan.training.rounds * plan.training.local_steps
    plain = {"optimiser": "sgd", "momentum": 0.0, "rounds": rounds, "local_steps": 1, "validate_every": rounds}
    closed = {"score_epsilon": None} if isinstance(plan.privacy, ConsortiumPrivacy) else {"release_tables": False}
    return parse(
        content | {"training": training | plain, "strategy": {"name": "fedavg"}, "privacy": content["privacy"] | closed}
    )


def open_sites(plan: Plan, folder: Path, states: Path, *, only: Mapping[str, object]) -> dict[str, Site]:
    """The hospitals of a roster, each with a state of its own.

    Raises:
        ConfigError: none of them is there, or one of a secure sum is missing.
    """
    scratch = Scratch()
    opened = [open_site(f, plan, state=None, minimum=1, scratch=scratch) for f in site_folders(folder)]
    names = {site.name: site.source for site in opened if site.name in only}
    if not names or (isinstance(plan.privacy, ConsortiumPrivacy) and len(names) < len(only)):
        missing = ", ".join(sorted(set(only) - set(names)))
        raise ConfigError(f"{folder}: has no folder for {missing} of privacy.patients; give the study's own hospitals")
    return {
        site.name: open_site(
            site.source.folder,  # type: ignore[attr-defined] # a folder's source, for it was opened from one
            plan,
            state=states / site.name,
            minimum=1,
            scratch=scratch,
        )
        for site in opened
        if site.name in only
    }


def with_source(site: Site, source: Source) -> Site:
    """The same site with other patients."""
    return Site(
        source,
        site.plans,
        minimum_cohort=1,
        policy=site.policy,
        state=site.state,
        noise_seed=site.private.noise_seed,
        scratch=site.scratch,
        contributor=site.contributor,
    )


def without_ledger(site: Site) -> Site:
    """The same site with no account: for questions that a plan does not charge."""
    return Site(site.source, site.plans, minimum_cohort=1, policy=site.policy, scratch=site.scratch)


def _grid(plan: Plan, site: str, parameters: int) -> tuple[Mechanism | ConsortiumMechanism, IntegerNoise, int]:
    """Mechanism, its integers, and how many shares are in a release."""
    if isinstance(plan.privacy, ConsortiumPrivacy):
        whole = ConsortiumMechanism.for_plan(plan, parameters=parameters)
        return whole, whole.integers, whole.sites
    own = Mechanism.for_plan(plan, site)
    return own, own.integers(parameters), 1


def claim_of(plan: Plan, *, parameters: int) -> Claim:
    """What is promised to a patient of any site, all of which have the same rate and noise multiplier."""
    privacy = plan.privacy
    if isinstance(privacy, NoPrivacy):
        raise ConfigError("privacy.noise: is 'none'; there is no claim to audit")
    mechanism, integers, shares = _grid(plan, next(iter(privacy.patients)), parameters)
    return Claim(
        epsilon=mechanism.epsilon(),
        delta=mechanism.delta,
        rate=mechanism.sampling_rate,
        noise=shares**0.5 * integers.share_sigma / integers.bound,
        clip=integers.clip_to / integers.bound,
        releases=plan.training.rounds,
    )


class _Planting(Aggregator):
    """An aggregator that may send a model of its own making, whatever it was sent before.

    Attributes:
        planted: makes the model that it does send.
    """

    planted: Planted | None = None

    def shared_parameters(self) -> Arrays:
        """What goes to the sites."""
        honest = super().shared_parameters()
        return honest if self.planted is None else self.planted(honest, self.state.round)


class _Listening(_Planting, SecureAggregator):
    """The aggregator of secure sums, which keeps what it opens: what its operator has anyway."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.heard: list[Release] = []

    def _finish_sum(self, now: float) -> list[Outgoing]:
        if self._purpose is Phase.TRAIN:
            integers = self._mechanism.integers
            release = Release(
                round=self.state.round,
                sites=self.sums.included,
                parameters=self.layout.flatten(self.shared_parameters()),
                total=self.sums.result() / integers.bound,
            )
            self.heard.append(release)
        return super()._finish_sum(now)


@dataclass(kw_only=True)
class _Updates:
    """Reads noised sums off the updates of single sites, which the aggregator sees under noise = "site"."""

    plan: Plan
    heard: list[Release] = field(default_factory=list)
    asked: dict[str, Train] = field(default_factory=dict)
    penalties: list[Floats] = field(default_factory=list)

    def tap(self, direction: str, site: str, content: bytes) -> None:
        """See a message."""
        message = from_bytes(content)
        if direction == "down" and isinstance(message, Train):
            self.asked[site] = message
        elif direction == "down" and isinstance(message, Open):
            preparation = Preparation.from_arrays(self.plan, message.columns, message.arrays)
            network = build(self.plan, network_columns(self.plan, preparation), seed=0)
            self.penalties = [s.numpy().astype(np.float64) for s in strengths(self.plan, network)]
        elif direction == "up" and isinstance(message, Update):
            self.heard.append(self._read(site, self.asked[site], message))

    def _read(self, site: str, asked: Train, update: Update) -> Release:
        layout = Layout({n: a.shape for n, a in sorted(asked.parameters.items())})
        before, vector = layout.flatten(asked.parameters), decode(update.vector)
        patients = vector[-2] / COUNT_SCALE
        decay, l1 = self.penalties
        change = vector[: layout.size] / patients
        gradient = -change / self.plan.training.rate - decay * before - l1 * np.sign(before)
        batch = patients
        if not isinstance(self.plan.privacy, NoPrivacy):
            mechanism = Mechanism.for_plan(self.plan, site)
            batch = mechanism.sampling_rate * mechanism.patients / mechanism.clip_norm
        return Release(round=asked.round, sites=(site,), parameters=before, total=gradient * batch)


def hear(
    plan: Plan,
    sites: Mapping[str, Site],
    trial: Trial,
    *,
    out: Path,
    planted: Planted | None = None,
    tap: Tap | None = None,
) -> Heard:
    """Run an attacked plan over sites to its end, and hear every release.

    Args:
        out: folder of the aggregator's key; the sites' states are in `out / "sites"`.
        planted: changes the model before it is sent, in every round.
        tap: sees every message too.

    Raises:
        RemoteProtocolError: the run failed.
    """
    secure = isinstance(plan.privacy, ConsortiumPrivacy)
    states = {n: s.state for n, s in sites.items() if secure and s.state is not None}
    roster: Roster = federated_roster(sites, (), states)
    session = f"{plan.hash[:16]}/audit"
    aggregator: _Planting
    if secure:
        aggregator = _Listening(plan, roster, trial, session=session, curves=False, key=aggregator_key(out))
    else:
        aggregator = _Planting(plan, roster, trial, session=session, curves=False)
    aggregator.planted = planted
    updates = _Updates(plan=plan)
    also = tap or (lambda direction, site, content: None)

    def both(direction: str, site: str, content: bytes) -> None:
        also(direction, site, content)
        if not secure:
            updates.tap(direction, site, content)

    drive(aggregator, sites, clock=FakeClock(), tap=both)
    if aggregator.state.phase is not Phase.DONE:
        raise RemoteProtocolError(f"the audited run failed: {aggregator.state.why}", code="failed")
    over = Head(session=session, step=0, attempt=0, plan_hash=plan.hash, trial=trial)
    for site in sites.values():
        site.end(over)
    heard = aggregator.heard if isinstance(aggregator, _Listening) else updates.heard
    preparation = aggregator.state.preparation
    if preparation is None or aggregator.state.excluded:
        raise RemoteProtocolError(f"sites left the audited run: {dict(aggregator.state.excluded)}", code="failed")
    return Heard(trial=trial, preparation=preparation, releases=tuple(heard))
