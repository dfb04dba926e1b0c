"""The seal of a final model: its files' digests, signed by the study's step key, so that a site can check it years later."""

from __future__ import annotations

import hashlib

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from oncofed_shared.errors import DataError
from oncofed_shared.signed_document import read_document, sign_document
from oncofed_shared.signed_study import SignedStudy

__all__ = ["MODEL_FILES", "MODEL_KIND", "check_model", "seal_model"]

MODEL_KIND = "model"
MODEL_FILES = ("model.safetensors", "manifest.json", "model.signed")
"""A delivered model at a site, in state/models/STUDY ID/: the two files and their seal."""


def _body(study_id: str, model: bytes, manifest: bytes) -> dict[str, str]:
    files = {"model": model, "manifest": manifest}
    return {"study": study_id} | {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


def seal_model(study_id: str, model: bytes, manifest: bytes, key: Ed25519PrivateKey) -> bytes:
    """Sign a study's final model with its step key; equal content gives equal bytes."""
    return sign_document(MODEL_KIND, _body(study_id, model, manifest), key)


def check_model(study: SignedStudy, model: bytes, manifest: bytes, seal: bytes, *, where: str = "model") -> str:
    """See that these files are the study's final model; the model's SHA-256 in hex.

    Guarantees:
        - One bit changed in model, manifest or seal, or another study's model: refused.

    Raises:
        DataError: code `signature`: the seal is not by the study's step key, or is of other files or another study.
    """
    signed = read_document(seal, MODEL_KIND, signer=study.step_key, where=where).body
    expected = _body(study.id, model, manifest)
    if signed != expected:
        wrong = ", ".join(n for n in expected if signed.get(n) != expected[n])
        raise DataError(
            f"{where}: is not the model that the aggregator of this study sealed ({wrong} differs); fetch it again",
            code="signature",
        )
    return expected["model"]
