"""oncofed's bytes inside Flower's records: one array of bytes per message, which Flower cuts into pieces when it is large."""

from __future__ import annotations

import math

from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict

from oncofed_shared.errors import RemoteProtocolError

__all__ = ["NAME", "STEP", "pack", "seconds_of", "unpack"]

# Flower's message types: who is a node, and one exchange of `messages`.
NAME = "query.oncofed_name"
STEP = "query.oncofed_step"
_KEY = "oncofed"


def pack(content: bytes, *, seconds: float = 0.0) -> RecordDict:
    """A record with bytes, and how long the sender worked on them."""
    array = Array(dtype="uint8", shape=(len(content),), stype="bytes", data=content)
    return RecordDict({_KEY: ArrayRecord({_KEY: array}), f"{_KEY}.cost": MetricRecord({"seconds": seconds})})


def unpack(record: RecordDict) -> bytes:
    """The bytes of a record.

    Raises:
        RemoteProtocolError: it is not one that `pack` made.
    """
    arrays = record.get(_KEY)
    array = arrays.get(_KEY) if isinstance(arrays, ArrayRecord) else None
    if array is None:
        raise RemoteProtocolError("a Flower message without oncofed's bytes")
    return array.data


def seconds_of(record: RecordDict) -> float:
    """What the sender says about its time: a number of at least 0, or 0."""
    costs = record.get(f"{_KEY}.cost")
    seconds = costs.get("seconds") if isinstance(costs, MetricRecord) else None
    return float(seconds) if isinstance(seconds, float) and math.isfinite(seconds) and seconds >= 0 else 0.0
