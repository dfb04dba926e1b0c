"""Lengths and weighted sums of patients' gradients, layer by layer, beside the gradients that Opacus writes down."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from opacus.grad_sample.grad_sample_module import GradSampleModule
from torch import nn

from oncofed_client.book_keeping import (
    FEW_CHANNELS,
    KINDS,
    MANY_VOXELS,
    Book,
    Filters,
    Lookups,
    Products,
    Room,
    Rows,
    patients_group_norm,
)
from oncofed_client.patient_gradients import per_patient
from oncofed_shared.errors import ConfigError

PATIENTS = 6


class Lookup(nn.Module):
    """An embedding of the signs of numbers, some of which are not looked up."""

    def __init__(self, padding: int | None) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 7, padding_idx=padding)

    def forward(self, values):
        """(n, t) to (n, t, 7)."""
        return self.table((2.5 + values).clamp(0, 4).long()).cumsum(dim=1)


class Twice(nn.Module):
    """One layer that is used twice, with as many tokens or with one."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, values):
        """(n, t, 6) to (n, 3)."""
        once = torch.tanh(self.layer(values))
        return self.last(once.mean(dim=1) + self.layer(once[:, 0]))


class Again(nn.Module):
    """One convolution that is used twice, over many places and over few."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv1d(12, 12, 3, padding=1)

    def forward(self, values):
        """(n, 12, t) to (n, 12, 5)."""
        once = torch.tanh(self.layer(values))
        return torch.tanh(self.layer(once[:, :, ::6]))


MODULES = {
    "linear": (nn.Sequential(nn.Linear(9, 7), nn.Tanh(), nn.Linear(7, 2, bias=False)), (9,)),
    "linear over few tokens": (nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 2)), (3, 20)),
    "linear over many tokens": (nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)), (30, 4)),
    "linear over a grid": (nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 2)), (2, 2, 20)),
    "layer norm": (nn.Sequential(nn.Linear(5, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 2)), (4, 5)),
    "layer norm of a vector": (nn.Sequential(nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 2)), (5,)),
    "layer norm of two dimensions": (nn.Sequential(nn.LayerNorm([4, 5]), nn.Tanh(), nn.Linear(5, 2)), (4, 5)),
    "convolution in one dimension": (nn.Sequential(nn.Conv1d(3, 4, 3, stride=2, padding=1), nn.Tanh()), (3, 12)),
    "convolution in two": (nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, groups=3), nn.Tanh()), (3, 6, 5)),
    "convolution in three": (
        nn.Sequential(nn.Conv3d(2, 4, 3, stride=2, padding=1), nn.GELU(), nn.Conv3d(4, 3, 3, bias=False)),
        (2, 9, 8, 7),
    ),
    "convolution of one dimension to few places": (nn.Sequential(nn.Conv1d(2, 9, 3, padding=1), nn.Tanh()), (2, 6)),
    "convolution of two to few places": (
        nn.Sequential(nn.Conv2d(3, 20, (3, 2), stride=(2, 1), padding=(1, 0)), nn.Tanh()),
        (3, 5, 4),
    ),
    "convolution of three to few places": (
        nn.Sequential(nn.Conv3d(4, 40, (3, 2, 1), stride=(2, 1, 1), padding=(1, 2, 0)), nn.Tanh()),
        (4, 5, 3, 2),
    ),
    "convolution in groups to few places": (nn.Sequential(nn.Conv1d(4, 12, 3, groups=2), nn.Tanh()), (4, 6)),
    "dilated convolution to few places": (nn.Sequential(nn.Conv1d(4, 12, 3, dilation=2), nn.Tanh()), (4, 8)),
    "convolution over many voxels": (
        nn.Sequential(nn.Conv3d(FEW_CHANNELS, 4, 3, stride=(2, 3, 4), padding=1), nn.Tanh()),
        (FEW_CHANNELS, 32, 30, MANY_VOXELS // (FEW_CHANNELS * 32 * 30) + 1),
    ),
    "a convolution used twice": (Again(), (12, 30)),
    "embedding": (Lookup(None), (9,)),
    "embedding with padding": (Lookup(2), (9,)),
    "a layer used twice": (Twice(), (4, 6)),
}
each_module = pytest.mark.parametrize(("module", "shape"), MODULES.values(), ids=MODULES)


def parts_of(uses):
    """Everything in a book."""
    book = Book()
    for use in uses:
        book.enter(*use)
    return book.parts()


def noted(module: nn.Module, values: torch.Tensor, factors: torch.Tensor):
    """Uses of layers: the layer, its input, the gradient at its output."""
    uses = []
    handles = [
        m.register_forward_hook(lambda m, i, o: uses.append((m, i[0].detach(), o)))
        for m in module.modules()
        if type(m) in KINDS
    ]
    loss = (module(values).flatten(start_dim=1).square().sum(dim=1) * factors).sum()
    grown = torch.autograd.grad(loss, [made for _, _, made in uses])
    for handle in handles:
        handle.remove()
    return [(m, i, g) for (m, i, _), g in zip(uses, grown, strict=True)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@each_module
def test_lengths_and_sums_are_those_of_the_gradients_that_opacus_writes_down(module, shape, dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    module = copy.deepcopy(module).to(dtype)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator).to(dtype)
    values = torch.randn(PATIENTS, *shape, generator=generator).to(dtype)
    scales = torch.rand(PATIENTS, generator=generator).to(dtype)
    theirs = GradSampleModule(copy.deepcopy(module), loss_reduction="sum")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        (theirs(values).flatten(start_dim=1).square().sum(dim=1) * scales).sum().backward()
    rows = {n: p.grad_sample.flatten(start_dim=1).double() for n, p in theirs._module.named_parameters()}
    if isinstance(module, Lookup) and module.table.padding_idx is not None:
        # torch has no gradient there; Opacus has.
        rows["table.weight"].view(PATIENTS, 5, 7)[:, module.table.padding_idx] = 0
    parts, room = parts_of(noted(module, values, scales)), Room()
    weights = torch.rand(PATIENTS, generator=generator, dtype=torch.float64)
    close = {"rtol": 1e-10, "atol": 1e-10} if dtype is torch.float64 else {"rtol": 1e-4, "atol": 2e-4}
    assert len(parts) == len(rows)
    for name, parameter in module.named_parameters():
        part, own = parts[parameter], rows[name]
        whole, apart = part.squares(room)
        assert torch.allclose(whole, own.square().sum(dim=1), **close), name
        assert (apart >= whole * (1 - 1e-12)).all()
        total = torch.full((own.shape[1],), torch.nan, dtype=torch.float64)
        part.add(weights, total, room, first=True)
        assert torch.allclose(total, weights @ own, **close), name
        part.add(-weights, total, room, first=False)
        assert torch.allclose(total, torch.zeros_like(total), atol=1e-9 * max(1.0, float(own.abs().max())))
        # Whoever is cleared counts nothing, whatever his numbers were.
        part.clear(torch.arange(PATIENTS) == 2)
        part.add(weights, total, room, first=True)
        left = weights.masked_fill(torch.arange(PATIENTS) == 2, 0)
        assert torch.allclose(total, left @ own, **close), name


def test_gradients_are_written_down_only_where_they_are_smaller_than_what_they_are_made_of() -> None:
    def kind(tokens: int, into: int, out: int) -> type:
        layer = nn.Linear(into, out, bias=False)
        ((_, part),) = parts_of([(layer, torch.randn(3, tokens, into), torch.randn(3, tokens, out))]).items()
        return type(part)

    assert kind(1, 4, 4) is Products
    assert kind(13, 128, 128) is Products
    assert kind(900, 16, 16) is Rows
    layer = nn.Conv1d(2, 6, 3, bias=False)
    for places, wanted in ((6, Filters), (7, Rows)):
        ((_, part),) = parts_of([(layer, torch.randn(3, 2, places + 2), torch.randn(3, 6, places))]).items()
        assert type(part) is wanted
    ((_, part),) = parts_of([(nn.Embedding(4, 2), torch.ones(3, 5).long(), torch.randn(3, 5, 2))]).items()
    assert type(part) is Lookups


def test_layers_that_share_a_weight_have_the_gradient_of_all_uses() -> None:
    first, second = nn.Linear(20, 20), nn.Linear(20, 20)
    second.weight = first.weight
    module = nn.Sequential(first, nn.Tanh(), second).double()
    values = torch.randn(PATIENTS, 2, 20, dtype=torch.float64)
    parts = parts_of(noted(module, values, torch.ones(PATIENTS, dtype=torch.float64)))
    assert len(parts) == 3
    whole, _ = parts[first.weight].squares(Room())
    for i in range(PATIENTS):
        (own,) = torch.autograd.grad(module(values[i]).square().sum(), [first.weight])
        assert float(whole[i]) == pytest.approx(float(own.square().sum()), rel=1e-10)


def test_what_cancels_is_not_taken_for_shorter_than_it_is() -> None:
    # Two tokens with opposite gradients: what is left of the length is what rounding left of it.
    inputs = torch.randn(2, 2, 50)
    back = torch.randn(2, 2, 40)
    inputs[:, 1], back[:, 1] = inputs[:, 0], -back[:, 0] * (1 + 1e-7)
    part = Products(inputs, back)
    whole, apart = part.squares(Room())
    true = torch.linalg.matrix_norm(torch.bmm(back.double().mT, inputs.double())).square()
    assert (whole + 2.0**-24 * apart >= true).all()
    assert (apart > 1e6 * true).all()


@pytest.mark.parametrize("tokens", [1, 2])
def test_numbers_too_small_for_single_precision_do_not_shorten_anybody(tokens) -> None:
    # Squares of these are zero in single precision, and the gradient is of length one all the same.
    inputs, back = torch.full((2, tokens, 20), 1e15), torch.full((2, tokens, 20), 1e-23)
    whole, _ = Products(inputs, back).squares(Room())
    true = torch.linalg.matrix_norm(torch.bmm(back.double().mT, inputs.double())).square()
    assert not torch.bmm(back, back.mT).any()
    assert (whole >= true).all()
    rows = Rows(torch.full((2, 300), 1e-23))
    assert (rows.squares(Room())[0] >= rows.rows.double().square().sum(dim=1)).all()


@pytest.mark.parametrize("width", [1, 127, 128, 129, 5000])
def test_a_length_in_single_precision_is_never_too_short_and_hardly_too_long(width) -> None:
    generator = torch.Generator().manual_seed(width)
    rows = torch.randn(50, width, generator=generator) * 10 ** torch.linspace(-15, 15, 50)[:, None]
    whole, _ = Rows(rows).squares(Room())
    true = rows.double().square().sum(dim=1)
    assert (whole >= true).all()
    assert (whole <= true * (1 + 4e-5)).all()


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_group_norm_of_patients_is_the_layers_and_its_copies_have_the_gradients_that_opacus_writes_down(
    dtype, affine
) -> None:
    generator = torch.Generator().manual_seed(1)
    layer = nn.GroupNorm(2, 8, affine=affine).to(dtype)
    for parameter in layer.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator).to(dtype)
    values = torch.randn(PATIENTS, 8, 4, 3, generator=generator).to(dtype).requires_grad_()
    made, copies = patients_group_norm(layer, values)
    assert torch.allclose(made, layer(values), rtol=1e-6)
    back, *grown = torch.autograd.grad(made.square().sum(), [values, *(copy for _, copy in copies)])
    (expected,) = torch.autograd.grad(layer(values).square().sum(), [values])
    close = {"rtol": 1e-10, "atol": 1e-10} if dtype is torch.float64 else {"rtol": 1e-4, "atol": 1e-4}
    assert torch.allclose(back, expected, **close)
    assert [p for p, _ in copies] == list(layer.parameters())
    if affine:
        theirs = GradSampleModule(copy.deepcopy(layer), loss_reduction="sum")
        theirs(values).square().sum().backward()
        for gradient, parameter in zip(grown, theirs._module.parameters(), strict=True):
            assert torch.allclose(gradient.view(PATIENTS, -1), parameter.grad_sample, **close)


def test_layers_of_different_kinds_that_share_a_parameter_are_refused() -> None:
    linear, table = nn.Linear(3, 4, bias=False), nn.Embedding(4, 3)
    table.weight = linear.weight
    uses = [(linear, torch.randn(2, 3), torch.randn(2, 4)), (table, torch.zeros(2, 1).long(), torch.randn(2, 1, 3))]
    for order in (uses, uses[::-1]):
        with pytest.raises(ConfigError, match="layers of different kinds share a parameter"):
            parts_of(order)


@pytest.mark.parametrize(
    "layer",
    [
        nn.PReLU(),
        nn.Embedding(3, 2, max_norm=1.0),
        nn.Conv1d(2, 2, 3, padding=1, padding_mode="circular"),
        nn.Conv1d(2, 2, 3, padding="same"),
    ],
    ids=["another kind", "embedding that rescales", "padding that wraps", "padding by a word"],
)
def test_a_layer_whose_gradients_are_not_known_per_patient_is_refused(make, layer) -> None:
    case = make(count=1)
    case.network.extra = layer
    with pytest.raises(ConfigError, match="has no gradient per patient"), per_patient(case.network):
        pass


def test_memory_is_taken_once() -> None:
    room = Room()
    first = room.doubles("a", torch.ones(3, 4))
    assert room.doubles("a", torch.zeros(3, 4)).data_ptr() == first.data_ptr()
    assert not first.any()
    given = torch.ones(2, dtype=torch.float64)
    assert room.doubles("b", given) is given
    assert room.taken("c", 5).data_ptr() == room.taken("c", 5).data_ptr()
    assert len(room.taken("c", 6)) == 6
    rows = room.like("d", torch.ones(9, 4), 5)
    assert (rows.shape, rows.dtype) == ((5, 4), torch.float32)
    assert room.like("d", torch.ones(2, 4), 5).data_ptr() == rows.data_ptr()
    assert room.like("d", given[:, None], 5).dtype == torch.float64
