"""Who is enrolled: requests as files, rosters signed by the plan key, answers signed by the aggregator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key

from oncofed_server.service.folder import Folder, check_site_name
from oncofed_shared.enrolment import EnrolmentRequest, read_enrolment_request, write_enrolment
from oncofed_shared.errors import ConfigError, DataError
from oncofed_shared.public_keys import key_fingerprint, public_of
from oncofed_shared.roster import RosterEpoch, read_roster, write_roster
from oncofed_shared.storage import write_whole

__all__ = [
    "Member",
    "check_plan_key",
    "enrol",
    "enrolled",
    "gates",
    "members",
    "newest_roster",
    "publish_roster",
    "revoke",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """A site as the aggregator knows it.

    Attributes:
        standing: "in roster", "revoked", or "waits for a roster" that the plan key has still to sign.
    """

    site: str
    fingerprint: str
    standing: str


def newest_roster(folder: Folder) -> RosterEpoch | None:
    """The newest epoch; None before the first.

    Raises:
        DataError: the file is damaged, or another plan key signed it.
    """
    if not folder.roster.exists():
        return None
    return read_roster(folder.roster.read_bytes(), plan_key=folder.plan_key, where=str(folder.roster))


def enrolled(folder: Folder) -> dict[str, EnrolmentRequest]:
    """All requests that were accepted, by site, those of revoked keys too."""
    found = {}
    for path in sorted(folder.sites.glob("*.request")):
        request = read_enrolment_request(path.read_bytes(), where=str(path))
        if f"{request.site}.request" != path.name:
            raise DataError(f"{path}: is the request of '{request.site}'; it was renamed")
        found[request.site] = request
    return found


def gates(folder: Folder) -> dict[bytes, str]:
    """Sites by the public key of their gate, in the form in which Flower tells and shows it (PEM)."""
    shown = {}
    for site, request in enrolled(folder).items():
        key = load_ssh_public_key(request.node_key.encode())
        shown[key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)] = site
    return shown


def members(folder: Folder) -> list[Member]:
    """Everybody, by name."""
    epoch = newest_roster(folder)
    rows = []
    for site, request in enrolled(folder).items():
        standing = "absent" if epoch is None else epoch.standing(site, request.identity)
        words = {"member": "in roster", "revoked": "revoked"}.get(standing, "waits for a roster")
        rows.append(Member(site=site, fingerprint=key_fingerprint(request.identity), standing=words))
    return rows


def enrol(
    folder: Folder,
    content: bytes,
    *,
    now: float,
    plan_key: Ed25519PrivateKey | None = None,
    where: str = "enrolment request",
) -> bytes:
    """Take a site's request and answer it.

    Args:
        content: of the request's file.
        where: the file's name, for messages.
        plan_key: where it is at hand, signs a new roster with the site in it; otherwise `prepare` does.

    Returns:
        The answer, signed by the aggregator's own key.

    Raises:
        DataError: it is no request.
        ConfigError: another site has this key, this name has another key, or the key was revoked; nothing is changed.
    """
    request = read_enrolment_request(content, where=where)
    check_site_name(request.site)
    known, epoch = enrolled(folder), newest_roster(folder)
    gone = {} if epoch is None else epoch.revoked
    if request.identity in gone.values():
        raise ConfigError(f"{request.site}: this identity was revoked; the site makes a new one and asks again")
    before = known.get(request.site)
    if before is not None and before.identity != request.identity and gone.get(request.site) != before.identity:
        raise ConfigError(
            f"{request.site}: is enrolled with another key ({key_fingerprint(before.identity)}); revoke that one first"
        )
    for other in known.values():
        if other.site != request.site and request.identity == other.identity:
            raise ConfigError(f"{request.site}: has the identity of '{other.site}'")
        if other.site != request.site and request.node_key == other.node_key:
            raise ConfigError(f"{request.site}: its gate has the key of '{other.site}'s gate")
    if plan_key is not None:
        check_plan_key(folder, plan_key)
    write_whole(folder.sites / f"{request.site}.request", content)
    if plan_key is not None:
        epoch = publish_roster(folder, plan_key, now=now)
    return write_enrolment(
        request,
        aggregator=folder.settings.name,
        address=folder.settings.address,
        certificate=folder.certificate.read_text(encoding="ascii"),
        plan_key=folder.plan_key,
        roster=None if epoch is None else epoch.content,
        issued=now,
        key=folder.own_key(),
    )


def publish_roster(
    folder: Folder, plan_key: Ed25519PrivateKey, *, now: float, revoked: Mapping[str, bytes] | None = None
) -> RosterEpoch:
    """Sign the next epoch: all that are enrolled but those that are revoked."""
    check_plan_key(folder, plan_key)
    before = newest_roster(folder)
    gone = dict(before.revoked if before else {}) | dict(revoked or {})
    sites = {s: r.identity for s, r in enrolled(folder).items() if r.identity not in gone.values()}
    content = write_roster(
        number=(before.number if before else 0) + 1, issued=now, sites=sites, revoked=gone, key=plan_key
    )
    write_whole(folder.roster, content)
    return read_roster(content, plan_key=folder.plan_key)


def revoke(folder: Folder, site: str, plan_key: Ed25519PrivateKey, *, now: float) -> RosterEpoch:
    """Take a site's key out, for good: its studies end, and nobody adds up with it any more.

    Raises:
        ConfigError: no such site, or it is revoked already.
    """
    request = enrolled(folder).get(site)
    epoch = newest_roster(folder)
    if request is None:
        raise ConfigError(f"{site}: is not enrolled; `oncofed-aggregator list` says who is")
    if epoch is not None and epoch.revoked.get(site) == request.identity:
        raise ConfigError(f"{site}: is revoked already")
    return publish_roster(folder, plan_key, now=now, revoked={site: request.identity})


def check_plan_key(folder: Folder, plan_key: Ed25519PrivateKey) -> None:
    """See that a key is this aggregator's plan key.

    Raises:
        ConfigError: it is another one.
    """
    if public_of(plan_key) != folder.plan_key:
        raise ConfigError(
            f"--plan-key: is {key_fingerprint(public_of(plan_key))}; this aggregator's sites know "
            f"{key_fingerprint(folder.plan_key)}"
        )
