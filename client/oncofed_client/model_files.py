"""Models that were delivered to a site: what is there, and bringing one out, checked."""

from __future__ import annotations

from pathlib import Path

from oncofed_shared.errors import DataError
from oncofed_shared.files import read_bounded
from oncofed_shared.model_manifest import ModelManifest, check_model, read_manifest
from oncofed_shared.storage import write_whole

__all__ = [
    "MODELS_FOLDER",
    "check_beside",
    "checked_model",
    "delivered_models",
    "fetch_model",
    "manifest_beside",
]

MODELS_FOLDER, MODEL_FILE, MANIFEST_FILE = "models", "model.safetensors", "manifest.json"
LARGEST_MODEL = 1 << 32


def delivered_models(state: Path) -> tuple[str, ...]:
    """Ids of the studies whose model lies in a site's state, sorted."""
    folder = state / MODELS_FOLDER
    try:
        return tuple(sorted(p.name for p in folder.iterdir() if (p / MODEL_FILE).is_file()))
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror})") from None


def checked_model(state: Path, study: str, *, step_key: bytes, plan_hash: str) -> tuple[bytes, bytes]:
    """A delivered model and its manifest, checked.

    Guarantees:
        - The manifest is signed by the study's step key and names this study and plan.
        - The model is the one that the manifest names, to the last bit.

    Raises:
        DataError: nothing was delivered, or something does not fit.
    """
    folder = state / MODELS_FOLDER / study
    if not (folder / MODEL_FILE).is_file():
        raise DataError(
            f"{folder}: no model was delivered for this study; it comes when the study has ended: see `oncofed-site outbox`",
            code="no-model",
        )
    content = read_bounded(folder / MANIFEST_FILE)
    manifest = read_manifest(content, signer=step_key, where=str(folder / MANIFEST_FILE))
    if (manifest.study, manifest.plan_hash) != (study, plan_hash):
        raise DataError(f"{folder / MANIFEST_FILE}: is the manifest of another study; fetch it again", code="digest")
    model = read_bounded(folder / MODEL_FILE, most=LARGEST_MODEL)
    check_model(model, manifest, where=str(folder / MODEL_FILE))
    return model, content


def fetch_model(state: Path, study: str, *, step_key: bytes, plan_hash: str, out: Path) -> ModelManifest:
    """Write a delivered model to a file, with its manifest beside it.

    Raises:
        DataError: see `checked_model`.
        StorageError: a file cannot be written.
    """
    model, content = checked_model(state, study, step_key=step_key, plan_hash=plan_hash)
    write_whole(manifest_beside(out), content)
    write_whole(out, model)
    return read_manifest(content, signer=step_key)


def manifest_beside(model: Path) -> Path:
    """Where `fetch_model` puts the manifest of a model."""
    return model.with_name(f"{model.name}.manifest.json")


def check_beside(model: Path) -> ModelManifest | None:
    """Check a model against the signed manifest that was fetched with it; None where there is none.

    Raises:
        DataError: it does not fit.
    """
    beside = manifest_beside(model)
    if not beside.exists():
        return None
    manifest = read_manifest(read_bounded(beside), signer=None, where=str(beside))
    check_model(read_bounded(model, most=LARGEST_MODEL), manifest, where=str(model))
    return manifest
