"""Secure sums from a journal: the aggregator's part of the protocol comes back whole, whenever it was killed."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from oncofed_client.identity import identity_of
from oncofed_server.aggregator import Aggregator
from oncofed_server.journal import Journal
from oncofed_server.journaled import JournaledRun, Numbered
from oncofed_server.rounds import Cost
from oncofed_server.run_state import Phase, Roster, State
from oncofed_server.secure_aggregator import aggregator_for
from oncofed_shared.messages import Trial, from_bytes, to_bytes

TRIAL = Trial(seed=3)
ELSEWHERE = """\
import json, sys
from pathlib import Path
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from oncofed_server.journal import Journal
from oncofed_server.journaled import JournaledRun
from oncofed_server.run_state import Roster
from oncofed_server.secure_aggregator import aggregator_for
from oncofed_shared.messages import Trial
from oncofed_shared.plan import parse
told = json.loads(sys.stdin.read())
plan = parse(told["plan"])
roster = Roster(trainers=tuple(told["keys"]), evaluators=tuple(told["keys"]),
                identities={n: bytes.fromhex(k) for n, k in told["keys"].items()})
key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(told["key"]))
def make(*, state, names):
    return aggregator_for(plan, roster, Trial(seed=3), session="run", key=key, names=names)
run = JournaledRun(plan, make, Journal(Path(told["journal"]), study="s"), clock=lambda: 0.0)
run.recover()
print(run.aggregator.state.phase.value, {n: a.tobytes().hex()[:64] for n, a in sorted(run.aggregator.parameters().items())})
"""


class Study:
    """A private consortium and its journal."""

    def __init__(self, world: Any) -> None:
        self.world, self.plan = world, world.plan

    def aggregator(self, *, state: State | None, names: Callable[[], str]) -> Aggregator:
        assert state is None
        members = tuple(self.plan.privacy.patients)
        roster = Roster(trainers=members, evaluators=members, identities=self.world.identities())
        key = identity_of(self.world.folder / "aggregator")
        return aggregator_for(self.plan, roster, TRIAL, session="run", key=key, names=names)

    def open(self, path: Path) -> JournaledRun:
        return JournaledRun(self.plan, self.aggregator, Journal(path, study="s"), clock=lambda: 0.0, most_events=1)

    def answer(self, request: Numbered) -> Any:
        return from_bytes(to_bytes(self.world.sites[request.site].handle(from_bytes(request.body))))

    def drive(self, run: JournaledRun, stop: int | None = None) -> list[Numbered]:
        queue = deque(run.recover())
        sent = list(queue)
        replies = 0
        while queue and not run.finished and (stop is None or replies < stop):
            new = run.receive(self.answer(queue.popleft()), Cost()) or []
            sent += new
            queue.extend(new)
            replies += 1
        return sent


def _cut(path: Path, to: Path, events: int) -> Path:
    with sqlite3.connect(path) as source, sqlite3.connect(to) as target:
        source.backup(target)
        target.execute("DELETE FROM events WHERE id > ?", (events,))
        target.execute("DELETE FROM requests WHERE event > ?", (events,))
        newest = target.execute("SELECT coalesce(max(number), 0) FROM requests").fetchone()[0]
        target.execute("UPDATE sqlite_sequence SET seq = ? WHERE name = 'requests'", (newest,))
        target.execute("UPDATE sqlite_sequence SET seq = ? WHERE name = 'events'", (events,))
    source.close()
    target.close()
    return to


def _end(run: JournaledRun) -> Any:
    state = run.aggregator.state
    assert state.released is not None
    return {n: a.tobytes() for n, a in run.aggregator.parameters().items()}, state.released.tobytes(), state.present


def test_after_every_prefix_of_events_the_same_requests_model_and_scores(
    new_world: Callable[..., Any], tmp_path: Path
) -> None:
    study = Study(new_world(training__rounds=2))
    path = tmp_path / "journal.sqlite"
    whole = study.open(path)
    sent = study.drive(whole)
    assert whole.aggregator.state.phase is Phase.DONE
    events, replies = whole.journal.size[0], [e for e in whole.journal.entries() if e.kind == "received"]
    assert events > 40
    for prefix in range(0, events + 1, 3):
        run = study.open(_cut(path, tmp_path / f"{prefix}.sqlite", prefix))
        # A journal that has not begun draws other names of formations; all others continue.
        if prefix:
            again = run.recover()
            for entry in replies:
                if entry.number > prefix:
                    again += run.receive(from_bytes(entry.reply), entry.cost) or []
            assert set(again) <= set(sent)
            assert _end(run) == _end(whole)
        run.journal.close()
    whole.journal.close()


def test_killed_in_every_phase_with_real_sites_nothing_is_lost_and_charged_is_released(
    new_world: Callable[..., Any], tmp_path: Path
) -> None:
    study = Study(new_world(training__rounds=2))
    path = tmp_path / "journal.sqlite"
    for stop in (3, 6, 5, 9, 2, 7, None):
        run = study.open(path)
        study.drive(run, stop)
        if stop is not None:
            run.journal.close()
    state = run.aggregator.state
    assert state.phase is Phase.DONE
    # No sum was lost to the kills: the sites gave the stored replies again.
    assert (state.lost, state.excluded, len(state.losses)) == (0, {}, 2)
    run.journal.close()


def test_a_process_with_another_order_of_sets_gives_the_same_requests(
    new_world: Callable[..., Any], tmp_path: Path
) -> None:
    study = Study(new_world(training__rounds=1))
    path = tmp_path / "journal.sqlite"
    run = study.open(path)
    study.drive(run)
    expected = {n: a.tobytes().hex()[:64] for n, a in sorted(run.aggregator.parameters().items())}
    run.journal.close()
    told = {
        "plan": json.loads(study.plan.canonical),
        "keys": {n: k.hex() for n, k in study.world.identities().items()},
        "key": identity_of(study.world.folder / "aggregator").private_bytes_raw().hex(),
        "journal": str(path),
    }
    for seed in ("1", "2"):
        ended = subprocess.run(
            [sys.executable, "-c", ELSEWHERE],
            input=json.dumps(told),
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert ended.stdout.strip() == f"done {expected}", ended.stderr
