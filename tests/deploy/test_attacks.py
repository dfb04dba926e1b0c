"""Each attack on a site's door is refused with a named code and a line in the log, and nothing of the site leaves.

The tests have the names that docs/threat-model.md gives them.
"""

from __future__ import annotations

import dataclasses
import random
import sys
from pathlib import Path

import msgpack
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from airlock_parts import DAY, NOW, Papers, key_of
from airlock_world import World, aggregator_of, head_of, private_changes, run

from oncofed_client.approvals import approve, withdraw
from oncofed_client.identity import identity_of, public_half
from oncofed_client.receipts import RECEIPTS_FILE, read_receipts
from oncofed_shared import sealed
from oncofed_shared.errors import DataError, PolicyRefusal, RemoteProtocolError
from oncofed_shared.messages import (
    Describe,
    Description,
    Evaluate,
    Exchange,
    Refusal,
    Summarise,
    Train,
    Trial,
    to_bytes,
)
from oncofed_shared.public_keys import public_of
from oncofed_shared.sealed import REFUSED, open_reply, open_request, seal_reply

SITE = "site-1"


@pytest.fixture(scope="module")
def plan(make_plan):
    return make_plan(training__rounds=3)


@pytest.fixture
def world(tmp_path, plan, hospitals):
    made = World.make(tmp_path, plan, hospitals)
    yield made
    made.close()


def left(world, site=SITE):
    """Kinds of all that left a site."""
    state = world.states[site]
    return [r.kind for r in read_receipts(state / RECEIPTS_FILE, public_half(state))]


def unbelieved(world, content, code, site=SITE):
    """The request is answered with the few bytes that everybody gets, and the log names the reason."""
    before = left(world, site)
    assert world.doors[site].handle(content) == REFUSED
    assert world.logs[site].codes()[-1] == code
    assert left(world, site) == before


def refused(world, message, code, site=SITE, **changes):
    """The request is answered with a refusal that has this code; so has the log."""
    before = left(world, site)
    reply = world.ask(site, message, **changes)
    assert isinstance(reply, Refusal), reply
    assert reply.code == code
    assert world.logs[site].codes()[-1] == code
    assert left(world, site) == [*before, "Refusal"]


def works(world, site=SITE):
    assert isinstance(world.ask(site, Describe(head=head_of(world))), Description)


class TestWhoAsks:
    def test_unsigned_or_wrongly_signed(self, world):
        message = Describe(head=head_of(world))
        good = msgpack.unpackb(world.seal(SITE, message))
        unbelieved(world, msgpack.packb([*good[:3], bytes(64)]), "signature")
        unbelieved(world, msgpack.packb([*good[:3], b""]), "malformed")
        for name in ("nobody", "plan key"):
            unbelieved(world, world.seal(SITE, message, key=key_of(name)), "signature")
        unbelieved(world, world.seal(SITE, message, key=identity_of(world.states["site-2"])), "signature")
        unbelieved(world, to_bytes(message), "malformed")
        works(world)

    def test_a_signature_of_another_study_or_reply_is_none(self, world):
        message = Describe(head=head_of(world))
        reply = seal_reply(
            to_bytes(message), request_digest=b"", study_id=world.papers.study.id, site=SITE, key=world.papers.step_key
        )
        unbelieved(world, reply, "malformed")
        parts = msgpack.unpackb(reply)
        parts[1] = "request"
        unbelieved(world, msgpack.packb(parts), "malformed")

    def test_unapproved_plan(self, tmp_path, plan, hospitals, world):
        other = Papers(plan=plan, identities=world.papers.identities, changes={"trial": Trial(seed=1)})
        content = world.seal(SITE, Describe(head=head_of(world)), study_id=other.study.id)
        unbelieved(world, content, "unapproved-plan")
        silent = World.make(tmp_path / "silent", plan, hospitals, approved=False)
        unbelieved(silent, silent.seal(SITE, Describe(head=head_of(silent))), "unapproved-plan")
        silent.close()

    def test_another_plan_trial_or_session_under_an_approved_study(self, world, make_plan):
        for change in (
            {"plan_hash": make_plan(training__rounds=4).hash},
            {"trial": Trial(seed=7)},
            {"trial": Trial(seed=0, fold=1)},
            {"session": "session-of-another"},
        ):
            refused(world, Describe(head=head_of(world, **change)), "other-run")

    def test_withdrawn(self, world):
        works(world)
        withdraw(world.states[SITE], world.papers.study.id, now=NOW, site=SITE)
        refused(world, Describe(head=head_of(world)), "withdrawn")
        approve(world.states[SITE], world.papers.content, now=NOW, site=SITE)
        works(world)

    def test_one_bit_changed(self, world):
        whole = world.seal(SITE, Describe(head=head_of(world)))
        for place in range(0, len(whole), 17):
            content = bytearray(whole)
            content[place] ^= 1 << place % 8
            assert world.doors[SITE].handle(bytes(content)) == REFUSED
            assert world.logs[SITE].codes()[-1] in {"signature", "malformed", "version", "unapproved-plan"}
        assert left(world) == []
        works(world)

    def test_a_study_with_one_bit_changed_cannot_be_approved(self, world):
        content = bytearray(world.papers.content)
        content[content.index(b'"seed": 0') + 8] ^= 1
        with pytest.raises(DataError) as caught:
            approve(world.states[SITE], bytes(content), now=NOW, site=SITE)
        assert caught.value.code == "signature"


