"""The secure sum is the plain sum, bit for bit, whoever is missing."""

from __future__ import annotations

import itertools
import random
import tracemalloc

import numpy as np
import pytest

from oncofed_shared.secagg import AggregatorPhase

# Of each larger number of sites so many patterns; 500 together. A step of n sites costs n * n exchanges of keys.
PATTERNS = {9: 300, 12: 140, 17: 52, 50: 8}


def largest_drop(sites: int, collude: int = 1) -> int:
    """Most missing sites that still leave the smallest legal threshold."""
    return sites - ((sites + collude) // 2 + 1)


def assert_exact(world, step, dropped):
    total = world.step(step, dropped)
    assert world.aggregator.included == tuple(n for n in world.names if n not in dropped)
    np.testing.assert_array_equal(total, world.plain_sum())
    assert total.dtype == world.plain_sum().dtype


@pytest.mark.parametrize("ring_bits", [32, 64])
@pytest.mark.parametrize("sites", range(3, 9))
def test_every_pattern_of_missing_sites_up_to_drop_gives_the_plain_sum(federation, sites, ring_bits):
    drop = largest_drop(sites)
    patterns = [p for size in range(drop + 1) for p in itertools.combinations(range(sites), size)]
    world = federation(sites, drop=drop, ring_bits=ring_bits, block=len(patterns))
    world.set_up()
    for number, pattern in enumerate(patterns):
        assert_exact(world, world.make_step(number), {world.names[i] for i in pattern})


@pytest.mark.parametrize("sites", PATTERNS)
def test_random_patterns_and_the_boundary_give_the_plain_sum(federation, sites):
    drop = largest_drop(sites)
    draw = random.Random(sites)
    patterns = [draw.sample(range(sites), draw.randint(0, drop)) for _ in range(PATTERNS[sites])]
    patterns += [[], list(range(drop)), list(range(sites - drop, sites))]
    world = federation(sites, drop=drop, block=len(patterns))
    world.set_up()
    for number, pattern in enumerate(patterns):
        assert_exact(world, world.make_step(number), {world.names[i] for i in pattern})


@pytest.mark.parametrize("sites", range(3, 51))
def test_every_number_of_sites_adds_up_with_all_or_at_the_boundary(federation, sites):
    drop = largest_drop(sites)
    world = federation(sites, drop=drop, block=1)
    world.set_up()
    assert_exact(world, world.make_step(0), set(world.names[:drop]) if sites % 2 else set())


@pytest.mark.parametrize("sites", [4, 8, 11])
def test_one_site_too_few_gives_no_sum(federation, sites):
    drop = largest_drop(sites)
    world = federation(sites, drop=drop, block=2)
    world.set_up()
    world.upload(world.make_step(0), world.names[drop + 1 :])
    world.aggregator.close()
    assert world.aggregator.phase is AggregatorPhase.LOST
    assert world.aggregator.asks() == {}
    # And the next step is as if nothing had been.
    assert_exact(world, world.make_step(1, attempt=1), set())


@pytest.mark.parametrize("size", [1, 16_383, 16_384, 16_385, 100_003])
@pytest.mark.parametrize("ring_bits", [32, 64])
def test_any_length_of_vector_is_masked_whole(federation, size, ring_bits):
    world = federation(4, drop=1, ring_bits=ring_bits, block=2)
    world.set_up()
    assert_exact(world, world.make_step(0, size=size), {world.names[2]})
    step = world.make_step(1, size=size)
    vector = np.zeros(size, dtype=f"u{ring_bits // 8}")
    masked = world.sites[world.names[0]].upload(step, vector).masked
    # A word of the mask is zero by chance only.
    assert np.count_nonzero(masked == 0) <= 1


def test_blocks_follow_each_other_and_numbers_may_be_skipped(federation):
    world = federation(4, drop=1, block=3)
    for block in range(3):
        world.set_up(block)
        for number in (3 * block, 3 * block + 2):
            assert_exact(world, world.make_step(number), {world.names[block]})


def test_scores_of_another_size_go_the_same_way(federation):
    world = federation(3, block=2)
    world.set_up()
    assert_exact(world, world.make_step(0), set())
    assert_exact(world, world.make_step(1, kind="scores", size=9), set())


def test_sites_that_leave_after_their_upload_are_in_the_sum(federation):
    world = federation(5, drop=1, block=1)
    world.set_up()
    world.upload(world.make_step(0))
    # t = 4 of 5 answer the request for shares; the fifth never does.
    world.exchange(world.names[1:])
    np.testing.assert_array_equal(world.aggregator.result(), world.plain_sum())
    assert world.aggregator.included == world.names


def test_survivors_may_leave_between_endorsement_and_reveal_down_to_the_threshold(federation):
    world = federation(8, drop=2, block=1)
    world.set_up()
    alive = world.names[1:]
    world.upload(world.make_step(0), alive)
    world.aggregator.close()
    for name in alive[:5]:
        world.aggregator.take(world.sites[name].answer(world.aggregator.asks()[name]))
    # Five signatures, of the sites 1 to 5; the reveals come from 3 to 7, two of whom never signed.
    assert world.aggregator.phase is AggregatorPhase.CERTIFIED
    world.exchange(alive[2:])
    np.testing.assert_array_equal(world.aggregator.result(), world.plain_sum())


def test_the_aggregator_keeps_one_vector_whatever_the_number_of_sites(federation):
    size, peaks = 50_000, []
    for sites in (4, 16):
        world = federation(sites, block=1)
        world.set_up()
        step = world.make_step(0, size=size)
        tracemalloc.start()
        world.aggregator.begin(step)
        for name in world.names:
            vector = world.vector(size, name)
            world.aggregator.take(world.sites[name].upload(step, vector))
        world.exchange()
        world.aggregator.result()
        peaks.append(tracemalloc.get_traced_memory()[1] / (4 * size))
        tracemalloc.stop()
    # The sum, one upload with what it was made from, and little more.
    assert peaks[1] < peaks[0] + 1
    assert peaks[1] < 8
