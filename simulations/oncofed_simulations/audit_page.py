"""`audit.html`: one page, from `audit.json` alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

__all__ = ["page"]

STYLE = Markup("""body{font:15px/1.5 system-ui,sans-serif;color:#17212b;max-width:1080px;margin:32px auto;padding:0 24px}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}th,td{padding:5px 14px 5px 0;border-bottom:1px solid #e2e6ea;
text-align:left;vertical-align:middle}h2{margin-top:36px}p{color:#56626e}.wrong{color:#a11}""")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Markup:
    def line(cell: Markup, cells: Sequence[str]) -> Markup:
        return Markup("<tr>{}</tr>").format(Markup("").join(cell.format(c) for c in cells))

    body = Markup("").join(line(Markup("<td>{}</td>"), r) for r in rows)
    return Markup("<table><thead>{}</thead><tbody>{}</tbody></table>").format(line(Markup("<th>{}</th>"), head), body)


def _section(title: str, text: str, *parts: Markup) -> Markup:
    return Markup("<h2>{}</h2><p>{}</p>{}").format(title, text, Markup("").join(parts))


def _canaries(found: Mapping[str, Any]) -> Markup:
    claim, gaussian, checks = found["claim"], found["gaussian"], found["checks"]
    epsilons = (
        ("claimed, by the accountant", f"{claim['epsilon']:.2f}", f"delta {claim['delta']:g}"),
        ("Gaussian auditor, lower bound", f"{gaussian['epsilon']:.2f}", "99.9 %, if scores are normal"),
        ("Gaussian auditor, estimate", f"{gaussian['estimate']:.2f}", f"mu {gaussian['mu']:.3f}"),
        ("one run, lower bound", f"{found['one_run']:.2f}",
         f"95 %, no assumption; {found['correct']} of {found['guesses']} guesses correct"),
    )  # fmt: skip
    variance, correlation, inclusion = checks["variance"], checks["correlation"], checks["inclusion"]
    places = f"{inclusion['patients'] * inclusion['steps']:,}"
    sums = [
        ["what a canary changes, in clip norms", f"{found['change']:.2f} ± {2 * found['error']:.2f}", "1", ""],
        ["noise and sampling in sums, squared", f"{variance['found']:.4f}", f"1 ± {variance['limit']:.4f}"],
        ["largest correlation of two sums", f"{correlation['found']:.3f}", f"below {correlation['limit']:.3f}"],
        ["inclusions", f"{inclusion['rate']:.4f} of {places}", f"{inclusion['claimed']:g}, by coins"],
    ]
    for row, check in zip(sums[1:], (variance, correlation, inclusion), strict=True):
        row.append("wrong" if check["wrong"] else "as it should be")
    return _section(
        "Epsilon, claimed and attacked",
        f"{found['canaries']} canaries, of whom a coin put half into the hospitals, over {claim['releases']} rounds. A "
        "bound above the claim would mean that the code does not do what it says.",
        _table(("", "epsilon", ""), epsilons),
        Markup("<h3>What the sums are made of</h3>"),
        _table(("", "found", "expected", ""), sums),
    )


def _reconstruction(rows: Sequence[Mapping[str, Any]]) -> Markup:
    made = [
        (
            str(r["batch"]),
            r["model"],
            r["view"],
            "control" if r["control"] else "",
            f"{r['found']} of {r['records']}",
            f"{r['closest']:.2f}",
        )
        for r in rows
    ]
    text = (
        "A record counts as recovered where a guess has a cosine above 0.99 with it. The attacker has every round of the study. "
        "Without noise he must find something, or the attack would show nothing."
    )
    if not made:
        return _section("Records out of gradients", "Not attacked: no layer of this network reads all columns at once.")
    head = ("patients per hospital", "model", "what he gets", "", "recovered", "closest, mean cosine")
    return _section("Records out of gradients", text, _table(head, made))


def _membership(found: Mapping[str, Any]) -> Markup:
    pairs = zip(found["private"]["alarms"], found["control"]["alarms"], strict=True)
    rows = [
        (
            f"{own['false']:g}",
            f"{own['true']:.4f} ({own['low']:.4f} to {own['high']:.4f})",
            f"{own['most']:.4f}",
            f"{other['true']:.4f} ({other['low']:.4f} to {other['high']:.4f})",
        )
        for own, other in pairs
    ]
    text = (
        f"LiRA with {found['shadows']} shadow models of {found['patients']} patients, against one place that has "
        f"everybody's, with the study's epsilon: no hospital has less noise. AUC {found['private']['auc']:.3f} with privacy, "
        f"{found['control']['auc']:.3f} without; 0.5 is chance. Intervals (95 %) take pairs of patient and model for independent."
    )
    return _section(
        "Who was in training",
        text,
        _table(("false alarms", "true alarms", "most that epsilon allows", "true alarms without privacy"), rows),
    )


def _differencing(rows: Sequence[Mapping[str, Any]]) -> Markup:
    made = []
    for r in rows:
        if "answered" in r:
            said = f"{100 * r['found']:.0f} % of what he is" if r["answered"] else f"refused: {r['code']}"
            made.append(
                (r["what"], said, "control" if r["control"] else "not covered" if r.get("uncharged") else "nothing")
            )
        else:
            said = f"{r['true']:.3f} ({r['low']:.3f} to {r['high']:.3f}) true alarms at {r['false']:g} false ones"
            made.append((r["what"], said, f"at most {r['most']:.3f} by epsilon {r['epsilon']:.2f}"))
    text = "One patient leaves between two studies. The difference of their statistics is asked what he was, or whether he left."
    return _section("The difference of two studies", text, _table(("statistics", "found", "allowed"), made))


_SECTIONS: dict[str, Callable[[Any], Markup]] = {
    "canaries": _canaries,
    "reconstruction": _reconstruction,
    "membership": _membership,
    "differencing": _differencing,
}


def page(result: Mapping[str, Any]) -> str:
    """The page as text; the same result gives the same text, without a script and without anything from a network."""
    wrong = Markup("").join(Markup("<li class=wrong>{}</li>").format(w) for w in result["wrong"])
    verdict = (
        Markup("<h2>Not as promised</h2><ul>{}</ul>").format(wrong)
        if wrong
        else Markup(
            "<p>Nothing that was attacked is worse than promised. An audit can find a bug and cannot prove that there is none.</p>"
        )
    )
    body = Markup("").join(make(result[name]) for name, make in _SECTIONS.items() if name in result)
    head = Markup(
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{}: audit</title>'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        "<style>{}</style></head><body><h1>{}</h1><p>noise = {}. Seed {}. {}</p>"
    ).format(result["study"], STYLE, result["study"], result["noise"], result["seed"], result["command"])
    return str(head + verdict + body + Markup("</body></html>"))
