"""How Flower's SuperNode is started at a site: TLS by the aggregator's authority, a key of the gate, and nobody else is called."""

from __future__ import annotations

import json
import os
import socket as sockets
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from oncofed_client.daemon_client import target
from oncofed_shared.enrolment import Enrolment, read_enrolment
from oncofed_shared.errors import ConfigError
from oncofed_shared.keeping import Program
from oncofed_shared.storage import write_whole

__all__ = ["CREDENTIALS", "PASSED_ON", "SILENT", "Gate", "check_enrolled", "environment_of", "open_gate"]

ENROLMENT, NODE_KEY = CREDENTIALS = ("enrolment.json", "node.key")
# Flower and what it calls: measured in Flower 1.41, each is a connection to somebody who is not the aggregator.
SILENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
PASSED_ON = (
    "PATH", "PYTHONPATH", "LANG", "LC_ALL", "TZ", "TMPDIR", "SSL_CERT_DIR", "SSL_CERT_FILE",
    "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy",
)  # fmt: skip
"""What the gate sees of its environment. Whatever an aggregator ships runs here, so a password in a variable is not passed on."""
# What Flower's own codes of more than eight bits become for whoever waits for the process, 305 among them.
_SAID_ABOVE = 1


@dataclass(frozen=True, kw_only=True)
class Gate:
    """A site's gate.

    Attributes:
        enrolment: where the aggregator is, and by what it is known.
        key: file with the gate's private key.
        home: the gate's own folder: what Flower writes goes there.
        socket: the daemon's.
    """

    enrolment: Enrolment
    key: Path
    home: Path
    socket: Path

    def program(
        self, environment: Mapping[str, str], *, way: int | None, user: int | None = None, group: int | None = None
    ) -> Program:
        """The SuperNode as a program that must run.

        Args:
            environment: of this process; little of it is passed on.
            way: `Way.theirs`, by which it reaches the aggregator from behind its fence (`fence`); None where its unit is the fence.
        """
        fence = (
            () if way is None else (sys.executable, "-m", "oncofed_client.gate.fence", str(way), self.enrolment.address)
        )
        return Program(
            name="gate",
            command=lambda: [*fence, *self.command()],
            environment=environment_of(environment, self.home),
            passes=() if way is None else (way,),
            user=user,
            group=group,
            why=_why,
        )

    def command(self) -> Sequence[str]:
        """The words that start it; the port for its own ClientApp process is one that is free now."""
        with sockets.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        settings = {"site": self.enrolment.site, "socket": str(self.socket.absolute())}
        return [
            str(Path(sys.executable).with_name("flower-supernode")),
            *("--superlink", self.enrolment.address),
            *("--root-certificates", str(self.home / "authority.pem")),
            *("--auth-supernode-private-key", str(self.key)),
            *("--node-config", " ".join(f"{name}={json.dumps(value)}" for name, value in settings.items())),
            *("--host", "127.0.0.1", "--port", str(port)),
        ]


def open_gate(credentials: Path, *, home: Path, socket: Path) -> Gate:
    """Prepare a gate.

    Args:
        credentials: folder with `enrolment.json` and `node.key`; of the site's state these two are all that a gate reads.
        home: made if it is not there.

    Raises:
        ConfigError: the site is not enrolled.
        DataError: the enrolment is damaged.
        StorageError: the folder cannot be written, or the socket's path is too long.
    """
    target(socket)
    check_enrolled(credentials)
    enrolment = read_enrolment((credentials / ENROLMENT).read_bytes())
    write_whole(home / "authority.pem", enrolment.certificate.encode())
    return Gate(enrolment=enrolment, key=credentials / NODE_KEY, home=home, socket=socket)


def check_enrolled(credentials: Path) -> None:
    """See that a folder has what a gate needs.

    Raises:
        ConfigError: the site is not enrolled.
    """
    missing = [name for name in CREDENTIALS if not (credentials / name).is_file()]
    if missing:
        raise ConfigError(
            f"{credentials}: has no {' and no '.join(missing)}; the site is not enrolled: "
            "'oncofed-site enrol request', and 'oncofed-site enrol install' for the answer"
        )


def environment_of(given: Mapping[str, str], home: Path) -> dict[str, str]:
    """What the SuperNode and everything below it see.

    Guarantees:
        - Of the given environment only `PASSED_ON` is in it.
        - Flower's telemetry, its search for updates and its installing of packages are switched off.
    """
    # Flower finds its own programs by PATH.
    path = os.pathsep.join([str(Path(sys.executable).parent), given.get("PATH", os.defpath)])
    passed = {name: given[name] for name in PASSED_ON if name in given}
    # Its processes talk to each other on this machine; a hospital's proxy is not for that.
    local = ",".join(filter(None, ["127.0.0.1,localhost", given.get("NO_PROXY", given.get("no_proxy"))]))
    own = {"PATH": path, "HOME": str(home), "FLWR_HOME": str(home / "flower"), "NO_PROXY": local, "no_proxy": local}
    return passed | own | SILENT | {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1"}


def _why(code: int) -> str:
    if code == _SAID_ABOVE:
        return (
            "ended with an error of Flower's, which stands above; 305 is usual after a crash: the aggregator holds the session of "
            "the gate before for up to a minute"
        )
    return f"ended with code {code}" if code >= 0 else f"was ended by signal {-code}"
