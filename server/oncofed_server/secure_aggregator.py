"""A run under noise = "consortium" as a state table: what `Aggregator` does, with rounds and scores that are secure sums.

    phase      asks            of whom                 when all have answered
    KEYS       Exchange        members                 KEYS (three times), then what the keys are for
    STATISTICS Contribute      members                 OPENING, then OPEN; only where the plan charges statistics
    TRAIN      Contribute      members                 OPENING
    HISTOGRAM  Contribute      members                 OPENING
    SCORES     Contribute      members                 OPENING
    OPENING    Exchange        those who contributed   OPENING, then the next TRAIN; HISTOGRAM, SCORES and DONE after the last

A site that refuses or is silent leaves the run; the sum under way goes on without it if the plan's `drop` allows, and the next one
is of a new formation with new keys. A sum that cannot be opened is lost and stays charged: of a round it takes one of the plan's
spare steps, and scores are then not released.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from oncofed_server.aggregator import Aggregator
from oncofed_server.run_state import Outgoing, Phase, Roster, State
from oncofed_server.secure_sums import SecureSums, formation_name
from oncofed_shared.charged_statistics import (
    agreed_preparation,
    charges_statistics,
    statistics_mechanism,
    statistics_size,
)
from oncofed_shared.consortium import ConsortiumMechanism, TablesMechanism, server_counts, server_gradient
from oncofed_shared.errors import ConfigError, RemoteProtocolError
from oncofed_shared.messages import Contribute, Contribution, Exchange, Exchanged, Head, Reply, Request, Trial
from oncofed_shared.noised_tables import coarse_entries, coarse_size, histogram_size, placed_grid
from oncofed_shared.penalties import strengths
from oncofed_shared.plan import ConsortiumPrivacy, Plan
from oncofed_strategies import Sums

__all__ = ["SecureAggregator", "aggregator_for"]

SUMS = frozenset({Phase.STATISTICS, Phase.TRAIN, Phase.HISTOGRAM, Phase.SCORES})
_KINDS = {Phase.STATISTICS: "statistics", Phase.TRAIN: "train", Phase.HISTOGRAM: "histogram", Phase.SCORES: "scores"}


class SecureAggregator(Aggregator):
    """One private run over the consortium.

    Args:
        key: the aggregator's own, with which it signs the sites' ledgers back.
        names: a name for every new formation, never the same twice; a journal gives those again that it gave before.

    Raises:
        ConfigError: the plan is of another kind, or sites of its roster are missing beyond `drop`.
    """

    def __init__(
        self,
        plan: Plan,
        roster: Roster,
        trial: Trial,
        *,
        session: str,
        curves: bool = True,
        state: State | None = None,
        key: Ed25519PrivateKey | None = None,
        names: Callable[[], str] = formation_name,
    ) -> None:
        super().__init__(plan, roster, trial, session=session, curves=curves, state=state)
        if not isinstance(plan.privacy, ConsortiumPrivacy):
            raise ConfigError(f"privacy.noise: is '{plan.privacy.noise}'; secure sums are for 'consortium'")
        self._privacy = plan.privacy
        self._key, self._names = key, names
        self._sums: SecureSums | None = None
        self._purpose = Phase.TRAIN

    @property
    def sums(self) -> SecureSums:
        """The sums of the newest formation."""
        if self._sums is None:
            message = "no formation was made yet"
            raise RemoteProtocolError(message)
        return self._sums

    # -- asking -----------------------------------------------------------------------------------------------------------------

    def _enter(self, phase: Phase, now: float) -> list[Outgoing]:
        if phase not in SUMS:
            return super()._enter(phase, now)
        self._purpose = phase
        members = tuple(sorted(t for t in self.roster.trainers if t not in self.state.excluded))
        missing = len(self._privacy.patients) - len(members)
        if missing > self._privacy.drop:
            return self._fail(
                f"{missing} sites of the roster are missing, and privacy.drop is {self._privacy.drop}: {self._reasons()}"
            )
        if self._sums is None or self._sums.formation.members != members:
            self._sums = SecureSums(
                self.plan,
                self.session,
                members,
                self.roster.identities,
                self._key,
                before=self._sums,
                name=self._names(),
            )
        if not self._sums.ready:
            self._sums.set_up()
            return self._exchange(Phase.KEYS, now)
        self._sums.begin(
            _KINDS[phase],
            size=self._size,
            round_number=self._round,
            trial=self.trial,
            columns=self.state.columns if phase is Phase.STATISTICS else self._prepared().columns,
            parameters=self._sent,
            histogram=self._histogram,
            statistics=np.zeros(0) if phase is Phase.STATISTICS else self._prepared().bound,
        )
        return self._await(phase, members, now)

    @property
    def _round(self) -> int:
        return self.state.round if self._purpose is Phase.TRAIN else 0

    @property
    def _sent(self) -> dict[str, NDArray[Any]]:
        """The model that a share is asked for; before there is one, none."""
        return {} if self._purpose is Phase.STATISTICS else self.shared_parameters()

    @property
    def _histogram(self) -> NDArray[np.float64]:
        known = self.state.histogram
        return known if self._purpose is Phase.SCORES and known is not None else np.zeros(0)

    @property
    def _size(self) -> int:
        if self._purpose is Phase.STATISTICS:
            return statistics_size(self.plan, self.state.columns)
        if self._purpose is Phase.HISTOGRAM:
            return histogram_size(self.plan)
        return coarse_size(self.plan, placed_grid(self.plan)) if self._purpose is Phase.SCORES else self.layout.size

    def _exchange(self, phase: Phase, now: float) -> list[Outgoing]:
        return self._await(phase, tuple(self.sums.asks()), now)

    def _await(self, phase: Phase, members: tuple[str, ...], now: float) -> list[Outgoing]:
        self.state = replace(
            self.state,
            phase=phase,
            step=self.state.step + 1,
            attempt=0,
            pending=frozenset(members),
            total=None,
            deadline=now + 60 * self.plan.training.deadline_minutes,
        )
        return self._ask(members)

    def _request(self, head: Head) -> Callable[[str], Request]:
        sums = self._sums
        if sums is None or self.state.phase not in {*SUMS, Phase.KEYS, Phase.OPENING}:
            return super()._request(head)
        if self.state.phase in SUMS:
            contribute = Contribute(
                head=head,
                formation=sums.formation,
                number=sums.number - 1,
                kind=_KINDS[self._purpose],
                round=self._round,
                parameters=self._sent,
                histogram=self._histogram,
                columns=self.state.columns if self._purpose is Phase.STATISTICS else {},
            )
            return lambda site: replace(contribute, witnesses=sums.newest_witness(site))
        asks = sums.asks()
        return lambda site: Exchange(
            head=head,
            formation=sums.formation,
            content=asks[site],
            heads=sums.heads_for(site),
            witnesses=sums.witnesses_for(site),
        )

    # -- answers ----------------------------------------------------------------------------------------------------------------

    def _absorbed(self, reply: Reply) -> dict[str, Any]:
        match self.state.phase, reply:
            case ((Phase.STATISTICS | Phase.TRAIN | Phase.HISTOGRAM | Phase.SCORES), Contribution()):
                self.sums.take(reply)
                return {}
            case ((Phase.KEYS | Phase.OPENING), Exchanged()):
                self.sums.take(reply)
                return {}
            case _:
                return super()._absorbed(reply)

    def _advance(self, now: float) -> list[Outgoing]:
        phase = self.state.phase
        if phase is Phase.KEYS:
            # Dealt to the end, with another exchange to come, or begun anew because somebody left.
            left = set(self.sums.formation.members) & set(self.state.excluded)
            return self._exchange(phase, now) if self.sums.asks() and not left else self._enter(self._purpose, now)
        if phase in SUMS:
            self.sums.close()
            return self._again(now) if self.sums.lost else self._exchange(Phase.OPENING, now)
        if phase is Phase.OPENING:
            if self.sums.opened:
                return self._finish_sum(now)
            asks = {s: a for s, a in self.sums.asks().items() if s not in self.state.excluded}
            return self._await(phase, tuple(asks), now) if asks else self._again(now)
        return super()._advance(now)

    def _overdue(self, now: float) -> list[Outgoing]:
        if self.state.phase in {Phase.KEYS, Phase.OPENING}:
            # The others' answers may have been enough: who is not needed any more is neither asked again nor left out.
            self.state = replace(self.state, pending=self.state.pending & self.sums.asks().keys())
            if not self.state.pending:
                return self._advance(now)
        return super()._overdue(now)

    def _again(self, now: float) -> list[Outgoing]:
        """A sum is lost: the next attempt is a new one, with new samples, noise and keys."""
        self.sums.give_up()
        if self._purpose is Phase.STATISTICS:
            return self._fail(f"the sum of the statistics was lost, and it is charged once: {self._reasons()}")
        if self._purpose is not Phase.TRAIN:
            # One charge for one look at these patients: there is no second one, and the model does not depend on it.
            self.state = replace(self.state, phase=Phase.DONE, why=f"no scores were released: {self._reasons()}")
            return []
        lost = self.state.lost + 1
        if lost > self._privacy.spare_steps:
            return self._fail(
                f"{lost} sums were lost, and privacy.spare_steps is {self._privacy.spare_steps}: {self._reasons()}"
            )
        self.state = replace(self.state, lost=lost)
        return self._enter(self._purpose, now)

    def _finish_sum(self, now: float) -> list[Outgoing]:
        total = self.sums.result()
        if self._purpose is Phase.STATISTICS:
            return self._scaled(total, now)
        if self._purpose is not Phase.TRAIN:
            mechanism = TablesMechanism.for_plan(self.plan, cells=len(total), entries=coarse_entries(self.plan))
            released = server_counts(total, mechanism)
            if self._purpose is Phase.HISTOGRAM:
                self.state = replace(self.state, histogram=released)
                return self._enter(Phase.SCORES, now)
            self.state = replace(self.state, phase=Phase.DONE, released=released, present=len(self.sums.included))
            return []
        patients = float(sum(self._privacy.patients.values()))
        sums = Sums(
            change=self._step(server_gradient(total, self._mechanism)) * patients,
            extra=np.zeros(0),
            patients=patients,
            population=patients,
            behind=self._behind(patients, np.zeros(0)),
        )
        self.state = replace(self.state, tally=replace(self.state.tally, sites=self.sums.included))
        return self._round_done(sums, 0.0, now)

    def _agree(self, now: float) -> list[Outgoing]:
        """The preparation follows from the plan's constants, or from statistics that are asked for once."""
        state, sites = self.state, self._members(Phase.SUMMARISE)
        if not charges_statistics(self.plan) or not sites or self._columns() != state.columns:
            return super()._agree(now)
        return self._enter(Phase.STATISTICS, now)

    def _scaled(self, total: NDArray[np.int64], now: float) -> list[Outgoing]:
        plan, columns = self.plan, self.state.columns
        released = server_counts(total, statistics_mechanism(plan, columns))
        try:
            preparation = agreed_preparation(plan, columns, released)
        except RemoteProtocolError as error:
            return self._fail(f"{error}; the statistics are charged once, and are not asked for again")
        return self._begin_training(preparation, now)

    @property
    def _mechanism(self) -> ConsortiumMechanism:
        return ConsortiumMechanism.for_plan(self.plan, parameters=self.layout.size)

    def _step(self, gradient: NDArray[np.float64]) -> NDArray[np.float64]:
        """One step of plain descent, (parameters,): the noised mean gradient, and the plan's penalties, which are public."""
        decay, l1 = (s.numpy().astype(np.float64) for s in strengths(self.plan, self._network()))
        weights = self._server().parameters
        return -self.plan.training.rate * (gradient + decay * weights + l1 * np.sign(weights))

    def _next_round(self, now: float) -> list[Outgoing]:
        if self.state.round >= self.plan.training.rounds and self._privacy.score_epsilon is not None:
            first = self.plan.evaluation.split.validation and self.state.histogram is None
            return self._enter(Phase.HISTOGRAM if first else Phase.SCORES, now)
        return super()._next_round(now)


def aggregator_for(
    plan: Plan,
    roster: Roster,
    trial: Trial,
    *,
    session: str,
    curves: bool = True,
    state: State | None = None,
    key: Ed25519PrivateKey | None = None,
    names: Callable[[], str] = formation_name,
) -> Aggregator:
    """The aggregator that a plan's privacy asks for."""
    if isinstance(plan.privacy, ConsortiumPrivacy):
        return SecureAggregator(plan, roster, trial, session=session, curves=curves, state=state, key=key, names=names)
    return Aggregator(plan, roster, trial, session=session, curves=curves, state=state)
