"""What a layer's inputs and the gradients at its outputs say about its parameters' gradients, patient by patient.

A linear layer's gradient of one patient is a product of two small matrices. Its length follows from them, and so does the weighted
sum over patients, which is one product of large matrices (Goodfellow 2015; Bu et al. 2023, "Differentially private optimization on
large model at small cost"): nobody's gradient need be written down. Where it is no larger than the matrices it is made of, it is.
From a layer's numbers on, everything is in double precision.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the field's own name

from oncofed_shared.errors import ConfigError
from oncofed_shared.integer_noise import see_sums

__all__ = [
    "FEW_CHANNELS",
    "KINDS",
    "MANY_VOXELS",
    "Book",
    "Filters",
    "Lookups",
    "Part",
    "Products",
    "Room",
    "Rows",
    "patients_group_norm",
]

SHORT = 512
"""Length of two vectors together up to which their products with others are made in the network's own precision."""
BLOCK = 2**16
"""Numbers that are turned into doubles at once: they stay in the processor's cache."""
FEW_CHANNELS, MANY_VOXELS = 3, 2**15
"""What a convolution in space reads of a patient when its filters' gradients are made patient by patient."""
TOGETHER = 4
"""Patients for whom what a convolution's filters see is written out at once: it stays in the processor's cache."""
RUN = 128
"""Numbers of which a sum of squares is made in the network's own precision; such sums are added in doubles."""


