"""The report's section on scores that a private study releases: read from noised sums, beside the simulation's exact ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from oncofed_server.report_cells import Cell, Notes, Row, Table, cell_of, count_cell
from oncofed_server.report_charts import domain_of, interval_axis, interval_row
from oncofed_server.report_scores import Score, Study, listing, mapping, number
from oncofed_server.report_verdict import metric_name

__all__ = ["ReleasedView", "released_view"]

WIDTH = 260
_NOT_THERE = "no exact score is in this result; only a simulation has one"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleasedView:
    """What the section shows.

    Attributes:
        facts: (what, number) of the release: epsilon, delta, noise.
        scores: one row per task and metric, the released value with its interval beside the exact one.
        calibration: (task, observed against predicted in groups of score bins).
    """

    facts: tuple[tuple[str, Cell], ...]
    scores: Table
    calibration: tuple[tuple[str, Table], ...]


def _score(raw: Mapping[str, Any]) -> Score:
    ends = [number(end) for end in listing(raw.get("ci"))]
    low, high = ends if len(ends) == 2 else (None, None)
    why = str(raw.get("why") or "") or None
    return Score(value=number(raw.get("value")), low=low, high=high, why=why)


def _exact(study: Study, row: Mapping[str, Any]) -> Score:
    """The federated model's score from patients as they are: of the row's own seed where it names one."""
    metrics = mapping(mapping(study.raw.get("tasks")).get(str(row.get("task"))))
    arm = mapping(mapping(metrics.get(str(row.get("metric")))).get("federated"))
    value = number(arm.get("exact")) if number(arm.get("exact")) is not None else number(arm.get("overall"))
    seeds, seed = listing(study.raw.get("seeds")), number(row.get("seed"))
    if seed is not None:
        per_seed = listing(arm.get("per_seed"))
        place = seeds.index(seed) if seed in seeds else len(per_seed)
        value = number(per_seed[place]) if place < len(per_seed) else None
    return Score(value=value, why=_NOT_THERE)


def _name(row: Mapping[str, Any]) -> str:
    metric = str(row.get("metric", ""))
    shown = "predicted less observed" if metric == "calibration" else metric_name(metric)
    seed = number(row.get("seed"))
    return f"{row.get('task', '')}, {shown}" + ("" if seed is None else f", seed {seed:g}")


def _scores(study: Study, rows: list[Mapping[str, Any]]) -> Table:
    notes = Notes()
    pairs = [(row, _score(row), _exact(study, row)) for row in rows]
    domain = domain_of(score for _, *both in pairs for score in both)
    return Table(
        columns=("released", "exact: not released", "patients, noised", "events, noised"),
        rows=tuple(
            Row(
                name=_name(row),
                cells=(
                    cell_of(released, notes),
                    cell_of(exact, notes),
                    count_cell(row.get("patients"), notes),
                    count_cell(row.get("events"), notes),
                ),
                picture=interval_row(
                    [("federated", "released", released), ("reference", "exact, not released", exact)],
                    domain,
                    width=WIDTH,
                    gap=9,
                ),
            )
            for row, released, exact in pairs
        ),
        notes=notes,
        axis=interval_axis(domain, WIDTH),
    )


def _calibration(row: Mapping[str, Any]) -> Table:
    notes, rows = Notes(), []
    for raw in listing(row.get("points")):
        point = mapping(raw)
        ends = [number(end) for end in listing(point.get("range"))]
        name = " to ".join("?" if end is None else f"{end:.2f}" for end in ends) or "?"
        observed = _score({"value": point.get("observed"), "ci": point.get("ci")})
        predicted = Score(value=number(point.get("predicted")))
        cells = (cell_of(predicted, notes), cell_of(observed, notes), count_cell(point.get("patients"), notes))
        rows.append(Row(name=name, cells=cells))
    return Table(columns=("predicted", "observed", "patients, noised"), rows=tuple(rows), notes=notes)


def released_view(study: Study) -> ReleasedView | None:
    """The section's content from `result["released"]`, or None where the result has no such rows."""
    rows = [row for row in map(mapping, listing(study.raw.get("released"))) if row]
    if not rows:
        return None
    # One release of one vector: every row has the same.
    facts = (("epsilon of a test patient", "epsilon"), ("delta", "delta"), ("noise on each count", "noise_std"))
    values = [(name, number(rows[0].get(key))) for name, key in facts]
    return ReleasedView(
        facts=tuple((name, Cell(text=f"{value:.3g}", value=value)) for name, value in values if value is not None),
        scores=_scores(study, rows),
        calibration=tuple((_name(row), _calibration(row)) for row in rows if listing(row.get("points"))),
    )
