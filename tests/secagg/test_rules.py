"""The rules 8 to 13 of the protocol, as far as they are about secure sums: a test with the name of each."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from oncofed_shared.errors import ConfigError, LocalProtocolError, RemoteProtocolError
from oncofed_shared.secagg import AggregatorPhase, Group, SiteParty, Step, smallest_threshold, to_bytes
from oncofed_shared.secagg.adverts import KEY, SEED, Setup
from oncofed_shared.secagg.keys import agreement, deal_key, pair_key, public_key, self_key, sign, unseal
from oncofed_shared.secagg.masks import array_hash
from oncofed_shared.secagg.messages import Adverts, Certificate, Complete, Deals, Endorsement, Survivors

OTHER_MODEL = bytes(range(32))


def refusal(code, call, *arguments):
    with pytest.raises(RemoteProtocolError) as refused:
        call(*arguments)
    assert refused.value.code == code


@pytest.fixture
def five(federation):
    """Five sites, of which one may be missing and one may collude: t = 4. Set up."""
    world = federation(5, drop=1)
    world.set_up()
    return world


def uploads(world, step, names=None):
    return {n: world.sites[n].upload(step, world.vector(step.size, step.number, n)) for n in names or world.names}


def survivors(made, names):
    first = next(iter(made.values()))
    return Survivors(setup=first.setup, step=first.step, names=tuple(names))


def certified(world, made, names, signers=None):
    ask = survivors(made, names)
    signed = [(n, world.sites[n].endorse(ask).signature) for n in signers or names]
    return Certificate(setup=ask.setup, step=ask.step, names=ask.names, signatures=tuple(signed))


def complete(made):
    first = next(iter(made.values()))
    signed = tuple((n, array_hash(u.masked) + u.signature) for n, u in sorted(made.items()))
    return Complete(setup=first.setup, step=first.step, uploads=signed)


# 4, which everything here rests on


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"threshold": 3}, r"privacy\.threshold is 3"),
        ({"threshold": 4, "drop": 2}, r"privacy\.drop is 2"),
        ({"drop": -1}, r"privacy\.drop is -1"),
        ({"collude": 0}, r"privacy\.collude is 0"),
        ({"collude": -1, "reference": True}, r"privacy\.collude is -1"),
        ({"ring_bits": 16}, r"privacy\.ring_bits is 16"),
        ({"block": 0}, "block of 0 steps"),
        ({"members": ()}, "names 0 sites"),
    ],
)
def test_rule_04_a_group_that_cannot_hold_its_promise_does_not_exist(five, changes, said):
    kept = {f.name: getattr(five.group, f.name) for f in dataclasses.fields(Group) if f.init}
    with pytest.raises(ConfigError, match=said):
        Group(**kept | changes)


def test_rule_04_names_and_keys_are_different_and_sorted(five):
    kept = {f.name: getattr(five.group, f.name) for f in dataclasses.fields(Group) if f.init}
    members = kept.pop("members")
    for wrong in (
        members[::-1],
        members[:4] + members[3:4],
        (*members[:4], ("z", members[0][1])),
        (*members[:4], ("z", b"")),
    ):
        with pytest.raises(ConfigError, match="roster's"):
            Group(members=wrong, **kept)


@pytest.mark.parametrize("sites", range(3, 51))
def test_rule_04_the_smallest_threshold_is_the_smallest_legal_one(sites):
    for collude in range(1, sites):
        t = smallest_threshold(sites, collude)
        assert 2 * t > sites + collude >= 2 * (t - 1)


def test_rule_04_three_sites_have_threshold_three_and_nobody_may_be_missing(federation):
    group = federation(3).group
    assert (group.threshold, group.drop) == (3, 0)
    with pytest.raises(ConfigError):
        federation(3, drop=1)


# 8: masks


def test_rule_08_keys_are_fresh_in_every_step(five):
    setup = five.sites[five.names[0]]._blocks[0].agreed
    keys = [setup.key(n, number) for n in five.names for number in range(4)]
    commitments = [setup.commitment(n, number) for n in five.names for number in range(4)]
    assert len(set(keys + commitments)) == 40
    secrets = np.concatenate([s._blocks[0].secrets.reshape(-1, 32) for s in five.sites.values()])
    assert len({s.tobytes() for s in secrets}) == 40


@pytest.mark.parametrize(
    "changes",
    [{"number": 1}, {"attempt": 1}, {"parameters": OTHER_MODEL}, {"size": 6}, {"kind": "scores"}],
)
def test_rule_08_everything_that_a_step_is_changes_its_masks(five, changes):
    keys = five.sites[five.names[0]]._blocks[0]
    setup, secret = keys.agreed, keys.secrets[0, KEY].tobytes()
    step, pair = five.make_step(0), five.names[:2]

    def both(at, group=five.group, digest=setup.digest):
        public = setup.key(pair[1], 0)
        key = pair_key(group, digest, at, names=pair, secret=agreement(secret), public=public)
        return key, self_key(group, digest, at, pair[0], secret)

    for one, other in zip(both(step), both(five.make_step(**{"number": 0} | changes)), strict=True):
        assert one != other


def all_keys(group, setup=b"one", block=0):
    """A key of each kind, from the same secrets."""
    secret, public = agreement(bytes(range(32))), public_key(bytes(range(1, 33)))
    step = Step(number=0, attempt=0, parameters=bytes(32), size=1, kind="train")
    return (
        self_key(group, setup, step, "site-00", bytes(32)),
        pair_key(group, setup, step, names=("site-00", "site-01"), secret=secret, public=public),
        deal_key(group, setup, block, sender="site-00", receiver="site-01", secret=secret, public=public),
    )


def test_rule_08_the_adverts_are_in_every_key_and_kinds_of_keys_differ(five):
    """Two sites that were shown different adverts have no mask and no packet in common."""
    one, other = all_keys(five.group), all_keys(five.group, setup=b"other")
    assert len({*one, *other}) == 6
    assert all_keys(five.group, block=1)[2] != one[2]


def test_rule_08_a_site_deals_only_for_the_advert_that_it_gave(five):
    """The same identity in another process, with other keys: signed well, and still not this party's."""
    name = five.names[0]
    party, twin = (SiteParty(five.group, name, five.identities[name]) for _ in range(2))
    party.advertise(0)
    adverts = five.aggregator._setups[0].adverts
    refusal("advert", party.deal, Adverts(block=0, adverts=(twin.advertise(0), *adverts[1:])))


