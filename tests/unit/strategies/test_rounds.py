"""Who is asked, what is repeated after a crash, and how far sites were apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oncofed_server.rounds import Tally, chosen
from oncofed_shared.errors import ConfigError, RemoteProtocolError
from oncofed_shared.messages import Refusal, Train, Trial, Update, from_bytes
from oncofed_shared.plan import Plan, Strategy, parse
from oncofed_shared.rules import RULES
from oncofed_simulations import consortium as consortium_module
from oncofed_simulations.consortium import Run

NAMES = tuple(f"site-{i}" for i in range(10))
TRIAL = Trial(seed=1)


class Killed(Exception):
    """Stands for SIGKILL: nothing catches it."""


# -- participation ----------------------------------------------------------------------------------------------------------


@given(st.floats(0.01, 1), st.integers(1, 12), st.integers(1, 500), st.integers(1, 10))
@settings(max_examples=50)
def test_a_choice_is_large_enough_and_depends_on_its_arguments_alone(
    share: float, least: int, number: int, count: int
) -> None:
    rule = Strategy(participation=share, minimum_sites=least)
    made = chosen(rule, TRIAL, number, NAMES[:count])
    assert len(made) >= min(count, max(least, share * count - 1e-6))
    assert len(made) <= min(count, max(least, share * count + 1))
    assert chosen(rule, TRIAL, number, NAMES[:count]) == made
    assert list(made) == [n for n in NAMES if n in made]


def test_a_known_choice() -> None:
    """The same on every machine and with every version of whatever makes random numbers."""
    rule = Strategy(participation=0.3)
    assert chosen(rule, TRIAL, 1, NAMES) == ("site-0", "site-1", "site-4")
    assert chosen(rule, TRIAL, 2, NAMES) == ("site-1", "site-2", "site-3")


def test_everybody_has_his_turn_and_who_leaves_takes_nobodys_place() -> None:
    rule = Strategy(participation=0.3)
    turns = Counter(n for r in range(1, 1001) for n in chosen(rule, TRIAL, r, NAMES))
    # 300 expected, standard deviation 14.5.
    assert all(230 < turns[n] < 370 for n in NAMES)
    for number in range(1, 30):
        before = set(chosen(rule, TRIAL, number, NAMES))
        after = set(chosen(rule, TRIAL, number, NAMES[1:]))
        assert before - {NAMES[0]} <= after


def test_a_run_records_whom_it_asked_and_asks_nobody_else(small: Callable[..., Any]) -> None:
    asked: list[tuple[int, str]] = []

    def tap(direction: str, site: str, content: bytes) -> None:
        message = from_bytes(content)
        if direction == "down" and isinstance(message, Train):
            asked.append((message.round, site))

    world = small(strategy={"participation": 0.5, "minimum_sites": 2}, training__rounds=6)
    run = world.run(tap=tap)
    assert [len(names) for names in run.state.participants] == [2] * 6
    assert set(asked) == {(r, n) for r, names in enumerate(run.state.participants, 1) for n in names}
    assert len(asked) == 12
    assert len(set(run.state.participants)) > 1
    again = small(strategy={"participation": 0.5, "minimum_sites": 2}, training__rounds=6).run()
    assert again.state.participants == run.state.participants


def test_with_too_few_sites_a_run_ends_and_says_so(small: Callable[..., Any]) -> None:
    with pytest.raises(RemoteProtocolError, match=r"3 sites are left, and strategy.minimum_sites is 4"):
        small(strategy={"minimum_sites": 4}).run()


def test_a_round_in_which_somebody_leaves_is_repeated_with_the_rest(small: Callable[..., Any]) -> None:
    """Who answered the first time is asked again and answers the same, whatever he has kept in between."""
    world = small(strategy={"name": "scaffold", "participation": 0.5, "minimum_sites": 2}, training__rounds=5)
    calm = small(strategy={"name": "scaffold", "participation": 0.5, "minimum_sites": 2}, training__rounds=5).run()
    stays, who = calm.state.participants[2]
    answers: list[bytes] = []

    def tap(_: str, site: str, content: bytes) -> None:
        message = from_bytes(content)
        if site == stays and isinstance(message, Train) and message.round == 3:
            answers.append(b"")
        elif site == stays and isinstance(message, Update) and answers and not answers[-1]:
            answers[-1] = message.vector.tobytes()

    group = world.consortium(tap=tap)
    answer = group.sites[who].handle

    def leaves(request: Any) -> Any:
        if isinstance(request, Train) and request.round == 3:
            return Refusal(head=request.head, site=who, code="cohort-too-small", text="")
        return answer(request)

    group.sites[who].handle = leaves  # type: ignore[method-assign]
    run = group.federated(Trial(seed=3))
    assert run.state.excluded == {who: "cohort-too-small"}
    assert all(len(names) == 2 for names in run.state.participants)
    assert stays in run.state.participants[2]
    assert all(who not in names for names in run.state.participants[2:])
    assert len(answers) == 2
    assert answers[0] == answers[1] != b""
    assert len(run.state.losses) == 5


# -- crashes ----------------------------------------------------------------------------------------------------------------

EVERY: dict[str, dict[str, Any]] = {name: {"strategy__name": name} for name in RULES} | {
    "local layers": {"strategy": {"name": "fedadam", "rate": 0.1, "local": ["baselines*"]}},
    "scaffold, some sites": {"strategy": {"name": "scaffold", "participation": 0.5}},
    "some sites": {"strategy": {"participation": 0.5, "minimum_sites": 2}},
}


def ended(run: Run, world: Any) -> tuple[Any, ...]:
    """Everything that a resumed run must have as an undisturbed one has it."""
    assert run.state.server is not None
    memory = {k: v.tobytes() for k, v in sorted(run.state.server.memory.items())}
    files = sorted(world.root.glob("*/sessions/*.memory.safetensors"))
    return (
        run.state.server.parameters.tobytes(),
        memory,
        run.state.losses,
        run.state.divergence,
        run.state.participants,
        {str(f.relative_to(world.root)): f.read_bytes() for f in files},
        {s: run.tables[s].tobytes() for s in run.tables},
    )


@pytest.mark.parametrize("eager", [True, False], ids=["snapshots", "hardly any snapshot"])
@pytest.mark.parametrize("changes", EVERY.values(), ids=EVERY)
def test_killed_and_resumed_is_as_if_nothing_had_been(
    small: Callable[..., Any], changes: dict[str, Any], eager: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed twice at a message in mid-round, begun again by new processes from what is on disk: the same bytes."""
    monkeypatch.setattr(consortium_module, "SNAPSHOT_SECONDS", 0.0 if eager else 1e9)
    options = {"training__rounds": 5, "training__batch": 8, "training__dtype": "float32", **changes}
    calm = small(**options)
    expected = ended(calm.run(), calm)
    world = small(**options)

    def killer(count: int) -> Callable[..., None]:
        left = [count]

        def tap(*_: Any) -> None:
            left[0] -= 1
            if left[0] == 0:
                raise Killed

        return tap

    # 18 messages until everybody is open, then at most 6 a round: in the third round, then in the second one from there.
    for count in (33, 14):
        with pytest.raises(Killed):
            world.run(tap=killer(count))
    assert ended(world.run(), world) == expected


