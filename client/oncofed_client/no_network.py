"""A process gives up its network for good: it moves into a network namespace of its own, in which there is nothing.

`python -m oncofed_client.no_network WORDS...` does so and becomes the program of these words; where it cannot, it says so and
starts nothing. A program with threads could not do it for itself without an administrator's rights.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import sys
from pathlib import Path

from oncofed_shared.errors import ExitCode

__all__ = ["NO_WAY_OUT", "interfaces", "leave_network"]

NO_WAY_OUT = (
    "the daemon would have a network, and the kernel lets it have none of its own: not started. Start it by a unit with "
    "PrivateNetwork=yes (deploy/systemd/oncofed-daemon.service), in a container without a network, or by 'unshare -n' as root"
)

_NEW_USER = 0x10000000
_NEW_NETWORK = 0x40000000
# netdevice(7): the flags of an interface, of which the first says that it is up.
_GET_FLAGS = 0x8913
_UP = 1


def leave_network() -> bool:
    """Leave the machine's network, with everything that this process starts from now on.

    Unix sockets that lie in a file system go on working: they belong to no network.

    Returns:
        Whether it has none now; a machine may forbid it.

    Guarantees:
        - After True no socket of this process or of its children reaches another process through a network, loopback included.
        - After False the process is as it was.
    """
    if sys.platform != "linux":
        return False
    unshare = ctypes.CDLL(None).unshare
    if unshare(_NEW_NETWORK) == 0:
        return True
    # Without rights it takes a user namespace, in which one is who one was.
    user, group = os.geteuid(), os.getegid()
    if unshare(_NEW_USER | _NEW_NETWORK) != 0:
        return False
    own = Path("/proc/self")
    (own / "setgroups").write_text("deny", encoding="ascii")
    (own / "uid_map").write_text(f"{user} {user} 1", encoding="ascii")
    (own / "gid_map").write_text(f"{group} {group} 1", encoding="ascii")
    return True


def interfaces() -> tuple[str, ...]:
    """Names of the network interfaces that are up for this process; none where it has no network."""
    # What a daemon's unit allows it: Unix sockets alone, of which the kernel answers this as of any other.
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:

        def is_up(name: str) -> bool:
            answer = fcntl.ioctl(probe, _GET_FLAGS, struct.pack("16sh14x", name.encode(), 0))
            return bool(struct.unpack("16sh14x", answer)[1] & _UP)

        # Two lines of headings, then a line for each, with its name before a colon.
        lines = Path("/proc/self/net/dev").read_text(encoding="ascii").splitlines()[2:]
        return tuple(name for line in lines if is_up(name := line.split(":")[0].strip()))


if __name__ == "__main__":
    if not leave_network() and interfaces():
        sys.stderr.write(f"oncofed-site: {NO_WAY_OUT}\n")
        sys.exit(ExitCode.INPUT)
    os.execvp(sys.argv[1], sys.argv[1:])  # noqa: S606 - the words of whoever starts us