@pytest.mark.parametrize(
    "changes",
    [
        {"plan_hash": "other"},
        {"session": "other"},
        {"threshold": 5, "drop": 0},
        {"ring_bits": 64},
        {"block": 5},
        {"reference": True},
    ],
)
def test_rule_08_plan_session_and_roster_are_in_every_key(five, changes):
    kept = {f.name: getattr(five.group, f.name) for f in dataclasses.fields(Group) if f.init}
    other = Group(**kept | changes)
    assert other.digest != five.group.digest
    assert all(a != b for a, b in zip(all_keys(five.group), all_keys(other), strict=True))
    members = (*kept["members"][:4], ("site-04", Ed25519PrivateKey.generate().public_key().public_bytes_raw()))
    assert Group(**kept | {"members": members}).digest != five.group.digest


def test_rule_08_sites_that_were_sent_different_models_never_unmask(five):
    """The odd one signs another step, so that nobody opens; and if they did, its masks would not cancel."""
    step, other = five.make_step(0), five.make_step(0, parameters=OTHER_MODEL)
    made = uploads(five, step, five.names[:4]) | uploads(five, other, five.names[4:])
    for name in five.names:
        refusal("signature" if name != five.names[4] else "step", five.sites[name].reveal, complete(made))
    five.aggregator.begin(step)
    refusal("step", five.aggregator.take, made[five.names[4]])


