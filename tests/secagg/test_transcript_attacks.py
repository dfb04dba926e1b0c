"""Seven ways to read one site's update out of a secure sum: none works here, each works on parties made weak on purpose.

The weak parties are ours with one defence taken out. They copy nobody's code. That every attack does work on them shows that the
attacks are real, and that the defence that was taken out is the one that stops it.
"""

from __future__ import annotations

import hashlib
import itertools
import os

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from oncofed_shared.errors import ConfigError, LocalProtocolError, RemoteProtocolError
from oncofed_shared.secagg import Group, SiteParty, SitePhase, block
from oncofed_shared.secagg.adverts import KEY, SEED, Setup, check_advert
from oncofed_shared.secagg.block import BlockKeys
from oncofed_shared.secagg.keys import agreement, public_key, sign
from oncofed_shared.secagg.messages import Advert, Adverts, Certificate, Complete, Survivors

SEEDS = 256


class Forgetful(SiteParty):
    """Opens as often as it is asked, for whatever list, and keeps its keys."""

    def _asked(self, ask):
        return self._current, _Unerasable(self._blocks[ask.step.number // self.group.block]), None

    def _check_certificate(self, ask, current, keys):
        pass

    def _ready(self, step):
        return self._blocks[step.number // self.group.block]

    def _enter(self, keys, step, digest):
        super()._enter(_Unerasable(keys), step, digest)

    def _move(self, current, *_):
        current.phase = SitePhase.UPLOADED


class _Unerasable:
    """A block's keys that nothing erases."""

    def __init__(self, keys):
        self._keys = keys

    def __getattr__(self, name):
        return getattr(self._keys, name)

    def erase_secrets(self, number):
        pass

    def erase_shares(self, number):
        pass


class Trusting(SiteParty):
    """Opens once per step, for any list of at least n - drop, without signatures under it."""

    def _check_certificate(self, ask, current, keys):
        pass


class WeakGroup(Group):
    """Any number of sites with any threshold."""

    def _member_problems(self):
        return []

    def _number_problems(self):
        return []


def weaken(world, kind, **more):
    world.sites = {n: kind(world.group, n, k, **more) for n, k in world.identities.items()}


def uploads_of(world, transcript, step, names=None):
    """Let sites upload; the aggregator keeps every single one."""
    made = {}
    for name in names or world.names:
        world.vectors[name] = world.vector(step.size, step.number, name)
        made[name] = world.sites[name].upload(step, world.vectors[name])
        transcript.uploads.append(made[name])
    return made


def ask_all(world, transcript, asks):
    """Send asks; hold what is revealed, and say how many refused."""
    refused = 0
    for name, ask in asks:
        try:
            transcript.hold_reveal(world.sites[name].reveal(ask))
        except RemoteProtocolError:
            refused += 1
    return refused


def complete(made):
    first = next(iter(made.values()))
    signed = tuple((n, hashlib.sha256(u.masked.tobytes()).digest() + u.signature) for n, u in sorted(made.items()))
    return Complete(setup=first.setup, step=first.step, uploads=signed)


def certificate(made, names, signatures=()):
    first = next(iter(made.values()))
    return Certificate(setup=first.setup, step=first.step, names=tuple(names), signatures=tuple(signatures))


# 1: the seeds can be guessed


def small_entropy(seed):
    """So many bytes of a generator with SEEDS states."""
    counter = itertools.count()
    return lambda count: hashlib.shake_256(bytes([seed, next(counter) % 256])).digest(count)


def search(advert, group):
    """A site's secrets of the first step, by trying all states of the small generator."""
    for seed in range(SEEDS):
        entropy = small_entropy(seed)
        transport, secrets = entropy(32), entropy(group.block * 64)
        if public_key(transport) == advert.transport:
            return {KEY: secrets[:32], SEED: secrets[32:64]}
    return None


def weak_seed(world, transcript):
    world.set_up()
    transcript.hold_block(0)
    made = uploads_of(world, transcript, world.make_step(0))
    victim = world.names[1]
    found = search(transcript.setups[0][1][victim], world.group)
    if found:
        transcript.known |= {(0, victim, kind): secret for kind, secret in found.items()}
    return victim, transcript.opened([made[victim]])


def test_weak_seed(federation, transcript):
    world = federation(4)
    assert weak_seed(world, transcript(world))[1] is None

    weaken(world, SiteParty)
    for i, (name, identity) in enumerate(world.identities.items()):
        world.sites[name] = SiteParty(world.group, name, identity, entropy=small_entropy(31 * i + 7))
    world.aggregator = federation(3).aggregator.__class__(world.group)
    victim, read = weak_seed(world, transcript(world))
    np.testing.assert_array_equal(read, world.vectors[victim])


def test_every_bit_of_a_seed_and_of_a_key_counts(federation):
    """Nothing is folded: flip any of the 256 bits and the mask is another."""
    world = federation(3)
    world.set_up()
    step = world.make_step(0, size=4)
    masks = set()
    keys = world.sites[world.names[0]]._blocks[0]
    secret, seed = keys.secrets[0, KEY].tobytes(), keys.secrets[0, SEED].tobytes()
    for bit in range(256):
        flipped = (int.from_bytes(seed, "little") ^ 1 << bit).to_bytes(32, "little")
        terms = world.sites[world.names[0]]._masks(keys, step, secret, flipped)
        assert all(len(key) == 32 for key, _ in terms)
        masks.add(terms[0][0])
    assert len(masks) == 256


# 2: the same site is called alive and missing


def active_and_dead(world, transcript):
    world.set_up()
    transcript.hold_block(0)
    made = uploads_of(world, transcript, world.make_step(0))
    victim = world.names[2]
    others = [n for n in world.names if n != victim]
    refused = ask_all(world, transcript, [(n, complete(made)) for n in world.names])
    signed = []
    for name in others:
        ask = Survivors(setup=made[name].setup, step=made[name].step, names=tuple(others))
        try:
            signed.append((name, world.sites[name].endorse(ask).signature))
        except RemoteProtocolError:
            refused += 1
    refused += ask_all(world, transcript, [(n, certificate(made, others, signed)) for n in others])
    return victim, transcript.opened([made[victim]]), refused


def test_active_and_dead(federation, transcript):
    world = federation(5, drop=1)
    _, read, refused = active_and_dead(world, transcript(world))
    assert (read, refused) == (None, 8)

    world = federation(5, drop=1)
    weaken(world, Forgetful)
    victim, read, refused = active_and_dead(world, transcript(world))
    assert refused == 0
    np.testing.assert_array_equal(read, world.vectors[victim])


# 3: different lists for different sites, so that more are missing than the noise allows for


def split_views(world, transcript):
    """Four of nine are made missing where three may be: every site is shown only three of them."""
    world.set_up()
    transcript.hold_block(0)
    made = uploads_of(world, transcript, world.make_step(0))
    hidden, rest = world.names[:4], world.names[4:]
    views = {}
    for i, name in enumerate(world.names):
        shown = [h for h in hidden if h != name] if name in hidden else [h for j, h in enumerate(hidden) if j != i % 4]
        views[name] = tuple(n for n in world.names if n not in shown)
    signed = {}
    for name, view in views.items():
        ask = Survivors(setup=made[name].setup, step=made[name].step, names=view)
        signed.setdefault(view, []).append((name, world.sites[name].endorse(ask).signature))
    asks = [(n, certificate(made, view, sorted(signed[view]))) for n, view in views.items()]
    refused = ask_all(world, transcript, asks)
    return rest, transcript.opened([made[n] for n in rest]), refused


def test_split_views(federation, transcript):
    world = federation(9, drop=3)
    _, read, refused = split_views(world, transcript(world))
    assert (read, refused) == (None, 9)

    world = federation(9, drop=3)
    weaken(world, Trusting)
    rest, read, refused = split_views(world, transcript(world))
    assert len(rest) < len(world.names) - world.group.drop
    assert refused == 0
    expected = np.sum([world.vectors[n] for n in rest], axis=0, dtype=np.uint32)
    np.testing.assert_array_equal(read, expected)


# 4: a step is asked for again, with something else in it


def replay(world):
    """Two vectors under one key: their difference is open."""
    world.set_up()
    victim = world.names[0]
    party, step = world.sites[victim], world.make_step(0)
    first = party.upload(step, world.vector(5, "first"))
    second = party.upload(step, world.vector(5, "second"))
    return first.masked - second.masked


def test_replay(federation):
    world = federation(4)
    with pytest.raises(RemoteProtocolError) as refused:
        replay(world)
    assert refused.value.code == "step"

    world = federation(4)
    weaken(world, Forgetful)
    np.testing.assert_array_equal(replay(world), world.vector(5, "first") - world.vector(5, "second"))


# 5: the aggregator's keys in place of the peers'


def key_substitution(world, transcript):
    """Show the victim peers that do not exist: all its shares are then sealed for the aggregator."""
    group, victim = world.group, world.names[0]
    party = world.sites[victim]
    own = party.advertise(0)
    faked = {}
    for name in group.names[1:]:
        # Signed, but by a key that is not the roster's.
        stranger = Ed25519PrivateKey.generate()
        faked[name] = BlockKeys.create(group, name, 0, stranger, os.urandom)
    adverts = (own, *(k.advert for k in faked.values()))
    dealt = party.deal(Adverts(block=0, adverts=adverts))
    transcript.setups[0] = dealt.setup, {a.site: a for a in adverts}
    for name, keys in faked.items():
        keys.setup = Setup.of(group, adverts, 0)
        opened = keys._opened(victim, dict(dealt.sealed)[name], agreement(keys.transport))
        for kind in (KEY, SEED):
            transcript.known[0, name, kind] = keys.secrets[0, kind].tobytes()
            transcript.hold_share(0, victim, kind, name, opened[0, kind].astype("<u4").tobytes())
    party._blocks[0].shares = np.zeros((len(group.members), group.block, 2, 9), dtype=np.uint32)
    world.vectors[victim] = world.vector(5, "secret")
    return victim, transcript.opened([party.upload(world.make_step(0), world.vectors[victim])])


def test_key_substitution(federation, transcript, monkeypatch):
    world = federation(5)
    with pytest.raises(RemoteProtocolError) as refused:
        key_substitution(world, transcript(world))
    assert refused.value.code == "signature"

    world = federation(5)
    monkeypatch.setattr(block, "check_adverts", lambda group, adverts, number: None)
    victim, read = key_substitution(world, transcript(world))
    np.testing.assert_array_equal(read, world.vectors[victim])


# 6: a threshold that one colluding site meets


def numbers_of(group, **changes):
    kept = {n: getattr(group, n) for n in ("plan_hash", "session", "members", "threshold", "drop", "collude", "block")}
    return kept | changes


def colluder_alone(world, transcript, corrupted):
    """One site and the aggregator; nobody reveals anything."""
    world.set_up()
    transcript.corrupted = (corrupted,)
    transcript.hold_block(0)
    victim = next(n for n in world.names if n != corrupted)
    made = uploads_of(world, transcript, world.make_step(0))
    return victim, transcript.opened([made[victim]])


@pytest.mark.parametrize("threshold", [0, 1, 2, 3])
def test_threshold_downgrade(federation, transcript, threshold):
    world = federation(5)
    with pytest.raises(ConfigError, match=r"privacy\.threshold"):
        Group(**numbers_of(world.group, threshold=threshold))
    assert colluder_alone(world, transcript(world), world.names[4])[1] is None


def test_threshold_downgrade_works_where_nobody_checks_it(federation, transcript):
    world = federation(5)
    world.group = WeakGroup(**numbers_of(world.group, threshold=1))
    world.aggregator = world.aggregator.__class__(world.group)
    weaken(world, SiteParty)
    victim, read = colluder_alone(world, transcript(world), world.names[4])
    np.testing.assert_array_equal(read, world.vectors[victim])


def test_an_aggregator_cannot_use_another_threshold_than_its_sites(federation):
    """The group's numbers are under every signature: a site that was told others is not understood."""
    world = federation(5, drop=1)
    lower = Group(**numbers_of(world.group, drop=0, threshold=5))
    name = world.names[0]
    world.sites[name] = SiteParty(lower, name, world.identities[name])
    world.aggregator.open(0)
    with pytest.raises(RemoteProtocolError) as refused:
        world.exchange()
    assert refused.value.code == "signature"


# 7: two sites


def sum_less_own(world, victim):
    """What the other site knows from the sum alone."""
    step = world.make_step(0)
    total = world.step(step)
    return total - np.sum([v for n, v in world.vectors.items() if n != victim], axis=0, dtype=total.dtype)


def test_two_sites(federation):
    world = federation(3)
    with pytest.raises(ConfigError, match="need 3 to"):
        Group(**numbers_of(world.group, members=world.group.members[:2], threshold=2))

    world.group = WeakGroup(**numbers_of(world.group, members=world.group.members[:2], threshold=2))
    del world.identities[world.names[2]]
    world.names = world.group.names
    world.aggregator = world.aggregator.__class__(world.group)
    weaken(world, SiteParty)
    world.set_up()
    victim = world.names[1]
    np.testing.assert_array_equal(sum_less_own(world, victim), world.vectors[victim])


def test_of_three_sites_a_colluding_one_learns_the_sum_of_the_other_two_only(federation, transcript):
    world = federation(3)
    held = transcript(world, world.names[:1])
    world.set_up()
    held.hold_block(0)
    made = uploads_of(world, held, world.make_step(0))
    ask_all(world, held, [(n, complete(made)) for n in world.names])
    assert held.learnt(0) == [world.names[1:]]
    assert all(held.opened([made[n]]) is None for n in world.names[1:])
    both = held.opened([made[n] for n in world.names[1:]])
    np.testing.assert_array_equal(both, world.vectors[world.names[1]] + world.vectors[world.names[2]])


def test_a_site_outside_the_roster_is_no_party(federation):
    world = federation(3)
    stranger = Ed25519PrivateKey.generate()
    with pytest.raises(LocalProtocolError):
        SiteParty(world.group, world.names[0], stranger)
    with pytest.raises(RemoteProtocolError) as refused:
        check_advert(
            world.group,
            Advert(
                site="site-99",
                block=0,
                transport=b"",
                keys=b"",
                commitments=b"",
                signature=sign(stranger, "advert"),
            ),
            0,
        )
    assert refused.value.code == "member"
