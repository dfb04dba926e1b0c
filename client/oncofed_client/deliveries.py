"""The final model of a study, as it is kept at a site."""

from __future__ import annotations

from pathlib import Path

from oncofed_shared.errors import DataError, RemoteProtocolError
from oncofed_shared.messages import Deliver
from oncofed_shared.model_seal import MODEL_FILES, check_model
from oncofed_shared.signed_study import SignedStudy
from oncofed_shared.storage import write_whole

__all__ = ["MODELS", "keep_model", "model_folder"]

MODELS = "models"


def model_folder(state: Path, study: SignedStudy) -> Path:
    """Where a study's delivered model lies: `model_seal.MODEL_FILES`."""
    return state / MODELS / study.id


def keep_model(state: Path, study: SignedStudy, message: Deliver) -> str:
    """Check a delivered model and keep it; its SHA-256 in hex. The same one again changes nothing.

    Guarantees:
        - What lies there was sealed by the study's step key.
        - A study has one final model: another one is refused.
        - After a crash the model is there with its manifest and its seal, or it is not there.

    Raises:
        RemoteProtocolError: code `model-seal`: the seal does not fit; code `other-model`: another one was delivered before.
        StorageError: it cannot be written.
    """
    try:
        digest = check_model(study, message.model, message.manifest, message.seal)
    except DataError as error:
        raise RemoteProtocolError(*error.problems, code="model-seal") from None
    folder = model_folder(state, study)
    model, manifest, seal = (folder / name for name in MODEL_FILES)
    if model.exists():
        try:
            check_model(study, model.read_bytes(), manifest.read_bytes(), seal.read_bytes())
            same = model.read_bytes() == message.model
        except (DataError, OSError):
            # What lies there is damaged: the delivered one mends it.
            same = True
            model.unlink()
        if not same:
            raise RemoteProtocolError("another final model of this study was delivered before", code="other-model")
    if not model.exists():
        write_whole(seal, message.seal, private=True)
        write_whole(manifest, message.manifest, private=True)
        write_whole(model, message.model, private=True)
    return digest
