"""The cache and its key: what goes in comes out, whole or not at all, and for the right patient alone."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oncofed_client.prepare.cache import Cache, Damaged, Entry
from oncofed_client.prepare.keys import KEY_FILE, SiteKey
from oncofed_shared.errors import StorageError

KEY = SiteKey(bytes(range(32)))
OTHER = SiteKey(bytes(32))
RECIPE, INPUTS = "a" * 32, "b" * 32


def entry(*values: float) -> Entry:
    return Entry(columns=tuple(f"shape_{i}" for i in range(len(values))), values=np.array(values))


def cache_in(folder: Path, key: SiteKey = KEY) -> Cache:
    return Cache(folder / "cache", key)


def files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())


@given(st.text(max_size=40), st.binary(max_size=200), st.integers(0, 10_000), st.text(max_size=20))
def test_what_is_sealed_opens_under_its_label_alone_and_unchanged(
    label: str, content: bytes, bit: int, other: str
) -> None:
    sealed = KEY.seal(label, content)
    assert KEY.unseal(label, sealed) == content
    assert sealed == KEY.seal(label, content)
    assert OTHER.unseal(label, sealed) is None
    if other != label:
        assert KEY.unseal(other, sealed) is None
    changed = bytearray(sealed)
    changed[bit // 8 % len(sealed)] ^= 1 << bit % 8
    assert KEY.unseal(label, bytes(changed)) is None
    assert KEY.unseal(label, sealed[:-1]) is None
    assert len(content) < 8 or content not in sealed


@given(st.text(), st.text())
def test_pseudonyms_are_equal_for_equal_patients_under_one_key_only(one: str, two: str) -> None:
    assert (KEY.pseudonym(one) == KEY.pseudonym(two)) == (one == two)
    assert KEY.pseudonym(one) != OTHER.pseudonym(one)
    assert KEY.digest(one.encode()) != KEY.pseudonym(one)


@given(st.lists(st.binary(max_size=8), max_size=4), st.lists(st.binary(max_size=8), max_size=4))
def test_digests_tell_their_parts_apart(one: list[bytes], two: list[bytes]) -> None:
    assert (KEY.digest(*one) == KEY.digest(*two)) == (one == two)
    assert KEY.digest_chunks(one) == KEY.digest_chunks([b"".join(one)])


@given(st.lists(st.floats(), max_size=20))
def test_an_entry_comes_back_bit_by_bit(values: list[float]) -> None:
    made = entry(*values)
    again = Entry.from_bytes(made.to_bytes())
    assert again.columns == made.columns
    assert again.values.tobytes() == made.values.tobytes()
    assert again.to_bytes() == made.to_bytes()


def test_the_key_is_made_once_and_is_its_owners_alone(tmp_path: Path) -> None:
    first = SiteKey.open(tmp_path / "state")
    path = tmp_path / "state" / KEY_FILE
    assert path.stat().st_mode & 0o777 == 0o600
    assert SiteKey.open(tmp_path / "state").pseudonym("P1") == first.pseudonym("P1")
    assert SiteKey.open(tmp_path / "other").pseudonym("P1") != first.pseudonym("P1")
    path.chmod(0o640)
    with pytest.raises(StorageError, match="chmod 600"):
        SiteKey.open(tmp_path / "state")
    path.chmod(0o600)
    for broken in ("", "zz", "00" * 31):
        path.write_text(broken, encoding="ascii")
        with pytest.raises(StorageError, match="damaged"):
            SiteKey.open(tmp_path / "state")
    with pytest.raises(TypeError, match="does not leave"):
        pickle.dumps(first)
    with pytest.raises(ValueError, match="32 bytes"):
        SiteKey(b"short")


def test_an_entry_is_found_by_patient_recipe_and_inputs_and_replaced_when_inputs_change(tmp_path: Path) -> None:
    cache = cache_in(tmp_path)
    assert cache.get("P1", RECIPE) is None
    cache.put("P1", RECIPE, INPUTS, entry(1, np.nan))
    cache.put("P2", RECIPE, INPUTS, entry(2))
    cache.put("P1", "c" * 32, INPUTS, entry(3))
    assert cache.has("P1", RECIPE, INPUTS)
    assert not cache.has("P1", RECIPE, "d" * 32)
    cache.put("P1", RECIPE, "d" * 32, entry(4))
    assert not cache.has("P1", RECIPE, INPUTS)
    found = {(p, r): cache.get(p, r).values.tolist() for p, r in (("P1", RECIPE), ("P2", RECIPE), ("P1", "c" * 32))}
    assert found == {("P1", RECIPE): [4], ("P2", RECIPE): [2], ("P1", "c" * 32): [3]}
    assert {p.stat().st_mode & 0o777 for p in files(cache.folder)} == {0o600}
    cache.forget("P1", RECIPE)
    assert cache.get("P1", RECIPE) is None
    assert cache.get("P1", "c" * 32) is not None


def test_withdrawn_patients_are_gone_and_the_others_are_not(tmp_path: Path) -> None:
    cache = cache_in(tmp_path)
    assert cache.keep_only(()) == 0
    for patient in ("P1", "P2", "P3"):
        cache.put(patient, RECIPE, INPUTS, entry(1))
    before = {p: p.read_bytes() for p in files(cache.folder / KEY.pseudonym("P2"))}
    assert cache.keep_only({"P2", "P9"}) == 2
    assert {p: p.read_bytes() for p in files(cache.folder)} == before


def test_a_changed_moved_or_foreign_entry_is_noticed(tmp_path: Path) -> None:
    cache = cache_in(tmp_path)
    cache.put("P1", RECIPE, INPUTS, entry(1, 2, 3))
    cache.put("P2", RECIPE, INPUTS, entry(4, 5, 6))
    [path], [other] = (files(cache.folder / KEY.pseudonym(p)) for p in ("P1", "P2"))
    whole = path.read_bytes()
    half = whole[: len(whole) // 2]
    for wrong in (half, b"", whole[:-1] + bytes([whole[-1] ^ 1]), other.read_bytes(), OTHER.seal("x", b"y")):
        path.write_bytes(wrong)
        with pytest.raises(Damaged, match="preprocess"):
            cache.get("P1", RECIPE)
        assert not cache.has("P1", RECIPE, INPUTS)
        assert not path.exists()
    with pytest.raises(Damaged):
        cache_in(tmp_path, OTHER_WITH_SAME_NAMES).get("P2", RECIPE)


class _SameNames(SiteKey):
    """Another site's key that finds the same folder: only its encryption differs."""

    def pseudonym(self, patient: str) -> str:
        return KEY.pseudonym(patient)


OTHER_WITH_SAME_NAMES = _SameNames(bytes(32))


def test_the_index_is_a_help_and_never_an_obstacle(tmp_path: Path) -> None:
    cache = cache_in(tmp_path)
    assert cache.read_index() == {}
    cache.write_index({"seen": {"a": 1}})
    assert cache.read_index() == {"seen": {"a": 1}}
    assert b"seen" not in (cache.folder / "index").read_bytes()
    (cache.folder / "index").write_bytes(b"broken")
    assert cache.read_index() == {}
    leftover = cache.folder / KEY.pseudonym("P1") / ".half-written"
    leftover.parent.mkdir()
    leftover.write_bytes(b"x")
    cache.clear_leftovers()
    assert not leftover.exists()
