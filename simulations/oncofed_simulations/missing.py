"""`python -m oncofed_simulations.missing`: what a hospital that lacks a modality gains, and whether it costs the others.

Two questions about a study's synthetic hospitals. In the first, one hospital has no genomics and its neighbour no images, each
in turn: is the federation better for each of them than a model of its own? In the second, one modality is taken from one hospital,
each from each in turn: is any *other* hospital then worse off in the federation than alone?

Patients are held out in folds, or (`--new N`) N new patients of the same hospital are drawn beside each one who trains: a hospital
of forty patients then has a score that means something. With `--draws` the whole cohort is drawn several times, and intervals
are over draws: of patients who train, of those who are tested, and of the first values of the network.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from oncofed_client.cohort import Cohort
from oncofed_client.site import Site
from oncofed_client.source import Source
from oncofed_shared.commands import run_app
from oncofed_shared.errors import ConfigError
from oncofed_shared.messages import Trial
from oncofed_shared.plan import Plan, load, parse, side_of
from oncofed_shared.storage import dump_json, write_whole
from oncofed_simulations.consortium import Consortium, open_site
from oncofed_simulations.exact import Scored, score_patients
from oncofed_simulations.folders import site_folders
from oncofed_simulations.missing_scores import Gain, gain, pairs_of, table
from oncofed_simulations.synthetic import read_settings, write_cohort

__all__ = ["Hidden", "HiddenSource", "experiment", "main", "settings"]

Values = NDArray[np.float64]
Hidden = Mapping[str, frozenset[str]]
"""Which modalities each hospital lacks."""
WITHOUT = ("without genomics", "without images")
OTHERS = "the others, one modality taken from one hospital"

app = typer.Typer(help="Missing modalities, hospital by hospital.", pretty_exceptions_enable=False)


class HiddenSource:
    """A hospital that lacks some modalities altogether."""

    def __init__(self, source: Source, hidden: frozenset[str]) -> None:
        self.source, self.hidden = source, hidden
        self._made: dict[str, tuple[Cohort, Cohort]] = {}

    @property
    def name(self) -> str:
        """The site's name."""
        return self.source.name

    def cohort(self, plan: Plan) -> Cohort:
        """The same patients, without what is hidden."""
        read = self.source.cohort(plan)
        known = self._made.get(plan.hash)
        if known is None or known[0] is not read:
            none = np.zeros((len(read.patients), 0))
            changed = replace(
                read,
                values={m: none if m in self.hidden else v for m, v in read.values.items()},
                columns={m: () if m in self.hidden else c for m, c in read.columns.items()},
            )
            known = self._made[plan.hash] = (read, changed)
        return known[1]

    def split(self, plan: Plan, cohort: Cohort, trial: Trial) -> NDArray[np.int64]:
        """Part of each patient, whatever is hidden."""
        del cohort
        return self.source.split(plan, self.source.cohort(plan), trial)


