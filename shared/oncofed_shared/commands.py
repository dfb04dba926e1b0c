"""How every command ends: done, or one clear message on standard error and an exit code."""

from __future__ import annotations

import signal
import sys

import typer

from oncofed_shared.errors import ExitCode, OncofedError

__all__ = ["run_app"]


def run_app(app: typer.Typer) -> None:
    """Run a command line. A person's mistake never ends in a traceback, which could print a patient's values."""
    try:
        app()
    except OncofedError as error:
        print("\n".join(error.problems), file=sys.stderr)
        sys.exit(int(error.exit_code))
    except SystemExit as end:
        # Typer turns Ctrl-C into this code before anybody else sees it.
        if end.code != 128 + signal.SIGINT:
            raise
        print("stopped; what was finished is on disk", file=sys.stderr)
        sys.exit(int(ExitCode.INTERRUPTED))
