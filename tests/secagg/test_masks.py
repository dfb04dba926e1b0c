"""Masks are AES-256's key stream as ring words, and come off again."""

from __future__ import annotations

import os

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import ECB
from hypothesis import given, settings
from hypothesis import strategies as st

from oncofed_shared.secagg.keys import agreement, pair_key, public_key
from oncofed_shared.secagg.masks import add_masks, array_hash, word

LENGTHS = [1, 3, 4, 5, 32_767, 32_768, 32_769, 70_001]
KEYS = st.lists(st.tuples(st.binary(min_size=32, max_size=32), st.booleans()), max_size=4)


@settings(max_examples=40)
@given(keys=KEYS, bits=st.sampled_from([32, 64]), length=st.sampled_from(LENGTHS))
def test_masks_come_off_bit_for_bit(keys, bits, length):
    start = np.frombuffer(os.urandom(length * bits // 8), dtype=word(bits))
    total = start.copy()
    add_masks(total, keys)
    add_masks(total, [(key, not minus) for key, minus in reversed(keys)])
    np.testing.assert_array_equal(total, start)


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("length", LENGTHS)
def test_a_mask_is_the_key_stream_counted_by_hand(length, bits):
    """Another way to the same words: encrypt the counters 0, 1, 2 one block at a time."""
    key = os.urandom(32)
    mask = np.zeros(length, dtype=word(bits))
    add_masks(mask, [(key, False)])
    blocks = -(-length * bits // 128)
    encrypt = Cipher(AES256(key), ECB()).encryptor()  # noqa: S305 - counter mode by hand
    stream = b"".join(encrypt.update(i.to_bytes(16, "big")) for i in range(blocks))
    expected = np.frombuffer(stream[: length * bits // 8], dtype=f"<u{bits // 8}")
    np.testing.assert_array_equal(mask, expected)


def test_a_shorter_mask_begins_a_longer_one():
    key = os.urandom(32)
    masks = [np.zeros(n, dtype=np.uint32) for n in LENGTHS]
    for mask in masks:
        add_masks(mask, [(key, True)])
    for mask in masks[:-1]:
        np.testing.assert_array_equal(mask, masks[-1][: len(mask)])


def test_a_pair_has_the_same_key_from_either_side(federation):
    world = federation(3)
    one, other = os.urandom(32), os.urandom(32)
    step, names = world.make_step(0), world.names
    keys = [
        pair_key(world.group, b"", step, names=(names[0], names[1]), secret=agreement(one), public=public_key(other)),
        pair_key(world.group, b"", step, names=(names[1], names[0]), secret=agreement(other), public=public_key(one)),
        pair_key(world.group, b"", step, names=(names[0], names[2]), secret=agreement(one), public=public_key(other)),
    ]
    assert keys[0] == keys[1] != keys[2]


def test_a_vectors_hash_is_of_its_little_endian_words():
    words = np.arange(10, dtype=np.uint32)
    assert array_hash(words) == array_hash(words.astype(">u4"))
    assert array_hash(words) != array_hash(words.astype(np.uint64))
    assert array_hash(words[::2]) == array_hash(words[::2].copy())
