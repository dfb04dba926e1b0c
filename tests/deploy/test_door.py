"""A run through the doors of real sites: the same model as in a simulation, and a receipt for all that left."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import shutil
import sqlite3
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from airlock_parts import NOW, key_of
from airlock_world import SITES, World, aggregator_of, head_of, private_changes, run

from oncofed_client.approvals import approve
from oncofed_client.counting import rounded_counts
from oncofed_client.deliveries import model_folder
from oncofed_client.door_memory import DOOR_FILE, DoorMemory, waiting_replies
from oncofed_client.egress import ANSWERS
from oncofed_client.identity import identity_of, public_half
from oncofed_client.ledger import LEDGER_FILE
from oncofed_client.ledger_chain import FIRST_LINK, make_chain, sign_row
from oncofed_client.ledger_verify import read_account
from oncofed_client.receipts import RECEIPTS_FILE, Receipts, read_receipts, verify_receipts
from oncofed_client.reply_tick import seconds_to_tick
from oncofed_client.site import Site
from oncofed_server.aggregator import Aggregator
from oncofed_server.run_state import Phase, Roster
from oncofed_shared.errors import DataError, StorageError
from oncofed_shared.gene_graph import with_files
from oncofed_shared.messages import (
    Count,
    Counted,
    Deliver,
    Delivered,
    Describe,
    Description,
    End,
    Ended,
    Errand,
    ErrandReply,
    Refusal,
    Reply,
    Request,
)
from oncofed_shared.model_seal import MODEL_FILES, check_model, seal_model
from oncofed_shared.sealed import REFUSED
from oncofed_simulations.consortium import open_site
from oncofed_simulations.loopback import FakeClock, drive


@pytest.fixture
def plan(make_plan):
    return make_plan(training__rounds=2)


@pytest.fixture
def world(tmp_path, plan, hospitals):
    made = World.make(tmp_path, plan, hospitals)
    yield made
    made.close()


def test_the_model_is_the_one_that_a_simulation_gives(world, plan, hospitals):
    deployed = aggregator_of(world)
    run(world, deployed)
    assert deployed.state.phase is Phase.DONE
    simulated = aggregator_of(world)
    sites = {s: open_site(hospitals / s, plan, state=None, minimum=None) for s in SITES}
    drive(simulated, sites, clock=FakeClock())
    for name, array in simulated.parameters().items():
        np.testing.assert_array_equal(array, deployed.parameters()[name])


def test_a_plan_s_gene_graph_is_read_where_site_toml_says(tmp_path, make_plan, hospitals):
    """The signed study says its hash and no place: each site and the aggregator have a copy."""
    content = b"TP53\tPTEN\nPTEN\tRB1\n"
    named = {"file": "graph.txt", "sha256": hashlib.sha256(content).hexdigest()}
    genes = {"patterns": ["{gene}_mut"], "encoder": "graph", "graph": named}
    plan = make_plan(training__rounds=2, modalities__mutations=genes)
    folders = Path(shutil.copytree(hospitals, tmp_path / "sites"))
    places = {s: folders / s for s in SITES}
    places["site-2"] = tmp_path / "public"
    places["site-2"].mkdir()
    text = (folders / "site-2" / "site.toml").read_text()
    (folders / "site-2" / "site.toml").write_text(text.replace("[site]\n", '[site]\nfiles = "../../public"\n'))
    world = World.make(tmp_path / "states", plan, folders)
    study = world.papers.study
    assert study.plan.simulation.files is None
    for site in SITES:
        refused = world.ask(site, Describe(head=head_of(world)))
        assert isinstance(refused, Refusal)
        assert refused.code == "gene-file"
        (places[site] / "graph.txt").write_bytes(content)
    roster = Roster(trainers=study.trainers, evaluators=study.trainers)
    placed = with_files(study.plan, places["site-2"])
    aggregator = Aggregator(placed, roster, study.trial, session=study.session)
    run(world, aggregator)
    assert aggregator.state.phase is Phase.DONE
    assert "tokenisers.encoders.0.layers.0.own.weight" in aggregator.parameters()
    world.close()


def test_everything_that_left_has_a_receipt(world):
    run(world, aggregator_of(world))
    for site, state in world.states.items():
        left = [content for direction, whose, content in world.wire if (direction, whose) == ("up", site)]
        found = read_receipts(state / RECEIPTS_FILE, public_half(state))
        assert [(r.sha256, r.size) for r in found] == [(hashlib.sha256(c).hexdigest(), len(c)) for c in left]
        assert {r.kind for r in found} == {"Description", "Summary", "Ready", "Update", "Tables"}
        waiting = waiting_replies(state / DOOR_FILE)
        assert waiting == (left[-1],)
        assert verify_receipts(state / RECEIPTS_FILE, public_half(state), ledger=None, waiting=waiting) == []


def test_asked_again_it_gives_the_same_bytes_also_after_a_restart(world, hospitals):
    content = world.seal("site-1", Describe(head=head_of(world)))
    first = world.hand("site-1", content)
    assert world.hand("site-1", content) == first
    world.open("site-1", hospitals)
    assert world.hand("site-1", content) == first
    assert len(read_receipts(world.states["site-1"] / RECEIPTS_FILE, public_half(world.states["site-1"]))) == 1


def test_replies_of_one_kind_have_one_length(world):
    """Sites have different numbers of patients, and their tables different numbers of cells."""
    lengths: dict[str, set[int]] = {}

    def after(site, content, reply):
        kind = type(world.opened(site, content, reply)[0]).__name__
        lengths.setdefault(kind, set()).add(len(reply))

    run(world, aggregator_of(world), after=after)
    assert {k: sizes for k, sizes in lengths.items() if len(sizes) > 1} == {}


@pytest.mark.parametrize("noise", ["site", "consortium"])
def test_a_private_run_is_charged_in_ledger_and_receipts(tmp_path, make_plan, hospitals, noise):
    world = World.make(tmp_path, make_plan(**private_changes(noise)), hospitals)
    aggregator = aggregator_of(world)
    lengths: dict[tuple[str, int], set[int]] = {}

    def after(site, content, reply):
        message = world.opened(site, content, reply)[0]
        lengths.setdefault((type(message).__name__, message.head.step), set()).add(len(reply))

    answers = run(world, aggregator, after=after)
    assert aggregator.state.phase is Phase.DONE, aggregator.state.why
    assert not any(isinstance(a, Refusal) for given in answers.values() for a in given)
    for state in world.states.values():
        public = public_half(state)
        account = read_account(state / LEDGER_FILE, public)
        found = read_receipts(state / RECEIPTS_FILE, public)
        charged = [r for r in found if r.charge]
        assert {r.kind for r in charged} == {"Update" if noise == "site" else "Contribution"}
        assert {r.charge for r in charged} == {e for e, r in account.reservations.items() if r.state == "committed"}
        assert all(r.epsilon == 5 and r.steps >= 1 for r in charged)
        waiting = waiting_replies(state / DOOR_FILE)
        assert verify_receipts(state / RECEIPTS_FILE, public, ledger=account, waiting=waiting) == []
        problems = verify_receipts(state / RECEIPTS_FILE, public, ledger=None)
        assert len(problems) == len(charged), "a charge that no ledger has is found"
    assert {k: sizes for k, sizes in lengths.items() if len(sizes) > 1} == {}, "a length tells nothing of patients"
    world.close()


def test_counting_needs_its_own_approval_and_shows_rounded_numbers(tmp_path, plan, hospitals):
    world = World.make(tmp_path, plan, hospitals)
    request = Count(head=head_of(world))
    assert world.ask("site-1", request).code == "unapproved-plan"
    approve(world.states["site-1"], world.papers.content, now=NOW, site="site-1", scope="counting")
    reply = world.ask("site-1", request)
    assert isinstance(reply, Counted)
    assert {"patients", "modality clinical"} <= reply.counts.keys()
    assert all(n % 10 == 0 for n in reply.counts.values())
    other = World.make(tmp_path / "other", plan, hospitals, approved=False)
    approve(other.states["site-1"], other.papers.content, now=NOW, site="site-1", scope="counting")
    assert isinstance(other.ask("site-1", Count(head=head_of(other))), Counted)
    assert other.ask("site-1", Describe(head=head_of(other))).code == "unapproved-plan"
    for made in (world, other):
        made.close()


def test_small_numbers_are_withheld(plan, hospitals):
    site = open_site(hospitals / "site-1", plan, state=None, minimum=None)
    cohort = site.source.cohort(plan)
    whole = len(cohort.patients)
    everything = rounded_counts(plan, cohort, minimum=1)
    assert everything["patients"] == (whole + 5) // 10 * 10
    for minimum in range(1, whole + 2):
        shown = rounded_counts(plan, cohort, minimum=minimum)
        assert shown.items() <= everything.items()
        dead = int(np.count_nonzero(cohort.labels["survival"][:, 1] == 1))
        labelled = int(np.count_nonzero(~np.isnan(cohort.labels["survival"][:, 1])))
        assert ("event survival" in shown) == (dead >= minimum and (labelled - dead >= minimum or labelled == dead))
    assert rounded_counts(plan, cohort, minimum=whole + 1) == {}


def test_every_question_has_one_kind_of_answer():
    assert set(ANSWERS) == {*Request.__args__, *Errand.__args__}
    assert set(ANSWERS.values()) == {*Reply.__args__, *ErrandReply.__args__} - {Refusal}


class TestDelivery:
    def message(self, world, *, model=b"model", manifest=b"{}", key=None, study_id=None):
        seal = seal_model(study_id or world.papers.study.id, model, manifest, key or world.papers.step_key)
        return Deliver(head=head_of(world), model=model, manifest=manifest, seal=seal)

    def test_a_model_is_kept_once_with_its_seal(self, world):
        study, state = world.papers.study, world.states["site-1"]
        reply = world.ask("site-1", self.message(world))
        assert isinstance(reply, Delivered)
        assert reply.digest == hashlib.sha256(b"model").hexdigest()
        folder = model_folder(state, study)
        files = [(folder / n).read_bytes() for n in MODEL_FILES]
        assert check_model(study, *files) == reply.digest
        assert isinstance(world.ask("site-1", self.message(world)), Delivered)
        assert world.ask("site-1", self.message(world, model=b"another")).code == "other-model"
        (folder / MODEL_FILES[0]).write_bytes(b"damaged")
        assert isinstance(world.ask("site-1", self.message(world)), Delivered)
        assert (folder / MODEL_FILES[0]).read_bytes() == b"model"

    def test_what_the_step_key_did_not_seal_is_refused(self, world):
        good = self.message(world)
        for bad in (
            self.message(world, key=world.papers.plan_key),
            self.message(world, study_id="0" * 64),
            dataclasses.replace(good, model=b"other"),
            dataclasses.replace(good, manifest=b"other"),
            dataclasses.replace(good, seal=b""),
        ):
            assert world.ask("site-1", bad).code == "model-seal"
        assert not model_folder(world.states["site-1"], world.papers.study).exists()

    @pytest.mark.parametrize("cancelled", [False, True])
    def test_it_frees_what_a_private_run_never_asked_for(self, tmp_path, make_plan, hospitals, cancelled):
        world = World.make(tmp_path, make_plan(**private_changes("site")), hospitals)
        run(world, aggregator_of(world))
        state = world.states["site-1"]
        assert [p.state for p in read_account(state / LEDGER_FILE, public_half(state)).plans.values()] == ["open"]
        message = End(head=head_of(world)) if cancelled else self.message(world)
        assert isinstance(world.ask("site-1", message), Ended if cancelled else Delivered)
        assert [p.state for p in read_account(state / LEDGER_FILE, public_half(state)).plans.values()] == ["closed"]
        world.close()


class TestReceipts:
    def fill(self, path, key, count=4):
        with Receipts(path, site="s", key=key, now=NOW) as receipts:
            for i in range(count):
                receipts.append(
                    at=NOW + i, study_id="a" * 64, number=i + 1, step=i, kind="Update", sha256="b" * 64, size=1
                )

    @pytest.mark.parametrize(
        "what",
        [
            "UPDATE entries SET content = replace(content, 'Update', 'Tables') WHERE number = 3",
            "DELETE FROM entries WHERE number = 3",
            "UPDATE entries SET number = 10 WHERE number = 5",
        ],
    )
    def test_any_change_is_found(self, tmp_path, what):
        key, path = key_of("s"), tmp_path / RECEIPTS_FILE
        self.fill(path, key)
        assert verify_receipts(path, key.public_key(), ledger=None) == []
        with contextlib.closing(sqlite3.connect(path)) as connection:
            with pytest.raises(sqlite3.IntegrityError):
                connection.execute(what)
            connection.executescript("DROP TRIGGER entries_stay; DROP TRIGGER entries_as_written;")
            connection.execute(what)
            connection.commit()
        assert any("entry 3" in p or "entry 10" in p for p in verify_receipts(path, key.public_key(), ledger=None))
        with pytest.raises(DataError):
            read_receipts(path, key.public_key())

    def test_a_ledgers_row_is_no_receipt(self, tmp_path):
        key, path = key_of("s"), tmp_path / RECEIPTS_FILE
        make_chain(path, sign_row(key, number=1, site="s", epoch=1, at=NOW, kind="open", body={}, previous=FIRST_LINK))
        with pytest.raises(DataError):
            Receipts(path, site="s", key=key, now=NOW)

    def test_another_keys_or_sites_file_is_refused(self, tmp_path):
        key, path = key_of("s"), tmp_path / RECEIPTS_FILE
        self.fill(path, key)
        for site, other in (("t", key), ("s", key_of("t"))):
            with pytest.raises(DataError):
                Receipts(path, site=site, key=other, now=NOW)

    def test_time_never_runs_backwards(self, tmp_path):
        key, path = key_of("s"), tmp_path / RECEIPTS_FILE
        self.fill(path, key)
        with Receipts(path, site="s", key=key, now=NOW) as receipts:
            receipts.append(at=NOW - 100, study_id="a" * 64, number=9, step=1, kind="Update", sha256="", size=1)
            assert receipts.last_at == NOW + 3
        times = [r.at for r in read_receipts(path, key.public_key())]
        assert times == sorted(times)

    def test_a_removed_end_is_found_by_the_stored_replies(self, world):
        world.ask("site-1", Describe(head=head_of(world)))
        state = world.states["site-1"]
        waiting = waiting_replies(state / DOOR_FILE)
        world.close()
        (state / RECEIPTS_FILE).unlink()
        assert verify_receipts(state / RECEIPTS_FILE, public_half(state), ledger=None, waiting=waiting) != []
        Receipts(state / RECEIPTS_FILE, site="site-1", key=identity_of(state), now=NOW).close()
        assert (
            "no receipt" in verify_receipts(state / RECEIPTS_FILE, public_half(state), ledger=None, waiting=waiting)[0]
        )


def test_a_kill_between_reply_and_receipt_gives_the_same_bytes_and_one_receipt(world, hospitals, monkeypatch):
    content = world.seal("site-1", Describe(head=head_of(world)))

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Receipts, "append", killed)
        with pytest.raises(KeyboardInterrupt):
            world.doors["site-1"].handle(content)
    world.open("site-1", hospitals)
    first = world.hand("site-1", content)
    assert isinstance(world.opened("site-1", content, first)[0], Description)
    found = read_receipts(world.states["site-1"] / RECEIPTS_FILE, public_half(world.states["site-1"]))
    assert [r.sha256 for r in found] == [hashlib.sha256(first).hexdigest()]


@pytest.mark.parametrize("noise", ["none", "site"])
def test_a_state_from_before_an_answer_that_the_aggregator_has_answers_nothing_more(
    tmp_path, make_plan, hospitals, noise
):
    """It says what is wrong with it, and not that the others were shown another model."""
    changes = {"training__rounds": 2} if noise == "none" else private_changes(noise)
    world = World.make(tmp_path / "world", make_plan(**changes), hospitals, quorum=2)
    state, old, trained = world.states["site-1"], tmp_path / "yesterday", []

    def after(site, content, reply):
        if site == "site-1" and type(world.opened(site, content, reply)[0]).__name__ == "Update":
            trained.append(content)
        if site == "site-1" and not trained:
            # The newest copy of before its first update.
            shutil.rmtree(old, ignore_errors=True)
            world.doors["site-1"].close()
            shutil.copytree(state, old)
            world.open("site-1", hospitals)
        if len(trained) == 1 and old.exists():
            world.doors["site-1"].close()
            shutil.rmtree(state)
            old.rename(state)
            world.open("site-1", hospitals)

    aggregator = aggregator_of(world)
    run(world, aggregator, after=after)
    assert aggregator.state.excluded == {"site-1": "rolled-back"}
    assert len(trained) == 1
    world.close()


@pytest.mark.parametrize("noise", ["none", "consortium"])
def test_killed_before_and_after_each_reply_is_stored_a_run_ends_the_same(
    tmp_path, make_plan, hospitals, noise, monkeypatch
):
    changes = {"training__rounds": 1} if noise == "none" else private_changes(noise)
    world = World.make(tmp_path, make_plan(**changes), hospitals)
    keep, receipted = DoorMemory.keep, DoorMemory.receipted
    killed = set()

    def once(work, moment):
        def wrapped(self, study, digest, *rest, **more):
            if (moment, digest) not in killed and self is world.doors["site-1"]._memory:
                killed.add((moment, digest))
                raise KeyboardInterrupt
            return work(self, study, digest, *rest, **more)

        return wrapped

    monkeypatch.setattr(DoorMemory, "keep", once(keep, "before"))
    monkeypatch.setattr(DoorMemory, "receipted", once(receipted, "after"))
    hand = World.hand

    def stubborn(self, site, content, **more):
        for _ in range(3):
            try:
                return hand(self, site, content, **more)
            except KeyboardInterrupt:
                self.open(site, hospitals)
        raise AssertionError("killed more often than twice")

    monkeypatch.setattr(World, "hand", stubborn)
    aggregator = aggregator_of(world)
    run(world, aggregator)
    assert aggregator.state.phase is Phase.DONE, aggregator.state.why
    assert len(killed) >= 8
    if noise == "none":
        simulated = aggregator_of(world)
        sites = {s: open_site(hospitals / s, world.papers.plan, state=None, minimum=None) for s in SITES}
        drive(simulated, sites, clock=FakeClock())
        for name, array in simulated.parameters().items():
            np.testing.assert_array_equal(array, aggregator.parameters()[name])
    else:
        state = world.states["site-1"]
        account = read_account(state / LEDGER_FILE, public_half(state))
        found = read_receipts(state / RECEIPTS_FILE, public_half(state))
        assert {r.state for r in account.reservations.values()} == {"committed"}
        assert {r.charge for r in found if r.charge} == set(account.reservations)
        assert len({r.sha256 for r in found}) == len({r.number for r in found}), "a number has one reply"
    world.close()


def test_what_cannot_be_stored_does_not_leave(world, monkeypatch):
    def full(*_, **__):
        raise StorageError("the disk is full")

    content = world.seal("site-1", Describe(head=head_of(world)))
    with monkeypatch.context() as patch:
        patch.setattr(Receipts, "append", full)
        assert world.hand("site-1", content) == REFUSED
    assert isinstance(world.opened("site-1", content, world.hand("site-1", content))[0], Description)


def test_a_defect_of_ours_leaves_as_a_code_and_no_text(world, monkeypatch):
    def broken(*_):
        raise ValueError("SENTINEL-7")

    monkeypatch.setattr(Site, "handle", broken)
    reply = world.ask("site-1", Describe(head=head_of(world)))
    assert reply.code == "internal"
    assert "SENTINEL-7" not in repr(reply) + repr(world.logs["site-1"].lines)


def test_a_log_that_cannot_be_written_changes_no_answer(world):
    def full(*_):
        raise OSError(28, "No space left on device")

    door = world.doors["site-1"]
    door._logs = full
    assert isinstance(world.ask("site-1", Describe(head=head_of(world))), Description)
    assert world.ask("site-1", Describe(head=head_of(world, session="another-session"))).code == "other-run"
    assert door.handle(b"") == REFUSED


def test_a_refusal_is_sealed_and_has_a_code(world):
    reply = world.ask("site-1", Describe(head=head_of(world, session="another-session")))
    assert isinstance(reply, Refusal)
    assert reply.code == "other-run"


def test_it_says_what_it_has(world):
    reply = world.ask("site-1", Describe(head=head_of(world)))
    assert isinstance(reply, Description)
    assert reply.site == "site-1"
    assert dataclasses.replace(reply.head) == head_of(world)


@given(st.floats(0, 1e4), st.floats(0.01, 100))
def test_a_reply_leaves_on_a_tick(elapsed, tick):
    wait = seconds_to_tick(elapsed, tick)
    ticks = (elapsed + wait) / tick
    assert 0 <= wait <= tick * (1 + 1e-9)
    assert abs(ticks - round(ticks)) < 1e-6
    assert round(ticks) >= 1
    assert seconds_to_tick(elapsed, 0) == 0
