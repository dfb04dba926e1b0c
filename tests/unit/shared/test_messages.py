"""Messages: what goes in comes out; hostile bytes raise one error and cost little memory."""

from __future__ import annotations

import dataclasses
import tracemalloc
import typing
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from oncofed_shared import messages, wire
from oncofed_shared.errors import RemoteProtocolError
from oncofed_shared.messages import (
    PARTS,
    VERSION,
    Describe,
    Evaluate,
    Head,
    Message,
    Open,
    Refusal,
    Reply,
    Request,
    Train,
    Trial,
    Update,
    from_bytes,
    to_bytes,
)

KINDS = [*typing.get_args(Request), *typing.get_args(Reply)]
INTEGERS = st.integers(-(2**63), 2**63 - 1)
TEXT = st.text(max_size=20)
HEAD = Head(session="s", step=1, attempt=0, plan_hash="h", trial=Trial(seed=0))


def any_array(dtype: Any, shape: Any) -> st.SearchStrategy[Any]:
    return arrays(dtype, shape)


NAMED = st.dictionaries(
    TEXT,
    st.sampled_from(["float32", "float64", "uint64", "int64"]).flatmap(
        lambda d: any_array(np.dtype(d), array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    ),
    max_size=3,
)


PLAIN_FIELDS: dict[Any, st.SearchStrategy[Any]] = {
    int: INTEGERS,
    str: TEXT,
    bool: st.booleans(),
    "part": st.sampled_from(PARTS),
    "kind": st.sampled_from(messages.KINDS),
    bytes: st.binary(max_size=20),
    "code": st.from_regex(r"[a-z0-9-]{1,64}", fullmatch=True),
}


def field(name: str, hint: Any) -> st.SearchStrategy[Any]:
    if dataclasses.is_dataclass(hint):
        return made(hint)
    if name in PLAIN_FIELDS or hint in (int, str, bool, bytes):
        return PLAIN_FIELDS.get(name, PLAIN_FIELDS.get(hint, TEXT))
    maps = {
        str(messages.Columns): st.dictionaries(TEXT, st.lists(TEXT, max_size=4).map(tuple), max_size=3),
        str(messages.Names): st.lists(TEXT, max_size=4).map(tuple),
        str(messages.Blobs): st.dictionaries(TEXT, st.binary(max_size=20), max_size=3),
        str(messages.Counts): st.dictionaries(TEXT, INTEGERS, max_size=3),
        str(messages.Arrays): NAMED,
    }
    if str(hint) in maps:
        return maps[str(hint)]
    return any_array(np.dtype(typing.get_args(typing.get_args(hint)[1])[0]), st.integers(0, 9))


def made(kind: Any) -> st.SearchStrategy[Any]:
    hints = typing.get_type_hints(kind)
    return st.builds(kind, **{f.name: field(f.name, hints[f.name]) for f in dataclasses.fields(kind)})


MESSAGES = st.one_of([made(kind) for kind in KINDS])


def same(one: Any, two: Any) -> None:
    assert type(one) is type(two)
    if dataclasses.is_dataclass(one):
        for f in dataclasses.fields(one):
            same(getattr(one, f.name), getattr(two, f.name))
    elif isinstance(one, dict):
        assert list(one) == list(two)
        for key in one:
            same(one[key], two[key])
    elif isinstance(one, np.ndarray):
        assert (one.dtype, one.shape, one.tobytes()) == (two.dtype, two.shape, two.tobytes())
    else:
        assert one == two


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
def test_every_message_comes_back_as_it_went(kind: Any) -> None:
    @given(made(kind))
    @settings(max_examples=30)
    def check(message: Message) -> None:
        content = to_bytes(message)
        same(from_bytes(content), message)
        assert to_bytes(from_bytes(content)) == content

    check()


def only_our_error(content: bytes) -> None:
    try:
        message = from_bytes(content)
    except RemoteProtocolError:
        return
    # What was accepted is a message of the declared types.
    same(from_bytes(to_bytes(message)), message)


@given(st.binary(max_size=300))
@settings(max_examples=300)
def test_random_bytes_raise_only_our_error(content: bytes) -> None:
    only_our_error(content)


@given(MESSAGES, st.data())
@settings(max_examples=150)
def test_cut_and_prolonged_messages_are_refused(message: Message, data: st.DataObject) -> None:
    content = to_bytes(message)
    with pytest.raises(RemoteProtocolError):
        from_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(RemoteProtocolError):
        from_bytes(content + data.draw(st.binary(min_size=1, max_size=5)))


@given(MESSAGES, st.data())
@settings(max_examples=300)
def test_flipped_bits_raise_only_our_error(message: Message, data: st.DataObject) -> None:
    content = bytearray(to_bytes(message))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] ^= 1 << data.draw(st.integers(0, 7))
    only_our_error(bytes(content))


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | TEXT | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXT | st.binary(max_size=3), inner, max_size=3),
    max_leaves=15,
)


