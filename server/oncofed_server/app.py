"""An `Aggregator` on Flower's grid: requests are pushed to nodes, replies pulled; polling and deadlines are our own.

Flower delivers bytes and is trusted with nothing else. What comes back from a node must be a reply of the site that was
asked there; anything else is reported and then counts as silence, which the aggregator's deadline deals with.
"""

from __future__ import annotations

import time
import typing
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from oncofed_server.aggregator import Aggregator
from oncofed_server.rounds import Cost
from oncofed_server.run_state import Outgoing, Received, Start, Tick
from oncofed_shared.errors import RemoteProtocolError
from oncofed_shared.flower_records import NAME, STEP, pack, seconds_of, unpack
from oncofed_shared.messages import ErrandReply, Reply, Request, from_bytes, to_bytes

__all__ = ["Arrived", "Courier", "Exchange", "ask_names", "reply_of"]

# Flower forgets a message after this time; the aggregator's own deadlines are what counts.
LIFETIME = 30 * 86_400.0


@dataclass(frozen=True, kw_only=True)
class Arrived:
    """What came back for a message.

    Attributes:
        site: who was asked.
        ticket: what `Courier.send` was given.
        content: the answer's bytes; None where there is an error in their place.
        error: what Flower or the node's app says.
        seconds: how long the site says that it worked, at most the time since it was asked.
    """

    site: str
    ticket: Any
    content: bytes | None
    error: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class _Sent:
    """A message under way."""

    site: str
    ticket: Any
    since: float


class Courier:
    """Takes bytes to sites' nodes over a grid and brings back what they answer. It understands neither.

    Args:
        nodes: Flower's node for each site; may change while messages are under way.
        sent: told to which site a message has been taken.
    """

    def __init__(
        self, grid: Grid, nodes: Mapping[str, int], *, sent: Callable[[str], None] = lambda site: None
    ) -> None:
        self._grid, self.nodes, self._told = grid, nodes, sent
        self._sent: dict[str, _Sent] = {}

    @property
    def under_way(self) -> int:
        """Messages without an answer."""
        return len(self._sent)

    def send(self, site: str, record: RecordDict, ticket: Any) -> bool:
        """Send a packed message; False if the site's node is not there.

        Args:
            ticket: given back with the answer.
        """
        node = self.nodes.get(site)
        message = [] if node is None else [Message(record, node, STEP, ttl=LIFETIME)]
        accepted = [identity for identity in self._grid.push_messages(message) if identity]
        if accepted:
            self._sent[accepted[0]] = _Sent(site=site, ticket=ticket, since=time.perf_counter())
            self._told(site)
        return bool(accepted)

    def fetch(self) -> Iterator[Arrived]:
        """What has arrived since the last time, each message once."""
        replies = list(self._grid.pull_messages(list(self._sent))) if self._sent else []
        for message in replies:
            sent = self._sent.pop(message.metadata.reply_to_message_id, None)
            if sent is not None:
                yield _arrived(message, sent)


def _arrived(message: Message, sent: _Sent) -> Arrived:
    content, error, seconds = None, "", 0.0
    if message.has_error():
        error = message.error.reason or f"Flower's error {message.error.code}"
    else:
        try:
            content = unpack(message.content)
            seconds = min(seconds_of(message.content), time.perf_counter() - sent.since)
        except RemoteProtocolError as problem:
            error = str(problem)
    return Arrived(site=sent.site, ticket=sent.ticket, content=content, error=error, seconds=seconds)


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
        self._courier, self._clock = Courier(grid, nodes), clock
        self._after_step, self._on_error, self._at_once = after_step, on_error, at_once
        self._waiting: deque[Outgoing] = deque()
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
        while self._waiting and self._courier.under_way + len(due) < self._at_once:
            due.append(self._waiting.popleft())
        for outgoing in due:
            record, size = self._pack(outgoing.request)
            if not self._courier.send(outgoing.site, record, size):
                self._on_error(outgoing.site, "its node is not there")
        return bool(due)

    def _pack(self, request: Request) -> tuple[RecordDict, int]:
        # Most requests of a step are one object for all sites, so it is serialised once.
        if self._packed[0] is not request:
            content = to_bytes(request)
            self._packed = (request, pack(content), len(content))
        return self._packed[1:]

    def _receive(self) -> bool:
        received = False
        for arrived in self._courier.fetch():
            received = True
            try:
                event = self._event(arrived)
            except RemoteProtocolError as error:
                self._on_error(arrived.site, str(error))
                continue
            self._waiting.extend(self.aggregator.step(event))
            self._after_step(self.aggregator)
        return received

    def _event(self, arrived: Arrived) -> Received:
        if arrived.content is None:
            raise RemoteProtocolError(arrived.error)
        reply = reply_of(arrived.content, arrived.site)
        if isinstance(reply, typing.get_args(ErrandReply)):
            raise RemoteProtocolError("answered what was not asked")
        cost = Cost(bytes_up=len(arrived.content), bytes_down=arrived.ticket, seconds=arrived.seconds)
        return Received(now=self._clock(), reply=typing.cast("Reply", reply), cost=cost)


def reply_of(content: bytes, site: str) -> Reply | ErrandReply:
    """A site's reply from its bytes.

    Raises:
        RemoteProtocolError: it is none, or another site's.
    """
    reply: Any = from_bytes(content)
    if not isinstance(reply, (*typing.get_args(Reply), *typing.get_args(ErrandReply))):
        raise RemoteProtocolError("answered with a request")
    answer = typing.cast("Reply | ErrandReply", reply)
    if answer.site != site:
        raise RemoteProtocolError("answered in another site's name")
    return answer


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
