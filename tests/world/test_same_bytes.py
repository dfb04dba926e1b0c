"""Same study, same seed, same bytes: twice, in another process, in another order, and however a run was interrupted."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from oncofed_shared.errors import ExitCode
from oncofed_shared.messages import Trial
from oncofed_shared.storage import read_arrays
from oncofed_simulations.consortium import Consortium

# Everything that has a memory: batches, dropout, momentum, the server's own optimiser.
CHANGES: dict[str, Any] = {
    "training": {
        "rounds": 90,
        "local_steps": 2,
        "batch": 8,
        "rate": 0.02,
        "momentum": 0.5,
        "weight_decay": 0.01,
        "dropout": 0.2,
        "input_dropout": 0.1,
        "validate_every": 20,
    },
    "strategy": {"name": "fedadam", "rate": 0.02},
}
DEADLINE = 120.0
SNAPSHOT = Path("progress") / "federated.seed0.safetensors"
# The command, but with a snapshot after every round instead of every few seconds.
EAGER = (
    "import oncofed_simulations.consortium as c; c.SNAPSHOT_SECONDS = 0.0; "
    "from oncofed_simulations.__main__ import main; main()"
)


@pytest.fixture(scope="module")
def shared(new_world: Callable[..., Any]) -> Any:
    """A study that lasts long enough to be interrupted, and its hospitals."""
    return new_world().change(**CHANGES).write()


@pytest.fixture(scope="module")
def undisturbed(shared: Any, executable: str) -> Path:
    """OUT of a run in a process of its own that nobody disturbed."""
    out = Path(shared.root / "undisturbed")
    subprocess.run(
        [executable, *shared.arguments("--no-baselines", "--out", str(out))], check=True, capture_output=True
    )
    return out


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def model(out: Path) -> bytes:
    """The model's bytes; its numbers are finite, so that equal does not mean equally broken."""
    arrays, _ = read_arrays(out / "model.safetensors")
    assert arrays
    assert all(np.isfinite(a).all() for a in arrays.values())
    return (out / "model.safetensors").read_bytes()


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    """Poll, as long as the process lives."""
    end = time.monotonic() + DEADLINE
    while not condition():
        assert process.poll() is None, "the run ended before it could be disturbed"
        assert time.monotonic() < end, "the run never got there"
        time.sleep(0.01)


@contextlib.contextmanager
def terminal() -> Iterator[tuple[int, Callable[[], str]]]:
    """A terminal: the end for a process, and a function that reads what has appeared so far."""
    ours, theirs = os.openpty()
    os.set_blocking(ours, False)
    seen = bytearray()

    def read() -> str:
        with contextlib.suppress(BlockingIOError, OSError):
            while part := os.read(ours, 65536):
                seen.extend(part)
        return seen.decode(errors="replace")

    try:
        yield theirs, read
    finally:
        os.close(ours)
        os.close(theirs)


def last_round(text: str) -> int:
    """The round that a progress display shows."""
    found = re.findall(r"federated\.seed0: round (\d+)", text)
    return int(found[-1]) if found else 0


def finished_rounds(out: Path) -> int:
    """Rounds in a snapshot."""
    path = out / SNAPSHOT
    return len(read_arrays(path)[1]["losses"]) if path.exists() else 0


def test_second_run_gives_the_same_model(
    shared: Any, undisturbed: Path, out: Path, simulate: Callable[..., Any]
) -> None:
    """In another process than the first, and into another folder."""
    result = simulate(*shared.arguments("--no-baselines", "--out", str(out)))
    assert result.code == 0, result
    assert model(out) == model(undisturbed)
    # The same again over its own results.
    before = model(out)
    assert simulate(*shared.arguments("--no-baselines", "--out", str(out))).code == 0
    assert model(out) == before


def test_another_seed_gives_another_model(
    shared: Any, undisturbed: Path, out: Path, simulate: Callable[..., Any]
) -> None:
    assert simulate(*shared.arguments("--no-baselines", "--out", str(out), "--seeds", "1")).code == 0
    assert model(out) != model(undisturbed)


