"""`compare.html`: one page with one table and one picture per task, from `compare.json` alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from oncofed_server.report_charts import domain_of, interval_axis, interval_row
from oncofed_server.report_scores import Score
from oncofed_server.report_verdict import metric_name, show

__all__ = ["page"]

STYLE = Markup("""body{font:15px/1.5 system-ui,sans-serif;color:#17212b;max-width:1080px;margin:32px auto;padding:0 24px}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}th,td{padding:5px 14px 5px 0;border-bottom:1px solid #e2e6ea;
text-align:left;vertical-align:middle}h2{margin-top:36px}p,.tick{color:#56626e}svg{display:block}
.grid{stroke:#e2e6ea}.chance{stroke:#9aa4ae;stroke-dasharray:3 3}.whisker{stroke-width:2}.tick{font-size:11px;fill:#56626e}""")
HEAD = ("variant", "score", "95 % interval", "difference", "p, plain", "p, corrected", "p, Holm", "parameters")


def _score(entry: Mapping[str, Any]) -> Score:
    low, high = entry["ci"] or (None, None)
    return Score(value=entry["metric"], low=low, high=high)


def _bounds(score: Score) -> str:
    return f"{show(score.low)} to {show(score.high)}" if score.has_interval else "\N{EN DASH}"


def _p(value: float | None) -> str:
    return "\N{EN DASH}" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _table(entries: Mapping[str, Mapping[str, Any]]) -> Markup:
    domain = domain_of(_score(e) for e in entries.values())
    rows = []
    for name, entry in entries.items():
        score = _score(entry)
        apart = entry.get("difference", entry.get("change"))
        cells = (
            show(score.value), _bounds(score), "\N{EN DASH}" if apart is None else f"{apart:+.3f}",
            _p(entry.get("p_ttest")), _p(entry.get("p_corrected")), _p(entry.get("p_holm")), f"{entry['parameters']:,}",
        )  # fmt: skip
        row = Markup("").join(Markup("<td>{}</td>").format(c) for c in cells)
        picture = interval_row([("federated", name, score)], domain)
        rows.append(Markup("<tr><th scope=row>{}</th>{}<td>{}</td></tr>").format(name, row, picture))
    head = Markup("").join(Markup("<th>{}</th>").format(h) for h in HEAD)
    return Markup("<table><thead><tr>{}<th>{}</th></tr></thead><tbody>{}</tbody></table>").format(
        head, interval_axis(domain), Markup("").join(rows)
    )


def _within(entries: Mapping[str, Mapping[str, Any]]) -> Markup:
    """A table of scores among the patients of each group; empty where the study has no subgroups."""
    first: Mapping[str, Any] = next(iter(entries.values())).get("within", {})
    made = []
    for name, groups in first.items():
        head = Markup("").join(Markup("<th>{}, {} patients</th>").format(g, e["patients"]) for g, e in groups.items())
        rows = Markup("").join(
            Markup("<tr><th scope=row>{}</th>{}</tr>").format(
                variant,
                Markup("").join(
                    Markup("<td>{} ({})</td>").format(show(e["metric"]), _bounds(_score(e)))
                    for e in entry["within"][name].values()
                ),
            )
            for variant, entry in entries.items()
        )
        text = Markup("<h3>Within {}</h3><table><thead><tr><th>variant</th>{}</tr></thead><tbody>{}</tbody></table>")
        made.append(text.format(name, head, rows))
    return Markup("").join(made)


def _section(title: str, variants: Mapping[str, Mapping[str, Any]]) -> Markup:
    """A table per task of some variants."""
    tasks = dict.fromkeys(t for entries in variants.values() for t in entries)
    made = []
    for task in tasks:
        entries = {n: e[task] for n, e in variants.items() if task in e}
        metric = metric_name(next(iter(entries.values()))["metric_name"])
        against = next((e["against"] for e in entries.values() if e.get("against")), None)
        note = (
            f" Differences and p-values are against {against}, the best single modality, one-tailed." if against else ""
        )
        text = Markup("<h2>{}: {}</h2><p>{}.{}</p>{}{}")
        made.append(text.format(title, task, metric, note, _table(entries), _within(entries)))
    return Markup("").join(made)


def page(result: Mapping[str, Any]) -> str:
    """The page as text; the same result gives the same text, without a script and without anything from a network."""
    protocol = result["protocol"]
    how = (
        f"{len(protocol['hospitals'])} hospitals, each held out once; their scores are pooled"
        if protocol["held_out"] == "hospitals"
        else f"{protocol['folds']} folds by patient over {len(protocol['hospitals'])} hospitals; means over folds"
    )
    body = _section("Variants", result["variants"])
    body += _section("Sanity: a shuffled label, or the hospital as the answer", result["sanity"])
    body += _section("Sensitivity: rate and batch", result["sensitivity"])
    with_ = protocol["patients_with"]
    who = f"{protocol['patients']} patients" + (f" who have {with_.replace(',', ', ')}" if with_ else "")
    tried = protocol["search"]
    how = f"{who}. {how}" + (f"; of {tried} settings, the best on each point's training patients" if tried else "")
    left = Markup("").join(Markup("<li>{}: {}</li>").format(n, w) for n, w in result["left_out"].items())
    if left:
        body += Markup("<h2>Variants that the plan cannot express</h2><ul>{}</ul>").format(left)
    return str(
        Markup(
            '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{}: comparison</title>'
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
            "<style>{}</style></head><body><h1>{}</h1><p>{}. Seed {}. {}</p>{}</body></html>"
        ).format(result["study"], STYLE, result["study"], how, protocol["seed"], result["command"], body)
    )
