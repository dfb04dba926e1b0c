"""One torch thread and deterministic algorithms, so that the same request gives the same bytes everywhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["one_thread"]

_STRICT = 2
"""torch's number for "error"."""


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute as every machine of one CPU capability does; what was set before is set again at the end."""
    threads, mode = torch.get_num_threads(), torch.get_deterministic_debug_mode()
    if threads == 1 and mode == _STRICT:
        # Inside another one: nothing to set, and nothing to set back.
        yield
        return
    torch.set_num_threads(1)
    # The same switch as use_deterministic_algorithms, which would import torch's compiler: seconds.
    torch.set_deterministic_debug_mode(_STRICT)
    # Nothing here reads memory before it is written; filling it all the same is a fifth of a step of an image network.
    filled = torch._C._get_deterministic_fill_uninitialized_memory()  # noqa: SLF001 - its module is not typed
    torch._C._set_deterministic_fill_uninitialized_memory(False)  # noqa: SLF001, FBT003
    try:
        yield
    finally:
        torch._C._set_deterministic_fill_uninitialized_memory(filled)  # noqa: SLF001
        torch.set_deterministic_debug_mode(mode)
        if threads != 1:
            torch.set_num_threads(threads)
