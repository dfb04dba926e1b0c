"""The daemon's socket: bytes in, bytes out, one at a time, for one user; and a log in which there is no patient."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from google.protobuf.wrappers_pb2 import BytesValue

from oncofed_client.daemon import MOST_CALLS, Daemon, own_socket
from oncofed_client.daemon_client import HANDLE, LONGEST_PATH, call, healthy, target
from oncofed_client.log_lines import NAMES, say
from oncofed_shared.errors import DataError, LocalProtocolError, StorageError

NAME_OF_A_PATIENT = "MRN-7719-ZEPHYRINE"


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder whose name leaves room for a socket's."""
    with tempfile.TemporaryDirectory(prefix="oncofed-") as folder:
        yield Path(folder)


@dataclass
class Door:
    """Answers with a function, and leaves at once or later."""

    handle: Callable[[bytes], bytes]
    tick: float = 0.0

    def leaves_in(self, elapsed: float) -> float:
        assert elapsed >= 0
        return max(0.0, self.tick - elapsed)


@contextlib.contextmanager
def serving(folder: Path, handle, *, tick: float = 0.0, **more) -> Iterator[Path]:
    with own_socket(folder / "run" / "daemon.sock", **more) as socket:
        daemon = Daemon(socket, lambda: Door(handle, tick))
        try:
            yield socket
        finally:
            daemon.stop(grace=5.0)


def test_what_is_handed_in_reaches_the_door_and_its_answer_comes_back(short):
    with serving(short, lambda content: content[::-1]) as socket:
        assert healthy(socket)
        assert call(socket, b"abc", patience=5.0) == b"cba"
        # Beyond gRPC's own limit of 4 MiB.
        large = os.urandom(9 << 20)
        assert call(socket, large, patience=5.0) == large[::-1]
    assert not healthy(socket, patience=0.5)


def test_a_socket_is_open_to_its_owner_and_one_group(short):
    with serving(short, bytes) as socket:
        assert stat.S_IMODE(socket.stat().st_mode) == 0o660
        assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o2750


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can try as another user")
def test_another_user_gets_in_by_the_group_and_not_otherwise(short):
    short.chmod(0o755)
    other, group = 65534, 54321

    def may_write(socket: Path, groups: list[int]) -> bool:
        tried = subprocess.run(["test", "-w", socket], user=other, group=other, extra_groups=groups, check=False)
        return tried.returncode == 0

    with serving(short, bytes) as socket:
        assert not may_write(socket, [])
        assert not may_write(socket, [group])
    with serving(short, bytes, group=str(group)) as socket:
        assert not may_write(socket, [])
        assert may_write(socket, [group])


def test_a_second_daemon_of_a_site_is_refused_and_the_first_is_not_disturbed(short):
    with serving(short, bytes) as socket:
        with pytest.raises(LocalProtocolError, match="another daemon"), own_socket(socket):
            pass
        assert call(socket, b"x", patience=5.0) == b"x"
    # What a killed daemon leaves behind does not stop the next.
    (short / "run" / "daemon.sock").touch()
    (short / "run" / "daemon.sock").unlink()
    with serving(short, bytes) as socket:
        assert healthy(socket)


@pytest.mark.parametrize("folder", ["/", "/dev"])
def test_a_folder_of_the_whole_machine_is_left_as_it_is(folder: str):
    before = Path(folder).stat().st_mode
    with pytest.raises(StorageError, match="is everybody's; name a folder"), own_socket(Path(folder) / "x.sock"):
        pass
    assert Path(folder).stat().st_mode == before


def test_one_request_at_a_time_and_always_in_the_thread_that_opened_the_door(short):
    threads, inside, most = set(), [], []

    def build():
        threads.add(threading.get_ident())

        def handle(content: bytes) -> bytes:
            threads.add(threading.get_ident())
            inside.append(content)
            most.append(len(inside))
            time.sleep(0.02)
            inside.remove(content)
            return content

        return Door(handle)

    with own_socket(short / "s") as socket:
        daemon = Daemon(socket, build)
        answers: list[bytes] = []
        callers = [
            threading.Thread(target=lambda i=i: answers.append(call(socket, bytes([i]), patience=5.0)))
            for i in range(6)
        ]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        daemon.stop(5.0)
    assert sorted(answers) == [bytes([i]) for i in range(6)]
    assert len(threads) == 1
    assert set(most) == {1}


