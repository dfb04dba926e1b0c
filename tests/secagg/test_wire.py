"""Every message survives the wire; no bytes do anything but give a message or one error."""

from __future__ import annotations

import dataclasses

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oncofed_shared.errors import RemoteProtocolError
from oncofed_shared.secagg import from_bytes, to_bytes, wire
from oncofed_shared.secagg import messages as m
from oncofed_shared.secagg.group import Step

BYTES, NAMES = st.binary(max_size=70), st.lists(st.text(max_size=9), max_size=4).map(tuple)
NAMED = st.lists(st.tuples(st.text(max_size=9), BYTES), max_size=4).map(tuple)
NUMBER = st.integers(0, 2**32 - 1)
STEPS = st.builds(
    Step,
    number=NUMBER,
    attempt=NUMBER,
    parameters=st.binary(min_size=32, max_size=32),
    size=st.integers(1, 2**28),
    kind=st.sampled_from(["train", "scores"]),
)
WORDS = st.tuples(st.sampled_from(["<u4", "<u8"]), st.binary(max_size=80)).map(
    lambda drawn: np.frombuffer(drawn[1][: len(drawn[1]) // 8 * 8], dtype=drawn[0])
)
FIELDS = {"int": NUMBER, "str": st.text(max_size=9), "bytes": BYTES, "Step": STEPS, "Words": WORDS, "Named": NAMED}
FIELDS["tuple[str, ...]"] = NAMES
KINDS = list(wire._KINDS.values())


def drawn(kind):
    return st.builds(kind, **{f.name: strategy_of(f.type) for f in dataclasses.fields(kind)})


def strategy_of(hint):
    return st.lists(drawn(m.Advert), max_size=3).map(tuple) if hint == "tuple[Advert, ...]" else FIELDS[hint]


MESSAGES = st.sampled_from(KINDS).flatmap(drawn)


def same(one, other):
    for field in dataclasses.fields(one):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if isinstance(a, np.ndarray):
            np.testing.assert_array_equal(a, b)
            assert a.dtype == b.dtype
        else:
            assert a == b
    assert type(one) is type(other)


@settings(max_examples=300)
@given(message=MESSAGES)
def test_every_message_comes_back(message):
    content = to_bytes(message)
    back = from_bytes(content)
    same(message, back)
    assert to_bytes(back) == content


@settings(max_examples=300)
@given(content=st.binary(max_size=200))
def test_noise_is_refused(content):
    with pytest.raises(RemoteProtocolError):
        from_bytes(content)


@settings(max_examples=400)
@given(message=MESSAGES, data=st.data())
def test_damaged_messages_give_a_message_or_one_error(message, data):
    content = bytearray(to_bytes(message))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)))
    for damaged in (bytes(content), bytes(content[:cut]), bytes(content) + b"\0"):
        try:
            from_bytes(damaged)
        except RemoteProtocolError as error:
            assert error.code in {"message", "protocol"}  # noqa: PT017 - both outcomes are allowed


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=5) | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=5),
    max_leaves=15,
)


@settings(max_examples=400)
@given(kind=st.sampled_from([k.__name__ for k in KINDS]), data=st.data())
def test_fields_of_wrong_types_are_refused(kind, data):
    fields = list(msgpack.unpackb(to_bytes(data.draw(drawn(wire._KINDS[kind]))))[2])
    fields[data.draw(st.integers(0, len(fields) - 1))] = data.draw(JSON)
    try:
        message = from_bytes(msgpack.packb((wire.VERSION, kind, fields)))
    except RemoteProtocolError:
        return
    # Whatever was taken has the declared types: it goes over the wire again.
    same(message, from_bytes(to_bytes(message)))


@pytest.mark.parametrize(
    "content",
    [
        (2, "Advertise", [1]),
        (wire.VERSION, "Advertise", [1, 2]),
        (wire.VERSION, "Advertise", ["1"]),
        (wire.VERSION, "Advertise", [True]),
        (wire.VERSION, "Advertise", {"block": 1}),
        (wire.VERSION, "Unheard", [1]),
        (wire.VERSION, ["Advertise"], [1]),
        (wire.VERSION, "Adverts", [1, [["site"]]]),
        (wire.VERSION, "Deals", [1, b"", [["site", b"", b""]]]),
        (wire.VERSION, "Deals", [1, b"", [["site", b""]] * 65]),
        (wire.VERSION, "Survivors", [b"", [1, 0, bytes(32), 0, "train"], ["site"]]),
        (wire.VERSION, "Survivors", [b"", [1, 0, bytes(31), 5, "train"], ["site"]]),
        (wire.VERSION, "Survivors", [b"", [1, 0, bytes(32), 5, "other"], ["site"]]),
        (wire.VERSION, "Survivors", [b"", [-1, 0, bytes(32), 5, "train"], ["site"]]),
        (wire.VERSION, "Survivors", [b"", [1, 0, bytes(32), 2**40, "train"], ["site"]]),
        (wire.VERSION, "Upload", ["site", b"", [1, 0, bytes(32), 5, "train"], [16, bytes(10)], b""]),
        (wire.VERSION, "Upload", ["site", b"", [1, 0, bytes(32), 5, "train"], [32, bytes(10)], b""]),
        (wire.VERSION, "Upload", ["site", b"", [1, 0, bytes(32), 5, "train"], [32, "text"], b""]),
        (wire.VERSION, "Upload", ["site", b"", [1, 0, bytes(32), 5, "train"], [True, bytes(4)], b""]),
    ],
)
def test_bad_messages_are_refused(content):
    with pytest.raises(RemoteProtocolError):
        from_bytes(msgpack.packb(content))


def test_a_message_that_is_too_long_is_refused_before_it_is_read(monkeypatch):
    monkeypatch.setattr(wire, "MAX_BYTES", 10)
    with pytest.raises(RemoteProtocolError, match="at most 10"):
        from_bytes(bytes(11))


def test_an_upload_costs_the_ring_words_and_little_more():
    words = np.zeros(100_000, dtype=np.uint32)
    step = Step(number=1, attempt=0, parameters=bytes(32), size=len(words), kind="train")
    upload = m.Upload(site="site-1", setup=bytes(32), step=step, masked=words, signature=bytes(64))
    assert len(to_bytes(upload)) < 4 * len(words) + 300
