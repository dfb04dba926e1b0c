"""A study killed after any event goes on with the very same requests, numbers and model."""

from __future__ import annotations

import shutil
import sqlite3
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oncofed_client.site import Site
from oncofed_server.aggregator import Aggregator
from oncofed_server.journal import Journal
from oncofed_server.journaled import JournaledRun, Numbered
from oncofed_server.rounds import Cost
from oncofed_server.run_state import Phase, Roster, State
from oncofed_shared.errors import DataError, StorageError
from oncofed_shared.messages import Refusal, Trial, from_bytes, to_bytes
from oncofed_shared.plan import Plan
from oncofed_simulations.consortium import open_site

TRIAL = Trial(seed=5)
NAMES = ("site-1", "site-2", "site-3")


class Study:
    """A small study over three hospitals, as its journal sees it."""

    def __init__(self, plan: Plan, sites: dict[str, Site], *, quorum: int = 1) -> None:
        self.plan, self.sites, self.quorum = plan, sites, quorum

    def aggregator(self, *, state: State | None, names: Callable[[], str]) -> Aggregator:
        del names
        roster = Roster(trainers=NAMES, evaluators=NAMES, quorum=self.quorum)
        return Aggregator(self.plan, roster, TRIAL, session="run", state=state)

    def open(self, path: Path, **more: Any) -> JournaledRun:
        return JournaledRun(self.plan, self.aggregator, Journal(path, study="s"), clock=lambda: 0.0, **more)

    def answer(self, request: Numbered) -> Any:
        return from_bytes(to_bytes(self.sites[request.site].handle(from_bytes(request.body))))  # type: ignore[arg-type]


def _drive(study: Study, run: JournaledRun, stop: int | None = None) -> list[Numbered]:
    """Every request that was sent, until the end or until so many replies have come."""
    queue = deque(run.recover())
    sent = list(queue)
    replies = 0
    while queue and not run.finished and (stop is None or replies < stop):
        new = run.receive(study.answer(queue.popleft()), Cost(bytes_up=1, seconds=0.5)) or []
        sent += new
        queue.extend(new)
        replies += 1
    return sent


def _model(run: JournaledRun) -> dict[str, bytes]:
    return {n: a.tobytes() for n, a in run.aggregator.parameters().items()}


@pytest.fixture(scope="module")
def study(make_plan: Callable[..., Plan], hospitals: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    plan = make_plan(training__rounds=2, training__validate_every=1)
    states = tmp_path_factory.mktemp("states")
    sites = {n: open_site(hospitals / n, plan, state=states / n, minimum=1) for n in NAMES}
    return Study(plan, sites)


@pytest.fixture(scope="module")
def whole(
    study: Study, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, list[Numbered], JournaledRun]]:
    """An undisturbed run: its folder, its requests, its end."""
    folder = tmp_path_factory.mktemp("whole")
    run = study.open(folder / "journal.sqlite")
    sent = _drive(study, run)
    assert run.aggregator.state.phase is Phase.DONE
    yield folder, sent, run
    run.journal.close()


def _cut(folder: Path, to: Path, events: int) -> Path:
    """The journal as it was after so many events."""
    to.mkdir()
    path = to / "journal.sqlite"
    with sqlite3.connect(folder / "journal.sqlite") as source, sqlite3.connect(path) as target:
        source.backup(target)
        target.execute("DELETE FROM events WHERE id > ?", (events,))
        target.execute("DELETE FROM requests WHERE event > ?", (events,))
        newest = target.execute("SELECT coalesce(max(number), 0) FROM requests").fetchone()[0]
        target.execute("UPDATE sqlite_sequence SET seq = ? WHERE name = 'requests'", (newest,))
        target.execute("UPDATE sqlite_sequence SET seq = ? WHERE name = 'events'", (events,))
    source.close()
    target.close()
    return path


