"""What a site of the roster signs but should not have: refused by the aggregator and by its peers, and nothing changes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from oncofed_shared.errors import RemoteProtocolError
from oncofed_shared.secagg import AggregatorPhase
from oncofed_shared.secagg.adverts import KEY, SEED
from oncofed_shared.secagg.keys import agreement, deal_key, seal, sign
from oncofed_shared.secagg.messages import Adverts, Deals


def refusal(code, call, *arguments):
    with pytest.raises(RemoteProtocolError) as refused:
        call(*arguments)
    assert refused.value.code == code


def until(world, phase):
    """Let the sites answer one by one until the aggregator waits for something else."""
    while world.aggregator.phase is not phase:
        name, ask = next(iter(world.aggregator.asks().items()))
        world.aggregator.take(world.sites[name].answer(ask))
    return world.names[0], world.aggregator.asks()[world.names[0]]


def test_adverts_are_of_all_members_and_of_nobody_else(federation):
    world = federation(4)
    world.aggregator.open(0)
    name, ask = until(world, AggregatorPhase.DEALS)
    party = world.sites[name]
    for adverts in (ask.adverts[:3], ask.adverts[::-1], (*ask.adverts[:3], ask.adverts[0])):
        refusal("advert", party.deal, Adverts(block=0, adverts=adverts))
    refusal("block", party.deal, Adverts(block=1, adverts=ask.adverts))
    refusal("set-up", party.receive, Deals(block=0, setup=bytes(32), sealed=()))


def test_a_site_cannot_take_anothers_keys_for_its_own(federation):
    """Signed well, but with a peer's keys: it would share that peer's masks."""
    world = federation(4)
    thief, victim = world.names[2], world.names[1]
    world.aggregator.open(0)
    name, ask = until(world, AggregatorPhase.DEALS)
    stolen = ask.adverts[1]
    parts = 0, stolen.transport, stolen.keys, stolen.commitments
    signature = sign(world.identities[thief], "advert", world.group.digest, thief, *parts)
    copy = dataclasses.replace(stolen, site=thief, signature=signature)
    adverts = tuple(copy if a.site == thief else a for a in ask.adverts)
    assert victim != name
    refusal("advert", world.sites[name].deal, Adverts(block=0, adverts=adverts))


def test_an_advert_without_a_key_for_every_step_is_refused(federation):
    world = federation(4)
    world.aggregator.open(0)
    name = world.names[0]
    good = world.sites[name].advertise(0)
    parts = 0, good.transport, good.keys[:-32], good.commitments
    signature = sign(world.identities[name], "advert", world.group.digest, name, *parts)
    refusal("advert", world.aggregator.take, dataclasses.replace(good, keys=parts[2], signature=signature))


def test_a_site_deals_to_every_peer_in_this_set_up(federation):
    world = federation(4)
    world.aggregator.open(0)
    name, ask = until(world, AggregatorPhase.DEALS)
    good = world.sites[name].deal(ask)
    fewer = good.sealed[:-1]
    signature = sign(world.identities[name], "dealt", world.group.digest, good.setup, name, fewer)
    refusal("deal", world.aggregator.take, dataclasses.replace(good, sealed=fewer, signature=signature))
    refusal("set-up", world.aggregator.take, dataclasses.replace(good, setup=bytes(32)))
    refusal("signature", world.aggregator.take, dataclasses.replace(good, signature=bytes(64)))
    assert world.aggregator.take(good)


@pytest.mark.parametrize("content", [b"", bytes(35), np.full(4 * 2 * 9, 2**31 - 1, dtype="<u4").tobytes()])
def test_shares_of_a_wrong_length_or_range_are_refused_by_who_receives_them(federation, content):
    """Sealed under the right key by a site that means ill; the receiver names it."""
    world = federation(4)
    world.aggregator.open(0)
    until(world, AggregatorPhase.DEALS)
    dealer, receiver = world.names[1], world.names[0]
    secret = agreement(world.sites[dealer]._blocks[0].transport)
    _, ask = until(world, AggregatorPhase.RECEIPTS)
    setup = world.sites[dealer]._blocks[0].agreed
    public = setup.advert(receiver).transport
    key = deal_key(world.group, setup.digest, 0, sender=dealer, receiver=receiver, secret=secret, public=public)
    bad = dataclasses.replace(ask, sealed=((dealer, seal(key, content)), *ask.sealed[1:]))
    before = world.sites[receiver].state()
    with pytest.raises(RemoteProtocolError, match=dealer):
        world.sites[receiver].receive(bad)
    assert world.sites[receiver].state() == before
    world.exchange()
    assert world.aggregator.ready(0)


def test_a_reveal_is_for_the_aggregators_list_and_has_shares(federation):
    world = federation(5, drop=1)
    world.set_up()
    world.upload(world.make_step(0), world.names[:4])
    world.aggregator.close()
    name, ask = until(world, AggregatorPhase.CERTIFIED)
    good = world.sites[name].answer(ask)
    wrong = {
        "list": (good.seeds[:3], good.keys),
        "shares": (((good.seeds[0][0], bytes(35)), *good.seeds[1:]), good.keys),
    }
    beyond = ((good.keys[0][0], b"\xff" * 36),)
    for code, (seeds, keys) in [*wrong.items(), ("shares", (good.seeds, beyond))]:
        parts = world.group.digest, good.setup, name, good.step.parts, seeds, keys
        signature = sign(world.identities[name], "reveal", *parts)
        refusal(code, world.aggregator.take, dataclasses.replace(good, seeds=seeds, keys=keys, signature=signature))
    refusal("step", world.aggregator.take, dataclasses.replace(good, setup=bytes(32)))
    refusal("signature", world.aggregator.take, dataclasses.replace(good, signature=bytes(64)))
    assert world.aggregator.take(good)
    world.exchange(world.names[:4])
    np.testing.assert_array_equal(world.aggregator.result(), world.plain_sum())


def test_an_endorsement_is_of_the_aggregators_list(federation):
    world = federation(5, drop=1)
    world.set_up()
    world.upload(world.make_step(0), world.names[:4])
    world.aggregator.close()
    name = world.names[0]
    good = world.sites[name].answer(world.aggregator.asks()[name])
    other = world.names[:3] + world.names[4:]
    signature = sign(world.identities[name], "survivors", world.group.digest, good.setup, good.step.parts, other)
    refusal("list", world.aggregator.take, dataclasses.replace(good, names=other, signature=signature))
    refusal("signature", world.aggregator.take, dataclasses.replace(good, signature=bytes(64)))
    refusal("member", world.aggregator.take, dataclasses.replace(good, site=world.names[4]))
    assert world.aggregator.take(good)


@pytest.mark.parametrize("kind", [KEY, SEED])
def test_one_liar_among_many_is_done_without(federation, kind):
    """Of twelve sites the one whose name comes first reveals nonsense, before all others; the sum is right."""
    world = federation(12, drop=2)
    world.set_up()
    alive = world.names[:10]
    world.upload(world.make_step(0), alive)
    world.aggregator.close()
    name, ask = until(world, AggregatorPhase.CERTIFIED)
    world.sites[name]._blocks[0].shares[:, :, kind] ^= 1
    for other in (name, *alive[1:]):
        if other in world.aggregator.asks():
            world.aggregator.take(world.sites[other].answer(world.aggregator.asks()[other]))
    assert world.aggregator.phase is AggregatorPhase.DONE
    np.testing.assert_array_equal(world.aggregator.result(), world.plain_sum())
    assert ask.names == alive
