"""A second systemd on this machine, which starts real units: process 1 of its own processes, mounts, network and control groups.

Its files are this machine's below a layer in memory, so nothing of what it does stays. oncofed is installed in it below /opt
from the environment that the tests run in, with the distribution's Python, which any user may start.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from running import ROOT, until

SYSTEMD, PYTHON = Path("/lib/systemd/systemd"), Path("/usr/bin/python3.11")
PARTS = ("client", "server", "shared", "simulations", "strategies")
INSTALLED = "/opt/oncofed/src"
CONTROL = Path("/sys/fs/cgroup")
# What would set something for the whole machine, or wait for a device.
MASKED = (
    "dbus.socket", "dev-hugepages.mount", "dev-mqueue.mount", "kmod-static-nodes.service", "proc-sys-fs-binfmt_misc.automount",
    "sys-fs-fuse-connections.mount", "sys-kernel-config.mount", "sys-kernel-debug.mount", "sys-kernel-tracing.mount",
    "systemd-binfmt.service", "systemd-journal-flush.service", "systemd-journald-audit.socket", "systemd-modules-load.service",
    "systemd-random-seed.service", "systemd-remount-fs.service", "systemd-sysctl.service", "systemd-timesyncd.service",
    "systemd-tmpfiles-setup-dev.service", "systemd-udev-trigger.service", "systemd-udevd.service", "systemd-update-utmp.service",
)  # fmt: skip
# $1: an empty folder; $2: the environment with oncofed; what follows: hierarchies of control groups.
BOOT = """
set -eu
PATH=/usr/sbin:/usr/bin:/sbin:/bin
W=$1; VENV=$2; shift 2; R=$W/root
mount --make-rprivate /
mount -t tmpfs -o mode=755 none $W
mkdir -p $W/upper $W/work $W/venv-upper $W/venv-work $R
mount -t overlay overlay -o lowerdir=/,upperdir=$W/upper,workdir=$W/work $R
mount -t proc -o nosuid,nodev,noexec proc $R/proc
mount --bind $R/proc/sys $R/proc/sys
mount -o remount,ro,bind $R/proc/sys
mount -t sysfs -o ro sysfs $R/sys
C=$R/sys/fs/cgroup
case "$*" in
    "") mount -t cgroup2 cgroup2 $C ;;
    *)  mount -t tmpfs -o mode=755 none $C
        for h in "$@"; do
            mkdir $C/$h
            case $h in
                unified) mount -t cgroup2 cgroup2 $C/$h ;;
                systemd) mount -t cgroup -o none,name=systemd cgroup $C/$h ;;
                *) mount -t cgroup -o $h cgroup $C/$h ;;
            esac
        done ;;
esac
mount -t tmpfs -o mode=755 none $R/dev
node() { mknod -m 666 $R/dev/$1 c $2 $3; }
node null 1 3; node zero 1 5; node full 1 7; node random 1 8; node urandom 1 9; node tty 5 0
mkdir $R/dev/pts $R/dev/shm
mount -t devpts -o newinstance,ptmxmode=666 devpts $R/dev/pts
ln -s pts/ptmx $R/dev/ptmx
ln -s /proc/self/fd $R/dev/fd
mount -t tmpfs -o mode=1777 none $R/dev/shm
mount -t tmpfs -o mode=755 none $R/run
mount -t tmpfs -o mode=1777 none $R/tmp
rm -rf $R/etc/systemd/system/* $R/srv/oncofed* $R/var/lib/oncofed* $R/opt/oncofed
for unit in MASKED; do ln -s /dev/null $R/etc/systemd/system/$unit; done
mkdir -p $R/opt/oncofed $R/old
mount -t overlay overlay -o lowerdir=$VENV,upperdir=$W/venv-upper,workdir=$W/venv-work $R/opt/oncofed
ip link set lo up
ip address add 192.0.2.1/32 dev lo
ip address add 192.0.2.2/32 dev lo
cd $R
pivot_root . old
umount -l /old
# A credential's file is mounted elsewhere and has to come here.
mount --make-rshared /
export container=oncofed PATH=/usr/sbin:/usr/bin:/sbin:/bin
exec /lib/systemd/systemd --unit=basic.target --log-target=console < /dev/null
""".replace("MASKED", " ".join(MASKED))
INSTALL = f"""
set -eu
cd /opt/oncofed/bin
ln -sf {PYTHON} python3.11; ln -sf python3.11 python3; ln -sf python3.11 python
grep -lI '^#!.*/python' * | xargs sed -i '1s|^#!.*|#!/opt/oncofed/bin/python3.11|'
printf 'home = {PYTHON.parent}\\ninclude-system-site-packages = false\\n' > ../pyvenv.cfg
tar -x -C {INSTALLED} --no-same-owner
for part in {" ".join(PARTS)}; do echo {INSTALLED}/$part; done > ../lib/python3.11/site-packages/_editable_impl_oncofed.pth
chmod -R a+rX {INSTALLED}
"""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A systemd that runs.

    Attributes:
        pid: of its process 1, on this machine.
    """

    pid: int

    def words(self, *words: object, user: str | None = None, inside: str = INSTALLED) -> list[str]:
        become = () if user is None else ("runuser", "-u", user, "--")
        where = ("env", "-i", "-C", inside, "PATH=/opt/oncofed/bin:/usr/bin:/usr/sbin", "OMP_NUM_THREADS=1")
        return ["nsenter", "-t", str(self.pid), "-a", *where, *become, *map(str, words)]

    def call(
        self, *words: object, user: str | None = None, code: int | None = 0, given: bytes = b"", inside: str = INSTALLED
    ) -> str:
        """A command on it as a person types it, and what it printed."""
        ended = subprocess.run(
            self.words(*words, user=user, inside=inside), input=given, capture_output=True, check=False, timeout=600.0
        )
        said = (ended.stdout + ended.stderr).decode(errors="replace")
        assert code is None or ended.returncode == code, f"{words} ended with {ended.returncode}\n{said}"
        return ended.stdout.decode(errors="replace") if code == 0 else said

    def write(self, path: str, text: str, *, mode: str = "644") -> None:
        self.call("tee", path, given=text.encode())
        self.call("chmod", mode, path)

    def log(self, unit: str) -> str:
        return self.call("journalctl", "--no-pager", "-o", "cat", "-u", unit, code=None)

    def main(self, unit: str) -> int:
        """A unit's first process, as a number there; 0 where it does not run."""
        return int(self.call("systemctl", "show", "-p", "MainPID", "--value", unit))