def test_rule_08_what_opens_one_step_opens_no_other(five, transcript):
    """Everything that all sites reveal in a step, and everything that one of them keeps, opens no other step."""
    held = transcript(five, five.names[:1])
    held.hold_block(0)
    for number in range(2):
        made = uploads(five, five.make_step(number))
        held.uploads += made.values()
        if number == 0:
            for name in five.names:
                held.hold_reveal(five.sites[name].reveal(complete(made)))
    assert held.learnt(0) == [five.names[1:]]
    assert held.learnt(1) == []
    assert all(held.secret(1, n, kind) is None for n in five.names[1:] for kind in (KEY, SEED))


def test_rule_08_keys_are_erased_when_a_step_ends(five):
    name = five.names[0]
    party, keys = five.sites[name], five.sites[name]._blocks[0]
    secrets, shares = keys.secrets.copy(), keys.shares.copy()
    made = uploads(five, five.make_step(0))
    # Used: what is behind the masks is gone before the upload is handed over.
    assert not keys.secrets[0].any()
    assert keys.secrets[1:].all(axis=(1, 2)).tolist() == secrets[1:].all(axis=(1, 2)).tolist()
    np.testing.assert_array_equal(keys.shares, shares)
    party.reveal(complete(made))
    assert not keys.shares[:, 0].any()
    # Superseded: step 1 was skipped, step 2 never opened.
    uploads(five, five.make_step(2), [name])
    assert not keys.shares[:, :2].any()
    uploads(five, five.make_step(3), [name])
    assert not keys.shares[:, :3].any()
    kept = party.state()
    for number in range(3):
        assert secrets[number, KEY].tobytes() not in kept
        assert shares[1, number, SEED].tobytes() not in kept


def test_rule_08_recorded_packets_cannot_be_opened_with_what_a_site_keeps(federation):
    """Who records the sealed shares and later takes a site's state learns nothing of steps that are over."""
    world = federation(3)
    sent = []
    answer = SiteParty.receive

    def recording(self, deals):
        sent.append((self.name, deals))
        return answer(self, deals)

    SiteParty.receive = recording
    try:
        transports = {}
        world.aggregator.open(0)
        while world.aggregator.phase is not AggregatorPhase.RECEIPTS:
            name, ask = next(iter(world.aggregator.asks().items()))
            world.aggregator.take(world.sites[name].answer(ask))
        transports = {n: s._blocks[0].transport for n, s in world.sites.items()}
        world.exchange()
    finally:
        SiteParty.receive = answer
    name, deals = sent[0]
    peer, sealed = deals.sealed[0]
    setup = world.sites[name]._blocks[0].agreed
    secret = agreement(transports[name])
    key = deal_key(
        world.group, setup.digest, 0, sender=peer, receiver=name, secret=secret, public=setup.advert(peer).transport
    )
    # It can be opened with the transport key, which is therefore not kept.
    assert unseal(key, sealed, peer)
    assert world.sites[name]._blocks[0].transport == b""
    assert transports[name] not in world.sites[name].state()


def test_rule_08_adverts_are_signed_and_bound_to_group_and_block(five):
    adverts = five.aggregator._setups[0].adverts
    fresh = {n: SiteParty(five.group, n, k) for n, k in five.identities.items()}
    own = fresh[five.names[0]].advertise(0)

    def with_second(advert):
        return Adverts(block=0, adverts=(own, advert, *adverts[2:]))

    deal = fresh[five.names[0]].deal
    second = adverts[1]
    for field in ("transport", "keys", "commitments", "signature"):
        value = getattr(second, field)
        changed = dataclasses.replace(second, **{field: bytes([value[0] ^ 1]) + value[1:]})
        refusal("signature", deal, with_second(changed))
    refusal("signature", deal, with_second(dataclasses.replace(second, block=1)))
    refusal("advert", deal, with_second(SiteParty(five.group, second.site, five.identities[second.site]).advertise(1)))
    refusal("advert", deal, with_second(adverts[2]))
    other = Group(plan_hash="another", session="session", members=five.group.members, threshold=4, drop=1, block=4)
    refusal("signature", deal, with_second(SiteParty(other, second.site, five.identities[second.site]).advertise(0)))


