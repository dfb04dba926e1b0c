"""Whatever order messages come in, and whoever forges, repeats or withholds them: no wrong sum, no single update, no second list.

Real parties, and an adversary who is the network, the aggregator and one of five sites. It keeps every message, sends any of them
to anyone at any time, makes up lists, fills certificates with what signatures it has, shows sites different models, and kills them.
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from oncofed_shared.errors import RemoteProtocolError
from oncofed_shared.secagg import AggregatorPhase, SiteParty
from oncofed_shared.secagg.adverts import KEY, SEED
from oncofed_shared.secagg.keys import sign
from oncofed_shared.secagg.masks import array_hash
from oncofed_shared.secagg.messages import Certificate, Complete, Endorsement, Reveal, Survivors

SITES, DROP, COLLUDE, BLOCK = 5, 1, 1, 3
PICK = st.integers(0, 1000)
SUBSET = st.integers(0, 2**SITES - 1)
SELDOM = st.integers(0, 9).map(lambda i: i == 7)
SETTING_UP = (AggregatorPhase.ADVERTS, AggregatorPhase.DEALS, AggregatorPhase.RECEIPTS)
OVER = (AggregatorPhase.IDLE, AggregatorPhase.DONE, AggregatorPhase.LOST)
OTHER_MODEL = bytes(range(32))


class Sums(RuleBasedStateMachine):
    """One session, driven by an adversary."""

    federation = transcript = None
    party = SiteParty

    def __init__(self):
        super().__init__()
        self.world = self.federation(SITES, drop=DROP, collude=COLLUDE, block=BLOCK)
        self.world.sites = {n: self.party(self.world.group, n, k) for n, k in self.world.identities.items()}
        self.group, self.names = self.world.group, self.world.names
        self.traitor = self.names[-1]
        self.held = self.transcript(self.world, (self.traitor,))
        self.number = 0
        self.vectors = {}
        self.asks, self.answers = [], []
        self.lists, self.openings, self.endorsed = {}, {}, {}
        self.fresh = set()

    @property
    def aggregator(self):
        return self.world.aggregator

    # What both sides do, watched

    def send(self, name, ask):
        """Send an ask to a site. A refusal leaves the site as it was."""
        site = self.world.sites[name]
        before = site.state()
        self.asks.append(ask)
        try:
            answer = self.world.crossed(site.answer(self.world.crossed(ask)))
        except RemoteProtocolError:
            assert site.state() == before
            return None
        self.answers.append(answer)
        number = answer.step.number if isinstance(answer, (Endorsement, Reveal)) else None
        if isinstance(answer, Endorsement):
            self.lists.setdefault((name, number), set()).add(answer.names)
            self.endorsed.setdefault((answer.step, answer.names), {})[name] = answer.signature
        if isinstance(answer, Reveal):
            self.openings.setdefault((name, number), set()).add((answer.seeds, answer.keys))
            self.lists.setdefault((name, number), set()).add(tuple(n for n, _ in answer.seeds))
            self.held.hold_reveal(answer)
            self.fresh.add(number)
        return answer

    def hand_in(self, answer):
        """Give an answer to the aggregator. A refusal leaves it as it was."""
        before = self.picture()
        try:
            return self.aggregator.take(answer)
        except RemoteProtocolError:
            assert self.picture() == before
            return None

    def picture(self):
        party = self.aggregator
        total = b"" if party._total is None else party._total.tobytes()
        return party.phase, party.included, party.missing, total, party.asks()

    def site(self, pick):
        return self.names[pick % SITES]

    # The protocol

    @initialize(whole=st.sampled_from([True, True, True, False]))
    def join(self, whole):
        """Mostly with the first set-up done, so that the steps of an example are spent on what comes after it."""
        self.begin()
        while whole and self.aggregator.asks():
            self.deliver_all(range(SITES))
        if whole:
            self.begin()

    @precondition(lambda self: self.aggregator.phase in OVER)
    @rule()
    def begin(self):
        block = self.number // BLOCK
        if not self.aggregator.ready(block):
            self.aggregator.open(block)
            return
        if block not in self.held.setups:
            self.held.hold_block(block)
        self.aggregator.begin(self.world.make_step(self.number, attempt=self.number % 2))
        self.number += 1

    @precondition(lambda self: self.aggregator.asks())
    @rule(pick=PICK)
    def deliver_one(self, pick):
        asks = sorted(self.aggregator.asks().items())
        name, ask = asks[pick % len(asks)]
        answer = self.send(name, ask)
        if answer is not None:
            assert self.hand_in(answer)

    @precondition(lambda self: self.aggregator.asks())
    @rule(order=st.permutations(range(SITES)))
    def deliver_all(self, order):
        for i in order:
            ask = self.aggregator.asks().get(self.names[i])
            if ask is not None:
                answer = self.send(self.names[i], ask)
                if answer is not None:
                    assert self.hand_in(answer) is not None

    @precondition(lambda self: self.aggregator.phase is AggregatorPhase.UPLOADS)
    @rule(pick=PICK, other_model=SELDOM, late=st.booleans())
    def upload(self, pick, other_model, late):
        name, step = self.site(pick), self.aggregator.step
        if other_model:
            step = dataclasses.replace(step, parameters=OTHER_MODEL)
        vector = self.world.vector(step.size, step.number, name, other_model)
        site = self.world.sites[name]
        before = site.state()
        try:
            made = self.world.crossed(site.upload(step, vector))
        except RemoteProtocolError:
            assert site.state() == before
            return
        self.vectors[step, name] = vector
        self.held.uploads.append(made)
        self.answers.append(made)
        if not late:
            assert self.hand_in(made) is (None if other_model else True)

    @precondition(lambda self: self.aggregator.phase is AggregatorPhase.UPLOADS)
    @rule(order=st.permutations(range(SITES)), count=st.sampled_from([SITES, SITES - DROP, SITES - DROP, 2]))
    def upload_many(self, order, count):
        for i in order[:count]:
            self.upload(i, other_model=False, late=False)
            if self.aggregator.phase is not AggregatorPhase.UPLOADS:
                return

    @precondition(lambda self: self.aggregator.phase is AggregatorPhase.UPLOADS)
    @rule(early=SELDOM)
    def close(self, early):
        if early or len(self.aggregator.missing) <= DROP:
            self.aggregator.close()

    @precondition(lambda self: self.aggregator.phase not in {*OVER, *SETTING_UP})
    @rule(really=SELDOM)
    def abandon(self, really):
        if really:
            self.aggregator.abandon()

    # The adversary

    @rule(pick=PICK)
    def restart(self, pick):
        name = self.site(pick)
        before = self.world.sites[name].state()
        kind, key = type(self.world.sites[name]), self.world.identities[name]
        self.world.sites[name] = kind.restore(self.group, name, key, before)
        assert self.world.sites[name].state() == before

    @precondition(lambda self: self.answers)
    @rule(pick=PICK)
    def repeat_an_answer(self, pick):
        self.hand_in(self.answers[pick % len(self.answers)])

    @precondition(lambda self: self.answers)
    @rule(pick=PICK, other=PICK, signed=st.booleans())
    def forge_an_answer(self, pick, other, signed):
        answer = self.answers[pick % len(self.answers)]
        name = self.site(other)
        if signed:
            name, signature = answer.site, bytes([answer.signature[0] ^ 1]) + answer.signature[1:]
        elif name == answer.site:
            return
        else:
            signature = answer.signature
        # Not taken: refused, or one that is not needed any more.
        assert not self.hand_in(dataclasses.replace(answer, site=name, signature=signature))

    @precondition(lambda self: self.asks)
    @rule(pick=PICK, other=PICK)
    def repeat_an_ask(self, pick, other):
        self.send(self.site(other), self.asks[pick % len(self.asks)])

    def views(self):
        """Steps, with their set-up, that uploads were made for."""
        return list(dict.fromkeys((u.step, u.setup) for u in self.held.uploads))[-3:]

    def chosen(self, subset):
        return tuple(n for i, n in enumerate(self.names) if subset >> i & 1)

    @precondition(lambda self: self.held.uploads)
    @rule(pick=PICK, view=PICK, subset=SUBSET)
    def make_up_survivors(self, pick, view, subset):
        step, setup = self.views()[view % len(self.views())]
        self.send(self.site(pick), Survivors(setup=setup, step=step, names=self.chosen(subset)))

    @precondition(lambda self: self.held.uploads)
    @rule(view=PICK, missing=PICK, order=st.permutations(range(SITES)), count=st.integers(1, SITES))
    def collect_signatures(self, view, missing, order, count):
        step, setup = self.views()[view % len(self.views())]
        names = tuple(n for n in self.names if n != self.site(missing))
        for i in order[:count]:
            self.send(self.names[i], Survivors(setup=setup, step=step, names=names))

    @precondition(lambda self: self.held.uploads)
    @rule(view=PICK, which=PICK, junk=st.booleans(), order=st.permutations(range(SITES)))
    def make_up_certificates(self, view, which, junk, order):
        step, setup = self.views()[view % len(self.views())]
        lists = [tuple(n for n in self.names if n != name) for name in self.names]
        lists += [names for at, names in self.endorsed if at == step]
        names = lists[-1 - which % len(lists)]
        signatures = dict(self.endorsed.get((step, names), {}))
        parts = self.group.digest, setup, step.parts, names
        if self.traitor in names:
            signatures[self.traitor] = sign(self.world.identities[self.traitor], "survivors", *parts)
        if junk:
            known = next(iter(signatures.values()), bytes(64))
            signatures = dict.fromkeys(names, known) | signatures
        ask = Certificate(setup=setup, step=step, names=names, signatures=tuple(sorted(signatures.items())))
        for i in order:
            self.send(self.names[i], ask)

    @precondition(lambda self: self.held.uploads)
    @rule(view=PICK, order=st.permutations(range(SITES)), count=st.integers(1, SITES))
    def make_up_completeness(self, view, order, count):
        step, setup = self.views()[view % len(self.views())]
        signed = {}
        for upload in self.held.uploads:
            if upload.step.number == step.number and (upload.site not in signed or upload.step == step):
                signed[upload.site] = array_hash(upload.masked) + upload.signature
        digest = bytes(32)
        parts = self.group.digest, setup, self.traitor, step.parts, digest
        own = digest + sign(self.world.identities[self.traitor], "upload", *parts)
        uploads = tuple((n, signed.get(n, own)) for n in self.names)
        for i in order[:count]:
            self.send(self.names[i], Complete(setup=setup, step=step, uploads=uploads))

    # What must hold

    @invariant()
    def no_sum_is_wrong(self):
        if self.aggregator.phase is AggregatorPhase.DONE:
            step = self.aggregator.step
            assert len(self.aggregator.included) >= SITES - DROP
            vectors = [self.vectors[step, n] for n in self.aggregator.included]
            np.testing.assert_array_equal(self.aggregator.result(), np.sum(vectors, axis=0, dtype=np.uint32))

    @invariant()
    def nobody_honest_signs_or_opens_for_two_lists(self):
        for (name, _), lists in self.lists.items():
            assert name == self.traitor or len(lists) == 1
        assert all(len(o) == 1 for (name, _), o in self.openings.items() if name != self.traitor)

    @invariant()
    def nothing_is_open_but_the_sum_of_enough_sites(self):
        for number in self.fresh:
            for name in self.names[:-1]:
                kinds = [self.held.secret(number, name, kind) is not None for kind in (KEY, SEED)]
                assert not all(kinds), "a site was opened as alive and as missing"
            for names in self.held.learnt(number):
                assert len(names) >= SITES - DROP - COLLUDE, "a sum over too few sites was opened"
                # What was learnt is real: the adversary's sum is the sites' sum.
                by_step = itertools.groupby(
                    sorted((u for u in self.held.uploads if u.step.number == number), key=lambda u: repr(u.step)),
                    key=lambda u: u.step,
                )
                for step, uploads in by_step:
                    mine = [u for u in uploads if u.site in names]
                    if len(mine) == len(names) and (total := self.held.opened(mine)) is not None:
                        expected = np.sum([self.vectors[step, n] for n in names], axis=0, dtype=np.uint32)
                        np.testing.assert_array_equal(total, expected)
        self.fresh.clear()


def machine_of(federation, transcript, party=SiteParty):
    return type("Machine", (Sums,), {"federation": federation, "transcript": transcript, "party": party})


def test_no_order_of_messages_gives_a_wrong_sum_a_single_update_or_a_second_list(federation, transcript):
    run_state_machine_as_test(
        machine_of(federation, transcript),
        settings=settings(
            max_examples=200,
            stateful_step_count=40,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


class SignsTwice(SiteParty):
    """Forgets what it signed and opened."""

    def _move(self, current, ask, answer, names):
        pass


class BelievesAnyCertificate(SiteParty):
    """Opens for a list without looking at the signatures, after having signed another."""

    def _check_certificate(self, ask, current, keys):
        pass


@pytest.mark.parametrize("party", [SignsTwice, BelievesAnyCertificate])
def test_the_machine_finds_a_party_with_a_defence_taken_out(federation, transcript, party):
    with pytest.raises(AssertionError):
        run_state_machine_as_test(
            machine_of(federation, transcript, party),
            settings=settings(
                max_examples=400,
                stateful_step_count=40,
                database=None,
                derandomize=True,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            ),
        )
