"""Who is enrolled: requests as files, rosters signed by the plan key, answers signed by the aggregator."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key

from oncofed_server.service.folder import Folder, check_site_name
from oncofed_shared.enrolment import EnrolmentRequest, read_enrolment_request, write_enrolment
from oncofed_shared.errors import ConfigError, DataError
from oncofed_shared.public_keys import key_fingerprint, public_of
from oncofed_shared.roster import Keys, RosterEpoch, read_roster, write_roster
from oncofed_shared.signed_study import read_study
from oncofed_shared.storage import write_whole

__all__ = [
    "Member",
    "check_plan_key",
    "enrol",
    "enrolled",
    "former_requests",
    "gate_keys",
    "gates",
    "members",
    "newest_roster",
    "publish_roster",
    "revoke",
    "revoke_step_key",
]

FORMER, FORMER_DAYS, DAY = "former", 30.0, 86_400.0
"""Days for which a key that a site has replaced goes on for new connections and for studies that are not submitted yet."""


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


def gate_keys(folder: Folder, *, now: float) -> dict[str, str]:
    """Sites by the keys with which their gates are let in: those that were replaced lately first, the newest last."""
    epoch = newest_roster(folder)
    gone = frozenset() if epoch is None else epoch.gone
    return {r.node_key: r.site for r in _known_gates(folder, now=now) if r.identity not in gone}


def _known_gates(folder: Folder, *, now: float) -> tuple[EnrolmentRequest, ...]:
    return (*former_requests(folder, since=now - FORMER_DAYS * DAY), *enrolled(folder).values())


def former_requests(folder: Folder, *, since: float = 0.0) -> list[EnrolmentRequest]:
    """Requests in whose place later ones came, oldest first; those that were replaced after a time."""
    kept = sorted((folder.sites / FORMER).glob("*.request"), key=_replaced_at)
    return [read_enrolment_request(p.read_bytes(), where=str(p)) for p in kept if _replaced_at(p) >= since]


def _replaced_at(path: Path) -> float:
    return float(path.name.split(".")[-2])


def _former_keys(folder: Folder, sites: Mapping[str, bytes], never: Collection[bytes], *, now: float) -> Keys:
    """Earlier keys of the sites that still hold: those replaced lately, and those that a study which has not expired names."""
    lately = {r.identity for r in former_requests(folder, since=now - FORMER_DAYS * DAY)}
    named = set()
    for path in folder.studies.glob("*/study.json"):
        study = read_study(path.read_bytes(), plan_key=folder.plan_key, where=str(path))
        named |= set(study.roster.values()) if now <= study.expires else set()
    found: dict[str, tuple[bytes, ...]] = {}
    for request in former_requests(folder):
        key, site = request.identity, request.site
        if site in sites and key != sites[site] and key not in never and key in lately | named:
            found[site] = tuple(dict.fromkeys((*found.get(site, ()), key)))
    return found


def gates(folder: Folder, *, now: float) -> dict[bytes, str]:
    """Sites by the keys of gates that may be connected, in the form in which Flower tells and shows a key (PEM); the newest last.

    Those of revoked sites are among them: a gate that is still there takes the roster that says so to its site, which then
    leaves the run at once and not at a deadline.
    """
    return {
        load_ssh_public_key(r.node_key.encode()).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo): r.site
        for r in _known_gates(folder, now=now)
    }


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
        ConfigError: another site has this key, this name has another key that has not signed for this one, or the key was
            revoked; nothing is changed.
    """
    request = read_enrolment_request(content, where=where)
    check_site_name(request.site)
    known, epoch = enrolled(folder), newest_roster(folder)
    gone = frozenset() if epoch is None else epoch.gone
    if request.identity in gone:
        raise ConfigError(f"{request.site}: this identity was revoked; the site makes a new one and asks again")
    before = known.get(request.site)
    renews = before is not None and request.former == before.identity
    if before is not None and before.identity != request.identity and before.identity not in gone and not renews:
        raise ConfigError(
            f"{request.site}: is enrolled with another key ({key_fingerprint(before.identity)}); revoke that one first"
        )
    for other in (*known.values(), *former_requests(folder)):
        if other.site != request.site and request.identity == other.identity:
            raise ConfigError(f"{request.site}: has the identity of '{other.site}'")
        if other.site != request.site and request.node_key == other.node_key:
            raise ConfigError(f"{request.site}: its gate has the key of '{other.site}'s gate")
    if plan_key is not None:
        check_plan_key(folder, plan_key)
    if before is not None and (before.identity, before.node_key) != (request.identity, request.node_key):
        # The former keys go on for a while; first they are kept, then they are former.
        kept = folder.sites / FORMER / f"{request.site}.{before.digest[:16]}.{now:.0f}.request"
        write_whole(kept, (folder.sites / f"{request.site}.request").read_bytes())
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
    folder: Folder,
    plan_key: Ed25519PrivateKey,
    *,
    now: float,
    revoked: Keys | None = None,
    step_keys: Collection[bytes] = (),
) -> RosterEpoch:
    """Sign the next epoch: all that are enrolled but those that are revoked.

    Args:
        revoked: identity keys that hold no more from now on, by site.
        step_keys: likewise.

    Guarantees:
        - What was revoked in the epoch before is revoked in this one, however often its name was enrolled anew.
        - A key that its site has replaced holds as long as a study that was submitted here and has not expired names it, and for
          `FORMER_DAYS` in any case.
    """
    check_plan_key(folder, plan_key)
    before = newest_roster(folder)
    gone = dict(before.revoked) if before else {}
    for site, keys in (revoked or {}).items():
        gone[site] = tuple(dict.fromkeys((*gone.get(site, ()), *keys)))
    never = {key for keys in gone.values() for key in keys}
    sites = {s: r.identity for s, r in enrolled(folder).items() if r.identity not in never}
    content = write_roster(
        number=(before.number if before else 0) + 1,
        issued=now,
        sites=sites,
        former=_former_keys(folder, sites, never, now=now),
        revoked=gone,
        step_keys={*(before.step_keys if before else ()), *step_keys},
        key=plan_key,
    )
    write_whole(folder.roster, content)
    return read_roster(content, plan_key=folder.plan_key)


