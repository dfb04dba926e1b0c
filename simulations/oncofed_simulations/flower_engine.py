"""`--engine flower`: a study's federated runs under Flower's simulation engine.

What the runs leave are the snapshots that `Consortium` looks for: a study that runs afterwards finds them finished, and one
that is resumed, with whichever engine, goes on from them. Flower's word about success is not taken: only the result files count.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from oncofed_server.aggregator import Aggregator
from oncofed_shared.errors import ConfigError, LocalProtocolError
from oncofed_shared.messages import Trial
from oncofed_shared.plan import Plan
from oncofed_shared.processes import subreaper
from oncofed_shared.storage import write_whole
from oncofed_simulations.consortium import KeptRun
from oncofed_simulations.flower_job import Job, Member, roster_of
from oncofed_simulations.flower_supervisor import Supervisor

__all__ = ["FlowerEngine", "check_ray_address"]

# More nodes than this in all, and Flower spends its time on looking for their messages.
MOST_NODES = 64
LONGEST_ROOT = 24
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
        with subreaper(), _short_folder() as short:
            Supervisor(
                self.folder,
                nodes=self._lanes(trials) * len(self.members),
                environment=self.environment,
                ray_address=self.ray_address,
                short=short,
                interrupted=self.interrupted,
                progress=partial(self._report, trials, {}),
            ).run()
        unfinished = [t for t in trials if not self._kept(t).found]
        if unfinished:
            raise LocalProtocolError(f"Flower's engine left {len(unfinished)} runs unfinished; see {self.folder}")
        shutil.rmtree(self.folder, ignore_errors=True)

    def _kept(self, trial: Trial) -> KeptRun:
        roster = roster_of(self.plan, self.members)
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

    def _report(self, trials: list[Trial], seen: dict[str, float]) -> None:
        """Tell the watcher what is new on disk."""
        for trial in trials:
            key, path = KeptRun.place(self.out / "progress", "federated", trial)
            changed = path.stat().st_mtime if path.exists() else 0.0
            if changed > seen.get(key, 0.0):
                seen[key] = changed
                self.watch(key, self._kept(trial).aggregator)


@contextlib.contextmanager
def _short_folder() -> Iterator[Path]:
    """A folder for Ray's sockets, whose paths have at most 107 bytes; gone afterwards."""
    usual = tempfile.gettempdir()
    root = usual if len(usual) <= LONGEST_ROOT else "/tmp"  # noqa: S108 - `mkdtemp` makes one that nobody else can enter
    with tempfile.TemporaryDirectory(prefix="ray-", dir=root, ignore_cleanup_errors=True) as short:
        yield Path(short)
