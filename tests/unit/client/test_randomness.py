"""The source of noise: what it draws is uniform, independent, and cannot be drawn twice."""

from __future__ import annotations

import numpy as np
from scipy import stats

from oncofed_client.randomness import Randomness

DRAWS = 1_000_000


def test_uniforms_are_uniform_multiples_of_the_smallest_step() -> None:
    drawn = Randomness.repeatable("uniforms").uniforms(DRAWS)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert stats.kstest(drawn, "uniform").pvalue > 1e-3
    counts = np.bincount((drawn * 256).astype(int), minlength=256)
    assert stats.chisquare(counts).pvalue > 1e-3
    # 53 bits: the steps are whole, and the last one is used.
    steps = drawn * 2.0**53
    assert np.array_equal(steps, np.rint(steps))
    assert 0.49 < np.mean(steps % 2) < 0.51


def test_two_steps_two_halves_and_neighbours_have_nothing_in_common() -> None:
    random = Randomness.repeatable("steps")
    first, second = random.uniforms(DRAWS), random.uniforms(DRAWS)
    for a, b in ((first, second), (first[:-1], first[1:]), (first[: DRAWS // 2], first[DRAWS // 2 :])):
        assert abs(np.corrcoef(a, b)[0, 1]) < 4.5 / np.sqrt(len(a))


def test_every_length_is_given() -> None:
    random = Randomness.repeatable("lengths")
    assert [len(random.words(n)) for n in (0, 1, 2, 7)] == [0, 1, 2, 7]
    assert [len(random.halves(n)) for n in (0, 1, 4, 7, 200_001)] == [0, 1, 4, 7, 200_001]


def test_halves_are_the_words_in_four_and_a_word_is_not_used_twice() -> None:
    one, other = Randomness.repeatable("halves"), Randomness.repeatable("halves")
    for count in (8, 5, 70_001, 300_001):
        whole = other.words((count + 3) // 4)
        assert np.array_equal(one.halves(count), whole.view("<u2")[:count])
    assert np.array_equal(one.words(3), other.words(3))


def test_the_label_alone_decides_a_repeatable_stream() -> None:
    same = [Randomness.repeatable("0|alpha|1").words(100) for _ in range(2)]
    assert np.array_equal(*same)
    assert not np.array_equal(same[0], Randomness.repeatable("0|alpha|2").words(100))
    assert not np.array_equal(same[0], Randomness.repeatable("1|alpha|1").words(100))


def test_streams_of_the_operating_system_differ() -> None:
    streams = {Randomness.from_os().uniforms(4).tobytes() for _ in range(50)}
    assert len(streams) == 50


def test_it_is_aes_in_counter_mode() -> None:
    # NIST SP 800-38A, F.5.5 CTR-AES256.Encrypt: the key stream of the first block.
    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    counter = bytes.fromhex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff")
    stream = bytes.fromhex("0bdf7df1591716335e9a8b15c860c502")
    words = np.frombuffer(stream, dtype="<u8")
    assert np.array_equal(Randomness(key, counter).words(2), words)
    expected = (words >> np.uint64(11)) * 2.0**-53
    assert np.array_equal(Randomness(key, counter).uniforms(2), expected)
