"""How commands end: an exit code and one message, never a traceback for what a person did."""

from __future__ import annotations

import pytest
import typer

from oncofed_shared.commands import run_app
from oncofed_shared.errors import (
    ConfigError,
    DataError,
    ExitCode,
    Interrupted,
    LocalProtocolError,
    OncofedError,
    PolicyRefusal,
    RemoteProtocolError,
    StorageError,
)

FAMILY: list[tuple[type[OncofedError], int]] = [
    (ConfigError, 3),
    (DataError, 3),
    (StorageError, 3),
    (PolicyRefusal, 4),
    (LocalProtocolError, 5),
    (RemoteProtocolError, 5),
    (Interrupted, 6),
]


def ending(what: BaseException | None, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Exit code of a command that raises `what`."""
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    def command() -> None:
        if what is not None:
            raise what
        print("done")

    monkeypatch.setattr("sys.argv", ["command", *arguments])
    with pytest.raises(SystemExit) as caught:
        run_app(app)
    return int(caught.value.code or 0)


@pytest.mark.parametrize(("kind", "code"), FAMILY)
def test_each_error_has_its_exit_code_and_says_every_problem(
    kind: type[OncofedError], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ending(kind("first problem", "second problem"), monkeypatch) == code
    assert capsys.readouterr() == ("", "first problem\nsecond problem\n")


def test_the_family_is_complete() -> None:
    assert {kind for kind, _ in FAMILY} == set(OncofedError.__subclasses__())
    assert {c.value for c in ExitCode} == {0, 2, 3, 4, 5, 6}


def test_ctrl_c_is_an_interruption(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert ending(KeyboardInterrupt(), monkeypatch) == ExitCode.INTERRUPTED
    assert "stopped" in capsys.readouterr().err


def test_a_command_that_is_done_exits_with_0(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ending(None, monkeypatch) == ExitCode.DONE
    assert capsys.readouterr() == ("done\n", "")


def test_an_unknown_option_is_a_matter_of_usage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ending(None, monkeypatch, "--epochs", "3") == ExitCode.USAGE
    assert "--epochs" in capsys.readouterr().err


def test_a_code_is_sent_and_problems_are_kept() -> None:
    error = DataError("clinical.csv, row 3: is wrong", code="no-label")
    assert error.code == "no-label"
    assert error.problems == ("clinical.csv, row 3: is wrong",)
    assert DataError("x").code == "data"
