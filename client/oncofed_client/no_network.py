"""A process gives up its network for good: it moves into a network namespace of its own, in which there is nothing."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

__all__ = ["has_network", "leave_network"]

_NEW_USER = 0x10000000
_NEW_NETWORK = 0x40000000


def leave_network() -> bool:
    """Leave the machine's network with everything this process starts from now on. Before any thread is started.

    Unix sockets that lie in a file system go on working: they belong to no network.

    Returns:
        Whether it has none now; a machine may forbid it, and then nothing has changed.

    Guarantees:
        - After True no socket of this process or of its children reaches another process through a network, loopback included.
        - After False the process is as it was.
    """
    if sys.platform != "linux":
        return False
    unshare = ctypes.CDLL(None, use_errno=True).unshare
    if unshare(_NEW_NETWORK) == 0:
        return True
    # Without rights it takes a user namespace, in which one is the user that one was.
    user, group = os.geteuid(), os.getegid()
    if unshare(_NEW_USER | _NEW_NETWORK) != 0:
        return False
    own = Path("/proc/self")
    (own / "setgroups").write_text("deny", encoding="ascii")
    (own / "uid_map").write_text(f"{user} {user} 1", encoding="ascii")
    (own / "gid_map").write_text(f"{group} {group} 1", encoding="ascii")
    return True


def has_network() -> bool:
    """Whether this process has an interface that is up, or nobody can say."""
    if sys.platform != "linux":
        return True
    routes = Path("/proc/self/net/dev").read_text(encoding="ascii").splitlines()[2:]
    names = [line.split(":")[0].strip() for line in routes]
    return any(_is_up(name) for name in names)


def _is_up(name: str) -> bool:
    # SIOCGIFFLAGS of the kernel's netdevice(7); IFF_UP is its first bit.
    import fcntl  # noqa: PLC0415 - Linux only
    import socket  # noqa: PLC0415
    import struct  # noqa: PLC0415

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        answer = fcntl.ioctl(probe, 0x8913, struct.pack("16sh14x", name.encode(), 0))
    return bool(struct.unpack("16sh14x", answer)[1] & 1)
