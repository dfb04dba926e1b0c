"""`python confined.py WORDS...`: become the program of these words, held as the daemon's unit holds it, without systemd.

It has a network of its own with a loopback that is up (PrivateNetwork), no capability (CapabilityBoundingSet), and a filter
of calls: Unix sockets alone (RestrictAddressFamilies), no namespaces (RestrictNamespaces), no chown (SystemCallFilter), no
set-group-id bit (RestrictSUIDSGID). What a unit does with mounts and users is not imitated;
`test_units_run.py` starts the unit itself.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import socket
import struct
import sys

__all__ = ["can_confine"]

NEW_NETWORK, SET_GROUP, SET_FLAGS, UP = 0x40000000, 0o2000, 0x8914, 1
# Of prctl's manual.
DROP_BOUND, NO_NEW_PRIVILEGES, SECCOMP, FILTER, LAST_CAPABILITY = 24, 38, 22, 2, 40
# x86-64: what is refused whatever its arguments: chown, fchown, lchown, fchownat, unshare, setns; and what for some of them.
REFUSED = (92, 93, 94, 260, 272, 308)
SOCKET, CHMOD, FCHMOD, FCHMODAT = 41, 90, 91, 268
# Of the kernel's filters.
LOAD, EQUAL, ANY_BIT, END = 0x20, 0x15, 0x45, 0x06
ALLOW, REFUSE = 0x7FFF0000, 0x00050000
ARGUMENTS = 16


def can_confine() -> bool:
    """Whether this may be tried here."""
    return os.geteuid() == 0 and sys.platform == "linux" and platform.machine() == "x86_64"


def _step(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("HBBI", code, yes, no, value)


def _filter() -> bytes:
    def refuse(number: int) -> bytes:
        return _step(END, REFUSE | number)

    made = [_step(LOAD, 0)]
    for call in REFUSED:
        made += [_step(EQUAL, call, no=1), refuse(errno.EPERM)]
    made += [_step(EQUAL, SOCKET, no=4), _step(LOAD, ARGUMENTS), _step(EQUAL, socket.AF_UNIX, yes=1)]
    made += [refuse(errno.EAFNOSUPPORT), _step(END, ALLOW)]
    for call, argument in ((CHMOD, 1), (FCHMOD, 1), (FCHMODAT, 2)):
        made += [_step(EQUAL, call, no=4), _step(LOAD, ARGUMENTS + 8 * argument), _step(ANY_BIT, SET_GROUP, no=1)]
        made += [refuse(errno.EPERM), _step(END, ALLOW)]
    return b"".join([*made, _step(END, ALLOW)])


def _become(words: list[str]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)

    def done(result: int) -> None:
        if result != 0:
            raise OSError(ctypes.get_errno(), "cannot be confined")

    done(libc.unshare(NEW_NETWORK))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        fcntl.ioctl(probe, SET_FLAGS, struct.pack("16sh14x", b"lo", UP))
    for capability in range(LAST_CAPABILITY + 1):
        libc.prctl(DROP_BOUND, capability, 0, 0, 0)
    done(libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0))
    content = ctypes.create_string_buffer(_filter())
    program = struct.pack("HxxxxxxP", (len(content) - 1) // 8, ctypes.addressof(content))
    done(libc.prctl(SECCOMP, FILTER, program, 0, 0))
    os.execv(words[0], words)  # noqa: S606 - the test's words


if __name__ == "__main__":
    _become(sys.argv[1:])
