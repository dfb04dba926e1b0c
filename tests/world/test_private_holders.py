"""Averages over holders under privacy, in whole runs: what is divided by what, what it costs, and who holds nobody back."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from oncofed_shared.errors import ExitCode
from oncofed_shared.features import unite
from oncofed_shared.holders import patients_behind
from oncofed_shared.layout import Layout
from oncofed_shared.messages import Trial, Update, from_bytes
from oncofed_shared.network import FusionNetwork, build
from oncofed_shared.storage import read_arrays
from oncofed_simulations.consortium import baseline_plan

TRIAL = Trial(seed=0)
PATIENTS = {"alpha": 25, "beta": 20, "gamma": 15}
# The first hospital has no genes, and the last no radiomics.
SHARES = {"genes": 35 / 60, "radiomics": 45 / 60}
PRIVATE: dict[str, Any] = {
    "modalities": {
        "clinical": {
            "scaling": "constants",
            "columns": {"age": {"kind": "numeric", "unit": "years", "range": [0, 120], "center": 60, "spread": 10}},
        },
        "genes": {"scaling": "constants", "center": 2, "spread": 3},
        "radiomics": {"scaling": "constants", "center": 2, "spread": 3},
    },
    "model": {"fusion": "late"},
    "training": {"rounds": 1, "rate": 0.5, "weight_decay": 0.2, "dtype": "float64"},
    "strategy": {"name": "fedavg"},
    "simulation": {"noise_seed": 7},
}
SITE = {
    "noise": "site",
    "epsilon": 5,
    "delta": 1e-4,
    "clip_norm": 0.5,
    "sampling_rate": 0.5,
    "patients": PATIENTS,
    "release_tables": True,
}
CONSORTIUM = {k: v for k, v in SITE.items() if k != "release_tables"} | {
    "noise": "consortium",
    "drop": 0,
    "collude": 1,
    "score_epsilon": 3,
}
modes = pytest.mark.parametrize("privacy", [SITE, CONSORTIUM], ids=["site", "consortium"])


@pytest.fixture
def new_private(new_world: Callable[..., Any]) -> Callable[..., Any]:
    """Three hospitals and a private study; the same each time."""

    def make(privacy: dict[str, Any], **changes: Any) -> Any:
        return new_world().change(**PRIVATE).change(privacy=privacy).change(**changes).write()

    return make


def holders(world: Any) -> Any:
    return world.change(strategy={"average": "holders", "holders": SHARES}).write_study()


def ended(world: Any, simulate: Callable[..., Any], *more: str) -> tuple[dict[str, Any], np.ndarray[Any, Any]]:
    """The result of a run from the command line, and the parameters of its model."""
    done = simulate(*world.arguments(*more))
    assert done.code == ExitCode.DONE, done.err
    arrays, _ = read_arrays(world.out / "model.safetensors")
    made = Layout.of(first(world)).flatten({n.removeprefix("network."): a for n, a in arrays.items()})
    return json.loads((world.out / "result.json").read_bytes()), made


def first(world: Any) -> FusionNetwork:
    cohorts = [s.source.cohort(world.plan).columns for s in world.consortium().sites.values()]
    return build(world.plan, unite(world.plan, cohorts), seed=0)


def spread(world: Any, network: FusionNetwork) -> np.ndarray[Any, Any]:
    """What each parameter's mean is divided by, beside a mean over all patients: 1, or the share of a modality's holders."""
    shares = [SHARES.get(name, 1.0) for name in sorted(world.plan.modalities)]
    return patients_behind(network, 1.0, np.array(shares))


@modes
def test_the_divisor_is_the_plan_s_and_nothing_else_changes(
    new_private: Callable[..., Any], simulate: Callable[..., Any], privacy: dict[str, Any]
) -> None:
    # One of them with the comparisons that a private study has: they are not private, or have one site.
    plain, ended_plain = ended(new_private(privacy), simulate, "--no-baselines")
    world = holders(new_private(privacy))
    held, ended_held = ended(world, simulate)
    network = first(world)
    start = Layout.of(network).flatten({n: p.detach().numpy() for n, p in network.named.items()})
    behind = spread(world, network)
    assert set(behind.tolist()) == {1.0, *SHARES.values()}
    decayed = np.concatenate(
        [np.full(p.numel(), 0.2 * (p.dim() > 1 and "baseline" not in n)) for n, p in network.named.items()]
    )
    # The same patients, the same noise: a step is -rate (mean + decay x weights), and the mean alone is over fewer patients.
    pulled = 0.5 * decayed * start
    expected = start + (ended_plain - start + pulled) / behind - pulled
    assert np.abs(ended_held - expected).max() < 1e-8
    assert np.abs(pulled[behind < 1]).max() > 1e-3
    assert np.abs(ended_plain - start + pulled)[behind < 1].max() > 1e-3
    # What a patient of any site costs is the same.
    assert [s["epsilon"] for s in held["sites"]] == [s["epsilon"] for s in plain["sites"]]
    assert {s["name"]: s["patients"] for s in held["sites"]} == PATIENTS
    assert held["uncharged"] == plain["uncharged"]
    arms = held["tasks"]["survival"]["c_index"]
    assert {"federated", "pooled", "alone", "without_privacy"} <= set(arms)
    assert arms["without_privacy"]["exact"] is not None


def test_one_cohort_takes_steps_of_its_own_length(new_private: Callable[..., Any]) -> None:
    plan = holders(new_private(SITE)).plan
    assert baseline_plan(plan).strategy.average == "patients"
    assert baseline_plan(plan).strategy.holders is None


def test_what_a_site_sends_is_byte_for_byte_what_it_sends_without_it(new_private: Callable[..., Any]) -> None:
    """So what one patient can change in it is what it was, and nobody reads from it who has what."""
    sent: dict[str, dict[str, bytes]] = {}
    for average in ("patients", "holders"):
        world = new_private(SITE, training={"weight_decay": 0.0})
        updates = sent.setdefault(average, {})

        def tap(direction: str, site: str, content: bytes, updates: dict[str, bytes] = updates) -> None:
            message = from_bytes(content)
            if direction == "up" and isinstance(message, Update):
                updates[site] = message.vector.tobytes()

        (holders(world) if average == "holders" else world).consortium(tap=tap).federated(TRIAL)
    assert sent["patients"] == sent["holders"]
    assert set(sent["holders"]) == set(PATIENTS)
    assert len({len(v) for v in sent["holders"].values()}) == 1


def test_a_hospital_without_genes_does_not_hold_their_encoder_back(
    new_private: Callable[..., Any], simulate: Callable[..., Any]
) -> None:
    """Most patients are at a hospital without genes: with holders their columns go as far as without that hospital."""
    patients = {"alpha": 200, "beta": 20, "gamma": 15}
    little = SITE | {"epsilon": 20, "clip_norm": 2.0, "sampling_rate": 1.0, "patients": patients}
    training = {"rounds": 8, "rate": 0.2, "weight_decay": 0.05}
    model = {"layers": 0, "fusion": None}
    went = {}
    for name, sites in (("patients", patients), ("holders", patients), ("without", ("beta", "gamma"))):
        roster = {n: patients[n] for n in sites}
        world = new_private(little | {"patients": roster}, training=training, model=model)
        if name == "holders":
            world.change(strategy={"average": "holders", "holders": {"genes": 35 / 235}}).write_study()
        network = first(world)
        genes = patients_behind(network, 1.0, np.array([1.0, 0.5, 1.0])) < 1
        start = Layout.of(network).flatten({n: p.detach().numpy() for n, p in network.named.items()})
        _, made = ended(world, simulate, "--no-baselines")
        went[name] = (made - start)[genes]
    alone = went["without"]
    far = {n: float(w @ alone / (alone @ alone)) for n, w in went.items()}
    assert 0.8 < far["holders"] < 1.25
    assert far["patients"] < 0.4
