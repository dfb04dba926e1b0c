"""The deployed ServerApp: one process that drives one signed study over Flower's grid, from its journal, and ends.

The bundle names `app`; the run's configuration says in which folder the aggregator lives and which study it is. Whatever ends this
process, the dispatcher submits another run, and that goes on where the journal ends.
"""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from oncofed_server.aggregator import Aggregator
from oncofed_server.app import Courier
from oncofed_server.errands import Errand, count_errand, deliver_errand, end_errand
from oncofed_server.flower_exchange import Asking, SealedExchange
from oncofed_server.journal import Journal
from oncofed_server.journaled import JournaledRun, Numbered
from oncofed_server.model_file import write_model
from oncofed_server.run_facts import versions
from oncofed_server.run_state import Phase, Roster, State
from oncofed_server.secure_aggregator import aggregator_for
from oncofed_server.service.bell import Ringer
from oncofed_server.service.folder import Folder
from oncofed_server.service.log_lines import say
from oncofed_server.service.registry import gates
from oncofed_server.service.result import known_certainty
from oncofed_server.service.studies import ENDED, StudyFolder, Wanted, find_study
from oncofed_server.snapshot import load_state, save_state
from oncofed_shared.errors import LocalProtocolError, OncofedError
from oncofed_shared.messages import Counted, Delivered, Ended
from oncofed_shared.model_seal import seal_model
from oncofed_shared.plan import ConsortiumPrivacy
from oncofed_shared.sights import SightBook
from oncofed_shared.storage import dump_json, write_whole

__all__ = ["app", "drive_study"]

FIRST_PAUSE, LONGEST_PAUSE, LONGER = 0.05, 0.4, 1.1
"""Seconds between two looks at the grid: the longer, the longer nothing has come. An answer is found a tenth too late at most."""
LOOK_AT_WISHES, LOOK_AT_NODES, TELL = 0.5, 1.0, 0.5
SAME_DEADLINE = 0.5
COUNT_SECONDS = 600.0
END_SECONDS = 120.0
"""For telling sites of an end without a model; a site that is away keeps its reservation until its person withdraws."""
MOST_NOTES = 50


