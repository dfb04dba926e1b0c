"""The report's figures, each a function from scores to one SVG."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from oncofed_server.figures import COLOURS, Frame, mark, nice_ticks, svg, tick_text
from oncofed_server.report_scores import Score, Spread, Study, TaskView, listing, mapping, number
from oncofed_server.report_verdict import metric_name, show

__all__ = [
    "calibration",
    "domain_of",
    "interval_axis",
    "interval_row",
    "kaplan_meier",
    "learning_curves",
    "modality_mark",
    "roc",
    "run_name",
    "strip",
]

Point = tuple[float, float]
Pairs = Sequence[tuple[str, str, Score]]
"""(arm, what it is called, score) of one row."""

ROW_WIDTH, ROW_PAD = 300.0, 12.0
CHANCE = 0.5
DAYS_PER_YEAR = 365.25
PANEL = {"width": 352.0, "height": 290.0}


def domain_of(scores: Iterable[Score]) -> Point:
    """A common axis for many scores: all numbers and all intervals that are not absurdly wide."""
    seen = [v for s in scores for v in (s.value, s.low, s.high) if v is not None]
    if not seen:
        return (0.0, 1.0)
    low, high = min(seen), max(seen)
    pad = max(0.02, 0.04 * (high - low))
    return (
        max(0.0, low - pad) if low >= 0 else low - pad,
        min(1.0, high + pad) if high <= 1 else high + pad,
    )


def _row_frame(domain: Point, width: float, height: float) -> Frame:
    return Frame(
        width=width, height=height, x_range=domain, y_range=(0, 1),
        left=ROW_PAD, right=ROW_PAD, top=0, bottom=0,
    )  # fmt: skip


def _grid(frame: Frame, domain: Point) -> Markup:
    return Markup("").join(
        Markup('<line class="{}" x1="{:.1f}" x2="{:.1f}" y1="0" y2="{:.1f}"/>').format(
            "chance" if v == CHANCE else "grid", frame.x(v), frame.x(v), frame.height
        )
        for v in nice_ticks(*domain, most=7)
    )


def interval_axis(domain: Point, width: float = ROW_WIDTH) -> Markup:
    """The axis above a column of interval rows."""
    frame = _row_frame(domain, width, 16)
    ticks = nice_ticks(*domain, most=7)
    labels = Markup("").join(
        Markup('<text class="tick" text-anchor="middle" x="{:.1f}" y="12">{}</text>').format(frame.x(v), tick_text(v))
        for v in ticks
    )
    return svg(width, 16, f"axis from {domain[0]:.2f} to {domain[1]:.2f}", labels, "axisrow")


def interval_row(
    pairs: Pairs, domain: Point, *, width: float = ROW_WIDTH, gap: float = 9.0,
    seeds: Mapping[str, Sequence[float]] | None = None,
) -> Markup:  # fmt: skip
    """Marks with intervals, one arm below the other, over light vertical ticks.

    Args:
        pairs: the arms, each on a lane of its own, which stays empty without a value.
        domain: values at the ends of the axis.
        width: of the picture, in user units.
        gap: height of a lane.
        seeds: per arm its score in each seed, drawn as small ticks.
    """
    shown = [(arm, name, s) for arm, name, s in pairs if s.value is not None]
    height = max(1, len(pairs)) * gap + 7
    frame = _row_frame(domain, width, height)
    parts = [_grid(frame, domain)]
    for k, (arm, name, score) in enumerate(pairs):
        if score.value is None:
            continue
        y = (k + 0.5) * gap + 3.5
        colour = COLOURS.get(arm, COLOURS["reference"])
        text = f"{name}: {show(score.value)}"
        if score.low is not None and score.high is not None:
            text += f", interval {show(score.low)} to {show(score.high)}"
            parts.append(
                Markup('<line class="whisker" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}" stroke="{}"/>').format(
                    frame.x(score.low), frame.x(score.high), y, y, colour
                )
            )
        parts += [
            Markup('<line x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}" stroke="{}"/>').format(
                frame.x(v), frame.x(v), y + 6, y + 10, colour
            )
            for v in (seeds or {}).get(arm, ())
        ]
        parts.append(mark(arm, frame.x(score.value), y, text))
    label = "; ".join(f"{name} {show(s.value)}" for _, name, s in shown) or "no score"
    return svg(width, height, label, Markup("").join(parts), "row")


def modality_mark(part: float) -> Markup:
    """An empty, partly filled or full circle."""
    body = Markup('<circle cx="6" cy="6" r="4.6" fill="#fff" stroke="#5b6773"/>')
    if part >= 1:
        body += Markup('<circle cx="6" cy="6" r="4.6" fill="#31475c"/>')
    elif part > 0:
        around = 2 * math.pi * 2.3
        body += Markup(
            '<circle cx="6" cy="6" r="2.3" fill="none" stroke="#31475c" stroke-width="4.6" '
            'stroke-dasharray="{:.2f} {:.2f}" transform="rotate(-90 6 6)"/>'
        ).format(part * around, around)
    label = "all" if part >= 1 else "some" if part > 0 else "none"
    return svg(12, 12, label, body, "dot")


def _points(raw: object) -> list[Point]:
    pairs = [[number(v) for v in listing(p)[:2]] for p in listing(raw)]
    return [(p[0], p[1]) for p in pairs if len(p) == 2 and p[0] is not None and p[1] is not None]


def run_name(entry: Mapping[str, Any]) -> str:
    """Which run a round belongs to."""
    fold = entry.get("fold")
    return f"seed {entry.get('seed', '?')}" + ("" if fold is None else f", fold {fold}")


def _by_run(study: Study, value: Any) -> dict[str, list[Point]]:
    series: dict[str, list[Point]] = {}
    for entry in map(mapping, listing(study.raw.get("rounds"))):
        x, y = number(entry.get("round")), number(value(entry))
        if x is not None and y is not None:
            series.setdefault(run_name(entry), []).append((x, y))
    return series


def _curves(series: Mapping[str, list[Point]], y_label: str, width: float, label: str) -> Markup:
    xs = [x for points in series.values() for x, _ in points]
    ys = [y for points in series.values() for _, y in points]
    pad = 0.05 * (max(ys) - min(ys)) or 0.01
    frame = Frame(
        width=width, height=240, x_range=(min(xs), max(xs)), y_range=(min(ys) - pad, max(ys) + pad),
        left=54,
    )  # fmt: skip
    ticks = sorted({round(v) for v in nice_ticks(*frame.x_range)} | {int(min(xs))})
    body = frame.axes("round", y_label, x_ticks=ticks)
    for name, points in series.items():
        title = f"{name}: {points[0][1]:.4f} in round {points[0][0]:g}, {points[-1][1]:.4f} "
        title += f"in round {points[-1][0]:g}"
        body += frame.line(points, COLOURS["federated"], title=title, css="curve seed")
        if len(points) <= 40:
            body += Markup("").join(
                Markup('<circle cx="{:.1f}" cy="{:.1f}" r="1.9" fill="{}"/>').format(
                    frame.x(x), frame.y(y), COLOURS["federated"]
                )
                for x, y in points
            )
    return svg(width, 240, label, body)


def learning_curves(study: Study) -> list[tuple[str, Markup]]:
    """Training loss, each task's main metric on validation patients, divergence between sites; one line per run."""
    wanted: list[tuple[str, str, dict[str, list[Point]]]] = [
        ("Training loss", "loss", _by_run(study, lambda e: e.get("train_loss")))
    ]
    for task in study.tasks:

        def value(entry: Mapping[str, Any], task: TaskView = task) -> object:
            return mapping(mapping(entry.get("validation")).get(task.name)).get(task.main_metric)

        name = metric_name(task.main_metric)
        wanted.append((f"{task.name}: validation {name}", name, _by_run(study, value)))
    apart = _by_run(study, lambda e: mapping(e.get("divergence")).get("mean"))
    wanted += [("Divergence between sites", "distance from the mean update", apart)] * bool(apart)
    width = 540.0 if len(wanted) == 2 else PANEL["width"]
    return [
        (title, _curves(series, axis, width, f"{title} per round, {len(series)} run(s)"))
        for title, axis, series in wanted
        if series
    ]


