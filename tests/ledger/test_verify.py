"""Whoever edits, removes, reorders, rolls back, truncates or signs anew is found, wherever he does it."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import warnings
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oncofed_client.budget import Charge
from oncofed_client.ledger import HEAD_FILE, LEDGER_FILE, Ledger, verify
from oncofed_client.ledger_chain import LEDGER, Row
from oncofed_client.ledger_verify import MOST_LINES
from oncofed_shared.errors import DataError, StorageError
from oncofed_shared.witness import Witness, sign_witness

AGGREGATOR = Ed25519PrivateKey.from_private_bytes(b"a" * 32)
STRANGER = Ed25519PrivateKey.from_private_bytes(b"s" * 32)
ENTRIES = 16
Rows = list[Row]
COLUMNS = ("number", "content", "previous", "hash", "signature")
many = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def template(
    tmp_path_factory: pytest.TempPathFactory, key: Ed25519PrivateKey, step: Charge, approve: Callable[..., int]
) -> dict[str, Any]:
    """A ledger of ENTRIES entries, with its middle and its end as others saw them."""
    path = tmp_path_factory.mktemp("template") / LEDGER_FILE
    with Ledger.create(path, site="north", key=key, now=1.0) as made:
        approve(made, "plan-1")
        approve(made, "plan-2")
        for i in range(6):
            made.commit(made.reserve("plan-1", f"r{i}", f"q{i}", step, now=3.0 + i), f"h{i}", now=3.0 + i)
            if i == 2:
                middle = sign_witness(AGGREGATOR, name="aggregator", head=made.head())
                old_head = path.with_name(HEAD_FILE).read_bytes()
        made.end_plan("plan-2", now=20.0)
        end = sign_witness(AGGREGATOR, name="aggregator", head=made.head())
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT * FROM entries ORDER BY number").fetchall()
        made_by = [s for (s,) in connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")]
    assert len(rows) == ENTRIES
    head = path.with_name(HEAD_FILE).read_bytes()
    return {"rows": rows, "sql": made_by, "head": head, "old_head": old_head, "middle": middle, "end": end}


@pytest.fixture
def forge(tmp_path: Path, template: dict[str, Any]) -> Callable[..., Path]:
    """A ledger file of any rows, with every trigger in its place: what somebody with the file and time can make."""

    def write(rows: Rows, head: bytes | None = None) -> Path:
        path = tmp_path / LEDGER_FILE
        path.unlink(missing_ok=True)
        tables = [s for s in template["sql"] if not s.startswith("CREATE TRIGGER")]
        with closing(sqlite3.connect(path)) as connection:
            for statement in tables:
                connection.execute(statement)
            connection.executemany("INSERT INTO entries VALUES (?, ?, ?, ?, ?)", rows)
            for statement in template["sql"]:
                if statement not in tables:
                    connection.execute(statement)
            connection.commit()
        path.with_name(HEAD_FILE).write_bytes(template["head"] if head is None else head)
        return path

    return write


def problems(path: Path, key: Ed25519PrivateKey, *witnesses: Witness) -> list[str]:
    """What `verify` finds; whatever that is, the ledger does not open either, unless only a witness knows better."""
    found = verify(path, key.public_key(), witnesses=witnesses)
    if not witnesses:
        if found:
            with pytest.raises(Exception, match=str(path)):
                Ledger.open(path, site="north", key=key)
        else:
            Ledger.open(path, site="north", key=key).close()
    assert all(len(line.splitlines()) == 1 for line in found)
    return found


def changed(value: Any, where: int) -> Any:
    """The same value, with one character, bit or unit changed."""
    if isinstance(value, int):
        return value + ENTRIES + where
    if isinstance(value, str):
        where %= len(value)
        return value[:where] + chr(ord(value[where]) ^ 1) + value[where + 1 :]
    where %= 8 * len(value)
    return bytes(b ^ (1 << where % 8) if i == where // 8 else b for i, b in enumerate(value))


def signed_anew(rows: Rows, key: Ed25519PrivateKey, first: int = 0) -> Rows:
    """Rows with hashes and links that fit, and signatures of a key, from one of them on."""
    made = rows[:first]
    for i, row in enumerate(rows[first:], start=first):
        previous = made[-1][3] if made else bytes(32)
        digest = hashlib.sha256(LEDGER.hashed + previous + row[1].encode()).digest()
        made.append((i + 1, row[1], previous, digest, key.sign(LEDGER.signed + digest)))
    return made


def test_what_was_not_touched_is_sound(
    forge: Callable[..., Path], template: dict[str, Any], key: Ed25519PrivateKey
) -> None:
    path = forge(template["rows"])
    assert problems(path, key) == []
    assert problems(path, key, template["middle"], template["end"]) == []


@given(st.integers(0, ENTRIES - 1), st.tuples(st.sampled_from(COLUMNS), st.integers(0, 4000)))
@many
def test_an_edited_entry_is_found(
    forge: Callable[..., Path], template: dict[str, Any], key: Ed25519PrivateKey, n: int, edit: tuple[str, int]
) -> None:
    (column, where), rows = edit, list(template["rows"])
    c = COLUMNS.index(column)
    row = list(rows[n])
    row[c] = changed(row[c], where)
    rows[n] = tuple(row)
    found = problems(forge(rows), key)
    assert found
    assert any(f"entry {i}:" in found[0] for i in (n + 1, n + 2))


@given(st.integers(0, ENTRIES - 1), st.tuples(st.integers(1, 4), st.booleans()))
@many
def test_removed_entries_are_found(
    forge: Callable[..., Path], template: dict[str, Any], key: Ed25519PrivateKey, n: int, how: tuple[int, bool]
) -> None:
    count, numbered = how
    rows = template["rows"][:n] + template["rows"][n + count :]
    if numbered:
        rows = [(i + 1, *row[1:]) for i, row in enumerate(rows)]
    assert problems(forge(rows), key)


@given(st.permutations(range(ENTRIES)).filter(lambda order: list(order) != list(range(ENTRIES))), st.booleans())
@many
def test_reordered_entries_are_found(
    forge: Callable[..., Path], template: dict[str, Any], key: Ed25519PrivateKey, order: list[int], linked: bool
) -> None:
    rows = [(i + 1, *template["rows"][j][1:]) for i, j in enumerate(order)]
    if linked:
        links = [bytes(32), *(row[3] for row in rows)]
        rows = [(row[0], row[1], link, row[3], row[4]) for row, link in zip(rows, links, strict=False)]
    assert problems(forge(rows), key)


@given(st.integers(1, ENTRIES - 1))
@many
def test_a_truncated_ledger_is_found_by_its_head_or_by_a_witness(
    forge: Callable[..., Path], template: dict[str, Any], key: Ed25519PrivateKey, left: int
) -> None:
    path = forge(template["rows"][:left])
    (line,) = problems(path, key)
    assert line.startswith(f"{HEAD_FILE}: somebody has seen entry {ENTRIES} of epoch 1")
    # Whoever takes the head away too is told on by a witness.
    path = forge(template["rows"][:left], b"")
    assert "is missing" in verify(path, key.public_key())[0]
    assert [p for p in problems(path, key, template["end"]) if p.startswith("witness aggregator: somebody has seen")]


def test_a_ledger_that_is_rolled_back_with_its_head_is_found_by_a_witness_alone(
    forge: Callable[..., Path], template: dict[str, Any], key: Ed25519PrivateKey
) -> None:
    path = forge(template["rows"][:9], template["old_head"])
    assert verify(path, key.public_key()) == []
    assert problems(path, key, template["middle"]) == []
    (line,) = problems(path, key, template["middle"], template["end"])
    assert "this ledger ends with entry 9 of epoch 1: it was rolled back" in line


@given(st.integers(0, ENTRIES - 1), st.booleans())
@many
def test_entries_that_another_key_signed_are_found(
    forge: Callable[..., Path], template: dict[str, Any], key: Ed25519PrivateKey, first: int, edited: bool
) -> None:
    rows = list(template["rows"])
    if edited:
        fields = json.loads(rows[first][1])
        fields["at"] += 0.5
        content = json.dumps(fields, sort_keys=True, separators=(",", ":"))
        rows[first] = (rows[first][0], content, *rows[first][2:])
    found = problems(forge(signed_anew(rows, STRANGER, first)), key)
    assert f"entry {first + 1}: is not signed by this site's key" in found[0]
    if first == 0:
        # The forger brings his own public key, too: then the one that was enrolled must be asked.
        whole = signed_anew(rows, STRANGER)
        (line, *_) = verify(forge(whole), STRANGER.public_key())
        assert "names another key than the site's" in line


def test_entries_that_break_a_rule_are_found_although_the_site_signed_them(
    forge: Callable[..., Path], template: dict[str, Any], key: Ed25519PrivateKey
) -> None:
    def rewritten(n: int, **body: Any) -> list[str]:
        rows = list(template["rows"])
        fields = json.loads(rows[n - 1][1])
        fields |= {k: body.pop(k) for k in ("epoch", "site", "at", "kind") if k in body}
        fields["body"] |= body
        rows[n - 1] = (n, json.dumps(fields, sort_keys=True, separators=(",", ":")), *rows[n - 1][2:])
        found = verify(forge(signed_anew(rows, key)), key.public_key())
        assert found[0].startswith(f"entry {n}: ")
        return found

    charge = json.loads(template["rows"][1][1])["body"]["charges"][0]
    policy = json.loads(template["rows"][1][1])["body"]["policy"]
    assert "time never runs backwards" in rewritten(5, at=0.5)[0]
    assert "another epoch" in rewritten(5, epoch=2)[0]
    assert "another site" in rewritten(5, site="south")[0]
    assert "wrong place" in rewritten(5, kind="open")[0]
    assert "approved already" in rewritten(3, plan="plan-1")[0]
    assert "has no charge" in rewritten(2, charges=[])[0]
    assert "has not what belongs" in rewritten(2, charges=[charge | {"steps": 0}])[0]
    assert "has not what belongs" in rewritten(2, policy=policy | {"orders": [5.0]})[0]
    assert "policy.epsilon_total" in rewritten(2, policy=policy | {"epsilon_total": 0.5})[0]
    assert "is not approved" in rewritten(4, plan="plan-3")[0]
    assert "has its entry" in rewritten(6, reply="r0")[0]
    assert "30 left" in rewritten(4, steps=31)[0]
    assert "has not what belongs" in rewritten(4, line=1)[0]
    assert "never made" in rewritten(5, entry=6)[0]
    assert "is committed" in rewritten(7, entry=4)[0]
    assert "has not what belongs" in rewritten(7, more=1)[0]
    assert "not open" in rewritten(ENTRIES, plan="plan-3")[0]
    assert "reads 1" in rewritten(1, format=2)[0]


@pytest.mark.parametrize("content", ["", "{}", "[]", "nonsense", '{"number":1}', "[" * 5000])
def test_what_is_no_entry_is_found(
    forge: Callable[..., Path], template: dict[str, Any], key: Ed25519PrivateKey, content: str
) -> None:
    rows = [*template["rows"][:4], (5, content, b"", b"", b"")]
    assert "entry 5: is not written as an entry is" in problems(forge(signed_anew(rows, key)), key)[0]


def test_an_empty_ledger_and_one_without_its_triggers_are_found(
    forge: Callable[..., Path], template: dict[str, Any], key: Ed25519PrivateKey
) -> None:
    assert problems(forge([]), key) == ["entry 1: is missing; the ledger is empty"]
    path = forge(template["rows"])
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DROP TRIGGER entries_stay")
        connection.commit()
    assert verify(path, key.public_key()) == [
        f"{LEDGER_FILE}: table or trigger entries_stay: is not as a ledger has it"
    ]


def test_a_file_that_is_no_ledger_is_said_to_be_none(tmp_path: Path, key: Ed25519PrivateKey) -> None:
    path = tmp_path / LEDGER_FILE
    for content in (b"", b"not a database, but long enough to look at" * 100):
        path.write_bytes(content)
        with pytest.raises(DataError, match="is not a ledger"):
            verify(path, key.public_key())
        with pytest.raises(DataError):
            Ledger.open(path, site="north", key=key)
    path.unlink()
    with pytest.raises(DataError, match="does not exist"):
        verify(path, key.public_key())


@given(st.integers(0, 100_000), st.integers(0, 255))
@many
def test_a_byte_that_changed_on_the_disk_never_passes_for_another_entry(
    forge: Callable[..., Path], template: dict[str, Any], key: Ed25519PrivateKey, where: int, value: int
) -> None:
    """Any byte of the file: it is found, or it was none that means anything."""
    path = forge(template["rows"])
    content = bytearray(path.read_bytes())
    content[where % len(content)] = value
    path.write_bytes(content)
    try:
        found = verify(path, key.public_key())
    except (DataError, StorageError):
        return
    if not found:
        with closing(sqlite3.connect(path)) as connection, warnings.catch_warnings():
            rows = connection.execute("SELECT * FROM entries ORDER BY number").fetchall()
        assert rows == template["rows"]


def test_a_witness_that_is_none_is_named(
    forge: Callable[..., Path], template: dict[str, Any], key: Ed25519PrivateKey
) -> None:
    path, end = forge(template["rows"]), template["end"]
    edited = Witness(name="peer", public_key=end.public_key, head=end.head, signature=end.signature)
    assert "its signature is not its own" in problems(path, key, edited)[0]
    nonsense = Witness(name="peer", public_key=end.public_key, head=b"x", signature=end.signature)
    assert "not the head of a ledger" in problems(path, key, nonsense)[0]
    stranger = Ed25519PrivateKey.from_private_bytes(b"t" * 32)
    with Ledger.create(path.parent / "other" / LEDGER_FILE, site="north", key=stranger, now=1.0) as other:
        foreign = sign_witness(AGGREGATOR, name="aggregator", head=other.head())
    assert "this site did not sign" in problems(path, key, foreign)[0]
    public = AGGREGATOR.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    assert end.public_key == public


def test_many_problems_are_cut_short(
    forge: Callable[..., Path], template: dict[str, Any], key: Ed25519PrivateKey
) -> None:
    rows = [(n, f"{c} ", p, h, s[::-1]) for n, c, p, h, s in template["rows"]]
    found = verify(forge(rows), key.public_key())
    assert len(found) == MOST_LINES + 1
    assert found[-1] == "and 12 more problems"
