"""What was agreed before training is one value that all sites have, to the last bit: in training, in the service, in prediction."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from oncofed_server.run_state import Phase
from oncofed_shared.errors import DataError
from oncofed_shared.messages import Head, Open, Ready, Refusal, Trial
from oncofed_shared.model_seal import check_model, seal_model
from oncofed_shared.public_keys import public_of
from oncofed_shared.sights import model_of
from oncofed_shared.storage import read_arrays, write_arrays

NAMED = {f"v{i}": {"kind": "numeric", "range": [-6.0, 6.0]} for i in range(5)}
CHANGES: dict[str, Any] = {
    "modalities": {"values": {"columns": NAMED, "reduction": {"kind": "pca", "components": 2}}},
    "privacy__statistics_epsilon": 4.0,
}
HEAD = Head(session="s", step=1, attempt=0, plan_hash="0" * 64, trial=Trial(seed=0))
ARRAYS = {
    "center": np.array([0.5, -1.0]),
    "spread": np.array([1.0, 2.0]),
    "reduction.genes.map": np.array([0.6, 0.8]),
    "harmonisation.genes.mean": np.array([0.1, 0.2]),
    "statistics": np.array([40.0, 3.0]),
}


def flipped(array: np.ndarray[Any, Any], bit: int) -> np.ndarray[Any, Any]:
    """The array with one bit of it changed."""
    content = bytearray(array.astype("<f8").tobytes())
    content[bit // 8] ^= 1 << bit % 8
    return np.frombuffer(bytes(content), dtype="<f8").astype(np.float64)


@given(name=st.sampled_from(sorted(ARRAYS)), bit=st.integers(0, 127))
def test_every_bit_of_it_is_in_what_sites_sign_to_each_other(name: str, bit: int) -> None:
    """The deployed service, without secure sums: see tests/deploy/test_attacks.py for the refusal of a site."""
    whole = Open(head=HEAD, columns={"genes": ("a", "b")}, arrays=ARRAYS)
    other = replace(whole, arrays=ARRAYS | {name: flipped(ARRAYS[name], bit)})
    assert model_of(other) != model_of(whole)
    assert model_of(replace(whole, columns={"genes": ("a", "c")})) != model_of(whole)


@pytest.mark.parametrize("name", ["center", "statistics", "reduction.values.map", "reduction.values.mean"])
def test_a_site_that_was_sent_another_last_bit_trains_with_nobody(new_world, monkeypatch, name: str) -> None:
    """In a private run, deployed or not: it refuses what it can find itself, and the masks of all are bound to the rest."""
    world = new_world(**CHANGES)
    handle, answers = world.sites["alpha"].handle, []

    def spoilt(request: Any) -> Any:
        if not isinstance(request, Open):
            return handle(request)
        answers.append(handle(replace(request, arrays=request.arrays | {name: flipped(request.arrays[name], 0)})))
        return answers[-1]

    monkeypatch.setattr(world.sites["alpha"], "handle", spoilt)
    aggregator = world.run()
    assert aggregator.state.phase is Phase.FAILED
    # A centre that it does not find itself it refuses; last digits of eigenvectors may be another processor's. A last digit of a
    # released number may or may not be seen in what follows from it.
    expected = {"center": Refusal, "statistics": Refusal | Ready}.get(name, Ready)
    assert isinstance(answers[0], expected)
    assert aggregator.state.round <= 1


def test_a_model_whose_preparation_has_another_bit_has_no_seal(new_world, tmp_path) -> None:
    """What is checked at `model fetch`, and again at `predict`."""
    preparation = new_world(**CHANGES).run().state.preparation
    key = Ed25519PrivateKey.generate()
    study = type("Study", (), {"id": "1" * 64, "step_key": public_of(key)})()
    path = tmp_path / "model.safetensors"
    arrays = {f"preparation.{n}": a for n, a in preparation.arrays().items()}
    write_arrays(path, arrays, {"plan": "p"})
    manifest = json.dumps({}).encode()
    seal = seal_model(study.id, path.read_bytes(), manifest, key)
    check_model(study, path.read_bytes(), manifest, seal)
    for name, array in arrays.items():
        write_arrays(path, arrays | {name: flipped(array, 3)}, {"plan": "p"})
        assert set(read_arrays(path)[0]) == set(arrays)
        with pytest.raises(DataError):
            check_model(study, path.read_bytes(), manifest, seal)
