"""Where the kernel gives no network of one's own, neither daemon nor gate starts: what cannot be held in does not run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit" / "client"))

from test_gate import state  # noqa: F401 - an enrolled site's, as a fixture; lies in another folder

from oncofed_client.gate.fence import can_be_fenced
from oncofed_client.identity import identity_of
from oncofed_shared.errors import ExitCode
from oncofed_simulations.synthetic import write_cohort

# A user namespace in which nobody, its root included, may make another network.
WITHOUT = ("unshare", "-U", "-r", "sh", "-c", 'echo 0 > /proc/sys/user/max_net_namespaces && exec "$@"', "sh")


def _refuses() -> bool:
    try:
        return subprocess.run([*WITHOUT, "true"], check=False, capture_output=True).returncode == 0
    except OSError:
        return False


pytestmark = pytest.mark.skipif(not _refuses(), reason="this machine has no kernel that can be told to give no network")


def run(*words: object, patience: float = 60.0) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*WITHOUT, sys.executable, *map(str, words)], capture_output=True, text=True, check=False, timeout=patience
    )


def test_the_test_s_kernel_gives_none_and_the_machine_s_own_is_asked_in_a_child() -> None:
    asked = "from oncofed_client.gate.fence import can_be_fenced; print(can_be_fenced())"
    assert run("-c", asked).stdout == "False\n"
    before = Path("/proc/self/ns/net").readlink()
    can_be_fenced()
    assert Path("/proc/self/ns/net").readlink() == before


@pytest.mark.parametrize("module", [("oncofed_client.no_network",), ("oncofed_client.gate.fence", "3", "127.0.0.1:1")])
def test_what_should_run_inside_does_not_run(module: tuple[str, ...], tmp_path: Path) -> None:
    ended = run("-m", *module, sys.executable, "-c", f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert ended.returncode == ExitCode.INPUT
    assert ended.stderr.count("\n") == 1
    assert not (tmp_path / "ran").exists()


def test_a_daemon_with_a_network_does_not_start(tmp_path: Path) -> None:
    write_cohort(tmp_path / "sites", sites=1, patients=30, seed=1)
    data, socket = tmp_path / "sites" / "site-1", Path(os.path.relpath(tmp_path / "d.sock"))
    identity_of(data.with_name("site-1.state"))
    ended = run("-m", "oncofed_client", "start", data, "--only", "daemon", "--socket", socket)
    assert ended.returncode == ExitCode.INPUT
    assert "the daemon would have a network" in ended.stderr
    assert "PrivateNetwork=yes" in ended.stderr
    assert not socket.exists()


def test_a_gate_without_a_fence_does_not_start(state: Path, tmp_path: Path) -> None:  # noqa: F811
    words = ("-m", "oncofed_client.gate", "--credentials", state, "--home", tmp_path / "home", "--socket", "d.sock")
    ended = run(*words)
    assert ended.returncode == ExitCode.INPUT
    assert "nothing would hold what an aggregator ships to the aggregator's address: not started" in ended.stderr
    assert "hub.example.org:8443 alone" in ended.stderr
    assert "--fence unit" in ended.stderr
    assert "program.started" not in ended.stderr
    # Told that its unit is the fence, it starts Flower's SuperNode; the kernel is not asked.
    with subprocess.Popen(
        [*WITHOUT, sys.executable, *map(str, words), "--fence", "unit"], stderr=subprocess.PIPE, text=True
    ) as gate:
        assert gate.stderr is not None
        try:
            assert json.loads(gate.stderr.readline())["event"] == "program.started"
        finally:
            gate.terminate()
            gate.wait(60)
