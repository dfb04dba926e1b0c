"""Checking a dossier from outside: nothing is needed but the file and the site's fingerprint."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from oncofed_client.approvals import DECISION_KIND
from oncofed_client.dossier import open_dossier
from oncofed_client.dossier_body import FORMAT, kinds_of
from oncofed_shared.errors import DataError
from oncofed_shared.public_keys import key_fingerprint
from oncofed_shared.signed_document import read_document
from oncofed_shared.signed_study import read_study

__all__ = ["Verified", "verify_dossier"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Verified:
    """What came out.

    Attributes:
        site, study: whose, of what.
        fingerprint: of the key that signed it.
        receipts: how many it lists.
        problems: what does not fit; empty for a sound one.
    """

    site: str
    study: str
    fingerprint: str
    receipts: int
    problems: tuple[str, ...]


def verify_dossier(content: bytes, *, fingerprint: str | None, where: str) -> Verified:
    """Check a dossier.

    Args:
        content: of the page, or of its data.
        fingerprint: of the site's key, as the site said it; None leaves the comparison to the caller.
        where: the file's name, for messages.

    Guarantees:
        - Without a problem, page, data, study, decisions and numbers belong together, signed by the site's key.

    Raises:
        DataError: it is no dossier, or page or data were changed.
    """
    document = open_dossier(content, signer=None, where=where)
    body = document.body
    try:
        if body["format"] != FORMAT:
            raise DataError(f"{where}: is of another version; use that version of oncofed to check it", code="version")
        problems = tuple(_problems(body, document.key))
        site, study, receipts = str(body["site"]), str(body["study"]["id"]), len(body["left"]["receipts"])
    except (KeyError, TypeError, AttributeError):
        raise DataError(f"{where}: is not written as a dossier is", code="document") from None
    own = key_fingerprint(document.key)
    if fingerprint is not None and "".join(fingerprint.split()).lower() != own.replace(" ", ""):
        problems = (f"is signed by {own}, not by the key that was said", *problems)
    return Verified(site=site, study=study, fingerprint=own, receipts=receipts, problems=problems)


def _problems(body: dict[str, Any], key: bytes) -> Iterator[str]:
    if body["identity"] != key.hex():
        yield "names another key than the one that signed it"
    told = body["study"]
    try:
        study = read_study(json.dumps(body["signed_study"]).encode(), plan_key=None)
    except DataError as error:
        yield f"the study in it does not hold: {error}"
        return
    if (study.id, study.plan.hash, study.name) != (told["id"], told["plan_hash"], told["name"]):
        yield "tells of another study than the signed one in it"
    if (study.plan.study.purpose, study.plan_key.hex()) != (told["purpose"], told["plan_key"]):
        yield "tells of another purpose or plan key than the signed study in it"
    if {s: k.hex() for s, k in study.roster.items()} != told["roster"]:
        yield "tells of another roster than the signed study in it"
    if study.roster.get(body["site"]) != key:
        yield "the study's roster has another key for this site"
    yield from _decision_problems(body, key)
    if kinds_of(body["left"]["receipts"]) != body["left"]["kinds"]:
        yield "the sums over its receipts are not those of its receipts"


def _decision_problems(body: dict[str, Any], key: bytes) -> Iterator[str]:
    told = body["decisions"]
    signed = body["signed_decisions"]
    if len(told) != len(signed):
        yield "tells of more or fewer decisions than are signed in it"
        return
    for number, (one, document) in enumerate(zip(told, signed, strict=True), 1):
        try:
            found = read_document(json.dumps(document).encode(), DECISION_KIND, signer=key).body
        except DataError:
            yield f"decision {number} is not signed by this site"
            continue
        same = all(one[k] == found.get(k) for k in ("what", "scope", "at", "by", "reason", "site"))
        if not same or found.get("study") != body["study"]["id"] or found.get("number") != number:
            yield f"decision {number} is told otherwise than it was signed"
