"""A run's state on disk: whole, and the same when it comes back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from oncofed_server.rounds import Cost
from oncofed_server.run_state import Phase, State
from oncofed_server.snapshot import load_state, save_state
from oncofed_shared.errors import DataError
from oncofed_shared.features import Preparation
from oncofed_shared.messages import Description, Head, Trial
from oncofed_shared.plan import Plan, parse
from oncofed_strategies import ServerState

PLAN: Plan = parse(
    {
        "study": {"name": "s", "purpose": "a study for tests"},
        "tasks": {"r": {"kind": "classification", "label": "r", "classes": ["a", "b"]}},
        "modalities": {"m": {"patterns": ["*"]}, "n": {"patterns": ["*"]}},
        "training": {"rounds": 2},
    }
)
HEAD = Head(session="s", step=3, attempt=1, plan_hash=PLAN.hash, trial=Trial(seed=7, fold=2, resplit=True))
DESCRIPTION = Description(
    head=HEAD,
    site="St. Ägidien",
    columns={"m": ("b", "a"), "n": ()},
    parts={"train": 1, "validation": 0, "test": 2, "all": 3},
    modalities={"m": 3, "n": 0},
    events={"r.0": 1, "r.1": 2},
)
STATE = State(
    phase=Phase.TRAIN,
    round=2,
    step=9,
    server=ServerState(parameters=np.array([0.1, -1e-300, 3e30]), memory={"step": np.array([4.0]), "v": np.ones(3)}),
    preparation=Preparation(
        columns={"m": ("a", "b"), "n": ()},
        center=np.array([1.0, 2.0]),
        spread=np.array([0.5, 4.0]),
        fill=np.zeros(2),
        class_weights={"r": np.array([0.75, 1.5])},
    ),
    descriptions={"St. Ägidien": DESCRIPTION},
    excluded={"z": "no answer", "a": "data"},
    losses=(0.1 + 0.2, 1 / 3),
    validation={1: np.array([0.0, 2.0, 0.0]), 10: np.zeros(3)},
    tables={"St. Ägidien": np.array([0.0, 0.25])},
    cost=Cost(bytes_up=1, bytes_down=2, seconds=0.5),
    costs=(Cost(bytes_up=1),),
    why="",
)


def test_everything_between_two_rounds_comes_back(tmp_path: Path) -> None:
    save_state(tmp_path / "run", STATE)
    back = load_state(tmp_path / "run", PLAN)
    for name in ("phase", "round", "step", "losses", "descriptions", "excluded", "cost", "costs", "why"):
        assert getattr(back, name) == getattr(STATE, name), name
    assert back.server is not None
    assert STATE.server is not None
    assert back.server.parameters.tobytes() == STATE.server.parameters.tobytes()
    assert {k: v.tolist() for k, v in back.server.memory.items()} == {"step": [4.0], "v": [1.0] * 3}
    assert back.preparation is not None
    assert STATE.preparation is not None
    assert back.preparation.columns == STATE.preparation.columns
    for key, value in STATE.preparation.arrays().items():
        np.testing.assert_array_equal(back.preparation.arrays()[key], value)
    for name in ("validation", "tables"):
        assert {k: v.tolist() for k, v in getattr(back, name).items()} == {
            k: v.tolist() for k, v in getattr(STATE, name).items()
        }


def test_a_run_that_has_just_begun_comes_back(tmp_path: Path) -> None:
    save_state(tmp_path / "run", State(phase=Phase.DESCRIBE))
    back = load_state(tmp_path / "run", PLAN)
    assert (back.phase, back.server, back.preparation) == (Phase.DESCRIBE, None, None)
    assert (back.descriptions, back.tables, back.losses) == ({}, {}, ())


def test_the_same_state_is_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_state(tmp_path / name, STATE)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_damaged_file_is_not_taken_for_a_run(tmp_path: Path) -> None:
    path = tmp_path / "run"
    save_state(path, STATE)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError):
        load_state(path, PLAN)
