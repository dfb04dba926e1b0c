"""A consortium of real processes in one folder: commands as people type them, services as they are left running.

Ports are free ones of 127.0.0.1. Between the sites and the aggregator's proxy, and between each gate and its daemon, stands a tap
that keeps what crosses. Everything that is started is a descendant of the test and gone at its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import psutil
import pytest

from oncofed_client.daemon import Daemon, own_socket
from oncofed_client.daemon_client import call, healthy
from oncofed_server.service.proxy import find_nginx
from oncofed_shared.errors import ConfigError
from oncofed_shared.processes import Descendants, dies_with_us, runs, subreaper

Seen = TypeVar("Seen")
ROOT = Path(__file__).resolve().parents[2]
STUDIES = ROOT / "simulations" / "studies"
# Flower calls nobody else, and nobody on this machine listens to the world.
QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "OMP_NUM_THREADS": "1"}


def _no_proxy() -> str:
    try:
        find_nginx("")
    except ConfigError as error:
        return str(error)
    return ""


needs_proxy = pytest.mark.skipif(bool(_no_proxy()), reason=_no_proxy() or "there is one")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(what: Callable[[], Seen], patience: float, why: Callable[[], str] = lambda: "not in time") -> Seen:
    """What was waited for, as it was seen: asked again, it may be gone."""
    end = time.monotonic() + patience
    while not (seen := what()):
        assert time.monotonic() < end, why()
        time.sleep(0.2)
    return seen


@dataclass
class Service:
    """A process that is left running, and its log."""

    words: list[str]
    log: Path
    environment: dict[str, str]
    folder: Path | None = None
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                dies_with_us(self.words),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment,
                cwd=self.folder,
            )

    def tree(self) -> list[psutil.Process]:
        """It and all below it."""
        assert self.process is not None
        with contextlib.suppress(psutil.NoSuchProcess):
            top = psutil.Process(self.process.pid)
            return [top, *top.children(recursive=True)]
        return []

    def running(self, word: str) -> list[psutil.Process]:
        """Those of the tree that run a program of this name, or module, or have this word on their command line."""
        found = []
        for process in self.tree():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                if any(part == word or part.endswith(f"/{word}") for part in process.cmdline()[:4]):
                    found.append(process)
        return found

    def stop(self, patience: float = 30.0) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(patience)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()


@dataclass
class Tap:
    """Keeps every message that crosses a socket, by direction."""

    inner: Path
    kept: list[tuple[str, bytes]] = field(default_factory=list)

    def handle(self, content: bytes) -> bytes:
        self.kept.append(("down", content))
        answer = call(self.inner, content, patience=100.0)
        self.kept.append(("up", answer))
        return answer

    def leaves_in(self, elapsed: float) -> float:
        del elapsed
        return 0.0


class WireTap:
    """Ends the sites' TLS with the aggregator's own certificate, keeps what it reads, and goes on to the proxy by TLS."""

    def __init__(self, port: int, onward: int, certificate: Path, key: Path, authority: Path) -> None:
        self.kept: list[tuple[str, bytearray]] = []
        self._open: set[asyncio.StreamWriter] = set()
        self._port, self._onward = port, onward
        self._server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._server.load_cert_chain(certificate, key)
        self._client = ssl.create_default_context(cafile=str(authority))
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="wire tap")
        self._thread.start()
        assert self._ready.wait(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(
            asyncio.start_server(self._serve, "127.0.0.1", self._port, ssl=self._server)
        )
        self._ready.set()
        self._loop.run_forever()
        server.close()
        for writer in self._open:
            writer.transport.abort()
        # What was waiting on them sees that they are gone, and ends.
        self._loop.run_until_complete(asyncio.sleep(0.3))
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0.1))
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            inner, outer = await asyncio.open_connection("127.0.0.1", self._onward, ssl=self._client)
        except OSError:
            writer.transport.abort()
            return
        self._open.add(outer)
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await asyncio.gather(self._pipe("up", reader, outer), self._pipe("down", inner, writer))
        for each in (writer, outer):
            each.transport.abort()
            self._open.discard(each)

    async def _pipe(self, way: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        whole = bytearray()
        self.kept.append((way, whole))
        try:
            while part := await reader.read(1 << 16):
                whole += part
                writer.write(part)
                await writer.drain()
        except (OSError, ssl.SSLError):
            pass
        finally:
            if writer.can_write_eof():
                writer.write_eof()
            else:
                writer.close()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)


@dataclass
class Hospital:
    """One site: its folder, its two services, and the tap between them."""

    name: str
    data: Path
    run: Path
    daemon: Service
    gate: Service
    tap: Tap

    @property
    def state(self) -> Path:
        return self.data.with_name(f"{self.data.name}.state")

    @property
    def figures(self) -> Path:
        """Where daemon and gate write for Prometheus."""
        return self.run / "figures"

    @property
    def socket(self) -> Path:
        """The daemon's own."""
        return self.tap.inner


