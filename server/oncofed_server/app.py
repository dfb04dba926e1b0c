"""An `Aggregator` on Flower's grid: requests are pushed to nodes, replies pulled; polling and deadlines are our own.

Flower delivers bytes and is trusted with nothing else. What comes back from a node must be a reply of the site that was
asked there; anything else is reported and then counts as silence, which the aggregator's deadline deals with.
"""

from __future__ import annotations

import time
import typing
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from oncofed_server.aggregator import Aggregator, Cost, Outgoing, Received, Start, Tick
from oncofed_shared.errors import RemoteProtocolError
from oncofed_shared.flower_records import NAME, STEP, pack, seconds_of, unpack
from oncofed_shared.messages import Reply, Request, from_bytes, to_bytes

__all__ = ["Exchange", "ask_names"]

# Flower forgets a message after this time; the aggregator's own deadlines are what counts.
LIFETIME = 30 * 86_400.0


@dataclass(frozen=True, kw_only=True)
class _Sent:
    """A request under way."""

    site: str
    size: int
    since: float


class Exchange:
    """One run over a grid. Call `advance` until it is `finished`; several can take turns on one grid.

    Args:
        nodes: Flower's node for each site of the aggregator's roster.
        clock: seconds; for the aggregator's deadlines.
        after_step: called after every reply, for progress, snapshots and interruption.
        on_error: told what came back from a site in place of a reply.
        at_once: most requests under way at a time; the rest waits here, not in Flower's store.
    """

    def __init__(
        self,
        aggregator: Aggregator,
        grid: Grid,
        nodes: Mapping[str, int],
        *,
        clock: Callable[[], float] = time.monotonic,
        after_step: Callable[[Aggregator], None] = lambda aggregator: None,
        on_error: Callable[[str, str], None] = lambda site, what: None,
        at_once: int = 256,
    ) -> None:
        self.aggregator = aggregator
        self._grid, self._nodes, self._clock = grid, nodes, clock
        self._after_step, self._on_error, self._at_once = after_step, on_error, at_once
        self._waiting: deque[Outgoing] = deque()
        self._sent: dict[str, _Sent] = {}
        self._started = False
        self._packed: tuple[Request | None, RecordDict, int] = (None, RecordDict(), 0)

    @property
    def finished(self) -> bool:
        """Whether the run has ended."""
        return self.aggregator.finished

    def advance(self) -> bool:
        """Take what has arrived, send what follows from it.

        Returns:
            Whether anything was sent or received; if not, a caller may rest for a moment.
        """
        if not self._started:
            self._started = True
            self._waiting.extend(self.aggregator.step(Start(now=self._clock())))
        received = self._receive()
        self._waiting.extend(self.aggregator.step(Tick(now=self._clock())))
        return self._send() or received

    def _send(self) -> bool:
        due: list[Outgoing] = []
        while self._waiting and len(self._sent) + len(due) < self._at_once:
            due.append(self._waiting.popleft())
        for outgoing in due:
            record, size = self._pack(outgoing.request)
            node = self._nodes.get(outgoing.site)
            message = [] if node is None else [Message(record, node, STEP, ttl=LIFETIME)]
            accepted = list(self._grid.push_messages(message))
            if not accepted:
                self._on_error(outgoing.site, "its node is not there")
                continue
            self._sent[accepted[0]] = _Sent(site=outgoing.site, size=size, since=time.perf_counter())
        return bool(due)

    def _pack(self, request: Request) -> tuple[RecordDict, int]:
        # Most requests of a step are one object for all sites, so it is serialised once.
        if self._packed[0] is not request:
            content = to_bytes(request)
            self._packed = (request, pack(content), len(content))
        return self._packed[1:]

    def _receive(self) -> bool:
        if not self._sent:
            return False
        replies = list(self._grid.pull_messages(list(self._sent)))
        for message in replies:
            sent = self._sent.pop(message.metadata.reply_to_message_id, None)
            if sent is None:
                continue
            try:
                event = self._event(message, sent)
            except RemoteProtocolError as error:
                self._on_error(sent.site, str(error))
                continue
            self._waiting.extend(self.aggregator.step(event))
            self._after_step(self.aggregator)
        return bool(replies)

    def _event(self, message: Message, sent: _Sent) -> Received:
        if message.has_error():
            raise RemoteProtocolError(message.error.reason or f"Flower's error {message.error.code}")
        content = unpack(message.content)
        reply = from_bytes(content)
        if not isinstance(reply, typing.get_args(Reply)):
            raise RemoteProtocolError("answered with a request")
        if reply.site != sent.site:
            raise RemoteProtocolError("answered in another site's name")
        seconds = min(seconds_of(message.content), time.perf_counter() - sent.since)
        cost = Cost(bytes_up=len(content), bytes_down=sent.size, seconds=seconds)
        return Received(now=self._clock(), reply=typing.cast("Reply", reply), cost=cost)


def ask_names(grid: Grid, count: int, *, patience: float, pause: float = 0.05) -> dict[str, int]:
    """Wait for nodes and ask each what it is called.

    Args:
        count: how many nodes there must be.
        patience: seconds in which all must have answered.

    Raises:
        RemoteProtocolError: too few nodes in that time, two of one name, or one that answers with an error.
    """
    end = time.monotonic() + patience
    nodes: list[int] = []
    while len(nodes) < count:
        _rest(end, pause, f"{len(nodes)} of {count} nodes are there")
        nodes = list(grid.get_node_ids())
    asked: dict[str, int] = {}
    for node in nodes:
        for identity in grid.push_messages([Message(pack(b""), node, NAME, ttl=LIFETIME)]):
            asked[identity] = node
    names: dict[str, int] = {}
    while asked:
        arrived: Iterable[Message] = grid.pull_messages(list(asked))
        for message in arrived:
            node = asked.pop(message.metadata.reply_to_message_id)
            if message.has_error():
                raise RemoteProtocolError(f"a node cannot say its name: {message.error.reason}")
            name = unpack(message.content).decode(errors="replace")
            if name in names:
                raise RemoteProtocolError(f"two nodes are called {name}")
            names[name] = node
        if asked:
            _rest(end, pause, f"{len(asked)} of {len(nodes)} nodes have not said their name")
    return names


def _rest(end: float, pause: float, what: str) -> None:
    if time.monotonic() > end:
        raise RemoteProtocolError(f"{what}, and the time for that is over")
    time.sleep(pause)
