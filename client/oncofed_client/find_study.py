"""The study that a person means: a file, or the beginning of an approved one's id."""

from __future__ import annotations

import re
from pathlib import Path

from oncofed_client.approvals import Approval, approvals
from oncofed_shared.errors import ConfigError
from oncofed_shared.files import read_bounded
from oncofed_shared.signed_study import SignedStudy, read_study

__all__ = ["approved_study", "find_study"]

_PREFIX = re.compile(r"[0-9a-f]{6,64}")


def find_study(state: Path, text: str) -> SignedStudy:
    """A study from a file, or one that was approved here.

    Args:
        state: the site's.
        text: a path; or at least six hex digits with which an approved study's id begins, or its name.

    Raises:
        ConfigError: neither, or two studies begin so.
        DataError: the file is no signed study.
    """
    path = Path(text)
    if path.is_file():
        return read_study(read_bounded(path), plan_key=None, where=text)
    return approved_study(state, text).study


def approved_study(state: Path, text: str) -> Approval:
    """A study that was approved here at some time; also by its file.

    Raises:
        ConfigError: there is none, or two begin so.
        DataError: a file is damaged.
    """
    known = approvals(state)
    path = Path(text)
    wanted = read_study(read_bounded(path), plan_key=None, where=text).id if path.is_file() else text
    found = [
        a
        for name, a in known.items()
        if (_PREFIX.fullmatch(wanted) and name.startswith(wanted)) or a.study.name == wanted
    ]
    if len(found) == 1:
        return found[0]
    listed = ", ".join(f"{name[:12]} ({a.study.name})" for name, a in known.items()) or "none"
    why = "more than one study is meant" if found else "is no file, and no study that was approved here"
    raise ConfigError(f"{text}: {why}; approved at some time were: {listed}")
