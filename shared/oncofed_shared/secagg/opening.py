"""From reveals to the sum: recover the secrets, compare them with what was advertised, take the masks off."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np

from oncofed_shared.errors import RemoteProtocolError
from oncofed_shared.secagg.adverts import Setup
from oncofed_shared.secagg.group import Step
from oncofed_shared.secagg.keys import agreement, commit, pair_key, public_key, self_key
from oncofed_shared.secagg.messages import Reveal
from oncofed_shared.secagg.shamir import DIGITS, PRIME, combine

__all__ = ["TRIES", "check_reveal", "masks_left", "recover"]

TRIES = 256
"""Most choices of threshold among more reveals that are tried when some shares are wrong."""


def check_reveal(setup: Setup, reveal: Reveal, names: tuple[str, ...]) -> None:
    """Raise RemoteProtocolError unless these are shares for exactly this list of survivors."""
    others = tuple(n for n in setup.group.names if n not in names)
    if (tuple(n for n, _ in reveal.seeds), tuple(n for n, _ in reveal.keys)) != (names, others):
        raise RemoteProtocolError(f"{reveal.site} revealed for another list", code="list")
    for name, share in (*reveal.seeds, *reveal.keys):
        if len(share) != 4 * DIGITS or np.any(np.frombuffer(share, dtype="<u4") >= PRIME):
            raise RemoteProtocolError(f"{reveal.site}'s share of {name} is none", code="shares")


def recover(
    setup: Setup, number: int, names: tuple[str, ...], reveals: Mapping[str, Reveal], newest: str
) -> dict[str, bytes] | None:
    """The survivors' seeds and the others' keys, by site, from threshold reveals that agree with what was advertised.

    Args:
        names: the survivors.
        reveals: what came so far; those without `newest` were tried before.

    Returns:
        None where there are too few, or where wrong ones are among them and no choice without these was found.
    """
    earlier, wanted = sorted(set(reveals) - {newest}), setup.group.threshold - 1
    for chosen in itertools.islice(itertools.combinations(earlier, wanted), TRIES):
        secrets = _combined(setup, names, {n: reveals[n] for n in (*chosen, newest)})
        if all(_fits(setup, number, name, secret, alive=name in names) for name, secret in secrets.items()):
            return secrets
    return None


def _combined(setup: Setup, names: tuple[str, ...], reveals: Mapping[str, Reveal]) -> dict[str, bytes]:
    joined = b"".join(share for r in reveals.values() for _, share in (*r.seeds, *r.keys))
    shares = np.frombuffer(joined, dtype="<u4").astype(np.uint32).reshape(len(reveals), -1, DIGITS)
    opened = combine(shares, [setup.group.place(n) for n in reveals])
    others = tuple(n for n in setup.group.names if n not in names)
    return {n: s.tobytes() for n, s in zip(names + others, opened, strict=True)}


def _fits(setup: Setup, number: int, name: str, secret: bytes, *, alive: bool) -> bool:
    if alive:
        return commit(setup.group, name, number, secret) == setup.commitment(name, number)
    return public_key(secret) == setup.key(name, number)


def masks_left(
    setup: Setup, step: Step, names: tuple[str, ...], secrets: Mapping[str, bytes]
) -> list[tuple[bytes, bool]]:
    """Keys of the masks that are in the sum of the survivors' uploads, each with whether to subtract it to take it off.

    The pair masks of two survivors cancel. There remain the survivors' own, and those that they share with the others.
    """
    group = setup.group
    terms = [(self_key(group, setup.digest, step, n, secrets[n]), True) for n in names]
    for name in (n for n in group.names if n not in names):
        private = agreement(secrets[name])
        for survivor in names:
            public = setup.key(survivor, step.number)
            key = pair_key(group, setup.digest, step, names=(name, survivor), secret=private, public=public)
            # The survivor added it if its name comes first.
            terms.append((key, survivor < name))
    return terms
