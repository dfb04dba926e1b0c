"""Killed at any point and started again from what was kept, every party goes on and the sum is the same."""

from __future__ import annotations

import dataclasses

import msgpack
import numpy as np
import pytest

from oncofed_shared.errors import LocalProtocolError, RemoteProtocolError
from oncofed_shared.secagg import AggregatorParty, AggregatorPhase, SiteParty, SitePhase
from oncofed_shared.secagg.messages import Complete


def whole_session(world, dropped, killed=None, at=-1):
    """Set-up and two steps, the second with missing sites; one site is killed after its answer number `at`."""
    count = 0

    def after(name):
        nonlocal count
        if name == killed:
            if count == at:
                world.restart(name)
            count += 1

    sums = []
    world.aggregator.open(0)
    world.exchange(after=after)
    for number, missing in enumerate([(), dropped]):
        alive = [n for n in world.names if n not in missing]
        world.upload(world.make_step(number), alive)
        if killed in alive:
            after(killed)
        if missing:
            world.aggregator.close()
        world.exchange(alive, after=after)
        sums.append(world.aggregator.result().tolist())
    return sums, count


def test_a_site_killed_at_any_point_changes_no_sum(federation):
    world = federation(5, drop=1)
    dropped = world.names[4:]
    expected, points = whole_session(world, dropped, world.names[0])
    # Advert, Dealt, Received, twice Upload, Reveal of all, Endorsement and Reveal of fewer.
    assert points == 8
    for at in range(points):
        again = federation(5, drop=1)
        sums, _ = whole_session(again, dropped, again.names[0], at)
        assert sums == expected


def test_all_sites_killed_after_every_single_answer_change_no_sum(federation):
    world = federation(4, drop=1)
    expected, _ = whole_session(world, world.names[3:])
    other = federation(4, drop=1)
    sums = []
    other.aggregator.open(0)
    other.exchange(after=other.restart)
    for number, missing in enumerate([(), other.names[3:]]):
        alive = [n for n in other.names if n not in missing]
        other.upload(other.make_step(number), alive)
        for name in other.names:
            other.restart(name)
        if missing:
            other.aggregator.close()
        other.exchange(alive, after=other.restart)
        sums.append(other.aggregator.result().tolist())
    assert sums == expected


def test_a_state_goes_through_bytes_unchanged(federation):
    world = federation(4)
    fresh = SiteParty(world.group, world.names[0], world.identities[world.names[0]])
    for party in (fresh, world.sites[world.names[1]]):
        again = SiteParty.restore(world.group, party.name, world.identities[party.name], party.state())
        assert again.state() == party.state()


def test_a_state_of_another_site_group_or_version_is_refused(federation):
    world, other = federation(3), federation(3)
    first, second = world.names[:2]
    content = world.sites[first].state()
    with pytest.raises(LocalProtocolError, match="must not be used again"):
        SiteParty.restore(world.group, second, world.identities[second], content)
    with pytest.raises(LocalProtocolError):
        SiteParty.restore(other.group, first, other.identities[first], content)
    with pytest.raises(LocalProtocolError):
        SiteParty.restore(world.group, first, world.identities[second], content)
    for damaged in (b"", content[:-1], content[1:], msgpack.packb({}), msgpack.packb(1)):
        with pytest.raises(LocalProtocolError) as refused:
            SiteParty.restore(world.group, first, world.identities[first], damaged)
        assert refused.value.code == "state"


def test_a_state_with_another_message_inside_is_refused(federation):
    world = federation(3)
    world.set_up()
    name = world.names[0]
    plain = msgpack.unpackb(world.sites[name].state())
    plain["blocks"][0]["advert"] = plain["blocks"][0]["adverts"]
    with pytest.raises(LocalProtocolError):
        SiteParty.restore(world.group, name, world.identities[name], msgpack.packb(plain))


def test_an_upload_that_was_kept_is_adopted_by_the_state_from_before_it(federation):
    """The answer is on disk, the new state is not: the old state takes the answer over, and never masks the number again."""
    world = federation(4)
    world.set_up()
    name, step = world.names[0], world.make_step(0)
    older = world.sites[name].state()
    world.upload(step)
    kept = next(u for u in [world.sites[name]._current])
    assert kept.phase is SitePhase.UPLOADED
    party = SiteParty.restore(world.group, name, world.identities[name], older)
    with pytest.raises(RemoteProtocolError):
        party.reveal(world.aggregator.asks()[name])
    upload = SiteParty.restore(world.group, name, world.identities[name], older).upload(step, world.vectors[name])
    party.adopt(upload)
    assert party.state() == world.sites[name].state()
    with pytest.raises(RemoteProtocolError) as refused:
        party.upload(step, world.vectors[name])
    assert refused.value.code == "step"
    world.sites[name] = party
    world.exchange()
    np.testing.assert_array_equal(world.aggregator.result(), world.plain_sum())


def test_only_the_own_upload_is_adopted(federation):
    world = federation(3)
    world.set_up()
    name, step = world.names[0], world.make_step(0)
    of_another = world.sites[world.names[1]].upload(step, world.vector(5))
    with pytest.raises(RemoteProtocolError) as refused:
        world.sites[name].adopt(of_another)
    assert refused.value.code == "signature"


