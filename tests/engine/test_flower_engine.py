"""Flower's engine gives loopback's model, byte for byte, and leaves nothing: no process, no folder, no packet."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tomli_w

from oncofed_shared.errors import ExitCode
from oncofed_shared.storage import read_arrays
from oncofed_simulations.processes import Descendants, subreaper
from oncofed_simulations.synthetic import write_cohort

DEADLINE = 120.0
PROGRAM = Path(sys.executable).with_name("oncofed-simulate")
STUDY: dict[str, Any] = {
    "study": {"name": "engines", "purpose": "compare the engines"},
    "tasks": {
        "survival": {
            "kind": "survival",
            "table": "clinical",
            "time": "os_days",
            "event": "os_event",
            "edges": [0, 180, 365, 730, 1460],
            "horizon": 730,
        }
    },
    "modalities": {
        "clinical": {
            "table": "clinical",
            "tokens": "columns",
            "columns": {
                "age": {"kind": "numeric", "unit": "years", "range": [0, 120]},
                "sex": {"kind": "categorical", "categories": ["female", "male"]},
            },
        },
        "cnv": {"table": "cnv", "patterns": ["{gene}_cnv"], "tokens": 2},
    },
    "model": {"width": 4, "heads": 2, "layers": 1, "feedforward": 8},
    # Everything that has a memory or draws numbers: batches, dropout, momentum, the server's optimiser.
    "training": {
        "rounds": 3,
        "local_steps": 2,
        "batch": 8,
        "rate": 0.05,
        "momentum": 0.5,
        "dropout": 0.2,
        "validate_every": 2,
    },
    "strategy": {"name": "fedadam", "rate": 0.02},
    # Three runs: two folds and the released one.
    "evaluation": {"folds": 2, "bootstrap": 50, "minimum_shown": 2, "minimum_events": 1},
}


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engine") / "hospitals"
    write_cohort(folder, sites=3, patients=90, seed=1)
    return folder


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A study's file, with some keys of its training or evaluation changed."""

    def write(*, evaluation: dict[str, Any] | None = None, **training: Any) -> Path:
        content = STUDY | {"training": STUDY["training"] | training}
        judged = STUDY["evaluation"] | (evaluation or {})
        content["evaluation"] = {k: v for k, v in judged.items() if v is not None}
        path = tmp_path_factory.mktemp("study") / "study.toml"
        path.write_text(tomli_w.dumps(content), encoding="utf-8")
        return path

    return write


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder for temporary files that is short enough for Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="t") as folder:
        yield Path(folder)


@functools.cache
def alone_in_the_world() -> tuple[str, ...] | None:
    """Words that start a command where there is no network but loopback; None if this machine does not permit that."""
    lift = (
        "import fcntl, os, socket, struct, sys; s = socket.socket(); "
        "fcntl.ioctl(s, 0x8914, struct.pack('16sh22x', b'lo', 0x41)); s.close(); os.execv(sys.argv[1], sys.argv[1:])"
    )
    for flags in ("-n", "-rn"):
        words = ("unshare", flags, sys.executable, "-c", lift)
        with contextlib.suppress(OSError):
            if subprocess.run([*words, sys.executable, "-c", ""], capture_output=True, check=False).returncode == 0:
                return words
    return None