def roc(task: TaskView, names: Mapping[str, str]) -> Markup | None:
    """ROC curves of the arms that have one.

    Args:
        task: whose figures.
        names: arm to what it is called.
    """
    curves = {arm: _points(mapping(task.figures.get(arm)).get("roc")) for arm in names}
    curves = {arm: points for arm, points in curves.items() if points}
    if not curves:
        return None
    frame = Frame(**PANEL, x_range=(0, 1), y_range=(0, 1))
    body = frame.axes("1 \N{MINUS SIGN} specificity", "sensitivity")
    body += frame.line([(0, 0), (1, 1)], "#9aa4ae", css="curve thin", dash="3 4", title="chance")
    for k, (arm, points) in enumerate(reversed(curves.items())):
        text = f"{arm.capitalize()}: AUC {show(task.arm(arm, 'auc').overall.value)}"
        dash = {"pooled": "7 3", "reference": "2 3"}.get(arm, "")
        body += frame.line(points, COLOURS.get(arm, "#4D4D4D"), title=text, dash=dash)
        y = frame.y(0) - 14 - 17 * k
        body += Markup(
            '<line class="curve" x1="{x}" x2="{x2}" y1="{y:.1f}" y2="{y:.1f}" stroke="{c}" '
            'stroke-dasharray="{d}"/><text class="tick" x="{x3}" y="{ty:.1f}">{t}</text>'
        ).format(
            x=142, x2=166, y=y, c=COLOURS.get(arm, "#4D4D4D"), d=dash or "none",
            x3=173, ty=y + 3.6, t=text,
        )  # fmt: skip
    return svg(PANEL["width"], PANEL["height"], f"ROC curves of {task.name}", body)


