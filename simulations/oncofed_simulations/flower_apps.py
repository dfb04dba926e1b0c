"""The simulation's two Flower apps: the ServerApp drives an `Aggregator` per run, the ClientApp is one of the sites.

Flower imports both by name from what is installed; the bundle that `flwr run` ships names them and holds no code. Everything
else they need is in the job's file, whose path is the only key of the run's configuration.

A node is a site in one lane: node k is member k mod m of lane k div m. Runs in different lanes do not wait for each other.
"""

from __future__ import annotations

import time
import traceback
from collections import deque
from functools import lru_cache
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from oncofed_client.app import Handle, relay
from oncofed_client.site import Site
from oncofed_server.app import Exchange, ask_names
from oncofed_shared.errors import Interrupted, LocalProtocolError, OncofedError, RemoteProtocolError
from oncofed_shared.messages import Request, Trial, from_bytes, to_bytes
from oncofed_shared.plan import Plan
from oncofed_shared.processes import runs
from oncofed_simulations.consortium import KeptRun, keeper, open_site
from oncofed_simulations.flower_job import Job, roster_of, stop_is_asked, write_outcome
from oncofed_simulations.journal import keep_journal

__all__ = ["client_app", "run_job", "server_app"]

# Until all nodes have answered once: Ray starts its workers and each imports torch.
PATIENCE = 600.0
PAUSE = 0.02
LOOK_AFTER_DRIVER = 1.0
# Sites that one worker process keeps open; the rest is opened again when asked.
OPEN_SITES = 256


# -- a site ---------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _job(path: str) -> tuple[Job, Plan]:
    job = Job.read(Path(path))
    return job, job.whole_plan


@lru_cache(maxsize=OPEN_SITES)
def _site(path: str, partition: int) -> Site:
    """A node's site, once per worker process; its sessions lie in its state folder, where another process finds them."""
    job, plan = _job(path)
    member = job.members[partition % len(job.members)]
    return open_site(Path(member.folder), plan, state=Path(member.state), minimum=job.minimum)


def _place(context: Context) -> tuple[str, int]:
    return str(context.run_config["job"]), int(context.node_config["partition-id"])


def _connect(context: Context) -> Handle:
    site = _site(*_place(context))

    def handle(content: bytes) -> bytes:
        request: Request = from_bytes(content)  # type: ignore[assignment] # our own aggregator sent it
        reply = site.handle(request)
        keep_journal(site)
        return to_bytes(reply)

    return handle


def _name(context: Context) -> str:
    path, partition = _place(context)
    job, _ = _job(path)
    _site(path, partition)
    lane, member = divmod(partition, len(job.members))
    return f"{lane}/{job.members[member].name}"


client_app = relay(_connect, _name)


# -- the aggregator ---------------------------------------------------------------------------------------------------------


class _Lane:
    """Takes one run after the other from a queue."""

    def __init__(self, job: Job, plan: Plan, folder: Path, grid: Grid, nodes: dict[str, int]) -> None:
        self._job, self._plan, self._folder, self._grid, self._nodes = job, plan, folder, grid, nodes
        self._kept: KeptRun | None = None
        self._exchange: Exchange | None = None
        self.stopped: Interrupted | None = None

    def take(self, trial: Trial) -> None:
        job = self._job
        roster = roster_of(self._plan, job.members)
        self._kept = KeptRun.open(self._plan, Path(job.store), "federated", roster, trial, curves=True)
        self._exchange = Exchange(
            self._kept.aggregator,
            self._grid,
            self._nodes,
            # No site is left out because this machine is slow: as in loopback, only silence of the engine ends a run.
            clock=lambda: 0.0,
            after_step=keeper(self._kept, lambda key, aggregator: None, lambda: stop_is_asked(self._folder)),
            on_error=_give_up,
        )

    @property
    def busy(self) -> bool:
        return self._exchange is not None

    def advance(self) -> bool:
        """Go on for a moment; True if there was something to do."""
        if self._exchange is None or self._kept is None:
            return False
        try:
            moved = self._exchange.advance()
        except Interrupted as stopped:
            self.stopped, self._exchange = stopped, None
            return True
        if self._exchange.finished:
            self._kept.close()
            self._exchange = None
            return True
        return moved


def _give_up(site: str, what: str) -> None:
    raise RemoteProtocolError(f"{site}: its worker failed: {what}")


def run_job(grid: Grid, path: Path) -> None:
    """Run all trials of a job.

    Raises:
        RemoteProtocolError: a run failed, or a worker did.
        Interrupted: somebody asked to stop; every run is saved.
    """
    job, folder = Job.read(path), path.parent
    plan = job.whole_plan
    names = ask_names(grid, job.lanes * len(job.members), patience=PATIENCE)
    lanes = [
        _Lane(job, plan, folder, grid, {m.name: names[f"{k}/{m.name}"] for m in job.members}) for k in range(job.lanes)
    ]
    waiting = deque(job.whole_trials)
    looked = time.monotonic()
    while waiting or any(lane.busy for lane in lanes):
        stopping = stop_is_asked(folder)
        for lane in lanes:
            if waiting and not lane.busy and not stopping:
                lane.take(waiting.popleft())
        moved = [lane.advance() for lane in lanes]
        stopped = [lane.stopped for lane in lanes if lane.stopped]
        # A lane may have seen the wish before this loop did.
        if (stopped or (stopping and waiting)) and not any(lane.busy for lane in lanes):
            raise stopped[0] if stopped else Interrupted("stopped between two runs; --resume goes on from there")
        if time.monotonic() - looked > LOOK_AFTER_DRIVER:
            looked = time.monotonic()
            if not runs(job.driver):
                raise Interrupted("the command that waits for this run is gone; --resume goes on from there")
        if not any(moved):
            time.sleep(PAUSE)


server_app = ServerApp()


@server_app.main()
def _main(grid: Grid, context: Context) -> None:
    """Run a job, and write down how it ended; Flower says only that it did."""
    path = Path(str(context.run_config["job"]))
    error: OncofedError | None = None
    try:
        run_job(grid, path)
    except OncofedError as known:
        error = known
    except Exception as defect:
        frames = traceback.extract_tb(defect.__traceback__)
        place = f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}"
        error = LocalProtocolError(f"the ServerApp failed with {type(defect).__name__} in {place}")
        raise
    finally:
        write_outcome(path.parent, error)
    if error is not None:
        raise error
