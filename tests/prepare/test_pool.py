"""Cases in processes: every case has one outcome, whatever its neighbours do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from oncofed_client.prepare.pool import outcomes

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def _findable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(HERE))


def run(cases: list[tuple[str, float]], jobs: int) -> dict[tuple[str, float], object]:
    from pool_work import work  # noqa: PLC0415 - the path is set by the fixture

    found = list(outcomes(cases, work, jobs))
    assert sorted(o.case for o in found) == sorted(cases)
    return {o.case: o.problems or o.result for o in found}


@pytest.mark.parametrize("jobs", [1, 2])
def test_every_case_has_one_outcome_whatever_its_neighbours_do(jobs: int) -> None:
    good = [("fine", float(i)) for i in range(8)]
    bad = [("wrong", 1.0), ("surprise", 2.0), ("memory", 4.0), ("killed", 3.0)]
    found = run([*good[:4], *bad, *good[4:]], jobs)
    assert {c: found[c] for c in good} == {c: c[1] * 2 for c in good}
    assert found["wrong", 1.0] == ("a.dcm: one problem", "b.dcm: another")
    assert found["surprise", 2.0] == ("it could not be read: KeyError in a library",)
    assert "memory" in found["memory", 4.0][0]
    assert "its process died" in found["killed", 3.0][0]


def test_a_run_ends_however_many_processes_die_however_soon() -> None:
    # With executors of several processes one such run in a few hundred waited for ever.
    cases = [("killed", 1.0), ("fine", 1.0), ("killed", 2.0), ("killed", 3.0), ("fine", 2.0), ("fine", 3.0)]
    for _ in range(5):
        found = run(cases, 3)
        assert [found["fine", float(i)] for i in (1, 2, 3)] == [2.0, 4.0, 6.0]
        assert all("its process died" in found["killed", float(i)][0] for i in (1, 2, 3))


def test_a_case_that_only_wanted_to_be_alone_is_done_in_the_end(tmp_path: Path) -> None:
    from pool_work import die_once  # noqa: PLC0415

    (outcome,) = outcomes([str(tmp_path)], die_once, 2)
    assert outcome.result == "done"


def test_no_more_cases_are_taken_than_are_in_flight() -> None:
    from pool_work import work  # noqa: PLC0415

    taken = 0

    def cases() -> Iterator[tuple[str, float]]:
        nonlocal taken
        for i in range(12):
            taken += 1
            yield ("slow", 0.01 * (i % 3))

    for given, _ in enumerate(outcomes(cases(), work, 2)):
        assert taken - given <= 3
    assert taken == 12


def test_processes_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    script = (
        "import sys; from pool_work import note_and_wait; from oncofed_client.prepare.pool import outcomes\n"
        "if __name__ == '__main__':\n    list(outcomes([sys.argv[1]] * 2, note_and_wait, 2))\n"
    )
    path = tmp_path / "parent.py"
    path.write_text(script, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])}
    parent = subprocess.Popen([sys.executable, str(path), str(tmp_path)], env=environment)
    children: set[int] = set()
    deadline = time.monotonic() + 60
    while len(children) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
        children = {int(p.stem) for p in tmp_path.glob("*.pid")}
    assert len(children) == 2
    assert all(psutil.pid_exists(c) for c in children)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    while any(_alive(c) for c in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_alive(c) for c in children)


def _alive(number: int) -> bool:
    try:
        return psutil.Process(number).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
