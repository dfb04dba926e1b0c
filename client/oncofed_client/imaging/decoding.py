"""Compressed frames, decoded in a process of its own that may end without harm."""

from __future__ import annotations

import subprocess
import sys
import threading
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from oncofed_client.imaging.decoding_process import ANSWER, FAILED, REQUEST

__all__ = ["FrameDecoder"]

_TYPES = frozenset({"|u1", "|i1", "<u2", "<i2", "<u4", "<i4"})


class FrameDecoder:
    """Decodes frames one by one; the process starts with the first and is started anew after one that ended it.

    Use as a context manager: at its end the process has ended.

    Args:
        seconds: for one frame; after them the process is ended and the frame counts as damaged.
    """

    def __init__(self, seconds: float = 60.0) -> None:
        self._seconds = seconds
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            # -P: a file in the working folder, which may be an export's, is never taken for a module.
            command = [sys.executable, "-P", "-m", "oncofed_client.imaging.decoding_process"]
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)  # noqa: S603
        return self._process

    def decode(
        self, codestream: bytes, *, syntax: str, shape: tuple[int, int], bits: tuple[int, int], signed: bool
    ) -> NDArray[Any] | None:
        """Decode one frame.

        Args:
            codestream: its bytes.
            syntax: transfer syntax UID.
            shape: rows, columns.
            bits: allocated, stored.
            signed: PixelRepresentation.

        Returns:
            The stored values (rows, columns); None where the data are damaged.
        """
        process = self._started()
        if process.stdin is None or process.stdout is None:  # pipes were asked for
            return None
        watch = threading.Timer(self._seconds, process.kill)
        watch.start()
        try:
            process.stdin.write(
                REQUEST.pack(syntax.encode("ascii"), *shape, *bits, int(signed), len(codestream)) + codestream
            )
            process.stdin.flush()
            head = process.stdout.read(ANSWER.size)
            kind, size = ANSWER.unpack(head) if len(head) == ANSWER.size else (b"", 0)
            expected = shape[0] * shape[1] * bits[0] // 8
            name = kind.rstrip(b"\0").decode("ascii", "replace")
            if kind == FAILED:
                return None
            data = process.stdout.read(size) if size == expected and name in _TYPES else b""
            if len(data) != expected or np.dtype(name).itemsize * 8 != bits[0]:
                self._end()
                return None
            return np.frombuffer(data, dtype=name).reshape(shape)
        except OSError:  # it ended while it was written to
            self._end()
            return None
        finally:
            watch.cancel()
