"""Rules of the protocol where keys, ledger, stored replies and patients meet: each test names its rule.

Rules 4 and 8 to 13 within the secure sum alone are in tests/secagg, 12 to 20 within the ledger alone in tests/ledger.
"""

from __future__ import annotations

import dataclasses
import fcntl
import shutil
import threading

import numpy as np
import pytest

from oncofed_client.contributor import account_of
from oncofed_client.egress import check_share
from oncofed_client.identity import identity_of
from oncofed_client.integer_step import consortium_share
from oncofed_client.ledger import LEDGER_FILE, Ledger
from oncofed_client.randomness import Randomness
from oncofed_client.session import training_set
from oncofed_server.run_state import Phase
from oncofed_shared import secagg
from oncofed_shared.consortium import ConsortiumMechanism
from oncofed_shared.errors import DataError, Interrupted, LocalProtocolError
from oncofed_shared.formation import step_of
from oncofed_shared.layout import Layout
from oncofed_shared.messages import (
    Contribute,
    Contribution,
    Description,
    Exchange,
    Exchanged,
    Open,
    Ready,
    Refusal,
    Trial,
    from_bytes,
)
from oncofed_shared.network import build
from oncofed_shared.secagg.messages import Survivors
from oncofed_shared.witness import sign_witness


class Killed(BaseException):
    """The process is gone."""


def stopped(world, phase=Phase.TRAIN, number=0):
    """A run that stands before the sites are asked for a sum, every site as after a start; and what they would be asked."""
    aggregator = world.aggregator()

    def stop(now):
        if now.state.phase is phase and now.sums.number == number + 1 and len(now.state.pending) == len(world.sites):
            raise Interrupted("stopped")

    with pytest.raises(Interrupted):
        world.run(aggregator, after_step=stop)
    for name in list(world.sites):
        world.open(name)
    return aggregator


def asked(aggregator, site="alpha"):
    """The request that is under way."""
    (out,) = aggregator._ask((site,))
    return out.request


def used(world, site="alpha"):
    return [account.used for account in world.sites[site].contributor.ledger.plans()]


def refused(reply, code):
    assert isinstance(reply, Refusal), reply
    assert reply.code == code


# 3


@pytest.mark.parametrize("name", ["center", "spread", "fill", "class_weights.response"])
def test_rule_03_a_preparation_is_made_of_the_plans_constants(new_world, name):
    world = new_world()
    world.run()
    (sent,) = {c for d, s, c in world.traffic if s == "alpha" and d == "down" and isinstance(from_bytes(c), Open)}
    opening, site = from_bytes(sent), world.sites["alpha"]
    assert isinstance(site.handle(opening), Ready)
    arrays = opening.arrays | {name: opening.arrays[name] * 0.5 + 0.25}
    refused(site.handle(dataclasses.replace(opening, arrays=arrays)), "preparation")


# 8


SENT = {
    "kind": "scores",
    "round_number": 1,
    "trial": Trial(seed=3),
    "columns": {"values": ("a", "b")},
    "parameters": {"w": np.zeros(2)},
    "histogram": np.ones(3),
    "statistics": np.zeros(0),
}


@pytest.mark.parametrize(
    "other",
    [
        {"kind": "histogram"},
        {"round_number": 2},
        {"trial": Trial(seed=4)},
        {"trial": Trial(seed=3, fold=1)},
        {"columns": {"values": ("b", "a")}},
        {"parameters": {"w": np.array([0.0, 1e-300])}},
        {"histogram": np.array([1.0, 1.0, 2.0])},
        {"statistics": np.ones(1)},
        {"histogram": np.ones(2), "statistics": np.ones(1)},
    ],
)
def test_rule_08_sites_that_were_sent_different_things_never_unmask(other):
    """The parameters' hash is in every mask key: tests/secagg shows what follows from it."""
    one, two = (step_of(number=0, size=2, **(SENT | more)) for more in ({}, other))
    assert one.parameters != two.parameters
    assert one == step_of(number=0, size=2, **SENT)