class TestWhen:
    def test_replayed_and_reordered(self, world):
        early = world.seal(SITE, Describe(head=head_of(world)))
        late = world.seal(SITE, Describe(head=head_of(world, step=2)))
        world.hand(SITE, late)
        reply = world.opened(SITE, early, world.hand(SITE, early))[0]
        assert (reply.code, world.logs[SITE].codes()[-1]) == ("replayed", "replayed")
        assert left(world) == ["Description", "Refusal"]

    def test_one_number_with_two_contents(self, world):
        works(world)
        refused(world, Describe(head=head_of(world, step=9)), "replayed", number=world.numbers[SITE])
        refused(world, Summarise(head=head_of(world), columns={}), "replayed", number=world.numbers[SITE])

    def test_an_old_request_is_old_after_a_restart_too(self, world, hospitals):
        early = world.seal(SITE, Describe(head=head_of(world)))
        works(world)
        world.open(SITE, hospitals)
        assert world.opened(SITE, early, world.hand(SITE, early))[0].code == "replayed"

    def test_older_protocol_version(self, world):
        good = msgpack.unpackb(world.seal(SITE, Describe(head=head_of(world))))
        for version in (0, 2, 255):
            unbelieved(world, msgpack.packb([version, *good[1:]]), "version")

    def test_older_plan(self, world):
        """What was approved once and has expired since; and a study that was made under a later epoch than the one that comes."""
        world.now[0] = NOW + 91 * DAY
        refused(world, Describe(head=head_of(world)), "expired", roster=world.papers.roster(2, issued=NOW + 90 * DAY))
        with pytest.raises(PolicyRefusal):
            approve(world.states[SITE], world.papers.content, now=world.now[0], site=SITE)

    def test_older_roster_epoch(self, world):
        world.epoch = 5
        works(world)
        refused(world, Describe(head=head_of(world)), "roster-epoch", roster=world.papers.roster(4))
        refused(world, Describe(head=head_of(world)), "roster-epoch", roster=world.papers.roster(5, issued=NOW))
        refused(world, Describe(head=head_of(world)), "roster-epoch", roster=b"")
        forged = world.papers.roster(6, key=world.papers.step_key)
        refused(world, Describe(head=head_of(world)), "roster-epoch", roster=forged)
        works(world)

    def test_an_epoch_before_the_studys_own(self, tmp_path, plan, hospitals):
        world = World.make(tmp_path, plan, hospitals, epoch=3)
        refused(world, Describe(head=head_of(world)), "roster-epoch")
        world.epoch = 3
        works(world)
        world.close()

    def test_a_roster_that_is_held_back(self, world):
        works(world)
        world.now[0] = NOW + 30 * DAY
        refused(world, Describe(head=head_of(world)), "stale-roster")
        world.epoch = 2
        newer = world.papers.roster(2, issued=NOW + 29 * DAY)
        assert isinstance(world.ask(SITE, Describe(head=head_of(world)), roster=newer), Description)

    def test_a_clock_that_runs_backwards(self, world):
        works(world)
        world.now[0] = NOW - 3
        works(world)
        times = [r.at for r in read_receipts(world.states[SITE] / RECEIPTS_FILE, public_half(world.states[SITE]))]
        assert times == sorted(times)
        world.now[0] = NOW - 60
        refused(world, Describe(head=head_of(world)), "clock")


