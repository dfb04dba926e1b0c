"""One training run of a plan as a state table: an event in, requests out. No sockets, no Flower, no clock of its own.

    phase      asks            of whom                 when all have answered
    DESCRIBE   Describe        everybody               HARMONISE where the plan does, SUMMARISE, or OPEN under a private plan
    HARMONISE  Summarise       trainers                SUMMARISE
    SUMMARISE  Summarise       trainers                REDUCE where the plan reduces columns by sums, or OPEN
    REDUCE     Reduce          trainers                REDUCE until its reductions are agreed, then OPEN
    OPEN       Open            everybody               TRAIN
    TRAIN      Train           trainers                VALIDATE every n rounds, TRAIN, or TEST after the last
    VALIDATE   Evaluate        evaluators              TRAIN or TEST
    TEST       Evaluate        evaluators, externals   DONE

Under a private plan there are no statistics of patients, no counts and no losses; without `release_tables` there is neither
VALIDATE nor TEST.

A refusal, or silence beyond the deadline and all attempts, takes a site out of the run and is written down; the run goes on with
the rest. A site whose update is not finite or out of range ends the run, because its next update would be no better.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oncofed_server.agreeing import added, check_description, check_summary, common, scaled
from oncofed_server.reductions import check_reduced, reduce_request, with_reduction
from oncofed_server.rounds import SINGLE_UPDATES, Cost, Tally, chosen
from oncofed_server.run_state import Event, Outgoing, Phase, Received, Roster, Start, State, Tick
from oncofed_shared.determinism import one_thread
from oncofed_shared.errors import ConfigError, RemoteProtocolError
from oncofed_shared.features import Preparation, network_columns, unite
from oncofed_shared.group_lasso import grouped, shrunk
from oncofed_shared.harmonise import harmonises
from oncofed_shared.holders import constant_behind, patients_behind, sent_counts
from oncofed_shared.layers import initial_local, shared_layout
from oncofed_shared.layout import Layout
from oncofed_shared.messages import (
    Columns,
    Describe,
    Description,
    Evaluate,
    Head,
    Open,
    Ready,
    Reduced,
    Refusal,
    Reply,
    Request,
    Summarise,
    Summary,
    Tables,
    Train,
    Trial,
    Update,
)
from oncofed_shared.network import FusionNetwork, build
from oncofed_shared.plan import NoPrivacy, Plan, SitePrivacy
from oncofed_shared.reduction import begin, finished, next_agreed
from oncofed_shared.ring import COUNT_SCALE, decode
from oncofed_shared.scoring import dense, vector_size
from oncofed_strategies import STRATEGIES, ServerState, Sums, advance, control, init

__all__ = ["Aggregator"]

FATAL_CODES = frozenset({"out-of-range", "diverged"})


class Aggregator:
    """One training run.

    Args:
        session: id of the run, new for every run.
        curves: whether validation is tabulated on the way.
        state: where to go on; from the start without it.

    Raises:
        ConfigError: more sites than the plan's ring can sum, or tables of counts beyond the limit.
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
    ) -> None:
        if len(roster.trainers) > plan.training.max_sites:
            raise ConfigError(
                f"{len(roster.trainers)} sites would train, and training.max_sites is {plan.training.max_sites}; raise it, "
                "and lower training.range if their product is then too large"
            )
        vector_size(plan, subgroups=True)
        self.plan = plan
        self.roster = roster
        self.trial = trial
        self.session = session
        self.curves = curves
        self.state = state or State(phase=Phase.DESCRIBE)
        self._layout: Layout | None = None
        self._local: dict[str, NDArray[Any]] = {}
        self._built: FusionNetwork | None = None

    @property
    def finished(self) -> bool:
        """Whether no further event changes anything."""
        return self.state.phase in {Phase.DONE, Phase.FAILED}

    @property
    def private(self) -> bool:
        """Whether nothing but noised updates may tell of training patients."""
        return self.plan.privacy.noise != "none"

    @property
    def tables(self) -> bool:
        """Whether the plan lets sites release tables of counts."""
        privacy = self.plan.privacy
        return isinstance(privacy, NoPrivacy) or (isinstance(privacy, SitePrivacy) and privacy.release_tables)

    @property
    def layout(self) -> Layout:
        """Order of the parameters that are shared; known once the columns are agreed."""
        if self._layout is None:
            if self.state.preparation is None:
                message = "the columns are not agreed yet"
                raise RemoteProtocolError(message)
            network = self._network()
            self._layout = shared_layout(self.plan, network)
            self._local = initial_local(self._layout, network)
        return self._layout

    def _network(self) -> FusionNetwork:
        """A network of the agreed columns with its first values."""
        if self._built is None:
            self._built = build(self.plan, network_columns(self.plan, self._prepared()), seed=self.trial.seed)
        return self._built

    def shared_parameters(self) -> dict[str, NDArray[Any]]:
        """What goes to the sites: the global model without the layers that stay there, in the plan's dtype."""
        return self.layout.arrays(self._server().parameters, self.plan.training.dtype)

    def parameters(self) -> dict[str, NDArray[Any]]:
        """The global model; layers that stay at the sites have their first values in it."""
        return self.shared_parameters() | self._local

    def _server(self) -> ServerState:
        if self.state.server is None:
            message = "there is no model yet"
            raise RemoteProtocolError(message)
        return self.state.server

    def awaits(self, reply: Reply) -> bool:
        """Whether a reply is one that the run still waits for."""
        state, head = self.state, reply.head
        on_time = head.session == self.session and head.step == state.step and head.attempt <= state.attempt
        return not self.finished and on_time and reply.site in state.pending

    def outstanding(self) -> list[Outgoing]:
        """The requests of the step under way to those who have not answered, once more: after `load_state` in place of `Start`."""
        return self._ask(self._waiting())

    def _waiting(self) -> tuple[str, ...]:
        """Those whose answer is awaited, in the roster's order. Each phase asks others, so it is not asked whom this one asked."""
        return tuple(m for m in self.roster.everybody if m in self.state.pending)

    def step(self, event: Event) -> list[Outgoing]:
        """Take one event; return the requests that follow from it."""
        if self.finished:
            return []
        with one_thread():
            return self._take(event)

    def _take(self, event: Event) -> list[Outgoing]:
        match event:
            case Start(now=now):
                # After a restart the sites are given the preparation again; the round under way begins anew.
                state = self.state
                if state.server is None:
                    return self._enter(Phase.DESCRIBE, now)
                begun = state.round if state.phase is Phase.VALIDATE else None
                whole = {r: v for r, v in state.validation.items() if r != begun}
                self.state = replace(state, round=len(state.losses), validation=whole, round_cost=Cost())
                return self._enter(Phase.OPEN, now)
            case Tick(now=now):
                return self._overdue(now) if now >= self.state.deadline else []
            case Received(now=now, reply=reply, cost=cost):
                return self._receive(reply, cost, now)

    # -- asking ---------------------------------------------------------------------------------------------------------------

    def _members(self, phase: Phase) -> tuple[str, ...]:
        roster = self.roster
        names = {
            Phase.DESCRIBE: roster.everybody,
            Phase.HARMONISE: roster.trainers,
            Phase.SUMMARISE: roster.trainers,
            Phase.REDUCE: roster.trainers,
            Phase.OPEN: roster.everybody,
            Phase.TRAIN: roster.trainers,
            Phase.VALIDATE: roster.evaluators,
            Phase.TEST: tuple(dict.fromkeys((*roster.evaluators, *roster.externals))),
        }.get(phase, roster.trainers)
        return tuple(n for n in names if n not in self.state.excluded)

    def _enter(self, phase: Phase, now: float) -> list[Outgoing]:
        members = self._members(phase)
        trainers = [t for t in self.roster.trainers if t not in self.state.excluded]
        if not trainers or not members:
            what = "be asked" if trainers else "train"
            return self._fail(f"no site is left that could {what}: {self._reasons()}")
        if phase is Phase.TRAIN:
            least = self.plan.strategy.minimum_sites
            if len(members) < least:
                why = f"{len(members)} sites are left, and strategy.minimum_sites is {least}"
                return self._fail(f"{why}: {self._reasons()}")
            able = tuple(m for m in members if self._training_patients(m)) or members
            members = members if self.plan.strategy.participation == 1 else able
            members = chosen(self.plan.strategy, self.trial, self.state.round, members)
        self.state = replace(
            self.state,
            phase=phase,
            step=self.state.step + 1,
            attempt=0,
            pending=frozenset(members),
            total=None,
            tally=Tally(),
            deadline=now + 60 * self.plan.training.deadline_minutes,
        )
        return self._ask(members)

    def _reasons(self) -> str:
        return "; ".join(f"{s} ({w})" for s, w in self.state.excluded.items()) or "nobody was asked"

    def _ask(self, members: tuple[str, ...]) -> list[Outgoing]:
        head = Head(
            session=self.session,
            step=self.state.step,
            attempt=self.state.attempt,
            plan_hash=self.plan.hash,
            trial=self.trial,
        )
        make = self._request(head)
        return [Outgoing(site=m, request=make(m)) for m in members]

    def _request(self, head: Head) -> Callable[[str], Request]:
        state = self.state
        if state.phase is Phase.DESCRIBE:
            return lambda _: Describe(head=head)
        if state.phase in {Phase.HARMONISE, Phase.SUMMARISE}:
            summarise = Summarise(head=head, columns=state.columns, arrays=dict(state.harmonisation))
            return lambda _: summarise
        if state.phase is Phase.REDUCE and state.agreed is not None:
            asked = reduce_request(head, self._prepared(), state.agreed)
            return lambda _: asked
        if state.phase is Phase.OPEN:
            preparation = self._prepared()
            opening = Open(head=head, columns=preparation.columns, arrays=preparation.arrays())
            return lambda _: opening
        parameters = self.shared_parameters()
        if state.phase is Phase.TRAIN:
            own = control(self.plan, self._server())
            train = Train(head=head, round=state.round, parameters=parameters, control=own)
            return lambda _: train
        test = state.phase is Phase.TEST

        def evaluate(site: str) -> Request:
            part = "all" if site in self.roster.externals else "test" if test else "validation"
            return Evaluate(head=head, part=part, subgroups=test, parameters=parameters)

        return evaluate

    def _prepared(self) -> Preparation:
        if self.state.preparation is None:
            message = "the sums have not arrived"
            raise RemoteProtocolError(message)
        return self.state.preparation

    # -- answers --------------------------------------------------------------------------------------------------------------

    def _receive(self, reply: Reply, cost: Cost, now: float) -> list[Outgoing]:
        state = self.state
        training = state.phase in {Phase.TRAIN, Phase.KEYS, Phase.OPENING}
        # One replacement for all that a reply changes: with many small sites it is what a reply costs.
        new: dict[str, Any] = {
            "cost": state.cost + cost,
            "round_cost": state.round_cost + cost if training else Cost(),
        }
        if not self.awaits(reply):
            self.state = replace(state, **new)
            return []
        if isinstance(reply, Refusal):
            self.state = replace(state, **new)
            if reply.code in FATAL_CODES:
                return self._fail(
                    f"{reply.site}: {reply.code}: its update is not finite or beyond training.range; "
                    "lower training.rate or raise training.range"
                )
            return self._drop(reply.site, reply.code, now)
        try:
            new |= self._absorbed(reply)
        except RemoteProtocolError as error:
            self.state = replace(state, **new)
            return self._drop(reply.site, str(error), now)
        self.state = replace(state, **new, pending=state.pending - {reply.site})
        return [] if self.state.pending else self._advance(now)

    def _absorbed(self, reply: Reply) -> dict[str, Any]:
        """What an answer changes of the state.

        Raises:
            RemoteProtocolError: it is not what was asked for.
        """
        state = self.state
        match state.phase, reply:
            case Phase.DESCRIBE, Description():
                check_description(self.plan, reply)
                return {"descriptions": {**state.descriptions, reply.site: reply}}
            case ((Phase.HARMONISE | Phase.SUMMARISE), Summary()) | (Phase.REDUCE, Reduced()):
                return self._summed(reply)
            case Phase.OPEN, Ready():
                return {}
            case Phase.TRAIN, Update():
                return self._added(reply)
            case Phase.VALIDATE, Tables():
                before, vector = state.validation.get(state.round), self._counts(reply)
                summed = vector if before is None else before + vector
                return {"validation": {**state.validation, state.round: summed}}
            case Phase.TEST, Tables():
                return {"tables": {**state.tables, reply.site: self._counts(reply)}}
            case _:
                raise RemoteProtocolError(f"answered {type(reply).__name__} in phase {state.phase.value}")

    def _summed(self, reply: Reply) -> dict[str, Any]:
        state = self.state
        match reply:
            case Summary():
                check_summary(self.plan, state.columns, reply, harmonising=state.phase is Phase.HARMONISE)
            case Reduced() if state.agreed is not None:
                check_reduced(self.plan, state.columns, state.agreed, reply)
            case _:
                raise RemoteProtocolError(f"answered {type(reply).__name__} in phase {state.phase.value}")
        return {"sums": {**state.sums, reply.site: reply.sums}}

    def _added(self, reply: Update) -> dict[str, Any]:
        state, size = self.state, self.layout.size
        extra = STRATEGIES[self.plan.strategy.name].facts.extra + sent_counts(self.plan)
        if len(reply.vector) != size + extra + 2:
            raise RemoteProtocolError("its update has another length than the model")
        change, patients = None, 0.0
        if self.plan.privacy.noise in SINGLE_UPDATES:
            own = decode(reply.vector)
            change, patients = own[:size], own[-2] / COUNT_SCALE
        total = reply.vector if state.total is None else state.total + reply.vector
        return {"total": total, "tally": state.tally.add(reply.site, change, patients)}

    def _counts(self, reply: Tables) -> NDArray[np.float64]:
        size = vector_size(self.plan, subgroups=self.state.phase is Phase.TEST)
        if reply.size != size:
            raise RemoteProtocolError("its tables have another size than the plan's")
        return dense(size, reply.cells, reply.counts)

    def _advance(self, now: float) -> list[Outgoing]:
        follows = {
            Phase.DESCRIBE: self._summarise,
            Phase.HARMONISE: self._harmonised,
            Phase.SUMMARISE: self._agree,
            Phase.REDUCE: self._reduced,
            Phase.OPEN: self._after_round,
            Phase.TRAIN: self._finish_round,
            Phase.VALIDATE: self._next_round,
        }.get(self.state.phase)
        if follows is not None:
            return follows(now)
        self.state = replace(self.state, phase=Phase.DONE)
        return []

    def _columns(self) -> Columns:
        return unite(self.plan, [self.state.descriptions[t].columns for t in self._members(Phase.SUMMARISE)])

    def _summarise(self, now: float) -> list[Outgoing]:
        columns = self._columns()
        if self._members(Phase.SUMMARISE) and not any(columns.values()):
            return self._fail("no site has a single column that the plan asks for")
        self.state = replace(self.state, columns=columns, sums={}, harmonisation={}, behind=frozenset())
        # Under a private plan there is nothing to sum: the preparation follows from its constants.
        if self.private and any(columns.values()):
            return self._agree(now)
        return self._enter(Phase.HARMONISE if harmonises(self.plan, columns) else Phase.SUMMARISE, now)

    def _harmonised(self, now: float) -> list[Outgoing]:
        state, sites, columns = self.state, self._members(Phase.HARMONISE), self._columns()
        if not sites or columns != state.columns:
            return self._summarise(now)
        fixed = common(self.plan, columns, added(state.sums, sites))
        self.state = replace(state, harmonisation=fixed, behind=frozenset(sites), sums={})
        return self._enter(Phase.SUMMARISE, now)

    def _agree(self, now: float) -> list[Outgoing]:
        state, sites, columns = self.state, self._members(Phase.SUMMARISE), self._columns()
        if not sites or columns != state.columns or (state.harmonisation and state.behind != set(sites)):
            # Who left took columns away that nobody else has, or has a share in the harmonisation: the others are asked anew.
            return self._summarise(now)
        sums = None if self.private else added(state.sums, sites)
        preparation = scaled(self.plan, columns, sums, state.harmonisation)
        agreed = begin(self.plan, columns, self.trial.seed)
        if finished(self.plan, columns, agreed):
            return self._begin_training(preparation, now)
        self.state = replace(state, preparation=preparation, agreed=agreed, behind=frozenset(sites), sums={})
        return self._enter(Phase.REDUCE, now)

    def _reduced(self, now: float) -> list[Outgoing]:
        """All sums of an exchange about the plan's reductions are there: agree, and ask for the next one."""
        state, sites = self.state, self._members(Phase.REDUCE)
        if state.agreed is None or state.behind != set(sites):
            # Somebody left: what he had a share in is agreed anew, without him.
            return self._summarise(now)
        try:
            agreed = next_agreed(self.plan, state.columns, state.agreed, added(state.sums, sites))
        except RemoteProtocolError as error:
            return self._fail(str(error))
        if finished(self.plan, state.columns, agreed):
            return self._begin_training(with_reduction(self._prepared(), agreed), now)
        self.state = replace(state, agreed=agreed, sums={})
        return self._enter(Phase.REDUCE, now)

    def _begin_training(self, preparation: Preparation, now: float) -> list[Outgoing]:
        state, columns = self.state, network_columns(self.plan, preparation)
        if not any(columns.values()):
            return self._fail("the plan's reductions leave nothing for the network to read")
        try:
            network = self._built = build(self.plan, columns, seed=self.trial.seed)
            self._layout = shared_layout(self.plan, network)
        except ConfigError as error:
            return self._fail(str(error))
        self._local = initial_local(self._layout, network)
        first = self._layout.flatten({n: p.detach().numpy() for n, p in network.named_parameters()})
        self.state = replace(state, preparation=preparation, server=init(first), sums={}, agreed=None)
        return self._enter(Phase.OPEN, now)

    def _next_round(self, now: float) -> list[Outgoing]:
        if self.state.round >= self.plan.training.rounds:
            if self.tables:
                return self._enter(Phase.TEST, now)
            self.state = replace(self.state, phase=Phase.DONE)
            return []
        self.state = replace(self.state, round=self.state.round + 1)
        return self._enter(Phase.TRAIN, now)

    def _finish_round(self, now: float) -> list[Outgoing]:
        state = self.state
        if state.total is None or state.server is None or len(state.tally.sites) < self.plan.strategy.minimum_sites:
            # Somebody left in the course of the round; it is repeated with those who are still there.
            return self._enter(Phase.TRAIN, now)
        total = decode(state.total)
        patients, loss = total[-2:] / COUNT_SCALE
        if patients < 1:
            return self._fail("no site has a training patient")
        extra = total[self.layout.size : -2]
        sums = Sums(
            change=total[: self.layout.size],
            extra=extra,
            patients=patients,
            population=self._population(patients),
            behind=self._behind(patients, extra / COUNT_SCALE),
        )
        return self._round_done(sums, float(loss / patients), now)

    def _behind(self, patients: float, counts: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """Patients behind each shared coordinate; None where they are all behind every one.

        Args:
            counts: of those who have each modality; under privacy the plan says their shares.
        """
        if self.plan.strategy.average == "patients":
            return None
        network = self._network()
        if sent_counts(self.plan):
            whole = patients_behind(network, patients, counts)
        else:
            whole = constant_behind(network, self.plan, patients=patients)
        return whole[self.layout.places(Layout.of(network))]

    def _round_done(self, sums: Sums, loss: float, now: float) -> list[Outgoing]:
        """Take the rule's step, write the round down, and go on.

        Args:
            loss: mean over the patients; 0 where nobody says it.
        """
        state = self.state
        if state.server is None:
            message = "there is no model yet"
            raise RemoteProtocolError(message)
        progress = (state.round - 1) / self.plan.training.rounds
        server = advance(self.plan, state.server, sums, progress=progress)
        if grouped(self.plan):
            made = shrunk(self.plan, self._prepared(), server.parameters, seed=self.trial.seed, progress=progress)
            server = replace(server, parameters=made)
        if not np.all(np.isfinite(server.parameters)):
            return self._fail("the model diverged; lower training.rate or strategy.rate")
        self.state = replace(
            state,
            server=server,
            total=None,
            divergence=(*state.divergence, state.tally.divergence(sums.change, sums.patients)),
            participants=(
                (*state.participants, tuple(sorted(state.tally.sites))) if self.plan.strategy.participation < 1 else ()
            ),
            losses=(*state.losses, loss),
            costs=(*state.costs, state.round_cost),
            round_cost=Cost(),
        )
        return self._after_round(now)

    def _after_round(self, now: float) -> list[Outgoing]:
        """Validate if it is time and was not done before a restart; then the next round."""
        training, done = self.plan.training, self.state.round
        if self.private:
            # Nobody says how many patients he has; whether there are such patients is a constant of the plan.
            has_validation = self.tables and bool(self.plan.evaluation.split.validation)
        else:
            counts = (self.state.descriptions[s].parts for s in self._members(Phase.VALIDATE))
            has_validation = any(parts.get("validation", 0) for parts in counts)
        due = done > 0 and (done % training.validate_every == 0 or done == training.rounds)
        if self.curves and has_validation and due and done not in self.state.validation:
            return self._enter(Phase.VALIDATE, now)
        return self._next_round(now)

    def _population(self, patients: float) -> float:
        """Training patients of all trainers, as they described themselves; never fewer than have just answered."""
        trainers = [t for t in self.roster.trainers if t in self.state.descriptions]
        return max(float(sum(self._training_patients(t) for t in trainers)), patients)

    def _training_patients(self, site: str) -> int:
        """How many a site has; under a private plan the public number, for the true one is never sent."""
        privacy = self.plan.privacy
        if not isinstance(privacy, NoPrivacy):
            return privacy.patients.get(site, 0)
        return self.state.descriptions[site].parts["train"]

    # -- going on without a site ------------------------------------------------------------------------------------------------

    def _overdue(self, now: float) -> list[Outgoing]:
        waiting = self._waiting()
        if self.state.attempt + 1 < self.plan.training.attempts:
            self.state = replace(
                self.state,
                attempt=self.state.attempt + 1,
                deadline=now + 60 * self.plan.training.deadline_minutes,
            )
            return self._ask(waiting)
        requests: list[Outgoing] = []
        for site in waiting:
            requests = self._drop(site, "no answer before the deadline", now)
        return requests

    def _drop(self, site: str, why: str, now: float) -> list[Outgoing]:
        self.state = replace(
            self.state,
            excluded={**self.state.excluded, site: why},
            pending=self.state.pending - {site},
        )
        left = sum(t not in self.state.excluded for t in self.roster.trainers)
        if left < self.roster.quorum:
            return self._fail(f"{left} sites are left, and the quorum is {self.roster.quorum}: {self._reasons()}")
        return [] if self.state.pending else self._advance(now)

    def _fail(self, why: str) -> list[Outgoing]:
        self.state = replace(self.state, phase=Phase.FAILED, why=why, pending=frozenset())
        return []
