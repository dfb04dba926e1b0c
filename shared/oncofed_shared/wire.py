"""Arrays as msgpack extensions, and a bound on what hostile bytes may cost before anything is built from them."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from oncofed_shared.errors import RemoteProtocolError

__all__ = ["ARRAY", "MAX_VALUES", "check_values", "pack_array", "unpack_array"]

ARRAY = 1
MAX_VALUES = 1_000_000
"""Most values (numbers, texts, arrays, maps; an array of numbers is one) in a message."""
_DTYPES = ("float32", "float64", "uint64", "int64")
_HEAD = 256


def _formats() -> list[tuple[int, int, int, int] | None]:
    """Per first byte (msgpack's specification): bytes of a length, bytes that follow, values in it, values per length."""
    plain = {0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCA: 4, 0xCB: 8}
    plain |= {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}
    plain |= {0xD4: 2, 0xD5: 3, 0xD6: 5, 0xD7: 9, 0xD8: 17}
    sized = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xC7: 1, 0xC8: 2, 0xC9: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
    nested = {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}
    table: list[tuple[int, int, int, int] | None] = [(0, 0, 0, 0)] * 256
    table[0x80:0x90] = [(0, 0, 2 * n, 0) for n in range(16)]
    table[0x90:0xA0] = [(0, 0, n, 0) for n in range(16)]
    table[0xA0:0xC0] = [(0, n, 0, 0) for n in range(32)]
    table[0xC1] = None
    for code, body in plain.items():
        table[code] = (0, body, 0, 0)
    for code, length in sized.items():
        table[code] = (length, 1 if 0xC7 <= code <= 0xC9 else 0, 0, 0)
    for code, (length, each) in nested.items():
        table[code] = (length, 0, 0, each)
    return table


_FORMATS = _formats()


def check_values(content: bytes) -> None:
    """Count the values of a message without building any.

    A parser makes up to 70 bytes out of one: an empty map, a list that only says how long it is. So they are counted first.

    Raises:
        RemoteProtocolError: it is not msgpack, ends too early or too late, or has more than MAX_VALUES values.
    """
    position, owed, seen = 0, 1, 0
    while owed and position < len(content):
        known = _FORMATS[content[position]]
        if known is None:
            break
        length, body, inside, each = known
        position += 1
        if length:
            number = int.from_bytes(content[position : position + length], "big")
            inside, body = (number * each, 0) if each else (0, body + number)
        position += length + body
        seen += 1
        owed += inside - 1
        if owed + seen > MAX_VALUES:
            raise RemoteProtocolError(f"message of more than {MAX_VALUES} values")
    if owed or position != len(content):
        raise RemoteProtocolError("message is not whole")


def pack_array(value: Any) -> msgpack.ExtType:
    """An array as dtype, shape and bytes."""
    if not isinstance(value, np.ndarray):
        message = f"cannot send a {type(value).__name__}"
        raise TypeError(message)
    return msgpack.ExtType(ARRAY, _head(value.dtype, value.shape) + np.ascontiguousarray(value).tobytes())


@lru_cache(maxsize=1024)
def _head(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """What stands before an array's bytes; the parameters of a network have the same ones in every message."""
    packed: bytes = msgpack.packb((dtype.name, shape))
    return packed


def unpack_array(code: int, content: bytes) -> NDArray[Any]:
    """Inverse of `pack_array`; a view, so that a shape costs nothing.

    Raises:
        RemoteProtocolError: another extension, or a kind of array that is not used here.
        ValueError: the bytes are not those of the shape.
    """
    if code != ARRAY:
        raise RemoteProtocolError("message holds an unknown extension")
    unpacker = msgpack.Unpacker(max_buffer_size=_HEAD)
    unpacker.feed(memoryview(content)[:_HEAD])
    dtype, shape = unpacker.unpack()
    if dtype not in _DTYPES or not all(type(s) is int and s >= 0 for s in shape):
        raise RemoteProtocolError("message holds an array of a kind that is not used here")
    return np.frombuffer(content, dtype=dtype, offset=unpacker.tell()).reshape(shape)