@dataclass
class Consortium:
    """Folders, services and commands of one aggregator and its sites."""

    folder: Path
    short: Path
    environment: dict[str, str]
    hospitals: dict[str, Hospital] = field(default_factory=dict)
    services: list[Service] = field(default_factory=list)
    port: int = field(default_factory=free_port)
    listen: int = field(default_factory=free_port)
    figures: int = field(default_factory=free_port)

    @property
    def hub(self) -> Path:
        return self.folder / "hub"

    @property
    def plan_key(self) -> Path:
        return self.folder / "plan.key"

    def words(self, role: str, *words: object) -> list[str]:
        return [sys.executable, "-m", f"oncofed_{role}", *map(str, words)]

    def call(self, role: str, *words: object, code: int = 0, patience: float = 300.0) -> str:
        """A command as a person types it, and what it printed."""
        ended = subprocess.run(
            self.words(role, *words),
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=patience,
            check=False,
        )
        said = f"{' '.join(map(str, words))} ended with {ended.returncode}\n{ended.stdout}{ended.stderr}"
        assert ended.returncode == code, said
        assert "Traceback" not in ended.stderr, said
        return ended.stdout + ended.stderr if code else ended.stdout

    def site(self, *words: object, code: int = 0, patience: float = 300.0) -> str:
        return self.call("client", *words, code=code, patience=patience)

    def aggregator(self, *words: object, code: int = 0, patience: float = 300.0) -> str:
        return self.call("server", *words, "--dir", self.hub, code=code, patience=patience)

    def service(self, name: str, role: str, *words: object) -> Service:
        made = Service(words=self.words(role, *words), log=self.folder / f"{name}.log", environment=self.environment)
        self.services.append(made)
        return made

    def add(self, data: Path) -> Hospital:
        run = self.short / data.name
        inner, outer = run / "daemon.sock", run / "tap" / "daemon.sock"
        figures = run / "figures"
        figures.mkdir(mode=0o700, parents=True, exist_ok=True)
        told = ("--metrics", figures)
        self.hospitals[data.name] = Hospital(
            name=data.name,
            data=data,
            run=run,
            daemon=self.service(
                f"{data.name}.daemon", "client", "start", data, "--only", "daemon", "--socket", inner, *told
            ),
            gate=self.service(f"{data.name}.gate", "client", "start", data, "--only", "gate", "--socket", outer, *told),
            tap=Tap(inner=inner),
        )
        return self.hospitals[data.name]

    def logs(self) -> str:
        """The ends of all logs, for a test that fails."""
        found = [p for p in (*self.folder.glob("*.log"), *self.hub.rglob("*.log")) if p.is_file()]
        return "\n".join(f"== {p.name}\n{p.read_text(errors='replace')[-3000:]}" for p in found)


@contextlib.contextmanager
def everything_ends() -> Iterator[None]:
    """No process that is started in here outlives it."""
    with subreaper():
        ours = Descendants()
        try:
            yield
        finally:
            assert ours.kill(patience=20.0)


@contextlib.contextmanager
def new_consortium(folder: Path) -> Iterator[Consortium]:
    """An empty machine."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="oncofed-") as short:
        made = Consortium(folder=folder, short=Path(short), environment={**os.environ, **QUIET})
        with everything_ends():
            yield made
        for service in made.services:
            if service.process is not None:
                service.process.poll()


@contextlib.contextmanager
def tapped(hospital: Hospital) -> Iterator[None]:
    """The tap between a gate and its daemon, for as long as both run."""
    with own_socket(hospital.run / "tap" / "daemon.sock") as outer:
        tap = Daemon(outer, lambda: hospital.tap)
        try:
            yield
        finally:
            tap.stop(grace=2.0)


def ready(hospital: Hospital, patience: float = 60.0) -> None:
    """Wait until a daemon serves."""
    until(partial(healthy, hospital.socket), patience, lambda: hospital.daemon.log.read_text(errors="replace")[-4000:])


def is_gone(processes: list[psutil.Process]) -> bool:
    return not any(runs(p.pid) for p in processes)


def copied(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target