@given(st.sampled_from([k.__name__ for k in KINDS]), PLAIN)
@settings(max_examples=300)
def test_well_formed_msgpack_of_anything_raises_only_our_error(kind: str, fields: Any) -> None:
    only_our_error(msgpack.packb([VERSION, kind, fields]))
    only_our_error(msgpack.packb(fields))


def fields_of(message: Message) -> list[Any]:
    return list(msgpack.unpackb(to_bytes(message), ext_hook=msgpack.ExtType)[2])


def sent(kind: str, fields: Any, version: Any = VERSION) -> bytes:
    return bytes(msgpack.packb([version, kind, fields]))


def array(dtype: Any, shape: Any, content: bytes) -> msgpack.ExtType:
    return msgpack.ExtType(wire.ARRAY, msgpack.packb([dtype, shape]) + content)


HEAD_FIELDS = fields_of(Describe(head=HEAD))[0]
BAD: dict[str, bytes] = {
    "another version": sent("Describe", [HEAD_FIELDS], version=2),
    "no version": sent("Describe", [HEAD_FIELDS], version=None),
    "unknown kind": sent("Order", [HEAD_FIELDS]),
    "a kind that is a list": bytes(msgpack.packb([VERSION, ["Describe"], [HEAD_FIELDS]])),
    "too few fields": sent("Describe", []),
    "too many fields": sent("Describe", [HEAD_FIELDS, 1]),
    "fields as a map": sent("Describe", {"head": HEAD_FIELDS}),
    "a head that is too short": sent("Describe", [HEAD_FIELDS[:-1]]),
    "text for a step": sent("Describe", [["s", "1", 0, "h", [0, -1, False]]]),
    "truth for a step": sent("Describe", [["s", True, 0, "h", [0, -1, False]]]),
    "number for a truth": sent("Describe", [["s", 1, 0, "h", [0, -1, 0]]]),
    "a text that is too long": sent("Describe", [["s" * 513, 1, 0, "h", [0, -1, False]]]),
    "bytes for a text": sent("Describe", [[b"s", 1, 0, "h", [0, -1, False]]]),
    "unknown part": sent("Evaluate", [HEAD_FIELDS, "everybody", True, {}]),
    "a code that is a sentence": sent("Refusal", [HEAD_FIELDS, "site", "Mrs Smith, born 1950", ""]),
    "columns that are numbers": sent("Open", [HEAD_FIELDS, {"m": [1]}, {}]),
    "columns that are no lists": sent("Open", [HEAD_FIELDS, {"m": "ab"}, {}]),
    "arrays that are lists": sent("Open", [HEAD_FIELDS, {}, {"center": [1.0]}]),
    "an update of floats": sent("Update", [HEAD_FIELDS, "site", array("float64", [1], bytes(8))]),
    "an update of two axes": sent("Update", [HEAD_FIELDS, "site", array("uint64", [1, 1], bytes(8))]),
    "an update that is a list": sent("Update", [HEAD_FIELDS, "site", [1]]),
    "objects": sent("Update", [HEAD_FIELDS, "site", array("object", [1], bytes(8))]),
    "texts": sent("Update", [HEAD_FIELDS, "site", array("U8", [1], bytes(32))]),
    "a dtype that is a list": sent("Update", [HEAD_FIELDS, "site", array(["u8"], [1], bytes(8))]),
    "a shape larger than the bytes": sent("Update", [HEAD_FIELDS, "site", array("uint64", [2], bytes(8))]),
    "a shape smaller than the bytes": sent("Update", [HEAD_FIELDS, "site", array("uint64", [1], bytes(16))]),
    "bytes that are no whole number": sent("Update", [HEAD_FIELDS, "site", array("uint64", [1], bytes(9))]),
    "a negative shape": sent("Update", [HEAD_FIELDS, "site", array("uint64", [-1], bytes(8))]),
    "a huge shape": sent("Update", [HEAD_FIELDS, "site", array("uint64", [2**40], bytes(8))]),
    "a shape that overflows": sent("Update", [HEAD_FIELDS, "site", array("uint64", [2**32, 2**32], b"")]),
    "a shape with many axes": sent("Train", [HEAD_FIELDS, 1, {"w": array("float32", [1] * 100, bytes(4))}]),
    "a shape of texts": sent("Update", [HEAD_FIELDS, "site", array("uint64", ["1"], bytes(8))]),
    "no shape": sent("Update", [HEAD_FIELDS, "site", msgpack.ExtType(wire.ARRAY, b"")]),
    "another extension": sent("Update", [HEAD_FIELDS, "site", msgpack.ExtType(5, b"1")]),
    "a time stamp": sent("Update", [HEAD_FIELDS, "site", msgpack.Timestamp(1, 0)]),
    "deep lists": b"\x91" * 100_000 + b"\x90",
    "lists that only say how long they are": b"\xdd\x00\x03\x0d\x40" * 50_000,
    "a list of 4 billion": b"\xdd\xff\xff\xff\xff",
    "a map of 4 billion": b"\xdf\xff\xff\xff\xff",
    "a text of 4 billion": b"\xdb\xff\xff\xff\xff",
    "an array of 4 billion bytes": b"\xc9\xff\xff\xff\xff\x01",
    "a million empty maps": b"\xdd" + (1_100_000).to_bytes(4, "big") + b"\x80" * 1_100_000,
    "lists of empty maps": b"\x98" + 8 * (b"\xdd" + (150_000).to_bytes(4, "big") + b"\x80" * 150_000),
    "nothing": b"",
}


