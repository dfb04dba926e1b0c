"""What the command and the processes that Flower starts for it tell each other, as files in one folder.

job.json        from the command: what is to be run
stop            from the command: end between two rounds
outcome.json    from the ServerApp: how it ended
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from oncofed_server.run_state import Roster
from oncofed_shared import errors
from oncofed_shared.errors import LocalProtocolError, OncofedError, StorageError
from oncofed_shared.messages import Trial
from oncofed_shared.plan import ConsortiumPrivacy, Plan, parse
from oncofed_shared.storage import dump_json, write_whole
from oncofed_simulations.consortium import federated_roster

__all__ = ["Job", "Member", "ask_to_stop", "read_outcome", "roster_of", "stop_is_asked", "write_outcome"]


class Member(BaseModel):
    """One simulated hospital: its name, its data, and where it keeps its own state."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str
    folder: str
    state: str
    external: bool


def roster_of(plan: Plan, members: Sequence[Member]) -> Roster:
    """Who does what; with the identity keys of those who add up securely."""
    inside = [m for m in members if not m.external]
    secure = isinstance(plan.privacy, ConsortiumPrivacy)
    states = {m.name: Path(m.state) for m in inside if secure}
    return federated_roster([m.name for m in inside], [m.name for m in members if m.external], states)


class Job(BaseModel):
    """Runs of one plan over one consortium.

    Attributes:
        plan: as JSON.
        trials: fields of `Trial`.
        lanes: runs that go on at a time; each has a node for every member.
        store: folder of snapshots and finished runs.
        driver: process that waits for the outcome; without it the job ends.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    format: Literal[1] = 1
    plan: dict[str, Any]
    members: list[Member]
    minimum: int | None
    trials: list[dict[str, int | bool]]
    lanes: int
    store: str
    driver: int

    @staticmethod
    def read(path: Path) -> Job:
        """Read what `write` wrote."""
        return Job.model_validate_json(path.read_bytes())

    def write(self, path: Path) -> None:
        """Write the job where every process, on every machine, finds it."""
        write_whole(path, dump_json(self.model_dump(mode="json")))

    @property
    def whole_plan(self) -> Plan:
        """The plan, with the hash that it had."""
        return parse(self.plan)

    @property
    def whole_trials(self) -> list[Trial]:
        """The trials, in their order."""
        return [Trial(**t) for t in self.trials]  # type: ignore[arg-type] # checked by pydantic when read

    @staticmethod
    def of(
        plan: Plan,
        trials: list[Trial],
        *,
        members: list[Member],
        minimum: int | None,
        lanes: int,
        store: Path,
        driver: int,
    ) -> Job:
        """Make a job from the program's own values."""
        return Job(
            plan=plan.model_dump(mode="json"),
            members=members,
            minimum=minimum,
            trials=[asdict(t) for t in trials],
            lanes=lanes,
            store=str(store),
            driver=driver,
        )


def ask_to_stop(folder: Path) -> None:
    """Ask the ServerApp to save every run after its round and to end."""
    write_whole(folder / "stop", b"")


def stop_is_asked(folder: Path) -> bool:
    """Whether somebody asked."""
    return (folder / "stop").exists()


def write_outcome(folder: Path, error: OncofedError | None) -> None:
    """Say how the job ended."""
    content: dict[str, Any] = {"error": None}
    if error is not None:
        content = {"error": type(error).__name__, "problems": list(error.problems), "code": error.code}
    write_whole(folder / "outcome.json", dump_json(content))


def read_outcome(folder: Path) -> tuple[bool, OncofedError | None]:
    """Whether the job has ended, and its error."""
    path = folder / "outcome.json"
    if not path.exists():
        return False, None
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return True, StorageError(f"{path}: cannot be read; run again with --resume")
    if content["error"] is None:
        return True, None
    kind = getattr(errors, content["error"], LocalProtocolError)
    return True, kind(*content["problems"], code=content["code"])
