"""Every decision that one hospital takes: a message in, a message out. No sockets, no Flower, no clock.

`Site.handle` refuses whatever does not belong to an approved plan, reads consent again for every request, and answers with sums
and counts. What it refuses, it says by a code; the reason with its file and row stays in `Site.journal`, at the site.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from oncofed_client.cohort import Cohort
from oncofed_client.memory import Memories, Memory
from oncofed_client.private_answers import PrivateTrainer, guard
from oncofed_client.rounds import check_control, train_round
from oncofed_client.scratch import Scratch
from oncofed_client.training import TrainingSet, local_update
from oncofed_shared.determinism import one_thread
from oncofed_shared.errors import OncofedError, PolicyRefusal, RemoteProtocolError
from oncofed_shared.features import Preparation, check_columns, column_sums, prepared_input
from oncofed_shared.layout import Layout
from oncofed_shared.losses import predict, targets
from oncofed_shared.messages import (
    Arrays,
    Columns,
    Describe,
    Description,
    Evaluate,
    Head,
    Open,
    Ready,
    Refusal,
    Reply,
    Request,
    Summarise,
    Summary,
    Tables,
    Train,
    Trial,
    Update,
)
from oncofed_shared.network import FusionNetwork
from oncofed_shared.plan import ClassificationTask, Plan
from oncofed_shared.ring import encode_update
from oncofed_shared.scoring import sparse, tabulate
from oncofed_shared.storage import read_arrays, write_arrays

__all__ = ["Session", "Site", "Source", "training_set"]

_PART_CODES = {"train": 0, "validation": 1, "test": 2}


class Source(Protocol):
    """Where a site's cohort comes from."""

    @property
    def name(self) -> str:
        """The site's name."""

    def cohort(self, plan: Plan) -> Cohort:
        """The patients who may enter now: consent is read again at every call."""

    def split(self, plan: Plan, cohort: Cohort, trial: Trial) -> NDArray[np.int64]:
        """Part of each patient, (n,): 0 train, 1 validation, 2 test, -1 none. A patient's part never changes in a trial."""


@dataclass(kw_only=True)
class Session:
    """What a site keeps of one training run.

    Attributes:
        whole: all parameters.
        layout: those that are shared.
        local: first values of the others.
    """

    plan: Plan
    trial: Trial
    preparation: Preparation
    network: FusionNetwork
    whole: Layout
    layout: Layout
    local: Arrays
    cache: dict[str, tuple[Cohort, TrainingSet]] = field(default_factory=dict)

    @cached_property
    def label(self) -> str:
        """The trial in words, for keys of batches and dropout."""
        return str(self.trial)

    def complete(self, shared: Arrays, kept: Arrays) -> Arrays:
        """All parameters of the network: the shared ones as sent, the local ones as this site keeps them, or the first ones."""
        return shared | {n: kept.get(n, first) for n, first in self.local.items()}


def training_set(plan: Plan, preparation: Preparation, cohort: Cohort, rows: NDArray[np.bool_] | slice) -> TrainingSet:
    """The chosen patients of a cohort as tensors in the plan's dtype."""
    dtype = torch.float64 if plan.training.dtype == "float64" else torch.float32
    values, seen = prepared_input(plan, preparation, {m: v[rows] for m, v in cohort.values.items()}, cohort.columns)
    labels = {t: v[rows] for t, v in cohort.labels.items()}
    return TrainingSet(
        values=torch.from_numpy(values).to(dtype),
        seen=torch.from_numpy(seen).to(dtype),
        goals=targets(plan, labels, preparation.class_weights),
    )


