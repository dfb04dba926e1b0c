"""Each patient's gradient without writing it down: its length, and sums over patients, from one backward pass over a batch.

A batch has a fixed number of places, whether or not there is a patient in each. The numbers of a place are then made by the same
operations in the same order whoever is in the other places, so that they depend on its patient alone, to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from oncofed_client.book_keeping import KINDS, Book, Part, Room, Rows, patients_group_norm
from oncofed_client.training import TrainingSet
from oncofed_shared.errors import ConfigError
from oncofed_shared.integer_noise import CANCELLED
from oncofed_shared.losses import Target
from oncofed_shared.network import FusionNetwork
from oncofed_shared.plan import Plan

__all__ = ["Hooked", "Loss", "Pass", "backward", "per_patient", "placed"]

SMALL = 2**11
"""Numbers of a parameter up to which its gradients are kept beside others'."""
Loss = Callable[[Plan, Mapping[str, Tensor], Mapping[str, Target]], Tensor]


class _Tap(torch.autograd.Function):
    """A layer's output as it is; on the way back the gradient goes into a book, and is not kept."""

    @staticmethod
    def forward(ctx: Any, made: Tensor, mark: Tensor, *use: Any) -> Tensor:
        del mark
        ctx.use = use
        return made.view_as(made)

    @staticmethod
    def backward(ctx: Any, *grown: Any) -> Any:
        book, layer, inputs = ctx.use
        book.enter(layer, inputs, grown[0])
        return grown[0], None, None, None, None


@dataclass(kw_only=True, slots=True)
class Hooked:
    """A network whose layers write into a book what went in and which gradient came back.

    Attributes:
        network: what is hooked.
        places: start and stop of each parameter's coordinates in the order of the layout.
        room: memory for all steps.
        mark: what the way back leads to; by way of layers' outputs, and not of parameters, whose gradients would be sums over the
            batch, which nobody needs.
        copies: parameters of group norms that were given to each patient apart, with what each was given.
        book: of the batch that is in the network.
        sizes: numbers of rows that layers were given since it was emptied.
    """

    network: FusionNetwork
    places: dict[Tensor, tuple[int, int]]
    room: Room
    mark: Tensor = field(default_factory=lambda: torch.zeros((), requires_grad=True))
    copies: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    book: Book = field(default_factory=Book)
    sizes: set[int] = field(default_factory=set)

    @property
    def size(self) -> int:
        """Number of parameters."""
        return max(stop for _, stop in self.places.values())

    def note(self, layer: nn.Module, inputs: tuple[Tensor, ...], made: Tensor) -> Tensor:
        """Hook of a layer's forward pass."""
        self.sizes.add(len(inputs[0]))
        tapped: Tensor = _Tap.apply(made, self.mark, self.book, layer, inputs[0].detach())  # type: ignore[no-untyped-call]
        return tapped

    def normalised(self, layer: nn.GroupNorm, inputs: Tensor) -> Tensor:
        """A group norm's forward pass."""
        self.sizes.add(len(inputs))
        made, copies = patients_group_norm(layer, inputs)
        self.copies += copies
        return made


_ODD = "max_norm", "scale_grad_by_freq", "sparse"


def _layers(network: nn.Module) -> list[nn.Module]:
    """Modules with parameters of their own.

    Raises:
        ConfigError: one of them is of a kind whose gradients are not known per patient.
    """
    found = [m for m in network.modules() if next(m.parameters(recurse=False), None) is not None]
    unknown = {type(m).__name__ for m in found if type(m) not in {*KINDS, nn.GroupNorm}}
    unknown |= {type(m).__name__ for m in found if isinstance(m, nn.Embedding) and any(getattr(m, o) for o in _ODD)}
    unknown |= {type(m).__name__ for m in found if getattr(m, "padding_mode", "zeros") != "zeros"}
    unknown |= {type(m).__name__ for m in found if isinstance(getattr(m, "padding", 0), str)}
    if unknown:
        names = ", ".join(sorted(unknown))
        raise ConfigError(f"model: {names} has no gradient per patient, so it cannot be trained privately")
    return found


_ROOMS: WeakKeyDictionary[FusionNetwork, Room] = WeakKeyDictionary()


@contextmanager
def per_patient(network: FusionNetwork) -> Iterator[Hooked]:
    """Put hooks on a network and take them off at the end.

    Raises:
        ConfigError: a layer has no per-patient gradient.
    """
    places: dict[Tensor, tuple[int, int]] = {}
    start = 0
    for parameter in network.named.values():
        places[parameter] = (start, start + parameter.numel())
        start += parameter.numel()
    if network not in _ROOMS:
        _ROOMS[network] = Room()
    hooked = Hooked(network=network, places=places, room=_ROOMS[network])
    layers = _layers(network.train())
    norms = [layer for layer in layers if isinstance(layer, nn.GroupNorm)]
    handles = [layer.register_forward_hook(hooked.note) for layer in layers if layer not in norms]
    for norm in norms:
        norm.forward = partial(hooked.normalised, norm)  # type: ignore[method-assign]
    try:
        yield hooked
    finally:
        for handle in handles:
            handle.remove()
        for norm in norms:
            # What the class has is seen again.
            del norm.forward


