"""Whatever a hostile aggregator asks, a site answers with a message, and no share leaves that is not charged."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oncofed_shared.errors import RemoteProtocolError
from oncofed_shared.messages import (
    Contribute,
    Contribution,
    Exchange,
    Exchanged,
    Formation,
    Open,
    Ready,
    Refusal,
    Trial,
    from_bytes,
    to_bytes,
)

INTEGERS = st.sampled_from([-(2**63), -1, 0, 1, 2, 3, 4, 5, 127, 128, 2**31, 2**63 - 1, 2**64 - 1])
FLOATS = st.sampled_from([0.0, -0.0, 1.0, -1.0, 5e-324, 1e300, -1e308, np.inf, -np.inf, np.nan])
BLOBS = st.dictionaries(st.sampled_from(["alpha", "beta", "aggregator", ""]), st.binary(max_size=90), max_size=2)
TRIALS = st.builds(Trial, seed=INTEGERS, fold=INTEGERS, resplit=st.booleans())


def arrays_like(arrays):
    """The same, or one of them with one other number in it, or another shape or type."""

    def changed(name, value, how):
        array = arrays[name].copy()
        if how == "value" and array.size:
            with np.errstate(over="ignore"):
                array.flat[0] = value
        elif how != "value":
            array = np.append(array, value) if how == "longer" else array.astype(np.int64)
        return arrays | {name: array}

    return st.just(arrays) | st.builds(
        changed, st.sampled_from(sorted(arrays)), FLOATS, st.sampled_from(["value", "longer", "int"])
    )


@pytest.fixture(scope="module")
def played(tmp_path_factory, new_world_at):
    """A run that is over, and what alpha was asked and has answered in it."""
    world = new_world_at(tmp_path_factory.mktemp("played"))
    world.run()
    sent = [(d, from_bytes(c)) for d, s, c in world.traffic if s == "alpha"]
    return world, [m for d, m in sent if d == "down"], {m.content for d, m in sent if isinstance(m, Contribution)}


def answered(world, request):
    """A site's answer to a request that came as bytes, or None where the bytes are none of a message."""
    try:
        request = from_bytes(to_bytes(request))
    except RemoteProtocolError:
        return None
    return world.sites["alpha"].handle(request)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_hostile_request_is_answered_by_a_message_and_every_new_share_is_charged(played, data):
    world, asked, known = played
    request = data.draw(st.sampled_from(asked))
    other = {}
    for field in dataclasses.fields(request):
        value = getattr(request, field.name)
        strategies = {
            "head": st.builds(dataclasses.replace, st.just(request.head), trial=st.just(request.head.trial) | TRIALS)
            | st.builds(dataclasses.replace, st.just(request.head), session=st.sampled_from(["", "run|", "r" * 512])),
            "formation": st.builds(
                Formation,
                name=st.sampled_from(["", "f" * 32]),
                members=st.lists(st.sampled_from([*world.sites, "nobody"]), max_size=5).map(tuple),
            ),
            "number": INTEGERS,
            "round": INTEGERS,
            "kind": st.sampled_from(["train", "histogram", "scores"]),
            "histogram": st.builds(np.full, st.sampled_from([0, 1, 31, 32, 33]), FLOATS),
            "content": st.binary(max_size=60) | st.sampled_from([a.content for a in asked if isinstance(a, Exchange)]),
            "heads": BLOBS,
            "witnesses": BLOBS,
            "columns": st.just({"values": ("v0",)}) | st.just({}) | st.just({"values": ("v0", "v0", "v1", "v2", "v3")}),
        }
        if field.name in {"parameters", "arrays"}:
            strategies[field.name] = arrays_like(value)
        if field.name in strategies and data.draw(st.booleans()):
            other[field.name] = data.draw(strategies[field.name])
    before = sum(sum(a.used) for a in world.sites["alpha"].contributor.ledger.plans())
    reply = answered(world, dataclasses.replace(request, **other))
    after = sum(sum(a.used) for a in world.sites["alpha"].contributor.ledger.plans())
    if isinstance(reply, Contribution) and reply.content not in known:
        known.add(reply.content)
        assert after == before + 1
    elif isinstance(reply, Refusal):
        assert reply.text == "the site's own journal has the reason"
    if isinstance(request, Open) and isinstance(reply, Ready):
        # The next example finds the run's own session again.
        assert isinstance(answered(world, request), Ready)
    assert reply is None or isinstance(reply, (Contribution, Exchanged, Ready, Refusal)) or request is asked[0]


def test_the_requests_of_a_run_are_all_kinds_that_are_changed_here(played):
    _, asked, _ = played
    assert {type(m).__name__ for m in asked} == {"Describe", "Open", "Exchange", "Contribute"}
    assert {m.kind for m in asked if isinstance(m, Contribute)} == {"train", "histogram", "scores"}
