"""`oncofed-site doctor`: is this machine ready?"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from oncofed_client.doctor_check import Check, Verdict
from oncofed_client.options import Folder, OwnState
from oncofed_client.whereabouts import site_place
from oncofed_shared.errors import ExitCode
from oncofed_shared.storage import dump_json

__all__ = ["register"]

_STYLES = {Verdict.OK: "green", Verdict.WRONG: "bold red", Verdict.NOT_CHECKED: "yellow"}


def _show(console: Console, check: Check) -> None:
    line = Text()
    line.append(f"{check.verdict.value:<12}", style=_STYLES[check.verdict])
    line.append(f"{check.name}: {check.found}")
    console.print(line, soft_wrap=True)
    if check.remedy:
        console.print(Text(f"{'':<12}what to do: {check.remedy}"), soft_wrap=True)


def register(app: typer.Typer, environment: Mapping[str, str]) -> None:
    """Add the command; `environment` is this process's."""

    @app.command()
    def doctor(
        folder: Folder,
        *,
        as_json: Annotated[bool, typer.Option("--json", help="For a program.")] = False,
        socket: Annotated[
            Path | None, typer.Option("--socket", metavar="PATH", help="The daemon's, if it does not lie in the state.")
        ] = None,
        state: OwnState = None,
    ) -> None:
        """Check clock, network, disk, rights, keys and versions of this machine, and say what to do."""
        from oncofed_client.doctor import examine, is_sound  # noqa: PLC0415 - loads what all other commands together need

        place, console = site_place(folder, state), Console(highlight=False)
        checks = []
        for check in examine(place, environment=environment, clock=time.time, socket=socket):
            checks.append(check)
            if not as_json:
                _show(console, check)
        sound = is_sound(tuple(checks))
        if as_json:
            content = {"sound": sound, "checks": [asdict(c) for c in checks]}
            typer.echo(dump_json(content).decode(), nl=False)
        elif sound:
            console.print("Nothing is wrong.")
        if not sound:
            raise typer.Exit(ExitCode.INPUT)