def test_a_site_refuses_to_go_further_back_than_it_remembers(small: Callable[..., Any]) -> None:
    world = small(strategy__name="scaffold", training__rounds=5)
    asked: dict[int, bytes] = {}
    answers: dict[int, bytes] = {}

    def tap(direction: str, site: str, content: bytes) -> None:
        message = from_bytes(content)
        if site == "a" and isinstance(message, Train):
            asked[message.round] = content
        elif site == "a" and direction == "up" and hasattr(message, "vector"):
            answers[len(asked)] = message.vector.tobytes()

    group = world.consortium(tap=tap)
    group.federated(TRIAL)

    def ask(site: Any, number: int) -> Any:
        return site.handle(from_bytes(asked[number]))

    for site in (group.sites["a"], world.consortium().sites["a"]):
        assert ask(site, 5).vector.tobytes() == answers[5]
        reply = ask(site, 3)
        assert isinstance(reply, Refusal)
        assert reply.code == "state-ahead"
    # A run that begins anew begins with nothing.
    assert ask(site, 1).vector.tobytes() == answers[1]


def test_a_sites_memory_is_its_own(small: Callable[..., Any]) -> None:
    world = small(strategy__name="scaffold")
    world.run()
    files = list(world.root.glob("*/sessions/*.memory.safetensors"))
    assert len(files) == 3
    assert all(f.stat().st_mode & 0o077 == 0 for f in files)


@pytest.mark.parametrize("length", [0, 4, 6])
def test_a_control_that_does_not_fit_is_refused(small: Callable[..., Any], length: int) -> None:
    group = small(strategy__name="scaffold").consortium()
    opened: list[Any] = []

    def tap(direction: str, site: str, content: bytes) -> None:
        if direction == "down" and site == "a":
            opened.append(from_bytes(content))

    group.tap = tap
    group.federated(TRIAL)
    good = next(m for m in opened if isinstance(m, Train))
    for control in (np.zeros(length), np.full(5, np.nan)):
        bad = Train(head=good.head, round=1, parameters=good.parameters, control=control)
        reply = group.sites["a"].handle(bad)
        assert isinstance(reply, Refusal)
        assert reply.code == "protocol"