def test_rule_08_a_site_with_other_columns_masks_for_another_step(new_world):
    world = new_world()
    aggregator = stopped(world)
    request, site = asked(aggregator), world.sites["alpha"]
    opened = [from_bytes(c) for d, s, c in world.traffic if s == "alpha" and d == "down"]
    opening = next(m for m in opened if isinstance(m, Open))
    columns = {"values": ("v0", "v1", "v2", "v3", "v9")}
    assert isinstance(site.handle(dataclasses.replace(opening, columns=columns)), Ready)
    reply = site.handle(request)
    assert isinstance(reply, Contribution)
    theirs = secagg.from_bytes(world.sites["beta"].handle(asked(aggregator, "beta")).content).step
    assert secagg.from_bytes(reply.content).step.parameters != theirs.parameters


def test_rule_08_the_keys_of_a_run_that_is_over_are_deleted(new_world):
    world = new_world()
    world.run()
    for site in world.sites.values():
        head = from_bytes(world.traffic[-1][2]).head
        assert list((site.state / "sums").glob("*.keys"))
        assert site.contributor.outbox.waiting()
        site.end(head)
        assert not list((site.state / "sums").glob("*.keys"))
        assert site.contributor.outbox.waiting() == ()
        (account,) = site.contributor.ledger.plans()
        assert account.state == "closed"
        assert [c.steps for c in account.counted] == account.used, "what was never asked for is free again"
        site.end(head)  # and nothing more happens


def test_rule_12_a_run_that_is_over_is_not_computed_anew(new_world):
    world = new_world()
    aggregator = stopped(world)
    request, site = asked(aggregator), world.sites["alpha"]
    assert isinstance(site.handle(request), Contribution)
    site.end(request.head)
    before = used(world)
    assert isinstance(site.handle(request), Refusal)
    assert used(world) == before


# 9


