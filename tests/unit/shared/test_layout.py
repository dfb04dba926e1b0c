"""Parameters as one vector and back, in an order that every machine agrees on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from oncofed_shared.errors import RemoteProtocolError
from oncofed_shared.layout import Layout, fingerprint

LAYOUT = Layout({"a": (2, 3), "b": (), "c": (4,), "empty": (0, 2)})


def test_the_order_is_by_name_whatever_the_order_of_the_modules() -> None:
    one = nn.ModuleDict({"b": nn.Linear(2, 3), "a": nn.Linear(1, 1)})
    two = nn.ModuleDict({"a": nn.Linear(1, 1), "b": nn.Linear(2, 3)})
    assert Layout.of(one) == Layout.of(two)
    assert list(Layout.of(one).shapes) == ["a.bias", "a.weight", "b.bias", "b.weight"]
    assert Layout.of(one).size == 11


@given(st.lists(st.floats(-1e6, 1e6), min_size=11, max_size=11))
def test_a_vector_comes_back_from_its_arrays(flat: list[float]) -> None:
    values = np.array(flat)
    arrays = LAYOUT.arrays(values, "float64")
    assert {n: a.shape for n, a in arrays.items()} == dict(LAYOUT.shapes)
    np.testing.assert_array_equal(LAYOUT.flatten(arrays), values)
    LAYOUT.check(arrays)


def test_arrays_have_the_wanted_dtype_and_share_nothing_with_the_vector() -> None:
    flat = np.arange(11.0)
    arrays = LAYOUT.arrays(flat, "float32")
    assert {a.dtype for a in arrays.values()} == {np.dtype("float32")}
    LAYOUT.arrays(flat, "float64")["a"][:] = 99
    np.testing.assert_array_equal(flat, np.arange(11.0))


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("a", np.zeros((3, 2)), "protocol"),
        ("a", np.zeros((2, 3), np.int64), "protocol"),
        ("other", np.zeros(1), "protocol"),
        ("c", np.array([0, np.nan, 0, 0]), "diverged"),
        ("c", np.array([0, np.inf, 0, 0]), "diverged"),
    ],
)
def test_parameters_that_are_not_the_plans_are_the_peers_fault(name: str, value: np.ndarray, code: str) -> None:
    arrays = LAYOUT.arrays(np.zeros(11), "float64") | {name: value}
    with pytest.raises(RemoteProtocolError) as caught:
        LAYOUT.check(arrays)
    assert caught.value.code == code


def test_a_missing_parameter_is_the_peers_fault() -> None:
    arrays = LAYOUT.arrays(np.zeros(11), "float64")
    del arrays["b"]
    with pytest.raises(RemoteProtocolError):
        LAYOUT.check(arrays)


def test_a_fingerprint_tells_names_kinds_shapes_and_values_apart() -> None:
    value = np.arange(4.0)
    several = [
        {"w": value},
        {"v": value},
        {"w": value.astype(np.float32)},
        {"w": value.reshape(2, 2)},
        {"w": value + 1e-15},
        {"w": value, "z": value},
        {"w": -value},
    ]
    assert len({fingerprint(a) for a in several}) == len(several)
    ordered = {"b": value, "a": value}
    assert fingerprint(ordered) == fingerprint(dict(reversed(ordered.items())))
    assert fingerprint({"w": np.asfortranarray(np.eye(3))}) == fingerprint({"w": np.eye(3)})


def test_a_network_and_its_layout_agree() -> None:
    network = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    layout = Layout.of(network)
    flat = layout.flatten({n: p.detach().numpy() for n, p in network.named_parameters()})
    back = layout.arrays(flat, "float32")
    for name, parameter in network.named_parameters():
        assert torch.equal(torch.from_numpy(back[name]), parameter)
