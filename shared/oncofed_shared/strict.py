"""Files of settings: TOML in, strict and frozen models out, every mistake named with its path, all at once."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from oncofed_shared.errors import ConfigError

__all__ = ["Frozen", "read_toml", "validate"]

M = TypeVar("M", bound=BaseModel)
_WORDS = {
    "extra_forbidden": "unknown key; remove it or check its spelling",
    "missing": "is missing",
}


class Frozen(BaseModel):
    """Strict, closed and immutable: an unknown key or a wrong type is a mistake, never a guess.

    The order in which a table's keys are written means nothing: they are kept by name, as in the canonical form.
    Checks over several keys stand at the last of them, so that they are made although another key is wrong too.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, validate_default=True)

    @field_validator("*", mode="after")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return {k: value[k] for k in sorted(value)} if isinstance(value, dict) else value


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        ConfigError: the file cannot be read or is not TOML; the message has the line.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8 text; save it as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: is not valid TOML: {error}") from None


def validate(model: type[M], content: dict[str, Any], where: str) -> M:
    """Parse `content` into `model`, strictly, naming every mistake with its path.

    Raises:
        ConfigError: one line per mistake.
    """
    try:
        # JSON mode: strict types, and arrays may become tuples.
        return model.model_validate_json(json.dumps(content))
    except TypeError:
        raise ConfigError(f"{where}: dates are not used here; write text or a number") from None
    except ValidationError as error:
        lines = []
        for path, message in _mistakes(error, content):
            lines += [f"{where}: {_at(path, m)}" for m in message]
        raise ConfigError(*lines) from None


def _at(path: str, message: str) -> str:
    """Path and message; one that begins with a dot goes on with the path, one that begins with a slash has a path of its own."""
    if message.startswith("/"):
        return message[1:]
    return path + (message if message.startswith(".") else f": {message}" if path else message)


def _mistakes(error: ValidationError, content: Any) -> list[tuple[str, list[str]]]:
    """Where and what: paths as they stand in the file, without the names of the types that pydantic tried there.

    Where a value may be of several types, only the complaints of the type that understood most of it count.
    """
    found: dict[tuple[Any, ...], list[str]] = {}
    tried: dict[tuple[Any, ...], set[Any]] = {}
    for mistake in error.errors(include_url=False, include_input=False):
        path: tuple[Any, ...] = ()
        here = content
        for i, part in enumerate(mistake["loc"]):
            absent_key = mistake["type"] in {"missing", "value_error"} and i == len(mistake["loc"]) - 1
            inside = range(len(here)) if isinstance(here, list) else here if isinstance(here, dict) else ()
            if part in inside:
                path, here = (*path, part), here[part]
            elif isinstance(here, dict | list) and absent_key:
                path = (*path, part)
            elif part != "[key]":
                tried.setdefault(path, set()).add(part)
        message = _WORDS.get(mistake["type"]) or mistake["msg"].removeprefix("Value error, ")
        messages = found.setdefault(path, [])
        messages += [m for m in message.split("\n") if m not in messages]
    several = {p for p, types in tried.items() if len(types) > 1}
    made = []
    for path, messages in found.items():
        deeper = any(len(p) > len(path) and p[: len(path)] == path for p in found)
        if deeper and (path in several or messages[0].startswith("Tuple should have at least")):
            continue
        made.append((".".join(map(str, path)), [", or ".join(messages)] if path in several else messages))
    return made
