"""Lists of faults: drawn from a seed, run against both cores, judged, and made shorter when they find something.

An operation is a tuple of a word and what belongs to it. Those of EXCHANGES use up one exchange; the others happen before it.

    deliver i             the i-th request under way is answered
    hold i                its answer comes some seconds later, behind others
    late i                its answer comes when the deadline is over: a slow site
    lose request i, lose reply i, twice i, drop link i
    old i                 an earlier request comes once more, from somebody who has kept it
    kill site i n b       the site dies at its n-th step from here, before or after it is done; n = 0: as soon as it has answered
    kill hub n b          so does the aggregator
    fill site s k n       the site's disk takes k writes more, then refuses n
    fill hub k n
    clock s seconds       the site's clock is off by so much
    newer s, same s       the site runs the next version of the protocol, or this one again
    withdraw s, revoke s
    copy s, restore s     the site's state is copied; the copy is brought back, if anybody has heard of the site since
"""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from storm_disk import Disk
from storm_world import HUB, MOST_TURNS, Scene, Storm

from oncofed_client.identity import public_half
from oncofed_client.ledger import LEDGER_FILE, verify
from oncofed_client.receipts import RECEIPTS_FILE, verify_receipts
from oncofed_server.run_state import Phase

Operation = tuple[Any, ...]
EXCHANGES = frozenset(
    {"deliver", "hold", "late", "lose request", "lose reply", "twice", "drop link", "old", "kill site"}
)
MILD_WRITES, MILD_SECONDS = 5, 2.4
"""How many refused writes, and how wrong a clock, a run survives in any case."""
STEPS = 45
"""Storage steps among which a kill is drawn; an exchange of a private plan has about so many."""
EXPECTED = {
    "clock": ("clock", "expired", "stale-roster", "no answer before the deadline"),
    "withdraw": ("withdrawn",),
    "revoke": ("revoked", "other-model", "roster"),
    "newer": ("no answer before the deadline",),
    "restore": ("rolled-back", "other-model", "unknown-session", "replayed", "silent", "unapproved-plan", "reply-is-over",
                "unknown-formation", "set-up", "step", "no answer before the deadline", "egress", "formation"),
    "late": ("no answer before the deadline",),
    "lose request": ("no answer before the deadline",),
    "lose reply": ("no answer before the deadline",),
    "fill site": ("no answer before the deadline",),
    "fill hub": ("cannot be written",),
}  # fmt: skip
"""Why a run may end without a model, by what has happened. Whatever else happens, it ends with one."""


ALWAYS = (
    *("deliver", "deliver", "deliver", "hold", "twice", "old", "drop link", "kill site", "kill site", "kill site"),
    *("kill hub", "kill hub", "fill site", "fill hub", "clock", "lose request", "lose reply", "late"),
)
WILD = ("clock", "newer", "same", "withdraw", "revoke", "copy", "restore", "fill site", "fill hub")
"""What a run need not survive; it ends then, and says why."""
SILENT = frozenset({"late", "lose request", "lose reply"})
FAR = (60.0, -60.0, 3600.0, -3600.0, 86400.0 * 40, -86400.0 * 2)


def _one(chance: random.Random, sites: list[str], *, mild: bool) -> Operation:
    word, index, site = chance.choice(ALWAYS if mild else ALWAYS + WILD), chance.randrange(4), chance.choice(sites)
    rest: dict[str, tuple[Any, ...]] = {
        "kill site": (index, chance.randrange(STEPS), chance.random() < 0.5),
        "kill hub": (chance.randrange(1, 12), chance.random() < 0.5),
        "fill site": (site, chance.randrange(12), chance.randint(1, MILD_WRITES if mild else 300)),
        "fill hub": (chance.randrange(6), chance.randint(1, MILD_WRITES if mild else 40)),
        "clock": (site, chance.uniform(-MILD_SECONDS, MILD_SECONDS) if mild else chance.choice(FAR)),
    }
    named = dict.fromkeys(("newer", "same", "withdraw", "revoke", "copy", "restore"), (site,))
    return word, *(rest | named).get(word, (index,))


def draw(seed: int, number: int, scene: Scene) -> tuple[int, list[Operation]]:
    """A moment of the calm run to begin at, and a list."""
    chance = random.Random(f"{seed}|{number}")
    sites = list(scene.wards)
    # Rather late than early: a list costs as many exchanges as are left.
    moment = max(chance.randrange(len(scene.moments)), chance.randrange(len(scene.moments)))
    # So many silences a site may have before the run goes on without it.
    mild, silences = chance.random() < 0.6, scene.plan.training.attempts - 1
    found: list[Operation] = []
    for _ in range(chance.randint(1, 8)):
        made = _one(chance, sites, mild=mild)
        silences -= made[0] in SILENT
        if mild and made[0] in SILENT and silences < 0:
            continue
        found += [made]
        if made[0] == "copy":
            found += [("deliver", chance.randrange(4)) for _ in range(chance.randint(1, 4))] + [("restore", made[1])]
    return moment, found


