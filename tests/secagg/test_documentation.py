"""The page on secure sums has the rows of the code's tables, and no others."""

from __future__ import annotations

import re
from pathlib import Path

from oncofed_shared.secagg import AggregatorPhase
from oncofed_shared.secagg.site_party import MOVES

PAGE = Path(__file__).resolve().parents[2] / "docs" / "secure-aggregation.md"


def rows(heading: str) -> list[list[str]]:
    """Cells of the table under a heading, without its header."""
    section = PAGE.read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    table = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in table[2:]]


def test_the_page_has_every_move_of_a_site():
    documented = [tuple(cell.strip("`") for cell in row[:3]) for row in rows("A site in one step")]
    assert documented == [(state.value, event.__name__, after.value) for (state, event), after in MOVES.items()]


def test_the_page_has_every_state_of_the_aggregator():
    table = rows("The aggregator")
    named = {name for row in table for cell in (row[0], row[2]) for name in re.findall(r"`(\w+)`", cell)}
    assert named == {phase.value for phase in AggregatorPhase}