def calibration(task: TaskView, names: Mapping[str, str]) -> Markup | None:
    """Predicted against observed risk; the area of a mark grows with the patients behind it."""
    arms = {a: listing(mapping(task.figures.get(a)).get("calibration")) for a in names}
    rows = [(arm, [number(v) for v in listing(row)]) for arm, table in arms.items() for row in table]
    full = [(arm, r) for arm, r in rows if len(r) > 1 and r[0] is not None and r[1] is not None]
    if not full:
        return None
    most = max((r[2] or 0 for _, r in full if len(r) > 2), default=0) or 1
    frame = Frame(**PANEL, x_range=(0, 1), y_range=(0, 1))
    body = frame.axes("predicted", "observed")
    body += frame.line([(0, 0), (1, 1)], "#9aa4ae", css="curve thin", dash="3 4", title="perfect")
    for arm in reversed(list(names)):
        own = [r for a, r in full if a == arm]
        points = [(r[0] or 0.0, r[1] or 0.0) for r in own]
        colour = COLOURS.get(arm, "#4D4D4D")
        if points:
            body += frame.line(points, colour, css="curve thin", title=names[arm])
        for r in own:
            patients = (r[2] or 0) if len(r) > 2 else 0
            text = f"{names[arm]}: predicted {show(r[0])}, observed {show(r[1])}, "
            size = 2.6 + 4.4 * math.sqrt(patients / most)
            body += mark(arm, frame.x(r[0] or 0), frame.y(r[1] or 0), text + f"{patients:g} patients", size)
    return svg(PANEL["width"], PANEL["height"], f"Calibration of {task.name}", body)


def kaplan_meier(task: TaskView, arm: str, name: str) -> Markup | None:
    """Survival of the three risk groups that an arm's score makes; of competing causes the incidence of the first."""
    figures = mapping(task.figures.get(arm))
    competing = bool(mapping(figures.get("incidence")))
    groups = {g: _points(p) for g, p in mapping(figures.get("incidence" if competing else "km")).items()}
    groups = {g: points for g, points in groups.items() if points}
    if not groups:
        return None
    last = max(points[-1][0] for points in groups.values())
    years = last > 3 * DAYS_PER_YEAR
    frame = Frame(**PANEL, x_range=(0, last), y_range=(0, 1), right=52)
    unit = DAYS_PER_YEAR if years else 1.0
    body = frame.axes(
        "years" if years else "days", "incidence" if competing else "surviving",
        x_ticks=[v * unit for v in nice_ticks(0, last / unit)],
        text=lambda v: tick_text(round(v / unit, 6)),
    )  # fmt: skip
    dashes = {"low": "", "middle": "8 3", "high": "2 2"}
    ends: list[float] = []
    for group, points in groups.items():
        colour = COLOURS.get(group, "#4D4D4D")
        title = f"{group} risk: {show(points[-1][1])} at day {points[-1][0]:g}"
        body += frame.line(points, colour, title=title, step=True, dash=dashes.get(group, ""))
        y = frame.y(points[-1][1])
        while any(abs(y - other) < 12 for other in ends):
            y -= 4
        ends.append(y)
        body += Markup('<text class="end" x="{:.1f}" y="{:.1f}" fill="{}">{}</text>').format(
            frame.x(points[-1][0]) + 4, y + 3.6, colour, group
        )
    label = f"{'Aalen-Johansen' if competing else 'Kaplan-Meier'} curves of {task.name} by risk group, {name}"
    return svg(PANEL["width"], PANEL["height"], label, body)


def strip(arm: str, spread: Spread, domain: Point, name: str) -> Markup:
    """Every fold's or re-split's score as a tick, with the mean and its interval."""
    frame = _row_frame(domain, ROW_WIDTH, 24)
    colour = COLOURS.get(arm, COLOURS["reference"])
    body = _grid(frame, domain)
    body += Markup("").join(
        Markup('<line class="split" x1="{:.1f}" x2="{:.1f}" y1="5" y2="19" stroke="{}"/>').format(
            frame.x(v), frame.x(v), colour
        )
        for v in spread.parts
        if v is not None
    )
    if spread.mean is not None:
        body += mark(arm, frame.x(spread.mean), 12, f"{name}: mean {show(spread.mean)}")
    return svg(ROW_WIDTH, 24, f"{name}: mean {show(spread.mean)}", body, "row")
