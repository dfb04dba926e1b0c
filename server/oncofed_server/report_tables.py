"""The report's tables of scores: overall, by site, by group, at external hospitals, over splits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from oncofed_server.report_cells import (
    Cell,
    Notes,
    Row,
    Table,
    arm_names,
    cell_of,
    count_cell,
)
from oncofed_server.report_charts import domain_of, interval_axis, interval_row, strip
from oncofed_server.report_privacy import unreleased
from oncofed_server.report_scores import (
    ARMS,
    Arm,
    Score,
    Spread,
    Study,
    TaskView,
    listing,
    mapping,
    number,
    reference_label,
)
from oncofed_server.report_verdict import METRIC_NAMES, metric_name

__all__ = [
    "confusion_tables",
    "every_table",
    "exact_table",
    "external_table",
    "hero_table",
    "score_table",
    "site_table",
    "spread_table",
    "subgroup_tables",
]

WIDE_METRICS = 4


def _present(study: Study, task: TaskView) -> list[str]:
    arms, names = task.metrics.get(task.main_metric, {}), arm_names(study)
    return [a for a in ARMS if a in arms and a in names]


def hero_table(study: Study, task: TaskView) -> Table:
    """The arms in the main metric, with intervals and seeds on one axis."""
    arms = {a: task.arm(a) for a in _present(study, task)}
    names, notes = arm_names(study), Notes()
    seeds = [Score(value=v) for arm in arms.values() for v in arm.per_seed]
    domain = domain_of([*(arm.overall for arm in arms.values()), *seeds])
    rows = tuple(
        Row(
            name=names[a],
            arm=a,
            cells=(cell_of(arm.overall, notes),),
            picture=interval_row([(a, names[a], arm.overall)], domain, width=430, gap=25, seeds={a: arm.per_seed}),
        )
        for a, arm in arms.items()
    )
    return Table(
        columns=(metric_name(task.main_metric),),
        rows=rows,
        notes=notes,
        axis=interval_axis(domain, 430),
    )


def score_table(study: Study, task: TaskView) -> Table:
    """Every arm and every reference model in every metric."""
    metrics = [m for m in METRIC_NAMES if m in task.metrics]
    metrics += [m for m in task.metrics if m not in METRIC_NAMES]
    metrics.sort(key=lambda m: m != task.main_metric)
    names, notes = arm_names(study), Notes()
    lines: list[tuple[str, str, dict[str, Arm]]] = [
        (a, names[a], {m: task.metrics[m][a] for m in metrics if a in task.metrics[m]})
        for a in ARMS
        if a in names and any(a in task.metrics[m] for m in metrics)
    ]
    lines += [
        ("reference", f"Reference ({reference_label(name, study.plan)})", dict(arms))
        for name, arms in task.references.items()
        if name != study.reference_name
    ]
    missing = Arm(overall=Score(why="not computed for this arm"))
    main = {name: scores.get(task.main_metric, missing).overall for _, name, scores in lines}
    domain, width = domain_of(main.values()), 300 if len(metrics) <= WIDE_METRICS else 200
    rows = tuple(
        Row(
            name=name,
            arm=arm,
            cells=tuple(cell_of(scores.get(m, missing).overall, notes) for m in metrics),
            picture=interval_row([(arm, name, main[name])], domain, width=width, gap=18),
        )
        for arm, name, scores in lines
    )
    return Table(
        columns=tuple(map(metric_name, metrics)),
        rows=rows,
        notes=notes,
        axis=interval_axis(domain, width),
    )


def _compare(
    names: Mapping[str, str],
    per_arm: Mapping[str, Mapping[str, Score]],
    counts: Mapping[str, Iterable[Any]],
    title: str = "",
) -> Table:
    """One row per site or group: its counts, then each arm's number and mark on a common axis."""
    notes, rows = Notes(), []
    hidden: dict[str, list[str]] = {}
    everyone = list(dict.fromkeys(name for scores in per_arm.values() for name in scores))
    everyone = [n for n in counts if n in everyone] + [n for n in everyone if n not in counts]
    domain = domain_of(s for scores in per_arm.values() for s in scores.values())
    absent = Score(why="not scored in this arm")
    for name in everyone:
        scores = {arm: table.get(name, absent) for arm, table in per_arm.items()}
        if all(s.value is None for s in scores.values()):
            reasons = [s.why for s in scores.values() if s.why] or ["no reason was recorded"]
            hidden.setdefault(reasons[0], []).append(name)
            continue
        pairs = [(arm, names[arm], s) for arm, s in scores.items()]
        rows.append(
            Row(
                name=name,
                cells=(
                    *(count_cell(c, notes) for c in counts.get(name, ())),
                    *(cell_of(s, notes) for s in scores.values()),
                ),
                picture=interval_row(pairs, domain),
            )
        )
    return Table(
        columns=tuple(names[a] for a in per_arm),
        rows=tuple(rows),
        notes=notes,
        axis=interval_axis(domain),
        hidden=hidden,
        title=title,
    )


