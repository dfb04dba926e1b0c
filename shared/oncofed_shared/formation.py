"""Who adds up together in a private run, as both sides work it out from the plan: neither takes the other's word for it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from oncofed_shared.errors import ConfigError, RemoteProtocolError
from oncofed_shared.layout import fingerprint
from oncofed_shared.messages import Arrays, Columns, Formation, Trial
from oncofed_shared.plan import ConsortiumPrivacy, Plan
from oncofed_shared.secagg import Group, Step, smallest_threshold

__all__ = ["from_ring", "group_of", "step_of", "to_ring"]

LONGEST_BLOCK, SCORE_SUMS = 128, 2
"""Sums whose keys are dealt together at most; sums after the last round. One of statistics
comes before the first where a plan has it."""


def group_of(plan: Plan, session: str, formation: Formation, identities: Mapping[str, bytes]) -> Group:
    """The group of a formation.

    Sites that left the run are counted as dropped: of a plan with n sites and `drop` d, k of whom left, n - k remain and d - k may
    still be missing, so that the noise of the same n - d - collude honest sites is in every sum.

    Args:
        identities: raw Ed25519 public keys by site.

    Guarantees:
        - Members are of the plan's roster, and at most `drop` of it are missing.
        - The plan's hash, the session, the formation's name and every identity key bind all keys and signatures.

    Raises:
        ConfigError: the plan has no secure sums, or a member's identity key is not known.
        RemoteProtocolError: no formation that the plan allows (code `formation`).
    """
    privacy = plan.privacy
    if not isinstance(privacy, ConsortiumPrivacy):
        raise ConfigError(f"privacy.noise: is '{privacy.noise}'; secure sums are for 'consortium'")
    members, roster = formation.members, set(privacy.patients)
    missing = len(roster) - len(members)
    if list(members) != sorted(set(members)) or not set(members) <= roster or missing > privacy.drop:
        raise RemoteProtocolError(
            f"{missing} of {len(roster)} sites of the roster are missing, or others are there; the plan's privacy.drop is "
            f"{privacy.drop}",
            code="formation",
        )
    unknown = [m for m in members if m not in identities]
    if unknown:
        raise ConfigError(f"roster: there is no identity key of {', '.join(unknown)}", code="roster")
    first = int(privacy.statistics_epsilon is not None)
    threshold = privacy.threshold if missing == 0 else None
    return Group(
        plan_hash=plan.hash,
        session=f"{session}|{formation.name}",
        members=tuple((m, identities[m]) for m in members),
        threshold=threshold or smallest_threshold(len(members), privacy.collude),
        drop=privacy.drop - missing,
        collude=privacy.collude,
        ring_bits=privacy.ring_bits,
        reference=privacy.reference,
        # All keys of a usual study are dealt at once: a later set-up needs every site at the same time.
        block=min(LONGEST_BLOCK, plan.training.rounds + privacy.spare_steps + SCORE_SUMS + first),
    )


def step_of(
    *,
    number: int,
    size: int,
    kind: str,
    round_number: int,
    trial: Trial,
    columns: Columns,
    parameters: Arrays,
    histogram: NDArray[np.float64],
    statistics: NDArray[np.float64],
) -> Step:
    """One addition, bound to what a site was sent: the model, its columns, the trial, the round, the histogram and the statistics.

    The rest of a preparation follows from these and the plan, which the group binds.

    Args:
        statistics: `Preparation.bound`: what was released before training, and what reductions made of it; empty where there is
            nothing.

    Guarantees:
        - Sites that were sent different things never unmask.
    """
    sent = (
        fingerprint(parameters),
        kind,
        round_number,
        repr(trial),
        [(m, tuple(c)) for m, c in sorted(columns.items())],
        len(statistics),
    )
    digest = hashlib.sha256(repr(sent).encode() + histogram.tobytes() + statistics.tobytes()).digest()
    masked = "train" if kind == "train" else "scores"
    return Step(number=number, attempt=0, parameters=digest, size=size, kind=masked)


def to_ring(share: NDArray[np.int64], bits: int) -> NDArray[np.uint32] | NDArray[np.uint64]:
    """Integers modulo 2**bits, (d,) to the same."""
    whole = share.view(np.uint64)
    return whole.copy() if bits == 64 else whole.astype(np.uint32)


def from_ring(total: NDArray[np.uint32] | NDArray[np.uint64]) -> NDArray[np.int64]:
    """The integers nearest to zero that are the same modulo the ring, (d,) to the same."""
    signed = total.view(np.int32 if total.dtype == np.uint32 else np.int64)
    return np.asarray(signed, dtype=np.int64)
