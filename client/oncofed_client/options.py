"""Arguments that several commands of `oncofed-site` have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["Folder", "OwnState", "Site", "State", "Study"]

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The site's folder.")]
State = Annotated[
    Path, typer.Argument(metavar="DIR", help="The site's folder, or its state folder with ledger and identity.")
]
OwnState = Annotated[
    Path | None,
    typer.Option(
        "--state", metavar="DIR", help="The site's own state, with its keys and what is prepared; DIR.state without it."
    ),
]
Site = Annotated[Path, typer.Option("--site", metavar="DIR", help="The site's folder.")]
Study = Annotated[
    str, typer.Argument(metavar="STUDY", help="A signed study's file; of an approved one, its id or how it begins.")
]
