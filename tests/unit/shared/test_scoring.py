"""Tables of counts as one additive vector: every block in its place, and nothing hostile gets in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oncofed_shared.errors import RemoteProtocolError
from oncofed_shared.metrics import counts, tally
from oncofed_shared.plan import Plan, parse
from oncofed_shared.scoring import WHOLE, blocks, dense, sparse, split_vector, tabulate, vector_size

PLAN: Plan = parse(
    {
        "main_task": "os",
        "study": {"name": "s", "purpose": "a study for tests"},
        "tasks": {
            "a": {"kind": "classification", "label": "a", "classes": ["x", "y"]},
            "os": {"kind": "survival", "time": "t", "event": "e", "edges": [0, 100, 300], "horizon": 100},
        },
        "modalities": {"m": {"patterns": ["*"]}},
        "training": {"rounds": 1},
        "evaluation": {
            "score_bins": 16,
            "days_per_bin": 50,
            "subgroups": {
                "sex": {"column": "sex", "values": ["f", "m"]},
                "age": {"column": "age", "edges": [0, 50, 100]},
            },
        },
    }
)


def people(n: int, seed: int) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    rng = np.random.default_rng(seed)
    p = rng.uniform(size=(n, 1))
    curve = np.sort(rng.uniform(size=(n, 2)), axis=1)[:, ::-1]
    labels = {
        "a": rng.integers(-1, 2, n),
        "os": np.column_stack([rng.integers(0, 400, n), rng.integers(0, 2, n)]).astype(float),
    }
    groups = {"sex": rng.integers(-1, 2, n), "age": rng.integers(-1, 2, n)}
    return {"a": np.hstack([1 - p, p]), "os": curve}, labels, groups


def test_blocks_are_everybody_and_then_each_group() -> None:
    assert list(blocks(PLAN, subgroups=False)) == [WHOLE]
    expected = [WHOLE, ("age", "0-50"), ("age", "50-100"), ("sex", "f"), ("sex", "m")]
    assert list(blocks(PLAN, subgroups=True)) == expected


@pytest.mark.parametrize("subgroups", [True, False])
def test_every_block_holds_the_tally_of_its_patients(subgroups: bool) -> None:
    predictions, labels, groups = people(60, 0)
    vector = tabulate(PLAN, predictions, labels, groups, subgroups=subgroups)
    assert len(vector) == vector_size(PLAN, subgroups=subgroups)
    split = split_vector(PLAN, vector, subgroups=subgroups)
    assert list(split) == list(blocks(PLAN, subgroups=subgroups))
    for (name, group), tables in split.items():
        index = PLAN.evaluation.subgroups[name].groups.index(group) if name else None
        rows = np.full(60, True) if index is None else groups[name] == index
        assert list(tables) == ["os", "a"]
        for task, table in tables.items():
            own = tally(PLAN.tasks[task], PLAN.evaluation, predictions[task][rows], labels[task][rows])
            np.testing.assert_array_equal(table, own)


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 2**31))
def test_vectors_of_sites_add_up(one: int, two: int, seed: int) -> None:
    predictions, labels, groups = people(one + two, seed)
    cut = [slice(0, one), slice(one, None)]
    parts = [
        tabulate(
            PLAN,
            {t: v[rows] for t, v in predictions.items()},
            {t: v[rows] for t, v in labels.items()},
            {g: v[rows] for g, v in groups.items()},
            subgroups=True,
        )
        for rows in cut
    ]
    whole = tabulate(PLAN, predictions, labels, groups, subgroups=True)
    np.testing.assert_array_equal(parts[0] + parts[1], whole)


def test_nobody_is_a_table_of_zeros() -> None:
    vector = tabulate(PLAN, *people(0, 0), subgroups=True)
    assert not vector.any()
    table = split_vector(PLAN, vector, subgroups=True)[WHOLE]["os"]
    assert counts(PLAN.tasks["os"], PLAN.evaluation, table) == (0, 0)


@pytest.mark.parametrize("change", [-1, 1])
def test_a_vector_of_another_length_is_the_peers_fault(change: int) -> None:
    vector = np.zeros(vector_size(PLAN, subgroups=True) + change)
    with pytest.raises(RemoteProtocolError):
        split_vector(PLAN, vector, subgroups=True)


@given(st.lists(st.sampled_from([0.0, 0.0, 1.0, 2.5]), max_size=30))
def test_the_cells_that_are_not_zero_say_everything(values: list[float]) -> None:
    vector = np.array(values)
    cells, found = sparse(vector)
    assert len(cells) == np.count_nonzero(vector)
    np.testing.assert_array_equal(dense(len(vector), cells, found), vector)


LAST = 2**63 - 1


@pytest.mark.parametrize(
    ("cells", "found"),
    [
        ([0, 1], [1.0]),
        ([0], [1.0, 1.0]),
        ([5], [1.0]),
        ([-1], [1.0]),
        ([1, 1], [1.0, 1.0]),
        ([2, 1], [1.0, 1.0]),
        # Differences of these wrap to positive numbers.
        ([0, LAST, -2, 4], [1.0] * 4),
        ([1], [np.nan]),
        ([1], [np.inf]),
        ([1], [-1.0]),
        ([1], [0.0]),
    ],
    ids=str,
)
def test_cells_that_do_not_exist_are_the_peers_fault(cells: list[int], found: list[float]) -> None:
    with pytest.raises(RemoteProtocolError):
        dense(5, np.array(cells, np.int64), np.array(found))