def revoke(folder: Folder, site: str, plan_key: Ed25519PrivateKey, *, now: float) -> RosterEpoch:
    """Take a site's key out, and all that it had before, for good: its studies end, and nobody adds up with it any more.

    Raises:
        ConfigError: no such site, or it is revoked already.
    """
    request = enrolled(folder).get(site)
    epoch = newest_roster(folder)
    if request is None:
        raise ConfigError(f"{site}: is not enrolled; `oncofed-aggregator list` says who is")
    if epoch is not None and request.identity in epoch.gone:
        raise ConfigError(f"{site}: is revoked already")
    earlier = (r.identity for r in former_requests(folder) if r.site == site)
    return publish_roster(folder, plan_key, now=now, revoked={site: (*earlier, request.identity)})


def revoke_step_key(folder: Folder, public: bytes, plan_key: Ed25519PrivateKey, *, now: float) -> RosterEpoch:
    """Take a step key out, for good: no site does what it has signed. If new studies name it, they name a new one.

    Raises:
        ConfigError: it is not this aggregator's, is revoked already, or the plan key is another one.
    """
    check_plan_key(folder, plan_key)
    epoch = newest_roster(folder)
    if public not in folder.step_keys():
        raise ConfigError(f"{key_fingerprint(public)}: is no step key of this aggregator")
    if epoch is not None and public in epoch.step_keys:
        raise ConfigError(f"{key_fingerprint(public)}: is revoked already")
    made = publish_roster(folder, plan_key, now=now, step_keys=(public,))
    if folder.step_key == public:
        folder.renew_step_key()
    return made


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
