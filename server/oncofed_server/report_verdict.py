"""Was it worth it, and for whom? Sentences made from numbers, also where the answer is no.

Two scores are compared by their intervals. `LEVEL` within 0.01; `CLEARLY_*` when the intervals do
not touch; else `ABOVE` or `BELOW`, which is not more than a tendency. All arms are scored on the
same patients, so intervals that overlap are weak evidence in either direction, and the sentences
say "overlap" and not "equal".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from oncofed_server.report_scores import Score, Study, TaskView, read_study, reference_label

__all__ = [
    "DASH",
    "METRIC_NAMES",
    "Relation",
    "Verdict",
    "count",
    "headline",
    "metric_name",
    "relate",
    "rivals",
    "show",
    "verdict",
    "with_interval",
]

DASH = "\N{EN DASH}"
LEVEL_MARGIN = 0.01
METRIC_NAMES = {
    "auc": "AUC",
    "accuracy": "accuracy",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "precision": "precision",
    "f1": "F1",
    "c_index": "C-index",
    "brier": "Brier score",
    "kappa": "weighted kappa",
    "class_distance": "classes off",
}
LOWER_IS_BETTER = frozenset({"brier", "class_distance"})
CHANCE = {"auc": 0.5, "c_index": 0.5, "kappa": 0.0}


class Relation(Enum):
    """How one score stands to another, better being above."""

    CLEARLY_ABOVE = 2
    ABOVE = 1
    LEVEL = 0
    BELOW = -1
    CLEARLY_BELOW = -2
    UNKNOWN = None


AS_GOOD = frozenset({Relation.LEVEL, Relation.BELOW, Relation.CLEARLY_BELOW})


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The answer for one task: a title, one sentence, and lines of evidence."""

    title: str
    sentence: str
    evidence: tuple[str, ...]


def metric_name(metric: str) -> str:
    """A metric's name for people.

    >>> metric_name("c_index.relapse")
    'C-index (relapse)'
    """
    plain, _, cause = metric.partition(".")
    name = METRIC_NAMES.get(plain, plain)
    return f"{name} ({cause})" if cause else name


def _plain(metric: str) -> str:
    """A metric's name without the cause behind it."""
    return metric.partition(".")[0]


def show(value: float | None) -> str:
    """A score with three decimals, or a dash."""
    return DASH if value is None else f"{value:.3f}"


def with_interval(score: Score) -> str:
    """A score and, where there is one, its interval."""
    if score.value is None or not score.has_interval:
        return show(score.value)
    return f"{show(score.value)} (95 % interval {show(score.low)} to {show(score.high)})"


def count(n: int, noun: str, plural: str | None = None) -> str:
    """A count with its noun.

    >>> count(1, "site"), count(3, "site")
    ('1 site', '3 sites')
    """
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"


def relate(a: Score, b: Score, metric: str = "auc") -> Relation:
    """How `a` stands to `b`.

    A score without an interval is given the half-width of the other one's; two scores without any
    interval are never clearly different.
    """
    if a.value is None or b.value is None:
        return Relation.UNKNOWN
    sign = -1.0 if _plain(metric) in LOWER_IS_BETTER else 1.0
    difference = round(sign * (a.value - b.value), 6)
    if abs(difference) <= LEVEL_MARGIN:
        return Relation.LEVEL
    upper, lower = (a, b) if a.value > b.value else (b, a)
    down = None if upper.low is None or upper.value is None else upper.value - upper.low
    up = None if lower.high is None or lower.value is None else lower.high - lower.value
    down, up = (up if down is None else down), (down if up is None else up)
    apart = down is not None and up is not None and down + up < abs(a.value - b.value)
    if difference > 0:
        return Relation.CLEARLY_ABOVE if apart else Relation.ABOVE
    return Relation.CLEARLY_BELOW if apart else Relation.BELOW


_CLAUSES = {
    Relation.CLEARLY_ABOVE: "clearly better than {what} ({score})",
    Relation.ABOVE: "higher than {what} ({score}), but the intervals overlap",
    Relation.LEVEL: "no better than {what} ({score})",
    Relation.BELOW: "lower than {what} ({score}), though the intervals overlap",
    Relation.CLEARLY_BELOW: "clearly worse than {what} ({score})",
}


def _clause(relation: Relation, what: str, score: Score, metric: str) -> str:
    if relation is Relation.UNKNOWN:
        return f"not compared with {what} ({score.why or 'no score'})"
    clause = _CLAUSES[relation].format(what=what, score=show(score.value))
    if _plain(metric) in LOWER_IS_BETTER:
        clause = clause.replace("higher than", "better than").replace("lower than", "worse than")
    return clause


def _title(alone: Relation, reference: Relation, label: str) -> str:
    """The short answer; a reference that does as well is never left out of it."""
    gain = {Relation.CLEARLY_ABOVE, Relation.ABOVE}
    better = reference in {Relation.BELOW, Relation.CLEARLY_BELOW}
    rival = f"{label} alone does {'better' if better else 'as well'}"
    rivalled = reference in AS_GOOD
    if alone is Relation.UNKNOWN:
        title = rival if rivalled else "Not compared with a site alone"
    elif alone is Relation.LEVEL:
        title = f"No gain shown, and {rival}" if rivalled else "No gain shown"
    elif alone not in gain:
        title = "Not worth it: a site alone does better"
    elif rivalled:
        title = f"Better than a site alone, but {rival}"
    elif alone is Relation.ABOVE:
        title = "Perhaps worth it: the intervals overlap"
    elif reference is Relation.UNKNOWN:
        title = "Worth it over a site alone"
    elif reference is Relation.ABOVE:
        title = f"Worth it over a site alone; not shown to beat {label}"
    else:
        title = "Worth it"
    return title


