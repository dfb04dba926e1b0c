"""The way to a site's daemon: bytes through a Unix socket, and nothing else. This is all of oncofed that the gate runs.

Imports neither torch nor a reader of patients' files: the process that uses it has the network.
"""

from __future__ import annotations

import time
from pathlib import Path

import grpc
from google.protobuf.wrappers_pb2 import BytesValue
from grpc_health.v1 import health_pb2, health_pb2_grpc

from oncofed_shared.errors import LocalProtocolError, StorageError

__all__ = ["HANDLE", "LIMITS", "LONGEST_PATH", "SERVICE", "call", "healthy", "target"]

SERVICE = "oncofed.Daemon"
HANDLE = f"/{SERVICE}/Handle"
# A model of the largest size that a message may have, and its envelope.
_MOST_BYTES = (1 << 30) + (1 << 20)
LIMITS = (("grpc.max_receive_message_length", _MOST_BYTES), ("grpc.max_send_message_length", _MOST_BYTES))
# Of a socket's path, in bytes: the size of sun_path in Linux, less its closing zero.
LONGEST_PATH = 107
_PAUSE = 0.5


def target(socket: Path) -> str:
    """A socket as gRPC's name for it.

    Raises:
        StorageError: the path is longer than a socket's may be.
    """
    path = str(socket.absolute())
    if len(path.encode()) > LONGEST_PATH:
        raise StorageError(
            f"{path}: is longer than the {LONGEST_PATH} bytes that the path of a socket may have; give a shorter one with --socket"
        )
    return f"unix:{path}"


def call(socket: Path, content: bytes, *, patience: float) -> bytes:
    """Hand a message to the daemon and wait for its answer, however long it computes.

    A daemon that dies meanwhile is given the same bytes again when it is back: what it has answered it answers once more.

    Args:
        content: a sealed request.
        patience: seconds for which the daemon may be away, in all.

    Raises:
        LocalProtocolError: it is not there, or it refused the call.
    """
    address, away = target(socket), time.monotonic() + patience
    while True:
        with grpc.insecure_channel(address, options=LIMITS) as channel:
            ask = channel.unary_unary(HANDLE, BytesValue.SerializeToString, BytesValue.FromString)
            try:
                answer: bytes = ask(BytesValue(value=content)).value
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise LocalProtocolError(f"the daemon answered with {error.code().name}") from None
            else:
                return answer
        if time.monotonic() > away:
            raise LocalProtocolError(f"{socket}: no daemon answers; start it with 'oncofed-site start'")
        time.sleep(_PAUSE)


def healthy(socket: Path, *, patience: float = 5.0) -> bool:
    """Whether a daemon answers on a socket and says that it serves.

    Args:
        patience: seconds until the answer must be there.
    """
    with grpc.insecure_channel(target(socket), options=LIMITS) as channel:
        ask = health_pb2_grpc.HealthStub(channel)
        try:
            answer = ask.Check(health_pb2.HealthCheckRequest(service=SERVICE), timeout=patience)
        except grpc.RpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
