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

from oncofed_shared.errors import ExitCode, RemoteProtocolError
from oncofed_shared.plan import load, read_toml
from oncofed_shared.processes import Descendants, subreaper
from oncofed_shared.storage import read_arrays
from oncofed_simulations.run import Options, run_study

DEADLINE = 120.0
PROGRAM = Path(sys.executable).with_name("oncofed-simulate")


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
        # torch makes its cache wherever it trains, in loopback too.
        assert [p.name for p in short.iterdir() if not p.name.startswith("torchinductor_")] == []


def strangers(short: Path) -> list[str]:
    """Processes of whatever parent that were started with this folder for temporary files."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if str(short) in " ".join([*process.cmdline(), *process.environ().values()]):
                found.append(process.name())
    return found


def model(out: Path) -> bytes:
    """The model's bytes; its numbers are finite, so that equal does not mean equally broken."""
    arrays, _ = read_arrays(out / "model.safetensors")
    assert arrays
    assert all(np.isfinite(a).all() for a in arrays.values())
    return (out / "model.safetensors").read_bytes()


def loopback(study: Path, hospitals: Path, out: Path, *, resume: bool = False) -> dict[str, Any]:
    """The same run in this process."""
    options = Options(sites=hospitals, external=None, out=out, baselines=False, resume=resume)
    return run_study(load(study), options)


def test_same_bytes_without_a_network_and_nothing_left(
    hospitals: Path, study: Callable[..., Path], tmp_path: Path, start: Callable[..., Command]
) -> None:
    path = study()
    plain = loopback(path, hospitals, tmp_path / "loopback")
    # Where it is permitted, without any network: no telemetry, no look for updates, no package index can be needed.
    arguments = [str(path), "--sites", str(hospitals), "--no-baselines", "--out", str(tmp_path / "flower")]
    code, out, err = start(*arguments, "--engine", "flower", before=alone_in_the_world() or ()).end()
    assert (code, err) == (0, ""), err
    assert "report:" in out
    assert model(tmp_path / "flower") == model(tmp_path / "loopback")
    assert {p.name for p in (tmp_path / "flower").iterdir()} == {p.name for p in (tmp_path / "loopback").iterdir()}
    flower = json.loads((tmp_path / "flower" / "result.json").read_bytes())
    same = ("tasks", "folds", "sites", "bytes_up", "bytes_down", "excluded")
    assert {k: flower[k] for k in same} == {k: plain[k] for k in same}
    assert [(r["round"], r["bytes_up"], r["train_loss"]) for r in flower["rounds"]] == [
        (r["round"], r["bytes_up"], r["train_loss"]) for r in plain["rounds"]
    ]
    assert all(r["seconds"] > 0 for r in flower["rounds"])


@pytest.mark.parametrize("noise", ["site", "consortium"])
def test_same_bytes_with_noise(tmp_path: Path, start: Callable[..., Command], noise: str) -> None:
    """Given the simulation's own noise seed, which no deployed site accepts, a private run is the same under both engines."""
    content = read_toml(Path(__file__).resolve().parents[2] / "simulations" / "studies" / "demo_private.toml")
    content["training"]["rounds"] = 3
    content["simulation"]["noise_seed"] = 7
    if noise == "consortium":
        del content["privacy"]["release_tables"]
        content["privacy"] |= {"noise": "consortium", "score_epsilon": 3}
    path = tmp_path / "private.toml"
    path.write_text(tomli_w.dumps(content), encoding="utf-8")
    for engine in ("loopback", "flower"):
        code, _, err = start(str(path), "--no-baselines", "--out", str(tmp_path / engine), "--engine", engine).end()
        assert (code, err) == (0, ""), err
    assert model(tmp_path / "flower") == model(tmp_path / "loopback")


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
    path = study(rounds=40, evaluation={"folds": None})
    out = tmp_path / "flower"
    command = start(str(path), "--sites", str(hospitals), "--no-baselines", "--out", str(out), "--engine", "flower")
    # A site keeps a session when its run is opened: from then on there is training.
    command.until(lambda: len(list(out.glob("sites/*/sessions/*"))) == 3)
    os.killpg(command.process.pid, signal.SIGINT)
    code, printed, err = command.end()
    assert code == ExitCode.INTERRUPTED, err
    assert printed == ""
    assert "--resume goes on" in err
    assert "Traceback" not in err
    _, facts = read_arrays(out / "progress" / "federated.seed0.safetensors")
    assert len(facts["losses"]) < 40
    loopback(path, hospitals, out, resume=True)
    loopback(path, hospitals, tmp_path / "loopback")
    assert model(out) == model(tmp_path / "loopback")
    assert not (out / "flower").exists()


def test_a_run_that_fails_says_why_as_loopback_does(
    hospitals: Path, study: Callable[..., Path], tmp_path: Path, start: Callable[..., Command]
) -> None:
    path = study(range=1e-6, evaluation={"folds": None})
    with pytest.raises(RemoteProtocolError) as plain:
        loopback(path, hospitals, tmp_path / "loopback")
    arguments = [str(path), "--sites", str(hospitals), "--no-baselines", "--out", str(tmp_path / "flower")]
    code, out, err = start(*arguments, "--engine", "flower").end()
    assert (code, out) == (ExitCode.PEER, "")
    assert "the run failed: " in err
    # Which of the sites answers first is chance; the rest of the sentence is not.
    assert err.strip().split(": out-of-range")[1] == str(plain.value).split(": out-of-range")[1]


def test_an_engine_that_dies_is_one_clear_message(
    hospitals: Path, study: Callable[..., Path], tmp_path: Path, start: Callable[..., Command]
) -> None:
    """As when the machine has no memory left."""
    path = study(rounds=40, evaluation={"folds": None})
    out = tmp_path / "flower"
    command = start(str(path), "--sites", str(hospitals), "--no-baselines", "--out", str(out), "--engine", "flower")
    command.until(lambda: bool(command.ours.named("raylet")))
    for process in command.ours.named("flwr-simulation"):
        process.kill()
    code, printed, err = command.end()
    assert (code, printed) == (ExitCode.PEER, ""), err
    assert err.startswith("Flower's engine ended before the study (")
    assert str(out / "flower") in err
    assert len(err.splitlines()) == 1
    shutil.rmtree(out)
