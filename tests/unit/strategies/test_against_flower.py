"""The same updates, once through our rules and once through Flower's own strategies."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from oncofed_client.rounds import fair
from oncofed_shared.plan import Plan
from oncofed_strategies import ServerState, Sums, advance, init

Flat = NDArray[np.float64]
ROUNDS, SITES, SIZE = 6, 3, 5
PATIENTS = (10.0, 30.0, 25.0)
LOSSES = (0.9, 0.3, 1.7)

# In a process of its own: Flower is imported nowhere else, and asks for the identity of a running task.
FLOWER = """
import json, sys
import numpy as np
from flwr.supercore.task_identity import TaskIdentity
TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as strategies
asked = json.load(sys.stdin)
start, changes = np.array(asked["start"]), np.array(asked["changes"])
made = {}
for name, (kind, options) in asked["rules"].items():
    rule = getattr(strategies, kind)(**options)
    current, path = start, []
    for number, round_changes in enumerate(changes, 1):
        if kind in ("FedAvgM", "QFedAvg"):
            if getattr(rule, "current_arrays", None) is None or kind == "QFedAvg":
                rule.current_arrays = ArrayRecord({"w": Array(current)})
        else:
            rule.current_arrays = {"w": current}
        replies = [
            Message(
                RecordDict({
                    "arrays": ArrayRecord({"w": Array(current + change)}),
                    "metrics": MetricRecord({"num-examples": n, "train_loss": loss}),
                }),
                dst_node_id=1, message_type="train",
            )
            for change, n, loss in zip(round_changes, asked["patients"], asked["losses"])
        ]
        arrays, _ = rule.aggregate_train(number, replies)
        current = arrays["w"].numpy()
        path.append(current.tolist())
    made[name] = path
json.dump(made, sys.stdout)
"""

THEIRS: dict[str, tuple[str, dict[str, Any]]] = {
    "fedavg": ("FedAvg", {}),
    "fedavgm": ("FedAvgM", {"server_learning_rate": 0.5, "server_momentum": 0.8}),
    "fedadam": ("FedAdam", {"eta": 0.1, "beta_1": 0.9, "beta_2": 0.99, "tau": 1e-2}),
    "fedyogi": ("FedYogi", {"eta": 0.1, "beta_1": 0.9, "beta_2": 0.99, "tau": 1e-2}),
    "fedadagrad": ("FedAdagrad", {"eta": 0.1, "tau": 1e-2}),
    "qfedavg": ("QFedAvg", {"client_learning_rate": 0.2, "q": 0.7}),
    "qfedavg at 0": ("QFedAvg", {"client_learning_rate": 0.2, "q": 0.0}),
}
OURS: dict[str, dict[str, Any]] = {
    "fedavg": {"name": "fedavg"},
    "fedavgm": {"name": "fedavgm", "rate": 0.5, "momentum": 0.8},
    "fedadam": {"name": "fedadam", "rate": 0.1, "betas": [0.9, 0.99], "tau": 1e-2, "bias_correction": "flower"},
    "fedyogi": {"name": "fedyogi", "rate": 0.1, "betas": [0.9, 0.99], "tau": 1e-2},
    "fedadagrad": {"name": "fedadagrad", "rate": 0.1, "tau": 1e-2},
}


def start() -> Flat:
    return np.linspace(-1, 1, SIZE)


def changes() -> Flat:
    """(rounds, sites, size)."""
    return np.random.default_rng(4).normal(size=(ROUNDS, SITES, SIZE))


@cache
def flower() -> dict[str, list[list[float]]]:
    asked = {
        "start": start().tolist(),
        "changes": changes().tolist(),
        "patients": PATIENTS,
        "losses": LOSSES,
        "rules": THEIRS,
    }
    switches = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(
        [sys.executable, "-c", FLOWER],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | switches,
    )
    assert done.returncode == 0, done.stderr
    made: dict[str, list[list[float]]] = json.loads(done.stdout.splitlines()[-1])
    return made


def path(plan: Plan, sums: Callable[[int], Sums]) -> list[Flat]:
    state, made = init(start()), []
    for number in range(ROUNDS):
        state = advance(plan, state, sums(number))
        made.append(state.parameters)
    return made


def plain(number: int) -> Sums:
    """What sites send that trained nothing but these changes."""
    change = np.tensordot(PATIENTS, changes()[number], 1)
    return Sums(change=change, extra=np.zeros(0), patients=sum(PATIENTS), population=sum(PATIENTS))


@pytest.mark.parametrize("name", OURS)
def test_a_rule_goes_flowers_way(plan_of: Callable[..., Plan], name: str) -> None:
    plan = plan_of(strategy=OURS[name])
    for mine, theirs in zip(path(plan, plain), flower()[name], strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("name", "q"), [("qfedavg", 0.7), ("qfedavg at 0", 0.0)])
def test_q_fedavg_goes_flowers_way_when_all_sites_are_equally_large(
    plan_of: Callable[..., Plan], name: str, q: float
) -> None:
    """Flower samples sites alike and does not weigh them; ours weighs by patients, so here all have as many."""
    plan = plan_of(strategy={"name": "qfedavg", "q": q}, training__rate=0.2)

    def sums(number: int) -> Sums:
        sent = [
            fair(plan, np.concatenate([7.0 * change, [7.0, 7.0 * loss]]), loss)
            for change, loss in zip(changes()[number], LOSSES, strict=True)
        ]
        total = np.sum(sent, axis=0)
        return Sums(change=total[:SIZE], extra=total[SIZE:-2], patients=total[-2], population=total[-2])

    for mine, theirs in zip(path(plan, sums), flower()[name], strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-12, atol=1e-14)


def test_the_three_corrections_of_fedadam_are_three(plan_of: Callable[..., Plan]) -> None:
    """`none` is algorithm 2 of Reddi et al. 2021; `flower` only changes its rate; `adam` adds tau after the correction."""
    rate, one, two, tau = 0.1, 0.9, 0.99, 1e-2
    first = {"name": "fedadam", "rate": rate, "betas": [one, two], "tau": tau}
    step = plain(0).change / sum(PATIENTS)
    mean, spread = (1 - one) * step, (1 - two) * step**2
    factor = np.sqrt(1 - two**2) / (1 - one**2)
    known = {
        "none": rate * mean / (np.sqrt(spread) + tau),
        "flower": rate * factor * mean / (np.sqrt(spread) + tau),
        "adam": rate * step / (np.abs(step) + tau),
    }
    for correction, move in known.items():
        plan = plan_of(strategy=first | {"bias_correction": correction})
        made = advance(plan, ServerState(parameters=start()), plain(0))
        np.testing.assert_allclose(made.parameters - start(), move, rtol=1e-12)
    assert plan_of(strategy=first).strategy.bias_correction == "adam"


def test_yogi_adds_where_adam_averages(plan_of: Callable[..., Plan]) -> None:
    """Reddi et al. 2021, algorithm 2: v - (1 - beta_2) d^2 sign(v - d^2); a large d after small ones grows v linearly."""
    plan = plan_of(strategy={"name": "fedyogi", "rate": 1.0, "betas": [0.0, 0.9], "tau": 1.0})
    state, spread = init(np.zeros(1)), 0.0
    for value in (0.1, 0.2, 5.0, 0.3, 0.0):
        before = state.parameters
        sums = Sums(change=np.array([value]), extra=np.zeros(0), patients=1, population=1)
        state = advance(plan, state, sums)
        spread -= 0.1 * value**2 * np.sign(spread - value**2)
        np.testing.assert_allclose(state.parameters - before, value / (np.sqrt(spread) + 1), rtol=1e-12)
