"""What a site keeps between rounds: one round back, on disk before the reply leaves, and nobody else's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from oncofed_client.memory import Memories, Memory
from oncofed_shared.errors import DataError, RemoteProtocolError
from oncofed_shared.messages import Arrays, Head, Trial

HEAD = Head(session="s/federated.seed0", step=1, attempt=0, plan_hash="p", trial=Trial(seed=0))


def arrays(value: float) -> Arrays:
    return {"norm.weight": np.full((2, 3), value, np.float32), "control": np.full(4, value)}


def same(one: Arrays, two: Arrays) -> bool:
    return one.keys() == two.keys() and all(
        np.array_equal(one[n], two[n]) and one[n].dtype == two[n].dtype for n in one
    )


def test_a_round_begins_with_what_it_began_with() -> None:
    memory = Memory(round=7, before=arrays(6), after=arrays(7))
    assert same(memory.at(7), arrays(6))
    # The next one that this site is asked, whichever that is.
    assert same(memory.at(8), arrays(7))
    assert same(memory.at(20), arrays(7))
    assert memory.at(1) == {}
    assert Memory().at(5) == {}
    with pytest.raises(RemoteProtocolError, match="start the run anew") as caught:
        memory.at(6)
    assert caught.value.code == "state-ahead"


@pytest.mark.parametrize("on_disk", [True, False])
def test_a_memory_is_found_again(tmp_path: Path, on_disk: bool) -> None:
    folder = tmp_path / "sessions" if on_disk else None
    memories = Memories(folder)
    other = replace(HEAD, session="s/alone-a.seed0")
    assert memories.of(HEAD).after == {}
    memories.keep(HEAD, Memory(round=1, before={}, after=arrays(1)))
    memories.keep(other, Memory(round=9, before=arrays(8), after=arrays(9)))
    for known in (memories, Memories(folder)) if on_disk else (memories,):
        assert same(known.of(HEAD).after, arrays(1))
        assert known.of(HEAD).before == {}
        assert known.of(HEAD).round == 1
        assert same(known.of(other).at(9), arrays(8))
    assert len(memories._known) == (1 if on_disk else 2)


@pytest.mark.parametrize("change", [{"plan_hash": "q"}, {"trial": Trial(seed=1)}], ids=str)
def test_a_memory_of_another_plan_or_trial_is_not_given(tmp_path: Path, change: dict[str, object]) -> None:
    Memories(tmp_path).keep(HEAD, Memory(round=1, after=arrays(1)))
    for memories in (Memories(tmp_path), Memories(tmp_path)):
        with pytest.raises(RemoteProtocolError) as caught:
            memories.of(replace(HEAD, **change))  # type: ignore[arg-type]
        assert caught.value.code == "unknown-session"


def test_a_damaged_memory_is_refused_and_not_guessed(tmp_path: Path) -> None:
    Memories(tmp_path).keep(HEAD, Memory(round=1, after=arrays(1)))
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match="damaged"):
        Memories(tmp_path).of(HEAD)