def test_more_callers_than_a_gate_has_are_turned_away(short):
    free = threading.Event()

    def wait(content: bytes) -> bytes:
        assert free.wait(20)
        return content

    with serving(short, wait) as socket, grpc.insecure_channel(target(socket)) as channel:
        ask = channel.unary_unary(HANDLE, BytesValue.SerializeToString, BytesValue.FromString)
        calls = [ask.future(BytesValue(value=b"x")) for _ in range(MOST_CALLS + 6)]
        end = time.monotonic() + 10
        while not any(c.done() for c in calls) and time.monotonic() < end:
            time.sleep(0.02)
        free.set()
        codes = [c.code() for c in calls]
        assert set(codes) == {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert all(c.result().value == b"x" for c, code in zip(calls, codes, strict=True) if code is grpc.StatusCode.OK)


def test_an_answer_leaves_when_the_door_says_and_not_before(short):
    with serving(short, bytes, tick=0.4) as socket:
        started = time.monotonic()
        assert call(socket, b"x", patience=5.0) == b"x"
        assert time.monotonic() - started >= 0.4


@pytest.mark.parametrize("error", [ValueError(NAME_OF_A_PATIENT), DataError(f"file.csv, row 3: {NAME_OF_A_PATIENT}")])
def test_an_error_leaves_as_a_constant_and_its_place_stays_in_the_log(short, capfd, error):
    def fail(_: bytes) -> bytes:
        raise error

    with serving(short, fail) as socket, grpc.insecure_channel(target(socket)) as channel:
        ask = channel.unary_unary(HANDLE, BytesValue.SerializeToString, BytesValue.FromString)
        with pytest.raises(grpc.RpcError) as told:
            ask(BytesValue(value=b"x"))
        assert told.value.code() is grpc.StatusCode.INTERNAL
        assert told.value.details() == "the site's own log has the reason"
        with pytest.raises(LocalProtocolError, match="INTERNAL"):
            call(socket, b"x", patience=5.0)
    out, err = capfd.readouterr()
    assert NAME_OF_A_PATIENT not in out + err
    line = json.loads(err.splitlines()[0])
    assert line["event"] == "request.failed"
    assert line["error"] == type(error).__name__


@pytest.mark.parametrize(
    "method", ["/oncofed.Daemon/Other", "/oncofed.Site/Handle", "/grpc.reflection.v1.ServerReflection/x"]
)
def test_there_is_one_method(short, method):
    with serving(short, bytes) as socket, grpc.insecure_channel(target(socket)) as channel:
        ask = channel.unary_unary(method, BytesValue.SerializeToString, BytesValue.FromString)
        with pytest.raises(grpc.RpcError) as told:
            ask(BytesValue(value=b"x"))
        assert told.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_daemon_whose_door_does_not_open_leaves_no_socket(short):
    def build():
        raise DataError("site.toml: is wrong")

    with own_socket(short / "s") as socket, pytest.raises(DataError):
        Daemon(socket, build)
    assert not (short / "s").exists()


def test_a_path_that_is_too_long_for_a_socket_is_said(tmp_path):
    long = tmp_path / ("x" * LONGEST_PATH)
    with pytest.raises(StorageError, match="--socket"):
        target(long)


def test_nobody_there_is_said_after_the_patience(short):
    started = time.monotonic()
    with pytest.raises(LocalProtocolError, match="oncofed-site start"):
        call(short / "none.sock", b"x", patience=0.2)
    assert time.monotonic() - started < 5.0


SERVE = """
import sys, time
from types import SimpleNamespace
from pathlib import Path
from oncofed_client.daemon import Daemon, own_socket
with own_socket(Path(sys.argv[1])) as socket:
    def handle(content):
        time.sleep(float(sys.argv[2]))
        return content + b"!"
    daemon = Daemon(socket, lambda: SimpleNamespace(handle=handle, leaves_in=lambda elapsed: 0.0))
    print("ready", flush=True)
    time.sleep(60)
"""


def test_a_caller_outlives_the_daemon_that_is_killed_under_it(short):
    """`kill -9` in the middle of a request, a new daemon on the same socket: the same bytes are asked and answered."""
    socket = short / "run" / "daemon.sock"

    def start(seconds: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE, socket, seconds], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.stdout.close()
        return process

    first = start("30")
    answers: list[bytes] = []
    caller = threading.Thread(target=lambda: answers.append(call(socket, b"x", patience=30.0)))
    caller.start()
    time.sleep(0.5)
    first.send_signal(signal.SIGKILL)
    first.wait()
    second = start("0")
    caller.join(30)
    assert answers == [b"x!"]
    second.kill()
    second.wait()


def test_a_log_line_has_names_from_a_list_and_is_one_line():
    stream = io.StringIO()
    say("x.done", to=stream, code="a", bytes_in=3)
    say("x", to=stream, patient=NAME_OF_A_PATIENT, code="c")
    assert NAME_OF_A_PATIENT not in stream.getvalue()
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert first.pop("time") > 0
    assert first == {"event": "x.done", "code": "a", "bytes_in": 3}
    del second["time"]
    assert second == {"event": "x", "code": "c", "kept_back": ["patient"]}
    assert not set(NAMES) & {"patient", "patient_id", "value", "row", "message"}
