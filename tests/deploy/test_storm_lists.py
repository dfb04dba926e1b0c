"""Ten thousand lists of faults against the two cores: every run ends, nothing is lost, and charged is at least released.

`ONCOFED_STORM_SEED` and `ONCOFED_STORM_LISTS` ask for other lists, or for more of them.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from airlock_world import private_changes
from storm_disk import Disk, stormy
from storm_lists import Operation, draw, harmless, shorter, weather
from storm_world import Scene, Storm, remembered_signatures

from oncofed_client import contributor
from oncofed_client.door_memory import DoorMemory
from oncofed_client.ledger import Ledger
from oncofed_client.receipts import Receipts
from oncofed_server import flower_exchange
from oncofed_server.journal import Journal
from oncofed_server.run_state import Phase
from oncofed_shared.plan import Plan
from oncofed_simulations.synthetic import write_cohort

SEED = int(os.environ.get("ONCOFED_STORM_SEED", "20261121"))
LISTS = int(os.environ.get("ONCOFED_STORM_LISTS", "10000"))
CHUNKS = 20
SITES = ("site-1", "site-2", "site-3")
SHARES = {"one site": 0.5, "two sites": 0.25, "noise of one site": 0.22, "noise of the consortium": 0.03}
"""Of all lists, by scene: the smaller the scene, the more of them fit into a minute."""


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    """In memory where there is such a file system: each list writes some hundred times, and waits for the disk each time."""
    memory = Path("/dev/shm")  # noqa: S108 - and under a name of its own in it
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None, prefix="storm-") as made:
        yield Path(made)


@pytest.fixture(scope="session")
def scene(folder: Path, make_plan: Callable[..., Plan]) -> Callable[[str], Scene]:
    """Small studies of very small hospitals, each calmly run once."""
    hospitals = folder / "hospitals"
    write_cohort(hospitals, sites=3, patients=36, seed=11, gaps=0.0)
    plain = make_plan()

    @cache
    def made(name: str) -> Scene:
        training = {"rounds": 1, "local_steps": 1, "attempts": 3, "deadline_minutes": 1}
        sites = SITES[: 1 if "one site" in name else 2 if name == "two sites" else 3]
        if "noise" in name:
            changes = private_changes("site" if "one" in name else "consortium")
            changes["training"] = changes["training"] | training
            changes["privacy"]["patients"] = dict.fromkeys(sites, 20)
        else:
            clinical = plain.model_dump(mode="json")["modalities"]["clinical"]
            changes = {
                "modalities": {"clinical": clinical},
                "tasks": {"response": plain.model_dump(mode="json")["tasks"]["response"]},
                "main_task": "response",
                "model__layers": 0,
                "evaluation__reference": {},
                "evaluation__main_reference": None,
                "evaluation__split": {"train": 0.7, "validation": 0, "test": 0.3},
            } | {f"training__{k}": v for k, v in training.items()}
        with stormy(Disk()):
            return Scene.make(folder / name.replace(" ", "-"), make_plan(**changes), hospitals, sites)

    return made


def found_by(scene: Scene, folder: Path, numbers: range, *, seed: int = SEED) -> tuple[Counter[str], str]:
    """Run lists; how they ended, and the first one that broke a promise, made as short as it can be."""
    ends: Counter[str] = Counter()
    disk = Disk()

    def broken(moment: int, operations: list[Operation]) -> str:
        try:
            storm = weather(scene, folder, moment, operations, disk)
        except Exception as error:  # noqa: BLE001 - a core that raises breaks its promise too
            return f"{type(error).__name__}: {error}"
        ends["stuck" if storm.stuck else storm.phase.value] += 1
        return ""

    with stormy(disk), remembered_signatures(), mock.patch.object(flower_exchange, "SILENCE", 0.0):
        for number in numbers:
            moment, operations = draw(seed, number, scene)
            # In every other list what has no answer is sent once more before the deadline, which is a minute here.
            flower_exchange.SILENCE = 120.0 if number % 2 else 20.0
            what = broken(moment, operations)
            if what:
                kind = what.partition(":")[0]
                least = shorter(operations, lambda o, m=moment, k=kind: broken(m, o).startswith(k))  # type: ignore[misc]
                return (
                    ends,
                    f"seed {seed}, list {number}, from moment {moment}: {least}: {broken(moment, least) or what}",
                )
            ends["had to"] += harmless(operations)
    return ends, ""


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_ten_thousand_lists_of_faults(chunk: int, scene: Callable[[str], Scene], folder: Path) -> None:
    for name, share in SHARES.items():
        each = round(LISTS * share / CHUNKS)
        ends, problem = found_by(scene(name), folder / "run", range(chunk * each, (chunk + 1) * each))
        assert problem == "", f"{name}: {problem}"
        assert sum(ends[p.value] for p in (Phase.DONE, Phase.FAILED)) + ends["stuck"] == each or each == 0
        # The lists are no calm ones, and most runs come through.
        assert each < 100 or ends["had to"] <= ends[Phase.DONE.value] < each


# -- would they find anything? ----------------------------------------------------------------------------------------------


def _forgets_to_charge(
    ledger: Any, outbox: Any, *, reply_id: str, request_hash: str, session: str, compute: Any, **_: Any
) -> bytes:
    ledger.head()
    kept = outbox.get(reply_id, request_hash)
    if kept is None:
        outbox.keep(reply_id, request_hash, kept := compute(), session=session)
    return bytes(kept)


def _hands_over_before_it_keeps(
    ledger: Any,
    _: Any,
    *,
    plan_hash: str,
    reply_id: str,
    request_hash: str,
    charge: Any,
    compute: Any,
    now: float,
    **__: Any,
) -> bytes:
    entry = ledger.reserve(plan_hash, reply_id, request_hash, charge, now=now)
    made = compute()
    if ledger.reservation(reply_id).state == "open":
        ledger.commit(entry, hashlib.sha256(made).hexdigest(), now=now)
    return bytes(made)


def _unwritten_numbers() -> Any:
    given = iter(range(1000, 10**6))
    return lambda journal, site, body, event: next(given)


DEFECTS: dict[str, tuple[str, Callable[[], Any]]] = {
    "a site forgets to charge": (
        "noise of one site", lambda: mock.patch.object(contributor, "charged_reply", _forgets_to_charge)),
    "a site hands a reply over before it is kept": (
        "noise of one site", lambda: mock.patch.object(contributor, "charged_reply", _hands_over_before_it_keeps)),
    "a site commits nothing": (
        "noise of one site", lambda: mock.patch.object(Ledger, "commit", return_value=None)),
    "a site writes no receipt": (
        "one site", lambda: mock.patch.object(Receipts, "append", return_value=0)),
    "a site does not store its replies": (
        "noise of one site", lambda: mock.patch.object(DoorMemory, "keep", return_value=None)),
    "a site takes the same number twice": (
        "one site", lambda: mock.patch.object(DoorMemory, "take", return_value=None)),
    "the aggregator sends before it writes the number down": (
        "one site", lambda: mock.patch.object(Journal, "assign", _unwritten_numbers())),
    "the aggregator forgets what has arrived": (
        "two sites", lambda: mock.patch.object(Journal, "append", _forgets_arrivals)),
}  # fmt: skip


def _forgets_arrivals(journal: Journal, _: str, now: float, **__: Any) -> int:
    row = journal._base.execute(
        "INSERT INTO events (kind, now, reply, cost) VALUES (?, ?, ?, ?)", ("tick", now, b"", "{}")
    )
    return int(row.lastrowid or 0)


@pytest.mark.parametrize("name", DEFECTS)
def test_a_core_with_a_defect_is_found(name: str, scene: Callable[[str], Scene], folder: Path) -> None:
    which, defect = DEFECTS[name]
    sound = scene(which)
    with defect():
        _, problem = found_by(sound, folder / "defect", range(400), seed=7)
    assert problem, "nothing was found"


def test_the_same_seed_gives_the_same_lists_and_a_failing_one_is_shortened(
    scene: Callable[[str], Scene],
) -> None:
    one = scene("one site")
    assert draw(3, 5, one) == draw(3, 5, one) != draw(3, 6, one)
    long: list[Operation] = [("deliver", 0), ("withdraw", "site-1"), ("deliver", 1), ("hold", 2)]
    assert shorter(long, lambda o: ("withdraw", "site-1") in o) == [("withdraw", "site-1")]


def test_a_disk_that_is_full_for_good_ends_in_stuck_and_says_why(scene: Callable[[str], Scene], folder: Path) -> None:
    disk = Disk()
    with stormy(disk):
        storm = weather(scene("one site"), folder / "full", 2, [("fill hub", 0, 10**6)], disk)
    assert isinstance(storm, Storm)
    assert "free some space" in storm.stuck
    shutil.rmtree(folder / "full")