def test_rule_09_two_processes_of_a_site_sign_one_list(new_world):
    """The second waits for the first, and then goes on from its state."""
    world = new_world(privacy__drop=1)
    aggregator = stopped(world)
    request, site = asked(aggregator), world.sites["alpha"]
    upload = secagg.from_bytes(site.handle(request).content)
    second = world.open("alpha")
    lists = [tuple(n for n in world.sites if n != gone) for gone in ("beta", "gamma")]

    def ask(names):
        content = secagg.to_bytes(Survivors(setup=upload.setup, step=upload.step, names=tuple(sorted(names))))
        return Exchange(
            head=dataclasses.replace(request.head, step=request.head.step + 1),
            formation=request.formation,
            content=content,
            heads={},
            witnesses={},
        )

    answers = []
    with (world.folder / "alpha" / "sums" / "lock").open("r+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        waiting = threading.Thread(target=lambda: answers.append(second.handle(ask(lists[1]))))
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive()
    waiting.join(10)
    assert isinstance(answers[0], Exchanged)
    # The first process has an older state in its memory, and must not use it.
    refused(site.handle(ask(lists[0])), "state")


# 10


class Deaf:
    """A site that gives no share."""

    def __init__(self, site):
        self.site = site

    def handle(self, request):
        if isinstance(request, Contribute):
            return Refusal(head=request.head, site=self.site.name, code="gone", text="gone")
        return self.site.handle(request)


def test_rule_10_the_sum_is_divided_by_the_plans_expected_batch_whoever_is_in_it(new_world):
    world = new_world(privacy__drop=1, training__rounds=1, training__weight_decay=0.0, training__l1=0.0)
    plan, beta = world.plan, world.sites["beta"]
    world.sites["beta"] = Deaf(beta)
    aggregator = world.run()
    assert aggregator.state.phase is Phase.DONE
    network = build(plan, beta.source.patients.columns, seed=3)
    layout = Layout.of(network)
    first = layout.flatten({n: p.detach().numpy() for n, p in network.named_parameters()})
    mechanism = ConsortiumMechanism.for_plan(plan, parameters=layout.size)
    total = np.zeros(layout.size)
    for name in ("alpha", "delta", "gamma"):
        site = world.sites[name]
        (session,) = site.sessions.values()
        rows = site.source.split(plan, site.source.patients, session.trial) == 0
        data = training_set(plan, session.preparation, site.source.patients, rows)
        random = Randomness.repeatable(f"{plan.simulation.noise_seed}|{name}|{session.trial}|train|1|0")
        arrays = layout.arrays(first, "float32")
        total += consortium_share(plan, network, layout, data, arrays, mechanism=mechanism, random=random)
    # Rate times the public numbers of all four sites, though one is missing and nobody has forty training patients.
    gradient = total * mechanism.grain / (0.5 * 160)
    np.testing.assert_allclose(aggregator.state.server.parameters, first - 0.5 * gradient, rtol=1e-6, atol=1e-8)


def test_rule_10_no_count_and_no_loss_leaves_a_site(new_world):
    world = new_world()
    world.run()
    sent = [from_bytes(c) for d, _, c in world.traffic if d == "up"]
    assert {type(m) for m in sent} == {Description, Ready, Exchanged, Contribution}
    for message in sent:
        if isinstance(message, Description):
            assert (message.parts, message.modalities, message.events) == ({}, {}, {})


# 11


@pytest.mark.parametrize("share", [[0, 0, 8], [0, -8, 0], [0, 0], [0, 0, -(2**63)], [0.0, 0.0, 0.0], [[0, 0, 0]]])
def test_rule_11_what_the_plan_does_not_declare_does_not_pass(share):
    with pytest.raises(LocalProtocolError) as caught:
        check_share(np.array(share), size=3, largest=7)
    assert caught.value.code == "egress"
    assert "8" not in str(caught.value)


def test_rule_11_the_bound_holds_before_the_noise(new_world):
    """A sum that so many clipped patients cannot have is found although the noise alone is larger."""
    world = new_world()
    world.run()
    site = world.sites["alpha"]
    (session,) = site.sessions.values()
    mechanism = ConsortiumMechanism.for_plan(world.plan, parameters=session.whole.size)
    assert 2 * mechanism.bound < mechanism.tail
    whole = np.array([mechanism.bound + 1, 0])
    with pytest.raises(LocalProtocolError):
        check_share(whole, size=2, largest=mechanism.bound * 1)
    check_share(whole, size=2, largest=mechanism.room + mechanism.tail)


def test_rule_11_a_sum_beyond_its_patients_bound_stays_here_though_noise_would_hide_it(new_world, monkeypatch):
    world = new_world()
    request, site = asked(stopped(world)), world.sites["alpha"]

    def broken(_hooked, _plan, _data, rows, integers, **_):
        return np.full(integers.parameters, integers.bound * len(rows) + 1)

    monkeypatch.setattr("oncofed_client.integer_step.integer_sum", broken)
    refused(site.handle(request), "data")
    assert used(world) == [[1, 0, 0]]
    assert site.contributor.outbox.waiting() == ()
    monkeypatch.undo()
    # Nothing was stored and no key was used: the same reservation holds for what is right.
    assert isinstance(site.handle(request), Contribution)
    assert used(world) == [[1, 0, 0]]


def test_rule_11_what_stays_here_is_said_by_one_code_and_stays_charged(new_world):
    world = new_world()
    request, site = asked(stopped(world)), world.sites["alpha"]

    class Broken(type(site.source)):
        def split(self, *_):
            raise DataError("patients.csv, row 7, column age: 'secret 93' is not a number")

    kept = site.source
    site.source = Broken(name="alpha", patients=kept.patients)
    reply = site.handle(request)
    refused(reply, "data")
    assert "93" not in reply.text
    assert used(world) == [[0, 0, 0]]
    site.source = kept
    session = site._session(request.head)
    for wrong in (np.full(session.whole.size, 2**40), np.zeros(2, dtype=np.int64)):
        with pytest.raises(LocalProtocolError) as caught:
            site.contributor.contribute(
                world.plan,
                request,
                columns=session.preparation.columns,
                statistics=session.preparation.statistics,
                size=session.whole.size,
                charge=dataclasses.replace(
                    site.contributor.ledger.plans()[0].charges[0],
                    steps=1,
                ),
                largest=2**20,
                share=lambda _, wrong=wrong: wrong,
            )
        assert site._code(request, caught.value) == "data"
    assert used(world) == [[1, 0, 0]]
    assert site.contributor.outbox.waiting() == ()


def test_rule_11_the_minimum_of_patients_is_decided_once(new_world):
    """Who withdraws after the approval changes the sample, whatever was restarted; before it, the participation."""
    world = new_world()
    request = asked(stopped(world))
    for approved in (True, False):
        site = world.open("alpha")
        site.minimum_cohort = 41
        if approved:
            assert isinstance(site.handle(request), Contribution)
        else:
            trial = Trial(seed=99)
            refused(
                site.handle(dataclasses.replace(request, head=dataclasses.replace(request.head, trial=trial))),
                "cohort-too-small",
            )


def test_rule_11_another_plan_or_no_budget_gives_nothing(new_world):
    world = new_world()
    request, site = asked(stopped(world)), world.sites["alpha"]
    head = dataclasses.replace(request.head, plan_hash="0" * 64)
    refused(site.handle(dataclasses.replace(request, head=head)), "unapproved-plan")
    site.contributor.ledger.end_plan(account_of(world.plan, request.head.trial), now=1_000.0)
    refused(site.handle(request), "unapproved-plan")


# 12


def share_of(reply):
    return secagg.from_bytes(reply.content).masked.tobytes()


POINTS = ["reserved", "computed", "stored", "committed", "keys"]


@pytest.mark.parametrize("point", POINTS)
def test_rule_12_killed_anywhere_a_site_never_masks_twice(new_world, point, monkeypatch):
    world = new_world(simulation__noise_seed=None)
    request, site = asked(stopped(world)), world.sites["alpha"]
    contributor = site.contributor

    def killed_after(target, name):
        whole = getattr(target, name)

        def run(*given, **named):
            whole(*given, **named)
            raise Killed

        monkeypatch.setattr(target, name, run)

    if point == "reserved":
        killed_after(contributor.ledger, "reserve")
    elif point == "computed":
        monkeypatch.setattr(type(contributor.outbox), "keep", lambda *_, **__: (_ for _ in ()).throw(Killed()))
    elif point == "keys":
        killed_after(contributor, "_keep")
    elif point == "stored":
        killed_after(contributor.outbox, "keep")
    else:
        killed_after(contributor.ledger, "commit")
    with pytest.raises(Killed):
        site.handle(request)
    monkeypatch.undo()
    stored = [c for (c,) in contributor.outbox._connection.execute("SELECT content FROM replies")]
    assert len(stored) == (point in {"stored", "committed", "keys"})
    again = world.open("alpha").handle(request)
    # What was not stored did not leave: another share is masked in its place. What was stored counts as masked.
    assert not stored or again.content == stored[0]
    assert world.open("alpha").handle(request).content == again.content
    assert used(world) == [[1, 0, 0]]


OTHERS = [
    {"round": 2},
    {"kind": "scores", "round": 0, "histogram": np.ones(32)},
    {"kind": "histogram", "round": 0},
]


@pytest.mark.parametrize("other", OTHERS)
def test_rule_12_the_same_number_with_another_request_is_refused(new_world, other):
    world = new_world()
    request, site = asked(stopped(world)), world.sites["alpha"]
    first = site.handle(request)
    refused(site.handle(dataclasses.replace(request, **other)), "other-request")
    moved = {n: a + np.float32(1) for n, a in request.parameters.items()}
    refused(site.handle(dataclasses.replace(request, parameters=moved)), "other-request")
    members = request.formation.members[:-1]
    smaller = dataclasses.replace(request.formation, members=members)
    assert isinstance(site.handle(dataclasses.replace(request, formation=smaller)), Refusal)
    assert used(world) == [[1, 0, 0]]
    assert site.handle(request).content == first.content


HISTOGRAMS = [[], [1.0] * 31, [np.nan] * 32, [np.inf] * 32, [1e308] * 32, [-1e308] * 32]


@pytest.mark.parametrize("histogram", HISTOGRAMS)
def test_rule_11_a_hostile_histogram_is_refused_before_anything_is_charged(new_world, histogram):
    world = new_world()
    request, site = asked(stopped(world)), world.sites["alpha"]
    hostile = np.array(histogram, dtype=np.float64)
    refused(site.handle(dataclasses.replace(request, kind="scores", round=0, histogram=hostile)), "histogram")
    refused(site.handle(dataclasses.replace(request, histogram=np.ones(32))), "histogram")
    assert used(world) == [[0, 0, 0]]
    for edge in (np.zeros(32), np.full(32, -1e9), np.eye(32)[5] * 1e15):
        reply = site.handle(dataclasses.replace(request, kind="scores", round=0, histogram=edge))
        assert isinstance(reply, Contribution) or reply.code == "other-request"


def test_rule_12_an_old_formation_that_is_set_up_again_masks_nothing_anew(new_world):
    """With the same name come new keys, and for what was uploaded the same bytes or nothing."""
    world = new_world()
    request, site = asked(stopped(world)), world.sites["alpha"]
    first = site.handle(request)
    set_up = [from_bytes(c) for d, s, c in world.traffic if s == "alpha" and d == "down"]
    begin = next(m for m in set_up if isinstance(m, Exchange))
    other = dataclasses.replace(begin, formation=dataclasses.replace(begin.formation, name="f" * 32))
    assert isinstance(site.handle(other), Exchanged)
    assert isinstance(site.handle(begin), Exchanged)
    assert site.handle(request).content == first.content
    refused(site.handle(dataclasses.replace(request, round=2)), "other-request")
    later = site.handle(dataclasses.replace(request, number=1))
    refused(later, "set-up")


def test_rule_12_keys_out_of_a_backup_mask_nothing(new_world):
    """After a new epoch nobody knows what the restored keys have masked: the formation is as if it had never been."""
    world = new_world()
    aggregator = stopped(world)
    request, site = asked(aggregator), world.sites["alpha"]
    backup = world.folder / "backup"
    shutil.copytree(world.folder / "alpha", backup)
    head = site.handle(request).ledger
    site.contributor.ledger.close()
    shutil.rmtree(world.folder / "alpha")
    shutil.copytree(backup, world.folder / "alpha")
    own, other = (identity_of(world.folder / n) for n in ("alpha", "beta"))
    seen = sign_witness(other, name="beta", head=head)
    path = world.folder / "alpha" / LEDGER_FILE
    with Ledger.begin_epoch(path, site="alpha", key=own, now=1_000.0, witnesses=[seen]) as ledger:
        ledger.witness(
            sign_witness(other, name="beta", head=ledger.head()), trusted=[other.public_key().public_bytes_raw()]
        )
    site = world.open("alpha")
    opened = [from_bytes(c) for d, s, c in world.traffic if s == "alpha" and d == "down"]
    assert isinstance(site.handle(next(m for m in opened if isinstance(m, Open))), Ready)
    refused(site.handle(request), "unknown-formation")


# 13


def test_rule_13_a_lost_sum_stays_charged_and_its_retry_has_new_keys_sample_and_noise(new_world):
    world = new_world(simulation__noise_seed=None)
    first = world.aggregator()

    def stop(aggregator):
        if len(aggregator.state.losses) == 1 and aggregator.state.phase is Phase.OPENING:
            raise Interrupted("killed")

    with pytest.raises(Interrupted):
        world.run(first, after_step=stop)
    second = world.run(world.aggregator(state=first.state))
    assert second.state.phase is Phase.DONE, second.state.why
    down = [from_bytes(c) for d, s, c in world.traffic if s == "alpha" and d == "down"]
    tried = [m.formation.name for m in down if isinstance(m, Contribute) and (m.kind, m.round) == ("train", 2)]
    assert len(set(tried)) == 2
    for name in world.sites:
        assert used(world, name) == [[world.plan.training.rounds + 1, 1, 1]]
        charges = world.sites[name].contributor.ledger.plans()[0].charges
        assert charges[0].steps == world.plan.training.rounds + world.plan.privacy.spare_steps


def test_rule_13_a_run_that_has_lost_more_than_its_spare_steps_ends(new_world):
    world = new_world(privacy__spare_steps=1)
    for _ in range(2):
        aggregator = stopped(world)
        assert isinstance(world.sites["alpha"].handle(asked(aggregator)), Contribution)
    last = world.run()
    assert last.state.phase is Phase.FAILED
    assert "alpha (budget)" in last.state.why
    assert used(world)[0][0] == world.plan.training.rounds + 1


# 18


def test_rule_18_a_site_that_was_restored_in_the_middle_of_a_run_answers_nothing(new_world):
    world = new_world()
    old = world.folder / "old"
    taken = []

    def restore(aggregator):
        rounds = len(aggregator.state.losses)
        if rounds == 1 and not taken:
            shutil.copytree(world.folder / "alpha", old)
            taken.append(rounds)
        if rounds == 2 and len(taken) == 1 and aggregator.state.phase is Phase.TRAIN:
            shutil.rmtree(world.folder / "alpha")
            shutil.copytree(old, world.folder / "alpha")
            world.open("alpha")
            taken.append(len(world.traffic))

    aggregator = world.run(after_step=restore)
    assert len(taken) == 2
    assert aggregator.state.phase is Phase.FAILED
    assert "alpha (rolled-back)" in aggregator.state.why
    later = [from_bytes(c) for d, s, c in world.traffic[taken[1] :] if s == "alpha" and d == "up"]
    assert later
    assert not [m for m in later if isinstance(m, Contribution)]


class Liar:
    """A site that says something else of ledgers than what is true."""

    def __init__(self, site, change):
        self.site, self.change = site, change

    def handle(self, request):
        reply = self.site.handle(request)
        return self.change(reply) if isinstance(reply, (Exchanged, Contribution)) else reply


def _no_head(reply):
    return dataclasses.replace(reply, ledger=b"nothing")


def _another_head(reply):
    return dataclasses.replace(reply, ledger=Liar.heads.setdefault("first", reply.ledger))


def _flipped(reply):
    return dataclasses.replace(reply, ledger=reply.ledger[:-1] + bytes([reply.ledger[-1] ^ 1]))


def _false_witness(reply):
    if not isinstance(reply, Exchanged):
        return reply
    return dataclasses.replace(reply, witnesses={n: w[:-1] + bytes([w[-1] ^ 1]) for n, w in reply.witnesses.items()})


def _no_witness(reply):
    return dataclasses.replace(reply, witnesses={"alpha": b"?"}) if isinstance(reply, Exchanged) else reply


@pytest.mark.parametrize("change", [_no_head, _another_head, _flipped, _false_witness, _no_witness])
def test_rule_18_who_lies_about_ledgers_leaves_and_nobody_else(new_world, change):
    Liar.heads = {}
    world = new_world(privacy__drop=1)
    world.sites["beta"] = Liar(world.sites["beta"], change)
    aggregator = world.run()
    assert aggregator.state.phase is Phase.DONE, aggregator.state.why
    assert list(aggregator.state.excluded) == ["beta"]
