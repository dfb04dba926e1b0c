"""`python -m oncofed_client.gate`: keeps a gate running, and a daemon beside it if told how. Imports nothing that reads data."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pwd
import sys
from collections.abc import Iterator
from pathlib import Path

from oncofed_client.gate.fence import Fence, Way, can_be_fenced
from oncofed_client.gate.programs import gate_program, prepared
from oncofed_client.log_lines import say
from oncofed_shared.errors import ConfigError, OncofedError
from oncofed_shared.keeping import Note, Program, keep
from oncofed_shared.told import told_by_signals

__all__ = ["main"]

# Seconds to end in after SIGTERM; a request that a daemon has at hand and does not finish is asked again.
PATIENCE = 30.0


def main() -> None:
    """Keep a SuperNode running until SIGTERM."""
    parser = argparse.ArgumentParser(prog="oncofed-gate", description="The gate of a site: relays, and sees no data.")
    parser.add_argument("--credentials", type=Path, required=True, help="folder with enrolment.json and node.key")
    parser.add_argument("--home", type=Path, required=True, help="the gate's own folder")
    parser.add_argument("--socket", type=Path, required=True, help="the daemon's socket")
    parser.add_argument("--user", help="run the gate as this user")
    parser.add_argument(
        "--fence", type=Fence, default=Fence.OWN, help="own, or unit: its unit holds it to the aggregator"
    )
    parser.add_argument("--metrics", type=Path, help="folder for figures")
    parser.add_argument("--daemon", type=json.loads, help="words of the daemon, as JSON")
    given = parser.parse_args()
    stop = told_by_signals()
    try:
        home = given.home.absolute()
        gate = prepared(given.credentials, home=home, socket=given.socket)
        way = _way(gate.address, given.fence, given.user)
        open_file = None if way is None else way.theirs.fileno()
        programs = [gate_program(gate, home=home, environment=os.environ, way=open_file, **_rights(given.user))]
        if given.daemon is not None:
            programs.insert(0, Program(name="daemon", command=lambda: given.daemon, environment=os.environ))
        with _noted(given.metrics, tuple(p.name for p in programs)) as note:
            keep(programs, stop=stop, say=lambda text: None, patience=PATIENCE, note=note)
    except OncofedError as error:
        sys.stderr.write("".join(f"oncofed-gate: {line}\n" for line in error.problems))
        sys.exit(error.exit_code)


def _way(address: str, fence: Fence, user: str | None) -> Way | None:
    """The way out of the fence; None where the unit is the fence.

    Raises:
        ConfigError: there would be no fence.
    """
    if fence is Fence.UNIT:
        return None
    if not can_be_fenced(**_rights(user)):
        raise ConfigError(
            "the kernel gives the gate no network of its own, so nothing would hold what an aggregator ships to the "
            "aggregator's address: not started. Start it by a unit (deploy/systemd/oncofed-gate.service) or behind a firewall "
            f"that lets it reach {address} alone, and say so by '--fence unit'"
        )
    return Way(address, os.environ, _say)


def _rights(user: str | None) -> dict[str, int]:
    if user is None:
        return {}
    who = pwd.getpwnam(user)
    return {"user": who.pw_uid, "group": who.pw_gid}


@contextlib.contextmanager
def _noted(folder: Path | None, names: tuple[str, ...]) -> Iterator[Note]:
    """What is told of the programs: the log, and figures if anybody wants them; what runs in the gate has no part in it."""
    if folder is None:
        yield say
        return
    from oncofed_client.metrics_file import ProgramFigures, kept  # noqa: PLC0415 - as much memory again as all of this

    figures = ProgramFigures(names, say=say)
    with kept(folder / "oncofed-gate.prom", figures):
        yield figures.note


def _say(text: str) -> None:
    say("gate.trouble", text=text)


if __name__ == "__main__":
    main()
