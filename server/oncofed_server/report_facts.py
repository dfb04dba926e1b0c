"""What surrounds the scores: what was asked, who took part, bytes, time, how to reproduce it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from oncofed_server.report_cells import Cell, Notes, Row, Table, count_cell
from oncofed_server.report_charts import modality_mark, run_name
from oncofed_server.report_privacy import epsilon_name, noise_of
from oncofed_server.report_scores import Study, TaskView, listing, mapping, number
from oncofed_server.report_verdict import DASH, count

__all__ = [
    "Fact",
    "command",
    "costs",
    "describe_modality",
    "describe_task",
    "facts",
    "participants",
    "plan_text",
    "size_text",
    "time_text",
]


_STEPS = {
    "signed_log": "signed log",
    "zscore": "z-scored",
    "minmax": "min-max scaled",
    "constants": "scaled by the plan's constants",
    "mask": "gaps masked",
    "impute": "gaps filled with the mean",
    "drop": "a gap drops the modality",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """A number to be seen at a glance, with its name below."""

    value: str
    name: str


def size_text(size: float | None) -> str:
    """Bytes in decimal units.

    >>> size_text(12_345_678)
    '12.3 MB'
    """
    if size is None:
        return DASH
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size:,.0f} bytes"


def time_text(seconds: float | None) -> str:
    """A duration.

    >>> time_text(7384)
    '2 h 3 min'
    """
    if seconds is None:
        return DASH
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _day(values: list[Any]) -> str:
    day = number(values[0]) if values else None
    return "?" if day is None else f"{day:g}"


def describe_task(task: TaskView) -> str:
    """What a task predicts, from the plan."""
    plan = task.plan
    if task.kind == "survival" and plan:
        edges = listing(plan.get("edges"))
        causes = ", ".join(map(str, listing(plan.get("causes"))))
        competing = f" with the competing causes {causes}" if causes else ""
        return (
            f"time ({plan.get('time', '?')}, days) to an event "
            f"({plan.get('event', '?')}){competing}, in {count(max(len(edges) - 1, 0), 'interval')} up "
            f"to day {_day(edges[-1:])}; risk is read at day {_day([plan.get('horizon')])}"
        )
    if plan:
        classes = ", ".join(map(str, listing(plan.get("classes"))))
        return f"{plan.get('label', '?')}, one of{' (in this order)' if plan.get('ordered') else ''}: {classes}"
    return "the plan is not part of this result"


def describe_modality(modality: Mapping[str, Any]) -> str:
    """Where a modality's values come from and what is done to them, from the plan."""
    columns = mapping(modality.get("columns"))
    patterns = [str(p) for p in listing(modality.get("patterns"))]
    source = ", ".join(map(str, columns)) if columns else ", ".join(patterns)
    steps = [str(modality.get(key, "none")) for key in ("transform", "scaling", "missing")]
    words = [_STEPS.get(step, step) for step in steps if step != "none"]
    words += ["required"] if modality.get("required") else []
    return f"{source} ({', '.join(words)})" if words else source


def facts(study: Study) -> tuple[Fact, ...]:
    """The strip of numbers below the answer."""
    sites = [mapping(s) for s in listing(study.raw.get("sites"))]
    own = [s for s in sites if not s.get("external")]
    rounds = {number(mapping(r).get("round")) for r in listing(study.raw.get("rounds"))}
    up, down = number(study.raw.get("bytes_up")), number(study.raw.get("bytes_down"))
    privacy = mapping(study.plan.get("privacy"))
    epsilon = number(privacy.get("epsilon"))
    tested = [v for v in (number(s.get("test")) for s in own) if v is not None]
    found = [
        Fact(value=f"{len(own):,}", name="site" if len(own) == 1 else "sites"),
        Fact(value=f"{sum(number(s.get('patients')) or 0 for s in own):,.0f}", name="patients"),
    ]
    if tested:
        found.append(Fact(value=f"{sum(tested):,.0f}", name="test patients"))
    if rounds:
        seeds = max(1, len(listing(study.raw.get("seeds"))))
        found.append(Fact(value=f"{len(rounds):,}", name=f"rounds, {count(seeds, 'seed')}"))
    if up is not None and down is not None:
        found.append(Fact(value=size_text(up + down), name="sent, both ways"))
    if (seconds := number(study.raw.get("seconds"))) is not None:
        found.append(Fact(value=time_text(seconds), name="in all"))
    if epsilon is None:
        found.append(Fact(value=noise_of(study), name="privacy noise"))
    else:
        found.append(Fact(value=f"{epsilon:g}", name=epsilon_name(study)))
    return tuple(found)


