"""How Flower's SuperNode is started at a site: TLS by the aggregator's authority, and a key of the gate."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from oncofed_client.daemon_client import target
from oncofed_shared.enrolment import Enrolment, read_enrolment
from oncofed_shared.errors import ConfigError
from oncofed_shared.storage import write_whole

__all__ = ["CREDENTIALS", "Gate", "check_enrolled", "open_gate"]

ENROLMENT, NODE_KEY = CREDENTIALS = ("enrolment.json", "node.key")


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

    def command(self) -> Sequence[str]:
        """The words that start it, less the port of its own interface."""
        settings = {"site": self.enrolment.site, "socket": str(self.socket.absolute())}
        return [
            *(sys.executable, "-m", "oncofed_client.gate.flower_parent", "flower-supernode"),
            *("--superlink", self.enrolment.address),
            *("--root-certificates", str(self.home / "authority.pem")),
            *("--auth-supernode-private-key", str(self.key)),
            *("--node-config", " ".join(f"{name}={json.dumps(value)}" for name, value in settings.items())),
            *("--host", "127.0.0.1"),
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
        ConfigError: the site is not enrolled, or this user may not read what it needs.
    """
    try:
        missing = [name for name in CREDENTIALS if not (credentials / name).is_file()]
        unread = [name for name in CREDENTIALS if name not in missing and not os.access(credentials / name, os.R_OK)]
    except PermissionError:
        missing, unread = [], list(CREDENTIALS)
    if unread:
        raise ConfigError(
            f"{credentials}: {' and '.join(unread)} cannot be read by this user; a gate of a user of its own is handed both, "
            "by 'start --gate-user' or by LoadCredential in its unit"
        )
    if missing:
        raise ConfigError(
            f"{credentials}: has no {' and no '.join(missing)}; the site is not enrolled: "
            "'oncofed-site enrol request', and 'oncofed-site enrol install' for the answer"
        )
