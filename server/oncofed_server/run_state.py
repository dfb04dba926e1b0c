"""What a run knows and what happens to it: its phases, its events, its requests, its roster and its state, as frozen values."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from oncofed_server.rounds import Cost, Divergence, Tally
from oncofed_shared.features import Preparation
from oncofed_shared.messages import Columns, Description, Reply, Request
from oncofed_shared.reduction import Agreed
from oncofed_strategies import ServerState

__all__ = ["Event", "Outgoing", "Phase", "Received", "Roster", "Start", "State", "Tick"]


class Phase(enum.Enum):
    """Where a run stands."""

    DESCRIBE = "describe"
    HARMONISE = "harmonise"
    SUMMARISE = "summarise"
    REDUCE = "reduce"
    OPEN = "open"
    TRAIN = "train"
    VALIDATE = "validate"
    TEST = "test"
    STATISTICS = "statistics"
    KEYS = "keys"
    OPENING = "opening"
    HISTOGRAM = "histogram"
    SCORES = "scores"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """Begin, or go on after a restart."""

    now: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Received:
    """A site's reply arrived; `cost` is what the driver measured of its exchange."""

    now: float
    reply: Reply
    cost: Cost = field(default_factory=Cost)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tick:
    """Time has passed."""

    now: float


Event = Start | Received | Tick


@dataclass(frozen=True, kw_only=True, slots=True)
class Outgoing:
    """A request and the site it is for."""

    site: str
    request: Request


@dataclass(frozen=True, kw_only=True, slots=True)
class Roster:
    """Who does what. `externals` never train; all their patients are scored at the end.

    Attributes:
        identities: raw public identity keys by site, where sums are secure.
        quorum: trainers that must stay to the end; with fewer the run fails. 0 asks for nobody once the model is there.
    """

    trainers: tuple[str, ...]
    evaluators: tuple[str, ...]
    externals: tuple[str, ...] = ()
    identities: Mapping[str, bytes] = field(default_factory=dict)
    quorum: int = 0

    @property
    def everybody(self) -> tuple[str, ...]:
        """All names, each once, in order."""
        return tuple(dict.fromkeys((*self.trainers, *self.evaluators, *self.externals)))


@dataclass(frozen=True, kw_only=True)
class State:
    """Everything that a run knows; replaced, never changed.

    Attributes:
        pending: sites whose reply to the current step is awaited.
        total: running sum of the current round's updates.
        tally: what else is kept of them.
        divergence: of each finished round, where it can be computed.
        participants: per finished round the sites behind it; empty where every site is asked in every round.
        columns: what the sites were asked to sum up.
        sums: statistics by site, until all are there.
        harmonisation: what is agreed of the plan's harmonisations.
        agreed: what is agreed of the plan's reductions, while they go on.
        behind: the sites whose sums are in either.
        curve: per round the mean training loss, and summed validation tables where there are some.
        tables: test tables by site.
        cost, costs: of the whole run, and of each finished round's training.
        lost: secure sums that could not be opened.
        histogram: noised counts of the validation patients' scores.
        released: noised counts of the test patients of all sites together, and `present` how many sites are in them.
        why: the reason of a failure.
    """

    phase: Phase
    round: int = 0
    step: int = 0
    attempt: int = 0
    deadline: float = 0.0
    pending: frozenset[str] = frozenset()
    server: ServerState | None = None
    preparation: Preparation | None = None
    descriptions: Mapping[str, Description] = field(default_factory=dict)
    excluded: Mapping[str, str] = field(default_factory=dict)
    columns: Columns = field(default_factory=dict)
    sums: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    harmonisation: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    agreed: Agreed | None = None
    behind: frozenset[str] = frozenset()
    total: NDArray[np.uint64] | None = None
    tally: Tally = field(default_factory=Tally)
    divergence: tuple[Divergence | None, ...] = ()
    participants: tuple[tuple[str, ...], ...] = ()
    losses: tuple[float, ...] = ()
    validation: Mapping[int, NDArray[np.float64]] = field(default_factory=dict)
    tables: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    cost: Cost = field(default_factory=Cost)
    round_cost: Cost = field(default_factory=Cost)
    costs: tuple[Cost, ...] = ()
    lost: int = 0
    histogram: NDArray[np.float64] | None = None
    released: NDArray[np.float64] | None = None
    present: int = 0
    why: str = ""
