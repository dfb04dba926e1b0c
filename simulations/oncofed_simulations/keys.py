"""Identity keys of a simulated consortium: each site's in its own state folder, the aggregator's beside them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from oncofed_client.identity import PUBLIC_FILE, identity_of, public_half, raw_public
from oncofed_client.settings import SiteSettings
from oncofed_shared.plan import NoPrivacy, Plan

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from oncofed_client.contributor import Contributor

__all__ = ["aggregator_key", "contributor_for", "identities_of"]

AGGREGATOR = "aggregator"


def aggregator_key(out: Path) -> Ed25519PrivateKey:
    """The key of a run's aggregator; made when there is none."""
    return identity_of(out / AGGREGATOR)


def identities_of(states: Mapping[str, Path]) -> dict[str, bytes]:
    """Raw public keys by site, from their state folders; made where there are none."""
    return {site: raw_public(identity_of(folder).public_key()) for site, folder in states.items()}


def _known(folder: Path, roster: tuple[str, ...]) -> dict[str, bytes]:
    """Keys of the sites of a roster whose state folders lie together; who is not there yet is left out."""
    there = [site for site in roster if (folder / site / PUBLIC_FILE).exists()]
    return {site: raw_public(public_half(folder / site)) for site in there}


def contributor_for(plan: Plan, settings: SiteSettings, state: Path) -> Contributor | None:
    """What a simulated site needs for a private plan; nothing without privacy."""
    privacy = plan.privacy
    if isinstance(privacy, NoPrivacy):
        return None
    from oncofed_client.contributor import Contributor  # noqa: PLC0415 - accountants take seconds to import

    identity_of(state)
    return Contributor(
        site=settings.site.name,
        state=state,
        identities=partial(_known, state.parent, tuple(privacy.patients)),
        policy=settings.policy,
        clock=time.time,
        trusted=(raw_public(aggregator_key(state.parent.parent).public_key()),),
        noise_seed=plan.simulation.noise_seed,
        # Nothing is handed to anybody, so a power cut may cost entries; thousands of waits for the disk would cost more.
        synced=False,
    )
