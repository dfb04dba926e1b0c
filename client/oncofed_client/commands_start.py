"""`oncofed-site start`: the daemon and the gate, as two processes that are kept running."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import sys
import time
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from oncofed_client.daemon_client import target
from oncofed_client.doctor import examine
from oncofed_client.doctor_check import Verdict
from oncofed_client.gate.credentials import clear_way, hand_over
from oncofed_client.gate.fence import Fence
from oncofed_client.gate.node import check_enrolled
from oncofed_client.gate.programs import environment_of
from oncofed_client.log_lines import say
from oncofed_client.metrics_file import EVERY_SECONDS, check_folder, kept
from oncofed_client.no_network import NO_WAY_OUT, Reach, leave_network, reach
from oncofed_client.options import Folder, OwnState
from oncofed_client.settings import Policy
from oncofed_client.whereabouts import SitePlace, site_place
from oncofed_shared.errors import ConfigError
from oncofed_shared.told import told_by_signals

__all__ = ["Part", "register"]

# Seconds for a request at hand when a person or systemd ends the daemon; cut off, it is asked again.
GRACE = 600.0


class Part(Enum):
    """What `--only` may name."""

    DAEMON = "daemon"
    GATE = "gate"


def register(app: typer.Typer, environment: Mapping[str, str]) -> None:
    """Add the command to `oncofed-site`.

    Args:
        environment: of this process.
    """

    @app.command()
    def start(
        folder: Folder,
        *,
        state: OwnState = None,
        only: Annotated[Part | None, typer.Option("--only", help="One of the two, as a unit of its own.")] = None,
        socket: Annotated[
            Path | None,
            typer.Option("--socket", metavar="PATH", help="Between the two; STATE/run/daemon.sock without it."),
        ] = None,
        socket_group: Annotated[
            str | None, typer.Option("--socket-group", metavar="GROUP", help="Of the gate's user, its only member.")
        ] = None,
        gate_home: Annotated[
            Path | None,
            typer.Option("--gate-home", metavar="DIR", help="The gate's own folder; STATE/gate without it."),
        ] = None,
        gate_user: Annotated[
            str | None, typer.Option("--gate-user", metavar="USER", help="Run the gate as this user; needs root.")
        ] = None,
        fence: Annotated[
            Fence,
            typer.Option(
                "--fence", help="What holds the gate to the aggregator's address: itself, or its unit or firewall."
            ),
        ] = Fence.OWN,
        metrics: Annotated[
            Path | None,
            typer.Option("--metrics", metavar="DIR", help="Folder of the node exporter's textfiles, for figures."),
        ] = None,
        check: Annotated[
            bool,
            typer.Option("--check", help="Look at this machine as `doctor` does, and start only if nothing is wrong."),
        ] = False,
    ) -> None:
        """Answer the aggregator until told to stop: a daemon that has the data and no network, a gate that has the reverse."""
        place = site_place(folder, state)
        path = (socket or place.state / "run" / "daemon.sock").absolute()
        home = (gate_home or place.state / "gate").absolute()
        target(path)
        if metrics is not None:
            check_folder(metrics)
        if check:
            _check(place, environment, path)
        if only is Part.DAEMON:
            _serve(place, path, socket_group, metrics)
            return
        check_enrolled(place.state)
        credentials = place.state
        if gate_user is not None:
            clear_way(gate_user, path.parent.parent, home.parent)
            credentials = hand_over(place.state, home=home, user=gate_user)
        words, seen = _gate_words(credentials, home, path, fence, metrics), environment_of(environment, home)
        # What stays is a small process: nothing that reads data is imported in it.
        if only is Part.GATE:
            _become(words, gate_user, seen)
        where = [str(folder), *(("--state", str(state)) if state else ()), "--socket", str(path)]
        group = socket_group or (None if gate_user is None else str(_user(gate_user).pw_gid))
        where += ["--metrics", str(metrics)] if metrics else []
        own = [*where, "--only", "daemon", *(("--socket-group", group) if group else ())]
        python = [sys.executable, "-m"]
        daemon = [*python, "oncofed_client.no_network", *python, "oncofed_client", "start", *own]
        both = [*words, "--daemon", json.dumps(daemon), *(("--user", gate_user) if gate_user else ())]
        os.execve(both[0], both, dict(environment))  # noqa: S606 - our own words


def _check(place: SitePlace, environment: Mapping[str, str], socket: Path) -> None:
    """Say what is wrong with this machine.

    Raises:
        ConfigError: something is.
    """
    found = tuple(examine(place, environment=environment, clock=time.time, socket=socket))
    for each in found:
        _tell(f"{each.verdict.value:<12}{each.name}: {each.found}")
    problems = [f"{each.name}: {each.found}; {each.remedy}" for each in found if each.verdict is Verdict.WRONG]
    if problems:
        raise ConfigError(*problems, "not started; the same without --check starts in spite of it")


def _serve(place: SitePlace, path: Path, group: str | None, metrics: Path | None) -> None:
    """Be the daemon.

    Raises:
        ConfigError: no data to read, or a network that it cannot leave.
    """
    # Before anything is imported that starts threads: a process with threads may not leave without an administrator's rights.
    found = reach()
    if found is not Reach.NONE and leave_network():
        found = Reach.NONE
    if found is Reach.NETWORK:
        raise ConfigError(NO_WAY_OUT)
    # torch takes seconds, and the other commands need it not.
    from oncofed_client.daemon import Daemon, own_socket  # noqa: PLC0415
    from oncofed_client.door import open_door  # noqa: PLC0415

    data, stop = place.data, told_by_signals()
    if data is None:
        raise ConfigError(f"{place.state}: the daemon reads the site's data; name the folder with site.toml")
    with own_socket(path, group=group), _figures(place, metrics):
        daemon = Daemon(path, lambda: open_door(data, place.state, clock=time.time, log=_note))
        say("daemon.ready", socket=str(path), network=found.value, pid=os.getpid())
        stop.wait()
        daemon.stop(GRACE)
        say("daemon.ended")


@contextlib.contextmanager
def _figures(place: SitePlace, folder: Path | None) -> Iterator[None]:
    """Write the daemon's figures while it runs, if anybody wants them."""
    if folder is None:
        yield
        return
    from oncofed_client.site_figures import SiteFigures, tick_of  # noqa: PLC0415 - with the daemon's other imports

    def policy() -> Policy:
        return place.settings().policy

    name, now = place.settings().site.name, time.time()
    figures = SiteFigures(place.state, site=name, policy=policy, clock=time.time, started=now)
    # No oftener than the tick: when a figure changes must not tell how long a step took (protocol, rule 11).
    with kept(folder / "oncofed-daemon.prom", figures, every=max(EVERY_SECONDS, tick_of(policy()))):
        yield


def _note(event: str, fields: Mapping[str, Any]) -> None:
    say(f"door.{event}", **fields)


def _tell(text: str) -> None:
    typer.echo(text, err=True)


def _gate_words(credentials: Path, home: Path, path: Path, fence: Fence, metrics: Path | None) -> list[str]:
    given = ["--credentials", str(credentials.absolute()), "--home", str(home), "--socket", str(path)]
    given += ["--fence", fence.value, *(("--metrics", str(metrics.absolute())) if metrics else ())]
    return [sys.executable, "-m", "oncofed_client.gate", *given]


def _user(name: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        raise ConfigError(f"--gate-user {name}: there is no such user on this machine") from None


def _become(words: list[str], user: str | None, seen: Mapping[str, str]) -> None:
    if user is not None:
        who = _user(user)
        os.setgroups([])
        os.setgid(who.pw_gid)
        os.setuid(who.pw_uid)
    os.execve(words[0], words, dict(seen))  # noqa: S606 - our own words
