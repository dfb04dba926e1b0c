"""What `make bench secagg` compares are two working secure sums."""

from __future__ import annotations

import numpy as np

from oncofed_simulations.bench_secagg import SecureRound, quantised, real_numbers
from oncofed_simulations.flower_secagg import FlowerSecAgg

SITES, MISSING, SIZE = 4, (1,), 200


def test_ours_and_flowers_give_the_sum_and_the_mean_of_the_same_vectors():
    draw = np.random.default_rng(3)
    ours = SecureRound(sites=SITES, drop=len(MISSING), size=SIZE, steps=2)
    vectors = {n: draw.uniform(-1, 1, SIZE).astype(np.float32) for n in ours.group.names}
    alive = {n: v for i, (n, v) in enumerate(vectors.items()) if i not in MISSING}
    plain = np.sum(list(alive.values()), axis=0, dtype=np.float64)

    reveals = ours.masked(alive)
    total = SecureRound.unmask(ours.aggregator, reveals)
    np.testing.assert_allclose(total, plain, atol=1e-5)

    theirs = FlowerSecAgg.create(sites=SITES, threshold=ours.group.threshold)
    masked = [theirs.mask(i, [v], 100) for i, v in enumerate(vectors.values()) if i not in MISSING]
    mean = theirs.unmask([np.sum([m[i] for m in masked], axis=0) for i in range(2)], MISSING)
    np.testing.assert_allclose(mean[0] * len(alive), plain, atol=1e-2)


def test_a_timed_upload_is_masked():
    ours = SecureRound(sites=3, drop=0, size=SIZE, steps=2)
    vector = np.linspace(-1, 1, SIZE, dtype=np.float32)
    masked = ours.mask(ours.group.names[0], vector)
    assert np.count_nonzero(masked == quantised(vector)) <= 1
    np.testing.assert_allclose(real_numbers(quantised(vector)), vector, atol=1e-6)
