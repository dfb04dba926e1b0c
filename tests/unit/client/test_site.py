"""One hospital: it answers approved plans with sums, and everything else with a code."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from oncofed_client.session import training_set
from oncofed_client.settings import load_settings
from oncofed_client.site import Site
from oncofed_client.source import FolderSource
from oncofed_client.training import local_update
from oncofed_shared.features import Preparation, column_sums, prepare, unite
from oncofed_shared.layout import Layout
from oncofed_shared.losses import predict
from oncofed_shared.messages import (
    Describe,
    Description,
    Evaluate,
    Head,
    Open,
    Ready,
    Refusal,
    Summarise,
    Summary,
    Tables,
    Train,
    Trial,
    Update,
    from_bytes,
    to_bytes,
)
from oncofed_shared.network import build
from oncofed_shared.plan import Plan
from oncofed_shared.ring import COUNT_SCALE, decode
from oncofed_shared.scoring import dense, split_vector, tabulate, vector_size

MakePlan = Callable[..., Plan]
TRIAL = Trial(seed=5)


class Talk:
    """The aggregator's half of a conversation with one site, over bytes."""

    def __init__(self, site: Site, plan: Plan, *, session: str = "s", trial: Trial = TRIAL) -> None:
        self.site, self.plan, self.session, self.trial = site, plan, session, trial
        self.step = 0
        self.preparation: Preparation | None = None

    def head(self) -> Head:
        self.step += 1
        return Head(session=self.session, step=self.step, attempt=0, plan_hash=self.plan.hash, trial=self.trial)

    def ask(self, request: Any) -> Any:
        reply = from_bytes(to_bytes(self.site.handle(from_bytes(to_bytes(request)))))  # type: ignore[arg-type]
        assert reply.head == request.head
        return reply

    def open(self) -> Talk:
        described = self.ask(Describe(head=self.head()))
        assert isinstance(described, Description), described
        columns = unite(self.plan, [described.columns])
        sums = self.ask(Summarise(head=self.head(), columns=columns))
        assert isinstance(sums, Summary), sums
        self.preparation = prepare(self.plan, columns, sums.sums)
        assert isinstance(self.ask(self.opening()), Ready)
        return self

    def opening(self) -> Open:
        assert self.preparation is not None
        return Open(head=self.head(), columns=self.preparation.columns, arrays=self.preparation.arrays())

    def parameters(self, seed: int = 0) -> dict[str, NDArray[Any]]:
        assert self.preparation is not None
        network = build(self.plan, self.preparation.columns, seed)
        return {n: p.detach().numpy() for n, p in network.named_parameters()}

    def train(self, *, number: int = 1, parameters: dict[str, NDArray[Any]] | None = None) -> Any:
        own = self.parameters() if parameters is None else parameters
        return self.ask(Train(head=self.head(), round=number, parameters=own))

    def evaluate(self, part: str = "test", *, subgroups: bool = True) -> Any:
        return self.ask(Evaluate(head=self.head(), part=part, subgroups=subgroups, parameters=self.parameters()))


def site_of(folder: Path, *plans: Plan, minimum: int = 1, state: Path | None = None) -> Site:
    source = FolderSource(folder, load_settings(folder), state=state)
    return Site(source, {p.hash: p for p in plans}, minimum_cohort=minimum, state=state)


@pytest.fixture
def plan(make_plan: MakePlan) -> Plan:
    return make_plan()


@pytest.fixture
def folder(hospitals: Path, tmp_path: Path) -> Path:
    """A copy of the first hospital that a test may change."""
    return Path(shutil.copytree(hospitals / "site-1", tmp_path / "site-1"))


