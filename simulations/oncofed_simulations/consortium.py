"""Sites in one process, and the training runs over them: federated, alone, pooled."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oncofed_client.gene_files import with_gene_files
from oncofed_client.scratch import Scratch
from oncofed_client.settings import SETTINGS_FILE, SiteSettings, has_settings, load_settings, settings_from_study
from oncofed_client.site import Site
from oncofed_client.source import FolderSource
from oncofed_server.aggregator import Aggregator
from oncofed_server.run_state import Phase, Roster, State
from oncofed_server.secure_aggregator import aggregator_for
from oncofed_server.snapshot import load_state, save_state
from oncofed_shared.errors import ConfigError, Interrupted, RemoteProtocolError
from oncofed_shared.features import column_ranges
from oncofed_shared.messages import Head, Trial
from oncofed_shared.plan import ConsortiumPrivacy, NoPrivacy, Plan, SurvivalTask, parse
from oncofed_shared.plan_reduction import Charged
from oncofed_shared.scoring import dense, sparse
from oncofed_simulations.keys import aggregator_key, contributor_for, identities_of
from oncofed_simulations.loopback import FakeClock, Tap, drive
from oncofed_simulations.pooled import PooledSource

__all__ = [
    "POOLED",
    "Consortium",
    "KeptRun",
    "Run",
    "SparseTables",
    "baseline_plan",
    "by_constants",
    "could_train",
    "federated_roster",
    "folder_settings",
    "keeper",
    "noise_of_each",
    "open_site",
]

POOLED = "all sites pooled"
SNAPSHOT_SECONDS = 5.0


def folder_settings(folder: Path, plan: Plan) -> SiteSettings:
    """A folder's `site.toml`, or the study's `[simulation.site]` for a folder without one."""
    if has_settings(folder):
        return load_settings(folder)
    if plan.simulation.site is None:
        raise ConfigError(
            f"{folder}: has no {SETTINGS_FILE}, and the study has no [simulation.site] to read it by; "
            f"run 'oncofed-site init {folder}'"
        )
    return settings_from_study(plan.simulation.site, folder)


def baseline_plan(plan: Plan) -> Plan:
    """The plan of a model that one cohort trains, pooled or alone: there is nobody to choose from, and no layer is another's.

    Nobody draws a share of noise with one cohort: it has all the noise itself. The plan's shares of patients whose site has a
    modality are of all sites together, and would make the steps of one that has it too long.
    """
    plain: dict[str, object] = {"local": (), "participation": 1.0, "minimum_sites": 1}
    if plan.strategy.holders is not None:
        plain |= {"average": "patients", "holders": None}
    consortium = isinstance(plan.privacy, ConsortiumPrivacy)
    if plan.strategy.model_copy(update=plain) == plan.strategy and not consortium:
        return plan
    content = plan.model_dump(mode="json")
    if consortium:
        content = by_constants(plan)
        content["privacy"] = noise_of_each(content["privacy"])
    return parse({**content, "strategy": content["strategy"] | plain})


def noise_of_each(privacy: Mapping[str, object]) -> dict[str, object]:
    """A `[privacy]` table with noise over the consortium as one in which every site has all the noise, with the same bound."""
    kept = ("epsilon", "delta", "clip_norm", "sampling_rate", "patients")
    made = {k: privacy[k] for k in kept} | {"noise": "site", "release_tables": True}
    for spent in (privacy.get("statistics_epsilon"), privacy.get("harmonise_epsilon")):
        if isinstance(spent, float) and isinstance(made["epsilon"], float):
            # What the study spends before training, an arm that does not spends on its steps.
            made["epsilon"] += spent
    return made


def by_constants(plan: Plan) -> dict[str, Any]:
    """A plan's content in which nothing is learned from patients before training: its declared ranges in place of statistics.

    A plan that charges no statistics has nothing to be changed. A column with knots loses them, for they need a mean; a modality
    whose columns are reduced by noised sums has all of them.
    """
    content = plan.model_dump(mode="json")
    if content["privacy"].get("harmonise_epsilon"):
        content["modalities"] = {n: m | {"harmonise": None} for n, m in content["modalities"].items()}
    if not content["privacy"].get("statistics_epsilon"):
        return content
    for name, modality in content["modalities"].items():
        modality["missing"] = "mask" if modality["missing"] == "impute" else modality["missing"]
        if isinstance(plan.modalities[name].reduction, Charged):
            modality["reduction"] = None
        if modality["scaling"] not in {"zscore", "robust"}:
            continue
        modality["scaling"] = "constants"
        numeric = {c: s for c, s in (modality["columns"] or {}).items() if s["kind"] == "numeric"}
        for column, spec in numeric.items() if modality["columns"] else [("*", modality)]:
            middle, half = column_ranges(plan, {name: (column,)})
            spec |= {"center": float(middle[0]), "spread": float(half[0])}
            spec.pop("knots", None)
    if content["training"]["class_weights"] == "balanced":
        content["training"]["class_weights"] = "none"
    return content


def open_site(
    folder: Path, plan: Plan, *, state: Path | None, minimum: int | None, scratch: Scratch | None = None
) -> Site:
    """A hospital's folder as a simulated site that has approved the plan.

    Args:
        state: where the site keeps its own state, outside its data.
        minimum: fewest patients, in place of the site's policy.
        scratch: what the sites of a process have in common.
    """
    settings = folder_settings(folder, plan)
    least = settings.policy.minimum_cohort if minimum is None else minimum
    source = FolderSource(folder, settings, state=state)
    here = with_gene_files(plan, settings, folder)
    plans = {p.hash: p for p in (here, baseline_plan(here))}
    seed = plan.simulation.noise_seed
    contributor = contributor_for(plan, settings, state) if state is not None else None
    return Site(
        source,
        plans,
        minimum_cohort=least,
        policy=settings.policy,
        state=state,
        noise_seed=seed,
        scratch=scratch,
        contributor=contributor,
    )


class SparseTables(Mapping[str, NDArray[np.float64]]):
    """Tables of counts by site, kept as the few cells that are not zero."""

    def __init__(self, tables: Mapping[str, NDArray[np.float64]]) -> None:
        self._cells = {site: (len(v), *sparse(v)) for site, v in tables.items()}

    def __getitem__(self, site: str) -> NDArray[np.float64]:
        return dense(*self._cells[site])

    def __iter__(self) -> Iterator[str]:
        return iter(self._cells)

    def __len__(self) -> int:
        return len(self._cells)

    def __add__(self, other: SparseTables) -> SparseTables:
        """Sum by site, over the sites of either."""
        sites = dict.fromkeys((*self, *other))
        return SparseTables({s: sum((t[s] for t in (self, other) if s in t), start=np.zeros(1)) for s in sites})


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished training run.

    Attributes:
        plan: of this run; a baseline's may differ from the study's, see `baseline_plan`.
        session: the sites' name for it.
        state: the aggregator's last state, its tables taken out.
    """

    plan: Plan
    session: str
    trial: Trial
    state: State
    tables: SparseTables