def test_after_every_prefix_of_events_the_same_requests_and_the_same_model(
    study: Study, whole: tuple[Path, list[Numbered], JournaledRun], tmp_path: Path
) -> None:
    folder, sent, end = whole
    events = end.journal.size[0]
    assert events > 20
    replies = [e for e in end.journal.entries() if e.kind == "received"]
    for prefix in range(events + 1):
        run = study.open(_cut(folder, tmp_path / str(prefix), prefix))
        again = run.recover()
        for entry in replies:
            if entry.number > prefix:
                again += run.receive(from_bytes(entry.reply), entry.cost) or []  # type: ignore[arg-type]
        # Whatever is sent now was sent then, under the same number, and nothing that comes later is missing.
        assert set(again) <= set(sent), prefix
        assert [n for n in sent if n.number >= min((a.number for a in again), default=10**9)][-1:] == again[-1:]
        assert _model(run) == _model(end)
        assert run.aggregator.state.losses == end.aggregator.state.losses
        assert run.aggregator.state.cost == end.aggregator.state.cost
        run.journal.close()


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kills=st.lists(st.integers(0, 9), min_size=1, max_size=5), compact=st.booleans())
def test_killed_again_and_again_with_real_sites_and_snapshots_the_model_is_the_same(
    study: Study,
    whole: tuple[Path, list[Numbered], JournaledRun],
    tmp_path_factory: pytest.TempPathFactory,
    kills: list[int],
    compact: bool,
) -> None:
    path = tmp_path_factory.mktemp("killed") / "journal.sqlite"
    most = 1 if compact else 10**6
    sent: set[Numbered] = set()
    for stop in (*kills, None):
        run = study.open(path, most_events=most)
        sent |= set(_drive(study, run, stop))
        run.journal.close()
    assert run.aggregator.state.phase is Phase.DONE
    assert _model(run) == _model(whole[2])
    assert sent == set(whole[1])
    assert len(list(path.parent.glob("snapshot-*"))) == (1 if compact else 0)


def test_numbers_grow_for_every_site_and_steps_never_repeat(whole: tuple[Path, list[Numbered], JournaledRun]) -> None:
    for site in NAMES:
        own = [n for n in whole[1] if n.site == site]
        assert [n.number for n in own] == sorted({n.number for n in own})
        steps = [from_bytes(n.body).head.step for n in own]
        assert len(set(steps)) == len(steps)


def test_nothing_is_sent_when_the_journal_gives_other_requests(
    study: Study, whole: tuple[Path, list[Numbered], JournaledRun], tmp_path: Path
) -> None:
    path = _cut(whole[0], tmp_path / "other", 9)
    with sqlite3.connect(path) as base:
        base.execute("UPDATE requests SET digest = zeroblob(32) WHERE event = 4")
    base.close()
    run = study.open(path)
    with pytest.raises(DataError, match="other requests"):
        run.recover()
    run.journal.close()


def test_a_missing_event_is_noticed(
    study: Study, whole: tuple[Path, list[Numbered], JournaledRun], tmp_path: Path
) -> None:
    path = _cut(whole[0], tmp_path / "gap", 9)
    with sqlite3.connect(path) as base:
        base.execute("DELETE FROM events WHERE id = 5")
    base.close()
    run = study.open(path)
    with pytest.raises(DataError, match="event 5 is missing"):
        run.recover()
    run.journal.close()


def test_a_request_is_on_the_disk_before_anybody_sees_it(study: Study, tmp_path: Path) -> None:
    run = study.open(tmp_path / "journal.sqlite")
    first = run.recover()
    # Another process sees exactly what was returned.
    with sqlite3.connect(tmp_path / "journal.sqlite") as other:
        rows = other.execute("SELECT number, site FROM requests").fetchall()
    other.close()
    assert rows == [(n.number, n.site) for n in first]
    run.journal.close()


def test_when_the_disk_refuses_nothing_is_sent(study: Study, tmp_path: Path) -> None:
    run = study.open(tmp_path / "journal.sqlite")
    first = run.recover()
    run.journal._base.execute("PRAGMA query_only = ON")
    with pytest.raises(StorageError, match="free some space"):
        run.receive(study.answer(first[0]), Cost())
    run.journal.close()
    again = study.open(tmp_path / "journal.sqlite")
    assert again.recover() == first
    again.journal.close()


