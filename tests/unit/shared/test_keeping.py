"""Programs that are kept running: started again however they end, and gone when whoever keeps them is."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event

import psutil
import pytest

from oncofed_shared.errors import StorageError
from oncofed_shared.keeping import FIRST_PAUSE, LONGEST_PAUSE, Program, keep, pause_after
from oncofed_shared.processes import runs

# Writes its process and its child's into a file, and waits.
BODY = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
with open(sys.argv[1], "a") as file:
    file.write(f"{os.getpid()} {child.pid}\\n")
time.sleep(60)
"""


def until(what: Callable[[], bool], patience: float = 20.0) -> None:
    end = time.monotonic() + patience
    while not what():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.02)


def lines(file: Path) -> list[list[int]]:
    return [[int(n) for n in line.split()] for line in file.read_text().splitlines()] if file.exists() else []


@contextlib.contextmanager
def kept(*programs: Program, patience: float = 5.0) -> Iterator[list[str]]:
    said: list[str] = []
    stop, errors = Event(), []

    def run() -> None:
        try:
            keep(programs, stop=stop, say=said.append, patience=patience)
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    # A child's SIGTERM at the death of its parent is bound to the thread that started it, which lives as long as `keep`.
    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield said
    finally:
        stop.set()
        thread.join(30)
    assert not errors


def program(name: str, *words: str, **more: object) -> Program:
    return Program(name=name, command=lambda: [sys.executable, "-c", *words], environment=dict(os.environ), **more)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_program_that_is_killed_is_started_again_and_its_children_are_gone(tmp_path, number):
    file = tmp_path / "started"
    with kept(program("one", BODY, str(file))) as said:
        until(lambda: len(lines(file)) == 1)
        (first, child), *_ = lines(file)
        os.kill(first, number)
        until(lambda: len(lines(file)) == 2)
        assert not runs(child)
        assert any("was ended by signal" in text and "started again" in text for text in said)
    everybody = [pid for line in lines(file) for pid in line]
    assert len(everybody) == 4
    assert not [pid for pid in everybody if runs(pid)]


def test_orphans_are_buried(tmp_path):
    file = tmp_path / "started"
    with kept(program("one", BODY, str(file))):
        until(lambda: len(lines(file)) == 1)
        first, child = lines(file)[0]
        os.kill(first, signal.SIGKILL)
        # Not only dead: gone.
        until(lambda: not psutil.pid_exists(child))


def test_what_cannot_be_started_for_a_while_is_started_later(tmp_path):
    file = tmp_path / "started"
    full = iter([False, True, True, False])

    def command() -> list[str]:
        if next(full, False):
            raise StorageError("the disk is full")
        return [sys.executable, "-c", BODY, str(file)]

    with kept(Program(name="one", command=command, environment=dict(os.environ))) as said:
        until(lambda: len(lines(file)) == 1)
        os.kill(lines(file)[0][0], signal.SIGKILL)
        until(lambda: len(lines(file)) == 2)
        assert sum("could not be started: the disk is full" in text for text in said) == 2


def test_what_cannot_be_started_the_first_time_is_an_error(tmp_path):
    def command() -> list[str]:
        raise StorageError("the disk is full")

    with pytest.raises(StorageError):
        keep(
            [program("other", BODY, str(tmp_path / "other")), Program(name="one", command=command, environment={})],
            stop=Event(), say=lambda text: None, patience=5.0,
        )  # fmt: skip
    assert not [pid for line in lines(tmp_path / "other") for pid in line if runs(pid)]


def test_what_does_not_end_when_asked_is_ended(tmp_path):
    stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + BODY
    file = tmp_path / "started"
    started = time.monotonic()
    with kept(program("one", stubborn, str(file)), patience=0.5):
        until(lambda: len(lines(file)) == 1)
    assert not [pid for pid in lines(file)[0] if runs(pid)]
    assert time.monotonic() - started < 15


def test_programs_do_not_wait_for_each_other_and_each_says_why_it_ended(tmp_path):
    file = tmp_path / "started"
    bad = program("bad", "import sys; sys.exit(49)", why=lambda code: f"has the reason {code}")
    with kept(bad, program("good", BODY, str(file))) as said:
        until(lambda: len([s for s in said if s.startswith("bad: has the reason 49")]) >= 2)
        until(lambda: len(lines(file)) == 1)
        assert runs(lines(file)[0][0])
    assert len(lines(file)) == 1


def test_pauses_grow_to_a_bound():
    pauses = [pause_after(n) for n in range(1, 60)]
    assert pauses[0] == 2 * FIRST_PAUSE
    assert pauses == sorted(pauses)
    assert pauses[-1] == LONGEST_PAUSE


KEEPER = """
import os, sys
from threading import Event
from oncofed_shared.errors import StorageError
from oncofed_shared.keeping import Program, keep
words = [sys.executable, "-c", sys.argv[1], sys.argv[2]]
keep([Program(name="one", command=lambda: words, environment=dict(os.environ))], stop=Event(), say=print, patience=1.0)
"""


def test_nobody_outlives_a_keeper_that_is_killed(tmp_path):
    file = tmp_path / "started"
    keeper = subprocess.Popen([sys.executable, "-c", KEEPER, BODY, file], stdout=subprocess.DEVNULL)
    until(lambda: len(lines(file)) == 1)
    one, child = lines(file)[0]
    keeper.kill()
    keeper.wait()
    until(lambda: not runs(one))
    # This one's child is nobody's child now, and its own affair: Flower's programs look for their parent themselves.
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(child).kill()
