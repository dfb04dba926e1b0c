"""Coverage-guided fuzzing of the two cores behind their seals; run as a program, because it instruments what it imports.

    python fuzz_airlock.py site|aggregator HOSPITALS CORPUS [options of libFuzzer]
    python fuzz_airlock.py seeds HOSPITALS CORPUS

The first byte of an input says what the rest is put in place of: everything (what a stranger may send), or the message, the
roster
epoch or a sight under a good signature (what a hostile aggregator or site may send). Whatever it is, a site's door returns
bytes, raises
nothing, and gives strangers one answer. An aggregator gets a message with its site's signature or a RemoteProtocolError, and
its
step takes the message or leaves it.
"""

from __future__ import annotations

import copy
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

with atheris.instrument_imports(
    include=["oncofed_client", "oncofed_shared", "oncofed_server"], enable_loader_override=False
):
    import airlock_world
    from airlock_parts import NOW

    from conftest import STUDY
    from oncofed_server.aggregator import Aggregator
    from oncofed_server.run_state import Phase, Received
    from oncofed_shared.errors import OncofedError, RemoteProtocolError
    from oncofed_shared.messages import from_bytes
    from oncofed_shared.plan import parse
    from oncofed_shared.sealed import REFUSED, open_reply, open_request, seal_reply, seal_request
    from oncofed_shared.sights import SightBook

SITE = "site-1"
WAYS = 4
Feed = Callable[[bytes], None]


def world_of(folder: Path, hospitals: Path) -> airlock_world.World:
    """Three sites and a small study."""
    content = copy.deepcopy(STUDY)
    content["model"] = {"layers": 0}
    content["training"]["rounds"] = 2
    return airlock_world.World.make(folder, parse(content), hospitals)


def in_the_middle(world: airlock_world.World) -> tuple[Aggregator, SightBook, bytes]:
    """An aggregator that waits for updates of its first round, the sights so far, and the digest of a request that is open."""
    aggregator = airlock_world.aggregator_of(world)
    book = SightBook(world.papers.study)
    open_requests = []

    def after(site: str, content: bytes, reply: bytes) -> None:
        book.take(world.opened(site, content, reply)[1], site=site)
        open_requests.append(open_request(content).digest)

    airlock_world.run(world, aggregator, after=after, until=lambda a: a.state.phase is Phase.TRAIN)
    return aggregator, book, open_requests[-1]


def site_door(world: airlock_world.World) -> Feed:
    """Feed a site's door."""
    _, book, _ = in_the_middle(world)
    door, papers = world.doors[SITE], world.papers
    for connection in (door._memory._connection, door._receipts._chain._connection):
        # A hundred thousand waits for the disk would measure the disk.
        connection.execute("PRAGMA synchronous = OFF")
    number = world.numbers[SITE] + 1000
    good = papers.roster()

    def feed(content: bytes) -> None:
        nonlocal number
        number += 1
        way, rest = content[0] % WAYS if content else 0, content[1:]
        if way == 0:
            answer = door.handle(rest)
            assert answer == REFUSED or opened(rest, answer), "strangers get one answer"
            return
        body = b"\x90" if way > 1 else rest
        roster, sights = rest if way == 2 else good, (rest,) if way == 3 else book.for_site(SITE)
        sealed = seal_request(
            body, study_id=papers.study.id, site=SITE, number=number, roster=roster, sights=sights, key=papers.step_key
        )
        answer = door.handle(sealed)
        assert answer == REFUSED or opened(sealed, answer)
        assert "internal" not in world.logs[SITE].codes(), world.logs[SITE].lines[-2:]
        world.logs[SITE].lines.clear()

    def opened(content: bytes, answer: bytes) -> bool:
        return isinstance(world.opened(SITE, content, answer), tuple)

    return feed


def aggregator_door(world: airlock_world.World) -> Feed:
    """Feed an aggregator that waits for a site's update."""
    aggregator, _, digest = in_the_middle(world)
    papers, waiting = world.papers, aggregator.state
    place = {"request_digest": digest, "study_id": papers.study.id, "site": SITE}

    def feed(content: bytes) -> None:
        way, rest = content[0] % WAYS if content else 0, content[1:]
        sealed = rest
        if way:
            body, sight = (b"\x90", rest) if way == 3 else (rest, b"")
            sealed = seal_reply(body, sight=sight, key=papers.identities[SITE], **place)
        try:
            reply = open_reply(sealed, identity=papers.publics[SITE], **place)
            SightBook(papers.study).take(reply.sight, site=SITE)
            message = from_bytes(reply.body)
        except RemoteProtocolError:
            return
        aggregator.state = waiting
        try:
            aggregator.step(Received(now=NOW, reply=message))  # type: ignore[arg-type] # a hostile site sends what it likes
        except OncofedError:
            return

    return feed


def write_seeds(world: airlock_world.World, corpus: Path) -> None:
    """What honest ones send: whole, and each part that the doors put under a good signature."""
    airlock_world.run(world, airlock_world.aggregator_of(world))
    for folder in ("site", "aggregator"):
        (corpus / folder).mkdir(parents=True)
    for i, (direction, site, content) in enumerate(world.wire):
        if site != SITE:
            continue
        if direction == "down":
            request = open_request(content)
            parts = {0: content, 1: request.body, 2: request.roster, 3: b"".join(request.sights[:1])}
            asked = content
        else:
            reply = open_reply(
                content,
                request_digest=open_request(asked).digest,
                study_id=world.papers.study.id,
                site=site,
                identity=world.papers.publics[site],
            )
            parts = {0: content, 1: reply.body, 3: reply.sight}
        for way, part in parts.items():
            (corpus / ("site" if direction == "down" else "aggregator") / f"{i}-{way}").write_bytes(bytes([way]) + part)


if __name__ == "__main__":
    kind, hospitals, corpus, *options = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        world = world_of(Path(folder), Path(hospitals))
        if kind == "seeds":
            write_seeds(world, Path(corpus))
        else:
            feed = {"site": site_door, "aggregator": aggregator_door}[kind](world)
            atheris.Setup([sys.argv[0], corpus, *options], feed)
            atheris.Fuzz()
