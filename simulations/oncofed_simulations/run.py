"""`oncofed-simulate run`: a study over folders of hospitals, with its baselines, to a model and a report."""

from __future__ import annotations

import enum
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from oncofed_client.prepare.report import Report
from oncofed_client.scratch import Scratch
from oncofed_client.site import Site
from oncofed_client.source import FolderSource
from oncofed_server.aggregator import Aggregator, Roster
from oncofed_server.report import headline, write_report
from oncofed_shared.errors import ConfigError, OncofedError, StorageError
from oncofed_shared.plan import Plan
from oncofed_shared.storage import dump_json, write_arrays, write_whole
from oncofed_simulations.consortium import Consortium, Run, folder_settings, open_site
from oncofed_simulations.flower_engine import FlowerEngine
from oncofed_simulations.flower_job import Member
from oncofed_simulations.folders import site_folders
from oncofed_simulations.journal import keep_journal
from oncofed_simulations.loopback import Tap
from oncofed_simulations.raw_prepare import clear_states, prepare_sites
from oncofed_simulations.study import Study
from oncofed_simulations.synthetic import CohortSettings, read_settings, write_cohort

__all__ = ["Engine", "Options", "run_study"]

PRODUCTS = ("model.safetensors", "result.json", "report.html", "manifest.json")
LEFTOVERS = (".*.json.*", ".*.html.*", ".*.safetensors.*", ".*.txt.*", ".cohort-*.partial")
"""What a killed run may leave: files that were not yet whole."""


class Engine(enum.StrEnum):
    """What drives the federated runs; the model has the same bytes."""

    LOOPBACK = "loopback"
    FLOWER = "flower"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line says beside the study.

    Attributes:
        watch: called after every round with the run's key, the number of runs and the aggregator.
        interrupted: whether to stop between two rounds.
        tap: sees every byte over a site's boundary in this process.
        engine: what runs the federated trials.
        ray_address: HOST:PORT of a Ray cluster, for Flower's engine.
        environment: of the processes that Flower's engine starts.
        study: folder of the study's file, where the settings lie that it names; needed for sites with raw files.
        jobs: processes that preprocess raw files.
        prepared: called with a site's name, its cases that are done, and all of them.
        tell: called with a site's name and what preprocessing did there.
    """

    sites: Path | None
    external: Path | None
    out: Path
    seeds: tuple[int, ...] = (0,)
    only: tuple[str, ...] = ()
    min_patients: int | None = None
    baselines: bool = True
    resume: bool = False
    watch: Callable[[str, Aggregator], None] = lambda key, aggregator: None
    interrupted: Callable[[], bool] = lambda: False
    announce: Callable[[int], None] = lambda rounds: None
    tap: Tap = lambda direction, site, content: None
    command: str = ""
    engine: Engine = Engine.LOOPBACK
    ray_address: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    study: Path | None = None
    jobs: int = 1
    prepared: Callable[[str, int, int], None] = lambda site, done, total: None
    tell: Callable[[str, Report], None] = lambda site, report: None


def run_study(plan: Plan, options: Options) -> dict[str, Any]:
    """Run a study and write model, result, report and manifest into `options.out`.

    Returns:
        What `result.json` holds.

    Raises:
        ConfigError, DataError, PolicyRefusal: input or policy; nothing half-written is left in `out`.
        Interrupted: stopped by a person; `resume` goes on to the same model.
    """
    started = time.monotonic()
    _check_out(plan, options)
    if options.resume and all((options.out / name).exists() for name in PRODUCTS):
        # They are taken away when a run begins: it has ended, and there is nothing to go on with.
        finished: dict[str, Any] = json.loads((options.out / "result.json").read_bytes())
        return finished
    if options.sites is not None:
        sites, externals = _open(plan, options, site_folders(options.sites))
        _claim(plan, options)
    else:
        settings = _cohort_settings(plan)
        _claim(plan, options)
        sites, externals = _open(plan, options, _generated(options.out / "cohort", settings))
    prepare_sites(
        plan,
        (sites | externals).values(),
        study=options.study,
        jobs=options.jobs,
        watch=options.prepared,
        tell=options.tell,
    )
    consortium = Consortium(
        plan=plan,
        sites=sites,
        externals=externals,
        store=options.out / "progress",
        interrupted=options.interrupted,
        watch=options.watch,
        tap=options.tap,
    )
    study = Study(plan, consortium, seeds=options.seeds, baselines=options.baselines)
    # Only now is it sure that the run can begin: until here an earlier run's results stay.
    _remove_products(options.out)
    options.announce(study.rounds())
    if options.engine is Engine.FLOWER:
        _by_flower(plan, options, consortium).run(study.federated_trials())
    try:
        released, result = study.train()
    finally:
        for site in (sites | externals).values():
            keep_journal(site)
    result["command"] = options.command
    result["seconds"] = round(time.monotonic() - started, 3)
    try:
        _write(plan, options, released, result)
    except OncofedError:
        _remove_products(options.out)
        raise
    for name in ("progress", "flower"):
        shutil.rmtree(options.out / name, ignore_errors=True)
    return result


def _by_flower(plan: Plan, options: Options, consortium: Consortium) -> FlowerEngine:
    """Flower's engine over the same hospitals; what it has finished, the consortium finds in its store."""
    members = [
        Member(name=name, folder=str(site.source.folder.resolve()), state=str(site.state.resolve()), external=external)
        for group, external in ((consortium.sites, False), (consortium.externals, True))
        for name, site in group.items()
        if isinstance(site.source, FolderSource) and site.state is not None
    ]
    return FlowerEngine(
        plan=plan,
        members=tuple(members),
        minimum=options.min_patients,
        out=options.out,
        environment=options.environment,
        ray_address=options.ray_address,
        interrupted=options.interrupted,
        watch=options.watch,
    )