class _Driver:
    """Drives one study as long as it is wanted."""

    def __init__(self, folder: Folder, place: StudyFolder, grid: Grid) -> None:
        self.folder, self.place, self.study, self.grid = folder, place, place.study, grid
        self.key = folder.step_key_of(self.study.step_key)
        self.journal = Journal(place.journal, study=self.study.id)
        self.bell = Ringer(folder)
        self.notes: list[dict[str, Any]] = list(place.status.get("notes", []))
        self.delivered: dict[str, str] = dict(place.status.get("delivered", {}))
        self._told: dict[str, Any] = {}
        self._told_at = 0.0
        self._since = self._due = 0.0

    # -- what is driven -------------------------------------------------------------------------------------------------------

    def aggregator(self, *, state: State | None, names: Callable[[], str]) -> Aggregator:
        """A fresh aggregator of this study."""
        study = self.study
        secure = isinstance(study.plan.privacy, ConsortiumPrivacy)
        roster = Roster(
            trainers=study.trainers,
            evaluators=study.trainers,
            identities={s: study.roster[s] for s in study.trainers} if secure else {},
            quorum=study.quorum,
        )
        return aggregator_for(
            study.plan, roster, study.trial, session=study.session, state=state, key=self.key, names=names
        )

    def run(self) -> None:
        """Count, train and deliver, or cancel; returns when that is done, or no longer wanted."""
        if self.place.wanted is Wanted.COUNT:
            self._count()
            return
        if self.place.wanted is Wanted.CANCEL:
            self._end(self.place.status, "cancelled", wanted=Wanted.CANCEL)
            return
        if not self.place.final.exists():
            self._train()
        if self.place.final.exists():
            self._finish()

    def _train(self) -> None:
        run = JournaledRun(self.study.plan, self.aggregator, self.journal)
        first = run.recover()
        self._drive(run, first, partial(self._status_of_run, run), over=lambda: run.finished)
        state = run.aggregator.state
        if state.phase is Phase.DONE:
            save_state(self.place.final, state)
        elif state.phase is Phase.FAILED:
            self._end(self._status_of_run(run), "failed", wanted=Wanted.RUN)

    def _end(self, status: dict[str, Any], phase: str, *, wanted: Wanted) -> None:
        """Tell the sites that there will be no model, and then everybody."""

        def came(site: str, answer: Any) -> None:
            if not isinstance(answer, Ended):
                self._note(site, f"does not take the end: {answer.code}")

        sites = tuple(self.study.roster)
        errand = end_errand(self.study, self.journal, sites=sites, seconds=END_SECONDS, came=came)
        ending = lambda: status | self._base("ending")  # noqa: E731 - read at each look
        self._drive(errand, errand.requests, ending, over=lambda: errand.finished, wanted=wanted)
        if not errand.finished:
            return
        for site in sorted(errand.pending):
            self._note(site, "was away when the study ended; what it has reserved stays so until its person withdraws")
        self._tell(status | self._base(phase), at_once=True)

    def _finish(self) -> None:
        state = load_state(self.place.final, self.study.plan)
        if not self.place.manifest.exists():
            known = known_certainty(self.study, state)
            write_model(self.place.model, self.study.plan, self.study.trial, state, certainty=known)
            write_whole(self.place.manifest, dump_json(self._manifest(state)))
        sites = tuple(s for s in self.study.roster if s not in self.delivered)
        errand = self._delivery(sites, state)
        shown = partial(self._status_after, state)
        self._drive(errand, errand.requests, lambda: shown("delivering"), over=lambda: errand.finished)
        if self.place.wanted is Wanted.RUN:
            self._tell(shown("done"), at_once=True)

    def _delivery(self, sites: tuple[str, ...], state: State) -> Errand:
        model, manifest = self.place.model.read_bytes(), self.place.manifest.read_bytes()
        content = {
            "model": model,
            "manifest": manifest,
            "seal": seal_model(self.study.id, model, manifest, self.key),
        }

        def came(site: str, answer: Any) -> None:
            if isinstance(answer, Delivered):
                self.delivered[site] = answer.digest
            else:
                self._note(site, f"does not take the model: {answer.code}")

        return deliver_errand(
            self.study,
            self.journal,
            sites=sites,
            step=state.step + 1,
            content=content,
            seconds=60 * self.study.plan.training.deadline_minutes,
            came=came,
        )

    def _manifest(self, state: State) -> dict[str, Any]:
        return {
            "study": self.study.name,
            "study_id": self.study.id,
            "plan_hash": self.study.plan.hash,
            "session": self.study.session,
            "rounds": len(state.losses),
            "sites": [s for s in self.study.trainers if s not in state.excluded],
            "versions": versions(),
        }

    def _count(self) -> None:
        known = dict(self.place.counts.get("sites", {}))

        def came(site: str, answer: Any) -> None:
            known[site] = dict(answer.counts) if isinstance(answer, Counted) else {"refused": answer.code}
            self.place.keep_counts({"sites": known, "finished": False})

        sites = tuple(s for s in self.study.roster if s not in known)
        errand = count_errand(self.study, self.journal, sites=sites, seconds=COUNT_SECONDS, came=came)
        self._drive(
            errand, errand.requests, lambda: self._base("counting"), over=lambda: errand.finished, wanted=Wanted.COUNT
        )
        if errand.finished:
            self.place.keep_counts({"sites": known, "finished": True})
            self._tell(self._base("prepared"), at_once=True)

    # -- the loop -------------------------------------------------------------------------------------------------------------

    def _drive(
        self,
        asking: Asking,
        first: list[Numbered],
        status: Callable[[], dict[str, Any]],
        *,
        over: Callable[[], bool],
        wanted: Wanted = Wanted.RUN,
    ) -> None:
        """Ask until it is over, or until a person wants something else."""
        book = SightBook(self.study)
        for site, sight in self.journal.sights():
            book.take(sight, site=site)
        courier = Courier(self.grid, self._nodes(), sent=self.bell.ring)
        exchange = SealedExchange(
            asking,
            first,
            courier,
            self.study,
            roster=self.folder.roster.read_bytes,
            key=self.key,
            book=book,
            say=self._note,
        )
        looked, wished = time.monotonic(), -math.inf
        pause = FIRST_PAUSE
        while not over():
            now = time.monotonic()
            # Before the first message too: a run may begin after somebody paused or cancelled its study.
            if now - wished > LOOK_AT_WISHES:
                wished = now
                if self.place.wanted is not wanted:
                    break
            moved = exchange.advance()
            if now - looked > LOOK_AT_NODES and set(asking.pending) - set(courier.nodes):
                looked = now
                courier.nodes = self._nodes()
            self._tell(status() | self._awaited(asking, exchange) | {"connected": sorted(courier.nodes)})
            pause = FIRST_PAUSE if moved else min(LONGEST_PAUSE, pause * LONGER)
            if not moved:
                time.sleep(pause)
        self._tell(status() | {"waiting": {}}, at_once=True)

    def _awaited(self, asking: Asking, exchange: SealedExchange) -> dict[str, Any]:
        """Who is asked since when, who has not answered, and until when there is time."""
        now = time.time()
        due = now + asking.seconds_left
        # Two clocks never agree to the last digit, and every step has a deadline of its own.
        if abs(due - self._due) > SAME_DEADLINE:
            self._since, self._due = now, due
        return {
            "waiting": dict(exchange.waiting),
            "asked": sorted(asking.asked),
            "since": round(self._since),
            "deadline": round(self._due),
        }

    def _nodes(self) -> dict[str, int]:
        """Flower's nodes of this study's sites, of those that are connected: known by the key that was enrolled, not by a name."""
        keys = gates(self.folder, now=time.time())
        newest_last = list(keys)
        found = {}
        nodes = [node for node in self.grid.get_nodes() if bytes(node.public_key) in keys]
        # While a gate changes its key both may be there; the newest counts.
        for node in sorted(nodes, key=lambda node: newest_last.index(bytes(node.public_key))):
            site = keys.get(bytes(node.public_key))
            if site in self.study.roster and site is not None:
                found[site] = int(node.node_id)
        return found

    # -- what is said ---------------------------------------------------------------------------------------------------------

    def _note(self, site: str, what: str) -> None:
        note = {"site": site, "what": what[:300], "at": round(time.time(), 1)}
        self.notes = [*self.notes, note][-MOST_NOTES:]
        say("site.trouble", site=site, study_id=self.study.id, text=what)

    def _base(self, phase: str) -> dict[str, Any]:
        events, size = self.journal.size
        return {
            "study": self.study.id,
            "name": self.study.name,
            "phase": phase,
            "events": events + self.journal.snapshot,
            "journal_bytes": size,
            "rounds": self.study.plan.training.rounds,
            "attempts": self.study.plan.training.attempts,
            "notes": self.notes,
            "delivered": self.delivered,
        }

    def _status_of_run(self, run: JournaledRun) -> dict[str, Any]:
        state = run.aggregator.state
        return self._base("running") | {
            "step_phase": state.phase.value,
            "round": len(state.losses),
            "step": state.step,
            "attempt": state.attempt,
            "losses": [] if run.aggregator.private else list(state.losses),
            "excluded": dict(state.excluded),
            "why": state.why,
            "seconds": round(run.now, 1),
            "bytes_up": state.cost.bytes_up,
            "bytes_down": state.cost.bytes_down,
        }

    def _status_after(self, state: State, phase: str) -> dict[str, Any]:
        return (
            self.place.status
            | self._base(phase)
            | {
                "step_phase": state.phase.value,
                "round": len(state.losses),
                "excluded": dict(state.excluded),
                "undelivered": sorted(set(self.study.roster) - set(self.delivered)),
                "why": state.why,
            }
        )

    def _tell(self, status: dict[str, Any], *, at_once: bool = False) -> None:
        now = time.monotonic()
        if status != self._told and (at_once or now - self._told_at > TELL):
            self._told, self._told_at = status, now
            self.place.tell(status | {"at": round(time.time(), 1)})


def drive_study(folder: Path, study: str, grid: Grid) -> None:
    """Drive a study until it has ended, or is no longer wanted. Returns at once if another process drives it.

    Raises:
        OncofedError: the folder or the study cannot be used.
    """
    opened = Folder.open(folder)
    place = find_study(opened, study)
    with place.alone() as free:
        if not free or place.status.get("phase") in ENDED:
            return
        try:
            _Driver(opened, place, grid).run()
        except OncofedError as error:
            place.tell(place.status | {"why": "; ".join(error.problems)})
            raise
        except Exception as defect:
            frames = traceback.extract_tb(defect.__traceback__)
            where = f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}"
            place.tell(place.status | {"why": f"the ServerApp failed with {type(defect).__name__} in {where}"})
            raise LocalProtocolError(f"the ServerApp failed with {type(defect).__name__} in {where}") from defect


app = ServerApp()


@app.main()
def _main(grid: Grid, context: Context) -> None:
    """Drive the study that the run's configuration names."""
    drive_study(Path(str(context.run_config["dir"])), str(context.run_config["study"]), grid)
