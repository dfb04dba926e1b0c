"""The autoencoder: gradients against a plain torch network, sites adding up to pooled training, and codes that reproduce."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from oncofed_shared.autoencoder import (
    code_sums,
    codes,
    first_parameters,
    gradient_sums,
    parameter_count,
    width,
    written_step,
)
from oncofed_shared.plan_reduction import Autoencoder

Values = NDArray[np.float64]
Marks = NDArray[np.bool_]
COLUMNS = 7


def settings(hidden: int = 5, components: int = 2) -> Autoencoder:
    return Autoencoder(kind="autoencoder", components=components, hidden=hidden, rounds=30, rate=0.02)


def patients(count: int = 40) -> tuple[Values, Marks]:
    """Columns of two hidden numbers, with gaps."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(count, 2)) @ rng.normal(size=(2, COLUMNS)) + rng.normal(size=(count, COLUMNS)) / 10
    seen = rng.random(values.shape) < 0.9
    return np.where(seen, values, 0), seen


def plain(hidden: int, parameters: Values) -> torch.nn.Sequential:
    """The same network of torch's own layers."""
    sizes = [COLUMNS, hidden, 2, hidden, COLUMNS] if hidden else [COLUMNS, 2, COLUMNS]
    layers: list[torch.nn.Module] = []
    for i, (into, out) in enumerate(itertools.pairwise(sizes)):
        # No bend at the code itself, and none at the end.
        if i and i != (len(sizes) - 1) // 2:
            layers.append(torch.nn.GELU())
        layers.append(torch.nn.Linear(into, out, dtype=torch.float64))
    made = torch.nn.Sequential(*layers)
    torch.nn.utils.vector_to_parameters(torch.from_numpy(parameters.copy()), made.parameters())
    return made


@pytest.mark.parametrize("hidden", [0, 5])
def test_gradients_are_those_of_the_sum_of_squares_over_what_was_observed(hidden: int) -> None:
    chosen, (values, seen) = settings(hidden), patients()
    parameters = first_parameters(chosen, COLUMNS, seed=1)
    assert len(parameters) == parameter_count(chosen, COLUMNS)
    network, table = plain(hidden, parameters), torch.from_numpy(values)
    loss = sum(
        ((network(table[i : i + 1])[0] - table[i])[torch.from_numpy(seen[i])] ** 2).sum() for i in range(len(values))
    )
    assert isinstance(loss, torch.Tensor)
    gradient = torch.nn.utils.parameters_to_vector(torch.autograd.grad(loss, list(network.parameters())))
    found = gradient_sums(chosen, parameters, values, seen)
    np.testing.assert_allclose(found[:2], [len(values), float(loss.detach())], rtol=1e-12)
    np.testing.assert_allclose(found[2:], gradient.numpy(), atol=1e-10)
    half = len(network) // 2
    np.testing.assert_allclose(codes(chosen, parameters, values), network[:half](table).detach().numpy(), atol=1e-12)


def trained(chosen: Autoencoder, sites: list[slice]) -> tuple[Values, list[float]]:
    values, seen = patients()
    parameters, losses = first_parameters(chosen, COLUMNS, seed=1), []
    memory: dict[str, Values] = {}
    for _ in range(chosen.rounds):
        sums = np.sum([gradient_sums(chosen, parameters, values[s], seen[s]) for s in sites], axis=0)
        losses.append(float(sums[1] / sums[0]))
        parameters, memory = written_step(chosen, parameters, memory, sums)
    return parameters, losses


@pytest.mark.parametrize("hidden", [0, 5])
def test_sites_train_the_autoencoder_of_pooled_patients_with_torchs_adam(hidden: int) -> None:
    chosen, (values, seen) = settings(hidden), patients()
    found, losses = trained(chosen, [slice(0, 0), slice(0, 3), slice(3, 17), slice(17, 40)])
    network, table = plain(hidden, first_parameters(chosen, COLUMNS, seed=1)), torch.from_numpy(values)
    adam = torch.optim.Adam(network.parameters(), lr=chosen.rate)
    for _ in range(chosen.rounds):
        adam.zero_grad()
        loss = torch.where(torch.from_numpy(seen), network(table) - table, 0).square().sum() / len(values)
        torch.autograd.backward([loss])
        adam.step()
    pooled = torch.nn.utils.parameters_to_vector(network.parameters()).detach().numpy()
    np.testing.assert_allclose(found, pooled, atol=1e-6)
    assert losses[-1] < 0.5 * losses[0], "it learns"


def test_a_code_of_two_hidden_numbers_reproduces_the_columns() -> None:
    chosen = settings(0).model_copy(update={"rounds": 600, "rate": 0.03})
    values, seen = patients()
    _, losses = trained(chosen, [slice(0, 40)])
    assert losses[-1] < 0.15 * float((values[seen] ** 2).sum() / len(values))


def test_sums_of_codes_add_up_over_sites() -> None:
    chosen, (values, _) = settings(), patients()
    parameters = first_parameters(chosen, COLUMNS, seed=1)
    made = codes(chosen, parameters, values)
    found = code_sums(chosen, parameters, values[:9]) + code_sums(chosen, parameters, values[9:])
    np.testing.assert_allclose(found, [40, *made.sum(axis=0), *(made**2).sum(axis=0)], rtol=1e-12)


def test_the_seed_alone_decides_the_first_values_and_a_code_is_no_longer_than_the_columns() -> None:
    first = [first_parameters(settings(), COLUMNS, seed=s) for s in (1, 1, 2)]
    assert np.array_equal(first[0], first[1])
    assert not np.array_equal(first[0], first[2])
    assert width(settings(components=50), COLUMNS) == COLUMNS
