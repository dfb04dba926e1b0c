"""Server optimisers: state in, state out, and the path that torch.optim takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from oncofed_server.run_state import Phase, State
from oncofed_server.snapshot import load_state, save_state
from oncofed_shared.plan import Strategy, parse
from oncofed_strategies import ServerState, apply, init

Flat = NDArray[np.float64]
RULES = {
    "fedavg": Strategy(name="fedavg", rate=0.7),
    "fedavgm": Strategy(name="fedavgm", rate=0.5, momentum=0.9),
    "fedadam": Strategy(name="fedadam", rate=0.1, betas=(0.9, 0.99), tau=1e-3),
    "fedadagrad": Strategy(name="fedadagrad", rate=0.1, tau=1e-3),
}
each_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
ROUNDS, SIZE = 8, 5


def updates(seed: int = 0) -> list[Flat]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=SIZE) for _ in range(ROUNDS)]


def start() -> Flat:
    return np.linspace(-1, 1, SIZE)


def continuous(rule: Strategy, steps: list[Flat]) -> list[Flat]:
    """The same with one torch optimiser that lives through all rounds."""
    weight = torch.from_numpy(start()).requires_grad_()
    optimiser = {
        "fedavg": lambda: torch.optim.SGD([weight], lr=rule.rate),
        "fedavgm": lambda: torch.optim.SGD([weight], lr=rule.rate, momentum=rule.momentum),
        "fedadam": lambda: torch.optim.Adam([weight], lr=rule.rate, betas=rule.betas, eps=rule.tau),
        "fedadagrad": lambda: torch.optim.Adagrad([weight], lr=rule.rate, eps=rule.tau),
    }[rule.name]()
    path = []
    for step in steps:
        # The update points downhill: its negative is the gradient.
        weight.grad = torch.from_numpy(-step)
        optimiser.step()
        path.append(weight.detach().numpy().copy())
    return path


def ours(rule: Strategy, state: ServerState, steps: list[Flat]) -> list[ServerState]:
    path = []
    for step in steps:
        state = apply(rule, state, step)
        path.append(state)
    return path


@each_rule
def test_every_rule_goes_torchs_way(rule: Strategy) -> None:
    steps = updates()
    for mine, theirs in zip(ours(rule, init(start()), steps), continuous(rule, steps), strict=True):
        np.testing.assert_allclose(mine.parameters, theirs, rtol=1e-13, atol=0)


def test_fedavg_with_rate_1_adds_the_mean_update() -> None:
    step = updates()[0]
    state = apply(Strategy(), init(start()), step)
    np.testing.assert_array_equal(state.parameters, start() + step)
    assert state.memory == {}


@each_rule
def test_a_state_is_not_changed_and_gives_the_same_again(rule: Strategy) -> None:
    steps = updates()
    state = ours(rule, init(start()), steps[:3])[-1]
    before = {k: v.tobytes() for k, v in {**state.memory, "parameters": state.parameters}.items()}
    step = steps[3].copy()
    one, two = apply(rule, state, step), apply(rule, state, step)
    assert one.parameters.tobytes() == two.parameters.tobytes()
    assert {k: v.tobytes() for k, v in {**state.memory, "parameters": state.parameters}.items()} == before
    np.testing.assert_array_equal(step, steps[3])
    # And nothing of the new state is a view of the old one.
    one.parameters[:] = 0
    for value in one.memory.values():
        value[:] = 0
    assert apply(rule, state, step).parameters.tobytes() == two.parameters.tobytes()


@given(
    st.sampled_from(sorted(RULES)),
    st.integers(0, ROUNDS - 1),
    st.integers(0, 2**31),
)
@settings(max_examples=20)
def test_going_on_from_any_round_ends_in_the_same_bytes(name: str, at: int, seed: int) -> None:
    rule, steps = RULES[name], updates(seed)
    whole = ours(rule, init(start()), steps)
    rest = ours(rule, whole[at], steps[at + 1 :])
    assert (rest or whole)[-1].parameters.tobytes() == whole[-1].parameters.tobytes()


PLAN = parse(
    {
        "study": {"name": "s", "purpose": "a study for tests"},
        "tasks": {"r": {"kind": "classification", "label": "r", "classes": ["a", "b"]}},
        "modalities": {"m": {"patterns": ["*"]}},
        "training": {"rounds": 1},
    }
)


@each_rule
def test_a_state_survives_the_disk_and_the_path_goes_on_in_the_same_bytes(rule: Strategy, tmp_path: Path) -> None:
    steps = updates()
    whole = ours(rule, init(start()), steps)
    save_state(tmp_path / "run", State(phase=Phase.TRAIN, round=4, server=whole[3]))
    kept = load_state(tmp_path / "run", PLAN)
    assert kept.server is not None
    rest = ours(rule, kept.server, steps[4:])
    assert rest[-1].parameters.tobytes() == whole[-1].parameters.tobytes()
