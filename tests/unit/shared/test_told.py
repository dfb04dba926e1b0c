"""Being asked to end at any moment, also in the middle of waiting for it."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time

from oncofed_shared.told import Stop, Told, told_by_signals

STORM = """
import os, random, signal, sys, threading, time
from oncofed_shared.told import Told

def watch():
    before = -1
    while asked != before:
        before = asked
        time.sleep(4)
    print("stands still", flush=True)
    os._exit(3)

asked = 0
threading.Thread(target=watch, daemon=True).start()
kind = {"told": Told, "event": threading.Event}[sys.argv[1]]
signal.signal(signal.SIGALRM, lambda *_: current.set())
end = time.monotonic() + 3.0
while time.monotonic() < end:
    current = kind()
    signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-6, 3e-4))
    while not current.wait(1e-4):
        pass
    asked += 1
print(asked)
"""
"""Asked once each time, at any moment of waiting."""


def test_nobody_waits_for_himself_however_often_he_is_asked_in_the_middle_of_waiting() -> None:
    done = subprocess.run([sys.executable, "-c", STORM, "told"], capture_output=True, text=True, timeout=60, check=True)
    assert int(done.stdout) > 100


def test_the_storm_would_find_it() -> None:
    # What it is that `Told` mends: an event of the standard library, set by a handler, stands still within seconds.
    done = subprocess.run(
        [sys.executable, "-c", STORM, "event"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (3, "stands still\n")


def test_it_waits_until_it_is_told_and_never_again() -> None:
    told: Stop = Told()
    assert not told.is_set()
    started = time.monotonic()
    assert told.wait(0.05) is False
    assert time.monotonic() - started >= 0.05
    threading.Timer(0.05, told.set).start()  # type: ignore[attr-defined]
    assert told.wait(30.0)
    assert all(told.wait() for _ in range(3))
    assert told.is_set()


def test_signals_tell_it() -> None:
    before = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        for number in before:
            told = told_by_signals()
            signal.raise_signal(number)
            signal.raise_signal(number)
            assert told.wait(0)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
