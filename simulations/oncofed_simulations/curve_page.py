"""`curve.html`: score over epsilon by who draws the noise, one figure and its numbers, from `curve.json` alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from oncofed_server.figures import COLOURS, Frame, mark, svg
from oncofed_server.report_verdict import metric_name, show

__all__ = ["figure", "page"]

STYLE = Markup("""body{font:15px/1.5 system-ui,sans-serif;color:#17212b;max-width:1080px;margin:32px auto;padding:0 24px}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}th,td{padding:5px 14px 5px 0;border-bottom:1px solid #e2e6ea;
text-align:left;vertical-align:middle}h2{margin-top:36px}p,.tick,.label{color:#56626e}svg{display:block}.grid{stroke:#e2e6ea}
.axis{stroke:#9aa4ae}.whisker{stroke-width:2}.tick,.label{font-size:11px;fill:#56626e}.curve{fill:none;stroke-width:1.6}""")
MARKS = {"consortium": "federated", "pooled": "pooled", "site": "site_noise", "reference": "alone"}
"""The report's mark and colour for each mechanism: the same place for the same arm."""
SAID = {
    "pooled": "pooled DP-SGD: one place has everybody",
    "consortium": "noise drawn once over the consortium, in shares",
    "reference": "the same, if no site tells its noise",
    "site": "all the noise at each site",
}
WIDTH, PLOT, LEGEND = 720.0, 300.0, 18.0
DASHES = ("7 3", "2 3", "9 2 2 2")


def _places(result: Mapping[str, Any]) -> dict[str, float]:
    """Where an epsilon stands: by its logarithm, and without privacy a step of a factor of two behind the last."""
    known = {e: float(e) for cells in result["mechanisms"].values() for e in cells}
    private = [math.log2(v) for v in known.values() if math.isfinite(v)]
    last = max(private) + 1 if private else 0.0
    return {e: math.log2(v) if math.isfinite(v) else last for e, v in sorted(known.items(), key=lambda i: i[1])}


def _whisker(frame: Frame, x: float, cell: Mapping[str, Any], colour: str) -> Markup:
    if cell["ci"] is None:
        return Markup("")
    return Markup('<line class="whisker" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}" stroke="{}"/>').format(
        x, x, frame.y(cell["ci"][0]), frame.y(cell["ci"][1]), colour
    )


def figure(result: Mapping[str, Any]) -> Markup:
    """One line per mechanism over epsilon on a logarithmic axis, with intervals; references without privacy are dashed."""
    places, mechanisms = _places(result), result["mechanisms"]
    cells = [c for by in mechanisms.values() for c in by.values()] + list(result["references"].values())
    seen = [v for c in cells for v in (c["mean"], *(c["ci"] or ()))]
    pad = max(0.01, 0.06 * (max(seen) - min(seen)))
    top = 14 + LEGEND * (len(mechanisms) + len(result["references"]))
    frame = Frame(
        width=WIDTH, height=PLOT + top, x_range=(min(places.values()) - 0.4, max(places.values()) + 0.4),
        y_range=(min(seen) - pad, max(seen) + pad), top=top,
    )  # fmt: skip
    names = {x: "no privacy" if e == "inf" else e for e, x in places.items()}
    body = frame.axes("epsilon", metric_name(result["metric"]), list(places.values()), lambda v: names[v])
    for k, (name, cell) in enumerate(result["references"].items()):
        title, dash = f"{name}, without privacy: {show(cell['mean'])}", DASHES[k % len(DASHES)]
        ends = [(x, cell["mean"]) for x in frame.x_range]
        body += frame.line(ends, COLOURS["reference"], title=title, dash=dash)
        y = 10 + LEGEND * (len(mechanisms) + k)
        body += Markup(
            '<line class="curve" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}" stroke="{}" stroke-dasharray="{}"/>'
            '<text class="tick" x="{:.1f}" y="{:.1f}">{}, Cox or logistic regression without privacy</text>'
        ).format(frame.left - 6, frame.left + 12, y, y, COLOURS["reference"], dash, frame.left + 16, y + 4, name)
    for k, (name, by) in enumerate(mechanisms.items()):
        arm = MARKS[name]
        # Side by side, so that intervals do not hide each other.
        shift = 7.0 * (k - (len(mechanisms) - 1) / 2)
        ordered = sorted(by.items(), key=lambda item: places[item[0]])
        body += frame.line([(places[e], c["mean"]) for e, c in ordered], COLOURS[arm], title=name)
        for epsilon, cell in ordered:
            x = frame.x(places[epsilon]) + shift
            text = f"{name}, epsilon {epsilon}: {show(cell['mean'])}"
            body += _whisker(frame, x, cell, COLOURS[arm]) + mark(arm, x, frame.y(cell["mean"]), text)
        y = 10 + LEGEND * k
        body += mark(arm, frame.left + 6, y) + Markup('<text class="tick" x="{:.1f}" y="{:.1f}">{}: {}</text>').format(
            frame.left + 16, y + 4, name, SAID[name]
        )
    return svg(WIDTH, PLOT + top, f"{metric_name(result['metric'])} over epsilon, by who draws the noise", body)


def _number(cell: Mapping[str, Any], sign: str = "") -> str:
    bounds = "" if cell["ci"] is None else f" ({cell['ci'][0]:{sign}.3f} to {cell['ci'][1]:{sign}.3f})"
    return f"{cell['mean']:{sign}.3f}{bounds}"


def _table(rows: Mapping[str, Mapping[str, Any]], epsilons: Mapping[str, float], sign: str = "") -> Markup:
    head = Markup("").join(
        Markup("<th>{}</th>").format("no privacy" if e == "inf" else f"epsilon {e}") for e in epsilons
    )
    body = Markup("").join(
        Markup("<tr><th scope=row>{}</th>{}</tr>").format(
            name, Markup("").join(Markup("<td>{}</td>").format(_number(by[e], sign)) for e in epsilons)
        )
        for name, by in rows.items()
    )
    return Markup("<table><thead><tr><th></th>{}</tr></thead><tbody>{}</tbody></table>").format(head, body)


def page(result: Mapping[str, Any]) -> str:
    """The page as text; the same result gives the same text, without a script and without anything from a network."""
    seeds, folds = len(result["seeds"]), result["folds"]
    how = (
        f"{seeds} seed(s) of {folds} folds of patients, each fold held out once; intervals (95 %) over folds allow for training "
        "patients that folds share"
        if folds
        else f"{seeds} seed(s), each another split and other noise; intervals (95 %, Student's) over seeds, which share patients"
    )
    body = Markup("<p>{} of the test patients, exact: only a simulation can compute it. {}. {}</p>").format(
        metric_name(result["metric"]), how,
        f"{result['sites']} sites, delta {result['delta']:g}, drop {result['drop']}, collude {result['collude']}, reading "
        f"{', '.join(result['modalities'])}. Epsilon is of one run.",
    )  # fmt: skip
    places = _places(result)
    body += figure(result) + Markup("<h2>Numbers</h2>") + _table(result["mechanisms"], places)
    if result["differences"]:
        body += Markup("<h2>Differences on the same patients</h2>") + _table(result["differences"], places, "+")
    if result["references"]:
        rows = Markup("").join(
            Markup("<tr><th scope=row>{}</th><td>{}</td></tr>").format(n, _number(c))
            for n, c in result["references"].items()
        )
        body += Markup("<h2>Without privacy, and without a network</h2><table><tbody>{}</tbody></table>").format(rows)
    return str(
        Markup(
            '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{}: what privacy costs</title>'
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
            "<style>{}</style></head><body><h1>{}: what privacy costs</h1><p>{}</p>{}</body></html>"
        ).format(result["study"], STYLE, result["study"], result["command"], body)
    )
