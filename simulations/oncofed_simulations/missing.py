"""`python -m oncofed_simulations.missing`: what a hospital that lacks a modality gains, and whether it costs the others.

Two questions about a study's synthetic hospitals. In the first, one hospital has no genomics and its neighbour no images, each
in turn: is the federation better for each of them than a model of its own? In the second, one modality is taken from one hospital,
each from each in turn: is any *other* hospital then worse off in the federation than alone?
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
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
from oncofed_shared.count_tables import ratio
from oncofed_shared.errors import ConfigError
from oncofed_shared.messages import Trial
from oncofed_shared.plan import ClassificationTask, Plan, SurvivalTask, load, parse, side_of
from oncofed_shared.storage import dump_json, write_whole
from oncofed_simulations.consortium import Consortium, open_site
from oncofed_simulations.exact import Scored, score_patients
from oncofed_simulations.folders import site_folders
from oncofed_simulations.synthetic import read_settings, write_cohort

__all__ = ["Gain", "Hidden", "HiddenSource", "Pairs", "experiment", "gain", "main", "pairs_of", "settings", "table"]

Values = NDArray[np.float64]
Hidden = Mapping[str, frozenset[str]]
"""Which modalities each hospital lacks."""
DRAWS, LEVEL = 1000, 0.95
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


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Pairs of a hospital's test patients, each pair of one fold: scores of two folds' models are not comparable.

    Attributes:
        comparable: (n, n), 1 where the first of the pair should have the higher score.
        won: (n, n), 1 where he has, 1/2 where both have the same.
    """

    comparable: Values
    won: Values

    def score(self, weights: Values) -> Values:
        """Share of the pairs that are won, for (draws, n) numbers of times that each patient counts; NaN without a pair."""
        every = np.einsum("di,ij,dj->d", weights, self.comparable, weights, optimize=True)
        won = np.einsum("di,ij,dj->d", weights, self.won, weights, optimize=True)
        return ratio(won, every)


@dataclass(frozen=True, kw_only=True)
class Gain:
    """A hospital's score in the federation, beside its own model's.

    Attributes:
        low, high: percentile bootstrap of the difference, over patients.
    """

    federated: float
    alone: float
    low: float
    high: float
    patients: int

    @property
    def difference(self) -> float:
        """What the federation adds."""
        return self.federated - self.alone


def _compared(task: ClassificationTask | SurvivalTask, prediction: Values, labels: Values) -> tuple[Values, Values]:
    """Who should be above whom, (n, n), by Harrell's rule or between classes; and the scores, (n,)."""
    if isinstance(task, SurvivalTask):
        days, event = labels.T
        later = (days[:, None] < days) | ((days[:, None] == days) & (event == 0))
        return np.nan_to_num((event[:, None] == 1) & later), 1 - prediction[:, task.edges.index(task.horizon) - 1]
    if len(task.classes) > 2:
        raise ConfigError("missing modalities: a task with more than two classes has no single order of patients")
    return ((labels[:, None] == 1) & (labels == 0)).astype(float), prediction[:, 1]


def pairs_of(task: ClassificationTask | SurvivalTask, folds: Sequence[tuple[Values, Values]]) -> Pairs:
    """Pairs from the (n, ..) predictions and labels of each fold."""
    sizes = [len(labels) for _, labels in folds]
    comparable, won = np.zeros((sum(sizes), sum(sizes))), np.zeros((sum(sizes), sum(sizes)))
    for stop, (prediction, labels) in zip(np.cumsum(sizes), folds, strict=True):
        own = slice(stop - len(labels), stop)
        above, score = _compared(task, prediction, labels)
        ahead = (score[:, None] > score) + 0.5 * (score[:, None] == score)
        comparable[own, own], won[own, own] = above, above * ahead
    return Pairs(comparable=comparable, won=won)


