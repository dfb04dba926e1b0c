"""`python -m oncofed_client.gate`: the gate as a process of its own, small because it imports nothing that reads data."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path
from threading import Event

from oncofed_client.gate.node import open_gate
from oncofed_shared.errors import OncofedError
from oncofed_shared.keeping import keep

__all__ = ["main"]

PATIENCE = 20.0


def main() -> None:
    """Keep a SuperNode running until SIGTERM."""
    parser = argparse.ArgumentParser(prog="oncofed-gate", description="The gate of a site: relays, and sees no data.")
    parser.add_argument("--credentials", type=Path, required=True, help="folder with enrolment.json and node.key")
    parser.add_argument("--home", type=Path, required=True, help="the gate's own folder")
    parser.add_argument("--socket", type=Path, required=True, help="the daemon's socket")
    given = parser.parse_args()
    stop = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        gate = open_gate(given.credentials, home=given.home.absolute(), socket=given.socket)
        keep([gate.program(os.environ)], stop=stop, say=_say, patience=PATIENCE)
    except OncofedError as error:
        sys.stderr.write("".join(f"oncofed-gate: {line}\n" for line in error.problems))
        sys.exit(error.exit_code)


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main()