def test_rule_08_a_packet_is_sealed_for_one_receiver_of_one_set_up(federation):
    world = federation(4)
    world.aggregator.open(0)
    while world.aggregator.phase is not AggregatorPhase.RECEIPTS:
        name, ask = next(iter(world.aggregator.asks().items()))
        world.aggregator.take(world.sites[name].answer(ask))
    asks = world.aggregator.asks()
    first, second = world.names[:2]
    party = world.sites[first]
    good = asks[first]
    before = party.state()
    stolen = Deals(block=0, setup=good.setup, sealed=((world.names[1], asks[second].sealed[0][1]), *good.sealed[1:]))
    refusal("deal", party.receive, stolen)
    changed = good.sealed[0][1][:-1] + bytes([good.sealed[0][1][-1] ^ 1])
    refusal("deal", party.receive, dataclasses.replace(good, sealed=((world.names[1], changed), *good.sealed[1:])))
    refusal("deal", party.receive, dataclasses.replace(good, sealed=good.sealed[1:]))
    refusal("set-up", party.receive, dataclasses.replace(good, setup=bytes(32)))
    refusal("set-up", SiteParty.upload, party, world.make_step(0), world.vector(5))
    assert party.state() == before
    party.receive(good)
    party.upload(world.make_step(0), world.vector(5))


def test_rule_08_a_peer_key_of_small_order_is_refused(five):
    """X25519 with such a point gives zero for every secret: a mask that anybody can compute."""
    keys = five.sites[five.names[0]]._blocks[0]
    weak = tuple(
        dataclasses.replace(a, keys=bytes(len(a.keys))) if a.site == five.names[1] else a for a in keys.agreed.adverts
    )
    keys.setup = Setup.of(five.group, weak, 0)
    party = five.sites[five.names[0]]
    before = party.state()
    refusal("key", party.upload, five.make_step(0), five.vector(5))
    assert party.state() == before


# 9: opening


def test_rule_09_two_exchanges_when_all_answered_and_three_when_not(five):
    def kinds(step, names):
        five.upload(step, names)
        if len(names) < 5:
            five.aggregator.close()
        asked = []
        while asks := five.aggregator.asks():
            asked.append({type(a).__name__ for a in asks.values()})
            for name, ask in asks.items():
                five.aggregator.take(five.sites[name].answer(ask))
        return asked

    # The first exchange is the request that the upload answers.
    assert kinds(five.make_step(0), five.names) == [{"Complete"}]
    assert kinds(five.make_step(1), five.names[1:]) == [{"Survivors"}, {"Certificate"}]


def test_rule_09_shares_leave_only_against_threshold_signatures_on_one_list(five):
    made = uploads(five, five.make_step(0))
    names = five.names[:4]
    whole = certified(five, made, names)
    party = five.sites[names[0]]
    before = party.state()
    # One signature is missing, of a stranger, of another list, or there twice.
    refusal("threshold", party.reveal, dataclasses.replace(whole, signatures=whole.signatures[:3]))
    stranger = (*whole.signatures[:3], (names[3], bytes(64)))
    refusal("signature", party.reveal, dataclasses.replace(whole, signatures=stranger))
    other = dataclasses.replace(survivors(made, five.names[1:]))
    foreign = five.sites[five.names[4]].endorse(other).signature
    refusal(
        "signature", party.reveal, dataclasses.replace(whole, signatures=(*whole.signatures[:3], (names[3], foreign)))
    )
    refusal("list", party.reveal, dataclasses.replace(whole, signatures=(*whole.signatures[:3], whole.signatures[2])))
    refusal(
        "list", party.reveal, dataclasses.replace(whole, signatures=(*whole.signatures[:3], (five.names[4], foreign)))
    )
    assert party.state() == before
    shares = party.reveal(whole)
    assert tuple(n for n, _ in shares.seeds) == names
    assert tuple(n for n, _ in shares.keys) == five.names[4:]


