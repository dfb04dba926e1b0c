"""The runs of a study (federated, pooled, alone, re-splits, folds) and what they say together."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any

from oncofed_server.certainty import certainty
from oncofed_server.released import released_scores
from oncofed_server.results import (
    Numbers,
    alone_numbers,
    arm_numbers,
    binning_errors,
    drawn,
    shown,
    spread,
)
from oncofed_shared.consortium import TablesMechanism
from oncofed_shared.errors import ConfigError, OncofedError, RemoteProtocolError
from oncofed_shared.messages import Trial
from oncofed_shared.noised_tables import coarse_entries, placed_grid
from oncofed_shared.plan import ConsortiumPrivacy, NoPrivacy, Plan
from oncofed_shared.privacy import in_roster
from oncofed_shared.releases import uncharged
from oncofed_shared.scoring import WHOLE, split_vector
from oncofed_simulations.comparisons import pooled_like, with_site_noise, without_ledgers, without_privacy
from oncofed_simulations.consortium import Consortium, Run, SparseTables, could_train
from oncofed_simulations.exact import exact_numbers
from oncofed_simulations.pooled import PooledSource
from oncofed_simulations.reference import reference_tables
from oncofed_simulations.spending import spending

__all__ = ["Study"]

PACKAGES = ("oncofed", "torch", "numpy", "flwr", "opacus", "scikit-survival", "scikit-learn")
RESPLIT_SEEDS = 1000
Replicates = Sequence[SparseTables]


class Study:
    """A plan, a consortium and seeds.

    Args:
        baselines: whether pooled and alone models are trained too.

    Attributes:
        excluded: sites that do not take part, and why.
    """

    def __init__(self, plan: Plan, consortium: Consortium, *, seeds: Sequence[int], baselines: bool) -> None:
        self.plan, self.consortium = plan, consortium
        self.seeds, self.baselines = tuple(seeds), baselines
        self.excluded = self._preflight()
        self.sites, self.externals = tuple(consortium.sites), tuple(consortium.externals)
        self.folds = range(plan.evaluation.folds) if plan.evaluation.folds else (-1,)
        trials = [trial for per_seed in self._trials() for trial in per_seed]
        self.private = not isinstance(plan.privacy, NoPrivacy)
        self._shared_noise = isinstance(plan.privacy, ConsortiumPrivacy)
        # Calibrated before the run: a plan whose epsilon is impossible never begins.
        self.mechanisms = {n: spending(plan, n) for n in consortium.sites if self.private}
        self.trainable = [n for n, site in consortium.sites.items() if all(could_train(plan, site, t) for t in trials)]

    def _preflight(self) -> dict[str, str]:
        """Ask every site for its cohort once, and leave out those that say no or cannot be read."""
        excluded: dict[str, str] = {}
        errors: list[OncofedError] = []
        trial, privacy = Trial(seed=self.seeds[0]), self.plan.privacy
        for group in (self.consortium.sites, self.consortium.externals):
            for name, site in list(group.items()):
                try:
                    if not isinstance(privacy, NoPrivacy) and group is self.consortium.sites:
                        in_roster(privacy, name)
                    site.admit(self.plan, trial)
                except OncofedError as error:
                    errors.append(error)
                    excluded[name] = "; ".join(error.problems[:3])
                    del group[name]
        self._complete(excluded)
        if not self.consortium.sites:
            worst = max(errors, key=lambda e: e.exit_code)
            lines = [f"{n}: {w}" for n, w in excluded.items()]
            raise type(worst)("no site can take part:", *lines, code=worst.code)
        return excluded

    def _complete(self, excluded: Mapping[str, str]) -> None:
        """See that enough of a roster is here for its secure sums.

        Raises:
            ConfigError: more sites of `privacy.patients` are missing than `privacy.drop` allows.
        """
        privacy = self.plan.privacy
        if not isinstance(privacy, ConsortiumPrivacy):
            return
        missing = [n for n in privacy.patients if n not in self.consortium.sites]
        if len(missing) > privacy.drop:
            raise ConfigError(
                f"privacy.patients: {len(missing)} of its {len(privacy.patients)} sites do not take part, and privacy.drop is "
                f"{privacy.drop}; the noise is sized for the others",
                *(f"{n}: {excluded.get(n, 'is not among the sites of this run')}" for n in missing),
                code="roster",
            )

    def _trials(self) -> list[list[Trial]]:
        """Per seed, its folds or its one split."""
        return [[Trial(seed=s, fold=f) for f in self.folds] for s in self.seeds]

    def _resplit_trials(self) -> list[list[Trial]]:
        count = self.plan.evaluation.resplits
        return [[Trial(seed=RESPLIT_SEEDS + i, resplit=True)] for i in range(count)]

    def federated_trials(self) -> list[Trial]:
        """Every trial that all sites train together, the released one first: what another engine can run beforehand."""
        trials = [trial for per_seed in (*self._trials(), *self._resplit_trials()) for trial in per_seed]
        return [*([self._everybody()] if self.plan.evaluation.folds else []), *trials]

    def _everybody(self) -> Trial:
        """No fold is number k of k: the released model has learned from everybody."""
        return Trial(seed=self.seeds[0], fold=self.plan.evaluation.folds or 0)

    def rounds(self) -> int:
        """Rounds of all runs together, for the progress display."""
        per_seed, resplits = len(self.folds) * len(self.seeds), self.plan.evaluation.resplits
        runs = per_seed + bool(self.plan.evaluation.folds) + resplits
        if self.baselines:
            runs += per_seed * (1 + len(self.trainable) + self.private + self._shared_noise) + resplits
        return runs * self.plan.training.rounds

    def train(self) -> tuple[Run, dict[str, Any]]:
        """Run everything.

        Returns:
            The run whose model is released, and `result.json` but for seconds and command.
        """
        consortium, plan = self.consortium, self.plan
        # First, because a feature that no site has is a mistake in the plan, and training takes long.
        references = {n: self._reference(n, self._trials()) for n in plan.evaluation.reference}
        federated = _each(consortium.federated, self._trials())
        released = federated[0][0]
        if plan.evaluation.folds:
            released = consortium.federated(self._everybody())
        runs = {"federated": federated}
        arms: dict[str, Numbers] = {}
        if self.baselines:
            runs["pooled"] = _each(pooled_like(consortium).pooled, self._trials())
            arms["alone"] = self._alone()
            if self.private:
                free = partial(without_privacy(consortium).federated, arm="without_privacy")
                runs["without_privacy"] = _each(free, self._trials())
            if self._shared_noise:
                noisy = partial(with_site_noise(consortium).federated, arm="site_noise")
                runs["site_noise"] = _each(noisy, self._trials())
        return released, self._result(runs, arms, references, released)

    def _alone(self) -> Numbers:
        """Each site's own model. A site whose own training fails, for it diverges or drops out, has none; the study goes on."""
        tables: dict[str, Replicates] = {}
        single = without_ledgers(self.consortium)
        for name in self.trainable:
            with suppress(RemoteProtocolError):
                tables[name] = _replicates(_each(partial(single.alone, name), self._trials()))
        return alone_numbers(self.plan, tables, self.sites)

    def _result(
        self,
        runs: Mapping[str, list[list[Run]]],
        arms: dict[str, Numbers],
        references: Mapping[str, Replicates],
        released: Run,
    ) -> dict[str, Any]:
        plan = self.plan
        replicates: dict[str, Replicates] = {a: _replicates(r) for a, r in runs.items()}
        for arm, tables in replicates.items():
            arms[arm] = arm_numbers(plan, tables, self.sites, self.externals)
            exact = exact_numbers(plan, self.consortium.sites, runs[arm])
            for task, metrics in arms[arm].items():
                for metric, entry in metrics.items():
                    entry["exact"] = exact.get(task, {}).get(metric)
        numbers = {n: arm_numbers(plan, t, self.sites, self.externals) for n, t in references.items()}
        if references:
            first = str(plan.evaluation.main_reference)
            arms["reference"], replicates["reference"] = numbers[first], references[first]
        figures = {a: drawn(plan, t, self.sites) for a, t in replicates.items()}
        main = [run for per_seed in runs["federated"] for run in per_seed]
        tasks = _by_arm(arms)
        return {
            "study": plan.study.name,
            "purpose": plan.study.purpose,
            "plan_hash": plan.hash,
            "plan": plan.model_dump(mode="json", exclude={"simulation"}),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": {p: importlib.metadata.version(p) for p in PACKAGES} | {"python": platform.python_version()},
            "seeds": list(self.seeds),
            "bytes_up": sum(r.state.cost.bytes_up for r in main),
            "bytes_down": sum(r.state.cost.bytes_down for r in main),
            "rounds": [entry for run in main for entry in self._curve(run)],
            "uncharged": list(uncharged(plan, runs=len(self.seeds))),
            "released": self._released(main[0]),
            "sites": self._site_rows(main[0]),
            "excluded": [{"name": n, "why": w} for n, w in (self.excluded | dict(main[0].state.excluded)).items()],
            "tasks": {t: tasks[t] for t in plan.task_names},
            "references": numbers,
            "binning_error": binning_errors(plan, replicates["federated"][0], self.sites),
            "figures": {t: {a: f[t] for a, f in figures.items() if t in f} for t in plan.task_names},
            "certainty": self._certainty(released),
            "resplits": self._resplits(),
            "folds": self._fold_spread(runs),
        }

    def _reference(self, name: str, trials: Sequence[Sequence[Trial]]) -> list[SparseTables]:
        """Test tables of a reference model, one per inner list, added over its trials."""
        members = (*self.consortium.sites.values(), *self.consortium.externals.values())
        pooled = PooledSource([s.source for s in members])
        return [
            _sum([SparseTables(reference_tables(self.plan, pooled, t, name, self.externals)) for t in per_seed])
            for per_seed in trials
        ]

    def _resplits(self) -> dict[str, Any]:
        """The same on random splits: a published test set may be small and lucky."""
        trials = self._resplit_trials()
        if not trials:
            return {}
        arms = {"federated": _replicates(_each(self.consortium.federated, trials))}
        if self.baselines:
            arms["pooled"] = _replicates(_each(self.consortium.pooled, trials))
        for name in self.plan.evaluation.reference:
            main = name == self.plan.evaluation.main_reference
            arms["reference" if main else name] = self._reference(name, trials)
        return _by_arm({a: spread(self.plan, t, self.sites, "per_split") for a, t in arms.items()})

    def _fold_spread(self, runs: Mapping[str, list[list[Run]]]) -> dict[str, Any]:
        if not self.plan.evaluation.folds:
            return {}
        each = {a: [run.tables for per_seed in r for run in per_seed] for a, r in runs.items()}
        return _by_arm({a: spread(self.plan, t, self.sites, "per_fold") for a, t in each.items()})

    def _curve(self, run: Run) -> list[dict[str, Any]]:
        entries = []
        for i, (loss, cost) in enumerate(zip(run.state.losses, run.state.costs, strict=True), 1):
            entry: dict[str, Any] = {
                "seed": run.trial.seed,
                "round": i,
                # Under a private plan no site says its loss.
                "train_loss": None if self.private else loss,
                "seconds": cost.seconds,
                "bytes_up": cost.bytes_up,
                "bytes_down": cost.bytes_down,
                "validation": {},
                "divergence": None,
            }
            if run.trial.fold >= 0:
                entry["fold"] = run.trial.fold
            if (apart := run.state.divergence[i - 1]) is not None:
                entry["divergence"] = {"mean": apart.mean, "max": apart.max}
            if run.state.participants:
                entry["participants"] = list(run.state.participants[i - 1])
            table = run.state.validation.get(i)
            if table is not None:
                whole = split_vector(self.plan, table, subgroups=False)[WHOLE]
                entry["validation"] = {t: shown(self.plan, t, v) for t, v in whole.items()}
            entries.append(entry)
        return entries

    def _released(self, run: Run) -> list[dict[str, Any]]:
        """Scores as a deployed study would release them; of the first run alone, because a study releases one."""
        counts = run.state.released
        if counts is None:
            return []
        grid = placed_grid(self.plan, run.state.histogram)
        mechanism = TablesMechanism.for_plan(self.plan, cells=len(counts), entries=coarse_entries(self.plan))
        return released_scores(self.plan, counts, mechanism, run.state.present, grid)

    def _certainty(self, run: Run) -> dict[str, Any]:
        """What the released model's predictions have meant for validation patients, from whom it has not learned."""
        last = run.state.validation.get(self.plan.training.rounds)
        return certainty(self.plan, last, {s: run.tables[s] for s in self.sites if s in run.tables})

    def _site_rows(self, run: Run) -> list[dict[str, Any]]:
        rows = []
        for name in (*self.sites, *self.externals):
            described = run.state.descriptions.get(name)
            if described is None:
                continue
            parts, spent = described.parts, self.mechanisms.get(name)
            rows.append(
                {
                    "name": name,
                    "patients": spent.patients if spent else parts.get("all"),
                    "train": parts.get("train"),
                    "validation": parts.get("validation"),
                    "test": parts.get("test"),
                    "modalities": dict(described.modalities),
                    "events": dict(described.events),
                    "epsilon": spent.epsilon if spent else None,
                    "delta": spent.delta if spent else None,
                    "epsilon_alone": spent.epsilon_alone if spent else None,
                    "trained": name in self.sites and name not in run.state.excluded,
                    "external": name in self.externals,
                }
            )
        return rows


def _each(run: Callable[[Trial], Run], trials: Sequence[Sequence[Trial]]) -> list[list[Run]]:
    return [[run(trial) for trial in per_seed] for per_seed in trials]


def _sum(tables: Sequence[SparseTables]) -> SparseTables:
    total = tables[0]
    for other in tables[1:]:
        total = total + other
    return total


def _replicates(runs: Sequence[Sequence[Run]]) -> list[SparseTables]:
    """Tables by site for every seed, added over folds."""
    return [_sum([run.tables for run in per_seed]) for per_seed in runs]


def _by_arm(arms: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """{arm: {task: {metric: x}}} to {task: {metric: {arm: x}}}."""
    made: dict[str, Any] = {}
    order = ("federated", "pooled", "site_noise", "alone", "without_privacy", "reference")
    for arm in sorted(arms, key=lambda a: (order.index(a) if a in order else len(order), a)):
        for task, metrics in arms[arm].items():
            for metric, entry in metrics.items():
                made.setdefault(task, {}).setdefault(metric, {})[arm] = entry
    return made