def test_order_of_sites_does_not_matter(shared: Any, tmp_path: Path) -> None:
    """Nor does who answers first: the ring's sums have no order."""
    shorter = {**shared.content, "training": {**shared.content["training"], "rounds": 12}}
    world = type(shared)(root=shared.root, content=shorter)

    def parameters(order: Callable[[Consortium], list[str]], name: str) -> bytes:
        consortium = world.consortium(store=tmp_path / name)
        consortium.sites = {n: consortium.sites[n] for n in order(consortium)}
        server = consortium.federated(Trial(seed=0)).state.server
        assert server is not None
        assert np.isfinite(server.parameters).all()
        return bytes(server.parameters.tobytes())

    ascending = parameters(lambda c: sorted(c.sites), "ascending")
    assert parameters(lambda c: sorted(c.sites, reverse=True), "descending") == ascending
    assert parameters(lambda c: sorted(c.sites)[1:] + sorted(c.sites)[:1], "turned") == ascending


def test_ctrl_c_and_resume_give_the_same_model(
    shared: Any, undisturbed: Path, out: Path, executable: str, simulate: Callable[..., Any]
) -> None:
    """A real Ctrl-C to the real command, which shows its progress because it has a terminal."""
    arguments = shared.arguments("--no-baselines", "--out", str(out))
    with terminal() as (theirs, read):
        process = subprocess.Popen([executable, *arguments], stderr=theirs, stdout=subprocess.PIPE)
        wait_until(lambda: last_round(read()) >= 10, process)
        process.send_signal(signal.SIGINT)
        printed, _ = process.communicate(timeout=DEADLINE)
        shown = read()
    assert process.returncode == ExitCode.INTERRUPTED, shown[-2000:]
    assert "loss" in shown
    assert "--resume" in shown
    assert "Traceback" not in shown
    assert printed == b""
    assert 0 < finished_rounds(out) < CHANGES["training"]["rounds"]
    assert not (out / "model.safetensors").exists()
    assert not (out / "report.html").exists()
    result = simulate(*arguments, "--resume")
    assert result.code == 0, result
    assert model(out) == model(undisturbed)
    assert not (out / "progress").exists()


def test_second_ctrl_c_stops_at_once(shared: Any, out: Path, executable: str) -> None:
    """Also then it is an interruption that can be resumed, not a crash."""
    arguments = [*shared.arguments("--out", str(out)), "--seeds", "0,1,2,3,4,5"]
    with terminal() as (theirs, read):
        process = subprocess.Popen([executable, *arguments], stderr=theirs, stdout=subprocess.PIPE)
        wait_until(lambda: last_round(read()) >= 2, process)
        # Two in a row, before the round ends.
        process.send_signal(signal.SIGSTOP)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGCONT)
        process.communicate(timeout=DEADLINE)
        shown = read()
    assert process.returncode == ExitCode.INTERRUPTED, shown[-2000:]
    assert "stopped at once; --resume" in shown
    assert "Traceback" not in shown


def test_kill_and_resume_give_the_same_model(
    shared: Any, undisturbed: Path, out: Path, simulate: Callable[..., Any]
) -> None:
    """SIGKILL leaves no time for anything; what was on disk is enough."""
    arguments = shared.arguments("--no-baselines", "--out", str(out))
    process = subprocess.Popen([sys.executable, "-c", EAGER, *arguments], stderr=subprocess.PIPE)
    wait_until(lambda: finished_rounds(out) >= 10, process)
    process.kill()
    process.communicate(timeout=DEADLINE)
    assert process.returncode == -signal.SIGKILL
    assert 10 <= finished_rounds(out) < CHANGES["training"]["rounds"]
    result = simulate(*arguments, "--resume")
    assert result.code == 0, result
    assert model(out) == model(undisturbed)
    hidden = [p.name for p in out.rglob(".*")]
    assert not hidden, hidden


def test_resuming_what_has_ended_does_nothing(shared: Any, undisturbed: Path, simulate: Callable[..., Any]) -> None:
    before = {p: p.stat().st_mtime_ns for p in sorted(undisturbed.rglob("*")) if p.is_file()}
    outcome = simulate(*shared.arguments("--no-baselines", "--out", str(undisturbed), "--resume"))
    assert outcome.code == 0
    assert {p: p.stat().st_mtime_ns for p in sorted(undisturbed.rglob("*")) if p.is_file()} == before