def test_rule_09_a_list_has_at_least_n_minus_d_names_and_is_of_members(five):
    made = uploads(five, five.make_step(0))
    party = five.sites[five.names[0]]
    for names in (
        five.names[:3],
        five.names,
        five.names[:4][::-1],
        (*five.names[:4], "site-99"),
        (),
        five.names[:1] * 4,
    ):
        refusal("list", party.endorse, survivors(made, names))
    # And a list without this site, which did upload.
    refusal("list", party.endorse, survivors(made, five.names[1:]))


def test_rule_09_a_site_signs_and_opens_one_list_per_step(five):
    made = uploads(five, five.make_step(0))
    first, second = (tuple(n for n in five.names if n != five.names[i]) for i in (4, 3))
    party = five.sites[five.names[0]]
    signed = party.endorse(survivors(made, first))
    refusal("state", party.endorse, survivors(made, second))
    # Not even a good certificate of another list moves it.
    group = five.group
    parts = group.digest, signed.setup, signed.step.parts, second
    forced = tuple((n, sign(five.identities[n], "survivors", *parts)) for n in second)
    other = Certificate(setup=signed.setup, step=signed.step, names=second, signatures=forced)
    refusal("list", party.reveal, other)
    party.reveal(certified(five, made, first))
    refusal("state", party.reveal, other)
    refusal("state", party.endorse, survivors(made, second))


def test_rule_09_a_site_does_not_open_for_a_list_that_calls_it_missing(five):
    """It uploaded: others would open its key, and it would help."""
    made = uploads(five, five.make_step(0))
    ask = certified(five, made, five.names[1:])
    refusal("list", five.sites[five.names[0]].reveal, ask)
    five.sites[five.names[1]].reveal(ask)


def test_rule_09_never_all_after_signing_fewer_and_never_fewer_after_all(five):
    made = uploads(five, five.make_step(0))
    shorter = five.names[:4]
    careful, open_already = (five.sites[n] for n in five.names[:2])
    careful.endorse(survivors(made, shorter))
    refusal("state", careful.reveal, complete(made))
    open_already.reveal(complete(made))
    refusal("state", open_already.endorse, survivors(made, shorter))
    refusal(
        "state",
        open_already.reveal,
        Certificate(setup=made[five.names[0]].setup, step=five.make_step(0), names=shorter, signatures=()),
    )


def test_rule_09_all_means_a_signed_upload_of_every_site_for_this_step(five):
    made = uploads(five, five.make_step(0))
    party = five.sites[five.names[0]]
    good = complete(made)
    refusal("list", party.reveal, dataclasses.replace(good, uploads=good.uploads[:4]))
    changed = good.uploads[4][1][:-1] + bytes([good.uploads[4][1][-1] ^ 1])
    forged = (*good.uploads[:4], (five.names[4], changed))
    refusal("signature", party.reveal, dataclasses.replace(good, uploads=forged))
    swapped = (*good.uploads[:4], (five.names[4], good.uploads[3][1]))
    refusal("signature", party.reveal, dataclasses.replace(good, uploads=swapped))
    own = ((five.names[0], bytes(32) + good.uploads[0][1][32:]), *good.uploads[1:])
    refusal("list", party.reveal, dataclasses.replace(good, uploads=own))
    refusal("set-up", party.reveal, dataclasses.replace(good, setup=bytes(32)))
    party.reveal(good)


def test_rule_09_the_same_peer_is_never_both_alive_and_missing(five):
    """What a site can be brought to reveal in a step names each peer once."""
    made = uploads(five, five.make_step(0))
    names = five.names[1:]
    ask = certified(five, made, names)
    for name in names:
        answer = five.sites[name].reveal(ask)
        said = [n for n, _ in (*answer.seeds, *answer.keys)]
        assert sorted(said) == list(five.names)


def test_rule_09_whoever_is_asked_before_uploading_refuses(five):
    step = five.make_step(0)
    made = uploads(five, step, five.names[1:])
    party = five.sites[five.names[0]]
    refusal("step", party.endorse, survivors(made, five.names[:4]))
    refusal("step", party.reveal, Complete(setup=bytes(32), step=step, uploads=()))
    refusal("state", party.answer, Endorsement(site="", setup=b"", step=step, names=(), signature=b""))


