"""What this aggregator has seen of the sites' ledgers, given out as a file when a site was restored from a backup.

The heads lie in the journals of private studies, with the replies that carried them, and in `sites/SITE.head`, where the heads are
that were signed by hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from oncofed_server.journal import replies_of
from oncofed_server.secure_sums import AGGREGATOR
from oncofed_server.service.folder import Folder
from oncofed_server.service.registry import enrolled
from oncofed_server.service.studies import all_studies
from oncofed_shared.errors import ConfigError, DataError, PolicyRefusal, RemoteProtocolError
from oncofed_shared.files import read_bounded
from oncofed_shared.messages import Contribution, Exchanged, from_bytes
from oncofed_shared.storage import write_whole
from oncofed_shared.witness import MAX_HEAD, Head, sign_witness

__all__ = ["newest_head", "sign_newest", "sign_told"]


def newest_head(folder: Folder, site: str) -> Head | None:
    """The newest head of a site's ledger that this aggregator has seen in any study; None where it has seen none.

    Raises:
        ConfigError: no such site.
        DataError: a journal is damaged.
    """
    key = _key(folder, site)
    heads = [h for h in (*_in_journals(folder, site), *_signed_before(folder, site)) if h.is_signed_by(key)]
    return max(heads, key=lambda h: (h.epoch, h.number), default=None)


def sign_newest(folder: Folder, site: str) -> bytes:
    """A witness of the newest head of a site's ledger.

    Raises:
        ConfigError: no such site, or nothing was seen of its ledger.
        DataError: a journal is damaged.
    """
    head = newest_head(folder, site)
    if head is None:
        raise ConfigError(
            f'{site}: no study here has shown its ledger; only studies with noise = "consortium" do, and the site goes on '
            "without a witness"
        )
    return sign_witness(folder.own_key(), name=AGGREGATOR, head=head.to_bytes()).to_bytes()


def sign_told(folder: Folder, site: str, path: Path) -> bytes:
    """A witness of a head that a site has sent after a restore.

    Guarantees:
        - Only the head of an epoch that is newer than all that was seen is signed, or the very head that was signed last.
        - What was signed is kept before it is given out, so that the next restore is compared with it.

    Raises:
        ConfigError: no such site.
        DataError: the file is no head, or not of this site.
        PolicyRefusal: code `rolled-back`: this ledger was seen in the same epoch or a later one.
    """
    key = _key(folder, site)
    try:
        head = Head.from_bytes(read_bounded(path, most=MAX_HEAD))
    except RemoteProtocolError:
        raise DataError(f"{path}: is not the head of a ledger, or it is damaged") from None
    if head.site != site or not head.is_signed_by(key):
        raise DataError(f"{path}: is not a head that {site} has signed with its enrolled key")
    seen = newest_head(folder, site)
    if seen is not None and seen != head and head.epoch <= seen.epoch:
        raise PolicyRefusal(
            f"{site}: this head is of epoch {head.epoch}, and entry {seen.number} of epoch {seen.epoch} was seen; the site begins "
            f"another epoch with the witness that `oncofed-aggregator witness {site}` writes",
            code="rolled-back",
        )
    write_whole(_kept(folder, site), head.to_bytes())
    return sign_witness(folder.own_key(), name=AGGREGATOR, head=head.to_bytes()).to_bytes()


def _key(folder: Folder, site: str) -> Ed25519PublicKey:
    request = enrolled(folder).get(site)
    if request is None:
        raise ConfigError(f"{site}: is not enrolled; `oncofed-aggregator list` says who is")
    return Ed25519PublicKey.from_public_bytes(request.identity)


def _in_journals(folder: Folder, site: str) -> Iterator[Head]:
    for place in all_studies(folder):
        if not place.journal.exists():
            continue
        for content in replies_of(place.journal):
            reply = from_bytes(content)
            if isinstance(reply, Exchanged | Contribution) and reply.site == site:
                yield Head.from_bytes(reply.ledger)


def _kept(folder: Folder, site: str) -> Path:
    return folder.sites / f"{site}.head"


def _signed_before(folder: Folder, site: str) -> tuple[Head, ...]:
    path = _kept(folder, site)
    if not path.exists():
        return ()
    try:
        return (Head.from_bytes(read_bounded(path, most=MAX_HEAD)),)
    except RemoteProtocolError:
        raise DataError(f"{path}: is damaged; bring it back from a backup") from None
