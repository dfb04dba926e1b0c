"""How the studies stand, for people: one line each, and what needs somebody's attention."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from oncofed_server.service.authority import days_left
from oncofed_server.service.folder import Folder
from oncofed_server.service.registry import members, newest_roster
from oncofed_server.service.running import read_nodes, read_service
from oncofed_server.service.studies import ENDED, StudyFolder, Wanted, all_studies

__all__ = ["status_of", "status_page", "waits_for"]

DAY = 86_400.0
WARN_DAYS, WARN_AUTHORITY_DAYS = 30.0, 365.0
LATEST_NOTES = 5
SHORT_ID = 8
"""Digits of an id that are shown, and that commands take for it."""


def _study_row(place: StudyFolder, now: float, *, served: bool) -> dict[str, Any]:
    said, study, wanted = place.status, place.study, place.wanted
    phase = said.get("phase", "waiting" if wanted is Wanted.RUN else "submitted")
    if wanted is Wanted.PAUSE and phase not in {"done", "failed"}:
        phase = "paused"
    if wanted is Wanted.CANCEL and phase not in {"done", "failed"}:
        phase = "cancelled"
    row = {
        "id": study.id,
        "name": study.name,
        "phase": phase,
        "driven": place.driven,
        "sites": list(study.roster),
        "expires_days": round((study.expires - now) / DAY, 1),
        **{
            key: said.get(key)
            for key in (
                *("step_phase", "round", "rounds", "step", "attempt", "attempts", "seconds", "bytes_up", "bytes_down"),
                *(
                    "losses",
                    "excluded",
                    "asked",
                    "waiting",
                    "since",
                    "deadline",
                    "connected",
                    "delivered",
                    "undelivered",
                ),
                *("why", "events", "journal_bytes", "at"),
            )
        },
        "counts": place.counts.get("sites", {}),
        "notes": said.get("notes", [])[-LATEST_NOTES:],
    }
    return row | {"waits_for": waits_for(row, all_notes=said.get("notes", []), served=served)}


def waits_for(row: dict[str, Any], *, all_notes: Sequence[Mapping[str, Any]] = (), served: bool = True) -> str:
    """What a study waits for, in words.

    Args:
        row: of `status_of`.
        all_notes: what went wrong at sites, oldest first.
        served: whether `oncofed-aggregator start` runs.
    """
    why, phase = f": {row['why']}" if row["why"] else "", row["phase"]
    if phase == "done" and row["undelivered"]:
        return f"{', '.join(row['undelivered'])} to take the model; `resume` when they are there"
    words = {
        "submitted": "a person to say `submit`",
        "prepared": "a person to say `submit`",
        "paused": "a person to say `resume`",
        "stuck": f"a person{why}",
        "failed": f"nothing; it failed{why}",
        "cancelled": "nothing; it was cancelled",
        "done": "nothing; it is done",
    }
    if phase in words:
        return words[phase]
    if not served:
        return "`oncofed-aggregator start`: nothing runs it"
    if not row["driven"]:
        return "its next process, which the dispatcher starts" + why
    latest = {note["site"]: str(note["what"]) for note in all_notes if note["at"] >= (row["since"] or 0)}
    there = set(row["connected"] or ())
    return (
        "; ".join(
            f"{site} to connect"
            if site not in there
            else f"{site} ({latest[site]})"
            if site in latest
            else f"{site} to answer"
            for site in sorted(row["waiting"] or ())
        )
        or "nobody: the aggregator computes"
    )


def status_of(folder: Folder, *, now: float) -> dict[str, Any]:
    """Everything, ready for JSON."""
    epoch = newest_roster(folder)
    service = read_service(folder)
    served = service is not None and service.runs
    nodes = read_nodes(folder) if served else {}
    certificate = days_left(folder.keys / "server.crt", now=now)
    warnings = []
    authority = days_left(folder.certificate, now=now)
    if authority < WARN_AUTHORITY_DAYS:
        warnings.append(
            f"the authority's certificate ends in {authority:.0f} days: oncofed-aggregator renew --authority, then answer each "
            "site's request once more (oncofed-aggregator enrol)"
        )
    if certificate < WARN_DAYS:
        warnings.append(f"the server's certificate ends in {certificate:.0f} days: oncofed-aggregator renew")
    warnings += [
        f"{place.study.name}: expires in {(place.study.expires - now) / DAY:.0f} days; what is not done then never will be"
        for place in all_studies(folder)
        if place.wanted is Wanted.RUN
        and place.status.get("phase") not in ENDED
        and place.study.expires - now < min(WARN_DAYS * DAY, 0.2 * (place.study.expires - place.study.created))
    ]
    studies = [_study_row(place, now, served=served) for place in all_studies(folder)]
    if epoch is not None:
        age = (now - epoch.issued) / DAY
        limits = [p.study.epoch_days for p in all_studies(folder) if p.wanted is Wanted.RUN]
        if limits and age > 0.7 * min(limits):
            warnings.append(
                f"the roster is {age:.0f} days old and sites stop at {min(limits):g}: oncofed-aggregator renew --plan-key FILE"
            )
    return {
        "aggregator": folder.settings.name,
        "address": folder.settings.address,
        "certificate_days": round(certificate, 1),
        "roster": None if epoch is None else {"number": epoch.number, "sites": sorted(epoch.sites)},
        "served": served,
        "sites": {
            member.site: {
                "standing": member.standing,
                "online": nodes[member.site].online if member.site in nodes else None,
                "seen": nodes[member.site].at if member.site in nodes else None,
            }
            for member in members(folder)
        },
        "studies": studies,
        "warnings": warnings,
    }


def status_page(status: dict[str, Any]) -> RenderableType:
    """The same as tables for a terminal."""
    table = Table(
        title=f"{status['aggregator']} at {status['address']}", title_justify="left", box=None, pad_edge=False
    )
    for name in ("study", "id", "phase", "round", "now", "waits for", "there", "out"):
        # An id that is cut off could not be typed into the next command; a long name goes on in the next line.
        short = name in {"id", "round", "there"}
        table.add_column(name, no_wrap=short, min_width=SHORT_ID if name == "id" else None, overflow="fold")
    lines: list[RenderableType] = []
    for row in status["studies"]:
        waiting = row["waiting"] or {}
        table.add_row(
            Text(row["name"]),
            row["id"][:SHORT_ID],
            row["phase"] + ("" if row["driven"] or row["phase"] not in {"running", "delivering"} else " (no process)"),
            f"{row['round'] or 0}/{row['rounds'] or '?'}",
            str(row["step_phase"] or ""),
            ", ".join(waiting) or "-",
            f"{len(row['connected'] or [])}/{len(row['sites'])}",
            ", ".join(row["excluded"] or {}) or "-",
        )
        if row["why"]:
            lines.append(Text(f"{row['name']}: {row['why']}"))
        lines += [
            Text(f"{row['name']}: {time.strftime('%H:%M:%S', time.localtime(n['at']))} {n['site']}: {n['what']}")
            for n in row["notes"]
        ]
    lines += [Text(f"! {w}") for w in status["warnings"]]
    return Group(table, *lines)
