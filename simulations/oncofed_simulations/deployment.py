"""A consortium of real processes on this machine: an aggregator behind its proxy, and sites as a person starts them.

For benchmarks and long tests. Every command is the one that a person types. Lines that the services print are kept with the
moment at which they came, so that what happened between two of them can be told.
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psutil

from oncofed_client.daemon_client import healthy
from oncofed_shared.errors import LocalProtocolError
from oncofed_shared.processes import Descendants, dies_with_us, runs, subreaper
from oncofed_shared.signed_study import read_study

__all__ = ["Consortium", "Service", "free_port", "new_consortium", "resident", "wait_until"]

# One thread each, and Flower calls nobody.
QUIET = {"OMP_NUM_THREADS": "1", "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
AT_ONCE = 2
LOOK = 0.05
ENDED = frozenset({"done", "failed", "stuck", "cancelled"})


def free_port() -> int:
    """A port of 127.0.0.1 that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(what: Callable[[], object], patience: float, why: Callable[[], str]) -> None:
    """Wait for something.

    Raises:
        LocalProtocolError: it does not come in this many seconds.
    """
    end = time.monotonic() + patience
    while not what():
        if time.monotonic() > end:
            raise LocalProtocolError(why())
        time.sleep(LOOK)


@dataclass(kw_only=True)
class Service:
    """A process that is left running, and what it and its children print.

    Attributes:
        lines: moments on the monotonic clock, and lines.
    """

    name: str
    words: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    lines: list[tuple[float, str]] = field(default_factory=list)
    process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start it."""
        given = [f"{name}={value}" for name, value in (QUIET | dict(self.environment)).items()]
        self.process = subprocess.Popen(  # noqa: S603 - our own words
            dies_with_us(["/usr/bin/env", *given, *self.words]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process is not None  # noqa: S101 - for the type checker
        assert self.process.stdout is not None  # noqa: S101 - for the type checker
        with self.process.stdout as printed:
            for line in printed:
                self.lines.append((time.monotonic(), line.rstrip("\n")))
        # Whoever ended it: nothing of it is left open.
        self.process.wait()

    def said(self, pattern: str) -> list[float]:
        """When it printed lines in which a pattern is found."""
        wanted = re.compile(pattern)
        return [at for at, line in list(self.lines) if wanted.search(line)]

    def tree(self) -> list[psutil.Process]:
        """It and all below it."""
        with contextlib.suppress(psutil.NoSuchProcess):
            if self.process is not None:
                top = psutil.Process(self.process.pid)
                return [p for p in (top, *top.children(recursive=True)) if runs(p.pid)]
        return []

    def stop(self, patience: float = 60.0) -> int:
        """Ask it to end; its exit code."""
        if self.process is None:
            return 0
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(patience)

    def tail(self, count: int = 40) -> str:
        """The last lines."""
        return "\n".join(line for _, line in self.lines[-count:])


def resident(processes: Sequence[psutil.Process]) -> tuple[float, float]:
    """What processes have in memory, in MiB.

    Returns:
        What they have together, and the sum of their resident sets, in which a page counts as often as it is shared among them.
        Together: pages of no file, each divided among those that share it (that are all copies of one process, so they are ours);
        and of every mapped file as much as the one of them has that has most of it. Other processes of the machine that have
        mapped the same libraries make it no smaller.
    """
    alone = whole = 0
    files: dict[str, int] = defaultdict(int)
    for process in processes:
        with contextlib.suppress(psutil.Error, OSError):
            mapped: dict[str, int] = defaultdict(int)
            for each in process.memory_maps(grouped=False):
                whole += each.rss
                if each.path.startswith("/"):
                    mapped[each.path] += each.rss - each.anonymous
            rollup = (Path("/proc") / str(process.pid) / "smaps_rollup").read_text(encoding="ascii")
            found = dict(re.findall(r"^(\w+): +(\d+) kB$", rollup, re.MULTILINE))
            alone += (int(found["Pss_Anon"]) + int(found["Pss_Shmem"])) << 10
            for path, size in mapped.items():
                files[path] = max(files[path], size)
    return (alone + sum(files.values())) / 2**20, whole / 2**20


@dataclass(kw_only=True)
class Consortium:
    """Folders, commands and services of one aggregator and its sites.

    Attributes:
        folder: all that is kept; each site's data is in `sites/NAME`.
        short: for sockets, whose paths may not be long.
    """

    folder: Path
    short: Path
    port: int = field(default_factory=free_port)
    hub: Service | None = None
    sites: dict[str, Service] = field(default_factory=dict)

    @property
    def place(self) -> Path:
        """The aggregator's folder."""
        return self.folder / "hub"

    @property
    def plan_key(self) -> Path:
        """The private plan key."""
        return self.folder / "plan.key"

    def words(self, role: str, *words: object) -> list[str]:
        """A command of ours: `role` is client or server."""
        return [sys.executable, "-m", f"oncofed_{role}", *map(str, words)]

    def call(self, role: str, *words: object) -> str:
        """Run a command; what it printed.

        Raises:
            LocalProtocolError: it ended with a code.
        """
        ended = subprocess.run(  # noqa: S603 - our own words
            self.words(role, *words), capture_output=True, text=True, check=False, timeout=600
        )
        if ended.returncode:
            raise LocalProtocolError(f"{words[0]} ended with {ended.returncode}: {ended.stdout}{ended.stderr}")
        return ended.stdout

    def aggregator(self, *words: object) -> str:
        """A command of the aggregator, in its folder."""
        return self.call("server", *words, "--dir", self.place)

    def found(self) -> None:
        """Make the aggregator."""
        self.call("server", "plan-key", "--out", self.plan_key)
        address = ("--address", f"127.0.0.1:{self.port}", "--plan-key", self.plan_key.with_suffix(".pub"))
        self.call("server", "init", self.place, "--name", "hub", *address)

    def join(self, names: Sequence[str]) -> None:
        """Enrol sites whose data lie in `folder/sites`."""

        def request(name: str) -> None:
            (self.folder / "sites" / name).chmod(0o700)
            self.call("client", "enrol", "request", self.data(name), "--out", self.folder / f"{name}.request")

        def install(name: str) -> None:
            self.call("client", "enrol", "install", self.data(name), self.folder / f"{name}.answer")

        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(request, names))
            for name in names:
                out = ("--out", self.folder / f"{name}.answer")
                self.aggregator("enrol", self.folder / f"{name}.request", *out)
            list(pool.map(install, names))

    def data(self, name: str) -> Path:
        """A site's folder."""
        return self.folder / "sites" / name

    def socket(self, name: str) -> Path:
        """Of a site's daemon."""
        return self.short / name / "daemon.sock"

    def submit(self, study: Path, names: Sequence[str], *words: object) -> str:
        """Prepare a study, approve it at every site, submit it.

        Returns:
            Its id.
        """
        out = self.folder / f"{study.stem}.study"
        self.aggregator("prepare", study, "--plan-key", self.plan_key, "--out", out, *words)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(lambda name: self.call("client", "approve", out, "--site", self.data(name)), names))
        self.aggregator("submit", out)
        return read_study(out.read_bytes(), plan_key=None).id

    def start(self, names: Sequence[str]) -> None:
        """Start the aggregator and the sites, and wait until every gate has its session."""
        self.hub = Service(name="hub", words=self.words("server", "start", "--dir", self.place))
        self.hub.start()
        for name in names:
            words = self.words("client", "start", self.data(name), "--socket", self.socket(name))
            self.sites[name] = Service(name=name, words=words)
            self.sites[name].start()
        for name, site in self.sites.items():
            why = partial(site.tail)
            wait_until(partial(healthy, self.socket(name)), 300.0, why)
            wait_until(lambda site=site: site.said("SuperNode ID"), 300.0, why)  # type: ignore[misc] # the name is bound

    def status(self, study: str) -> dict[str, object]:
        """What `oncofed-aggregator status` reads."""
        path = self.place / "studies" / study / "status.json"
        read: dict[str, object] = json.loads(path.read_bytes()) if path.exists() else {}
        return read

    def finish(self, study: str, patience: float) -> dict[str, object]:
        """Wait until a study has ended; its status."""
        wait_until(lambda: self.status(study).get("phase") in ENDED, patience, lambda: str(self.status(study)))
        return self.status(study)


@contextlib.contextmanager
def new_consortium(folder: Path) -> Iterator[Consortium]:
    """An aggregator without sites; nothing that is started in here outlives it."""
    with tempfile.TemporaryDirectory(prefix="oncofed-") as short, subreaper():
        ours = Descendants()
        made = Consortium(folder=folder, short=Path(short))
        try:
            made.found()
            yield made
        finally:
            ours.kill(patience=20.0)
