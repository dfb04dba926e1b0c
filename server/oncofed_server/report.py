"""The report: one self-contained page from a `result.json`.

`write_report` is the only function that touches the disk; `render` is pure, and gives the same
bytes for the same result. Words come from `report_verdict` and `report_limits`, tables from
`report_tables` and `report_facts`, pictures from `report_charts`, the layout from
`templates/report.html.j2`. The page asks for nothing from any network, has no script, and escapes
everything: a site's name is a stranger's text.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from oncofed_server import report_charts as charts
from oncofed_server import report_facts as about
from oncofed_server import report_tables as tables
from oncofed_server.figures import mark, svg
from oncofed_server.report_cells import arm_names
from oncofed_server.report_certainty import certainty_view
from oncofed_server.report_limits import limits
from oncofed_server.report_privacy import mechanism, noise_of, spent_rows, unreleased
from oncofed_server.report_released import released_view
from oncofed_server.report_scores import (
    Study,
    TaskView,
    listing,
    mapping,
    number,
    read_study,
)
from oncofed_server.report_verdict import headline, metric_name, verdict
from oncofed_shared.storage import write_whole

__all__ = ["headline", "render", "write_report"]

FILE_NAME = "report.html"


def _predicted(task: TaskView) -> str:
    """What a calibration plot is about."""
    horizon, classes = number(task.plan.get("horizon")), listing(task.plan.get("classes"))
    causes = listing(task.plan.get("causes"))
    if horizon is not None and causes:
        return f"Incidence of {causes[0]} by day {horizon:g}"
    if horizon is not None:
        return f"Risk by day {horizon:g}"
    return f"Probability of {classes[1]}" if len(classes) == 2 else "Probability"


def _figures(study: Study, task: TaskView) -> list[tuple[str, str, Markup]]:
    """(title, caption, picture) of the figures that exist for a task's kind."""
    names = {a: n for a, n in arm_names(study).items() if a not in {"alone", "site_noise", "without_privacy"}}
    found: list[tuple[str, str, Markup | None]] = [
        ("ROC curve", "The further to the upper left, the better.", charts.roc(task, names))
    ]
    for arm in ("federated", "pooled", "reference"):
        cause = mapping(task.figures.get(arm)).get("cause")
        title = f"{f'Incidence of {cause}' if cause else 'Survival'} by risk group: {names[arm]}"
        curves = "Aalen-Johansen" if cause else "Kaplan-Meier"
        caption = f"{curves} curves of test patients in thirds of predicted risk."
        if arm != "pooled" or not {"km", "incidence"} & set(mapping(task.figures.get("federated"))):
            found.append((title, caption, charts.kaplan_meier(task, arm, names[arm])))
    caption = f"{_predicted(task)}. On the diagonal a prediction means what it says."
    compared = {a: n for a, n in names.items() if a != "pooled"}
    found.append(("Calibration", caption, charts.calibration(task, compared)))
    return [(title, caption, picture) for title, caption, picture in found if picture is not None]


def _task(study: Study, task: TaskView) -> dict[str, Any]:
    external = tables.external_table(study, task)
    return {
        "name": task.name,
        "kind": task.kind,
        "asked": about.describe_task(task),
        "metric": metric_name(task.main_metric),
        "verdict": verdict(study, task),
        "hero": tables.hero_table(study, task),
        "scores": tables.score_table(study, task),
        "sites": tables.site_table(study, task),
        "every": tables.every_table(task),
        "external": external if external.rows or external.hidden else None,
        "subgroups": tables.subgroup_tables(study, task),
        "figures": _figures(study, task),
        "confusion": tables.confusion_tables(study, task),
        "certainty": certainty_view(study, task),
        "exact": tables.exact_table(study, task),
        "spreads": [
            (title, tables.spread_table(study, spreads))
            for title, spreads in (
                ("Random re-splits", task.resplits),
                ("Cross-validation folds", task.folds),
            )
            if spreads
        ],
    }


def _legend(study: Study) -> list[tuple[Markup, str, str]]:
    """(mark, name, meaning) of the arms."""
    meanings = {
        "federated": "trained together; patients stayed where they are",
        "pooled": "the same network, trained as if all patients were in one place",
        "alone": "each site's own model; overall, the mean over the sites that could train one, on "
        "everybody's test patients; per site, its own model on its own test patients",
        "site_noise": "the same study with all the noise drawn by every site, for what drawing it once is worth; only a "
        "simulation has it, and it is not released",
        "without_privacy": "the same study without noise, for what privacy costs; only a simulation has it, and it is not "
        "released",
        "reference": "a simple regression on a few features, for what the network adds to them",
    }
    return [(svg(16, 14, arm, mark(arm, 8, 7), "key"), name, meanings[arm]) for arm, name in arm_names(study).items()]


def _context(study: Study) -> dict[str, Any]:
    people, modalities, events = about.participants(study)
    raw = study.raw
    return {
        "study": study,
        "tasks": [_task(study, task) for task in study.tasks],
        "facts": about.facts(study),
        "legend": _legend(study),
        "modalities": [
            (name, about.describe_modality(mapping(m))) for name, m in mapping(study.plan.get("modalities")).items()
        ],
        "participants": people,
        "held": modalities,
        "events": events,
        "excluded": [
            (str(mapping(e).get("name")), str(mapping(e).get("why", "no reason was recorded")))
            for e in listing(raw.get("excluded"))
        ],
        "curves": charts.learning_curves(study),
        "costs": about.costs(study),
        "privacy": spent_rows(study),
        "mechanism": mechanism(study),
        "noise": noise_of(study),
        "unreleased": unreleased(study),
        "uncharged": [str(u) for u in listing(raw.get("uncharged"))],
        "limits": limits(study),
        "released": released_view(study),
        "minimum": mapping(study.plan.get("evaluation")),
        "created": str(raw.get("created", "")),
        "plan_hash": str(raw.get("plan_hash", "")),
        "versions": {k: str(v) for k, v in mapping(raw.get("versions")).items()},
        "seeds": [str(s) for s in listing(raw.get("seeds"))],
        "command": about.command(study),
        "plan_text": about.plan_text(study),
        "totals": {
            "seconds": about.time_text(number(raw.get("seconds"))),
            "up": about.size_text(number(raw.get("bytes_up"))),
            "down": about.size_text(number(raw.get("bytes_down"))),
        },
    }


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("oncofed_server"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2")


def render(result: Mapping[str, Any]) -> str:
    """The page as text; the same result gives the same text.

    Args:
        result: the content of `result.json`; any part of it may be missing.
    """
    return _template().render(_context(read_study(result)))


def write_report(result: Mapping[str, Any], out: Path) -> Path:
    """Write `report.html` into a folder, whole or not at all.

    Args:
        result: the content of `result.json`.
        out: the folder; made where it does not exist.

    Returns:
        The path of the page.

    Raises:
        StorageError: the folder or the disk does not take it. A page that was there before is
            unchanged, and nothing half-written is left.
    """
    path = out / FILE_NAME
    write_whole(path, render(result).encode("utf-8", errors="replace"))
    return path