def test_an_answer_that_nobody_waits_for_is_not_written_down(study: Study, tmp_path: Path) -> None:
    run = study.open(tmp_path / "journal.sqlite")
    first = run.recover()
    reply = study.answer(first[0])
    run.receive(reply, Cost())
    before = run.journal.size
    assert run.receive(reply, Cost()) is None
    assert run.journal.size == before
    assert {n.site for n in run.outstanding()} == set(NAMES) - {first[0].site}
    run.journal.close()


def test_time_in_which_nobody_drove_the_study_counts_towards_no_deadline(study: Study, tmp_path: Path) -> None:
    time = [1000.0]

    def opened() -> JournaledRun:
        return JournaledRun(
            study.plan, study.aggregator, Journal(tmp_path / "j.sqlite", study="s"), clock=lambda: time[0]
        )

    run = opened()
    first = run.recover()
    time[0] += 60
    run.receive(study.answer(first[0]), Cost())
    run.journal.close()
    time[0] += 10**6
    run = opened()
    assert {n.number for n in run.recover()} == {first[1].number, first[2].number}
    assert run.now == pytest.approx(60)
    assert run.tick() == []
    time[0] += 60 * study.plan.training.deadline_minutes - 60
    late = run.tick()
    # Asked once more: a new request with a new number.
    assert [n.site for n in late] == [first[1].site, first[2].site]
    assert min(n.number for n in late) > max(n.number for n in first)
    run.journal.close()


def test_the_run_fails_when_fewer_than_the_quorum_are_left(study: Study, tmp_path: Path) -> None:
    strict = Study(study.plan, study.sites, quorum=3)
    run = strict.open(tmp_path / "journal.sqlite")
    first = run.recover()
    head = from_bytes(first[0].body).head
    run.receive(Refusal(head=head, site=first[0].site, code="revoked", text="no"), Cost())
    assert run.aggregator.state.phase is Phase.FAILED
    assert "quorum is 3" in run.aggregator.state.why
    run.journal.close()
    # And it stays failed.
    again = strict.open(tmp_path / "journal.sqlite")
    assert again.recover() == []
    assert again.finished
    again.journal.close()


def test_a_journal_is_of_one_study(tmp_path: Path) -> None:
    Journal(tmp_path / "j.sqlite", study="a").close()
    with pytest.raises(DataError, match="another study"):
        Journal(tmp_path / "j.sqlite", study="b")
    (tmp_path / "k.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(DataError, match="cannot be read"):
        Journal(tmp_path / "k.sqlite", study="a")


def test_names_are_the_same_after_a_restart_and_of_another_journal_others(tmp_path: Path) -> None:
    first = Journal(tmp_path / "a.sqlite", study="a")
    names = [first.name(i) for i in range(50)]
    first.close()
    shutil.copy(tmp_path / "a.sqlite", tmp_path / "copy.sqlite")
    again, other = Journal(tmp_path / "copy.sqlite", study="a"), Journal(tmp_path / "b.sqlite", study="a")
    assert [again.name(i) for i in range(50)] == names
    assert len(set(names)) == 50
    assert not set(names) & {other.name(i) for i in range(50)}
    again.close()
    other.close()


def test_requests_outside_the_run_have_numbers_too(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.sqlite", study="s")
    first = journal.number_for("site-1", b"body")
    assert journal.number_for("site-1", b"body") == first
    second = journal.number_for("site-2", b"body")
    third = journal.number_for("site-1", b"other")
    assert first < second < third
    # No longer the site's newest: a site would refuse the old number.
    assert journal.number_for("site-1", b"body") > third
    journal.close()


def test_the_model_is_what_a_run_without_a_journal_gives(
    study: Study, whole: tuple[Path, list[Numbered], JournaledRun]
) -> None:
    plain = study.aggregator(state=None, names=lambda: "")
    from oncofed_simulations.loopback import FakeClock, drive  # noqa: PLC0415 - used once

    drive(plain, study.sites, clock=FakeClock())
    assert {n: a.tobytes() for n, a in plain.parameters().items()} == _model(whole[2])
    assert all(np.isfinite(a).all() for a in plain.parameters().values())