def costs(study: Study) -> Table:
    """Bytes and time of the federated rounds, per run."""
    runs: dict[str, list[Mapping[str, Any]]] = {}
    for entry in map(mapping, listing(study.raw.get("rounds"))):
        runs.setdefault(run_name(entry), []).append(entry)

    def cell(entries: list[Mapping[str, Any]], key: str, text: Any, notes: Notes) -> Cell:
        values = [number(e.get(key)) for e in entries]
        if any(v is None for v in values):
            return Cell(text=DASH, note=notes.letter("not recorded in every round"))
        total = sum(v for v in values if v is not None)
        return Cell(text=text(total), value=total)

    notes = Notes()
    rows = tuple(
        Row(
            name=name,
            cells=(
                Cell(text=f"{len(entries):,}", value=len(entries)),
                cell(entries, "seconds", time_text, notes),
                cell(entries, "bytes_up", size_text, notes),
                cell(entries, "bytes_down", size_text, notes),
            ),
        )
        for name, entries in runs.items()
    )
    columns = ("rounds", "time", "sites to aggregator", "aggregator to sites")
    return Table(columns=columns, rows=rows, notes=notes)


def plan_text(study: Study) -> str:
    """The plan as indented JSON, without what is not part of its hash."""
    content = {k: v for k, v in study.plan.items() if k != "simulation"}
    return json.dumps(content, indent=2, ensure_ascii=False, default=str)


def command(study: Study) -> str:
    """A command that repeats the run."""
    if (given := study.raw.get("command")) is not None:
        return str(" ".join(map(str, given)) if isinstance(given, list) else given)
    words = ["oncofed-simulate", "run", "STUDY.toml", "--sites", "SITES"]
    if any(mapping(s).get("external") for s in listing(study.raw.get("sites"))):
        words += ["--external", "EXTERNAL"]
    if seeds := listing(study.raw.get("seeds")):
        words += ["--seeds", ",".join(map(str, seeds))]
    return shlex.join([*words, "--out", "OUT"])


def _event_columns(study: Study, sites: list[Mapping[str, Any]]) -> dict[str, str]:
    """Keys of the sites' event counts and what they count: `task` its events, `task.k` its class k."""
    names = {}
    for task in study.tasks:
        names[task.name] = f"{task.name}: events"
        classes = enumerate(listing(task.plan.get("classes")))
        names |= {f"{task.name}.{k}": f"{task.name}: {label}" for k, label in classes}
    return {key: name for key, name in names.items() if any(key in mapping(s.get("events")) for s in sites)}


def participants(study: Study) -> tuple[Table, tuple[str, ...], tuple[str, ...]]:
    """Who took part: (table, modality names, event columns); external hospitals come last."""
    sites = [mapping(s) for s in listing(study.raw.get("sites"))]
    sites.sort(key=lambda s: (bool(s.get("external")), -(number(s.get("patients")) or 0)))
    modalities = list(mapping(study.plan.get("modalities")))
    modalities += [m for s in sites for m in mapping(s.get("modalities"))]
    # A private study does not count who has what.
    modalities = list(dict.fromkeys(modalities)) if any(mapping(s.get("modalities")) for s in sites) else []
    events = _event_columns(study, sites)
    columns, notes, rows = ("patients", "train", "validation", "test"), Notes(), []
    for site in sites:
        patients = number(site.get("patients")) or 0
        held = [(number(mapping(site.get("modalities")).get(m)) or 0) for m in modalities]
        tags = ["external"] if site.get("external") else []
        tags += [] if site.get("trained", True) or tags else ["did not train"]
        rows.append(
            Row(
                name=str(site.get("name", "unnamed")),
                cells=tuple(
                    count_cell(v, notes)
                    for v in (
                        *(site.get(c) for c in columns),
                        *(mapping(site.get("events")).get(t) for t in events),
                    )
                ),
                tags=tuple(tags),
                marks=tuple((modality_mark(h / patients if patients else 0), count_cell(h, notes)) for h in held),
            )
        )
    table = Table(columns=columns, rows=tuple(rows), notes=notes, total=_total(rows) if rows[1:] else None)
    return table, tuple(map(str, modalities)), tuple(events.values())


def _total(rows: list[Row]) -> Row:
    """Sums over the sites that belong to the consortium."""
    own = [r for r in rows if "external" not in r.tags] or rows

    def add(column: Iterable[Cell]) -> Cell:
        cells = list(column)
        total = sum(c.value or 0 for c in cells)
        if all(c.value is None for c in cells):
            return Cell(text=DASH)
        least = "≥ " if any(c.value is None for c in cells) else ""
        return Cell(text=f"{least}{total:,.0f}", value=total)

    marks = zip(*(r.marks for r in own), strict=True)
    return Row(
        name=f"All {len(own)} sites",
        cells=tuple(add(column) for column in zip(*(r.cells for r in own), strict=True)),
        marks=tuple((Markup(""), add(cell for _, cell in column)) for column in marks),
    )
