"""`oncofed-simulate`: a whole consortium on one machine."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from oncofed_client.gene_files import gene_folder
from oncofed_client.predicting import mc_passes, predicted, read_model, readable_patients
from oncofed_client.prepare.cache import existing_cache
from oncofed_client.prepare.report import Report
from oncofed_client.settings import load_settings
from oncofed_server.aggregator import Aggregator
from oncofed_server.report import headline
from oncofed_shared.commands import run_app
from oncofed_shared.errors import ConfigError, Interrupted
from oncofed_shared.plan import load
from oncofed_simulations.allocator import return_large_arrays
from oncofed_simulations.audit import ATTACKS, AuditOptions, audit, audit_lines
from oncofed_simulations.compare import CompareOptions, compare, summary_lines
from oncofed_simulations.consortium import folder_settings
from oncofed_simulations.curve import CurveOptions, privacy_curve
from oncofed_simulations.curve import summary_lines as curve_lines
from oncofed_simulations.curve_points import MECHANISMS
from oncofed_simulations.flamby import import_flamby
from oncofed_simulations.flower_engine import check_ray_address
from oncofed_simulations.raw_cohort import write_raw_cohort
from oncofed_simulations.run import Engine, Options, run_study
from oncofed_simulations.synthetic import write_cohort
from oncofed_simulations.tune import tune, tuned_lines

# `readable=False`: what cannot be read is for us to say, with our exit code, and not for the parser of options.
app = typer.Typer(help="A whole consortium on one machine.", no_args_is_help=True, pretty_exceptions_enable=False)
import_app = typer.Typer(
    help="Bring public data into site folders.", no_args_is_help=True, pretty_exceptions_enable=False
)
app.add_typer(import_app, name="import")

_FORMATS = {"tables": write_cohort, "raw": write_raw_cohort}


def _seeds(text: str) -> tuple[int, ...]:
    try:
        seeds = tuple(int(s) for s in text.split(","))
    except ValueError:
        raise ConfigError(f"--seeds {text}: expected whole numbers with commas, like 0,1,2") from None
    if len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise ConfigError(f"--seeds {text}: expected different numbers of at least 0")
    return seeds


def _names(text: str) -> tuple[str, ...]:
    return tuple(n.strip() for n in text.split(",") if n.strip())


@contextmanager
def _interruption() -> Iterator[list[bool]]:
    """Ctrl-C asks to stop after the round; a second one stops at once.

    Raises:
        Interrupted: stopped at once, by whichever way the interruption came out.
    """
    asked = [False]

    def ask(signum: int, frame: object) -> None:
        del signum, frame
        if asked[0]:
            raise KeyboardInterrupt
        asked[0] = True

    before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    except KeyboardInterrupt:
        raise Interrupted("stopped at once; --resume goes on from the last round on disk") from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@app.command()
def run(
    study: Annotated[Path, typer.Argument(help="The study plan, a TOML file.", readable=False)],
    sites: Annotated[Path | None, typer.Option(help="Folder with a folder per hospital.", readable=False)] = None,
    external: Annotated[Path | None, typer.Option(help="Hospitals that only test the model.", readable=False)] = None,
    out: Annotated[Path, typer.Option(help="Where model and report go.", readable=False)] = Path("out/run"),
    seeds: Annotated[str, typer.Option(help="One run per seed, with commas.")] = "0",
    only: Annotated[str, typer.Option(help="Names of the sites to use, with commas.")] = "",
    min_patients: Annotated[
        int | None, typer.Option(min=1, help="Fewest patients of a site, in place of its policy.")
    ] = None,
    no_baselines: Annotated[bool, typer.Option("--no-baselines", help="Neither pooled nor alone.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    engine: Annotated[
        Engine, typer.Option(help="What drives the federated runs: this process, or Flower's engine with Ray.")
    ] = Engine.LOOPBACK,
    ray_address: Annotated[
        str | None, typer.Option(help="HOST:PORT of a Ray cluster, for --engine flower on many machines.")
    ] = None,
) -> None:
    """Train a study over folders of hospital files; write a model and a report."""
    if ray_address is not None:
        check_ray_address(ray_address)
        if engine is not Engine.FLOWER:
            raise ConfigError("--ray-address: is for --engine flower; leave it out, or add --engine flower")
    plan = load(study)
    console = Console(stderr=True)
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    with _interruption() as asked, progress:
        bar = progress.add_task("reading sites", total=None)
        rounds: dict[str, int] = {}

        def watch(key: str, aggregator: Aggregator) -> None:
            state = aggregator.state
            loss = f", loss {state.losses[-1]:.4f}" if state.losses else ""
            rounds[key] = state.round
            progress.update(bar, completed=sum(rounds.values()), description=f"{key}: round {state.round}{loss}")

        def tell(site: str, report: Report) -> None:
            for failure in report.failures:
                for line in failure.safe:
                    console.print(f"{site}: {failure.modality}: {line}", markup=False, soft_wrap=True)
            progress.update(bar, completed=0, total=None, description="reading sites")

        options = Options(
            sites=sites,
            external=external,
            out=out,
            seeds=_seeds(seeds),
            only=_names(only),
            min_patients=min_patients,
            baselines=not no_baselines,
            resume=resume,
            watch=watch,
            interrupted=lambda: asked[0],
            announce=lambda rounds: progress.update(bar, total=rounds),
            command=" ".join(["oncofed-simulate", *sys.argv[1:]]),
            engine=engine,
            ray_address=ray_address,
            environment=dict(os.environ),
            study=study.parent,
            jobs=os.cpu_count() or 1,
            prepared=lambda site, done, total: progress.update(
                bar, completed=done, total=total, description=f"{site}: preprocessing"
            ),
            tell=tell,
        )
        result = run_study(plan, options)
    print(headline(result))
    print(f"report: {out / 'report.html'}")


@app.command()
def cohort(
    out: Annotated[Path, typer.Argument(help="A new folder.", readable=False)],
    sites: Annotated[int, typer.Option(help="Number of hospitals.")],
    patients: Annotated[int, typer.Option(help="Patients of all hospitals together.")],
    seed: Annotated[int, typer.Option(help="Same seed, same files.")],
    formats: Annotated[str, typer.Option(help="What the files look like: tables, or raw.")] = "tables",
) -> None:
    """Write a synthetic consortium with a known signal in every modality."""
    if formats not in _FORMATS:
        raise ConfigError(f"--formats {formats}: expected 'tables' or 'raw'")
    _FORMATS[formats](out, sites=sites, patients=patients, seed=seed)
    print(f"{sites} sites with {patients} patients in {out}")


@app.command("privacy-curve")
def curve(
    study: Annotated[Path, typer.Argument(help="A private study plan, a TOML file.", readable=False)],
    sites: Annotated[Path, typer.Option(help="Folder with a folder per hospital.", readable=False)],
    epsilon: Annotated[str, typer.Option(help="Epsilons with commas; inf is no privacy.")] = "1,3,8,inf",
    seeds: Annotated[str, typer.Option(help="Seeds with commas, or FIRST-LAST.")] = "0-4",
    out: Annotated[Path, typer.Option(help="Where curve.json and curve.html go.", readable=False)] = Path("out/curve"),
    mechanisms: Annotated[str, typer.Option(help="Who draws the noise: names with commas.")] = ",".join(MECHANISMS),
    modalities: Annotated[str, typer.Option(help="Modalities to read, with commas, in place of all.")] = "",
    folds: Annotated[
        int | None, typer.Option(min=2, max=20, help="Folds of patients, in place of the plan's split.")
    ] = None,
    min_patients: Annotated[
        int | None, typer.Option(min=1, help="Fewest patients of a site, in place of its policy.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes at once.")] = 2,
) -> None:
    """Measure what privacy costs, by epsilon and by who draws the noise; repeat the command to go on."""
    try:
        epsilons = tuple(float(e) for e in epsilon.split(","))
        first, _, last = seeds.partition("-")
        numbers = tuple(range(int(first), int(last) + 1)) if last else _seeds(seeds)
    except ValueError:
        raise ConfigError("--epsilon or --seeds: expected numbers like 1,3,inf and 0,1,2 or 0-4") from None
    if any(not e > 0 for e in epsilons) or len(set(epsilons)) < len(epsilons):
        raise ConfigError(f"--epsilon {epsilon}: expected different numbers above 0")
    progress = Progress(TextColumn("points"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), transient=True)
    with progress:
        bar = progress.add_task("points", total=None)
        options = CurveOptions(
            sites=sites,
            out=out,
            epsilons=epsilons,
            seeds=numbers,
            mechanisms=_names(mechanisms),
            modalities=_names(modalities),
            folds=folds,
            min_patients=min_patients,
            jobs=jobs,
            command=" ".join(["oncofed-simulate", *sys.argv[1:]]),
            announce=lambda done, total: progress.update(bar, completed=done, total=total),
        )
        result = privacy_curve(load(study), options)
    for line in curve_lines(result):
        print(line)
    print(f"curve: {out / 'curve.html'}")


@app.command("audit")
def attack(
    study: Annotated[Path, typer.Argument(help="A private study plan, a TOML file.", readable=False)],
    sites: Annotated[
        Path | None, typer.Option(help="Folder with a folder per hospital; without it, invented ones.", readable=False)
    ] = None,
    out: Annotated[Path, typer.Option(help="Where audit.json and audit.html go.", readable=False)] = Path("out/audit"),
    attacks: Annotated[str, typer.Option(help="Names with commas.")] = ",".join(ATTACKS),
    canaries: Annotated[
        int, typer.Option(min=100, max=100_000, help="Invented patients of whom a coin decides.")
    ] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Of canaries, coins and splits.")] = 0,
) -> None:
    """Attack a private study: what it promises beside what attacks find, with and without privacy."""
    console = Console(stderr=True)
    options = AuditOptions(
        sites=sites,
        out=out,
        seed=seed,
        canaries=canaries,
        attacks=_names(attacks),
        command=" ".join(["oncofed-simulate", *sys.argv[1:]]),
        announce=lambda what: console.print(f"attack: {what}", markup=False),
    )
    for line in audit_lines(audit(load(study), options)):
        print(line)
    print(f"audit: {out / 'audit.html'}")


@app.command("compare")
def comparison(
    study: Annotated[Path, typer.Argument(help="The study plan, a TOML file.", readable=False)],
    sites: Annotated[Path | None, typer.Option(help="Folder with a folder per hospital.", readable=False)] = None,
    variants: Annotated[str, typer.Option(help="Names with commas, or all.")] = "all",
    folds: Annotated[int, typer.Option(min=2, max=20, help="Folds of patients.")] = 5,
    leave_hospital_out: Annotated[
        bool, typer.Option("--leave-hospital-out", help="Hold out a hospital at a time, in place of folds.")
    ] = False,
    sanity: Annotated[
        bool, typer.Option("--sanity", help="Also a shuffled label, and the hospital as answer.")
    ] = False,
    sensitivity: Annotated[bool, typer.Option("--sensitivity", help="Also other rates and batches.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the folds and the training.")] = 0,
    min_patients: Annotated[
        int | None, typer.Option(min=1, help="Fewest patients of a site, in place of its policy.")
    ] = None,
    patients_with: Annotated[str, typer.Option(help="Only patients who have all these modalities, with commas.")] = "",
    search: Annotated[
        int, typer.Option(min=0, max=1000, help="Settings to try on each point's training patients.")
    ] = 0,
    jobs: Annotated[int, typer.Option(min=1, help="Processes at once.")] = 2,
    out: Annotated[Path, typer.Option(help="Where compare.json goes.", readable=False)] = Path("out/compare"),
) -> None:
    """Compare modalities and fusions of one plan under one protocol; repeat the command to go on."""
    console = Console(stderr=True)
    progress = Progress(
        TextColumn("points"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    with progress:
        bar = progress.add_task("points", total=None)
        options = CompareOptions(
            out=out,
            sites=sites,
            variants=variants,
            folds=folds,
            leave_hospital_out=leave_hospital_out,
            sanity=sanity,
            sensitivity=sensitivity,
            seed=seed,
            min_patients=min_patients,
            patients_with=patients_with,
            search=search,
            jobs=jobs,
            command=" ".join(["oncofed-simulate", *sys.argv[1:]]),
            announce=lambda done, total: progress.update(bar, completed=done, total=total),
        )
        result = compare(load(study), options)
    for line in summary_lines(result):
        print(line)
    print(f"comparison: {out / 'compare.html'}")


@app.command("tune")
def tuning(
    study: Annotated[Path, typer.Argument(help="The study plan, a TOML file.", readable=False)],
    sites: Annotated[Path | None, typer.Option(help="Folder with a folder per hospital.", readable=False)] = None,
    trials: Annotated[int, typer.Option(min=1, max=1000, help="Settings to try.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Of the split and of what is tried.")] = 0,
    min_patients: Annotated[
        int | None, typer.Option(min=1, help="Fewest patients of a site, in place of its policy.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where tuned.json goes.", readable=False)] = Path("out/tuned"),
) -> None:
    """Choose settings of a plan on its training patients alone; repeat the command to go on."""
    for line in tuned_lines(
        tune(load(study), trials=trials, out=out, sites=sites, seed=seed, min_patients=min_patients)
    ):
        print(line)


@app.command("predict")
def prediction(
    models: Annotated[list[Path], typer.Argument(help="One model.safetensors, or several.", readable=False)],
    site: Annotated[Path, typer.Option(help="A hospital's folder.", readable=False)],
    out: Annotated[Path, typer.Option(help="The table to write, a CSV file.", readable=False)],
    study: Annotated[
        Path | None, typer.Option(help="The study, for a folder without site.toml.", readable=False)
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(help="What was prepared of the hospital's raw files: OUT/sites/NAME of a run.", readable=False),
    ] = None,
    uncertainty: Annotated[str, typer.Option(help="mc:N: mean and spread of N passes with dropout.")] = "",
    seed: Annotated[int, typer.Option(min=0, help="Of the dropout.")] = 0,
) -> None:
    """Predict a hospital's patients with released models; the table is as confidential as its patients."""
    passes, asked = mc_passes(uncertainty), None if study is None else load(study)
    settings = load_settings(site) if asked is None else folder_settings(site, asked)
    beside = None if asked is None or settings.site.files is not None else asked.simulation.files
    read = [read_model(m, beside or gene_folder(settings, site)) for m in models]
    plan = read[0].plan
    made = predicted(
        read, readable_patients(site, settings, plan, existing_cache(state)), passes=passes, seed=seed, state=state
    )
    made.write(out)
    print(f"{len(made.patients)} patients: {out}")


@import_app.command()
def flamby(
    source: Annotated[Path, typer.Argument(help="FLamby's fed_tcga_brca folder.", readable=False)],
    out: Annotated[Path, typer.Argument(help="A new folder.", readable=False)],
) -> None:
    """Make six site folders from FLamby's breast-cancer benchmark."""
    print(import_flamby(source, out))


def main() -> None:
    """Entry point of `oncofed-simulate`."""
    return_large_arrays()
    run_app(app)


if __name__ == "__main__":
    main()