class Site:
    """One hospital.

    Args:
        source: its patients.
        plans: the plans that its data officer approved, by hash.
        minimum_cohort: fewest patients with whom it takes part.
        state: folder for what must outlive this process; without it a session ends with the process.
        noise_seed: makes the noise of private plans repeatable and worthless; only a simulation gives one.
        scratch: makes its networks; sites that answer in turn in one process may have one in common.

    Attributes:
        journal: problems behind refusals, for the site's own eyes.
    """

    def __init__(
        self,
        source: Source,
        plans: Mapping[str, Plan],
        *,
        minimum_cohort: int,
        state: Path | None = None,
        noise_seed: int | None = None,
        scratch: Scratch | None = None,
    ) -> None:
        self.state = state
        self.scratch = scratch or Scratch()
        self.source = source
        self.plans = plans
        self.minimum_cohort = minimum_cohort
        self.journal: list[str] = []
        self.sessions: dict[str, Session] = {}
        self.private = PrivateTrainer(site=source.name, noise_seed=noise_seed)
        self.memories = Memories(None if state is None else state / "sessions")
        self._admitted: set[str] = set()

    @property
    def name(self) -> str:
        """The site's name in the roster."""
        return self.source.name

    def handle(self, request: Request) -> Reply:
        """Answer one request.

        Guarantees:
            - A request of a plan that is not approved is answered with a refusal, whatever it asks.
            - Only patients whose consent holds now enter.
            - Nothing is answered for fewer patients than the policy asks for, whatever is asked first. A withdrawal in the
              course of a run changes the sums and not the participation.
            - The answer holds sums and counts over patients, never a row.
            - Under a private plan, what it learned from training patients is noised and charged.
        """
        try:
            plan = self.plans.get(request.head.plan_hash)
            if plan is None:
                raise PolicyRefusal("the plan is not approved at this site", code="unapproved-plan")
            with one_thread():
                return self._answer(plan, request)
        except OncofedError as error:
            self.journal += error.problems
            return Refusal(
                head=request.head,
                site=self.name,
                code=error.code,
                text="the site's own journal has the reason",
            )

    def _answer(self, plan: Plan, request: Request) -> Reply:
        if plan.hash not in self._admitted:
            self.admit(plan, request.head.trial)
            self._admitted.add(plan.hash)
        guard(plan, self.name, request)
        match request:
            case Describe(head=head):
                return self._describe(plan, head)
            case Summarise(head=head):
                check_columns(plan, request.columns)
                cohort = self.source.cohort(plan)
                rows = self._rows(plan, cohort, head.trial, "train")
                values = {m: v[rows] for m, v in cohort.values.items()}
                labels = {t: v[rows] for t, v in cohort.labels.items()}
                sums = column_sums(plan, request.columns, values, cohort.columns, labels)
                return Summary(head=head, site=self.name, sums=sums)
            case Open(head=head):
                self._open(plan, head, request.columns, request.arrays)
                self._keep(request)
                return Ready(head=head, site=self.name)
            case Train():
                return self._train(request)
            case Evaluate():
                return self._evaluate(request)

    def _rows(self, plan: Plan, cohort: Cohort, trial: Trial, part: str) -> NDArray[np.bool_]:
        if part == "all":
            return np.ones(len(cohort.patients), dtype=bool)
        return np.equal(self.source.split(plan, cohort, trial), _PART_CODES[part])

    def admit(self, plan: Plan, trial: Trial) -> tuple[Cohort, NDArray[np.int64]]:
        """The cohort and its parts, if the site's policy lets it take part.

        Raises:
            PolicyRefusal: no consent, or fewer patients than the policy asks for.
            DataError: the files are wrong.
        """
        cohort = self.source.cohort(plan)
        if len(cohort.patients) < self.minimum_cohort:
            raise PolicyRefusal(
                f"{len(cohort.patients)} patients can take part; the site's policy asks for at least "
                f"{self.minimum_cohort}",
                code="cohort-too-small",
            )
        return cohort, self.source.split(plan, cohort, trial)

    def _describe(self, plan: Plan, head: Head) -> Description:
        cohort, split = self.admit(plan, head.trial)
        columns = dict(cohort.columns)
        if plan.privacy.noise != "none":
            # Numbers of patients are the plan's; the true ones stay here.
            return Description(head=head, site=self.name, columns=columns, parts={}, modalities={}, events={})
        events: dict[str, int] = {}
        for name, task in plan.tasks.items():
            labels = cohort.labels[name]
            if isinstance(task, ClassificationTask):
                for k in range(len(task.classes)):
                    events[f"{name}.{k}"] = int(np.count_nonzero(labels == k))
            else:
                events[name] = int(np.count_nonzero(labels[:, 1] == 1))
        return Description(
            head=head,
            site=self.name,
            columns=columns,
            parts={p: int(np.count_nonzero(split == c)) for p, c in _PART_CODES.items()}
            | {"all": len(cohort.patients)},
            modalities={
                m: int(np.count_nonzero(~np.isnan(v).all(axis=1))) if v.shape[1] else 0
                for m, v in cohort.values.items()
            },
            events=events,
        )

    def _open(self, plan: Plan, head: Head, columns: Columns, arrays: Arrays) -> Session:
        preparation = Preparation.from_arrays(plan, columns, arrays)
        bench = self.scratch.bench(plan, preparation.columns, seed=head.trial.seed)
        if plan.privacy.noise != "none":
            self.private.check(plan, bench.network, width=preparation.width)
        session = Session(
            plan=plan,
            trial=head.trial,
            preparation=preparation,
            network=bench.network,
            whole=bench.whole,
            layout=bench.layout,
            local=bench.local,
        )
        # One session at a time: the memory of a site does not grow with the runs it has seen.
        self.sessions = {head.session: session}
        return session

    def _path(self, session: str) -> Path | None:
        name = hashlib.sha256(session.encode()).hexdigest()[:16]
        return None if self.state is None else self.state / "sessions" / f"{name}.safetensors"

    def _keep(self, request: Open) -> None:
        path = self._path(request.head.session)
        if path is not None:
            facts = {**self._owner(request.head), "columns": dict(request.columns)}
            write_arrays(path, request.arrays, facts, private=True)

    @staticmethod
    def _owner(head: Head) -> dict[str, Any]:
        """Whose a session is: the plan and the trial for which it was opened, and for no other."""
        return {"plan_hash": head.plan_hash, "trial": asdict(head.trial)}

    def _session(self, head: Head) -> Session:
        session = self.sessions.get(head.session)
        if session is not None and session.plan.hash == head.plan_hash and session.trial == head.trial:
            return session
        path = self._path(head.session)
        if path is None or not path.exists():
            raise RemoteProtocolError("this session was never opened here", code="unknown-session")
        arrays, facts = read_arrays(path)
        columns = {m: tuple(c) for m, c in facts.pop("columns").items()}
        if facts != self._owner(head):
            raise RemoteProtocolError("this session belongs to another plan or trial", code="unknown-session")
        return self._open(self.plans[head.plan_hash], head, columns, arrays)

    def _data(self, session: Session, trial: Trial, part: str) -> tuple[Cohort, TrainingSet]:
        cohort = self.source.cohort(session.plan)
        cached = session.cache.get(part)
        if cached is not None and cached[0] is cohort:
            return cached
        rows = self._rows(session.plan, cohort, trial, part)
        data = training_set(session.plan, session.preparation, cohort, rows)
        session.cache[part] = (cohort, data)
        return cohort, data

    def _train(self, request: Train) -> Update:
        head, session = request.head, self._session(request.head)
        session.layout.check(request.parameters)
        plan, private = session.plan, session.plan.privacy.noise != "none"
        check_control(plan, session.layout, request.control)
        if private and (given := self.private.again(request)) is not None:
            return given
        _, data = self._data(session, head.trial, "train")
        kept = self.memories.of(head).at(request.round) if plan.strategy.site_memory else {}
        total, after = train_round(
            plan,
            session.network,
            data,
            session.complete(request.parameters, kept),
            whole=session.whole,
            layout=session.layout,
            control=request.control,
            kept=kept,
            key=f"{session.label}|{self.name}|{request.round}",
            update=self.private.begin(plan, request) if private else local_update,
        )
        if plan.strategy.site_memory:
            self.memories.keep(head, Memory(round=request.round, before=kept, after=after))
        vector = encode_update(total, bound=plan.training.range, max_sites=plan.training.max_sites)
        update = Update(head=head, site=self.name, vector=vector)
        return self.private.done(request, update) if private else update

    def _evaluate(self, request: Evaluate) -> Tables:
        session = self._session(request.head)
        session.layout.check(request.parameters)
        plan, trial, part = session.plan, request.head.trial, request.part
        cohort, data = self._data(session, trial, part)
        kept = self.memories.of(request.head).after if session.local else {}
        everything = session.whole.flatten(session.complete(request.parameters, kept))
        session.network.vector.copy_(torch.from_numpy(everything))
        session.network.eval()
        with torch.no_grad():
            predictions = predict(plan, session.network(data.values, data.seen))
        rows = self._rows(plan, cohort, trial, part)
        vector = tabulate(
            plan,
            predictions,
            {t: v[rows] for t, v in cohort.labels.items()},
            {s: v[rows] for s, v in cohort.subgroups.items()},
            subgroups=request.subgroups,
        )
        cells, counts = sparse(vector)
        return Tables(head=request.head, site=self.name, size=len(vector), cells=cells, counts=counts)
