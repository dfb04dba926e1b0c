"""`doctor` at the site's own folders: who may read what, whether keys, ledger, approvals and enrolment are sound."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from cryptography.x509 import load_pem_x509_certificate

from oncofed_client.doctor_check import Check, ok, skipped, wrong
from oncofed_client.enrol import ENROLMENT_FILE
from oncofed_client.identity import KEY_FILE, fingerprint_of
from oncofed_client.ledger import LEDGER_FILE
from oncofed_client.node_key import NODE_KEY_FILE, read_node_key
from oncofed_client.prepare.keys import KEY_FILE as SITE_KEY_FILE
from oncofed_client.settings import SETTINGS_FILE, SiteSettings
from oncofed_client.site_keys import current_key
from oncofed_shared.enrolment import Enrolment
from oncofed_shared.errors import DataError
from oncofed_shared.public_keys import key_fingerprint

__all__ = ["data_checks", "enrolment_checks", "key_checks", "ledger_checks", "socket_checks"]

SOON = 30 * 86_400
OTHERS = stat.S_IRWXO


def data_checks(folder: Path | None, settings: SiteSettings | None) -> Iterator[Check]:
    """The folder with patients' files: readable here, and not by everybody."""
    name = "data folder"
    if folder is None or settings is None:
        yield skipped(name, "only the state was named", "name the folder that has site.toml to have it checked")
        return
    files = [folder, folder / SETTINGS_FILE, *(folder / t.file for t in settings.tables.values())]
    unreadable = [p.name for p in files if os.path.lexists(p) and not os.access(p, os.R_OK)]
    if unreadable:
        yield wrong(name, f"cannot be read here: {', '.join(unreadable)}", "give this user the right to read them")
    open_to_all = [p.name for p in files if p.exists() and p.stat().st_mode & OTHERS and not _shut_above(p)]
    if open_to_all:
        yield wrong(
            name,
            f"every user of this machine may use: {', '.join(open_to_all)}",
            f"take it from others: chmod -R o-rwx {folder}",
        )
    if not unreadable and not open_to_all:
        yield ok(name, f"{folder}: readable here, and not by other users")
    if settings.consent.given:
        yield ok("consent", "is stated in site.toml")
    else:
        yield wrong("consent", "site.toml states none, so nobody may enter", "fill in [consent] in site.toml")


def _shut_above(path: Path) -> bool:
    """Whether a folder above keeps others out."""
    return any(not parent.stat().st_mode & stat.S_IXOTH for parent in path.resolve().parents)


def key_checks(state: Path) -> Iterator[Check]:
    """Keys are there, sound, and their owner's alone."""
    if not state.is_dir():
        yield skipped("state folder", f"{state}: is not there yet", "it is made by `oncofed-site enrol request`")
        return
    mode = state.stat().st_mode
    if mode & OTHERS:
        yield wrong("state folder", f"{state}: others may enter it", f"chmod o-rwx {state}")
    else:
        yield ok("state folder", f"{state}: closed to others")
    yield _key("identity key", state / KEY_FILE, lambda: fingerprint_of(current_key(state).public_key()))
    yield _key("gate key", state / NODE_KEY_FILE, lambda: f"ECDSA P-{read_node_key(state).key_size}")
    secret = state / SITE_KEY_FILE
    if secret.exists():
        mode = stat.S_IMODE(secret.stat().st_mode)
        if mode & 0o077:
            yield wrong("site key", f"{secret}: others than its owner may read it", f"chmod 600 {secret}")
        else:
            yield ok("site key", "its owner's alone")


def _key(name: str, path: Path, look: Callable[[], str]) -> Check:
    if not path.exists():
        return skipped(name, "is not made yet", "it is made by `oncofed-site enrol request`")
    try:
        return ok(name, look())
    except DataError as error:
        return wrong(name, str(error), "see docs/site.md, Keys")


def ledger_checks(state: Path) -> Iterator[Check]:
    """Every entry is in its place and signed."""
    if not (state / LEDGER_FILE).exists():
        yield skipped("ledger", "is not made yet; it is made when a private study is approved")
        return
    # The accountant takes a second to import, and a site without a ledger needs it not.
    from oncofed_client.ledger_commands import verify_state  # noqa: PLC0415

    sound, problems = verify_state(state, key=None, witnesses=())
    if problems:
        yield wrong("ledger", "; ".join(problems), "stop the site, keep a copy, and see docs/ledger.md")
    else:
        yield ok("ledger", sound)


def enrolment_checks(enrolment: Enrolment | None, now: float) -> Iterator[Check]:
    """Whether the site is enrolled, and the authority of the aggregator's certificate still holds."""
    name = "enrolment"
    if enrolment is None:
        yield skipped(
            name,
            f"this site is not enrolled: there is no {ENROLMENT_FILE}",
            "oncofed-site enrol request, send the file, then oncofed-site enrol install",
        )
        return
    yield ok(name, f"with {enrolment.aggregator} at {enrolment.address}, key {key_fingerprint(enrolment.signer)}")
    certificate = load_pem_x509_certificate(enrolment.certificate.encode())
    start, end = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
    until = f"{datetime.fromtimestamp(end, UTC):%Y-%m-%d}"
    if not start <= now <= end:
        yield wrong(
            "certificate authority",
            f"does not hold now; it holds until {until}",
            "look at this machine's clock; if that is right, ask the aggregator for a new enrolment",
        )
    elif end - now < SOON:
        yield wrong("certificate authority", f"ends soon, on {until}", "ask the aggregator for a new enrolment")
    else:
        yield ok("certificate authority", f"holds until {until}")


def socket_checks(state: Path, socket: Path | None = None) -> Iterator[Check]:
    """The door between gate and daemon is open to this site's users alone."""
    name, path = "daemon socket", socket or state / "run" / "daemon.sock"
    if not path.exists():
        yield skipped(name, f"{path}: is not there; the daemon does not run")
        return
    mode, above = path.stat().st_mode, path.parent.stat().st_mode
    if not stat.S_ISSOCK(mode):
        yield wrong(name, f"{path}: is not a socket", "stop the daemon, remove the file, start again")
    elif mode & OTHERS or above & OTHERS:
        yield wrong(name, f"{path}: other users may reach it", f"chmod o-rwx {path} {path.parent}")
    else:
        yield ok(name, f"{path}: closed to other users")
