"""The last look at a share before it is masked: afterwards nobody can tell what is in it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from oncofed_shared.errors import LocalProtocolError

__all__ = ["check_share"]


def check_share(share: NDArray[np.int64], *, size: int, largest: int, smallest: int | None = None) -> None:
    """See that a share is what the plan declares, before its noise and once more with it.

    Args:
        size: its length.
        largest: magnitude that the plan's bound, the number of patients and the noise leave to a coordinate.
        smallest: least value of a coordinate; without it, minus `largest`.

    Guarantees:
        - Other than whole numbers, another length, or a coordinate out of range: nothing leaves.
        - Whatever is wrong has one code and no value.

    Raises:
        LocalProtocolError: with the code `egress`.
    """
    ok = share.dtype == np.int64 and share.shape == (size,)
    # Compared on both sides: the smallest integer has no magnitude.
    ok = ok and bool((share <= largest).all() and (share >= (-largest if smallest is None else smallest)).all())
    if not ok:
        raise LocalProtocolError("a share is not what the plan declares, and stays here", code="egress")