class TestWho:
    def test_revoked_site(self, world):
        works(world)
        sites = {s: k for s, k in world.papers.publics.items() if s != SITE}
        roster = world.papers.roster(2, sites=sites, revoked={SITE: (world.papers.publics[SITE],)})
        refused(world, Describe(head=head_of(world)), "revoked", roster=roster)
        refused(world, Describe(head=head_of(world)), "roster-epoch")
        # The others go on without it, and its signatures count no more.
        assert isinstance(world.ask("site-2", Describe(head=head_of(world)), roster=roster), Description)

    def test_a_revoked_step_key(self, world):
        """From the message on that brings the epoch, and with no later one that leaves it out."""
        works(world)
        roster = world.papers.roster(2, step_keys={public_of(world.papers.step_key)})
        refused(world, Describe(head=head_of(world)), "step-key", roster=roster)
        refused(world, Describe(head=head_of(world)), "roster-epoch")

    def test_a_key_that_was_revoked_among_several(self, world):
        others = {s: k for s, k in world.papers.publics.items() if s != SITE}
        gone = {SITE: (public_of(key_of("first")), world.papers.publics[SITE], public_of(key_of("third")))}
        roster = world.papers.roster(2, sites=others | {SITE: public_of(key_of("fourth"))}, revoked=gone)
        refused(world, Describe(head=head_of(world)), "revoked", roster=roster)

    def test_a_former_key_holds_for_the_study_that_names_it(self, world):
        """A site that has changed its key goes on, and so does everybody else, until the former key is revoked."""
        own = world.papers.publics[SITE]
        others = {s: k for s, k in world.papers.publics.items() if s != SITE}
        changed = others | {SITE: public_of(key_of("new"))}
        roster = world.papers.roster(2, sites=changed, former={SITE: (own,)})
        for site in (SITE, "site-2"):
            assert isinstance(world.ask(site, Describe(head=head_of(world)), roster=roster), Description)
        roster = world.papers.roster(3, sites=changed, revoked={SITE: (own,)})
        refused(world, Describe(head=head_of(world)), "revoked", roster=roster)

    def test_a_site_that_enrolled_anew_or_is_gone(self, world):
        others = {s: k for s, k in world.papers.publics.items() if s != SITE}
        refused(world, Describe(head=head_of(world)), "roster-epoch", roster=world.papers.roster(2, sites=others))
        anew = others | {SITE: public_of(key_of("new"))}
        refused(world, Describe(head=head_of(world)), "roster-epoch", roster=world.papers.roster(3, sites=anew))

    def test_a_request_for_another_site(self, world):
        content = world.seal("site-2", Describe(head=head_of(world)))
        reply = world.doors[SITE].handle(content)
        assert world.logs[SITE].codes() == ["other-site"]
        with pytest.raises(RemoteProtocolError) as caught:
            world.opened("site-2", content, reply)
        assert caught.value.code == "signature"

    def test_stolen_site_key_from_elsewhere(self, world, tmp_path, plan, hospitals):
        """With site-1's identity and no more a thief has no approval; once it is revoked its replies and sights count nowhere."""
        thief = tmp_path / "thief"
        thief.mkdir()
        for name in ("identity.key", "identity.pub"):
            (thief / name).write_bytes((world.states[SITE] / name).read_bytes())
            (thief / name).chmod(0o600)
        elsewhere = World.make(tmp_path / "other", plan, hospitals, approved=False)
        elsewhere.states[SITE] = thief
        elsewhere.open(SITE, hospitals)
        unbelieved(elsewhere, world.seal(SITE, Describe(head=head_of(world))), "unapproved-plan")
        elsewhere.close()
        # A key that was stolen from another site signs nothing for this one.
        content = world.seal(SITE, Describe(head=head_of(world)))
        request = open_request(content)
        forged = seal_reply(
            b"",
            request_digest=request.digest,
            study_id=request.study_id,
            site=SITE,
            key=identity_of(world.states["site-2"]),
        )
        with pytest.raises(RemoteProtocolError) as caught:
            open_reply(
                forged,
                request_digest=request.digest,
                study_id=request.study_id,
                site=SITE,
                identity=world.papers.publics[SITE],
            )
        assert caught.value.code == "signature"

    def test_a_revoked_site_is_no_member_of_a_secure_sum(self, tmp_path, make_plan, hospitals):
        world = World.make(tmp_path, make_plan(**private_changes("consortium")), hospitals)
        sent = []

        def keep(outgoing):
            if isinstance(outgoing.request, Exchange):
                sent.append(outgoing.request)
            return outgoing.request

        run(world, aggregator_of(world), twist=keep, until=lambda a: bool(sent))
        sites = {s: k for s, k in world.papers.publics.items() if s != "site-3"}
        roster = world.papers.roster(2, sites=sites, revoked={"site-3": (world.papers.publics["site-3"],)})
        refused(world, sent[0], "roster", site="site-2", roster=roster)
        works(world, SITE)
        world.close()