class Command:
    """`oncofed-simulate run` in a process group of its own, as a terminal starts it; whatever escapes from it comes to us."""

    def __init__(self, *arguments: str, short: Path, before: tuple[str, ...] = ()) -> None:
        self.ours = Descendants()
        environment = os.environ | {"TMPDIR": str(short)}
        self.process = subprocess.Popen(
            [*before, str(PROGRAM), "run", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            text=True,
            process_group=0,
        )

    def until(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + DEADLINE
        while not condition():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < end, "the run never got there"
            time.sleep(0.05)

    def end(self) -> tuple[int, str, str]:
        """Exit code and what was printed."""
        try:
            out, err = self.process.communicate(timeout=DEADLINE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        return self.process.returncode, out, err


@pytest.fixture
def start(short: Path) -> Iterator[Callable[..., Command]]:
    """Start a command; at the end of the test there must be nothing left of it."""
    with subreaper():
        before = Descendants()
        try:
            yield functools.partial(Command, short=short)
        finally:
            left = [(p.pid, p.ppid(), p.name()) for p in before.left()]
            before.kill()
        assert left == []
        assert strangers(short) == []
        assert list(short.iterdir()) == []


def strangers(short: Path) -> list[str]:
    """Processes of whatever parent that were started with this folder for temporary files."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if str(short) in " ".join([*process.cmdline(), *process.environ().values()]):
                found.append(process.name())
    return [] if found == [] else [n for n in found if n != psutil.Process().name()]


def model(out: Path) -> bytes:
    """The model's bytes; its numbers are finite, so that equal does not mean equally broken."""
    arrays, _ = read_arrays(out / "model.safetensors")
    assert arrays
    assert all(np.isfinite(a).all() for a in arrays.values())
    return (out / "model.safetensors").read_bytes()


def loopback(*arguments: str) -> None:
    subprocess.run([str(PROGRAM), "run", *arguments], check=True, capture_output=True)


def test_same_bytes_without_a_network_and_nothing_left(
    hospitals: Path, study: Callable[..., Path], tmp_path: Path, start: Callable[..., Command]
) -> None:
    arguments = [str(study()), "--sites", str(hospitals), "--no-baselines", "--seeds", "3"]
    loopback(*arguments, "--out", str(tmp_path / "loopback"))
    # Where it is permitted, without any network: no telemetry, no look for updates, no package index can be needed.
    command = start(
        *arguments, "--out", str(tmp_path / "flower"), "--engine", "flower", before=alone_in_the_world() or ()
    )
    code, out, err = command.end()
    assert (code, err) == (0, ""), err
    assert "report:" in out
    assert model(tmp_path / "flower") == model(tmp_path / "loopback")
    assert {p.name for p in (tmp_path / "flower").iterdir()} == {p.name for p in (tmp_path / "loopback").iterdir()}
    results = [(tmp_path / engine / "result.json").read_bytes() for engine in ("flower", "loopback")]
    same = ("tasks", "folds", "sites", "bytes_up", "bytes_down", "excluded")
    flower, plain = (json.loads(r) for r in results)
    assert {k: flower[k] for k in same} == {k: plain[k] for k in same}
    assert [(r["round"], r["bytes_up"], r["train_loss"]) for r in flower["rounds"]] == [
        (r["round"], r["bytes_up"], r["train_loss"]) for r in plain["rounds"]
    ]
    assert all(r["seconds"] > 0 for r in flower["rounds"])


@pytest.mark.skipif(alone_in_the_world() is None, reason="this machine does not permit a namespace without network")
def test_the_run_without_a_network_had_none() -> None:
    words = alone_in_the_world()
    assert words is not None
    look = "import psutil; print(sorted(psutil.net_if_addrs()), psutil.net_if_stats()['lo'].isup)"
    seen = subprocess.run([*words, sys.executable, "-c", look], check=True, capture_output=True, text=True).stdout
    assert seen == "['lo'] True\n"


def test_ctrl_c_leaves_nothing_and_the_other_engine_goes_on_to_the_same_bytes(
    hospitals: Path, study: Callable[..., Path], tmp_path: Path, start: Callable[..., Command]
) -> None:
    path = study(rounds=150, evaluation={"folds": None})
    out = tmp_path / "flower"
    arguments = [str(path), "--sites", str(hospitals), "--no-baselines"]
    command = start(*arguments, "--out", str(out), "--engine", "flower")
    # A site keeps a session when its run is opened: from then on there is training.
    command.until(lambda: len(list(out.glob("sites/*/sessions/*"))) == 3)
    os.killpg(command.process.pid, signal.SIGINT)
    code, printed, err = command.end()
    assert code == ExitCode.INTERRUPTED, err
    assert printed == ""
    assert "--resume goes on" in err
    assert "Traceback" not in err
    _, facts = read_arrays(out / "progress" / "federated.seed0.safetensors")
    assert len(facts["losses"]) < 150
    loopback(*arguments, "--out", str(out), "--resume")
    loopback(*arguments, "--out", str(tmp_path / "loopback"))
    assert model(out) == model(tmp_path / "loopback")
    assert not (out / "flower").exists()


def test_a_run_that_fails_says_why_as_loopback_does(
    hospitals: Path, study: Callable[..., Path], tmp_path: Path, start: Callable[..., Command]
) -> None:
    path = study(range=1e-6, evaluation={"folds": None})
    arguments = [str(path), "--sites", str(hospitals), "--no-baselines"]
    plain = subprocess.run(
        [str(PROGRAM), "run", *arguments, "--out", str(tmp_path / "loopback")],
        check=False,
        capture_output=True,
        text=True,
    )
    code, out, err = start(*arguments, "--out", str(tmp_path / "flower"), "--engine", "flower").end()
    assert (code, out) == (plain.returncode, "") == (ExitCode.PEER, "")
    assert "the run failed: " in err
    # Which of the sites answers first is chance; the rest of the sentence is not.
    assert err.split(": out-of-range")[1] == plain.stderr.split(": out-of-range")[1]


def test_an_engine_that_dies_is_one_clear_message(
    hospitals: Path, study: Callable[..., Path], tmp_path: Path, start: Callable[..., Command]
) -> None:
    """Also before Ray is there; as when the machine has no memory left."""
    path = study(rounds=150, evaluation={"folds": None})
    out = tmp_path / "flower"
    command = start(str(path), "--sites", str(hospitals), "--no-baselines", "--out", str(out), "--engine", "flower")
    command.until(lambda: bool(command.ours.named("flwr-simulation")))
    for process in command.ours.named("flwr-simulation"):
        process.kill()
    code, printed, err = command.end()
    assert (code, printed) == (ExitCode.PEER, ""), err
    assert err.startswith("Flower's engine ended before the study (")
    assert str(out / "flower") in err
    assert len(err.splitlines()) == 1
    shutil.rmtree(out)
