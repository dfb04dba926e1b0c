"""`oncofed-aggregator`: what the people who run a consortium's aggregator run."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from oncofed_server.report import headline
from oncofed_server.service.folder import Folder
from oncofed_server.service.keys import new_key, public_file, read_key, read_public_key
from oncofed_server.service.log_lines import say
from oncofed_server.service.prepare import EPOCH_DAYS, STUDY_DAYS, prepare
from oncofed_server.service.registry import check_plan_key, members, newest_roster, publish_roster, revoke_step_key
from oncofed_server.service.registry import enrol as take_in
from oncofed_server.service.registry import revoke as take_out
from oncofed_server.service.status import status_of, status_page
from oncofed_server.service.studies import Wanted, add_study, find_study, read_any_study
from oncofed_server.service.watch import watch as keep_watching
from oncofed_shared.commands import run_app
from oncofed_shared.enrolment import read_enrolment
from oncofed_shared.errors import ConfigError, StorageError
from oncofed_shared.plan import NoPrivacy, load
from oncofed_shared.public_keys import key_fingerprint, public_of
from oncofed_shared.storage import write_whole
from oncofed_shared.told import told_by_signals

__all__ = ["app", "main"]

app = typer.Typer(
    name="oncofed-aggregator",
    help="The aggregator of a consortium. It sees no patient; what it asks, sites approve by the hash of a signed study.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Dir = Annotated[Path, typer.Option("--dir", metavar="DIR", help="The aggregator's folder.")]
PlanKey = Annotated[Path, typer.Option("--plan-key", metavar="FILE", help="Private plan key.")]
MaybePlanKey = Annotated[Path | None, typer.Option("--plan-key", metavar="FILE", help="Private plan key, if at hand.")]
Study = Annotated[str, typer.Argument(metavar="STUDY", help="File, id, beginning of the id, or name.")]
HERE = Path()


def _command() -> str:
    return shlex.join(["oncofed-aggregator", *sys.argv[1:]])


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({error.strerror})") from None


# -- the aggregator and its keys ------------------------------------------------------------------------------------------


@app.command("plan-key")
def plan_key(out: Annotated[Path, typer.Option(help="New file for the private key; FILE.pub beside it.")]) -> None:
    """Make the plan key, on a machine without a network: it signs studies and rosters, and stays there."""
    key = new_key(out)
    print(f"{out}: private; keep it offline, and a copy somewhere safe")
    print(f"{public_file(out)}: public; give it to `oncofed-aggregator init`")
    print(f"fingerprint: {key_fingerprint(public_of(key))}")


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.")],
    name: Annotated[str, typer.Option(help="What sites call this aggregator.")],
    address: Annotated[str, typer.Option(help="HOST:PORT that sites connect to.")],
    plan_key: Annotated[Path, typer.Option(help="Public plan key, the .pub file.")],
    listen: Annotated[str | None, typer.Option(help="HOST:PORT on this machine, if it is another one.")] = None,
) -> None:
    """Make an aggregator: a private certificate authority, certificates, its own key and a step key."""
    made = Folder.create(
        folder, name=name, address=address, plan_key=read_public_key(plan_key), listen=listen, now=time.time()
    )
    print(f"{made.path}: made; whoever reads keys/ can play the aggregator, so back it up like one")
    print(f"aggregator: {key_fingerprint(public_of(made.own_key()))}")
    print(f"plan key:   {key_fingerprint(made.plan_key)}")


@app.command()
def renew(
    folder: Dir = HERE,
    step_key: Annotated[bool, typer.Option("--step-key", help="A new step key for new studies.")] = False,
    plan_key: MaybePlanKey = None,
    authority: Annotated[
        bool, typer.Option("--authority", help="The authority's certificate too, of the same key.")
    ] = False,
) -> None:
    """New certificates; with --plan-key a fresh roster; with --step-key a new step key. What was signed before goes on."""
    opened = Folder.open(folder)
    signing = None if plan_key is None else read_key(plan_key)
    if signing is not None:
        # Before anything is renewed: a wrong key renews nothing.
        check_plan_key(opened, signing)
    if authority:
        opened.renew_authority(now=time.time())
        print("authority: new; sites trust both until the one before ends; answer their requests once more")
    opened.make_certificates(now=time.time())
    print("certificates: new; a running proxy takes them within a minute")
    if step_key:
        print(f"step key: {key_fingerprint(opened.renew_step_key().step_key)}; older studies keep theirs")
    if signing is not None:
        epoch = publish_roster(opened, signing, now=time.time())
        print(f"roster: epoch {epoch.number}, {len(epoch.sites)} sites")


# -- sites ----------------------------------------------------------------------------------------------------------------


@app.command()
def enrol(
    request: Annotated[Path, typer.Argument(metavar="REQUEST", help="A site's request file.")],
    out: Annotated[Path, typer.Option(help="Where the answer goes.")],
    folder: Dir = HERE,
    plan_key: MaybePlanKey = None,
) -> None:
    """Take a site in and answer its request. Compare the fingerprints by telephone before you send the answer."""
    opened = Folder.open(folder)
    key = None if plan_key is None else read_key(plan_key)
    answer = take_in(opened, _read(request), now=time.time(), plan_key=key, where=str(request))
    write_whole(out, answer)
    site = read_enrolment(answer).site
    for member in members(opened):
        if member.site == site:
            print(f"{member.site}: {member.fingerprint} ({member.standing})")
    print(f"answer: {out}, signed by {key_fingerprint(public_of(opened.own_key()))}")


@app.command("list")
def show_list(folder: Dir = HERE, as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """Who is enrolled, with the fingerprint of each identity."""
    opened = Folder.open(folder)
    rows = members(opened)
    if as_json:
        print(json.dumps([{"site": m.site, "fingerprint": m.fingerprint, "standing": m.standing} for m in rows]))
        return
    for member in rows:
        print(f"{member.site}: {member.fingerprint} ({member.standing})")
    if not rows:
        print("nobody is enrolled")
    epoch = newest_roster(opened)
    for key in opened.step_keys():
        gone = epoch is not None and key in epoch.step_keys
        standing = "revoked" if gone else "new studies name it" if key == opened.step_key else "older studies name it"
        print(f"step key: {key_fingerprint(key)} ({standing})")


@app.command()
def revoke(
    plan_key: PlanKey,
    site: Annotated[str | None, typer.Argument(help="Name of the site.")] = None,
    folder: Dir = HERE,
    step_key: Annotated[
        str | None, typer.Option("--step-key", metavar="FINGERPRINT", help="A step key, as `list` shows it.")
    ] = None,
) -> None:
    """Take a site's key, or a step key, out for good: acts at every site with its next message, and at the gate at once."""
    opened, signing = Folder.open(folder), read_key(plan_key)
    if (site is None) == (step_key is None):
        raise ConfigError("revoke: name either a site or a --step-key")
    if site is not None:
        epoch = take_out(opened, site, signing, now=time.time())
        print(f"{site}: revoked in roster epoch {epoch.number}; studies that need it end, prepare them anew without it")
        return
    wanted = "".join(str(step_key).split()).lower()
    found = [k for k in opened.step_keys() if key_fingerprint(k).replace(" ", "") == wanted]
    if len(found) != 1:
        raise ConfigError(f"--step-key {step_key}: is no step key of this aggregator; `list` shows them")
    epoch = revoke_step_key(opened, found[0], signing, now=time.time())
    print(f"step key: revoked in roster epoch {epoch.number}; studies that name it end, prepare them anew")