def rewrite(folder: Path, change: Callable[[dict[str, str]], None], file: str = "clinical.csv") -> None:
    """Change rows of a table, as a hospital does."""
    with (folder / file).open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    for row in rows:
        change(row)
    with (folder / file).open("w", encoding="utf-8", newline="") as lines:
        writer = csv.DictWriter(lines, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def withdraw(folder: Path, *patients: str, value: str = "no") -> None:
    rewrite(folder, lambda row: row.update(consent=value) if row["patient_id"] in patients else None)


def refused(reply: Any, code: str) -> None:
    assert isinstance(reply, Refusal), reply
    assert reply.code == code


def patients_of(update: Update) -> int:
    count = decode(update.vector)[-2] / COUNT_SCALE
    assert count == int(count)
    return int(count)


def part_of(site: Site, plan: Plan) -> dict[str, int]:
    cohort = site.source.cohort(plan)
    return dict(zip(cohort.patients, site.source.split(plan, cohort, TRIAL).tolist(), strict=True))


def training_patients(site: Site, plan: Plan) -> list[str]:
    return [p for p, part in part_of(site, plan).items() if part == 0]


# -- what it answers --------------------------------------------------------------------------------------------------------


def test_a_description_counts_the_cohort(hospitals: Path, plan: Plan) -> None:
    site = site_of(hospitals / "site-1", plan)
    talk = Talk(site, plan)
    described = talk.ask(Describe(head=talk.head()))
    cohort = site.source.cohort(plan)
    parts = list(part_of(site, plan).values())
    assert described.site == "site-1"
    assert described.columns == cohort.columns
    counted = {"train": parts.count(0), "validation": parts.count(1), "test": parts.count(2), "all": len(parts)}
    assert described.parts == counted
    events = cohort.labels["survival"][:, 1]
    assert described.events["survival"] == np.nansum(events)
    assert described.events["response.1"] == np.sum(cohort.labels["response"] == 1)
    for name, values in cohort.values.items():
        assert described.modalities[name] == np.sum(~np.isnan(values).all(axis=1))


def test_a_site_without_a_modality_says_so(hospitals: Path, plan: Plan) -> None:
    talk = Talk(site_of(hospitals / "site-4", plan), plan)
    described = talk.ask(Describe(head=talk.head()))
    assert described.columns["mutations"] == ()
    assert described.modalities["mutations"] == 0
    talk.open()
    assert patients_of(talk.train()) == described.parts["train"]


def test_sums_are_those_of_the_training_patients(hospitals: Path, plan: Plan) -> None:
    site = site_of(hospitals / "site-1", plan)
    cohort = site.source.cohort(plan)
    rows = site.source.split(plan, cohort, TRIAL) == 0
    columns = unite(plan, [cohort.columns])
    talk = Talk(site, plan)
    reply = talk.ask(Summarise(head=talk.head(), columns=columns))
    values = {m: v[rows] for m, v in cohort.values.items()}
    labels = {t: v[rows] for t, v in cohort.labels.items()}
    np.testing.assert_array_equal(reply.sums, column_sums(plan, columns, values, cohort.columns, labels))


def test_an_update_is_the_rounded_sum_over_the_training_patients(hospitals: Path, plan: Plan) -> None:
    site = site_of(hospitals / "site-1", plan)
    talk = Talk(site, plan).open()
    update = decode(talk.train(number=7).vector)
    assert talk.preparation is not None
    cohort = site.source.cohort(plan)
    data = training_set(plan, talk.preparation, cohort, site.source.split(plan, cohort, TRIAL) == 0)
    network = build(plan, talk.preparation.columns, seed=0)
    key = f"{TRIAL}|site-1|7"
    expected = local_update(plan, network, Layout.of(network), data, talk.parameters(), key=key)
    np.testing.assert_allclose(update[:-2], expected[:-2], rtol=0, atol=2.0**-41)
    np.testing.assert_allclose(update[-2:] / COUNT_SCALE, expected[-2:], rtol=0, atol=2.0**-29)


@pytest.mark.parametrize("part", ["train", "validation", "test", "all"])
@pytest.mark.parametrize("subgroups", [True, False])
def test_tables_count_the_predictions_of_one_part(hospitals: Path, plan: Plan, part: str, subgroups: bool) -> None:
    site = site_of(hospitals / "site-2", plan)
    talk = Talk(site, plan).open()
    reply = talk.evaluate(part, subgroups=subgroups)
    assert isinstance(reply, Tables)
    vector = dense(reply.size, reply.cells, reply.counts)
    assert talk.preparation is not None
    cohort = site.source.cohort(plan)
    number = {"train": 0, "validation": 1, "test": 2}.get(part)
    split = site.source.split(plan, cohort, TRIAL)
    rows = np.full(len(split), True) if number is None else split == number
    network = build(plan, talk.preparation.columns, seed=0).eval()
    data = training_set(plan, talk.preparation, cohort, rows)
    with torch.no_grad():
        predictions = predict(plan, network(data.values, data.seen))
    labels = {t: v[rows] for t, v in cohort.labels.items()}
    groups = {s: v[rows] for s, v in cohort.subgroups.items()}
    np.testing.assert_array_equal(vector, tabulate(plan, predictions, labels, groups, subgroups=subgroups))
    assert len(vector) == vector_size(plan, subgroups=subgroups)
    assert split_vector(plan, vector, subgroups=subgroups)


def test_the_same_request_gives_the_same_bytes_and_leaves_torch_as_it_was(hospitals: Path, make_plan: MakePlan) -> None:
    plan = make_plan(training__batch=8, training__local_steps=3, training__dropout=0.3)
    one, two = (Talk(site_of(hospitals / "site-1", plan), plan).open() for _ in range(2))
    before = (torch.get_rng_state(), torch.get_num_threads(), torch.are_deterministic_algorithms_enabled())
    first = to_bytes(one.train())
    after = (torch.get_rng_state(), torch.get_num_threads(), torch.are_deterministic_algorithms_enabled())
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    assert to_bytes(two.train()) == first
    # Neither what was asked in between nor an own generator changes it; the round does.
    one.evaluate()
    torch.manual_seed(1)
    one.step = two.step - 1
    assert to_bytes(one.train()) == first
    one.step = two.step - 1
    assert to_bytes(one.train(number=2)) != first


def test_a_session_outlives_the_process(hospitals: Path, plan: Plan, tmp_path: Path) -> None:
    state = tmp_path / "state"
    talk = Talk(site_of(hospitals / "site-1", plan, state=state), plan).open()
    first = to_bytes(talk.train())
    again = Talk(site_of(hospitals / "site-1", plan, state=state), plan)
    again.preparation, again.step = talk.preparation, talk.step - 1
    assert to_bytes(again.train()) == first


# -- what it refuses --------------------------------------------------------------------------------------------------------


def requests_of(talk: Talk) -> list[Any]:
    """One request of every kind."""
    parameters = talk.parameters()
    assert talk.preparation is not None
    return [
        Describe(head=talk.head()),
        Summarise(head=talk.head(), columns=talk.preparation.columns),
        talk.opening(),
        Train(head=talk.head(), round=1, parameters=parameters),
        Evaluate(head=talk.head(), part="test", subgroups=True, parameters=parameters),
    ]


def test_a_plan_that_is_not_approved_is_refused_whatever_is_asked(
    hospitals: Path, make_plan: MakePlan, plan: Plan
) -> None:
    site = site_of(hospitals / "site-1", plan)
    talk = Talk(site, plan).open()
    other = make_plan(training__rounds=99)
    for request in requests_of(talk):
        refused(talk.ask(replace(request, head=replace(request.head, plan_hash=other.hash))), "unapproved-plan")
    assert isinstance(talk.train(), Update)


def test_a_session_that_was_never_opened_is_unknown(hospitals: Path, make_plan: MakePlan, plan: Plan) -> None:
    other = make_plan(training__rounds=99)
    site = site_of(hospitals / "site-1", plan, other)
    talk = Talk(site, plan).open()
    for request in requests_of(talk)[3:]:
        for change in ({"session": "t"}, {"plan_hash": other.hash}, {"trial": Trial(seed=6)}):
            refused(talk.ask(replace(request, head=replace(request.head, **change))), "unknown-session")
    assert isinstance(talk.train(), Update)


def test_a_kept_session_is_as_closed_to_others(
    hospitals: Path, make_plan: MakePlan, plan: Plan, tmp_path: Path
) -> None:
    other = make_plan(training__rounds=99)
    state = tmp_path / "state"
    talk = Talk(site_of(hospitals / "site-1", plan, other, state=state), plan).open()
    for change in ({"session": "t"}, {"plan_hash": other.hash}, {"trial": Trial(seed=6)}):
        talk.site = site_of(hospitals / "site-1", plan, other, state=state)
        request = requests_of(talk)[3]
        refused(talk.ask(replace(request, head=replace(request.head, **change))), "unknown-session")


def test_parameters_that_are_not_the_networks_are_refused(hospitals: Path, plan: Plan) -> None:
    talk = Talk(site_of(hospitals / "site-1", plan), plan).open()
    good = talk.parameters()
    name = next(iter(good))
    wrong = {
        "one too few": {n: a for n, a in good.items() if n != name},
        "one too many": {**good, "more": np.zeros(3, np.float32)},
        "another shape": {**good, name: np.zeros((1, 1, 1), np.float32)},
        "integers": {**good, name: np.zeros(good[name].shape, np.int64)},
    }
    for parameters in wrong.values():
        refused(talk.train(parameters=parameters), "protocol")
    refused(talk.train(parameters={**good, name: np.full_like(good[name], np.nan)}), "diverged")
    assert isinstance(talk.train(), Update)


@pytest.mark.parametrize(
    "columns",
    [{}, {"clinical": ("age",)}, {"clinical": (), "shape": (), "mutations": ()}, {"other": ("age",)}],
    ids=str,
)
def test_columns_that_are_not_the_plans_are_refused(hospitals: Path, plan: Plan, columns: Any) -> None:
    talk = Talk(site_of(hospitals / "site-1", plan), plan)
    refused(talk.ask(Summarise(head=talk.head(), columns=columns)), "protocol")


def test_a_preparation_that_does_not_fit_is_refused_and_opens_nothing(hospitals: Path, plan: Plan) -> None:
    talk = Talk(site_of(hospitals / "site-1", plan), plan).open()
    good = talk.opening()
    for arrays in ({}, {"center": np.zeros(3)}, {n: a[:-1] for n, a in good.arrays.items()}):
        refused(talk.ask(replace(good, head=talk.head(), arrays=arrays)), "protocol")
    assert isinstance(talk.train(), Update)


def test_a_fold_that_the_plan_does_not_have_is_refused(hospitals: Path, plan: Plan) -> None:
    talk = Talk(site_of(hospitals / "site-1", plan), plan, trial=Trial(seed=0, fold=1))
    refused(talk.ask(Describe(head=talk.head())), "config")


def test_an_update_out_of_range_is_refused_by_its_code(hospitals: Path, make_plan: MakePlan) -> None:
    plan = make_plan(training__range=1e-3)
    talk = Talk(site_of(hospitals / "site-1", plan), plan).open()
    refused(talk.train(), "out-of-range")
    assert "training.range" in talk.site.journal[-1]


def test_a_diverging_update_is_refused_by_its_code(hospitals: Path, make_plan: MakePlan) -> None:
    plan = make_plan(training__rate=1e30, training__local_steps=3)
    talk = Talk(site_of(hospitals / "site-1", plan), plan).open()
    refused(talk.train(), "out-of-range")


def test_the_range_bounds_the_update_and_not_the_number_of_patients(hospitals: Path, make_plan: MakePlan) -> None:
    plan = make_plan(training__range=5.0)
    site = site_of(hospitals / "site-1", plan)
    expected = len(training_patients(site, plan))
    assert expected > 5
    assert patients_of(Talk(site, plan).open().train()) == expected


# -- the policy -------------------------------------------------------------------------------------------------------------


def test_too_few_patients_are_refused_whatever_is_asked_first(hospitals: Path, plan: Plan) -> None:
    size = len(site_of(hospitals / "site-1", plan).source.cohort(plan).patients)
    talk = Talk(site_of(hospitals / "site-1", plan, minimum=size), plan).open()
    for request in requests_of(talk):
        # A new process each time, so that nothing was asked before.
        talk.site = site_of(hospitals / "site-1", plan, minimum=size + 1)
        refused(talk.ask(request), "cohort-too-small")
        assert str(size + 1) in talk.site.journal[-1]


def test_a_withdrawal_below_the_minimum_changes_the_sums_and_not_the_participation(folder: Path, plan: Plan) -> None:
    size = len(site_of(folder, plan).source.cohort(plan).patients)
    talk = Talk(site_of(folder, plan, minimum=size), plan).open()
    who = training_patients(talk.site, plan)
    before = patients_of(talk.train())
    withdraw(folder, who[0])
    assert patients_of(talk.train(number=2)) == before - 1


def test_a_withdrawn_consent_takes_the_patient_out_at_the_next_round_and_moves_nobody_else(
    folder: Path, plan: Plan
) -> None:
    talk = Talk(site_of(folder, plan), plan).open()
    parts = part_of(talk.site, plan)
    who = training_patients(talk.site, plan)
    for number, gone in enumerate([who[0], who[-1], who[len(who) // 2]], 1):
        before = patients_of(talk.train(number=number))
        withdraw(folder, gone)
        assert patients_of(talk.train(number=number)) == before - 1
        del parts[gone]
        assert part_of(talk.site, plan) == parts


def test_a_withdrawn_patient_leaves_no_trace_in_the_update(folder: Path, plan: Plan, tmp_path: Path) -> None:
    state = tmp_path / "state"
    talk = Talk(site_of(folder, plan, state=state), plan).open()
    gone = training_patients(talk.site, plan)[0]
    withdraw(folder, gone)
    update = talk.train().vector
    # Whatever his values are: the same bytes, also from a process that reads the file anew.
    rewrite(folder, lambda row: row.update(age="1.5", os_days="1") if row["patient_id"] == gone else None)
    talk.site = site_of(folder, plan, state=state)
    np.testing.assert_array_equal(talk.train().vector, update)


def test_a_withdrawn_test_patient_changes_the_tables_and_not_the_update(folder: Path, plan: Plan) -> None:
    talk = Talk(site_of(folder, plan), plan).open()
    tested = [p for p, part in part_of(talk.site, plan).items() if part == 2]
    update, tables = talk.train(), talk.evaluate(subgroups=False)
    withdraw(folder, tested[0])
    np.testing.assert_array_equal(talk.train().vector, update.vector)
    assert talk.evaluate(subgroups=False).counts.sum() < tables.counts.sum()


def test_who_consents_in_the_course_of_a_run_waits_for_the_next(folder: Path, plan: Plan) -> None:
    gone = training_patients(site_of(folder, plan), plan)[0]
    withdraw(folder, gone)
    talk = Talk(site_of(folder, plan), plan).open()
    before, parts = patients_of(talk.train()), part_of(talk.site, plan)
    withdraw(folder, gone, value="yes")
    assert patients_of(talk.train(number=2)) == before
    assert part_of(talk.site, plan) == parts | {gone: -1}


def test_when_all_withdraw_the_update_is_nothing_of_nobody(folder: Path, plan: Plan) -> None:
    talk = Talk(site_of(folder, plan), plan).open()
    withdraw(folder, *site_of(folder, plan).source.cohort(plan).patients)
    update = talk.train()
    assert not update.vector.any()
    assert talk.evaluate().counts.size == 0


def test_parts_outlive_the_process_and_a_withdrawal(folder: Path, plan: Plan, tmp_path: Path) -> None:
    state = tmp_path / "state"
    parts = part_of(site_of(folder, plan, state=state), plan)
    gone = next(p for p, part in parts.items() if part == 0)
    withdraw(folder, gone)
    del parts[gone]
    assert part_of(site_of(folder, plan, state=state), plan) == parts
    kept = [p.read_text(encoding="utf-8") for p in (state / "parts").iterdir()]
    assert kept
    # Under a hash of his id, in a file that others cannot read.
    assert not any(patient in text for patient in (*parts, gone) for text in kept)
    assert all(p.stat().st_mode & 0o077 == 0 for p in (state / "parts").iterdir())


def test_a_damaged_file_of_parts_is_refused_and_not_guessed(folder: Path, plan: Plan, tmp_path: Path) -> None:
    state = tmp_path / "state"
    part_of(site_of(folder, plan, state=state), plan)
    path = next((state / "parts").iterdir())
    for damage in ("{", "[]", "null", '{"a": "b"}'):
        path.write_text(damage, encoding="utf-8")
        talk = Talk(site_of(folder, plan, state=state), plan)
        reply = talk.ask(Describe(head=talk.head()))
        refused(reply, "data")


# -- what a refusal says ----------------------------------------------------------------------------------------------------

SENTINEL = "Zq7Sentinel"
DAMAGE: dict[str, Callable[[dict[str, str]], None]] = {
    "text in a numeric column": lambda row: row.update(age=SENTINEL),
    "out of range": lambda row: row.update(age="731.25"),
    "infinite": lambda row: row.update(age="inf"),
    "unknown category": lambda row: row.update(sex=SENTINEL),
    "unknown class": lambda row: row.update(response=SENTINEL),
    "negative time": lambda row: row.update(os_days="-731.25"),
    "event that is neither": lambda row: row.update(os_event="731.25"),
    "the same id everywhere": lambda row: row.update(patient_id=SENTINEL),
    "nobody consented": lambda row: row.update(consent=SENTINEL),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_refusal_never_holds_a_value(folder: Path, plan: Plan, damage: Callable[[dict[str, str]], None]) -> None:
    rewrite(folder, damage)
    talk = Talk(site_of(folder, plan), plan)
    ids = site_ids(folder)
    reply = talk.ask(Describe(head=talk.head()))
    assert isinstance(reply, Refusal)
    said = to_bytes(reply).decode("latin-1")
    # The journal stays at the site, and does not hold one either.
    for text in (said, "\n".join(talk.site.journal)):
        assert SENTINEL not in text
        assert "731.25" not in text
        assert not any(i in text for i in ids)
    assert talk.site.journal
    assert str(folder) not in said


def site_ids(folder: Path) -> set[str]:
    with (folder / "clinical.csv").open(encoding="utf-8", newline="") as lines:
        return {row["patient_id"] for row in csv.DictReader(lines)}


def test_a_table_that_becomes_unreadable_in_the_course_of_a_run_is_a_refusal(folder: Path, plan: Plan) -> None:
    talk = Talk(site_of(folder, plan), plan).open()
    assert isinstance(talk.train(), Update)
    (folder / "clinical.csv").write_bytes(b"\xff\xfe\x00broken")
    assert isinstance(talk.train(number=2), Refusal)
    (folder / "clinical.csv").unlink()
    assert isinstance(talk.train(number=2), Refusal)