def placed(data: TrainingSet, rows: Tensor, places: int, room: Room | None = None) -> TrainingSet:
    """The patients at `rows` in the first places of a batch; the others repeat the first patient, and count for nothing.

    Args:
        room: whose memory holds their values until the next batch; new memory without it.
    """
    index = torch.cat([rows, rows[:1].expand(places - len(rows))])
    return data.rows(index, into=None if room is None else room.like("values", data.values, places))


@dataclass(frozen=True, kw_only=True, slots=True)
class Pass:
    """What one backward pass over a batch tells.

    Attributes:
        lengths: (places,) float64, at least the Euclidean length of each one's gradient over all parameters; infinity where it
            is not finite, or its square in the network's precision is not.

    Guarantees:
        - No length is below the gradient's that `add` sums, by rounding or otherwise.
    """

    lengths: Tensor
    _hooked: Hooked
    _large: dict[Tensor, Part]
    _small: dict[Tensor, Tensor]
    _all_small: Part

    def add(self, factors: Tensor, total: Tensor, *, first: bool) -> None:
        """Add everybody's gradient times a factor to a sum.

        Args:
            factors: (places,) float64; 0 where the length is infinite.
            total: (parameters,) float64 in the order of the layout.
            first: overwrite what is in it.
        """
        room, sizes = self._hooked.room, [r.shape[1] for r in self._small.values()]
        whole = room.taken("small", sum(sizes))
        self._all_small.add(factors, whole, room, first=True)
        sums = dict(zip(self._small, torch.split(whole, sizes), strict=True))
        for parameter, (start, stop) in self._hooked.places.items():
            part = self._large.get(parameter)
            if part is not None:
                part.add(factors, total[start:stop], room, first=first)
            elif first:
                total[start:stop] = sums.get(parameter, 0)
            elif parameter in sums:
                total[start:stop] += sums[parameter]

    def each(self) -> Tensor:
        """Everybody's gradient, (places, parameters) float64, as sums in which all others count nothing: for those who check."""
        made = torch.empty(len(self.lengths), self._hooked.size, dtype=torch.float64)
        for row, factors in zip(made, torch.eye(len(made), dtype=torch.float64), strict=True):
            self.add(factors, row, first=True)
        return made


@torch.no_grad()
def _measured(hooked: Hooked, places: int) -> Pass:
    large = hooked.book.parts()
    # Many short vectors take as long as one long one each.
    small = {p: r.rows for p, r in large.items() if isinstance(r, Rows) and r.rows.shape[1] <= SMALL}
    large = {p: r for p, r in large.items() if p not in small}
    rows = torch.cat([torch.empty(places, 0, dtype=hooked.network.vector.dtype), *small.values()], dim=1)
    parts = [*large.values(), Rows(rows)]
    squares = torch.zeros(2, places, dtype=torch.float64)
    for part in parts:
        whole, apart = part.squares(hooked.room)
        squares[0] += whole
        squares[1] += apart
    # What rounding may have taken off a sum of products is far below this part of what was added up.
    lengths = (squares[0] + CANCELLED * squares[1]).sqrt()
    lost = ~torch.isfinite(lengths)
    if bool(lost.any()):
        lengths = lengths.masked_fill(lost, torch.inf)
        for part in parts:
            part.clear(lost)
    return Pass(lengths=lengths, _hooked=hooked, _large=large, _small=small, _all_small=parts[-1])


def backward(hooked: Hooked, plan: Plan, batch: TrainingSet, loss: Loss) -> Pass:
    """One pass forward, and one back to the layers' outputs.

    Args:
        batch: one patient or more; always as many under one plan.

    Guarantees:
        - A place's length and its share of a sum depend on the place and its patient alone, for batches of one size.

    Raises:
        ConfigError: a layer was given something else than a row per patient, or see `book_keeping.Book`.
    """
    hooked.book = Book()
    hooked.sizes.clear()
    hooked.copies.clear()
    losses = loss(plan, hooked.network(batch.values, batch.seen), batch.goals)
    if hooked.sizes != {len(batch)}:
        raise ConfigError("model: a layer does not read one row per patient, so it cannot be trained privately")
    ends = [hooked.mark, *(copy for _, copy in hooked.copies)]
    _, *grown = torch.autograd.grad(losses.sum(), ends, allow_unused=True)
    for (parameter, _), gradient in zip(hooked.copies, grown, strict=True):
        if gradient is not None:
            hooked.book.enter_rows(parameter, gradient.view(len(batch), -1))
    return _measured(hooked, len(batch))
