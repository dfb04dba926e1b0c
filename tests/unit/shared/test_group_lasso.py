"""The group LASSO's step: its definition by column, what it leaves alone, and the optimum that rounds of it come to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from oncofed_shared.features import Preparation
from oncofed_shared.group_lasso import column_weights, group_strengths, grouped, shrunk, step_length
from oncofed_shared.layout import Layout
from oncofed_shared.messages import Columns
from oncofed_shared.network import build
from oncofed_shared.plan import Plan, parse

COLUMNS: Columns = {"clinical": ("age",), "genes": ("A", "B", "C", "D", "E")}
FUSIONS = ("transformer", "concat", "early", "hybrid")


def plan_of(strength: float = 0.5, **changes: Any) -> Plan:
    genes = {"patterns": ["*"], "tokens": 2, "reduction": {"kind": "group_lasso", "strength": strength}}
    return parse(
        {
            "study": {"name": "s", "purpose": "a study for tests"},
            "tasks": {"two": {"kind": "classification", "label": "two", "classes": ["no", "yes"]}},
            "modalities": {"clinical": {"columns": {"age": {"kind": "numeric"}}}, "genes": genes},
            "model": {"width": 4, "heads": 2, "layers": 1, "feedforward": 6, **changes.pop("model", {})},
            "training": {"rounds": 4, "rate": 0.2, "dtype": "float64"},
            "strategy": {"rate": 0.5, **changes.pop("strategy", {})},
        }
    )


def prepared() -> Preparation:
    ones = np.ones(6)
    return Preparation(columns=COLUMNS, center=ones, spread=ones, fill=ones, class_weights={"two": np.ones(2)})


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_column_s_weights_are_those_by_which_it_enters(fusion: str) -> None:
    """A coordinate belongs to a column exactly where its gradient is a multiple of the column's value."""
    network = build(plan_of(model={"fusion": fusion}), COLUMNS, seed=0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)), alpha=0.3)
    column = column_weights(network, 6)
    for j in range(6):
        values, seen = torch.zeros(1, 6, dtype=torch.float64), torch.ones(1, 6, dtype=torch.float64)
        gradients = []
        for value in (0.0, 1.0):
            values[0, j] = value
            out = network(values, seen)["two"].sum()
            made = torch.autograd.grad(out, list(network.named.values()), materialize_grads=True)
            gradients.append(torch.cat([g.ravel() for g in made]).numpy())
        own = column == j
        assert own.any()
        assert not gradients[0][own].any()
        assert gradients[1][own].all()
    whole = {n for n in network.named if not n.endswith("weight")}
    names = np.repeat(list(Layout.of(network).shapes), Layout.of(network).sizes)
    assert set(names[column >= 0]) & whole == set()


def test_each_column_is_shrunk_by_its_length_and_all_else_stays() -> None:
    plan = plan_of()
    network = build(plan, COLUMNS, seed=0)
    column = column_weights(network, 6)
    before = np.random.default_rng(0).normal(size=len(column))
    before[column == 3] *= 1e-3
    after = shrunk(plan, prepared(), before, seed=0, progress=0.0)
    assert np.array_equal(after[column < 1], before[column < 1]), "clinical columns have no penalty"
    cut = 0.2 * 0.5 * 0.5
    for j in range(1, 6):
        own = before[column == j]
        length = float(np.sqrt((own**2).sum()))
        wanted = np.zeros_like(own) if length <= cut else own * (length - cut) / length
        np.testing.assert_allclose(after[column == j], wanted, rtol=1e-12)
    assert not after[column == 3].any()
    assert after[column == 4].all()


def test_the_step_is_the_round_s_own_length() -> None:
    assert step_length(plan_of(), 0.5) == pytest.approx(0.1)
    assert step_length(plan_of(strategy={"schedule": "linear"}), 0.5) == pytest.approx(0.05)


def test_columns_without_a_penalty_have_none() -> None:
    assert group_strengths(plan_of(0.3), prepared()).tolist() == [0, 0.3, 0.3, 0.3, 0.3, 0.3]
    assert grouped(plan_of(0.3))
    plain = plan_of().model_dump(mode="json")
    del plain["modalities"]["genes"]["reduction"]
    assert not grouped(parse(plain))


def test_nothing_that_is_zero_is_divided_by() -> None:
    plan = plan_of()
    size = Layout.of(build(plan, COLUMNS, seed=0)).size
    assert not shrunk(plan, prepared(), np.zeros(size), seed=0, progress=0.0).any()
