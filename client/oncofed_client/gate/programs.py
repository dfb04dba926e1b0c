"""What a gate's supervisor runs and keeps running, and what it lets it see. Imports next to nothing, because it stays.

What has to be read for that (the enrolment, with its signature and certificate) is read by a process that ends (`prepare`).
"""

from __future__ import annotations

import json
import os
import socket as sockets
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from oncofed_shared.errors import ConfigError, ExitCode, LocalProtocolError
from oncofed_shared.keeping import Program

__all__ = ["BIN", "PASSED_ON", "SILENT", "Prepared", "environment_of", "gate_program", "prepared"]

BIN = Path(__file__).with_name("bin")
"""Comes first among the gate's programs: what SuperExec starts for a message hands its words to `flower_parent`."""
# Flower and what it calls: measured in Flower 1.41, each is a connection to somebody who is not the aggregator.
SILENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
# SuperExec looks for a message every tenth of a second; the gate adds nothing up, so no library needs threads for sums.
QUICK = {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1", "OPENBLAS_NUM_THREADS": "1"}
PASSED_ON = (
    "PATH", "PYTHONPATH", "LANG", "LC_ALL", "TZ", "TMPDIR", "SSL_CERT_DIR", "SSL_CERT_FILE",
    "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy",
)  # fmt: skip
"""What the gate sees of its environment. Whatever an aggregator ships runs here, so a password in a variable is not passed on."""
# What Flower's own codes of more than eight bits become for whoever waits for the process, 305 among them.
_SAID_ABOVE = 1


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What a supervisor needs to know.

    Attributes:
        address: the aggregator's, HOST:PORT.
        words: that start the gate's Flower, less the port of its own interface.
    """

    address: str
    words: tuple[str, ...]


def prepared(credentials: Path, *, home: Path, socket: Path) -> Prepared:
    """Let another process read the enrolment and prepare the gate's folder (`oncofed_client.gate.prepare`).

    Raises:
        ConfigError: the site is not enrolled, the enrolment is damaged, or the folder cannot be written.
        LocalProtocolError: that process failed.
    """
    words = [sys.executable, "-m", "oncofed_client.gate.prepare", str(credentials), str(home), str(socket)]
    asked = subprocess.run(words, capture_output=True, text=True, check=False)  # noqa: S603 - our own words
    if asked.returncode:
        if asked.returncode == ExitCode.INPUT:
            raise ConfigError(*asked.stderr.strip().splitlines())
        raise LocalProtocolError(f"the gate cannot be prepared: {asked.stderr.strip()[-2000:]}")
    found = json.loads(asked.stdout)
    return Prepared(address=found["address"], words=tuple(found["words"]))


def gate_program(
    gate: Prepared,
    *,
    home: Path,
    environment: Mapping[str, str],
    way: int | None,
    user: int | None = None,
    group: int | None = None,
) -> Program:
    """A gate's Flower as a program that must run.

    Args:
        home: the gate's own folder.
        environment: of this process; little of it is passed on.
        way: `Way.theirs`, by which it reaches the aggregator from behind its fence (`fence`); None where its unit is the fence.
    """
    fence = () if way is None else (sys.executable, "-m", "oncofed_client.gate.fence", str(way), gate.address)
    return Program(
        name="gate",
        command=lambda: [*fence, *gate.words, "--port", str(_free_port())],
        environment=environment_of(environment, home),
        passes=() if way is None else (way,),
        user=user,
        group=group,
        why=_why,
    )


def environment_of(given: Mapping[str, str], home: Path) -> dict[str, str]:
    """What the SuperNode and everything below it see.

    Guarantees:
        - Of the given environment only `PASSED_ON` is in it.
        - Flower's telemetry, its search for updates and its installing of packages are switched off.
    """
    # Flower finds its own programs by PATH.
    path = os.pathsep.join([str(BIN), str(Path(sys.executable).parent), given.get("PATH", os.defpath)])
    passed = {name: given[name] for name in PASSED_ON if name in given}
    # Its processes talk to each other on this machine; a hospital's proxy is not for that.
    local = ",".join(filter(None, ["127.0.0.1,localhost", given.get("NO_PROXY", given.get("no_proxy"))]))
    own = {"PATH": path, "HOME": str(home), "FLWR_HOME": str(home / "flower"), "NO_PROXY": local, "no_proxy": local}
    return passed | own | SILENT | QUICK


def _free_port() -> int:
    """For Flower's processes to talk to each other; another process may take one that was free, so it is asked for anew."""
    with sockets.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _why(code: int) -> str:
    if code == _SAID_ABOVE:
        return (
            "ended with an error of Flower's, which stands above; 305 is usual after a crash: the aggregator holds the session of "
            "the gate before for up to a minute"
        )
    return f"ended with code {code}" if code >= 0 else f"was ended by signal {-code}"