@pytest.mark.parametrize("content", BAD.values(), ids=BAD)
def test_hostile_messages_are_refused_and_cost_little_memory(content: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(RemoteProtocolError):
            from_bytes(content)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 200_000 + 4 * len(content)


def test_a_message_beyond_the_bound_is_refused_before_it_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "MAX_BYTES", 10)
    with pytest.raises(RemoteProtocolError, match="at most 10"):
        from_bytes(to_bytes(Describe(head=HEAD)))


def test_large_updates_are_no_larger_than_their_numbers() -> None:
    vector = np.arange(100_000, dtype=np.uint64)
    content = to_bytes(Update(head=HEAD, site="a", vector=vector))
    assert len(content) < vector.nbytes + 200
    back = from_bytes(content)
    assert isinstance(back, Update)
    np.testing.assert_array_equal(back.vector, vector)


def test_an_array_in_another_order_of_memory_keeps_its_places() -> None:
    weights = {"w": np.arange(6.0).reshape(2, 3).T, "strided": np.arange(10.0)[::3]}
    back = from_bytes(to_bytes(Train(head=HEAD, round=1, parameters=weights)))
    assert isinstance(back, Train)
    for name, value in weights.items():
        np.testing.assert_array_equal(back.parameters[name], value)


def test_only_arrays_can_be_sent_as_arrays() -> None:
    with pytest.raises(TypeError, match="cannot send a set"):
        to_bytes(Open(head=HEAD, columns={}, arrays={"a": {1}}))  # type: ignore[dict-item]


def test_a_refusal_and_an_evaluation_keep_their_words() -> None:
    refusal = Refusal(head=HEAD, site="a", code="cohort-too-small", text="why")
    same(from_bytes(to_bytes(refusal)), refusal)
    evaluate = Evaluate(head=HEAD, part="test", subgroups=True, parameters={})
    same(from_bytes(to_bytes(evaluate)), evaluate)
