"""Scores as a release, from the sites' counts to the report's rows: real shares of noise, their sum, nothing else."""

from __future__ import annotations

import math

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent

from oncofed_client.integer_step import tables_share
from oncofed_client.randomness import Randomness
from oncofed_server.released import released_scores
from oncofed_shared.consortium import TablesMechanism, gaussian_epsilon, server_counts
from oncofed_shared.noised_scores import noised_scores
from oncofed_shared.noised_tables import (
    coarse_counts,
    coarse_entries,
    coarse_size,
    grid_from,
    histogram_size,
    score_histogram,
)
from oncofed_shared.plan import Plan, parse

SITES = {"a": 90, "b": 60, "c": 50, "d": 40}


@pytest.fixture(scope="module")
def plan() -> Plan:
    return parse(
        {
            "study": {"name": "released", "purpose": "Try how scores are released."},
            "tasks": {
                "os": {"kind": "survival", "time": "t", "event": "e", "edges": [0, 180, 365, 730], "horizon": 365},
                "kind": {"kind": "classification", "label": "k", "classes": ["x", "y", "z"]},
            },
            "modalities": {"clinical": {"patterns": ["x*"], "scaling": "none", "range": [0, 1]}},
            "model": {"layers": 0},
            "training": {"rounds": 10, "optimiser": "sgd", "rate": 1.0},
            "privacy": {
                "noise": "consortium", "epsilon": 3.0, "delta": 1e-5, "clip_norm": 1.0, "sampling_rate": 0.5,
                "score_epsilon": 3.0, "patients": SITES,
            },
        }
    )  # fmt: skip


def patients(number: int, random: np.random.Generator):
    latent = random.normal(size=number)
    days = np.ceil(random.exponential(500, size=number) * np.exp(-1.2 * latent))
    probabilities = random.dirichlet(np.ones(3), size=number)
    survival = np.exp(-0.6 * np.exp(0.5 * latent))[:, None] ** np.array([0.5, 1.0, 2.0])
    labels = {
        "os": np.stack([days, random.random(number) < 0.8], 1).astype(float),
        "kind": np.array([random.choice(3, p=row) for row in probabilities], dtype=float),
    }
    return {"os": survival, "kind": probabilities}, labels


def opened(vectors, mechanism, random: Randomness):
    """The sum of all sites' shares, decoded: all that the aggregator sees."""
    return server_counts(sum(tables_share(v, mechanism=mechanism, random=random) for v in vectors), mechanism)


def test_a_release_from_counts_to_rows_is_as_noisy_as_it_says_and_near_the_exact_scores(plan):
    random, coins = np.random.default_rng(1), Randomness.repeatable("released scores")
    entries = coarse_entries(plan)
    first = TablesMechanism.for_plan(plan, cells=histogram_size(plan), entries=entries)
    validation = [score_histogram(plan, patients(n, random)[0]) for n in SITES.values()]
    grid = grid_from(plan, opened(validation, first, coins))
    second = TablesMechanism.for_plan(plan, cells=coarse_size(plan, grid), entries=entries)
    counts = [coarse_counts(plan, *patients(n, random), grid) for n in SITES.values()]
    exact, noise = sum(counts), second.noise_std(len(SITES))
    sums = [opened(counts, second, coins) for _ in range(60)]
    seen = np.std(np.stack(sums) - exact)
    # The standard deviation of 60 x cells draws, within five of its own errors.
    assert seen == pytest.approx(noise, rel=5 / math.sqrt(2 * 60 * len(exact)))
    plain = noised_scores(plan, exact, noise_std=0.0, grid=grid)
    inside = []
    for total in sums:
        for row in released_scores(plan, total, second, len(SITES), grid):
            if row["metric"] in {"c_index", "auc"} and row["value"] is not None:
                low, high = row["ci"]
                inside.append(low <= plain[row["task"]][row["metric"]]["value"] <= high)
    assert len(inside) > 100
    assert np.mean(inside) > 0.95


def test_one_test_patient_moves_the_integers_by_what_is_charged(plan):
    mechanism = TablesMechanism.for_plan(plan, cells=coarse_size(plan), entries=coarse_entries(plan))
    predictions, labels = patients(30, np.random.default_rng(2))
    whole = coarse_counts(plan, predictions, labels)
    for without in range(30):
        keep = np.arange(30) != without
        rest = coarse_counts(
            plan, {k: v[keep] for k, v in predictions.items()}, {k: v[keep] for k, v in labels.items()}
        )
        shares = [tables_share(v, mechanism=mechanism, random=Randomness.repeatable("same")) for v in (whole, rest)]
        moved = np.linalg.norm(shares[0] - shares[1])
        assert moved == pytest.approx(mechanism.unit * math.sqrt(mechanism.entries), rel=1e-12)
    pooled, _ = mechanism.charge()
    assert isinstance(pooled, GaussianDpEvent)
    assert gaussian_epsilon(noise_multiplier=pooled.noise_multiplier, delta=1e-5) <= 3.0
    # The shares of all sites but one that tells its own carry the noise that is charged, in units of one patient's change.
    honest = math.sqrt(len(SITES) - 1) * mechanism.share_sigma
    assert honest >= pooled.noise_multiplier * mechanism.unit * math.sqrt(mechanism.entries)