def _exchange(storm: Storm, operation: Operation) -> None:
    """One request under way, and what becomes of it."""
    wire, (word, index) = storm.wire, operation[:2]
    if word == "old":
        asked = [(s, c) for s, kept in sorted(storm.known.asked.items()) for c in kept]
        site, content = asked[index % len(asked)]
        # Whoever has kept it hears nothing that was not said before.
        storm.answer(site, content)
        return
    site, content, ticket = wire.requests.pop(index % len(wire.requests))
    if word == "lose request":
        return
    if word == "drop link":
        wire.come_back(site, ticket, None)
        return
    if word == "kill site" and operation[2]:
        storm.disk.kills[site] = (operation[2], operation[3])
    reply = storm.answer(site, content)
    if word == "kill site":
        storm.end_site(site)
        storm.start_site(site)
    if word == "twice":
        again = storm.answer(site, content)
        wire.come_back(site, ticket, again)
    if word in {"hold", "late"}:
        wait = 60 * storm.scene.plan.training.deadline_minutes + 1 if word == "late" else 5.0
        storm.late.append((storm.now + wait, site, ticket, reply))
    elif word != "lose reply":
        wire.come_back(site, ticket, reply)


def _happen(storm: Storm, operation: Operation) -> None:
    """What is no exchange."""
    word, *given = operation
    what: dict[str, Callable[..., None]] = {
        "kill hub": lambda steps, before: storm.disk.kills.update({HUB: (steps, before)}),
        "fill site": lambda site, room, refused: storm.disk.full.update({site: (room, refused)}),
        "fill hub": lambda room, refused: storm.disk.full.update({HUB: (room, refused)}),
        "clock": lambda site, seconds: storm.skew.update({site: seconds}),
        "newer": storm.newer.add,
        "same": storm.newer.discard,
        "withdraw": storm.withdraw,
        "revoke": storm.revoke,
        "copy": storm.copy,
        "restore": storm.restore,
    }
    what[word](*given)


def weather(scene: Scene, folder: Path, moment: int, operations: list[Operation], disk: Disk) -> Storm:
    """Run a list to its end, and judge it.

    Raises:
        AssertionError: something that must always hold did not.
    """
    shutil.rmtree(folder, ignore_errors=True)
    disk.forget()
    storm = Storm.begin(scene, folder, moment=moment, disk=disk)
    left = list(reversed(operations))
    try:
        for _ in range(MOST_TURNS):
            if storm.over:
                break
            while left and left[-1][0] not in EXCHANGES:
                _happen(storm, left.pop())

            def deliver() -> None:
                if left:
                    _exchange(storm, left.pop())
                else:
                    storm.deliver()

            storm.turn(deliver)
        judge(storm, operations)
    finally:
        storm.close()
    return storm


def judge(storm: Storm, operations: list[Operation]) -> None:
    """What must hold at the end of every list."""
    assert storm.over, f"the run does not end: it waits for {sorted(storm.run.pending)}"
    happened = {o[0] for o in operations}
    for site in storm.scene.wards:
        private, public = storm.scene.private, public_half(storm.state(site))
        if private and (storm.state(site) / LEDGER_FILE).exists():
            wrong = verify(storm.state(site) / LEDGER_FILE, public)
            # Stopped before its first charge, a site may have a ledger without its head; the next opening mends that.
            young = not storm.known.charged[site] and all(w.startswith("ledger.head: is missing") for w in wrong)
            assert wrong == [] or young, wrong
            assert len(storm.committed(site)) >= len(storm.known.charged[site]) or site in storm.restored
        if happened & {"kill site", "fill site", "restore"}:
            path = storm.state(site) / RECEIPTS_FILE
            assert [
                p for p in verify_receipts(path, public, ledger=None) if "charge" not in p and "commit" not in p
            ] == []
    if storm.phase is Phase.DONE and not storm.stuck:
        assert storm.scene.private or storm.model == storm.scene.model, "another model than the calm run's"
        return
    assert storm.why, "it ended without a model and does not say why"
    reasons = [r for word in sorted(happened & EXPECTED.keys()) for r in EXPECTED[word] if not harmless(operations)]
    assert any(r in storm.why for r in reasons), f"nothing that happened explains: {storm.why}"


def harmless(operations: list[Operation]) -> bool:
    """Whether a run must come to its model in spite of a list."""
    silences = 0
    # A disk that is full twice for a moment may be full for too long.
    full: Counter[str] = Counter()
    for operation in operations:
        if operation[0] in {"fill site", "fill hub"}:
            full[str(operation[1]) if operation[0] == "fill site" else "hub"] += int(operation[-1])
    if max(full.values(), default=0) > MILD_WRITES:
        return False
    for operation in operations:
        match operation:
            case (("newer" | "withdraw" | "revoke" | "restore"), _):
                return False
            case "clock", _, seconds if abs(seconds) > MILD_SECONDS:
                return False
            case word, _ if word in SILENT:
                silences += 1
    return silences <= 2


def shorter(operations: list[Operation], fails: Callable[[list[Operation]], bool]) -> list[Operation]:
    """The same list without whatever it does not need to fail."""
    found, at = list(operations), 0
    while at < len(found):
        less = found[:at] + found[at + 1 :]
        if fails(less):
            found = less
        else:
            at += 1
    return found
