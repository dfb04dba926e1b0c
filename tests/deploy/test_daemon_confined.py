"""The daemon as its unit and as a container hold it: it serves, and what it may not do it does not need."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from confined import can_confine  # noqa: E402 - lies beside this file
from running import Consortium, Hospital, new_consortium, ready  # noqa: E402

from oncofed_client.daemon_client import call  # noqa: E402
from oncofed_client.identity import identity_of  # noqa: E402
from oncofed_shared.sealed import REFUSED  # noqa: E402
from oncofed_simulations.synthetic import write_cohort  # noqa: E402

pytestmark = [
    pytest.mark.deploy,
    pytest.mark.skipif(not can_confine(), reason="only root, on Linux on x86-64, can hold a process as a unit does"),
    pytest.mark.xdist_group("confined"),
]
CONFINED = (sys.executable, str(HERE / "confined.py"))
OTHER_GROUP = 54321
# A network with a loopback alone, which cannot be left: `docker run --network none`.
_LOOPBACK_ALONE = """
import fcntl, os, socket, struct, sys
with socket.socket() as probe:
    fcntl.ioctl(probe, 0x8914, struct.pack("16sh14x", b"lo", 1))
with open("/proc/sys/user/max_net_namespaces", "w") as most:
    most.write("0")
os.execv(sys.argv[1], sys.argv[1:])
"""
CONTAINER = (shutil.which("unshare") or "unshare", "-U", "-r", "-n", sys.executable, "-c", _LOOPBACK_ALONE)


def _contains() -> bool:
    try:
        return subprocess.run([*CONTAINER, "/bin/true"], check=False, capture_output=True).returncode == 0
    except OSError:
        return False


@pytest.fixture(scope="module")
def consortium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Consortium]:
    with new_consortium(tmp_path_factory.mktemp("confined")) as made:
        write_cohort(made.folder / "sites", sites=1, patients=30, seed=1)
        identity_of(made.folder / "sites" / "site-1.state")
        yield made


@pytest.fixture
def hospital(consortium: Consortium) -> Iterator[Hospital]:
    made = consortium.add(consortium.folder / "sites" / "site-1")
    made.daemon.log.unlink(missing_ok=True)
    yield made
    if made.daemon.process is not None and made.daemon.process.poll() is None:
        assert made.daemon.stop() == 0


def prepared(folder: Path, mode: int) -> None:
    """As systemd-tmpfiles makes it."""
    folder.mkdir(exist_ok=True)
    os.chown(folder, os.geteuid(), OTHER_GROUP)
    folder.chmod(mode)


def first_line(hospital: Hospital) -> dict[str, object]:
    found: dict[str, object] = json.loads(hospital.daemon.log.read_text().splitlines()[0])
    return found


def test_under_what_its_unit_forbids_the_daemon_serves_the_gates_group(hospital: Hospital) -> None:
    prepared(hospital.socket.parent, 0o2750)
    hospital.daemon.words[:0] = CONFINED
    hospital.daemon.start()
    ready(hospital, 180.0)
    # The unit's own loopback is up, and of no use.
    assert (first_line(hospital)["event"], first_line(hospital)["network"]) == ("daemon.ready", "none")
    assert call(hospital.socket, b"nobody's", patience=5.0) == REFUSED
    found = hospital.socket.stat()
    assert (stat.S_IMODE(found.st_mode), found.st_gid) == (0o660, OTHER_GROUP)


@pytest.mark.parametrize(("mode", "more"), [(0o2750, ("--socket-group", OTHER_GROUP)), (0o755, ())])
def test_a_folder_that_was_not_made_for_it_is_refused_in_one_line(
    hospital: Hospital, mode: int, more: tuple[object, ...]
) -> None:
    folder = hospital.run / f"made-{mode:o}"
    hospital.run.mkdir(exist_ok=True)
    prepared(folder, mode)
    program = (
        "import sys; from pathlib import Path; from oncofed_client.daemon import own_socket; from oncofed_shared.errors import "
        "StorageError\ntry:\n    own_socket(Path(sys.argv[1]), group=(*sys.argv[2:], None)[0]).__enter__()\n"
        "except StorageError as error:\n    print(error)"
    )
    words = [*CONFINED, sys.executable, "-c", program, str(folder / "s"), *map(str, more[1:])]
    said = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    assert "cannot be made for the daemon's socket" in said
    assert not (folder / "daemon.lock").exists()


@pytest.mark.slow
@pytest.mark.skipif(not _contains(), reason="this machine has no kernel that can be told to give no network")
def test_a_container_without_a_network_has_a_loopback_and_the_daemon_serves(hospital: Hospital) -> None:
    hospital.run.mkdir(exist_ok=True)
    prepared(hospital.socket.parent, 0o750)
    os.chown(hospital.socket.parent, os.geteuid(), os.getegid())
    hospital.daemon.words[:0] = CONTAINER
    hospital.daemon.start()
    ready(hospital, 180.0)
    assert first_line(hospital)["network"] == "loopback"