def _mark(plan: Plan, options: Options) -> bytes:
    """What a run that is resumed must agree in: everything that decides the result."""
    facts = {
        "plan_hash": plan.hash,
        "simulation": plan.simulation.model_dump(mode="json"),
        "seeds": list(options.seeds),
        "sites": None if options.sites is None else str(options.sites.resolve()),
        "external": None if options.external is None else str(options.external.resolve()),
        "only": sorted(options.only),
        "min_patients": options.min_patients,
    }
    return dump_json(facts)


def _check_out(plan: Plan, options: Options) -> None:
    """See that the output folder is a new one, one of an earlier run, or, with `resume`, an unfinished one of this run."""
    out, mark = options.out, options.out / "plan.json"
    try:
        if out.exists() and any(out.iterdir()) and not mark.exists():
            raise ConfigError(f"{out}: is not empty and is not the output of an earlier run; choose another folder")
        if not options.resume:
            return
        if not mark.exists():
            raise ConfigError(f"{out}: there is no run to resume; leave --resume out")
        if mark.read_bytes() != _mark(plan, options):
            raise ConfigError(
                f"{out}: holds a run of another study, or with other --seeds, --sites, --external, --only or "
                "--min-patients; resume with the same ones, or choose another folder"
            )
    except OSError as error:
        raise StorageError(f"{out}: cannot be used ({error.strerror}); choose another folder") from None


def _claim(plan: Plan, options: Options) -> None:
    """Make the output folder this run's: what earlier runs left on their way goes, their results stay."""
    out = options.out
    for pattern in LEFTOVERS:
        for path in out.rglob(pattern):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
    if not options.resume:
        for name in ("progress", "cohort", "flower"):
            shutil.rmtree(out / name, ignore_errors=True)
        clear_states(out / "sites")
        write_whole(out / "plan.json", _mark(plan, options))


def _remove_products(out: Path) -> None:
    for name in PRODUCTS:
        (out / name).unlink(missing_ok=True)


def _cohort_settings(plan: Plan) -> CohortSettings:
    if plan.simulation.cohort is None:
        raise ConfigError("the study has no [simulation.cohort]; say where the hospitals are with --sites DIR")
    return read_settings(plan.simulation.cohort)


def _generated(cohort: Path, settings: CohortSettings) -> list[Path]:
    if not cohort.exists():
        write_cohort(cohort, **settings.model_dump())
    return site_folders(cohort)


def _open(plan: Plan, options: Options, folders: Sequence[Path]) -> tuple[dict[str, Site], dict[str, Site]]:
    problems: list[str] = []
    scratch = Scratch()

    def opened(folders: Sequence[Path]) -> dict[str, Site]:
        made: dict[str, Site] = {}
        for folder in folders:
            try:
                state = options.out / "sites" / folder_settings(folder, plan).site.name
                site = open_site(folder, plan, state=state, minimum=options.min_patients, scratch=scratch)
            except ConfigError as error:
                problems.extend(error.problems)
                continue
            if site.name in made:
                problems.append(f"{folder}: another folder has the same site name '{site.name}'")
            made[site.name] = site
        return made

    sites = opened(folders)
    unknown = sorted(set(options.only) - set(sites))
    if unknown:
        problems.append(f"--only: no such site: {', '.join(unknown)}; there are {', '.join(sites)}")
    externals = opened(site_folders(options.external)) if options.external else {}
    problems += [f"'{n}' is both a site and external" for n in sorted(set(externals) & set(sites))]
    if problems:
        raise ConfigError(*problems)
    if options.only:
        sites = {n: s for n, s in sites.items() if n in options.only}
    return sites, externals


def _write(plan: Plan, options: Options, released: Run, result: dict[str, Any]) -> None:
    out, state = options.out, released.state
    if state.preparation is None:
        message = "a finished run has a preparation"
        raise AssertionError(message)
    nobody = Roster(trainers=(), evaluators=())
    parameters = Aggregator(plan, nobody, released.trial, session="", state=state).parameters()
    arrays = {f"network.{n}": a for n, a in parameters.items()}
    arrays |= {f"preparation.{n}": a for n, a in state.preparation.arrays().items()}
    facts = {
        "format": 1,
        "study": plan.study.name,
        "plan_hash": plan.hash,
        "plan": plan.canonical.decode(),
        "columns": {m: list(c) for m, c in state.preparation.columns.items()},
        "seed": released.trial.seed,
        "certainty": result["certainty"],
    }
    write_arrays(out / "model.safetensors", arrays, facts)
    write_whole(out / "result.json", dump_json(result))
    write_report(result, out)
    files = ("model.safetensors", "report.html", "result.json")
    manifest = {
        "plan_hash": plan.hash,
        "command": options.command,
        "versions": result["versions"],
        "files": {n: hashlib.sha256((out / n).read_bytes()).hexdigest() for n in files},
        "headline": headline(result),
    }
    write_whole(out / "manifest.json", dump_json(manifest))
