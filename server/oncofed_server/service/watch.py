"""`status --watch`: one page that a person can read from across the room, drawn again whenever something has changed.

Into a terminal the page fills the screen, in large letters and one colour per study: green goes on by itself, yellow waits for
somebody, red needs a person. Into a file or a pipe the same lines are written once for each change, with the time before them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from oncofed_server.service.letters import large
from oncofed_server.service.status import SHORT_ID
from oncofed_shared.errors import OncofedError
from oncofed_shared.told import Stop

__all__ = ["Look", "look_at", "watch"]

LOOK_SECONDS = 1.0
OVER = frozenset({"done", "failed", "cancelled"})
_COLOURS = {
    "goes on": "bold white on dark_green",
    "waits": "bold black on yellow",
    "needs a person": "bold white on red",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """One study as it is shown.

    Attributes:
        mood: `goes on`, `waits` or `needs a person`.
        headline: phase and round, for large letters.
        lines: the rest, in words.
    """

    mood: str
    headline: str
    name: str
    lines: tuple[str, ...]


def _clock(seconds: float | None) -> str:
    return time.strftime("%d %b %H:%M:%S", time.localtime(seconds)) if seconds else "?"


def look_at(row: dict[str, Any]) -> Look:
    """A study's row of `status_of` as it is shown."""
    phase, waiting = row["phase"], row["waiting"] or {}
    away = set(waiting) - set(row["connected"] or ())
    person = phase in {"stuck", "failed"} or (phase == "done" and bool(row["undelivered"]))
    alone = phase in {"waiting", "running", "delivering", "counting", "ending"} and row["driven"] and not away
    mood = "needs a person" if person else "goes on" if alone or phase == "done" else "waits"
    begun = row["rounds"] is not None and phase not in {"submitted", "prepared", "waiting", "counting"}
    words = row["step_phase"] if phase == "running" and row["step_phase"] else phase
    lines = []
    if begun:
        lines.append(f"round {row['round'] or 0} of {row['rounds']}, step {row['step'] or 0}")
    asked = row["asked"] or []
    if waiting and row["driven"]:
        there = [s for s in asked if s not in waiting]
        lines.append(f"answered: {len(there)} of {len(asked)}" + (f" ({', '.join(there)})" if there else ""))
    lines.append(f"waits for: {row['waits_for']}")
    if waiting and row["driven"]:
        attempt, attempts = (row["attempt"] or 0) + 1, row["attempts"] or 1
        then = "then asked again" if attempt < attempts else "then without them"
        lines.append(
            f"since {_clock(row['since'])}, until {_clock(row['deadline'])}, {then} (attempt {attempt} of {attempts})"
        )
    lines += [f"out: {site} ({why})" for site, why in (row["excluded"] or {}).items()]
    headline = f"{words} {row['round'] or 0}/{row['rounds']}" if begun else words
    return Look(mood=mood, headline=headline, name=f"{row['name']} ({row['id'][:SHORT_ID]})", lines=tuple(lines))


def _sites(status: dict[str, Any]) -> str:
    known = {s: f for s, f in status["sites"].items() if f["standing"] != "revoked"}
    if not status["served"]:
        return f"{len(known)} sites; `oncofed-aggregator start` does not run"
    online = [s for s, f in known.items() if f["online"]]
    away = sorted(s for s, f in known.items() if f["online"] is False)
    return f"{len(online)} of {len(known)} sites online" + (f"; not {', '.join(away)}" if away else "")


def _plain(status: dict[str, Any]) -> list[str]:
    lines = [f"{status['aggregator']} at {status['address']}: {_sites(status)}"]
    for row in status["studies"]:
        look = look_at(row)
        lines.append(f"{look.name}: {look.headline}, {look.mood}")
        lines += [f"    {line}" for line in look.lines]
    if not status["studies"]:
        lines.append("no study")
    return [*lines, *(f"! {w}" for w in status["warnings"])]


def _drawn(status: dict[str, Any], *, width: int, height: int, now: float) -> RenderableType:
    """The page for a screen: studies that go on first and large, as far as there is room; then those that are over."""
    looks = [look_at(row) for row in status["studies"] if row["phase"] not in OVER]
    over = [look_at(row) for row in status["studies"] if row["phase"] in OVER]
    first = f" {status['aggregator']} at {status['address']}   {_clock(now)}"
    made: list[Text] = [Text(first, style="bold reverse"), Text(f" {_sites(status)}", style="bold"), Text("")]
    room = height - len(made) - len(over) - len(status["warnings"]) - sum(2 + len(k.lines) for k in looks)
    for look in looks:
        colour = _COLOURS[look.mood]
        banner = large(look.headline, width=width - 2) if room >= 0 else []
        room -= len(banner)
        bands = [f" {line}" for line in banner] if banner and room >= 0 else [f" {look.headline.upper()}"]
        made += [Text(band.ljust(width), style=colour, no_wrap=True) for band in bands]
        made.append(Text(f" {look.name}", style="bold"))
        made += [Text(f" {line}") for line in look.lines]
        made.append(Text(""))
    for look in over:
        made.append(Text(f" {look.headline.upper()}  {look.name}: {look.lines[-1]}", style=_COLOURS[look.mood]))
    if not looks and not over:
        made.append(Text(" NO STUDY", style="bold"))
    return Group(*made, *(Text(f" ! {w}", style="bold red") for w in status["warnings"]))


def watch(
    look: Callable[[], dict[str, Any]],
    *,
    out: TextIO,
    stop: Stop,
    clock: Callable[[], float] = time.time,
    as_json: bool = False,
    pause: float = LOOK_SECONDS,
) -> None:
    """Show how it stands until told to stop.

    Args:
        look: `status_of`, now.
        out: a terminal, a file or a pipe.
        stop: set by a signal.
        as_json: one line of JSON for each change, in place of a page.
        pause: seconds between two looks.

    Raises:
        OncofedError: the first look failed. A later one that fails is shown, and looked at again.
        BrokenPipeError: who reads has gone.
    """
    status = look()
    if out.isatty() and not as_json:
        console = Console(file=out)

        def draw(shown: dict[str, Any]) -> RenderableType:
            return _drawn(shown, width=console.width, height=console.height, now=clock())

        with Live(draw(status), console=console, screen=True, auto_refresh=False) as live:
            while not stop.wait(pause):
                status = _again(look, status)
                live.update(draw(status), refresh=True)
        out.write("\n".join(_plain(status)) + "\n")
        return
    before = ""
    while True:
        # Times that only go on are in the JSON and no change.
        text = "\n".join(_plain(status))
        if text != before:
            before = text
            out.write(json.dumps(status) + "\n" if as_json else f"-- {_clock(clock())}\n{text}\n")
            out.flush()
        if stop.wait(pause):
            return
        status = _again(look, status)


def _again(look: Callable[[], dict[str, Any]], before: dict[str, Any]) -> dict[str, Any]:
    try:
        return look()
    except OncofedError as error:
        return before | {"warnings": [f"cannot be read now: {'; '.join(error.problems)}"]}
