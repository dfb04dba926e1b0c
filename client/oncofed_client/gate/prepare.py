"""`python -m oncofed_client.gate.prepare CREDENTIALS HOME SOCKET`: reads an enrolment, prepares a gate's folder, says how to start.

A process of its own, because what it imports to check signatures and certificates would otherwise stay with the supervisor.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from oncofed_client.gate.node import open_gate
from oncofed_shared.errors import OncofedError

__all__ = ["main"]


def main(words: Sequence[str]) -> None:
    """Print the aggregator's address and the words as JSON; a mistake goes to standard error and becomes the exit code."""
    credentials, home, socket = map(Path, words)
    try:
        gate = open_gate(credentials, home=home, socket=socket)
    except OncofedError as error:
        sys.stderr.write("".join(f"{line}\n" for line in error.problems))
        sys.exit(error.exit_code)
    sys.stdout.write(json.dumps({"address": gate.enrolment.address, "words": list(gate.command())}))


if __name__ == "__main__":
    main(sys.argv[1:])