def test_rule_09_a_wrong_share_is_found_and_done_without(five):
    """One site lies about its shares: its peers' suffice; where they do not, there is no sum rather than a wrong one."""
    step = five.make_step(0)
    five.upload(step)
    liar, ask = five.names[0], five.aggregator.asks()
    answer = five.sites[liar].answer(ask[liar])
    seeds = tuple((n, bytes(36)) for n, _ in answer.seeds)
    parts = five.group.digest, answer.setup, liar, step.parts, seeds, answer.keys
    lie = dataclasses.replace(answer, seeds=seeds, signature=sign(five.identities[liar], "reveal", *parts))
    five.aggregator.take(lie)
    for name in five.names[1:4]:
        five.aggregator.take(five.sites[name].answer(ask[name]))
    # Threshold came, one of them wrong.
    assert five.aggregator.phase is AggregatorPhase.COMPLETING
    five.aggregator.take(five.sites[five.names[4]].answer(ask[five.names[4]]))
    np.testing.assert_array_equal(five.aggregator.result(), five.plain_sum())


def test_rule_09_where_all_shares_are_wrong_there_is_no_sum(federation):
    world = federation(3)
    world.set_up()
    step = world.make_step(0)
    world.upload(step)
    for name in world.names:
        world.sites[name]._blocks[0].shares[:] = 1
    world.exchange()
    assert world.aggregator.phase is AggregatorPhase.LOST
    with pytest.raises(LocalProtocolError, match="no sum"):
        world.aggregator.result()


# 10 and 11: what an upload shows


@pytest.mark.parametrize("value", [0, 1, 2**31, 2**32 - 1])
def test_rule_10_weights_and_counts_in_the_vector_are_masked_like_the_rest(federation, value):
    """Every position of the vector is under all masks, the last two too; the message has no other number in it."""
    world = federation(3)
    world.set_up()
    step = world.make_step(0, size=64)
    upload = world.sites[world.names[0]].upload(step, np.full(64, value, dtype=np.uint32))
    assert {f.name for f in dataclasses.fields(upload)} == {"site", "setup", "step", "masked", "signature"}
    assert np.count_nonzero(upload.masked == value) <= 1
    assert len(set(upload.masked.tolist())) >= 63


def test_rule_10_masks_look_random_to_who_lacks_one_key(federation):
    """Bits of an upload of zeros: half of them ones, in every position of a word, and no two uploads alike."""
    world = federation(4)
    world.set_up()
    size = 20_000
    made = uploads(world, world.make_step(0, size=size), world.names)
    zero = world.sites[world.names[0]].upload(world.make_step(1, size=size), np.zeros(size, dtype=np.uint32))
    ones = np.unpackbits(zero.masked.view(np.uint8)).reshape(size, 32).sum(axis=0)
    # 32 positions, six standard deviations each.
    assert np.abs(ones - size / 2).max() < 6 * np.sqrt(size) / 2
    assert abs(np.corrcoef(zero.masked.astype(float), made[world.names[0]].masked.astype(float))[0, 1]) < 0.05


def test_rule_11_an_answer_has_the_same_length_whatever_is_in_it(federation):
    world = federation(4, drop=1)
    world.set_up()
    lengths = {}
    for number in range(4):
        step = world.make_step(number)
        world.aggregator.begin(step)
        for name in world.names:
            vector = np.full(5, number * 1_000_003, dtype=np.uint32)
            upload = world.sites[name].upload(step, vector)
            lengths.setdefault("Upload", set()).add(len(to_bytes(upload)))
            world.aggregator.take(upload)
        for name, ask in world.aggregator.asks().items():
            answer = world.sites[name].answer(ask)
            lengths.setdefault("Reveal", set()).add(len(to_bytes(answer)))
            world.aggregator.take(answer)
    assert {k: len(v) for k, v in lengths.items()} == {"Upload": 1, "Reveal": 1}