def why_not() -> str:
    """Why this machine can have none, as far as it is seen without trying."""
    if os.geteuid() != 0:
        return "only root can start a second systemd"
    if sys.prefix == sys.base_prefix:
        return "oncofed is not installed in an environment of its own, which could be copied"
    if not SYSTEMD.exists() or not PYTHON.exists():
        return f"this machine has no {SYSTEMD if PYTHON.exists() else PYTHON}"
    return ""


def _groups() -> dict[str, Path]:
    """By hierarchy, a new control group of our own below the one that we are in; the name is empty where there is only one."""
    found = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        mixed = (CONTROL / "unified").is_dir()
        name = names.removeprefix("name=") or ("unified" if mixed else "")
        group = CONTROL / name / path.strip("/") / f"oncofed-{os.getpid()}"
        if (CONTROL / name).is_dir():
            group.mkdir()
            for each in ("cpuset.cpus", "cpuset.mems") if name == "cpuset" else ():
                (group / each).write_text((group.parent / each).read_text())
            found[name] = group
    return found


def _enter(groups: list[Path]) -> None:
    for group in groups:
        (group / "cgroup.procs").write_text("0")


def _removed(group: Path) -> bool:
    # A process that was killed is in it for a moment yet.
    with contextlib.suppress(OSError):
        for folder, _, _ in os.walk(group, topdown=False):
            Path(folder).rmdir()
    return not group.exists()


@contextlib.contextmanager
def second_systemd(folder: Path) -> Iterator[Machine]:
    """A systemd that has come up, with oncofed below /opt/oncofed, and 192.0.2.1 and 192.0.2.2 as its addresses.

    Raises:
        OSError: it does not come up on this machine.
    """
    groups = _groups()
    hierarchies = [name for name in groups if name]
    words = [
        "/usr/bin/unshare",
        "--pid",
        "--mount",
        "--cgroup",
        "--net",
        "--uts",
        "--ipc",
        "--fork",
        "--kill-child=KILL",
    ]
    place, console = folder / "machine", folder / "console.log"
    place.mkdir()
    with console.open("wb") as log:
        outer = subprocess.Popen(
            [*words, "/bin/sh", "-c", BOOT, "sh", str(place), sys.prefix, *hierarchies],
            env={},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=partial(_enter, list(groups.values())),  # noqa: PLW1509 - no other thread is in here yet
        )
    try:
        machine = Machine(pid=_first_process(outer, console))
        parts = subprocess.run(
            ["tar", "-c", "--exclude=__pycache__", "deploy", *PARTS], cwd=ROOT, stdout=subprocess.PIPE, check=True
        )
        machine.call("mkdir", "-p", INSTALLED, inside="/")
        machine.call("sh", "-c", INSTALL, given=parts.stdout)
        yield machine
    finally:
        for child in _children(outer.pid):
            os.kill(child, signal.SIGKILL)
        outer.wait(30)
        for group in groups.values():
            until(partial(_removed, group), 30.0)


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _first_process(outer: subprocess.Popen[bytes], console: Path, patience: float = 60.0) -> int:
    end = time.monotonic() + patience
    while time.monotonic() < end and outer.poll() is None:
        for pid in _children(outer.pid):
            asked = ["nsenter", "-t", str(pid), "-a", "systemctl", "is-system-running"]
            if subprocess.run(asked, capture_output=True, check=False).stdout in {b"running\n", b"degraded\n"}:
                return pid
        time.sleep(0.3)
    raise OSError(f"no second systemd came up: {console.read_text(errors='replace')[-500:]}")
