"""What a result does not show, said from the result itself."""

from __future__ import annotations

from dataclasses import dataclass

from oncofed_server.report_privacy import noise_of, unreleased
from oncofed_server.report_scores import Study, TaskView, listing, mapping, number
from oncofed_server.report_verdict import Relation, count, metric_name, relate, rivals, show

__all__ = ["Limit", "limits"]

WIDE_INTERVAL = 0.10
BETWEEN_GROUPS = 0.02
FEW_HOLDERS = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """One thing that the result does not show, and why."""

    title: str
    text: str


def _external(study: Study) -> Limit | None:
    if any(t.arm("federated").external.value is not None for t in study.tasks):
        return None
    return Limit(
        title="No new hospital",
        text="No hospital outside the consortium was tested. How the model does at a hospital "
        "that it has never seen is not known.",
    )


def _width(task: TaskView) -> Limit | None:
    score = task.arm("federated").overall
    if score.value is None:
        return None
    if score.low is None or score.high is None:
        text = f"The federated {metric_name(task.main_metric)} of {task.name} has no interval."
        return Limit(title="No interval", text=text)
    if score.high - score.low < WIDE_INTERVAL:
        return None
    return Limit(
        title=f"Small differences in {task.name}",
        text=f"The interval of the federated {metric_name(task.main_metric)} is "
        f"{score.high - score.low:.2f} wide ({show(score.low)} to {show(score.high)}), because few "
        "test patients or few events are behind it. Smaller differences cannot be told apart.",
    )


def _reference(study: Study, task: TaskView) -> Limit | None:
    relation = relate(task.arm("federated").overall, task.arm("reference").overall, task.main_metric)
    known = rivals(study, task)
    if relation is Relation.CLEARLY_ABOVE and not known:
        return None
    if relation is Relation.UNKNOWN:
        return Limit(
            title=f"No simple reference for {task.name}",
            text="Without a simple model beside it, nobody can say what the network adds.",
        )
    if known:
        shown = "; ".join(f"{label} ({show(score.value)})" for label, score in known)
        return Limit(
            title=f"That the network is needed for {task.name}",
            text=f"A simple reference model does as well, or better: {shown}. Federation and the network are two "
            "questions: a simple model can be trained by a federation too.",
        )
    return Limit(
        title=f"That the network is needed for {task.name}",
        text=f"The reference model of {study.reference_label} reaches "
        f"{show(task.arm('reference').overall.value)}. This result does not show that the other "
        "data, or the network, add to it.",
    )


def _between_groups(task: TaskView) -> list[Limit]:
    """Columns whose groups all score lower than the whole: telling them apart is in the score."""
    arm = task.arm("federated")
    overall, found = arm.overall.value, []
    if overall is None:
        return []
    for name, groups in arm.subgroups.items():
        scores = {g: s.value for g, s in groups.items() if s.value is not None}
        if len(scores) > 1 and max(scores.values()) < overall - BETWEEN_GROUPS:
            shown = ", ".join(f"{g} {show(v)}" for g, v in scores.items())
            found.append(
                Limit(
                    title=f"The overall score of {task.name} within a {name}",
                    text=f"Within every group of {name} the score is lower than the overall "
                    f"{show(overall)} ({shown}): part of the overall score comes from telling "
                    "these groups apart, which a clinician may know already.",
                )
            )
    return found


def _suppressed(study: Study) -> Limit | None:
    task = study.main
    if task is None:
        return None
    sites = task.arm("federated").per_site
    hidden = sum(s.value is None for s in sites.values())
    if not hidden:
        return None
    return Limit(
        title=f"Anything about {hidden} of {count(len(sites), 'site')}",
        text="They have too few test patients or events for a number of their own. Their patients "
        "count in the overall numbers; whether the model serves them well is not known.",
    )