@app.command()
def witness(
    site: Annotated[str, typer.Argument(help="Name of the site.")],
    out: Annotated[Path, typer.Option(help="Where the witness goes; send it to the site.")],
    head: Annotated[Path | None, typer.Option(metavar="FILE", help="The head of the new epoch, from the site.")] = None,
    folder: Dir = HERE,
) -> None:
    """For a site that was restored: sign the newest head of its ledger that was seen or, with --head, its new epoch's."""
    from oncofed_server.service.witnesses import sign_newest, sign_told  # noqa: PLC0415 - loads torch

    opened = Folder.open(folder)
    write_whole(out, sign_newest(opened, site) if head is None else sign_told(opened, site, head))
    print(f"{out}: written, signed by {key_fingerprint(public_of(opened.own_key()))}")


# -- studies --------------------------------------------------------------------------------------------------------------


@app.command("prepare")
def prepare_study(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="The study plan, a TOML file.")],
    plan_key: PlanKey,
    out: Annotated[Path, typer.Option(help="Where the signed study goes.")],
    folder: Dir = HERE,
    sites: Annotated[str, typer.Option(help="Names with commas; everybody without it.")] = "",
    seed: Annotated[int, typer.Option(min=0, help="Of split and first values; public.")] = 0,
    fold: Annotated[int, typer.Option(help="Held-out fold, where the plan has folds.")] = -1,
    quorum: Annotated[int | None, typer.Option(min=1, help="Fewest sites with whom the run goes on.")] = None,
    expires_days: Annotated[float, typer.Option(min=0.001, help="Days until the study ends.")] = STUDY_DAYS,
    epoch_days: Annotated[float, typer.Option(min=0.001, help="How old a roster may be at a site.")] = EPOCH_DAYS,
) -> None:
    """Sign a study: one plan, one run, these sites, their keys and the step key. Needs no network."""
    opened, plan = Folder.open(folder), load(study)
    content = prepare(
        opened,
        plan,
        read_key(plan_key),
        sites=tuple(s.strip() for s in sites.split(",") if s.strip()),
        seed=seed,
        fold=fold,
        quorum=quorum,
        days=expires_days,
        epoch_days=epoch_days,
        now=time.time(),
    )
    write_whole(out, content)
    signed = read_any_study(out, opened)
    print(f"{out}: {plan.study.name}, id {signed.id}")
    print(f"sites: {', '.join(signed.roster)}; quorum {signed.quorum}; roster epoch {signed.epoch}")