@dataclass(kw_only=True)
class _Hospitals:
    """A study's hospitals, and models that were trained already.

    Attributes:
        plan: with folds, or with fractions.
    """

    plan: Plan
    sources: Mapping[str, Source]
    store: Path
    seed: int
    _alone: dict[tuple[str, frozenset[str]], dict[str, list[tuple[Values, Values]]]]

    def trained(self, hidden: Hidden, name: str | None = None) -> dict[str, dict[str, list[tuple[Values, Values]]]]:
        """Predictions and labels of test patients, {site: {task: per fold}}, of everybody's model or of one hospital's."""
        made: dict[str, dict[str, list[tuple[Values, Values]]]] = {}
        folds = self.plan.evaluation.folds
        for fold in range(folds) if folds else (-1,):
            sources = {n: HiddenSource(s, hidden.get(n, frozenset())) for n, s in self.sources.items()}
            # Sites of their own for every run: a site remembers the training set of its session.
            sites = {n: Site(s, {self.plan.hash: self.plan}, minimum_cohort=1) for n, s in sources.items()}
            chosen = sites if name is None else {name: sites[name]}
            shutil.rmtree(self.store, ignore_errors=True)
            trial = Trial(seed=self.seed, fold=fold)
            run = Consortium(plan=self.plan, sites=chosen, externals={}, store=self.store).federated(trial)
            for tested, site in chosen.items():
                scored: Scored = {}
                score_patients({tested: site}, run, scored)
                for task, ((prediction,), (labels,)) in scored.items():
                    made.setdefault(tested, {}).setdefault(task, []).append((prediction, labels))
        shutil.rmtree(self.store, ignore_errors=True)
        return made

    def alone(self, name: str, lacks: frozenset[str]) -> dict[str, list[tuple[Values, Values]]]:
        """A hospital's own model on its own patients."""
        if (name, lacks) not in self._alone:
            self._alone[name, lacks] = self.trained({name: lacks}, name)[name]
        return self._alone[name, lacks]

    def gains(self, hidden: Hidden, names: Collection[str], *, resample: bool) -> dict[str, dict[str, Gain]]:
        """Gains of some hospitals, {task: {site: gain}}."""
        together = self.trained(hidden)
        made: dict[str, dict[str, Gain]] = {}
        for name in names:
            own = self.alone(name, hidden.get(name, frozenset()))
            for task, folds in together[name].items():
                spec = self.plan.tasks[task]
                pairs = pairs_of(spec, folds), pairs_of(spec, own[task])
                made.setdefault(task, {})[name] = gain(*pairs, resample=resample)
        return made


def settings(plan: Plan, names: Sequence[str]) -> Iterator[tuple[str, Hidden, Mapping[str, str]]]:
    """What is taken from whom: a name, who lacks what, and whose gain is asked for under which heading."""
    sides = {name: side_of(modality) for name, modality in plan.modalities.items()}
    images, genes = (frozenset(n for n, s in sides.items() if s == side) for side in ("imaging", "genes"))
    for here, there in zip(names, (*names[1:], names[0]), strict=True):
        asked = {here: WITHOUT[0], there: WITHOUT[1]}
        yield f"{here} without genomics, {there} without images", {here: genes, there: images}, asked
    for modality in sorted(images | genes):
        for name in names:
            yield f"{name} without {modality}", {name: frozenset({modality})}, {n: OTHERS for n in names if n != name}


def _study(plan: Plan, folds: int, new: int) -> Plan:
    """The plan with folds, or with as many new patients beside each one who trains."""
    content = plan.model_dump(mode="json")
    evaluation = content["evaluation"] | {"folds": None if new else folds, "resplits": 0}
    if new:
        evaluation["split"] = {"train": 1 / (1 + new), "validation": 0.0, "test": new / (1 + new)}
    return parse({**content, "evaluation": evaluation})


def _drawn(plan: Plan, *, draw: int, new: int, seed: int, out: Path) -> _Hospitals:
    """The hospitals of one draw of the population: the first is the study's own."""
    cohort = read_settings(plan.simulation.cohort or {})
    cohort = cohort.model_copy(update={"seed": cohort.seed + draw, "patients": cohort.patients * (1 + new)})
    root = out / f"cohort-{draw}"
    if not root.exists():
        write_cohort(root, **cohort.model_dump())
    opened = [open_site(f, plan, state=None, minimum=None) for f in site_folders(root)]
    sources = {s.name: s.source for s in opened}
    if len(sources) < 3:
        raise ConfigError("missing modalities: the study's cohort needs three hospitals or more")
    return _Hospitals(plan=plan, sources=sources, store=out / "work", seed=seed + draw, _alone={})


