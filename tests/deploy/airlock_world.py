"""An aggregator and the doors of real sites, with every byte between them sealed: no process, no socket."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from airlock_parts import NOW, Papers

from oncofed_client.approvals import approve
from oncofed_client.door import Door, open_door
from oncofed_client.identity import identity_of
from oncofed_server.aggregator import Aggregator
from oncofed_server.run_state import Outgoing, Received, Roster, Start
from oncofed_server.secure_aggregator import SecureAggregator
from oncofed_shared.messages import Head, Message, Reply, from_bytes, to_bytes
from oncofed_shared.plan import ConsortiumPrivacy, Plan
from oncofed_shared.sealed import open_reply, open_request, seal_request
from oncofed_shared.sights import SightBook

SITES = ("site-1", "site-2", "site-3")


@dataclass(kw_only=True)
class Lines:
    """A site's log."""

    lines: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def __call__(self, event: str, fields: Any) -> None:
        self.lines.append((event, dict(fields)))

    def codes(self) -> list[str]:
        return [f["code"] for e, f in self.lines if e in {"refused", "unbelieved"}]


@dataclass(kw_only=True)
class World:
    """Sites that have approved one study.

    Attributes:
        numbers: last request number of each site.
        wire: everything that crossed, as (direction, site, bytes).
    """

    papers: Papers
    states: dict[str, Path]
    doors: dict[str, Door]
    logs: dict[str, Lines]
    now: list[float]
    numbers: dict[str, int] = field(default_factory=dict)
    wire: list[tuple[str, str, bytes]] = field(default_factory=list)
    epoch: int = 1

    @classmethod
    def make(
        cls,
        folder: Path,
        plan: Plan,
        hospitals: Path,
        *,
        sites: tuple[str, ...] = SITES,
        approved: bool = True,
        **changes: Any,
    ) -> World:
        states = {s: folder / s for s in sites}
        papers = Papers(plan=plan, identities={s: identity_of(p) for s, p in states.items()}, changes=changes)
        now = [NOW]
        logs = {s: Lines() for s in sites}
        if approved:
            for site, state in states.items():
                approve(state, papers.content, now=NOW, site=site)
        world = cls(papers=papers, states=states, doors={}, logs=logs, now=now)
        for site in sites:
            world.open(site, hospitals)
        return world

    def open(self, site: str, hospitals: Path) -> None:
        """Start a site's door, or start it again."""
        if site in self.doors:
            self.doors.pop(site).close()
        self.doors[site] = open_door(
            hospitals / site, self.states[site], clock=lambda: self.now[0], log=self.logs[site], synced=False
        )

    def close(self) -> None:
        for door in self.doors.values():
            door.close()

    def seal(self, site: str, message: Message | bytes, /, **changes: Any) -> bytes:
        """A request with the site's next number."""
        number = changes.pop("number", None)
        if number is None:
            number = self.numbers[site] = self.numbers.get(site, 0) + 1
        usual = {
            "study_id": self.papers.study.id,
            "site": site,
            "number": number,
            "roster": self.papers.roster(self.epoch),
            "key": self.papers.step_key,
        }
        body = message if isinstance(message, bytes) else to_bytes(message)
        return seal_request(body, **(usual | changes))

    def hand(self, site: str, content: bytes, *, to: str = "") -> bytes:
        """Let a door answer."""
        self.wire.append(("down", site, content))
        reply = self.doors[to or site].handle(content)
        self.wire.append(("up", site, reply))
        return reply

    def opened(self, site: str, content: bytes, reply: bytes) -> Any:
        """A reply's message, and its sight."""
        found = open_reply(
            reply,
            request_digest=open_request(content).digest,
            study_id=self.papers.study.id,
            site=site,
            identity=self.papers.publics[site],
        )
        return from_bytes(found.body), found.sight

    def ask(self, site: str, message: Message | bytes, **changes: Any) -> Any:
        """A sealed request's answer, opened."""
        content = self.seal(site, message, **changes)
        return self.opened(site, content, self.hand(site, content))[0]


Twist = Callable[[Outgoing], Message]


def run(
    world: World,
    aggregator: Aggregator,
    *,
    twist: Twist = lambda outgoing: outgoing.request,
    until: Callable[[Aggregator], bool] = lambda aggregator: aggregator.finished,
    after: Callable[[str, bytes, bytes], None] = lambda site, content, reply: None,
) -> dict[str, list[Reply]]:
    """Train as a deployed aggregator does: sealed, with the others' sights.

    Args:
        twist: what a hostile aggregator sends in place of a request.
        after: sees each exchange.
    """
    book = SightBook(world.papers.study)
    answers: dict[str, list[Reply]] = {s: [] for s in world.doors}
    queue = deque(aggregator.step(Start(now=0.0)))
    while queue and not until(aggregator):
        outgoing = queue.popleft()
        site = outgoing.site
        content = world.seal(site, twist(outgoing), sights=book.for_site(site))
        sealed = world.hand(site, content)
        reply, sight = world.opened(site, content, sealed)
        after(site, content, sealed)
        book.take(sight, site=site)
        answers[site].append(reply)
        queue.extend(aggregator.step(Received(now=0.0, reply=reply)))
    return answers


def aggregator_of(world: World) -> Aggregator:
    study = world.papers.study
    roster = Roster(trainers=study.trainers, evaluators=study.trainers, identities=world.papers.publics)
    if isinstance(study.plan.privacy, ConsortiumPrivacy):
        return SecureAggregator(study.plan, roster, study.trial, session=study.session, key=world.papers.step_key)
    return Aggregator(study.plan, roster, study.trial, session=study.session)


def head_of(world: World, **changes: Any) -> Head:
    """The head of a message of the world's study."""
    study = world.papers.study
    usual = {"session": study.session, "step": 1, "attempt": 0, "plan_hash": study.plan.hash, "trial": study.trial}
    return Head(**(usual | changes))


def private_changes(noise: str) -> dict[str, Any]:
    """What makes the small plan a private one over the small hospitals."""
    columns = {
        "age": {"kind": "numeric", "unit": "years", "range": [0, 120], "center": 60, "spread": 15},
        "sex": {"kind": "categorical", "categories": ["female", "male"]},
    }
    privacy = {"noise": noise, "epsilon": 5, "delta": 1e-3, "clip_norm": 0.5, "sampling_rate": 0.5}
    task = {
        "kind": "classification",
        "table": "clinical",
        "label": "response",
        "classes": ["non-responder", "responder"],
    }
    return {
        "main_task": "response",
        "tasks": {"response": task},
        "modalities": {"clinical": {"table": "clinical", "scaling": "constants", "columns": columns}},
        "model": {"layers": 0},
        "training": {"rounds": 2, "rate": 0.5, "attempts": 1},
        "evaluation": {"split": {"train": 0.6, "validation": 0.2, "test": 0.2}},
        "privacy": privacy | {"patients": dict.fromkeys(SITES, 20)},
    }