@app.command()
def submit(study: Annotated[Path, typer.Argument(metavar="STUDY", help="A signed study.")], folder: Dir = HERE) -> None:
    """Let a study run as soon as `start` does. Sites that have not approved it are asked again and again."""
    place = add_study(Folder.open(folder), study, now=time.time())
    if place.wanted is Wanted.CANCEL:
        raise ConfigError(f"{place.study.name}: was cancelled, for good; prepare a new study")
    if not isinstance(place.study.plan.privacy, NoPrivacy) and not place.spending:
        from oncofed_server.spending import spending  # noqa: PLC0415 - accountants take seconds to import

        place.keep_spending({s: spending(place.study.plan, s).epsilon for s in place.study.trainers})
    place.want(Wanted.RUN)
    print(f"{place.study.name}: submitted, id {place.study.id}")


@app.command()
def count(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="A signed study.")],
    folder: Dir = HERE,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for answers.")] = 60.0,
) -> None:
    """Ask every site how many patients it has, rounded; each has to approve that by itself. Before `submit`."""
    place = add_study(Folder.open(folder), study, now=time.time())
    if place.wanted not in {None, Wanted.COUNT}:
        raise ConfigError(f"{place.study.name}: was submitted already; patients are counted before")
    place.want(Wanted.COUNT)
    end = time.monotonic() + wait
    while time.monotonic() < end and set(place.counts.get("sites", {})) != set(place.study.roster):
        time.sleep(0.2)
    known = place.counts.get("sites", {})
    for site in place.study.roster:
        counts = known.get(site)
        words = "has not answered" if counts is None else ", ".join(f"{k} {v}" for k, v in sorted(counts.items()))
        print(f"{site}: {words or 'nothing above its minimum'}")


def _want(folder: Path, study: str, wanted: Wanted) -> None:
    place = find_study(Folder.open(folder), study)
    phase = place.status.get("phase")
    if phase in {"done", "failed"} and not (wanted is Wanted.RUN and place.status.get("undelivered")):
        raise ConfigError(f"{place.study.name}: has ended ({phase})")
    if place.wanted is Wanted.CANCEL and wanted is not Wanted.CANCEL:
        raise ConfigError(f"{place.study.name}: was cancelled, for good; prepare a new study")
    if (phase == "stuck" and wanted is not Wanted.PAUSE) or (phase == "done" and wanted is Wanted.RUN):
        place.tell(place.status | {"phase": "waiting", "why": ""})
    place.want(wanted)
    words = {Wanted.RUN: "goes on", Wanted.PAUSE: "pauses; sites keep what they have", Wanted.CANCEL: "is cancelled"}
    print(f"{place.study.name}: {words[wanted]}")