def _coverage(study: Study) -> list[Limit]:
    sites = [s for s in map(mapping, listing(study.raw.get("sites"))) if not s.get("external")]
    patients = sum(number(s.get("patients")) or 0 for s in sites)
    if not any(mapping(s.get("modalities")) for s in sites):
        return []  # a private study does not count who has what
    found = []
    for name in mapping(study.plan.get("modalities")):
        held = sum(number(mapping(s.get("modalities")).get(name)) or 0 for s in sites)
        if patients and held < FEW_HOLDERS * patients:
            found.append(f"{name} ({held:,.0f})")
    if not found:
        return []
    return [
        Limit(
            title="Much about modalities that few patients have",
            text=f"Of {patients:,.0f} patients, fewer than half have " + ", ".join(found) + ". "
            "What these modalities are worth where they exist is diluted in the overall numbers.",
        )
    ]


def _exact(study: Study) -> list[Limit]:
    bounds = [
        f"{metric_name(m)} of {t.name}: {error:.4f}"
        for t in study.tasks
        for m, error in t.binning_error.items()
        if error is not None
    ]
    text, whose = "", "no site releases under this plan" if unreleased(study) else "is what sites release"
    if bounds:
        text = (
            f"Scores are read from tables of counts, which {whose}. Ties inside a "
            "cell can move them by at most: " + "; ".join(bounds) + ". "
        )
    if any(a.exact is not None for t in study.tasks for m in t.metrics.values() for a in m.values()):
        text += (
            "The exact values on this page are not released: they exist because this run was "
            "simulated on one machine, and a deployed study does not have them."
        )
    return [Limit(title="Exact scores", text=text.strip())] if text else []


def _runs(study: Study) -> list[Limit]:
    found = []
    seeds = listing(study.raw.get("seeds"))
    if len(seeds) <= 1:
        found.append(
            Limit(
                title="How much chance in training matters",
                text="One random seed was run; another start may give another number.",
            )
        )
    if not any(t.resplits or t.folds for t in study.tasks):
        found.append(
            Limit(
                title="Other test patients",
                text="One split into training and test patients was used. Another split gives "
                "another number; re-splits or folds would show by how much.",
            )
        )
    missing = [
        f"{arm} ({t.name})" for t in study.tasks for arm in ("pooled", "alone") if t.arm(arm).overall.value is None
    ]
    if missing:
        text = "This run has no overall score of: " + ", ".join(missing) + "."
        found.append(Limit(title="Every comparison", text=text))
    return found


def _privacy(study: Study) -> Limit | None:
    if noise_of(study) == "consortium":
        return Limit(
            title="Everything that leaves is private",
            text="Epsilon covers the model and the sums on the way to it, and the released scores have one of their own, of test "
            "patients. What is released without a charge is listed beside it. All other scores and comparisons on this page "
            "exist only because this run was simulated.",
        )
    if noise_of(study) != "none":
        return Limit(
            title="Everything that leaves is private",
            text="Epsilon covers the model and the updates. What is released without a charge is listed beside it; the scores "
            "are among that, and the comparisons with other models exist only because this run was simulated.",
        )
    return Limit(
        title="Differential privacy",
        text="No noise was added. Nothing here bounds what the model, or the sums on the way to "
        "it, reveal about one patient.",
    )


def _always() -> list[Limit]:
    return [
        Limit(
            title="Causes",
            text="Predictions follow associations. Age, treatment, the choice of patients for a "
            "test and the habits of a hospital are confounded with both the inputs and the "
            "outcome.",
        ),
        Limit(
            title="Use in care",
            text="The data are retrospective. Nobody was treated by this model, subgroup numbers "
            "are not adjusted for their multitude, and a difference at one site may be chance.",
        ),
    ]


def limits(study: Study) -> tuple[Limit, ...]:
    """Everything that this result does not show, the most specific first.

    Args:
        study: a result as read by `read_study`.
    """
    found: list[Limit | None] = []
    for task in study.tasks:
        found += [_reference(study, task), *_between_groups(task), _width(task)]
    found += [_external(study), _suppressed(study), *_runs(study), *_coverage(study)]
    found += [*_exact(study), _privacy(study), *_always()]
    return tuple(limit for limit in found if limit is not None)