class TestOtherModel:
    def twisted(self, world, change, *, site=SITE):
        """Run with a hostile aggregator; which refusal came, and what the sites had answered before."""
        aggregator = aggregator_of(world)

        def twist(outgoing):
            return change(outgoing.request) if outgoing.site == site else outgoing.request

        refusals = []

        def after(name, content, reply):
            message = world.opened(name, content, reply)[0]
            if isinstance(message, Refusal):
                refusals.append((name, message.code))

        run(world, aggregator, twist=twist, after=after, until=lambda a: bool(refusals) or a.finished)
        return refusals

    @staticmethod
    def shifted(request, number=1):
        if not isinstance(request, Train) or request.round != number:
            return request
        return dataclasses.replace(request, parameters={n: a + np.float32(1e-3) for n, a in request.parameters.items()})

    def test_other_model_to_one_site(self, world):
        """It has answered under that model once, and nothing more: the others' signatures do not fit."""
        assert self.twisted(world, self.shifted) == [(SITE, "other-model")]
        assert "other-model" in world.logs[SITE].codes()
        assert left(world).count("Update") == 1

    def test_the_other_sites_notice_too(self, world):
        refusals = self.twisted(world, self.shifted, site="site-3")
        assert refusals[0] == (SITE, "other-model")

    def test_other_preparation_to_one_site(self, world):
        def change(request):
            if type(request).__name__ != "Open":
                return request
            return dataclasses.replace(request, arrays={n: a * 2 for n, a in request.arrays.items()})

        assert self.twisted(world, change) == [(SITE, "other-model")]
        assert "Update" not in left(world)

    def test_signatures_that_are_kept_back(self, world):
        aggregator = aggregator_of(world)
        run(world, aggregator, until=lambda a: a.state.phase.value == "train" and a.state.round == 0)
        request = Train(head=head_of(world, step=50), round=1, parameters=aggregator.shared_parameters())
        refused(world, request, "other-model")
        works(world)

    def test_two_models_in_one_round(self, world):
        sent = []

        def keep(outgoing):
            if isinstance(outgoing.request, Train) and outgoing.site == SITE:
                sent.append(outgoing.request)
            return outgoing.request

        run(world, aggregator_of(world), twist=keep, until=lambda a: a.state.round >= 2)
        again = dataclasses.replace(sent[0], head=dataclasses.replace(sent[0].head, step=99))
        refused(world, self.shifted(again), "other-model")

    def test_an_honest_run_ends_as_it_should(self, world):
        assert self.twisted(world, lambda request: request) == []

    def test_fewer_sites_than_the_roster_go_on_with_a_quorum(self, tmp_path, plan, hospitals):
        """One site withdraws in the course of a run: its last signature is there for the others, and then it is not needed."""
        world = World.make(tmp_path, plan, hospitals, quorum=2)
        aggregator = aggregator_of(world)
        study = world.papers.study

        def twist(outgoing):
            if isinstance(outgoing.request, Train) and outgoing.request.round == 2 and outgoing.site == "site-3":
                withdraw(world.states["site-3"], study.id, now=NOW, site="site-3")
            return outgoing.request

        run(world, aggregator, twist=twist)
        assert aggregator.state.phase.value == "done", aggregator.state.why
        assert world.logs["site-3"].codes() == ["withdrawn"]
        assert world.logs[SITE].codes() == []
        world.close()