def could_train(plan: Plan, site: Site, trial: Trial) -> bool:
    """Whether a site alone has something to learn the main task from: a training event, or two classes."""
    cohort = site.source.cohort(plan)
    labels = cohort.labels[plan.main_task][site.source.split(plan, cohort, trial) == 0]
    if isinstance(plan.tasks[plan.main_task], SurvivalTask):
        return bool(np.any(labels[:, 1] > 0))
    return len(np.unique(labels[labels >= 0])) > 1


@dataclass(kw_only=True)
class Consortium:
    """The sites of a simulation and where its runs are kept.

    Attributes:
        sites, externals: by name, in order.
        store: folder of snapshots and finished runs; a run found there is not repeated.
        interrupted: asked between two rounds; when true the run is saved and `Interrupted` raised.
        watch: called after every round with a run's key and its aggregator.
        tap: sees every byte over a site's boundary.
    """

    plan: Plan
    sites: dict[str, Site]
    externals: dict[str, Site]
    store: Path
    interrupted: Callable[[], bool] = lambda: False
    watch: Callable[[str, Aggregator], None] = lambda key, aggregator: None
    tap: Tap = lambda direction, site, content: None

    def federated(self, trial: Trial, *, arm: str = "federated") -> Run:
        """All sites together."""
        secure = isinstance(self.plan.privacy, ConsortiumPrivacy)
        states = {n: s.state for n, s in self.sites.items() if secure and s.state is not None}
        roster = federated_roster(self.sites, self.externals, states)
        curves = arm == "federated"
        return self._run(arm, self.plan, roster, trial, self.sites | self.externals, curves=curves)

    def pooled(self, trial: Trial) -> Run:
        """The same network and code, with one site that has everybody's patients."""
        source = PooledSource([s.source for s in self.sites.values()], POOLED)
        plan = baseline_plan(self.plan)
        seed = plan.simulation.noise_seed
        whole = Site(source, {plan.hash: plan}, minimum_cohort=1, noise_seed=seed)
        roster = Roster(trainers=(POOLED,), evaluators=tuple(self.sites), externals=tuple(self.externals))
        members = {POOLED: whole} | self.sites | self.externals
        return self._run("pooled", plan, roster, trial, members, curves=False)

    def alone(self, name: str, trial: Trial) -> Run:
        """One site's own model, scored at every site."""
        roster = Roster(trainers=(name,), evaluators=tuple(self.sites))
        return self._run(f"alone-{name}", baseline_plan(self.plan), roster, trial, self.sites, curves=False)

    def _run(
        self, arm: str, plan: Plan, roster: Roster, trial: Trial, members: Mapping[str, Site], *, curves: bool
    ) -> Run:
        kept = KeptRun.open(plan, self.store, arm, roster, trial, curves=curves)
        drive(
            kept.aggregator,
            members,
            clock=FakeClock(),
            tap=self.tap,
            after_step=keeper(kept, self.watch, self.interrupted),
        )
        if isinstance(plan.privacy, ConsortiumPrivacy) and not kept.aggregator.state.tables:
            kept.found = False
            kept.aggregator.state = replace(kept.aggregator.state, tables=self._own_tables(kept.aggregator, roster))
        kept.close()
        final = kept.aggregator.state
        if not isinstance(plan.privacy, NoPrivacy):
            # Kept for good, so that nothing is asked again: what the run reserved and did not use is free again.
            over = Head(session=kept.aggregator.session, step=0, attempt=0, plan_hash=plan.hash, trial=trial)
            for site in members.values():
                site.end(over)
        return Run(
            plan=plan,
            session=kept.aggregator.session,
            trial=trial,
            state=replace(final, tables={}),
            tables=SparseTables(final.tables),
        )

    def _own_tables(self, aggregator: Aggregator, roster: Roster) -> dict[str, NDArray[np.float64]]:
        """Exact tables that only a simulation can have: no site sends them."""
        if aggregator.state.phase is not Phase.DONE:
            return {}
        head = Head(
            session=aggregator.session, step=0, attempt=0, plan_hash=aggregator.plan.hash, trial=aggregator.trial
        )
        parameters = aggregator.shared_parameters()
        parts = {n: "all" if n in roster.externals else "test" for n in roster.everybody}
        members = self.sites | self.externals
        present = {n: p for n, p in parts.items() if n not in aggregator.state.excluded}
        return {n: members[n].tabulated(head, parameters, part=p, subgroups=True) for n, p in present.items()}


