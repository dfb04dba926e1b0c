"""Whatever code an aggregator brings into the gate: as the gate's user, it gets no data, no key, no say in the daemon."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from running import Consortium, Hospital, new_consortium, ready  # noqa: E402 - lies beside this file

from oncofed_client.daemon_client import healthy  # noqa: E402
from oncofed_client.gate.programs import environment_of  # noqa: E402
from oncofed_client.identity import identity_of  # noqa: E402
from oncofed_shared.sealed import REFUSED  # noqa: E402
from oncofed_simulations.synthetic import write_cohort  # noqa: E402

GATE_USER, GATE_GROUP = 65534, 54321
# What runs as the gate: it has our own client for the daemon, and tries whatever a user may try.
HOSTILE = """
import json, os, signal, sys
from pathlib import Path
from oncofed_client.daemon_client import call, healthy
data, state, socket, daemon = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
done = {}
def tried(name, what):
    try:
        done[name] = what()
    except (OSError, PermissionError) as error:
        done[name] = type(error).__name__
tried("data", lambda: [p.name for p in data.iterdir()])
tried("table", lambda: len((data / "clinical.csv").read_bytes()))
tried("key", lambda: len((state / "identity.key").read_bytes()))
tried("ledger", lambda: [p.name for p in state.iterdir()])
tried("memory", lambda: open(f"/proc/{daemon}/mem", "rb").read(1) and "read")
tried("environment", lambda: open(f"/proc/{daemon}/environ", "rb").read(1) and "read")
tried("files", lambda: os.listdir(f"/proc/{daemon}/fd"))
tried("kill", lambda: os.kill(daemon, signal.SIGKILL) or "killed")
tried("socket taken", lambda: os.unlink(socket) or "taken")
tried("lock taken", lambda: open(socket.parent / "daemon.lock", "r+b") and "taken")
done["answers"] = sorted({call(socket, content, patience=2.0).hex() for content in (b"", b"x", bytes(100), os.urandom(5000))})
done["healthy"] = healthy(socket)
done["secrets"] = [v for v in os.environ.values() if "hunter2" in v]
print(json.dumps(done))
"""


def _python() -> str | None:
    """A Python that another user may start; the tests' own may lie in somebody's home."""
    for path in (sys.executable, shutil.which("python3.11", path="/usr/bin:/usr/local/bin")):
        words = [str(path), "-c", "import sys; assert sys.version_info[:2] == (3, 11)"]
        with contextlib.suppress(OSError):
            if subprocess.run(words, user=GATE_USER, check=False, capture_output=True).returncode == 0:
                return path
    return None


pytestmark = [
    pytest.mark.deploy,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can start something as the gate's user"),
]


@pytest.fixture
def hospital(tmp_path: Path) -> Iterator[tuple[Consortium, Hospital]]:
    with new_consortium(tmp_path) as consortium:
        write_cohort(tmp_path / "sites", sites=1, patients=30, seed=1)
        (tmp_path / "sites" / "site-1").chmod(0o700)
        consortium.short.chmod(0o755)
        made = consortium.add(tmp_path / "sites" / "site-1")
        made.run.mkdir(exist_ok=True)
        made.run.chmod(0o755)
        made.tap.inner = made.run / "socket" / "daemon.sock"
        words = ("start", made.data, "--only", "daemon", "--socket", made.socket, "--socket-group", GATE_GROUP)
        made.daemon.words = consortium.words("client", *words)
        identity_of(made.state)
        made.daemon.start()
        ready(made)
        yield consortium, made
        made.daemon.stop()


def test_hostile_code_in_the_gate_gains_nothing(hospital: tuple[Consortium, Hospital], tmp_path: Path):
    _, site = hospital
    python = _python() if os.geteuid() == 0 else None
    if python is None:
        pytest.skip("no Python on this machine that another user may start")
    assert site.daemon.process is not None
    # Everything above them is open, so that it is these folders' own rights that are tried.
    for folder in (*tmp_path.parents, tmp_path, tmp_path / "sites"):
        if folder.stat().st_uid == os.geteuid() and folder.is_relative_to(tmp_path.parents[1]):
            folder.chmod(0o755)
    script = site.run / "hostile.py"
    script.write_text(HOSTILE)
    given = {**os.environ, "DATABASE_PASSWORD": "hunter2", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    pid = site.daemon.process.pid
    words = [python, str(script), str(site.data), str(site.state), str(site.socket), str(pid)]
    ended = subprocess.run(
        words,
        env=environment_of(given, site.run / "home"),
        user=GATE_USER,
        group=GATE_GROUP,
        extra_groups=[],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
    )
    assert ended.returncode == 0, ended.stderr
    done = json.loads(ended.stdout)
    # The socket is all that it has, and on it the constant.
    assert done.pop("answers") == [REFUSED.hex()]
    assert done.pop("healthy")
    assert done.pop("secrets") == []
    assert set(done.values()) <= {"PermissionError", "ProcessLookupError"}, done
    assert len(done) == 10
    assert healthy(site.socket)
    log = site.daemon.log.read_text()
    assert log.count('"door.unbelieved"') == 4