def _for_whom(task: TaskView) -> str:
    """How many sites the federated model scored higher at than their own model, and where not."""
    federated, alone = task.arm("federated").per_site, task.arm("alone").per_site
    relations = {
        site: relate(federated[site], alone[site], task.main_metric)
        for site in federated
        if site in alone and relate(federated[site], alone[site]) is not Relation.UNKNOWN
    }
    if not relations:
        return ""
    gain = {s for s, r in relations.items() if r in {Relation.ABOVE, Relation.CLEARLY_ABOVE}}
    clear = [s for s, r in relations.items() if r is Relation.CLEARLY_ABOVE]
    rest = [s for s in relations if s not in gain]
    text = (
        f"Site by site it scored higher than the site's own model at {len(gain)} of the "
        f"{count(len(relations), 'site')} where both can be shown"
    )
    if gain:
        text += f", with intervals apart at {len(clear) or 'none'}"
    if rest and len(rest) <= 4:
        names = " and ".join([", ".join(rest[:-1]), rest[-1]] if rest[1:] else rest)
        text += f"; not at {names}"
    if silent := len(federated) - len(relations):
        text += f". For {count(silent, 'site')} there is no such comparison"
    return text + "."


def _evidence(study: Study, task: TaskView) -> tuple[str, ...]:
    lines = [_for_whom(task)]
    federated = task.arm("federated")
    if (external := federated.external).value is not None:
        lines.append(f"On patients of hospitals that did not train: {with_interval(external)}.")
    for arm, what in (("alone", "a site alone"), ("reference", study.reference_label)):
        mine, theirs = task.resplits.get("federated"), task.resplits.get(arm)
        if mine is None or theirs is None or len(mine.parts) != len(theirs.parts):
            continue
        pairs = [
            relate(Score(value=a), Score(value=b), task.main_metric)
            for a, b in zip(mine.parts, theirs.parts, strict=True)
            if a is not None and b is not None
        ]
        wins = sum(r is Relation.ABOVE for r in pairs)
        if pairs:
            lines.append(
                f"In {wins} of {count(len(pairs), 'random re-split')} it was better than {what} "
                f"by more than {LEVEL_MARGIN}."
            )
    return tuple(line for line in lines if line)


def rivals(study: Study, task: TaskView) -> list[tuple[str, Score]]:
    """The reference models, by what they know, that do as well as the federated model or better."""
    federated, found = task.arm("federated").overall, []
    for name, arms in task.references.items():
        score = arms[task.main_metric].overall if task.main_metric in arms else Score()
        if relate(federated, score, task.main_metric) in AS_GOOD:
            found.append((reference_label(name, study.plan), score))
    return found


def _pooled_clause(relation: Relation, pooled: Score) -> str:
    words = {Relation.LEVEL: "level with", Relation.ABOVE: "above", Relation.BELOW: "below"}
    words |= {
        Relation.CLEARLY_ABOVE: "clearly above",
        Relation.CLEARLY_BELOW: "clearly below",
        Relation.UNKNOWN: "not compared with",
    }
    shown = show(pooled.value) if pooled.value is not None else pooled.why or "no score"
    return f"{words[relation]} pooled training ({shown})"


def verdict(study: Study, task: TaskView) -> Verdict:
    """The answer for one task, in words that follow from its numbers alone."""
    metric = task.main_metric
    scores = {arm: task.arm(arm).overall for arm in ("federated", "pooled", "alone", "reference")}
    federated = scores["federated"]
    if federated.value is None:
        why = federated.why or "no reason was recorded"
        sentence = f"There is no federated {metric_name(metric)} for {task.name}: {why}."
        return Verdict(title="No federated result", sentence=sentence, evidence=())
    alone = relate(federated, scores["alone"], metric)
    pooled = relate(federated, scores["pooled"], metric)
    reference = relate(federated, scores["reference"], metric)
    what = f"the reference {study.reference_label}"
    sentence = (
        f"For {task.name} the federated model's {metric_name(metric)} is "
        f"{with_interval(federated)}: "
        f"{_clause(alone, 'a site alone on average', scores['alone'], metric)}; "
        f"{_pooled_clause(pooled, scores['pooled'])}; "
        f"{_clause(reference, what, scores['reference'], metric)}."
    )
    for label, score in rivals(study, task):
        if label != study.reference_label:
            sentence = f"{sentence[:-1]}; no better than the reference {label} ({show(score.value)})."
    title = _title(alone, reference, study.reference_label)
    chance = CHANCE.get(_plain(metric))
    if chance is not None and federated.low is not None and federated.low <= chance:
        title = "Not shown to be better than chance"
        sentence = f"{sentence[:-1]}; its interval includes {chance}, which is chance."
    return Verdict(title=title, sentence=sentence, evidence=_evidence(study, task))


def headline(result: Mapping[str, Any]) -> str:
    """The answer for the main task as one line of plain text, for a terminal.

    Args:
        result: the content of `result.json`.
    """
    study = read_study(result)
    if study.main is None:
        return "No result: the run has no task."
    answer = verdict(study, study.main)
    return f"{answer.title}. {answer.sentence}"
