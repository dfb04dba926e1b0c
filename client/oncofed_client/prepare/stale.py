"""Whether a site's files changed since they were prepared."""

from __future__ import annotations

from pathlib import Path

from oncofed_client.prepare.cache import Cache
from oncofed_client.prepare.stamps import folder_stamp

__all__ = ["changed_since"]


def changed_since(folder: Path, cache: Cache | None) -> bool:
    """Whether a file below a folder was added, removed or written since the last whole preprocessing began.

    Sizes and time stamps decide; nothing is read. False where no preprocessing ended.
    """
    if cache is None:
        return False
    seen = cache.read_index().get("seen")
    return seen is not None and folder_stamp(folder, cache.key, settled=False) != seen