def experiment(
    plan: Plan,
    *,
    folds: int,
    seed: int,
    out: Path,
    new: int = 0,
    draws: int = 1,
    announce: Callable[[int, str], None] = lambda draw, setting: None,
) -> dict[str, Any]:
    """Run all settings over the plan's synthetic cohort and write `missing.json`.

    Args:
        new: new patients of each hospital beside each one who trains; 0 for folds.
        draws: of the cohort; each has a seed of its own. Those that `out` has already are not repeated.
        announce: called with the draw and the setting that begins.

    Raises:
        ConfigError: the plan has no cohort of its own, is private, or has too few hospitals.
    """
    if plan.simulation.cohort is None or plan.privacy.noise != "none":
        raise ConfigError("missing modalities: the study needs a [simulation.cohort], and no privacy")
    if new and draws < 2:
        raise ConfigError("--new: intervals are over draws of the cohort; add --draws 2 or more")
    whole = _study(plan, folds, new)
    result: dict[str, Any] = {
        "study": plan.study.name,
        "plan_hash": whole.hash,
        "cohort": dict(plan.simulation.cohort),
        "folds": None if new else folds,
        "new": new,
        "seed": seed,
        "draws": draws,
        "rows": [],
    }
    known = _finished(out / "missing.json", result)
    for draw in range(draws):
        if draw not in known:
            hospitals = _drawn(whole, draw=draw, new=new, seed=seed, out=out)
            known[draw] = _measured(hospitals, draw, resample=not new, announce=announce)
        result |= {"draws": draw + 1, "rows": [row for k in range(draw + 1) for row in known[k]]}
        write_whole(out / "missing.json", dump_json(result))
    return result


def _finished(path: Path, result: Mapping[str, Any]) -> dict[int, list[dict[str, Any]]]:
    """Rows of the draws that an interrupted command, or one with fewer draws, has measured already.

    Raises:
        ConfigError: they are of something else.
    """
    if not path.exists():
        return {}
    kept = json.loads(path.read_bytes())
    if any(kept.get(k) != result[k] for k in result if k not in {"draws", "rows"}):
        raise ConfigError(f"{path}: is of another study, or with other options; choose another folder with --out")
    made: dict[int, list[dict[str, Any]]] = {}
    for row in kept["rows"]:
        made.setdefault(row["draw"], []).append(row)
    return made


def _measured(
    hospitals: _Hospitals, draw: int, *, resample: bool, announce: Callable[[int, str], None]
) -> list[dict[str, Any]]:
    rows = []
    for name, hidden, asked in settings(hospitals.plan, tuple(hospitals.sources)):
        announce(draw, name)
        for task, by_site in hospitals.gains(hidden, tuple(asked), resample=resample).items():
            rows += [
                _row(by_site[site], draw=draw, setting=name, part=part, task=task, site=site)
                for site, part in asked.items()
            ]
    return rows


def _row(found: Gain, **where: Any) -> dict[str, Any]:
    return {
        **where,
        "patients": found.patients,
        "federated": found.federated,
        "alone": found.alone,
        "difference": found.difference,
        # With new patients the interval is over draws.
        "ci": None if np.isnan(found.low) else [found.low, found.high],
    }


@app.command()
def main(
    study: Annotated[Path, typer.Argument(help="The study plan, a TOML file.", readable=False)],
    *,
    folds: Annotated[int, typer.Option(min=2, max=20, help="Folds of patients.")] = 5,
    new: Annotated[int, typer.Option(min=0, max=100, help="New patients beside each one who trains, for folds.")] = 0,
    draws: Annotated[int, typer.Option(min=1, max=100, help="Draws of the whole cohort.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of the folds and the training.")] = 0,
    modality_dropout: Annotated[float, typer.Option(min=0, max=0.95, help="In place of the study's.")] = 0.0,
    holders: Annotated[bool, typer.Option("--holders", help="Average encoders over those who have them.")] = False,
    out: Annotated[Path, typer.Option(help="Where missing.json goes.", readable=False)] = Path("out/missing"),
) -> None:
    """Take modalities from a study's hospitals and say who gains."""
    plan = load(study)
    content = plan.model_dump(mode="json")
    content["training"] |= {"modality_dropout": modality_dropout} if modality_dropout else {}
    content["strategy"] |= {"average": "holders"} if holders else {}
    changed = parse(content, str(study))
    print(table(experiment(changed, folds=folds, seed=seed, out=out, new=new, draws=draws, announce=_tell)))


def _tell(draw: int, setting: str) -> None:
    print(f"draw {draw}: {setting}", file=sys.stderr)


if __name__ == "__main__":
    run_app(app)
