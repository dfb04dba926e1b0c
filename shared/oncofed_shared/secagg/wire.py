"""Messages as bytes and back: the only door. What comes out has the declared types and lengths, and nothing else gets out."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

import msgpack
import numpy as np

from oncofed_shared.errors import RemoteProtocolError
from oncofed_shared.secagg import messages
from oncofed_shared.secagg.group import MEMBERS_MAX, SIZE_MAX, Step
from oncofed_shared.secagg.masks import Words, word
from oncofed_shared.secagg.messages import Message
from oncofed_shared.wire import check_values

__all__ = ["MAX_BYTES", "VERSION", "from_bytes", "to_bytes"]

VERSION = 1
MAX_BYTES = 8 * SIZE_MAX + (1 << 16)
_MAX_TEXT = 512
_KINDS: dict[str, type[Any]] = {
    kind.__name__: kind for kind in (*typing.get_args(messages.Ask), *typing.get_args(messages.Answer))
}
_FIELDS = {kind: typing.get_type_hints(kind) for kind in (*_KINDS.values(), Step)}


def to_bytes(message: Message) -> bytes:
    """Serialise a message; equal messages have equal bytes."""
    content: bytes = msgpack.packb((VERSION, type(message).__name__, _plain(message)))
    return content


def _plain(value: Any) -> Any:
    if isinstance(value, (bytes, str, int)):
        return value
    if dataclasses.is_dataclass(value):
        return [_plain(getattr(value, f.name)) for f in dataclasses.fields(value)]
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return [8 * value.itemsize, np.ascontiguousarray(value, dtype=value.dtype.newbyteorder("<")).data.cast("B")]


def from_bytes(content: bytes) -> Message:
    """Parse a message.

    Raises:
        RemoteProtocolError: whatever is wrong with the bytes; nothing else is raised. Memory stays within a few times their
            length.
    """
    if len(content) > MAX_BYTES:
        raise RemoteProtocolError(f"secure sum's message of {len(content)} bytes; at most {MAX_BYTES}", code="message")
    check_values(content)
    try:
        version, kind, fields = msgpack.unpackb(
            content,
            max_str_len=_MAX_TEXT,
            max_bin_len=MAX_BYTES,
            max_array_len=MEMBERS_MAX,
            max_map_len=0,
            max_ext_len=0,
        )
        message = _parsed(version, kind, fields)
    except RemoteProtocolError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever hostile bytes provoke is the peer's fault
        raise RemoteProtocolError(
            f"secure sum's message cannot be read ({type(error).__name__})", code="message"
        ) from None
    return message


def _parsed(version: Any, kind: Any, fields: Any) -> Message:
    if version != VERSION:
        raise RemoteProtocolError(f"secure sum's message of version {version}; this is {VERSION}", code="message")
    message: Message = _build(_KINDS[kind], fields)
    return message


def _build(kind: type[Any], fields: Any) -> Any:
    hints = _FIELDS[kind]
    if type(fields) is not list or len(fields) != len(hints):
        raise RemoteProtocolError(f"{kind.__name__} has {len(hints)} fields", code="message")
    return kind(**{name: _read(hint, value) for (name, hint), value in zip(hints.items(), fields, strict=True)})


def _read(hint: Any, value: Any) -> Any:
    if hint == Words:
        return _words(value)
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast("type[Any]", hint), value)
    if typing.get_origin(hint) is tuple:
        return _tuple(typing.get_args(hint), value)
    if type(value) is not hint:
        raise RemoteProtocolError("a field of a secure sum's message has the wrong type", code="message")
    return value


def _tuple(hints: tuple[Any, ...], value: Any) -> tuple[Any, ...]:
    if type(value) is not list:
        raise RemoteProtocolError("a field of a secure sum's message is no list", code="message")
    if hints[-1] is Ellipsis:
        return tuple(_read(hints[0], v) for v in value)
    return tuple(_read(hint, v) for hint, v in zip(hints, value, strict=True))


def _words(value: Any) -> Words:
    bits, content = value
    if type(bits) is not int or bits not in {32, 64} or type(content) is not bytes:
        raise RemoteProtocolError("a masked vector is not of 32 or 64 bits", code="message")
    little: Any = np.frombuffer(content, dtype=word(bits).newbyteorder("<"))
    native: Words = little.astype(word(bits), copy=False)
    return native
