"""The daemon: a site's door behind a Unix socket. It has the data and the keys, and no network.

One method takes bytes and gives bytes; everything about their content is decided behind it. Requests are worked on one at a time,
in one thread, which also opened what they need: a ledger's connection belongs to its thread.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import grpc
from google.protobuf.wrappers_pb2 import BytesValue
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from oncofed_client.daemon_client import LIMITS, SERVICE, target
from oncofed_client.log_lines import say
from oncofed_shared.errors import LocalProtocolError, OncofedError, StorageError

__all__ = ["Answering", "Daemon", "own_socket"]

# One works, the others are health checks and whoever waits.
THREADS = 4
MOST_CALLS = 8
# Parts of a path as /run, whose rights are not ours to narrow.
_SHARED_BY_ALL = 2


class Answering(Protocol):
    """What a daemon hands requests to: a site's `Door`."""

    def handle(self, content: bytes) -> bytes:
        """The answer to a request."""

    def leaves_in(self, elapsed: float) -> float:
        """Seconds that an answer has to wait yet, so that nobody reads from the clock how long it took."""


class Daemon:
    """The service on one socket.

    Args:
        socket: where it listens; the folder must be there, see `own_socket`.
        build: makes what answers requests; called once, in the thread that will call it.

    Raises:
        OncofedError: what `build` raises, or the socket cannot be had.

    Guarantees:
        - Requests are answered one at a time, in the order in which they are taken, and answers leave when the door says.
        - What goes wrong in an answer leaves as a constant, never with its text: the log has the kind of error and its place.
        - A socket has the rights 0660 from the moment at which somebody can connect.
    """

    def __init__(self, socket: Path, build: Callable[[], Answering]) -> None:
        self.socket = socket
        self._work = ThreadPoolExecutor(max_workers=1, thread_name_prefix="door")
        try:
            self._door = self._work.submit(build).result()
            self._server, self._health = self._listening()
        except BaseException:
            self._work.shutdown()
            raise

    def stop(self, grace: float) -> None:
        """Take no further request and end when the one at hand is answered.

        Args:
            grace: seconds for that; afterwards it is dropped, which costs nothing but the time: it will be asked again.
        """
        self._health.enter_graceful_shutdown()
        self._server.stop(grace).wait()
        self._work.shutdown(cancel_futures=True)

    def _listening(self) -> tuple[grpc.Server, Any]:
        server = grpc.server(
            ThreadPoolExecutor(max_workers=THREADS, thread_name_prefix="socket"),
            options=LIMITS,
            maximum_concurrent_rpcs=MOST_CALLS,
        )
        method = grpc.unary_unary_rpc_method_handler(
            self._answer, request_deserializer=BytesValue.FromString, response_serializer=BytesValue.SerializeToString
        )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"Handle": method}),))
        servicer = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
        # The kernel gives a socket its rights when it is bound, so they are narrowed before and not after.
        before = os.umask(0o117)
        try:
            server.add_insecure_port(target(self.socket))
        except RuntimeError:
            raise StorageError(f"{self.socket}: cannot be made; look at the rights of its folder") from None
        finally:
            os.umask(before)
        server.start()
        servicer.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
        return server, servicer

    def _answer(self, request: BytesValue, context: grpc.ServicerContext) -> BytesValue:
        started = time.monotonic()
        try:
            content = self._work.submit(self._door.handle, request.value).result()
            worked = time.monotonic() - started
            rest = max(0.0, self._door.leaves_in(worked))
        except Exception as error:  # noqa: BLE001 - gRPC would send its text
            say("request.failed", error=type(error).__name__, place=_place(error), bytes_in=len(request.value))
            context.abort(grpc.StatusCode.INTERNAL, "the site's own log has the reason")
        say(
            "request.answered",
            bytes_in=len(request.value),
            bytes_out=len(content),
            seconds=round(worked, 3),
        )
        time.sleep(rest)
        return BytesValue(value=content)


@contextlib.contextmanager
def own_socket(socket: Path, *, group: str | None = None) -> Iterator[Path]:
    """Have the folder of a socket, for one daemon at a time.

    Args:
        group: whose members may connect beside this user: that of the gate's user, who is its only member.

    Raises:
        LocalProtocolError: another daemon has it.
        StorageError: the folder cannot be made, has not the group, or is one of the machine's own, as /run.

    Guarantees:
        - The folder is open to this user and to the group, and to nobody else.
        - Two daemons of one site never run at once, whatever killed an earlier one.
    """
    folder = socket.absolute().parent
    if len(folder.resolve().parts) <= _SHARED_BY_ALL:
        raise StorageError(
            f"{folder}: is everybody's; name a folder that the socket has to itself, as {folder / 'oncofed'}"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if group is not None:
            shutil.chown(folder, group=int(group) if group.isdigit() else group)
        # With the group's bit set, what is made in it belongs to the group too.
        mode = 0o750 | stat.S_ISGID
        found = folder.stat()
        # A unit of systemd may neither set that bit nor give a folder away: there the folder is made for it beforehand.
        if (stat.S_IMODE(found.st_mode), found.st_uid) != (mode, os.geteuid()):
            folder.chmod(mode)
        descriptor = os.open(folder / "daemon.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except (OSError, LookupError) as error:
        raise StorageError(f"{folder}: cannot be made for the daemon's socket ({error})") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise LocalProtocolError(f"{folder}: another daemon of this site runs; stop it first") from None
    try:
        yield socket
    finally:
        socket.unlink(missing_ok=True)
        os.close(descriptor)


def _place(error: Exception) -> str:
    """An exception without its text; of an error of ours, its code."""
    if isinstance(error, OncofedError):
        return error.code
    frames = traceback.extract_tb(error.__traceback__)
    return f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""