def gain(federated: Pairs, alone: Pairs) -> Gain:
    """Both scores and the interval of their difference, over the same resampled patients."""
    patients = len(federated.comparable)
    once = np.ones((1, patients))
    drawn = np.random.default_rng(0).multinomial(patients, np.full(patients, 1 / patients), DRAWS).astype(float)
    apart = federated.score(drawn) - alone.score(drawn)
    low, high = np.nanquantile(apart, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Gain(
        federated=float(federated.score(once)[0]),
        alone=float(alone.score(once)[0]),
        low=float(low),
        high=float(high),
        patients=patients,
    )


@dataclass(kw_only=True)
class _Hospitals:
    """A study's hospitals, and models that were trained already.

    Attributes:
        plan: with folds.
    """

    plan: Plan
    sources: Mapping[str, Source]
    store: Path
    seed: int
    _alone: dict[tuple[str, frozenset[str]], dict[str, list[tuple[Values, Values]]]]

    def trained(self, hidden: Hidden, name: str | None = None) -> dict[str, dict[str, list[tuple[Values, Values]]]]:
        """Predictions and labels of test patients, {site: {task: per fold}}, of everybody's model or of one hospital's."""
        made: dict[str, dict[str, list[tuple[Values, Values]]]] = {}
        for fold in range(self.plan.evaluation.folds or 1):
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

    def gains(self, hidden: Hidden) -> dict[str, dict[str, Gain]]:
        """Every hospital's gain, {task: {site: gain}}."""
        together = self.trained(hidden)
        made: dict[str, dict[str, Gain]] = {}
        for name, tasks in together.items():
            own = self.alone(name, hidden.get(name, frozenset()))
            for task, folds in tasks.items():
                spec = self.plan.tasks[task]
                made.setdefault(task, {})[name] = gain(pairs_of(spec, folds), pairs_of(spec, own[task]))
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


def experiment(plan: Plan, *, folds: int, seed: int, out: Path) -> dict[str, Any]:
    """Run all settings over the plan's synthetic cohort and write `missing.json`.

    Raises:
        ConfigError: the plan has no cohort of its own, is private, or has too few hospitals.
    """
    if plan.simulation.cohort is None or plan.privacy.noise != "none":
        raise ConfigError("missing modalities: the study needs a [simulation.cohort], and no privacy")
    content = plan.model_dump(mode="json")
    whole = parse({**content, "evaluation": {**content["evaluation"], "folds": folds, "resplits": 0}})
    root = out / "cohort"
    if not root.exists():
        write_cohort(root, **read_settings(plan.simulation.cohort).model_dump())
    opened = [open_site(f, whole, state=None, minimum=None) for f in site_folders(root)]
    sources = {s.name: s.source for s in opened}
    if len(sources) < 3:
        raise ConfigError("missing modalities: the study's cohort needs three hospitals or more")
    hospitals = _Hospitals(plan=whole, sources=sources, store=out / "work", seed=seed, _alone={})
    rows = []
    for name, hidden, asked in settings(whole, tuple(sources)):
        for task, by_site in hospitals.gains(hidden).items():
            rows += [_row(name, part, task, site, by_site[site]) for site, part in asked.items()]
    result = {"study": plan.study.name, "plan_hash": whole.hash, "folds": folds, "seed": seed, "rows": rows}
    write_whole(out / "missing.json", dump_json(result))
    return result


def _row(setting: str, part: str, task: str, site: str, found: Gain) -> dict[str, Any]:
    return {
        "setting": setting,
        "part": part,
        "task": task,
        "site": site,
        "patients": found.patients,
        "federated": found.federated,
        "alone": found.alone,
        "difference": found.difference,
        "ci": [found.low, found.high],
    }


def table(result: Mapping[str, Any]) -> str:
    """What the rows come to, in Markdown: beyond noise is an interval that does not reach 0."""
    lines = [
        "| hospitals | task | scores | federated | alone | difference | below alone | beyond noise | lowest difference |",
        "|---" * 9 + "|",
    ]
    kinds = {(r["part"], r["task"]): None for r in result["rows"]}
    for part, task in kinds:
        rows = [r for r in result["rows"] if (r["part"], r["task"]) == (part, task)]
        means = [float(np.mean([r[key] for r in rows])) for key in ("federated", "alone", "difference")]
        below = [r for r in rows if r["difference"] < 0]
        beyond = [r for r in rows if r["ci"][1] < 0]
        least = min(rows, key=lambda r: float(r["difference"]))
        lines.append(
            f"| {part} | {task} | {len(rows)} | {means[0]:.3f} | {means[1]:.3f} | {means[2]:+.3f} | {len(below)} | {len(beyond)} "
            f"| {least['difference']:+.3f} ({least['ci'][0]:+.3f} to {least['ci'][1]:+.3f}), {least['site']} |"
        )
    return "\n".join(lines)


@app.command()
def main(
    study: Annotated[Path, typer.Argument(help="The study plan, a TOML file.", readable=False)],
    *,
    folds: Annotated[int, typer.Option(min=2, max=20, help="Folds of patients.")] = 5,
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
    print(table(experiment(parse(content, str(study)), folds=folds, seed=seed, out=out)))


if __name__ == "__main__":
    run_app(app)
