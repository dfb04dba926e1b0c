"""What goes with a delivered model: which study made it, its digest, and the step key's signature under both."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from oncofed_shared.errors import DataError
from oncofed_shared.messages import Trial
from oncofed_shared.signed_document import read_document, sign_document

__all__ = ["ModelManifest", "check_model", "read_manifest", "write_manifest"]

_KIND = "model"
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelManifest:
    """A manifest whose signature holds.

    Attributes:
        study: id of the signed study.
        plan_hash: of its plan.
        model: SHA-256 of the model's file, in hex.
        facts: what else the aggregator says of it, for people: versions, time, headline.
        key: raw public key that signed.
    """

    study: str
    plan_hash: str
    model: str
    facts: Mapping[str, Any]
    key: bytes


def write_manifest(
    *, study: str, plan_hash: str, trial: Trial, model: bytes, facts: Mapping[str, Any], key: Ed25519PrivateKey
) -> bytes:
    """The manifest of a model; `facts` are JSON values, `key` is the study's step key."""
    body = {
        "study": study,
        "plan_hash": plan_hash,
        "trial": asdict(trial),
        "model": hashlib.sha256(model).hexdigest(),
        "facts": dict(facts),
    }
    return sign_document(_KIND, body, key)


def read_manifest(content: bytes, *, signer: bytes | None, where: str = "manifest") -> ModelManifest:
    """Read a manifest.

    Args:
        content: of the file.
        signer: raw public key that must have signed it; None takes any, and the caller decides.
        where: named in messages.

    Raises:
        DataError: it is none, is damaged, or is signed by another key (code `signature`).
    """
    document = read_document(content, _KIND, signer=signer, where=where)
    body = document.body
    texts = [body.get(k) for k in ("study", "plan_hash", "model")]
    if not all(isinstance(t, str) and _DIGEST.fullmatch(t) for t in texts) or not isinstance(body.get("facts"), dict):
        raise DataError(f"{where}: is not written as a model's manifest is; ask for it again", code="document")
    return ModelManifest(
        study=body["study"],
        plan_hash=body["plan_hash"],
        model=body["model"],
        facts=body["facts"],
        key=document.key,
    )


def check_model(model: bytes, manifest: ModelManifest, *, where: str = "model") -> None:
    """See that a model is the one of its manifest, to the last bit.

    Raises:
        DataError: code `digest`.
    """
    found = hashlib.sha256(model).hexdigest()
    if found != manifest.model:
        raise DataError(
            f"{where}: is not the model that its manifest names: {found[:16]}... instead of {manifest.model[:16]}...; it was "
            "changed or damaged: fetch it again",
            code="digest",
        )
