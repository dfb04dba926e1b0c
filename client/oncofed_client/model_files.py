"""Models that were delivered to a site: what is there, and bringing one out, checked."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from oncofed_client.deliveries import MODELS, model_folder
from oncofed_shared.errors import DataError
from oncofed_shared.files import read_bounded
from oncofed_shared.model_seal import MODEL_FILES, MODEL_KIND, check_model
from oncofed_shared.signed_document import read_document
from oncofed_shared.signed_study import SignedStudy
from oncofed_shared.storage import write_whole

__all__ = ["Sealed", "check_beside", "delivered_models", "fetch_model", "is_delivered"]

LARGEST_MODEL = 1 << 32
_MODEL, _MANIFEST, _SEAL = MODEL_FILES


@dataclass(frozen=True, kw_only=True, slots=True)
class Sealed:
    """Whose a model is.

    Attributes:
        study: id of the study that made it.
        digest: SHA-256 of its file, in hex.
        key: raw public key that sealed it.
    """

    study: str
    digest: str
    key: bytes


def is_delivered(state: Path, study: str) -> bool:
    """Whether a study's model lies in a site's state."""
    return (state / MODELS / study / _MODEL).is_file()


def delivered_models(state: Path) -> tuple[str, ...]:
    """Ids of the studies whose model lies in a site's state, sorted.

    Raises:
        DataError: the folder cannot be read.
    """
    folder = state / MODELS
    try:
        return tuple(sorted(p.name for p in folder.iterdir() if is_delivered(state, p.name)))
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror})") from None


def fetch_model(state: Path, study: SignedStudy, *, out: Path | None) -> str:
    """Check a study's delivered model and write it to a file, its manifest and seal beside it; SHA-256 of the model in hex.

    Args:
        state: the site's.
        study: the approved one.
        out: the model's file; None only checks.

    Guarantees:
        - What is written was sealed by the study's step key as this study's model, to the last bit.

    Raises:
        DataError: nothing was delivered, or something does not fit.
        StorageError: a file cannot be written.
    """
    folder = model_folder(state, study)
    if not is_delivered(state, study.id):
        raise DataError(
            f"{folder}: no model was delivered for this study; it comes when the study has ended", code="no-model"
        )
    model = read_bounded(folder / _MODEL, most=LARGEST_MODEL)
    manifest, seal = read_bounded(folder / _MANIFEST), read_bounded(folder / _SEAL)
    digest = check_model(study, model, manifest, seal, where=str(folder))
    if out is not None:
        for path, content in zip((*_beside(out), out), (manifest, seal, model), strict=True):
            write_whole(path, content)
    return digest


def _beside(model: Path) -> tuple[Path, Path]:
    """Where `fetch_model` puts manifest and seal of a model."""
    return model.with_name(f"{model.name}.manifest.json"), model.with_name(f"{model.name}.signed")


def check_beside(model: Path) -> Sealed | None:
    """Check a model against the seal that was fetched with it; None where there is none.

    Raises:
        DataError: it does not fit; code `digest` or `signature`.
    """
    _, path = _beside(model)
    if not path.exists():
        return None
    document = read_document(read_bounded(path), MODEL_KIND, signer=None, where=str(path))
    digest = hashlib.sha256(read_bounded(model, most=LARGEST_MODEL)).hexdigest()
    if document.body.get("model") != digest:
        raise DataError(
            f"{model}: is not the model that was sealed in {path.name} beside it; it was changed or damaged: fetch it again",
            code="digest",
        )
    return Sealed(study=str(document.body.get("study")), digest=digest, key=document.key)
