"""The parent of a gate's Flower processes, as a real one: what it starts, what becomes of a relay, and that nothing outlives it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from oncofed_client.gate.flower_parent import RELAYS
from oncofed_client.gate.programs import environment_of
from oncofed_server.service.authority import make_authority
from oncofed_shared.processes import runs
from oncofed_simulations.deployment import free_port, resident

pytestmark = pytest.mark.deploy
PATIENCE = 120.0
MOST = 200.0


def until(what, why="not in time") -> None:
    end = time.monotonic() + PATIENCE
    while not seen(what):
        assert time.monotonic() < end, why
        time.sleep(0.05)


def seen(what) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(what())
    return False


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[tuple[psutil.Process, int, dict[str, str], Path]]:
    """A parent whose SuperNode looks for a SuperLink that is not there; its port, environment and log."""
    home, key, log = tmp_path / "home", tmp_path / "node.key", tmp_path / "log"
    private = ec.generate_private_key(ec.SECP384R1())
    key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    make_authority(tmp_path / "ca.crt", tmp_path / "ca.key", name="nobody", now=time.time())
    port, nobody = free_port(), free_port()
    words = ["flower-supernode", "--superlink", f"127.0.0.1:{nobody}", "--root-certificates", str(tmp_path / "ca.crt")]
    words += ["--auth-supernode-private-key", str(key), "--host", "127.0.0.1", "--port", str(port)]
    environment = environment_of({**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, home)
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "oncofed_client.gate.flower_parent", *words], env=environment, stdout=out, stderr=out
        )
    made = psutil.Process(process.pid)
    try:
        until(lambda: names(made) == {"flower-supernod", "flower-superexe"}, log.read_text)
        yield made, port, environment, log
    finally:
        process.kill()
        process.wait()


def names(parent: psutil.Process) -> set[str]:
    return {p.name() for p in parent.children() if runs(p.pid)}


def test_a_relay_is_a_copy_that_ends_and_sigterm_ends_all_in_order(parent):
    process, port, environment, log = parent
    both = process.children()
    # The goal for a gate; its supervisor adds some 16 MiB.
    assert resident([process, *both])[0] < MOST - 20
    words = ["flwr-clientapp", "--runtime-api-address", f"127.0.0.1:{port}", "--token", "of nobody", "--insecure"]
    subprocess.run(words, env=environment, check=True, timeout=PATIENCE)
    # It asked the SuperNode, and was refused with its token; the others go on.
    until(lambda: "token authentication failed" in log.read_text(), log.read_text)
    until(lambda: names(process) == {"flower-supernod", "flower-superexe"})
    (Path(environment["HOME"]) / RELAYS).write_text("nonsense\n")
    time.sleep(0.5)
    assert names(process) == {"flower-supernod", "flower-superexe"}
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 0
    until(lambda: not any(runs(p.pid) for p in both))
    assert "SuperNode terminated gracefully" in log.read_text()


def test_a_superexec_that_ends_is_followed_by_another(parent):
    process, _, _, _ = parent
    first = next(p for p in process.children() if p.name() == "flower-superexe")
    first.kill()
    until(lambda: any(p.name() == "flower-superexe" and p.pid != first.pid for p in process.children()))
    assert names(process) == {"flower-supernod", "flower-superexe"}
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 0


@pytest.mark.parametrize("victim", ["parent", "flower-supernod"])
def test_whoever_is_killed_the_others_end_too(parent, victim):
    process, _, _, _ = parent
    all_three = [process, *process.children()]
    chosen = process if victim == "parent" else next(p for p in all_three if p.name() == victim)
    chosen.kill()
    until(lambda: not any(runs(p.pid) for p in all_three))
    if victim == "flower-supernod":
        assert process.wait(PATIENCE) == 128 + signal.SIGKILL
