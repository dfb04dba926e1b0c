"""What a person takes away from a finished study: report and result, or everything for an outsider in one file."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from typing import Any

from oncofed_server.report import headline, write_report
from oncofed_server.service.folder import Folder
from oncofed_server.service.result import deployed_result
from oncofed_server.service.studies import StudyFolder
from oncofed_server.snapshot import load_state
from oncofed_shared.errors import ConfigError, StorageError
from oncofed_shared.signed_document import sign_document
from oncofed_shared.storage import dump_json, write_whole

__all__ = ["export_study", "report_study"]

_EPOCH = (1980, 1, 1, 0, 0, 0)


def report_study(place: StudyFolder, out: Path, *, command: str) -> dict[str, Any]:
    """Write report.html, result.json, model.safetensors and manifest.json of a finished study.

    Raises:
        ConfigError: it has not finished.
    """
    if not place.final.exists() or not place.manifest.exists():
        phase = place.status.get("phase", "waiting")
        raise ConfigError(
            f"{place.study.name}: has no model yet ({phase}); `oncofed-aggregator status` says how far it is"
        )
    state = load_state(place.final, place.study.plan)
    result = deployed_result(place.study, state, seconds=float(place.status.get("seconds", 0.0)), command=command)
    write_whole(out / "model.safetensors", place.model.read_bytes())
    write_whole(out / "result.json", dump_json(result))
    write_report(result, out)
    files = ("model.safetensors", "report.html", "result.json")
    manifest = {
        "plan_hash": place.study.plan.hash,
        "study_id": place.study.id,
        "command": command,
        "versions": result["versions"],
        "files": {n: hashlib.sha256((out / n).read_bytes()).hexdigest() for n in files},
        "headline": headline(result),
    }
    write_whole(out / "manifest.json", dump_json(manifest))
    return result


def export_study(folder: Folder, place: StudyFolder, out: Path, *, command: str) -> list[str]:
    """Write one ZIP file for an outsider, with digests of everything in it signed by the aggregator.

    In it are the signed study, the newest roster, report, result, model, and what was delivered: nothing secret, and nothing of a
    site's but what it has released.

    Returns:
        Names of the files in it.

    Raises:
        ConfigError: the study has not finished, or the file exists.
    """
    if out.exists():
        raise ConfigError(f"{out}: is there already; choose another name")
    work = place.path / "out"
    report_study(place, work, command=command)
    content = {
        "study.json": place.study.content,
        "roster.json": folder.roster.read_bytes(),
        "delivered.json": dump_json(
            {"manifest": place.manifest.read_text(), "sites": place.status.get("delivered", {})}
        ),
        **{n: (work / n).read_bytes() for n in ("report.html", "result.json", "model.safetensors", "manifest.json")},
    }
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in content.items()}
    content["digests.json"] = sign_document("export", {"study": place.study.id, "files": digests}, folder.own_key())
    temporary = out.with_name(f".{out.name}.partial")
    try:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in sorted(content):
                archive.writestr(zipfile.ZipInfo(name, _EPOCH), content[name], zipfile.ZIP_DEFLATED)
        temporary.replace(out)
    except OSError as error:
        raise StorageError(f"{out}: cannot be written ({error.strerror})") from None
    finally:
        temporary.unlink(missing_ok=True)
    return sorted(content)
