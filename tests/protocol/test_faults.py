"""A run under faults: it ends by itself, and its model is that of a calm run of those who stayed.

Real sites, the real aggregator, real bytes, a fake clock. A scenario is a list of operations: what goes wrong, where and when.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oncofed_client.settings import load_settings
from oncofed_client.site import Site
from oncofed_client.source import FolderSource
from oncofed_server.aggregator import Aggregator
from oncofed_server.run_state import Outgoing, Phase, Received, Roster, Start, State, Tick
from oncofed_server.snapshot import load_state, save_state
from oncofed_shared.errors import ConfigError
from oncofed_shared.messages import Ready, Refusal, Reply, Summary, Tables, Trial, Update, from_bytes, to_bytes
from oncofed_shared.plan import Plan
from oncofed_simulations.loopback import FakeClock

MakePlan = Callable[..., Plan]
TRIAL = Trial(seed=3)
NAMES = ("site-1", "site-2", "site-3", "site-4")
ASKING = [Phase.DESCRIBE, Phase.SUMMARISE, Phase.OPEN, Phase.TRAIN, Phase.VALIDATE, Phase.TEST]


# -- the world --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class On:
    """When `site` is asked in `phase` (in any round, or in this one), its exchange goes wrong, `times` times.

    what: lose (the request or the reply), twice (the reply comes two times), late (it comes after the deadline), refuse,
    wrong type, wrong length.
    """

    phase: Phase
    site: str
    what: str
    round: int | None = None
    times: int = 1


def always(phase: Phase, site: str, what: str = "lose", number: int | None = None) -> On:
    return On(phase, site, what, number, times=99)


def spoiled(reply: Reply, what: str) -> Reply:
    """Another answer than the one that was asked for."""
    if what == "refuse":
        return Refusal(head=reply.head, site=reply.site, code="data", text="")
    if what == "wrong length":
        match reply:
            case Summary():
                return replace(reply, sums=reply.sums[:-1])
            case Update():
                return replace(reply, vector=reply.vector[:-1])
            case Tables():
                return replace(reply, size=reply.size - 1)
    if isinstance(reply, Ready):
        return Summary(head=reply.head, site=reply.site, sums=np.empty(0))
    return Ready(head=reply.head, site=reply.site)


@dataclass
class World:
    """An aggregator, its sites, and what is under way between them."""

    aggregator: Aggregator
    sites: dict[str, Site]
    operations: Sequence[On] = ()
    clock: FakeClock = field(default_factory=FakeClock)
    queue: list[Outgoing] = field(default_factory=list)
    late: list[Reply] = field(default_factory=list)
    happened: Counter[On] = field(default_factory=Counter)
    left: dict[str, tuple[Phase, int]] = field(default_factory=dict)
    events: int = 0

    def begin(self) -> World:
        self.queue = self.aggregator.step(Start(now=self.clock.now))
        return self

    def tell(self, event: Received | Tick) -> None:
        """Give the aggregator an event; remember when whom it left out."""
        self.events += 1
        when = (self.aggregator.state.phase, self.aggregator.state.round)
        self.queue += self.aggregator.step(event)
        for site in self.aggregator.state.excluded:
            self.left.setdefault(site, when)

    def reply(self, outgoing: Outgoing) -> Reply:
        request = from_bytes(to_bytes(outgoing.request))
        return from_bytes(to_bytes(self.sites[outgoing.site].handle(request)))  # type: ignore[arg-type, return-value]

    def receive(self, reply: Reply) -> None:
        self.tell(Received(now=self.clock.now, reply=reply))

    def operation(self, site: str) -> On | None:
        state = self.aggregator.state
        for operation in self.operations:
            here = operation.phase is state.phase and operation.round in {None, state.round}
            if here and operation.site == site and self.happened[operation] < operation.times:
                self.happened[operation] += 1
                return operation
        return None

    def exchange(self, index: int = 0) -> None:
        """One request, its answer, and what goes wrong with it."""
        outgoing = self.queue.pop(index)
        operation = self.operation(outgoing.site)
        what = operation.what if operation else ""
        if what == "lose":
            return
        reply = self.reply(outgoing)
        if what == "late":
            self.late.append(reply)
            return
        if what not in {"", "twice"}:
            reply = spoiled(reply, what)
        self.receive(reply)
        if what == "twice":
            self.receive(reply)

    def wait(self) -> None:
        """Let the deadline pass; what was late arrives after it."""
        self.clock.advance(max(self.aggregator.state.deadline - self.clock.now, 0))
        self.tell(Tick(now=self.clock.now))
        late, self.late = self.late, []
        for reply in late:
            self.receive(reply)

    def finish(self, choose: Callable[[int], int] = lambda n: 0) -> World:
        """Go on until the aggregator has finished, by itself."""
        while not self.aggregator.finished:
            assert self.events < 2000, "the run does not end"
            if self.queue:
                self.exchange(choose(len(self.queue)))
            else:
                self.wait()
        return self

    @property
    def state(self) -> State:
        return self.aggregator.state

    @property
    def model(self) -> bytes:
        assert self.state.server is not None
        assert np.all(np.isfinite(self.state.server.parameters))
        return self.state.server.parameters.tobytes()


@pytest.fixture(scope="module")
def sources(hospitals: Path) -> dict[str, FolderSource]:
    return {n: FolderSource(hospitals / n, load_settings(hospitals / n)) for n in NAMES}


@pytest.fixture(scope="module")
def plan(make_plan: MakePlan) -> Plan:
    return make_plan(model__layers=0, training__local_steps=2, strategy__name="fedadam", strategy__rate=0.05)


@pytest.fixture(scope="module")
def world(sources: dict[str, FolderSource], plan: Plan) -> Callable[..., World]:
    def make(
        operations: Sequence[On] = (),
        names: Sequence[str] = NAMES,
        externals: Sequence[str] = (),
        state: State | None = None,
        plan: Plan = plan,
    ) -> World:
        roster = Roster(trainers=tuple(names), evaluators=tuple(names), externals=tuple(externals))
        sites = {n: Site(sources[n], {plan.hash: plan}, minimum_cohort=1) for n in NAMES}
        aggregator = Aggregator(plan, roster, TRIAL, session="s", state=state)
        return World(aggregator, sites, operations)

    return make


@pytest.fixture(scope="module")
def calm(world: Callable[..., World]) -> World:
    done: World = world().begin().finish()
    assert done.state.phase is Phase.DONE
    assert not done.state.excluded
    return done


def same_numbers(one: State, two: State) -> None:
    """Everything that a run says is equal bit for bit."""
    assert one.losses == two.losses
    for name in ("validation", "tables"):
        mine, theirs = getattr(one, name), getattr(two, name)
        assert sorted(mine) == sorted(theirs)
        for key in mine:
            np.testing.assert_array_equal(mine[key], theirs[key])


# -- a calm run -------------------------------------------------------------------------------------------------------------


def test_a_calm_run_learns_validates_and_tests(calm: World, plan: Plan) -> None:
    state = calm.state
    assert len(state.losses) == plan.training.rounds == 3
    assert state.losses[-1] < state.losses[0]
    # Every second round, and the last.
    assert sorted(state.validation) == [2, 3]
    assert sorted(state.tables) == list(NAMES)
    assert calm.clock.now == 0


@given(st.randoms(use_true_random=False))
@settings(max_examples=10)
def test_the_order_of_replies_does_not_change_a_bit(world: Callable[..., World], calm: World, random: Any) -> None:
    other = world().begin().finish(random.randrange)
    assert other.model == calm.model
    same_numbers(other.state, calm.state)


def test_externals_never_train_and_are_scored_with_all_their_patients(
    world: Callable[..., World], sources: dict[str, FolderSource], plan: Plan
) -> None:
    own, apart = NAMES[:3], NAMES[3:]
    seen = world(names=own, externals=apart).begin().finish()
    assert seen.model == world(names=own).begin().finish().model
    everybody = len(sources[apart[0]].cohort(plan).patients)
    assert seen.state.descriptions[apart[0]].parts["all"] == everybody
    assert seen.state.tables[apart[0]].sum() > seen.state.descriptions[apart[0]].parts["test"]


# -- what does no harm ------------------------------------------------------------------------------------------------------

HARMLESS = {
    f"{what} in {phase.value}": [On(phase, "site-2", what)] for phase in ASKING for what in ("lose", "twice", "late")
} | {
    "everything lost once": [On(p, s, "lose") for p in ASKING for s in NAMES],
    "everything twice": [always(p, s, "twice") for p in ASKING for s in NAMES],
    "everything late once": [On(p, s, "late") for p in ASKING for s in NAMES],
    "two sites, two rounds": [
        On(Phase.TRAIN, "site-1", "lose", 1),
        On(Phase.TRAIN, "site-3", "late", 1),
        On(Phase.TRAIN, "site-3", "twice", 2),
        On(Phase.TRAIN, "site-4", "lose", 3),
    ],
}


@pytest.mark.parametrize("operations", HARMLESS.values(), ids=HARMLESS)
def test_what_is_made_good_in_time_changes_nothing(
    world: Callable[..., World], calm: World, operations: list[On]
) -> None:
    disturbed = world(operations).begin().finish()
    assert disturbed.state.phase is Phase.DONE
    assert not disturbed.state.excluded
    assert disturbed.model == calm.model
    same_numbers(disturbed.state, calm.state)


def test_replies_of_other_sessions_steps_and_sites_are_ignored(world: Callable[..., World], calm: World) -> None:
    disturbed = world().begin()
    while not disturbed.aggregator.finished:
        outgoing = disturbed.queue[0]
        reply = disturbed.reply(outgoing)
        before = disturbed.aggregator.state
        for change in ({"session": "t"}, {"step": reply.head.step - 1}, {"step": reply.head.step + 1}, {"attempt": 1}):
            disturbed.receive(replace(reply, head=replace(reply.head, **change)))
        disturbed.receive(replace(reply, site="somebody"))
        assert replace(disturbed.state, cost=before.cost, round_cost=before.round_cost) == before
        disturbed.exchange()
    assert disturbed.model == calm.model


# -- going on without a site ------------------------------------------------------------------------------------------------

HARMFUL = {
    f"{what} in {phase.value}": (phase, what)
    for phase in ASKING
    for what in ("lose", "refuse", "wrong type", "wrong length")
}


@pytest.mark.parametrize(("phase", "what"), HARMFUL.values(), ids=HARMFUL)
def test_a_site_that_fails_is_left_out_and_the_others_go_on(
    world: Callable[..., World], calm: World, phase: Phase, what: str
) -> None:
    site = "site-1" if what in {"lose", "wrong length"} else "site-3"
    disturbed = world([always(phase, site, what)]).begin().finish()
    state = disturbed.state
    assert state.phase is Phase.DONE
    assert list(state.excluded) == [site]
    reason = {"lose": "no answer before the deadline", "refuse": "data"}
    assert state.excluded[site] == reason.get(what, state.excluded[site])
    assert sorted(state.tables) == [n for n in NAMES if n != site]
    without = world(names=[n for n in NAMES if n != site])
    if phase in {Phase.DESCRIBE, Phase.SUMMARISE}:
        # As if it had never been there.
        other = without.begin().finish()
        assert disturbed.model == other.model
        same_numbers(state, other.state)
    elif phase in {Phase.VALIDATE, Phase.TEST}:
        # It failed after the last round of training that it was needed for, or its absence shows from then on.
        assert (disturbed.model == calm.model) == (phase is Phase.TEST)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_site_that_leaves_in_a_round_is_in_the_rounds_before_and_not_after(
    world: Callable[..., World], number: int
) -> None:
    disturbed = world([always(Phase.TRAIN, "site-2", "refuse", number)]).begin().finish()
    # The same: all sites up to this round; from its beginning on a run of the others alone.
    before = world().begin()
    while (before.state.phase, before.state.round) != (Phase.TRAIN, number):
        before.exchange()
    rest = world(names=[n for n in NAMES if n != "site-2"], state=before.state).begin().finish()
    assert disturbed.model == rest.model
    assert disturbed.state.losses == rest.state.losses


@pytest.mark.parametrize("order", [0, -1])
def test_columns_that_only_the_leaving_site_has_leave_with_it(world: Callable[..., World], order: int) -> None:
    # site-4 has no genomics: with site-1 goes a whole modality.
    names = ["site-1", "site-4"]
    disturbed = world([always(Phase.SUMMARISE, "site-1", "refuse")], names=names).begin()
    disturbed.finish(lambda n: n - 1 if order else 0)
    assert disturbed.state.preparation is not None
    assert disturbed.state.preparation.columns["mutations"] == ()
    other = world(names=["site-4"]).begin().finish()
    assert disturbed.model == other.model
    same_numbers(disturbed.state, other.state)


# -- when nobody is left ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["lose", "refuse", "wrong length"])
@pytest.mark.parametrize("phase", ASKING)
def test_when_all_sites_are_gone_the_run_ends_and_says_why(
    world: Callable[..., World], calm: World, phase: Phase, what: str
) -> None:
    ended = world([always(phase, n, what) for n in NAMES]).begin().finish()
    assert sorted(ended.state.excluded) == list(NAMES)
    if phase is Phase.TEST:
        # There is a model; only nobody scored it.
        assert ended.state.phase is Phase.DONE
        assert ended.model == calm.model
        assert ended.state.tables == {}
        return
    assert ended.state.phase is Phase.FAILED
    assert all(n in ended.state.why for n in NAMES) or "no site answered" in ended.state.why
    assert ended.aggregator.step(Tick(now=1e9)) == []


def test_silence_lasts_all_attempts_and_no_longer(world: Callable[..., World], plan: Plan) -> None:
    silent = world([always(Phase.DESCRIBE, n) for n in NAMES]).begin().finish()
    training = plan.training
    assert silent.clock.now == 60 * training.deadline_minutes * training.attempts
    assert silent.events == training.attempts


def test_before_the_deadline_time_changes_nothing(world: Callable[..., World]) -> None:
    waiting = world().begin()
    before = waiting.state
    assert waiting.aggregator.step(Tick(now=before.deadline - 0.001)) == []
    assert waiting.state == before


def test_an_update_out_of_range_ends_the_run_with_advice(make_plan: MakePlan, world: Callable[..., World]) -> None:
    ended = world(plan=make_plan(training__range=1e-6)).begin().finish()
    assert ended.state.phase is Phase.FAILED
    assert "site-1: out-of-range" in ended.state.why
    assert "training.range" in ended.state.why


def test_a_site_below_its_minimum_says_so_and_the_run_goes_on(world: Callable[..., World]) -> None:
    small = world()
    small.sites["site-4"].minimum_cohort = 10_000
    small.begin().finish()
    assert small.state.excluded == {"site-4": "cohort-too-small"}
    assert small.model == world(names=NAMES[:3]).begin().finish().model


def test_no_column_at_all_is_said_before_anything_is_asked(make_plan: MakePlan, world: Callable[..., World]) -> None:
    content = make_plan().model_dump(mode="json")
    nothing = {"shape": {"table": "radiomics", "patterns": ["nowhere_*"]}}
    tasks = {"survival": content["tasks"]["survival"]}
    ended = world(plan=make_plan(modalities=nothing, tasks=tasks)).begin().finish()
    assert ended.state.phase is Phase.FAILED


def test_more_sites_than_the_ring_can_sum_are_refused(make_plan: MakePlan, world: Callable[..., World]) -> None:
    with pytest.raises(ConfigError, match=r"training\.max_sites"):
        world(plan=make_plan(training__max_sites=3))


def test_tables_beyond_the_limit_are_refused_before_training(make_plan: MakePlan, world: Callable[..., World]) -> None:
    with pytest.raises(ConfigError, match="days_per_bin"):
        world(plan=make_plan(evaluation__score_bins=4096, evaluation__days_per_bin=1))


# -- restarts ---------------------------------------------------------------------------------------------------------------


def restarted(running: World, world: Callable[..., World], path: Path, plan: Plan) -> World:
    """The aggregator is killed, and what was under way is lost; another goes on from the file."""
    save_state(path, running.state)
    other: World = world(running.operations, state=load_state(path, plan))
    other.happened, other.events, other.left = running.happened, running.events, running.left
    return other.begin()


@pytest.mark.parametrize("strategy", ["fedavg", "fedavgm", "fedadam", "fedadagrad"])
def test_a_run_goes_on_from_any_point_to_the_same_bytes(
    world: Callable[..., World], make_plan: MakePlan, tmp_path: Path, strategy: str
) -> None:
    plan = make_plan(model__layers=0, strategy__name=strategy, strategy__rate=0.05)
    whole = world(plan=plan).begin().finish()
    every = 2 if strategy == "fedadam" else 9
    for at in range(0, whole.events, every):
        running = world(plan=plan).begin()
        while running.events < at:
            running.exchange()
        save_state(tmp_path / "run", running.state)
        resumed = world(plan=plan, state=load_state(tmp_path / "run", plan)).begin().finish()
        assert resumed.model == whole.model
        same_numbers(resumed.state, whole.state)


def test_a_finished_run_comes_back_finished(
    calm: World, plan: Plan, world: Callable[..., World], tmp_path: Path
) -> None:
    save_state(tmp_path / "run", calm.state)
    back = world(state=load_state(tmp_path / "run", plan)).begin()
    assert back.aggregator.finished
    assert back.model == calm.model
    same_numbers(back.state, calm.state)
    assert back.state.descriptions == calm.state.descriptions
    assert back.aggregator.parameters().keys() == calm.aggregator.parameters().keys()


# -- anything that may happen -----------------------------------------------------------------------------------------------

STEPS = st.one_of(
    st.tuples(st.just("exchange"), st.integers(0, 3)),
    st.tuples(st.just("exchange"), st.integers(0, 3)),
    st.tuples(st.just("lose"), st.integers(0, 3)),
    st.tuples(st.just("hold"), st.integers(0, 3)),
    st.tuples(st.just("repeat"), st.integers(0, 3)),
    st.tuples(st.sampled_from(["wait", "restart"]), st.just(0)),
)


class Chaos:
    """Takes steps that hypothesis chooses, then lets the run end."""

    def __init__(self, world: Callable[..., World], plan: Plan, path: Path) -> None:
        self.make, self.plan, self.path = world, plan, path
        self.world: World = world().begin()
        self.seen: list[Reply] = []

    def take(self, what: str, index: int) -> None:
        here = self.world
        if here.aggregator.finished:
            return
        if what == "restart":
            self.world = restarted(here, self.make, self.path, self.plan)
            self.seen.clear()
        elif what == "wait":
            here.wait()
        elif what == "repeat" and self.seen:
            here.receive(self.seen[-1 - index % len(self.seen)])
        elif here.queue:
            outgoing = here.queue.pop(index % len(here.queue))
            if what == "lose":
                return
            reply = here.reply(outgoing)
            self.seen.append(reply)
            if what == "hold":
                here.late.append(reply)
            else:
                here.receive(reply)


@given(st.lists(STEPS, max_size=60))
@settings(max_examples=25)
def test_whatever_happens_the_run_ends_with_the_model_of_those_who_stayed(
    world: Callable[..., World], calm: World, plan: Plan, tmp_path_factory: pytest.TempPathFactory, steps: list[Any]
) -> None:
    chaos = Chaos(world, plan, tmp_path_factory.mktemp("chaos") / "run")
    for what, index in steps:
        chaos.take(what, index)
    ended = chaos.world.finish()
    if not ended.state.excluded:
        assert ended.state.phase is Phase.DONE
        assert ended.model == calm.model
        same_numbers(ended.state, calm.state)
        return
    assert set(ended.state.excluded.values()) == {"no answer before the deadline"}
    # The same sites refuse at the same places of an otherwise calm run.
    operations = [On(phase, site, "refuse", number, 1) for site, (phase, number) in ended.left.items()]
    other = world(operations).begin().finish()
    assert ended.state.phase is other.state.phase
    assert sorted(ended.state.excluded) == sorted(other.state.excluded)
    if ended.state.phase is Phase.DONE:
        assert ended.model == other.model
        assert ended.state.losses == other.state.losses