def test_rule_11_a_vector_of_another_kind_than_declared_is_our_own_mistake(five):
    party, step = five.sites[five.names[0]], five.make_step(0)
    before = party.state()
    for vector in (
        np.zeros(5),
        np.zeros(5, dtype=np.uint64),
        np.zeros(6, dtype=np.uint32),
        np.zeros((5, 1), dtype=np.uint32),
    ):
        with pytest.raises(LocalProtocolError, match="declared"):
            party.upload(step, vector)
    assert party.state() == before


def test_rule_11_the_vector_is_left_as_it_was(five):
    vector = five.vector(5, "mine").copy()
    before = vector.copy()
    five.sites[five.names[0]].upload(five.make_step(0), vector)
    np.testing.assert_array_equal(vector, before)


# 12 and 13: nothing twice


def test_rule_12_a_number_is_masked_once_whatever_is_asked(five):
    party, step = five.sites[five.names[0]], five.make_step(1)
    party.upload(step, five.vector(5, "first"))
    before = party.state()
    for again in (step, five.make_step(1, attempt=1), five.make_step(1, kind="scores"), five.make_step(0)):
        refusal("step", party.upload, again, five.vector(5, "second"))
    assert party.state() == before


def test_rule_12_asked_again_the_answer_has_the_same_bytes(five):
    made = uploads(five, five.make_step(0))
    names = five.names[:4]
    party = five.sites[names[0]]
    ask = survivors(made, names)
    signed = to_bytes(party.endorse(ask))
    assert to_bytes(party.endorse(ask)) == signed
    certificate = certified(five, made, names)
    opened = to_bytes(party.reveal(certificate))
    for _ in range(2):
        five.restart(names[0])
        party = five.sites[names[0]]
        assert to_bytes(party.reveal(certificate)) == opened
        assert to_bytes(party.endorse(ask)) == signed


def test_rule_12_set_up_asked_again_has_the_same_bytes_and_other_adverts_are_refused(federation):
    world = federation(3)
    world.set_up()
    adverts = world.aggregator._setups[0].adverts
    for name in world.names:
        party = world.sites[name]
        ask = Adverts(block=0, adverts=adverts)
        first = to_bytes(party.deal(ask)), to_bytes(party.advertise(0))
        world.restart(name)
        party = world.sites[name]
        assert (to_bytes(party.deal(ask)), to_bytes(party.advertise(0))) == first
        other = SiteParty(world.group, world.names[0], world.identities[world.names[0]]).advertise(0)
        refusal("dealt", party.deal, Adverts(block=0, adverts=(other, *adverts[1:])))


def test_rule_13_a_repetition_is_a_new_number_with_new_keys(five):
    """An attempt that was given up is never opened later, and its repetition has nothing in common with it."""
    step, again = five.make_step(0), five.make_step(1, attempt=1)
    vector = np.zeros(2000, dtype=np.uint32)
    step, again = (dataclasses.replace(s, size=2000) for s in (step, again))
    party = five.sites[five.names[0]]
    first = party.upload(step, vector).masked
    others = {n: five.sites[n].upload(step, vector) for n in five.names[1:]}
    second = party.upload(again, vector).masked
    assert np.count_nonzero(first == second) <= 1
    made = others | {five.names[0]: dataclasses.replace(next(iter(others.values())), site=five.names[0], masked=first)}
    refusal("step", party.reveal, complete(made))
    refusal("step", party.endorse, survivors(others, five.names[:4]))


def test_rule_13_the_aggregator_uses_a_number_once(five):
    five.step(five.make_step(1))
    for number in (0, 1):
        with pytest.raises(LocalProtocolError, match="twice"):
            five.aggregator.begin(five.make_step(number))
    five.step(five.make_step(2))


def test_a_step_out_of_range_is_our_own_mistake():
    for changes in ({"number": -1}, {"size": 0}, {"kind": "other"}, {"parameters": b""}, {"attempt": -1}):
        with pytest.raises(LocalProtocolError, match="step"):
            Step(**{"number": 0, "attempt": 0, "parameters": bytes(32), "size": 1, "kind": "train"} | changes)