@app.command()
def pause(study: Study, folder: Dir = HERE) -> None:
    """Ask nothing more until `resume`; the time in between counts towards no deadline."""
    _want(folder, study, Wanted.PAUSE)


@app.command()
def resume(study: Study, folder: Dir = HERE) -> None:
    """Go on with a paused or stuck study, or give the model to sites that have not taken it."""
    _want(folder, study, Wanted.RUN)


@app.command()
def cancel(study: Study, folder: Dir = HERE) -> None:
    """End a study for good."""
    _want(folder, study, Wanted.CANCEL)


@app.command()
def status(
    folder: Dir = HERE,
    watch: Annotated[bool, typer.Option("--watch", help="A page to be read from afar, until Ctrl-C.")] = False,
    as_json: Annotated[bool, typer.Option("--json")] = False,
    metrics: Annotated[bool, typer.Option("--metrics", help="Once, as Prometheus reads it.")] = False,
) -> None:
    """How the studies stand."""
    opened = Folder.open(folder)

    def look() -> dict[str, Any]:
        return status_of(opened, now=time.time())

    if watch:
        try:
            keep_watching(look, out=sys.stdout, stop=told_by_signals(), as_json=as_json)
        except BrokenPipeError:
            # Who read has gone; Python would complain once more when it closes what it cannot write to.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    if metrics:
        from oncofed_server.service.metrics import figures_text  # noqa: PLC0415 - only here

        print(figures_text(opened, clock=time.time), end="")
    elif as_json:
        print(json.dumps(look()))
    else:
        Console().print(status_page(look()))


@app.command()
def report(study: Study, out: Annotated[Path, typer.Option(help="Where it goes.")], folder: Dir = HERE) -> None:
    """Write report.html, result.json and the model of a finished study."""
    from oncofed_server.service.products import report_study  # noqa: PLC0415 - loads torch

    result = report_study(find_study(Folder.open(folder), study), out, command=_command())
    print(headline(result))
    print(f"report: {out / 'report.html'}")


@app.command()
def export(study: Study, out: Annotated[Path, typer.Option(help="A new ZIP file.")], folder: Dir = HERE) -> None:
    """Write everything that an outsider may see of a finished study into one file, with signed digests."""
    from oncofed_server.service.products import export_study  # noqa: PLC0415 - loads torch

    opened = Folder.open(folder)
    names = export_study(opened, find_study(opened, study), out, command=_command())
    print(f"{out}: {', '.join(names)}")


# -- the service ----------------------------------------------------------------------------------------------------------


@app.command()
def start(
    folder: Dir = HERE,
    metrics: Annotated[
        int | None,
        typer.Option("--metrics", metavar="PORT", min=1, max=65_535, help="For Prometheus, on 127.0.0.1 alone."),
    ] = None,
) -> None:
    """Run SuperLink, proxy and dispatcher until SIGTERM or Ctrl-C; whatever of them ends is started again."""
    from oncofed_server.service.metrics import served  # noqa: PLC0415 - only here
    from oncofed_server.service.service import serve  # noqa: PLC0415

    opened = Folder.open(folder)
    with contextlib.nullcontext() if metrics is None else served(opened, metrics, clock=time.time):
        serve(opened, given=dict(os.environ), stop=told_by_signals(), say=say)


@app.command(hidden=True)
def dispatch(folder: Dir = HERE) -> None:
    """What `start` runs as a process of its own: submits studies to Flower."""
    from oncofed_server.service.dispatch import Dispatcher  # noqa: PLC0415 - only here
    from oncofed_server.service.programs import environment  # noqa: PLC0415

    opened = Folder.open(folder)
    Dispatcher(folder=opened, environment=environment(opened, dict(os.environ)), stop=told_by_signals(), say=say).run()


def main() -> None:
    """Entry point of `oncofed-aggregator`."""
    run_app(app)


if __name__ == "__main__":
    main()