# -- divergence -------------------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**31), st.integers(2, 6))
@settings(max_examples=30)
def test_divergence_from_running_sums_is_that_of_all_updates(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    patients = rng.integers(1, 50, count).astype(float)
    each = rng.normal(size=(count, 7)) + rng.normal(size=7)
    shares = patients / patients.sum()
    mean = shares @ each
    root = np.sqrt(shares @ np.sum(each**2, axis=1))
    tally = Tally()
    for i in range(count):
        tally = tally.add(str(i), patients[i] * each[i], patients[i])
    found = tally.divergence(patients @ each, patients.sum())
    assert found is not None
    np.testing.assert_allclose(found.mean, np.sqrt(shares @ np.sum((each - mean) ** 2, axis=1)) / root, rtol=1e-9)
    np.testing.assert_allclose(found.max, np.max(np.linalg.norm(each, axis=1)) / root, rtol=1e-9)


def test_divergence_at_its_ends_and_in_any_order() -> None:
    step = np.array([3.0, -4.0, 0.25])

    def of(*changes: Any) -> Any:
        tally = Tally()
        for i, change in enumerate(changes):
            tally = tally.add(str(i), np.asarray(change), 1.0)
        return tally.divergence(np.sum(changes, axis=0), len(changes))

    alike, opposed = of(step, step, step), of(step, -step)
    assert alike.mean == pytest.approx(0, abs=1e-7)
    assert alike.max == pytest.approx(1)
    assert opposed.mean == 1
    assert of(step) is None
    assert of(0 * step, 0 * step) is None
    steps = [step / 3, step**3 / 7, np.sin(step), np.exp(step) * 1e-9]
    assert len({of(*p) for p in permutations(steps)}) == 1


def test_a_tally_does_not_look_at_what_it_must_not_see() -> None:
    tally = Tally().add("a", None, 0.0).add("b", None, 0.0)
    assert tally.sites == ("a", "b")
    assert tally.divergence(np.ones(3), 10.0) is None


# -- plans ------------------------------------------------------------------------------------------------------------------

REFUSED = {
    "momentum of fedavg": ({"momentum": 0.9}, "strategy.momentum: fedavg does not read it"),
    "tau of scaffold": ({"name": "scaffold", "tau": 0.1}, "strategy.tau: scaffold does not read it"),
    "correction of yogi": ({"name": "fedyogi", "bias_correction": "none"}, "fedyogi takes rate, "),
    "unknown": ({"name": "fedadam", "beta": 1}, "strategy.beta: unknown key"),
    "unknown rule": ({"name": "fedmagic"}, "strategy.name: "),
    "negative mu": ({"name": "fedprox", "mu": -1}, "strategy.mu: "),
    "no participation": ({"participation": 0}, "strategy.participation: "),
    "more than everybody": ({"participation": 1.5}, "strategy.participation: "),
    "no site": ({"minimum_sites": 0}, "strategy.minimum_sites: "),
    "the same pattern twice": ({"local": ["norm*", "norm*"]}, "strategy.local: must be distinct"),
    "a pattern that names two parts alike": ({"local": ["{a}{a}"]}, "strategy.local: "),
}


@pytest.mark.parametrize(("strategy", "words"), REFUSED.values(), ids=REFUSED)
def test_a_mistake_in_a_strategy_is_named(plan_of: Callable[..., Plan], strategy: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan_of(strategy=strategy)
    assert words in str(caught.value)


@pytest.mark.parametrize("name", ["scaffold", "qfedavg"])
@pytest.mark.parametrize("training", [{"optimiser": "adam"}, {"momentum": 0.5}], ids=str)
def test_rules_that_read_gradients_off_steps_want_plain_steps(
    plan_of: Callable[..., Plan], name: str, training: dict[str, Any]
) -> None:
    changes = {f"training__{k}": v for k, v in training.items()}
    with pytest.raises(ConfigError, match=f"strategy.name: {name} needs training.optimiser"):
        plan_of(strategy__name=name, **changes)
    assert plan_of(strategy__name="fedprox", **changes)


def test_what_a_rule_does_not_read_may_be_absent_but_not_another_value(plan_of: Callable[..., Plan]) -> None:
    """The canonical form says all, with null for what is not read, and reads back as the same plan."""
    plan = plan_of(strategy__name="fedadam")
    assert plan.strategy.betas == (0.9, 0.999)
    assert plan.strategy.momentum is None
    content = plan.model_dump(mode="json")
    assert parse(content).hash == plan.hash
