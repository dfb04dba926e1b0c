"""The tests that the threat model names are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "threat-model.md").read_text(encoding="utf-8")
ROWS = [[c.strip() for c in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("| ")]
CLAIMS = [row for row in ROWS if row[0] != "who"]
NAMED = sorted({name for row in CLAIMS for name in re.findall(r"`([^`]+)`", row[4])})


def names_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef)}


@pytest.mark.parametrize("row", CLAIMS, ids=lambda row: row[0][:40])
def test_every_claim_says_who_can_cannot_why_and_names_a_test(row):
    assert len(row) == 5
    assert all(row)
    assert re.search(r"`[^`]+\.py", row[4])


@pytest.mark.parametrize("named", NAMED)
def test_a_named_test_exists(named):
    file, _, test = named.partition("::")
    path = ROOT / "tests" / file
    assert path.is_file()
    assert not test or test in names_in(path)


def test_the_rules_about_what_is_not_promised_are_there():
    text = PAGE[PAGE.index("## Not promised") :]
    assert "rule 21" in text
    assert "rule 22" in text


def test_every_code_of_the_door_is_documented():
    page = (ROOT / "docs" / "protocol-messages.md").read_text(encoding="utf-8")
    table = page[page.index("## A site's door") : page.index("### Another model")]
    documented = set(re.findall(r"^\| `([a-z-]+)`", table, flags=re.MULTILINE))
    files = [
        "client/oncofed_client/door.py",
        "client/oncofed_client/door_checks.py",
        "client/oncofed_client/door_memory.py",
    ]
    files += ["client/oncofed_client/known_rosters.py", "client/oncofed_client/deliveries.py"]
    files += ["shared/oncofed_shared/sealed.py", "shared/oncofed_shared/sights.py"]
    used = {c for f in files for c in re.findall(r'code="([a-z-]+)"', (ROOT / f).read_text(encoding="utf-8"))}
    assert used - documented == {"refused"}, "`refused` is the aggregator's word for the constant answer"