def _site_counts(study: Study, *, external: bool) -> dict[str, list[Any]]:
    sites = list(map(mapping, listing(study.raw.get("sites"))))
    sites = [s for s in sites if bool(s.get("external")) == external]
    sites.sort(key=lambda s: -(number(s.get("patients")) or 0))
    return {str(s.get("name")): [s.get("patients" if external else "test")] for s in sites}


def site_table(study: Study, task: TaskView) -> Table:
    """The arms at each site, on its own test patients."""
    per_arm = {a: task.arm(a).per_site for a in _present(study, task) if task.arm(a).per_site}
    return _compare(arm_names(study), per_arm, _site_counts(study, external=False))


def every_table(task: TaskView) -> Table:
    """All metrics of the federated model at the sites where any can be shown."""
    metrics, notes = list(task.metrics), Notes()
    tables = [task.arm("federated", m).per_site for m in metrics]
    absent = Score(why="not scored")
    rows = tuple(
        Row(name=site, cells=tuple(cell_of(t.get(site, absent), notes) for t in tables))
        for site in (tables[0] if tables else {})
        if any(t.get(site, absent).value is not None for t in tables)
    )
    return Table(columns=tuple(map(metric_name, metrics)), rows=rows, notes=notes)


def external_table(study: Study, task: TaskView) -> Table:
    """The arms at hospitals that did not train, all together first."""
    counts: dict[str, list[Any]] = {"all external": [None]}
    counts |= _site_counts(study, external=True)
    known = [number(c[0]) for n, c in counts.items() if n != "all external"]
    counts["all external"] = [sum(v or 0 for v in known) or None]
    per_arm = {}
    for a in _present(study, task):
        arm = task.arm(a)
        if arm.external.value is not None or arm.external_sites:
            per_arm[a] = {"all external": arm.external, **arm.external_sites}
    return _compare(arm_names(study), per_arm, counts)


def subgroup_tables(study: Study, task: TaskView) -> list[Table]:
    """One table per subgroup column."""
    arms = {a: task.arm(a).subgroups for a in _present(study, task)}
    titles = list(dict.fromkeys(title for groups in arms.values() for title in groups))
    tables = []
    for title in titles:
        per_arm = {a: groups[title] for a, groups in arms.items() if title in groups}
        counts: dict[str, list[Any]] = {}
        for groups in per_arm.values():
            for group, score in groups.items():
                if counts.get(group, [None])[0] is None:
                    counts[group] = [score.patients]
        tables.append(_compare(arm_names(study), per_arm, counts, title))
    return tables


def spread_table(study: Study, spreads: Mapping[str, Spread]) -> Table:
    """Mean, standard deviation and every part of folds or re-splits."""
    names, notes = arm_names(study), Notes()
    others = [a for a in spreads if a not in ARMS]
    names |= {a: f"Reference ({reference_label(a, study.plan)})" for a in others}
    shown = {a: spreads[a] for a in (*ARMS, *others) if a in spreads}
    domain = domain_of(Score(value=v) for s in shown.values() for v in (*s.parts, s.mean))
    rows = tuple(
        Row(
            name=names[a],
            arm=a,
            cells=(
                cell_of(Score(value=s.mean, low=s.low, high=s.high), notes),
                cell_of(Score(value=s.sd), notes),
                Cell(text=f"{len(s.parts)}", value=len(s.parts)),
            ),
            picture=strip(a, s, domain, names[a]),
        )
        for a, s in shown.items()
    )
    return Table(columns=("mean", "sd", "number"), rows=rows, notes=notes, axis=interval_axis(domain))


def _bound(value: float | None, notes: Notes) -> Cell:
    if value is None:
        return cell_of(Score(why="no bound stated"), notes)
    return Cell(text=f"{value:.4f}", value=value)


def exact_table(study: Study, task: TaskView) -> Table | None:
    """Exact values beside those of tables, where a simulation has them."""
    names, notes = arm_names(study), Notes()
    rows = [
        Row(
            name=f"{metric_name(metric)}, {names.get(a, a)}",
            arm=a,
            cells=(
                cell_of(arm.overall, notes),
                Cell(text=f"{arm.exact:.4f}", value=arm.exact),
                _bound(task.binning_error.get(metric), notes),
            ),
        )
        for metric, arms in task.metrics.items()
        for a, arm in arms.items()
        if arm.exact is not None
    ]
    columns = ("from tables" if unreleased(study) else "released", "exact", "bound on the difference")
    return Table(columns=columns, rows=tuple(rows), notes=notes) if rows else None


def confusion_tables(study: Study, task: TaskView) -> list[tuple[str, list[str], list[list[Any]]]]:
    """Per arm: its name, the classes, and rows of (count, share of the row) or None."""
    names, found = arm_names(study), []
    for arm in ("federated", "pooled", "reference"):
        figure = mapping(task.figures.get(arm))
        counts = [[number(v) for v in listing(row)] for row in listing(figure.get("confusion"))]
        if not counts:
            continue
        classes = [str(c) for c in listing(figure.get("classes") or task.plan.get("classes"))]
        classes += [f"class {k + 1}" for k in range(len(classes), len(counts))]
        cells = [[None if v is None else (v, v / (sum(w or 0 for w in row) or 1)) for v in row] for row in counts]
        found.append((names[arm], classes, cells))
    return found
