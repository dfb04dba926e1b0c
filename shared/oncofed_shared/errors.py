"""The whole family of errors, drawn once.

    OncofedError
    ├── ConfigError            a plan, a site.toml or a command line is wrong            exit 3
    ├── DataError              a site's files are wrong                                  exit 3
    ├── PolicyRefusal          a site says no: consent, cohort size, unapproved plan      exit 4
    ├── LocalProtocolError     we broke the protocol                                     exit 5
    ├── RemoteProtocolError    the peer broke the protocol                               exit 5
    ├── StorageError           disk full, folder unreadable                              exit 3
    └── Interrupted            stopped by a person; everything can be resumed            exit 6

A message says what is wrong, where, what was expected and what to do. It never contains a patient's value: files, rows,
columns and counts only. Across the wire goes `code` and a safe text; the rest stays in the local log.
"""

from __future__ import annotations

from enum import IntEnum

__all__ = [
    "ConfigError",
    "DataError",
    "ExitCode",
    "Interrupted",
    "LocalProtocolError",
    "OncofedError",
    "PolicyRefusal",
    "RemoteProtocolError",
    "StorageError",
]


class ExitCode(IntEnum):
    """Exit codes of every oncofed command."""

    DONE = 0
    USAGE = 2
    INPUT = 3
    REFUSED = 4
    PEER = 5
    INTERRUPTED = 6


class OncofedError(Exception):
    """Root of all errors that a person can do something about.

    Args:
        problems: one line per problem, each saying what, where, expected, and what to do.
        code: short machine-readable name, safe to send to a peer.
    """

    exit_code = ExitCode.INPUT
    default_code = "error"

    def __init__(self, *problems: str, code: str | None = None) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
        self.code = code or self.default_code


class ConfigError(OncofedError):
    """A plan, a `site.toml` or a command line is wrong."""

    default_code = "config"


class DataError(OncofedError):
    """A site's files are wrong."""

    default_code = "data"


class PolicyRefusal(OncofedError):
    """A site says no."""

    exit_code = ExitCode.REFUSED
    default_code = "refused"


class LocalProtocolError(OncofedError):
    """We broke the protocol: a defect of ours."""

    exit_code = ExitCode.PEER
    default_code = "protocol-local"


class RemoteProtocolError(OncofedError):
    """The peer broke the protocol, or sent something malformed."""

    exit_code = ExitCode.PEER
    default_code = "protocol"


class StorageError(OncofedError):
    """A disk is full or a folder cannot be read or written."""

    default_code = "storage"


class Interrupted(OncofedError):
    """A person stopped the run. What is finished is on disk; `--resume` goes on from there."""

    exit_code = ExitCode.INTERRUPTED
    default_code = "interrupted"
