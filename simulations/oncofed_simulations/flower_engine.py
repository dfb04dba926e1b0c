"""`--engine flower`: a study's federated runs under Flower's simulation engine, as child processes that all end with it.

    this process ── flower-superlink (127.0.0.1, a free port) ── flower-superexec ── flwr-simulation: ServerApp ── Ray ── sites
                 └─ flwr run (ships the bundle, then ends)

What the runs leave are the snapshots that `Consortium` looks for: a study that runs afterwards finds them finished, and one
that is resumed, with whichever engine, goes on from them. Flower's word about success is not taken: only the result files count.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from oncofed_server.aggregator import Aggregator
from oncofed_shared.errors import ConfigError, Interrupted, LocalProtocolError, OncofedError
from oncofed_shared.messages import Trial
from oncofed_shared.plan import Plan
from oncofed_shared.storage import write_whole
from oncofed_simulations.consortium import KeptRun, federated_roster
from oncofed_simulations.flower_job import Job, Member, ask_to_stop, read_outcome
from oncofed_simulations.processes import Descendants, dies_with_us, subreaper

__all__ = ["FlowerEngine", "check_ray_address"]

SIMULATION = "flwr-simulation"
START_SECONDS = 120.0
PORTS_TRIED = 3
LOOK_SECONDS = 0.1
PROGRESS_SECONDS = 1.0
# More nodes than this in all, and Flower spends its time on looking for their messages.
MOST_NODES = 64
PYPROJECT = """\
# Written for one run. No code in it: Flower imports the apps from what is installed.
[project]
name = "oncofed-simulation"
version = "1.0.0"
description = "Names oncofed's apps"
license = {{ file = "LICENSE" }}
dependencies = ["flwr>=1.41.0"]

[tool.flwr.app]
publisher = "oncofed"
fab-format-version = 1
flwr-version-target = "1.41.0"
fab-include = ["/pyproject.toml", "/README.md", "/LICENSE"]

[tool.flwr.app.components]
serverapp = "oncofed_simulations.flower_apps:server_app"
clientapp = "oncofed_simulations.flower_apps:client_app"

[tool.flwr.app.config]
job = {job}
"""


def check_ray_address(address: str) -> None:
    """Refuse what is not HOST:PORT."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(f"--ray-address {address}: expected HOST:PORT of a Ray cluster's head, like 10.0.0.5:6379")


