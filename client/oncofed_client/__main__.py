"""`oncofed-site`: what a hospital's people run."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import click
import typer
from rich.console import Console

from oncofed_client import commands_doctor, commands_records, commands_start, commands_study
from oncofed_client.commands_enrol import enrol_app
from oncofed_client.commands_epoch import epoch_app
from oncofed_client.commands_predict import predict
from oncofed_client.options import Folder, OwnState, State
from oncofed_client.prepare.cache import state_folder
from oncofed_client.settings import (
    SETTINGS_FILE,
    SiteSettings,
    has_settings,
    load_settings,
    settings_from_study,
    settings_from_text,
)
from oncofed_client.whereabouts import site_place
from oncofed_shared.errors import ExitCode, OncofedError
from oncofed_shared.plan import Plan, load

__all__ = ["app", "main"]

app = typer.Typer(
    name="oncofed-site",
    help="One hospital's side of a federated study. No patient's value is ever printed.",
    no_args_is_help=True,
    add_completion=False,
    # Its tracebacks print local variables, and these are patients.
    pretty_exceptions_enable=False,
)

app.add_typer(enrol_app, name="enrol")
app.add_typer(epoch_app, name="epoch")
app.command()(predict)
commands_doctor.register(app, os.environ)
commands_start.register(app, os.environ)
commands_study.register(app)
commands_records.register(app)


@app.callback()
def _commands() -> None:
    """One hospital's side of a federated study."""


@app.command()
def init(folder: Folder) -> None:
    """Write a commented site.toml for a folder of tables; consent is left to you."""
    from oncofed_client.init import write_settings  # noqa: PLC0415 - looks into images, as `check`

    target = write_settings(folder)
    typer.echo(f"{target} written. Nobody may enter until you fill in [consent].")
    typer.echo(f"Read it, correct it, then run: oncofed-site check {folder}")


@app.command()
def check(
    folder: Folder,
    study: Annotated[
        Path | None,
        typer.Option("--study", metavar="STUDY", help="A study; without one, an inventory."),
    ] = None,
    state: OwnState = None,
) -> None:
    """Say what a folder holds and, with a study, whether that can run here."""
    # It looks into images; what reads them takes 90 MiB, which a daemon would keep.
    from oncofed_client.check import check_study, inventory  # noqa: PLC0415
    from oncofed_client.show import show_check, show_inventory  # noqa: PLC0415

    console = Console(highlight=False)
    plan = None if study is None else load(study)
    settings = _settings(folder, plan)
    if plan is None:
        show_inventory(console, inventory(folder, settings))
        return
    report = check_study(folder, settings, plan, state or state_folder(folder))
    show_check(console, report)
    raise typer.Exit(report.exit_code)


@app.command()
def preprocess(
    folder: Folder,
    study: Annotated[Path, typer.Option("--study", metavar="STUDY", help="The study: it says what is made.")],
    jobs: Annotated[
        int | None, typer.Option("--jobs", min=1, help="Cases at a time; without it, one per processor.")
    ] = None,
    state: OwnState = None,
    show_files: Annotated[
        bool, typer.Option("--show-files", help="Name the files of cases that failed; a name may say who it is.")
    ] = False,
) -> None:
    """Prepare the images and sequencing files of a folder for a study, once; killed, it goes on where it was."""
    # pyradiomics and its like take a while to import; the other commands do without.
    from oncofed_client.prepare.preprocess import preprocess as run  # noqa: PLC0415
    from oncofed_client.prepare.show import progress_bar, show_report  # noqa: PLC0415

    console = Console(highlight=False)
    plan = load(study)
    settings = _settings(folder, plan)
    with progress_bar(Console(stderr=True, highlight=False)) as watch:
        report = run(
            folder,
            settings,
            plan,
            study=study.parent,
            state=state or state_folder(folder),
            jobs=jobs or os.cpu_count() or 1,
            watch=watch,
        )
    show_report(console, report, with_files=show_files)


@app.command()
def ledger(
    folder: State,
    study: Annotated[
        Path | None, typer.Option("--study", metavar="STUDY", help="Say what this study would take.")
    ] = None,
    site: Annotated[
        Path | None,
        typer.Option(
            "--site", metavar="FOLDER", help="Folder whose site.toml has the policy; without it, the last one used."
        ),
    ] = None,
) -> None:
    """Say how much of its patients' privacy this site has spent, by study, and what is left."""
    # The accountant takes a second to import, and the other commands need it not.
    from oncofed_client.ledger_commands import report_on  # noqa: PLC0415
    from oncofed_client.show_ledger import show_ledger, show_preview  # noqa: PLC0415

    report, preview = report_on(site_place(folder).state, plan=None if study is None else load(study), site=site)
    console = Console(highlight=False)
    show_ledger(console, report)
    if preview is not None:
        show_preview(console, preview)
        raise typer.Exit(ExitCode.REFUSED if preview.objections else ExitCode.DONE)


def _settings(folder: Path, plan: Plan | None) -> SiteSettings:
    """Find the folder's own settings, or the study's, or what `init` would write."""
    if has_settings(folder):
        return load_settings(folder)
    if plan is not None and plan.simulation.site is not None:
        return settings_from_study(plan.simulation.site, folder)
    from oncofed_client.init import propose_settings  # noqa: PLC0415 - looks into images, as `check`

    text = propose_settings(folder)
    typer.echo(f"No {SETTINGS_FILE} here; going by what `oncofed-site init {folder}` would write.")
    return settings_from_text(text, f"{folder}: proposed {SETTINGS_FILE}")


def main() -> None:
    """Run the command; a mistake of the user's gives one message and an exit code, no traceback."""
    try:
        code = app(standalone_mode=False)
    except OncofedError as error:
        sys.stderr.write("".join(f"oncofed-site: {line}\n" for line in error.problems))
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.stderr.write("oncofed-site: interrupted; nothing was left half-written\n")
        sys.exit(ExitCode.INTERRUPTED)
    sys.exit(code or 0)


if __name__ == "__main__":
    main()
