"""A site's part of an enrolment: keys that never leave, a request that does, and the answer, checked and kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from oncofed_client.known_rosters import keep_roster
from oncofed_client.node_key import next_node_public, node_public, take_next_node
from oncofed_client.site_keys import current_key, next_key, pending_key, take_next
from oncofed_shared.enrolment import (
    SITE_NAME,
    Enrolment,
    read_enrolment,
    read_enrolment_request,
    write_enrolment_request,
)
from oncofed_shared.errors import ConfigError, DataError, PolicyRefusal, RemoteProtocolError
from oncofed_shared.files import read_bounded
from oncofed_shared.public_keys import key_fingerprint, public_of
from oncofed_shared.storage import write_whole

__all__ = ["ENROLMENT_FILE", "REQUEST_FILE", "Asked", "install", "installed", "request_enrolment"]

ENROLMENT_FILE, REQUEST_FILE = "enrolment.json", "enrolment-request.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A request that was made.

    Attributes:
        site: under this name.
        fingerprint: of the site's identity, for the telephone.
    """

    site: str
    fingerprint: str


def request_enrolment(state: Path, *, site: str, out: Path, renew: bool = False) -> Asked:
    """Make the site's keys where there are none, and write its request.

    Args:
        renew: ask for new keys, of the site and of its gate, in the place of those that it has. They are taken with the answer;
            until then, and for studies that name them also afterwards, the ones before are used.

    Guarantees:
        - Asked again under the same name it writes the same bytes, so that an answer to an earlier file still counts.
        - No private half is in the file.

    Raises:
        ConfigError: the name is not one.
        DataError: a key is damaged, or was read by others.
        StorageError: the state or the file cannot be written.
    """
    if not SITE_NAME.fullmatch(site):
        # Before any key is made.
        raise ConfigError(
            f"{site}: is not a site's name; expected up to 64 letters, digits, spaces and any of _ . + -, a letter or digit first"
        )
    former = current_key(state)
    key = next_key(state) if renew else pending_key(state) or former
    renewed = public_of(key) != public_of(former)
    node_key = next_node_public(state) if renewed else node_public(state)
    content = _earlier(state, site, public_of(key), node_key) or write_enrolment_request(
        site=site, node_key=node_key, key=key, former=former if renewed else None
    )
    write_whole(state / REQUEST_FILE, content, private=True)
    write_whole(out, content)
    return Asked(site=site, fingerprint=key_fingerprint(public_of(key)))


def _earlier(state: Path, site: str, own: bytes, node_key: str) -> bytes | None:
    """The request that this site made before, if it says the same."""
    path = state / REQUEST_FILE
    if not path.exists():
        return None
    try:
        content = read_bounded(path)
        known = read_enrolment_request(content)
    except DataError:
        return None
    return content if (known.site, known.identity, known.node_key) == (site, own, node_key) else None


def install(state: Path, answer: Path, *, fingerprint: str | None, now: float) -> Enrolment:
    """Check an answer and keep it.

    Args:
        state: the site's.
        answer: the file.
        fingerprint: of the aggregator's key, as its people said by telephone; without it the caller shows it for a check.
        now: seconds since 1970.

    Guarantees:
        - An answer is kept only if it is to this site's own request: its name, identity and the request's very bytes.
        - An answer that is there is replaced only by one of the same aggregator: same signer, same plan key.

    Raises:
        DataError: no answer, or a damaged one.
        ConfigError: this site never made a request.
        RemoteProtocolError: it is for another site or another request, is signed by another key than was said, or its roster is
            older than one that this site has seen.
        PolicyRefusal: this site is enrolled with another aggregator.
    """
    content = read_bounded(answer)
    found = read_enrolment(content, where=str(answer))
    path = state / REQUEST_FILE
    if not path.exists():
        raise ConfigError(f"{path}: does not exist; make a request first: oncofed-site enrol request")
    asked = read_enrolment_request(read_bounded(path), where=str(path))
    pending = pending_key(state)
    own = public_of(pending or current_key(state))
    if (found.site, found.identity) != (asked.site, own):
        raise RemoteProtocolError(
            f"{answer}: is an answer to site {found.site} with the key {key_fingerprint(found.identity)}; this is site "
            f"{asked.site} with the key {key_fingerprint(own)}",
            code="other-site",
        )
    if found.request != asked.digest:
        raise RemoteProtocolError(
            f"{answer}: answers an earlier request of this site, with another gate key; send {REQUEST_FILE} again",
            code="other-request",
        )
    if fingerprint is not None and not _same(fingerprint, found.signer):
        raise RemoteProtocolError(
            f"{answer}: is signed by the key {key_fingerprint(found.signer)}, not by the one that was said; it was "
            "replaced on the way, or the fingerprint was misheard: ask again by telephone",
            code="signature",
        )
    before = installed(state)
    if before is not None and (before.signer, before.plan_key) != (found.signer, found.plan_key):
        raise PolicyRefusal(
            f"{state / ENROLMENT_FILE}: this site is enrolled with {before.aggregator}, whose key is "
            f"{key_fingerprint(before.signer)}; {answer} is of {found.aggregator} with other keys. If that is meant, move "
            "the old file away first",
            code="other-aggregator",
        )
    if found.roster is not None:
        keep_roster(state, found.roster, plan_key=found.plan_key, now=now)
    write_whole(state / ENROLMENT_FILE, content, private=True)
    if pending is not None:
        take_next_node(state)
        take_next(state, own)
    return found


def installed(state: Path) -> Enrolment | None:
    """The enrolment that is kept; None where there is none.

    Raises:
        DataError: it is damaged.
    """
    path = state / ENROLMENT_FILE
    if not path.exists():
        return None
    try:
        return read_enrolment(read_bounded(path))
    except DataError as error:
        raise DataError(*(f"{path}: {line}; install the answer again" for line in error.problems)) from None


def _same(typed: str, raw: bytes) -> bool:
    """Whether what somebody typed, with or without blanks, is a key's whole fingerprint."""
    return "".join(typed.split()).lower() == key_fingerprint(raw).replace(" ", "")