@dataclass(frozen=True, slots=True)
class Room:
    """Memory that is taken from the system once: new pages take longer than what is written to them."""

    _kept: dict[object, Tensor] = field(default_factory=dict)

    def doubles(self, key: object, values: Tensor) -> Tensor:
        """The values in double precision, to be read; overwritten by the next ones of the same key."""
        return values if values.dtype is torch.float64 else self.copied(key, values)

    def copied(self, key: object, values: Tensor) -> Tensor:
        """The same, to be changed."""
        kept = self._of(key, values.shape, torch.float64)
        kept.copy_(values)
        return kept

    def taken(self, key: object, size: int) -> Tensor:
        """(size,) doubles, with what the last user left in them."""
        return self._of(key, torch.Size([size]), torch.float64)

    def like(self, key: object, values: Tensor, count: int) -> Tensor:
        """As many rows like those of the values, with what the last user left in them."""
        return self._of(key, torch.Size([count, *values.shape[1:]]), values.dtype)

    def _of(self, key: object, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        kept = self._kept.get(key)
        if kept is None or kept.shape != shape or kept.dtype != dtype:
            kept = self._kept[key] = torch.empty(shape, dtype=dtype)
        return kept


def _squared(values: Tensor) -> Tensor:
    """(n, width) to (n,) float64: squared lengths, or more by what rounding may have taken off and what was too small for it."""
    if values.dtype is torch.float64:
        exact: Tensor = torch.linalg.vecdot(values, values)
        return exact
    # By numpy, which needs a third of torch's time for it.
    numbers = values.numpy()
    runs = numbers[:, : numbers.shape[1] // RUN * RUN].reshape(len(numbers), -1, RUN)
    rest = numbers[:, runs.shape[1] * RUN :]
    found = np.vecdot(runs, runs).sum(axis=1, dtype=np.float64) + np.vecdot(rest, rest)
    width = numbers.shape[1]
    return torch.from_numpy(found * (1 + min(width, RUN) * 2.0**-23) + width * 2.0**-120)


class Part(ABC):
    """What patients' gradients of one parameter are made of."""

    @abstractmethod
    def squares(self, room: Room) -> tuple[Tensor, Tensor]:
        """Squared length of each patient's gradient, and the same as if nothing in it cancelled, (patients,) float64 both.

        Rounding may take `integer_noise.CANCELLED` of the second off the first, and no more.
        """

    @abstractmethod
    def add(self, factors: Tensor, total: Tensor, room: Room, *, first: bool) -> None:
        """Add the patients' gradients, each times its factor, to the parameter's part of a sum; `first` overwrites it."""

    @abstractmethod
    def clear(self, patients: Tensor) -> None:
        """Put zero for some patients: zero times infinity is not zero."""


@dataclass(slots=True)
class Rows(Part):
    """The gradients themselves, (patients, size)."""

    rows: Tensor

    def squares(self, room: Room) -> tuple[Tensor, Tensor]:
        """See `Part`."""
        del room
        found = _squared(self.rows)
        return found, found

    def add(self, factors: Tensor, total: Tensor, room: Room, *, first: bool) -> None:
        """See `Part`."""
        n, size = self.rows.shape
        width = max(1, BLOCK // n)
        doubles = room.taken(("rows", n, width), n * width).view(n, width)
        for start in range(0, size, width):
            block, place = self.rows[:, start : start + width], total[start : start + width]
            if block.dtype is not torch.float64:
                block = doubles[:, : block.shape[1]].copy_(block)
            torch.addmv(place, block.T, factors, beta=0 if first else 1, out=place)

    def clear(self, patients: Tensor) -> None:
        """See `Part`."""
        self.rows = torch.where(patients[:, None], 0, self.rows)


@dataclass(slots=True)
class Filters(Part):
    """The gradients of a convolution's filters, (patients, out, places of a filter, into).

    The last two are the other way round in the parameter. They are turned in the sum, which is one for all patients.
    """

    rows: Tensor

    def squares(self, room: Room) -> tuple[Tensor, Tensor]:
        """See `Part`."""
        return Rows(self.rows.flatten(1)).squares(room)

    def add(self, factors: Tensor, total: Tensor, room: Room, *, first: bool) -> None:
        """See `Part`."""
        made = room.taken(("filters", len(total)), len(total))
        Rows(self.rows.flatten(1)).add(factors, made, room, first=True)
        turned = made.view(self.rows.shape[1:]).mT
        place = total.view(turned.shape)
        if first:
            place.copy_(turned)
        else:
            place += turned

    def clear(self, patients: Tensor) -> None:
        """See `Part`."""
        self.rows = torch.where(patients[:, None, None, None], 0, self.rows)

    def turned(self) -> Rows:
        """The same in the parameter's order."""
        return Rows(self.rows.mT.flatten(1))


@dataclass(slots=True)
class Products(Part):
    """Sums over t of back[t] x inputs[t]^T: a linear layer's weight; (patients, t, into) and (patients, t, out)."""

    inputs: Tensor
    back: Tensor

    def __post_init__(self) -> None:
        n, tokens = self.inputs.shape[:2]
        see_sums(places=n, tokens=tokens)

    def squares(self, room: Room) -> tuple[Tensor, Tensor]:
        """See `Part`."""
        (_, tokens, into), out = self.inputs.shape, self.back.shape[2]
        if tokens == 1:
            apart = _squared(self.inputs[:, 0]) * _squared(self.back[:, 0])
            return apart, apart
        slack, lowest = 0.0, 0.0
        inputs, back = self.inputs, self.back
        if inputs.dtype is not torch.float64 and into + out <= SHORT:
            # Products of short vectors in single precision: what rounding may take off is added, and what is too small for it.
            slack, lowest = (into + out + tokens) * 2.0**-23, tokens * (into + out) * 2.0**-120
        else:
            inputs = room.doubles(("inputs", inputs.shape), inputs)
            back = room.doubles(("back", back.shape), back)
        # (sum_t b_t a_t^T : the same) = sum_ts (a_t . a_s)(b_t . b_s)
        read, own = torch.bmm(inputs, inputs.mT).double(), torch.bmm(back, back.mT).double()
        whole = torch.linalg.vecdot(read.flatten(1), own.flatten(1))
        one, other = (v.diagonal(dim1=1, dim2=2).sum(dim=1) for v in (read, own))
        apart = one * other
        return whole + slack * apart + lowest * tokens * (one + other + lowest), apart

    def add(self, factors: Tensor, total: Tensor, room: Room, *, first: bool) -> None:
        """See `Part`."""
        inputs = room.doubles(("inputs", self.inputs.shape), self.inputs)
        weighted = room.copied(("back", self.back.shape), self.back).mul_(factors[:, None, None])
        place = total.view(self.back.shape[2], self.inputs.shape[2])
        torch.addmm(place, weighted.flatten(0, 1).T, inputs.flatten(0, 1), beta=0 if first else 1, out=place)

    def clear(self, patients: Tensor) -> None:
        """See `Part`."""
        self.inputs, self.back = (torch.where(patients[:, None, None], 0, v) for v in (self.inputs, self.back))

    def smaller(self) -> Part:
        """The gradients themselves where they are no larger than this; their lengths then cost no more either."""
        (_, tokens, into), out = self.inputs.shape, self.back.shape[2]
        if into * out <= tokens * (into + out):
            return Rows(torch.bmm(self.back.mT, self.inputs).flatten(start_dim=1))
        return self


@dataclass(slots=True)
class Lookups(Part):
    """An embedding's weight: (patients, t) rows of it that were read, and (patients, t, width)."""

    index: Tensor
    back: Tensor

    def squares(self, room: Room) -> tuple[Tensor, Tensor]:
        """See `Part`."""
        see_sums(places=len(self.index), tokens=self.index.shape[1])
        back = room.doubles(("back", self.back.shape), self.back)
        same = self.index[:, :, None] == self.index[:, None, :]
        sizes = torch.linalg.vector_norm(back, dim=2)
        return (torch.bmm(back, back.mT) * same).sum(dim=(1, 2)), sizes.sum(dim=1).square()

    def add(self, factors: Tensor, total: Tensor, room: Room, *, first: bool) -> None:
        """See `Part`."""
        back = room.doubles(("back", self.back.shape), self.back)
        place = total.view(-1, back.shape[2])
        if first:
            place.zero_()
        place.index_add_(0, self.index.flatten(), (back * factors[:, None, None]).flatten(0, 1))

    def clear(self, patients: Tensor) -> None:
        """See `Part`."""
        self.back = torch.where(patients[:, None, None], 0, self.back)


Made = Iterable[tuple[Tensor, Part]]
Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


def _per_place(values: Tensor) -> Tensor:
    """(n, .., width) to (n, places, width)."""
    return values.reshape(len(values), -1, values.shape[-1])


def _linear(layer: nn.Module, inputs: Tensor, back: Tensor) -> Made:
    assert isinstance(layer, nn.Linear)  # noqa: S101 - what KINDS says
    one, other = _per_place(inputs), _per_place(back)
    yield layer.weight, Products(one, other)
    if layer.bias is not None:
        yield layer.bias, Rows(other.sum(dim=1))


def _layer_norm(layer: nn.Module, inputs: Tensor, back: Tensor) -> Made:
    assert isinstance(layer, nn.LayerNorm)  # noqa: S101
    shape = layer.normalized_shape
    normed = F.layer_norm(inputs, shape, eps=layer.eps)
    over = list(range(1, inputs.dim() - len(shape)))
    for parameter, values in ((layer.weight, back * normed), (layer.bias, back)):
        if parameter is not None:
            yield parameter, Rows((values.sum(dim=over) if over else values).flatten(start_dim=1))


def _convolution(layer: nn.Module, inputs: Tensor, back: Tensor) -> Made:
    assert isinstance(layer, Convolution)  # noqa: S101
    yield layer.weight, _filters(layer, inputs, back)
    if layer.bias is not None:
        yield layer.bias, Rows(back.flatten(start_dim=2).sum(dim=2))


def _filters(layer: Convolution, inputs: Tensor, back: Tensor) -> Part:
    """In the fastest of three ways, which the layer's and one patient's shape decide."""
    zeros = [0] * len(layer.kernel_size)
    step = layer.stride, layer.padding, layer.dilation, False, zeros, layer.groups, (False, True, False)

    def alone(own: Tensor, read: Tensor) -> Tensor:
        made: Tensor = torch.ops.aten.convolution_backward(own, read, layer.weight, None, *step)[1]
        return made

    if _deep(layer, back):
        return Filters(_by_products(layer, inputs, back))
    if _large(layer, inputs):
        # torch hands oneDNN a single patient only in a tensor of oneDNN's own.
        each = zip(back.split(1), inputs.split(1), strict=True)  # type: ignore[no-untyped-call]
        rows = torch.stack([alone(own, read.to_mkldnn()) for own, read in each])
    else:
        # All patients' filters at once, as groups of one convolution, which torch.func makes of one patient's.
        rows = torch.func.vmap(lambda own, read: alone(own[None], read[None]))(back, inputs)
    return Rows(rows.flatten(start_dim=1))


def _deep(layer: Convolution, back: Tensor) -> bool:
    """Whether all that a patient's filters see, written out, is no more than the filters: few places and many channels."""
    return back[0, 0].numel() <= layer.out_channels and layer.groups == 1 and set(layer.dilation) == {1}


def _by_products(layer: Convolution, inputs: Tensor, back: Tensor) -> Tensor:
    """(patients, into, ..) and (patients, out, ..) to `Filters.rows`: channels last, so that whole rows of memory are copied."""
    assert not isinstance(layer.padding, str)  # noqa: S101 - `patient_gradients` refuses words
    n, into, *sizes = inputs.shape
    wide = inputs.new_zeros(TOGETHER, *(s + 2 * p for s, p in zip(sizes, layer.padding, strict=True)), into)
    inner = wide[:, *(slice(p, p + s) for s, p in zip(sizes, layer.padding, strict=True))]
    seen = wide
    for axis, (size, stride) in enumerate(zip(layer.kernel_size, layer.stride, strict=True), start=1):
        seen = seen.unfold(axis, size, stride)
    # (patients, place, .., place of a filter, .., into)
    seen = seen.movedim(1 + len(sizes), -1)
    rows = inputs.new_empty(n, layer.out_channels, layer.weight[0].numel())
    for own, read, made in zip(back.split(TOGETHER), inputs.split(TOGETHER), rows.split(TOGETHER), strict=True):  # type: ignore[no-untyped-call]
        inner[: len(read)] = read.movedim(1, -1)
        torch.bmm(own.flatten(2), seen[: len(read)].reshape(len(read), -1, rows.shape[2]), out=made)
    return rows.view(n, layer.out_channels, -1, into)


def _large(layer: Convolution, inputs: Tensor) -> bool:
    """Whether one patient is worth a call: few channels, for which oneDNN has a kernel without groups, of many voxels."""
    return (
        isinstance(layer, nn.Conv3d)
        and layer.in_channels <= FEW_CHANNELS
        and inputs[0].numel() >= MANY_VOXELS
        and inputs.dtype is torch.float32
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    )


def _embedding(layer: nn.Module, inputs: Tensor, back: Tensor) -> Made:
    assert isinstance(layer, nn.Embedding)  # noqa: S101
    index, made = inputs.reshape(len(inputs), -1), _per_place(back)
    if layer.padding_idx is not None:
        made = made * (index != layer.padding_idx)[:, :, None]
    yield layer.weight, Lookups(index, made)


KINDS: dict[type[nn.Module], Callable[[nn.Module, Tensor, Tensor], Made]] = {
    nn.Linear: _linear,
    nn.LayerNorm: _layer_norm,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.Conv3d: _convolution,
    nn.Embedding: _embedding,
}
"""Layers whose parameters' gradients are known per patient, from the input and from the gradient at the output; and group norms:
`patients_group_norm`."""


def patients_group_norm(layer: nn.GroupNorm, inputs: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """A group norm's forward pass, in which each patient has a copy of weight and bias.

    To torch one patient has all channels of all patients, so that the way back adds nobody's gradients to another's: each patient's
    then cost nothing.

    Args:
        inputs: (patients, channels, ..).

    Returns:
        What the layer makes of it, and each parameter with its copies, (patients x channels,), whose gradients are the patients'.
    """
    n, channels = inputs.shape[:2]
    whole = inputs.reshape(1, n * channels, *inputs.shape[2:])
    if not layer.affine:
        return F.group_norm(whole, n * layer.num_groups, eps=layer.eps).view_as(inputs), []
    weight, bias = (p.detach().repeat(n).requires_grad_() for p in (layer.weight, layer.bias))
    made = F.group_norm(whole, n * layer.num_groups, weight, bias, layer.eps).view_as(inputs)
    return made, [(layer.weight, weight), (layer.bias, bias)]


def _joined(parts: list[Part]) -> Part:
    """All uses of one parameter, by whatever layers, as one."""
    if len(parts) > 1:
        parts = [p.turned() if isinstance(p, Filters) else p for p in parts]
    first, *others = parts
    if isinstance(first, Filters):
        return first
    if isinstance(first, Products):
        inputs, back = [first.inputs], [first.back]
        for other in others:
            if not isinstance(other, Products):
                raise _mixed()
            inputs.append(other.inputs)
            back.append(other.back)
        whole = Products(torch.cat(inputs, dim=1), torch.cat(back, dim=1)) if others else first
        return whole.smaller()
    if isinstance(first, Lookups):
        index, made = [first.index], [first.back]
        for other in others:
            if not isinstance(other, Lookups):
                raise _mixed()
            index.append(other.index)
            made.append(other.back)
        return Lookups(torch.cat(index, dim=1), torch.cat(made, dim=1)) if others else first
    rows = [p.rows for p in parts if isinstance(p, Rows)]
    if len(rows) < len(parts):
        raise _mixed()
    return Rows(torch.stack(rows).sum(dim=0)) if others else first


def _mixed() -> ConfigError:
    return ConfigError("model: layers of different kinds share a parameter, so it has no gradient per patient")


@dataclass(frozen=True, slots=True)
class Book:
    """What the uses of layers in one batch say of their parameters' gradients."""

    _parts: dict[Tensor, list[Part]] = field(default_factory=dict)

    @torch.no_grad()
    def enter(self, layer: nn.Module, inputs: Tensor, back: Tensor) -> None:
        """Note a use of a layer: its input, and the gradient at its output.

        Raises:
            ConfigError: a product has so many terms that the margin for sums in double precision does not hold.
        """
        for parameter, part in KINDS[type(layer)](layer, inputs, back):
            self._parts.setdefault(parameter, []).append(part)

    @torch.no_grad()
    def enter_rows(self, parameter: Tensor, rows: Tensor) -> None:
        """Note patients' gradients of a parameter themselves, (patients, ..), from a use of it."""
        self._parts.setdefault(parameter, []).append(Rows(rows.flatten(start_dim=1)))

    @torch.no_grad()
    def parts(self) -> dict[Tensor, Part]:
        """Each parameter's gradients, from every use of every layer.

        Raises:
            ConfigError: layers of different kinds share a parameter, or as for a use.
        """
        return {parameter: _joined(parts) for parameter, parts in self._parts.items()}