@dataclass(kw_only=True)
class KeptRun:
    """A training run and the file that it goes on from, whichever engine drives it.

    Attributes:
        found: it was finished already when it was opened.
    """

    key: str
    path: Path
    aggregator: Aggregator
    found: bool

    @staticmethod
    def place(store: Path, arm: str, trial: Trial) -> tuple[str, Path]:
        """A run's name and its file."""
        key = f"{arm}.{'resplit' if trial.resplit else 'seed'}{trial.seed}"
        key += f".fold{trial.fold}" if trial.fold >= 0 else ""
        return key, store / f"{key}.safetensors"

    @staticmethod
    def open(plan: Plan, store: Path, arm: str, roster: Roster, trial: Trial, *, curves: bool) -> KeptRun:
        """A new run, or one that goes on from its snapshot in `store`."""
        key, path = KeptRun.place(store, arm, trial)
        state = load_state(path, plan) if path.exists() else None
        session = f"{plan.hash[:16]}/{key}"
        own = aggregator_key(store.parent) if roster.identities else None
        aggregator = aggregator_for(plan, roster, trial, session=session, curves=curves, state=state, key=own)
        return KeptRun(key=key, path=path, aggregator=aggregator, found=aggregator.state.phase is Phase.DONE)

    def close(self) -> None:
        """Keep a finished run.

        Raises:
            RemoteProtocolError: it has failed.
        """
        final = self.aggregator.state
        if final.phase is Phase.FAILED:
            raise RemoteProtocolError(f"{self.key}: the run failed: {final.why}", code="failed")
        if not self.found:
            save_state(self.path, final)


def federated_roster(
    sites: Iterable[str], externals: Iterable[str], states: Mapping[str, Path] | None = None
) -> Roster:
    """All sites together.

    Args:
        states: state folders of those that keep an identity there.
    """
    names = tuple(sites)
    return Roster(trainers=names, evaluators=names, externals=tuple(externals), identities=identities_of(states or {}))


def keeper(
    kept: KeptRun, watch: Callable[[str, Aggregator], None], interrupted: Callable[[], bool]
) -> Callable[[Aggregator], None]:
    """What happens between two rounds: the run is watched, now and then saved, and stopped if a person wants that."""
    last = time.monotonic()
    seen = -1

    def keep(aggregator: Aggregator) -> None:
        nonlocal last, seen
        state = aggregator.state
        between = state.phase is Phase.TRAIN and state.total is None and state.round != seen
        if not between:
            return
        seen = state.round
        watch(kept.key, aggregator)
        stop = interrupted()
        # A site's memory reaches one round back; the aggregator must not fall behind further than that.
        every = aggregator.plan.strategy.site_memory
        if stop or every or time.monotonic() - last > SNAPSHOT_SECONDS:
            save_state(kept.path, state)
            last = time.monotonic()
        if stop:
            raise Interrupted(f"stopped in round {state.round} of {kept.key}; --resume goes on from there")

    return keep
