"""Sizes of the network by name: what stands for `width`, `heads`, `layers` and `feedforward` where a plan does not give them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

__all__ = ["SIZES", "Fusion", "Size", "sized"]

Fusion = Literal["transformer", "concat", "weighted_sum", "early", "late", "hybrid", "kronecker", "two_way"]
Size = Literal["tiny", "small", "base"]

SIZES: Mapping[str, Mapping[str, int]] = {
    "tiny": {"width": 8, "heads": 2, "layers": 1, "feedforward": 16},
    "small": {"width": 32, "heads": 4, "layers": 2, "feedforward": 64},
    "base": {"width": 128, "heads": 8, "layers": 4, "feedforward": 256},
}


def sized(content: Any) -> Any:
    """Fill in what a size stands for; what is given wins, and what is no size is left for the model to complain of."""
    size = content.get("size") if isinstance(content, dict) else None
    return {**SIZES[size], **content} if isinstance(size, str) and size in SIZES else content
