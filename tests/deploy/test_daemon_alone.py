"""The daemon as a process: without a network it serves, and nothing that it calls answers."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from running import Consortium, Hospital, new_consortium, ready  # noqa: E402 - lies beside this file

from oncofed_client.daemon_client import call, healthy  # noqa: E402
from oncofed_client.gate.fence import can_be_fenced  # noqa: E402
from oncofed_client.identity import identity_of  # noqa: E402
from oncofed_shared.sealed import REFUSED  # noqa: E402
from oncofed_simulations.synthetic import write_cohort  # noqa: E402

pytestmark = [
    pytest.mark.deploy,
    pytest.mark.skipif(not can_be_fenced(), reason="this kernel gives no process a network of its own"),
]
CALL = "import socket, sys; socket.create_connection(('127.0.0.1', int(sys.argv[1])), 3)"


@pytest.fixture(scope="module")
def consortium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Consortium]:
    with new_consortium(tmp_path_factory.mktemp("alone")) as made:
        write_cohort(made.folder / "sites", sites=1, patients=30, seed=1)
        yield made


@pytest.fixture
def hospital(consortium: Consortium) -> Iterator[Hospital]:
    made = consortium.add(consortium.folder / "sites" / "site-1")
    identity_of(made.state)
    made.daemon.log.unlink(missing_ok=True)
    yield made
    if made.daemon.process is not None and made.daemon.process.poll() is None:
        made.daemon.stop()


def lines(hospital: Hospital) -> list[dict]:
    return [json.loads(line) for line in hospital.daemon.log.read_text().splitlines() if line.startswith("{")]


def may(*words: str) -> bool:
    return shutil.which(words[0]) is not None and subprocess.run([*words, "true"], check=False).returncode == 0


@pytest.mark.skipif(not may("unshare", "-n"), reason="this machine lets nobody use 'unshare -n'")
def test_under_unshare_the_daemon_works_and_no_socket_call_of_it_does(hospital: Hospital):
    hospital.daemon.words[:0] = [str(shutil.which("unshare")), "-n"]
    hospital.daemon.start()
    ready(hospital)
    assert call(hospital.socket, b"nobody's", patience=5.0) == REFUSED
    assert lines(hospital)[0]["network"] == "none"
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        words = [sys.executable, "-c", CALL, str(listener.getsockname()[1])]
        assert subprocess.run(words, check=False).returncode == 0
        assert hospital.daemon.process is not None
        inside = ["nsenter", "-t", str(hospital.daemon.process.pid), "-n", *words]
        ended = subprocess.run(inside, capture_output=True, text=True, check=False)
        assert "Network is unreachable" in ended.stderr


def test_a_daemon_leaves_the_network_by_itself_is_alone_and_ends_when_told(consortium: Consortium, hospital: Hospital):
    hospital.daemon.start()
    ready(hospital)
    assert hospital.daemon.process is not None
    own = Path(f"/proc/{hospital.daemon.process.pid}/ns/net").readlink()
    assert lines(hospital)[0]["network"] == "none"
    assert own != Path("/proc/self/ns/net").readlink()
    words = ("start", hospital.data, "--only", "daemon", "--socket", hospital.socket)
    assert "another daemon of this site runs" in consortium.site(*words, code=5)
    assert healthy(hospital.socket)
    assert hospital.daemon.stop(patience=10.0) == 0
    assert not hospital.socket.exists()
    assert not healthy(hospital.socket, patience=0.5)
    assert lines(hospital)[-1]["event"] == "daemon.ended"


@pytest.mark.parametrize("only", [(), ("--only", "gate")])
def test_a_site_that_is_not_enrolled_does_not_start(consortium: Consortium, hospital: Hospital, only: tuple[str, ...]):
    assert "is not enrolled" in consortium.site("start", hospital.data, *only, code=3)
