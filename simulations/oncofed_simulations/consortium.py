"""Sites in one process, and the training runs over them: federated, alone, pooled."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from oncofed_client.settings import SETTINGS_FILE, SiteSettings, has_settings, load_settings, settings_from_study
from oncofed_client.site import Site
from oncofed_client.source import FolderSource
from oncofed_server.aggregator import Aggregator, Phase, Roster, State
from oncofed_server.snapshot import load_state, save_state
from oncofed_shared.errors import ConfigError, Interrupted, RemoteProtocolError
from oncofed_shared.messages import Trial
from oncofed_shared.plan import Plan, SurvivalTask
from oncofed_shared.scoring import dense, sparse
from oncofed_simulations.loopback import FakeClock, Tap, drive
from oncofed_simulations.pooled import PooledSource

__all__ = ["POOLED", "Consortium", "Run", "SparseTables", "could_train", "folder_settings", "open_site"]

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


def open_site(folder: Path, plan: Plan, *, state: Path | None, minimum: int | None) -> Site:
    """A hospital's folder as a simulated site that has approved the plan.

    Args:
        state: where the site keeps its own state, outside its data.
        minimum: fewest patients, in place of the site's policy.
    """
    settings = folder_settings(folder, plan)
    least = settings.policy.minimum_cohort if minimum is None else minimum
    source = FolderSource(folder, settings, state=state)
    return Site(source, {plan.hash: plan}, minimum_cohort=least, state=state, noise_seed=plan.simulation.noise_seed)


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
        state: the aggregator's last state, its tables taken out.
    """

    trial: Trial
    state: State
    tables: SparseTables


def could_train(plan: Plan, site: Site, trial: Trial) -> bool:
    """Whether a site alone has something to learn the main task from: a training event, or two classes."""
    cohort = site.source.cohort(plan)
    labels = cohort.labels[plan.main_task][site.source.split(plan, cohort, trial) == 0]
    if isinstance(plan.tasks[plan.main_task], SurvivalTask):
        return bool(np.any(labels[:, 1] == 1))
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
        names = tuple(self.sites)
        roster = Roster(trainers=names, evaluators=names, externals=tuple(self.externals))
        return self._run(arm, roster, trial, self.sites | self.externals, curves=arm == "federated")

    def pooled(self, trial: Trial) -> Run:
        """The same network and code, with one site that has everybody's patients."""
        source = PooledSource([s.source for s in self.sites.values()], POOLED)
        seed = self.plan.simulation.noise_seed
        whole = Site(source, {self.plan.hash: self.plan}, minimum_cohort=1, noise_seed=seed)
        roster = Roster(trainers=(POOLED,), evaluators=tuple(self.sites), externals=tuple(self.externals))
        members = {POOLED: whole} | self.sites | self.externals
        return self._run("pooled", roster, trial, members, curves=False)

    def alone(self, name: str, trial: Trial) -> Run:
        """One site's own model, scored at every site."""
        roster = Roster(trainers=(name,), evaluators=tuple(self.sites))
        return self._run(f"alone-{name}", roster, trial, self.sites, curves=False)

    def _run(self, arm: str, roster: Roster, trial: Trial, members: Mapping[str, Site], *, curves: bool) -> Run:
        key = f"{arm}.{'resplit' if trial.resplit else 'seed'}{trial.seed}"
        key += f".fold{trial.fold}" if trial.fold >= 0 else ""
        path = self.store / f"{key}.safetensors"
        state = load_state(path, self.plan) if path.exists() else None
        aggregator = Aggregator(
            self.plan, roster, trial, session=f"{self.plan.hash[:16]}/{key}", curves=curves, state=state
        )
        drive(
            aggregator,
            members,
            clock=FakeClock(),
            tap=self.tap,
            after_step=self._keeper(key, path),
        )
        final = aggregator.state
        if final.phase is Phase.FAILED:
            raise RemoteProtocolError(f"{key}: the run failed: {final.why}", code="failed")
        if state is None or state.phase is not Phase.DONE:
            save_state(path, final)
        return Run(trial=trial, state=replace(final, tables={}), tables=SparseTables(final.tables))

    def _keeper(self, key: str, path: Path) -> Callable[[Aggregator], None]:
        last = time.monotonic()
        seen = -1

        def keep(aggregator: Aggregator) -> None:
            nonlocal last, seen
            state = aggregator.state
            between = state.phase is Phase.TRAIN and state.total is None and state.round != seen
            if not between:
                return
            seen = state.round
            self.watch(key, aggregator)
            stop = self.interrupted()
            if stop or time.monotonic() - last > SNAPSHOT_SECONDS:
                save_state(path, state)
                last = time.monotonic()
            if stop:
                raise Interrupted(f"stopped in round {state.round} of {key}; --resume goes on from there")

        return keep
