"""`python -m oncofed_client.gate`: keeps a gate running, and a daemon beside it if told how. Imports nothing that reads data."""

from __future__ import annotations

import argparse
import json
import os
import pwd
import signal
import sys
from pathlib import Path
from threading import Event

from oncofed_client.gate.fence import Fence, Way, can_be_fenced
from oncofed_client.gate.node import open_gate
from oncofed_shared.errors import ConfigError, OncofedError
from oncofed_shared.keeping import Program, keep

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
    parser.add_argument("--daemon", type=json.loads, help="words of the daemon, as JSON")
    given = parser.parse_args()
    stop = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        gate = open_gate(given.credentials, home=given.home.absolute(), socket=given.socket)
        way = _way(gate.enrolment.address, given.fence, given.user)
        open_file = None if way is None else way.theirs.fileno()
        programs = [gate.program(os.environ, way=open_file, **_rights(given.user))]
        if given.daemon is not None:
            programs.insert(0, Program(name="daemon", command=lambda: given.daemon, environment=os.environ))
        keep(programs, stop=stop, say=_say, patience=PATIENCE)
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


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main()