class TestBytes:
    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"\xc1",
            b"\x94" * 1000,
            b"\xdd\xff\xff\xff\xff",
            b"\xc6\xff\xff\xff\xff",
            b"GET / HTTP/1.1\r\n\r\n",
            REFUSED,
        ],
        ids=lambda c: c[:8].hex() or "nothing",
    )
    def test_malformed(self, world, content):
        unbelieved(world, content, "malformed")

    def test_oversized(self, world, monkeypatch):
        monkeypatch.setattr(sealed, "MAX_SEALED", 2000)
        unbelieved(world, bytes(2001), "oversized")

    @pytest.mark.parametrize("body", [b"", b"\x90", b"\xc1", bytes(5000)], ids=len)
    def test_malformed_but_signed(self, world, body):
        refused(world, body, "malformed")

    def test_damaged_messages_under_a_good_signature(self, world):
        """A hostile aggregator signs what it likes; a hundred thousand of these are in test_fuzz_airlock.py."""
        bodies = []

        def keep(outgoing):
            if outgoing.site == SITE:
                bodies.append(to_bytes(outgoing.request))
            return outgoing.request

        run(world, aggregator_of(world), twist=keep, until=lambda a: a.state.phase.value == "test")
        rng = random.Random(5)
        for body in {len(b): b for b in bodies}.values():
            for _ in range(20):
                damaged = bytearray(body)
                for _ in range(rng.choice((1, 1, 3))):
                    damaged[rng.randrange(len(damaged))] = rng.randrange(256)
                content = world.seal(SITE, bytes(damaged[: rng.choice((len(body), rng.randrange(1, len(body))))]))
                assert world.opened(SITE, content, world.hand(SITE, content))
        assert "internal" not in world.logs[SITE].codes()

    def test_a_sites_own_message_is_no_request(self, world):
        head = head_of(world)
        refused(world, Refusal(head=head, site=SITE, code="x", text=""), "malformed")

    def test_parameters_of_another_network(self, world):
        run(world, aggregator_of(world), until=lambda a: a.state.phase.value == "test")
        book = world.seal(SITE, Evaluate(head=head_of(world, step=90), part="all", subgroups=True, parameters={}))
        reply = world.opened(SITE, book, world.hand(SITE, book))[0]
        assert isinstance(reply, Refusal)

    def test_what_nobody_may_learn_from_strangers_answers(self, world):
        """Approved or not, withdrawn or not: who cannot sign gets the same bytes."""
        message = Describe(head=head_of(world))
        contents = [
            world.seal(SITE, message, key=key_of("stranger")),
            world.seal(SITE, message, key=key_of("stranger"), study_id="0" * 64),
            world.seal(SITE, message, key=key_of("stranger"), site="site-9"),
            b"anything",
        ]
        assert {world.doors[SITE].handle(c) for c in contents} == {REFUSED}
        withdraw(world.states[SITE], world.papers.study.id, now=NOW, site=SITE)
        assert {world.doors[SITE].handle(c) for c in contents} == {REFUSED}


def test_damaged_approvals_answer_nothing(world):
    path = world.states[SITE] / "studies" / f"{world.papers.study.id}.decisions.json"
    path.write_text(path.read_text().replace("training", "counting"))
    unbelieved(world, world.seal(SITE, Describe(head=head_of(world))), "signature")


def test_statistics_under_a_private_plan(tmp_path, make_plan, hospitals):
    for noise in ("site", "consortium"):
        world = World.make(tmp_path / noise, make_plan(**private_changes(noise)), hospitals)
        reply = world.ask(SITE, Summarise(head=head_of(world), columns={"clinical": ("age",)}))
        assert isinstance(reply, Refusal)
        described = world.ask(SITE, Describe(head=head_of(world)))
        assert (described.parts, described.modalities, described.events) == ({}, {}, {})
        world.close()


def test_policy_is_the_sites_last_word(world):
    door = world.doors[SITE]
    assert door.site.policy is not None
    door.site.policy = door.site.policy.model_copy(update={"release": ("noised-sums",)})
    refused(world, Describe(head=head_of(world)), "policy")


def test_a_plan_key_that_the_policy_does_not_have(world):
    door = world.doors[SITE]
    for keys, allowed in ((("0" * 64,), False), ((world.papers.study.plan_key.hex(), "0" * 64), True)):
        door.site.policy = door.site.policy.model_copy(update={"plan_keys": keys})
        if allowed:
            works(world)
        else:
            refused(world, Describe(head=head_of(world)), "policy")