@dataclass(frozen=True, kw_only=True)
class FlowerEngine:
    """Runs trials of a plan.

    Attributes:
        members: the hospitals.
        minimum: fewest patients, in place of a site's policy.
        out: folder of the whole study; must be seen by every machine of a Ray cluster under this path.
        environment: of the processes that are started; ours is added to it.
        ray_address: HOST:PORT of a Ray cluster that is there already; without it one is started on this machine.
        interrupted: whether a person wants to stop.
        watch: told of every new snapshot of a run.
    """

    plan: Plan
    members: tuple[Member, ...]
    minimum: int | None
    out: Path
    environment: Mapping[str, str]
    ray_address: str | None = None
    interrupted: Callable[[], bool] = lambda: False
    watch: Callable[[str, Aggregator], None] = lambda key, aggregator: None

    @property
    def folder(self) -> Path:
        """Where Flower's files and logs are; gone after success."""
        return self.out.resolve() / "flower"

    def run(self, trials: list[Trial]) -> None:
        """Run what is not finished yet.

        Raises:
            Interrupted: stopped by a person; the runs are saved.
            RemoteProtocolError, LocalProtocolError: a run or the engine failed.
        """
        trials = [t for t in trials if not self._kept(t).found]
        if not trials:
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        self._prepare(trials)
        with subreaper(), tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as short:
            _Supervised(self, Path(short), lanes=self._lanes(trials)).run(trials)
        unfinished = [t for t in trials if not self._kept(t).found]
        if unfinished:
            raise LocalProtocolError(f"Flower's engine left {len(unfinished)} runs unfinished; see {self.folder}")
        shutil.rmtree(self.folder, ignore_errors=True)

    def _kept(self, trial: Trial) -> KeptRun:
        roster = federated_roster(
            [m.name for m in self.members if not m.external], [m.name for m in self.members if m.external]
        )
        return KeptRun.open(self.plan, self.out / "progress", "federated", roster, trial, curves=True)

    def _lanes(self, trials: list[Trial]) -> int:
        """Runs at a time: a round of small hospitals is mostly waiting for Flower to look for messages."""
        return max(1, min(len(trials), MOST_NODES // len(self.members)))

    def _prepare(self, trials: list[Trial]) -> None:
        job = self.folder / "job.json"
        Job.of(
            self.plan,
            trials,
            members=list(self.members),
            minimum=self.minimum,
            lanes=self._lanes(trials),
            store=self.out.resolve() / "progress",
            driver=os.getpid(),
        ).write(job)
        bundle = self.folder / "bundle"
        write_whole(bundle / "pyproject.toml", PYPROJECT.format(job=json.dumps(str(job))).encode())
        write_whole(bundle / "README.md", b"Names the apps of an installed oncofed. Holds no code.\n")
        write_whole(bundle / "LICENSE", b"Apache-2.0, as oncofed itself.\n")

    def report(self, trials: list[Trial], seen: dict[str, float]) -> None:
        """Tell the watcher what is new on disk."""
        for trial in trials:
            kept = self._kept(trial)
            changed = kept.path.stat().st_mtime if kept.path.exists() else 0.0
            if changed > seen.get(kept.key, 0.0):
                seen[kept.key] = changed
                self.watch(kept.key, kept.aggregator)


class _Supervised:
    """The processes of one `flwr run`."""

    def __init__(self, engine: FlowerEngine, short: Path, *, lanes: int) -> None:
        self.engine, self.folder = engine, engine.folder
        self.nodes = lanes * len(engine.members)
        self.log = self.folder / "flower.log"
        self.ours = Descendants()
        self.environment = self._environment(short)

    def run(self, trials: list[Trial]) -> None:
        """Start everything, wait for the outcome, end everything."""
        try:
            self._start()
            self._submit()
            error = self._outcome(trials)
            if error is not None:
                raise error
        finally:
            self._end()

    # -- start ------------------------------------------------------------------------------------------------------------

    def _environment(self, short: Path) -> dict[str, str]:
        inherited = {k: v for k, v in self.engine.environment.items() if k != "RAY_ADDRESS"}
        # Flower finds its own programs by PATH.
        path = os.pathsep.join([str(Path(sys.executable).parent), inherited.get("PATH", os.defpath)])
        ours = {
            "PATH": path,
            "FLWR_HOME": str(self.folder / "home"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
            "RAY_USAGE_STATS_ENABLED": "0",
            # Sockets live below it, and a socket's path has 107 bytes.
            "RAY_TMPDIR": str(short),
        }
        if self.engine.ray_address is not None:
            ours["RAY_ADDRESS"] = self.engine.ray_address
        else:
            # Ray's own switch for laptops: listen on 127.0.0.1 alone. And whoever else is on this machine needs a token.
            ours |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
            ours |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        return inherited | ours

    def _popen(self, *words: str) -> subprocess.Popen[bytes]:
        """One of Flower's programs, in a session of its own so that Ctrl-C in a terminal reaches only us."""
        program = str(Path(sys.executable).with_name(words[0]))
        with self.log.open("ab") as log:
            return subprocess.Popen(  # noqa: S603
                dies_with_us([program, *words[1:]]),
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _start(self) -> None:
        """A SuperLink that answers. Another process may take a free port first; then another port."""
        for _ in range(PORTS_TRIED):
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            config = f'[superlink]\ndefault = "o"\n\n[superlink.o]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
            write_whole(self.folder / "home" / "config.toml", config.encode())
            options = ["--insecure", "--simulation", "--host", "127.0.0.1", "--port", str(port)]
            link = self._popen("flower-superlink", *options, "--disable-runtime-dependency-installation")
            for _ in self._waiting("Flower's SuperLink does not answer"):
                if link.poll() is not None:
                    break
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
                    return
        raise LocalProtocolError(f"Flower's SuperLink does not start; see {self.log}")

    def _submit(self) -> None:
        settings = {"num-supernodes": self.nodes, "client-resources-num-cpus": 1, "init-args-log-to-driver": "false"}
        if self.engine.ray_address is None:
            settings["init-args-num-cpus"] = min(self.nodes, os.cpu_count() or 1)
        text = " ".join(f"{k}={v}" for k, v in settings.items())
        client = self._popen("flwr", "run", str(self.folder / "bundle"), "o", "--federation-config", text)
        for _ in self._waiting("'flwr run' does not end"):
            if client.poll() is not None:
                break
        if client.returncode:
            raise LocalProtocolError(f"'flwr run' ended with {client.returncode}; see {self.log}")

    def _waiting(self, what: str) -> Iterator[None]:
        """Moments, until it takes too long or a person stops it."""
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            if self.engine.interrupted():
                raise Interrupted("stopped before the first round; --resume goes on from there")
            yield
            time.sleep(LOOK_SECONDS / 2)
        raise LocalProtocolError(f"{what}; see {self.log}")

    # -- wait -------------------------------------------------------------------------------------------------------------

    def _outcome(self, trials: list[Trial]) -> OncofedError | None:
        """How the ServerApp says that it ended, or what is known when it did not say."""
        started = told = time.monotonic()
        asked = seen = False
        snapshots: dict[str, float] = {}
        while True:
            alive = bool(self._simulation())
            # In this order: one that is gone has written its outcome before.
            ended, error = read_outcome(self.folder)
            if ended:
                self.engine.report(trials, snapshots)
                return error
            seen = seen or alive
            if not alive and (seen or time.monotonic() - started > START_SECONDS):
                raise LocalProtocolError(self._post_mortem())
            if not asked and self.engine.interrupted():
                ask_to_stop(self.folder)
                asked = True
            if time.monotonic() - told > PROGRESS_SECONDS:
                self.engine.report(trials, snapshots)
                told = time.monotonic()
            time.sleep(LOOK_SECONDS)

    def _simulation(self) -> list[psutil.Process]:
        return self.ours.named(SIMULATION)

    def _post_mortem(self) -> str:
        """Ask Flower what became of the run; its log goes beside ours."""
        run, status = "", "nobody knows why"
        with contextlib.suppress(OSError, ValueError, LookupError, subprocess.SubprocessError):
            entry = json.loads(self._ask("ls", "o", "--format", "json"))["runs"][0]
            run, status = str(entry["run-id"]), str(entry["status"])
            (self.folder / "run.log").write_text(self._ask("log", run, "o", "--show"), encoding="utf-8")
        return f"Flower's engine ended before the study ({status}); see the logs in {self.folder}"

    def _ask(self, *words: str) -> str:
        program = str(Path(sys.executable).with_name("flwr"))
        asked = subprocess.run(  # noqa: S603
            [program, *words], env=self.environment, capture_output=True, text=True, timeout=30, check=False
        )
        return asked.stdout

    # -- end --------------------------------------------------------------------------------------------------------------

    def _end(self) -> None:
        """Leave no process. What counts is on disk by now, so nobody is asked politely but the user of another's cluster."""
        try:
            if self.engine.ray_address is not None:
                self.ours.end(self._simulation, patience=10.0)
        finally:
            self.ours.kill()