def test_an_aggregator_goes_on_with_its_set_ups(federation):
    world = federation(4, drop=1)
    world.set_up()
    world.step(world.make_step(0))
    world.upload(world.make_step(1), world.names[:2])
    world.aggregator = AggregatorParty.restore(world.group, world.aggregator.state())
    assert world.aggregator.ready(0)
    assert not world.aggregator.ready(1)
    with pytest.raises(LocalProtocolError, match="twice"):
        world.aggregator.begin(world.make_step(1))
    np.testing.assert_array_equal(world.step(world.make_step(2), world.names[:1]), world.plain_sum())


def test_an_aggregator_that_lost_everything_sets_up_again_with_the_same_keys(federation):
    world = federation(4)
    world.set_up()
    before = world.sites[world.names[0]]._blocks[0].agreed.digest
    world.aggregator = AggregatorParty(world.group)
    world.set_up()
    assert world.sites[world.names[0]]._blocks[0].agreed.digest == before
    np.testing.assert_array_equal(world.step(world.make_step(0)), world.plain_sum())


@pytest.mark.parametrize("content", [b"", b"\x01", msgpack.packb((1, b"", 0, [])), msgpack.packb((1, 2))])
def test_an_aggregators_damaged_state_is_refused(federation, content):
    with pytest.raises(LocalProtocolError, match="set the blocks up again"):
        AggregatorParty.restore(federation(3).group, content)


def test_an_aggregators_state_with_other_adverts_is_refused(federation):
    world, other = federation(3), federation(3)
    other.set_up()
    version, _, last, kept = msgpack.unpackb(other.aggregator.state())
    with pytest.raises(LocalProtocolError):
        AggregatorParty.restore(world.group, msgpack.packb((version, world.group.digest, last, kept)))


# What the aggregator refuses


def test_the_aggregators_own_mistakes_are_said(federation):
    world = federation(4, drop=1, block=2)
    party = world.aggregator
    for call in (party.close, party.result, lambda: party.begin(world.make_step(0)), lambda: party._current):
        with pytest.raises(LocalProtocolError):
            call()
    world.set_up()
    with pytest.raises(LocalProtocolError, match="set up already"):
        party.open(0)
    party.begin(world.make_step(0))
    for call in (lambda: party.open(1), lambda: party.begin(world.make_step(1)), party.result):
        with pytest.raises(LocalProtocolError, match="uploads"):
            call()
    party.abandon()
    assert party.phase is AggregatorPhase.LOST
    assert party.missing == ()


def test_what_comes_late_twice_or_wrong_is_refused_and_changes_nothing(federation):
    world = federation(4, drop=1)
    world.set_up()
    step, party = world.make_step(0), world.aggregator
    made = {n: world.sites[n].upload(step, world.vector(5, n)) for n in world.names}
    party.begin(step)
    first, last = world.names[0], world.names[3]
    assert party.take(made[first])
    assert not party.take(made[first])
    wrong = {
        "step": world.sites[last].upload(world.make_step(1), world.vector(5)),
        "upload": dataclasses.replace(made[last], masked=np.zeros(6, dtype=np.uint32)),
        "signature": dataclasses.replace(made[last], masked=np.zeros(5, dtype=np.uint32)),
        "member": dataclasses.replace(made[last], site="site-99"),
        "duplicate": dataclasses.replace(made[first], signature=bytes(64)),
        "state": world.sites[last].advertise(0),
    }
    for code, answer in wrong.items():
        with pytest.raises(RemoteProtocolError) as refused:
            party.take(answer)
        assert refused.value.code == code
    assert party.missing == world.names[1:]
    for name in world.names[1:3]:
        party.take(made[name])
    party.close()
    with pytest.raises(RemoteProtocolError) as refused:
        party.take(made[last])
    assert refused.value.code == "state"
    assert party.included == world.names[:3]


def test_surplus_endorsements_and_reveals_are_not_needed(federation):
    world = federation(5, drop=1)
    world.set_up()
    alive = world.names[:4]
    world.upload(world.make_step(0), alive)
    world.aggregator.close()
    asks = world.aggregator.asks()
    signed = [world.sites[n].answer(a) for n, a in asks.items()]
    assert [world.aggregator.take(s) for s in signed] == [True] * 4
    reveals = [world.sites[n].answer(a) for n, a in world.aggregator.asks().items()]
    assert not any(isinstance(a, Complete) for a in world.aggregator.asks().values())
    assert [world.aggregator.take(r) for r in reveals] == [True] * 4
    assert world.aggregator.phase is AggregatorPhase.DONE
    assert not world.aggregator.take(reveals[0])
    np.testing.assert_array_equal(world.aggregator.result(), world.plain_sum())


def test_a_block_is_the_current_one_or_the_next(federation):
    world = federation(3, block=2)
    party = world.sites[world.names[0]]
    for block in (2, -1, 9):
        with pytest.raises(RemoteProtocolError) as refused:
            party.advertise(block)
        assert refused.value.code == "block"
    world.set_up(0)
    world.set_up(1)
    world.step(world.make_step(2))
    # Block 0 is over: its keys are gone, and it does not come back.
    with pytest.raises(RemoteProtocolError):
        party.advertise(0)
    assert set(party._blocks) == {1}
