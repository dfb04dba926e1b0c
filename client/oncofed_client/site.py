"""Every decision that one hospital takes: a message in, a message out. No sockets, no Flower, no clock.

`Site.handle` refuses whatever does not belong to an approved plan, reads consent again for every request, and answers with sums
and counts. What it refuses, it says by a code; the reason with its file and row stays in `Site.journal`, at the site.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from oncofed_client.cohort import Cohort
from oncofed_client.description import PART_CODES, describe
from oncofed_client.locations import harmony_of, keep_locations, kept_locations, own_locations, own_sums
from oncofed_client.memory import Memories, Memory
from oncofed_client.policy import policy_objections
from oncofed_client.private_answers import PrivateTrainer, check_preparation, guard
from oncofed_client.rounds import LocalUpdate, check_control, train_round
from oncofed_client.scratch import Scratch
from oncofed_client.session import Session, training_set
from oncofed_client.settings import Policy
from oncofed_client.source import Source, keep_rows
from oncofed_client.training import TrainingSet, local_update
from oncofed_shared.determinism import one_thread
from oncofed_shared.errors import DataError, OncofedError, PolicyRefusal, RemoteProtocolError
from oncofed_shared.features import (
    REDUCTION,
    Preparation,
    check_columns,
    column_sums,
    network_columns,
    no_sums,
    prepare,
    scaled_input,
)
from oncofed_shared.gene_graph import check_gene_files
from oncofed_shared.harmonise import Locations, check_harmonisation, harmonises
from oncofed_shared.holders import sent_counts
from oncofed_shared.losses import predict
from oncofed_shared.messages import (
    Arrays,
    Columns,
    Contribute,
    Contribution,
    Describe,
    Evaluate,
    Exchange,
    Head,
    Open,
    Ready,
    Reduce,
    Reduced,
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
from oncofed_shared.noised_tables import coarse_counts, placed_grid, score_histogram
from oncofed_shared.plan import ConsortiumPrivacy, NoPrivacy, Plan, SitePrivacy
from oncofed_shared.reduction_sums import Patients, site_sums
from oncofed_shared.ring import encode_update
from oncofed_shared.scoring import sparse, tabulate
from oncofed_shared.storage import read_arrays, write_arrays

if TYPE_CHECKING:
    from oncofed_client.budget import Charge
    from oncofed_client.contributor import Contributor

__all__ = ["Site"]


class Site:
    """One hospital.

    Args:
        source: its patients.
        plans: the plans that its data officer approved, by hash.
        minimum_cohort: fewest patients with whom it takes part.
        policy: what else its data officer allows; without one, everything.
        state: folder for what must outlive this process; without it a session ends with the process.
        noise_seed: makes the noise of private plans repeatable and worthless; only a simulation gives one.
        scratch: makes its networks; sites that answer in turn in one process may have one in common.
        contributor: its keys and its ledger; without one it takes no part in sums over the consortium.

    Attributes:
        journal: problems behind refusals, for the site's own eyes.
    """

    def __init__(
        self,
        source: Source,
        plans: Mapping[str, Plan],
        *,
        minimum_cohort: int,
        policy: Policy | None = None,
        state: Path | None = None,
        noise_seed: int | None = None,
        scratch: Scratch | None = None,
        contributor: Contributor | None = None,
    ) -> None:
        self.contributor = contributor
        self.state = state
        self.scratch = scratch or Scratch()
        self.source = source
        self.plans = plans
        self.minimum_cohort = minimum_cohort
        self.policy = policy
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
                code=self._code(request, error),
                text="the site's own journal has the reason",
            )

    def _code(self, request: Request, error: OncofedError) -> str:
        """What a refusal says. Under a private plan whatever patients' data have caused has one same code (protocol, rule 11)."""
        plan = self.plans.get(request.head.plan_hash)
        private = plan is not None and plan.privacy.noise != "none"
        # An update that leaves the ring's range is noised already, and the run must end.
        noised = isinstance(request, Train) and error.code == "out-of-range"
        caused = (isinstance(error, DataError) and not noised) or error.code == "egress"
        return "data" if private and caused else error.code

    def _answer(self, plan: Plan, request: Request) -> Reply:
        if plan.hash not in self._admitted:
            self.admit(plan, request.head.trial)
            self._admitted.add(plan.hash)
        guard(plan, self.name, request)
        match request:
            case Describe(head=head):
                cohort, split = self.admit(plan, head.trial)
                return describe(plan, head, self.name, cohort, split)
            case Summarise():
                return self._summarise(plan, request)
            case Reduce():
                return self._reduce(plan, request)
            case Open(head=head):
                session = self._made(plan, head, request.columns, request.arrays)
                self._reserve(session, head)
                session.locations = self._locations(plan, head, session.preparation)
                # One session at a time: the memory of a site does not grow with the runs it has seen.
                self.sessions = {head.session: session}
                self._keep(request)
                return Ready(head=head, site=self.name)
            case _:
                return self._worked(plan, request)

    def _summarise(self, plan: Plan, request: Summarise) -> Summary:
        """Sums by which a harmonisation is agreed on, or those of scaling, over the values as they are harmonised."""
        head, columns = request.head, request.columns
        check_columns(plan, columns)
        cohort = self.source.cohort(plan)
        rows = self._rows(plan, cohort, head.trial, "train")
        if harmonises(plan, columns) and not request.arrays:
            return Summary(head=head, site=self.name, sums=own_sums(plan, columns, cohort, rows))
        check_harmonisation(plan, columns, request.arrays)
        locations = own_locations(plan, columns, request.arrays, cohort, rows)
        harmony = harmony_of(request.arrays, locations, cohort, rows)
        values = {m: v[rows] for m, v in cohort.values.items()}
        labels = {t: v[rows] for t, v in cohort.labels.items()}
        sums = column_sums(plan, columns, values, cohort.columns, labels, harmony=harmony)
        return Summary(head=head, site=self.name, sums=sums)

    def _reduce(self, plan: Plan, request: Reduce) -> Reduced:
        """Sums of the plan's reductions, over the columns as they are scaled."""
        preparation = Preparation.from_arrays(plan, request.columns, request.arrays, reduced=False)
        cohort, head = self.source.cohort(plan), request.head
        rows = self._rows(plan, cohort, head.trial, "train")
        values = {m: v[rows] for m, v in cohort.values.items()}
        fixed = preparation.harmonisation
        harmony = harmony_of(fixed, own_locations(plan, preparation.columns, fixed, cohort, rows), cohort, rows)
        scaled, seen = scaled_input(plan, preparation, values, cohort.columns, harmony)
        labels = {t: v[rows] for t, v in cohort.labels.items()}
        agreed = {n.removeprefix(REDUCTION): a for n, a in request.arrays.items() if n.startswith(REDUCTION)}
        patients = Patients(values=scaled, seen=seen, labels=labels)
        sums = site_sums(plan, preparation, agreed, request.number, patients)
        return Reduced(head=head, site=self.name, sums=sums)

    def _worked(self, plan: Plan, request: Train | Evaluate | Exchange | Contribute) -> Reply:
        """What needs an open session, or the keys of one."""
        match request:
            case Train():
                return self._train(request)
            case Evaluate():
                return self._evaluate(request)
            case Exchange():
                return self._shares(plan).exchange(plan, request)
            case Contribute(kind="statistics"):
                return self._contribute_statistics(plan, request)
            case Contribute():
                return self._contribute(request)

    def _shares(self, plan: Plan) -> Contributor:
        """What this site takes part in secure sums with.

        Raises:
            PolicyRefusal: the plan has none, or the site keeps no ledger.
        """
        if self.contributor is None or not isinstance(plan.privacy, ConsortiumPrivacy):
            raise PolicyRefusal("the plan has no secure sums, or this site keeps no ledger", code="no-ledger")
        return self.contributor

    def _rows(self, plan: Plan, cohort: Cohort, trial: Trial, part: str) -> NDArray[np.bool_]:
        if part == "all":
            return np.ones(len(cohort.patients), dtype=bool)
        return np.equal(self.source.split(plan, cohort, trial), PART_CODES[part])

    def admit(self, plan: Plan, trial: Trial) -> tuple[Cohort, NDArray[np.int64]]:
        """The cohort and its parts, if the site's policy lets it take part.

        Raises:
            PolicyRefusal: no consent, or fewer patients than the policy asks for.
            DataError: the files are wrong.
        """
        check_gene_files(plan)
        objections = policy_objections(plan, self.policy) if self.policy is not None else ()
        if objections:
            raise PolicyRefusal(*objections, code="policy")
        cohort = self.source.cohort(plan)
        if len(cohort.patients) < self.minimum_cohort and not self._approved(plan, trial):
            raise PolicyRefusal(
                f"{len(cohort.patients)} patients can take part; the site's policy asks for at least "
                f"{self.minimum_cohort}",
                code="cohort-too-small",
            )
        return cohort, self.source.split(plan, cohort, trial)

    def _approved(self, plan: Plan, trial: Trial) -> bool:
        """Whether the minimum was decided before a restart: who withdraws later changes the sample, never the participation."""
        return self.contributor is not None and self.contributor.has_approved(plan, trial)

    def end(self, head: Head) -> None:
        """A session is over and none of its answers will be asked for again: its keys and stored replies are deleted."""
        plan = self.plans.get(head.plan_hash)
        if plan is not None and self.contributor is not None:
            self.contributor.end(plan, head.trial, head.session)

    def _made(self, plan: Plan, head: Head, columns: Columns, arrays: Arrays) -> Session:
        preparation = Preparation.from_arrays(plan, columns, arrays)
        check_preparation(plan, preparation)
        read = network_columns(plan, preparation)
        bench = self.scratch.bench(plan, read, seed=head.trial.seed)
        if plan.privacy.noise != "none":
            self.private.check(plan, bench.network, width=sum(len(c) for c in read.values()))
        return Session(
            plan=plan,
            trial=head.trial,
            preparation=preparation,
            network=bench.network,
            whole=bench.whole,
            layout=bench.layout,
            local=bench.local,
        )

    def _locations(self, plan: Plan, head: Head, preparation: Preparation) -> Locations | None:
        """This site's own location and scale: found when a run is opened, and kept for predictions with its model."""
        if not preparation.harmonisation:
            return None
        cohort = self.source.cohort(plan)
        rows = self._rows(plan, cohort, head.trial, "train")
        if isinstance(plan.privacy, ConsortiumPrivacy) and self.name in plan.privacy.patients:
            # Its own stored reply is what a private run's location is kept in; the file is for predictions.
            noised = self._noised_locations(plan, head, preparation, cohort, rows)
            if self.state is not None:
                keep_locations(self.state, plan, preparation, noised)
            return noised
        known = kept_locations(self.state, plan, preparation)
        if known is not None:
            return known
        made = own_locations(plan, preparation.columns, preparation.harmonisation, cohort, rows)
        if self.state is not None and made is not None:
            keep_locations(self.state, plan, preparation, made)
        return made

    def _noised_locations(
        self, plan: Plan, head: Head, preparation: Preparation, cohort: Cohort, rows: NDArray[np.bool_]
    ) -> Locations:
        """This site's own location under a budget: noised, charged and stored once per run, whatever is asked how often."""
        from oncofed_client.noised_location import noised_location  # noqa: PLC0415 - accountants take seconds to import

        columns, chosen = preparation.columns, keep_rows(cohort, rows)
        return noised_location(self._shares(plan), plan, head, columns, chosen)

    def _reserve(self, session: Session, head: Head) -> None:
        """Let the ledger reserve the whole run, before anything of it is computed."""
        plan = session.plan
        if isinstance(plan.privacy, NoPrivacy) or self.name not in plan.privacy.patients:
            return
        if self.contributor is None and isinstance(plan.privacy, SitePrivacy):
            # A comparison within a simulation: its patients' accounts do not pay for it.
            return
        contributor = self.contributor or self._shares(plan)
        from oncofed_shared.charged_reductions import all_columns  # noqa: PLC0415 - as below

        columns = all_columns(plan, session.preparation.columns)
        contributor.approve(plan, head, self._charges(plan, columns, session.whole.size))

    def _charges(self, plan: Plan, columns: Columns, parameters: int) -> tuple[Charge, ...]:
        from oncofed_client.plan_charges import plan_charges  # noqa: PLC0415 - accountants take seconds to import

        return plan_charges(plan, self.name, parameters=parameters, columns=columns)

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
        session = self._made(self.plans[head.plan_hash], head, columns, arrays)
        session.locations = self._locations(session.plan, head, session.preparation)
        self.sessions = {head.session: session}
        return session

    def _data(self, session: Session, trial: Trial, part: str) -> tuple[Cohort, TrainingSet]:
        cohort = self.source.cohort(session.plan)
        cached = session.cache.get(part)
        if cached is not None and cached[0] is cohort:
            return cached
        rows = self._rows(session.plan, cohort, trial, part)
        data = training_set(session.plan, session.preparation, cohort, rows, session.locations)
        session.cache[part] = (cohort, data)
        return cohort, data

    def _train(self, request: Train) -> Update:
        session = self._session(request.head)
        session.layout.check(request.parameters)
        plan = session.plan
        check_control(plan, session.layout, request.control)
        if plan.privacy.noise == "none":
            vector = self._trained(session, request, local_update)
        elif self.contributor is None:
            vector = self.private.once(plan, request, partial(self._trained, session, request))
        else:
            vector = self.private.charged(
                plan, request, partial(self._trained, session, request), contributor=self.contributor
            )
        return Update(head=request.head, site=self.name, vector=vector)

    def _trained(self, session: Session, request: Train, update: LocalUpdate) -> NDArray[np.uint64]:
        """Ring elements of a round: this site's own training, as the plan's rule and privacy want it."""
        head, plan = request.head, session.plan
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
            update=update,
        )
        if plan.strategy.site_memory:
            self.memories.keep(head, Memory(round=request.round, before=kept, after=after))
        return encode_update(
            total, bound=plan.training.range, max_sites=plan.training.max_sites, counts=sent_counts(plan)
        )

    def _contribute(self, request: Contribute) -> Contribution:
        from oncofed_client.shares import check_histogram, scores_share, training_share  # noqa: PLC0415 - as above

        head, session = request.head, self._session(request.head)
        session.layout.check(request.parameters)
        plan = session.plan
        contributor = self._shares(plan)
        check_histogram(plan, request)
        if request.kind == "train":
            if not 1 <= request.round <= plan.training.rounds:
                raise RemoteProtocolError("this round is not the plan's", code="round-is-over")
            _, data = self._data(session, head.trial, "train")
            planned = training_share(plan, session.network, session.whole, data, request.parameters)
        elif request.kind == "histogram":
            predictions, _, _ = self._predicted(session, head, request.parameters, "validation")
            planned = scores_share(plan, "validation", score_histogram(plan, predictions))
        else:
            predictions, labels, _ = self._predicted(session, head, request.parameters, "test")
            grid = placed_grid(plan, request.histogram)
            planned = scores_share(plan, "test", coarse_counts(plan, predictions, labels, grid))
        return contributor.contribute(
            plan,
            request,
            columns=session.preparation.columns,
            statistics=session.preparation.bound,
            size=planned.size,
            charge=planned.charge,
            largest=planned.largest,
            share=planned.share,
        )

    def _contribute_statistics(self, plan: Plan, request: Contribute) -> Contribution:
        """Statistics of training patients, noised and charged: before there is a session, and after the run is reserved."""
        from oncofed_client.shares import check_histogram, statistics_share  # noqa: PLC0415 - as above
        from oncofed_shared.charged_reductions import read_columns  # noqa: PLC0415
        from oncofed_shared.charged_statistics import charges_statistics  # noqa: PLC0415

        head, contributor = request.head, self._shares(plan)
        if not charges_statistics(plan) or request.parameters or request.round:
            raise PolicyRefusal("the plan charges no statistics of patients", code="uncharged-statistics")
        check_columns(plan, request.columns)
        check_histogram(plan, request)
        whole = self.scratch.bench(plan, read_columns(plan, request.columns), seed=head.trial.seed).whole
        contributor.approve(plan, head, self._charges(plan, request.columns, whole.size))
        cohort = self.source.cohort(plan)
        rows = self._rows(plan, cohort, head.trial, "train")
        constants = prepare(plan, request.columns, no_sums(plan, request.columns))
        locations = self._locations(plan, head, constants)
        harmony = harmony_of(constants.harmonisation, locations, cohort, rows)
        planned = statistics_share(plan, request.columns, keep_rows(cohort, rows), harmony)
        return contributor.contribute(
            plan,
            request,
            columns=request.columns,
            statistics=np.zeros(0),
            size=planned.size,
            charge=planned.charge,
            largest=planned.largest,
            share=planned.share,
        )

    def _predicted(
        self, session: Session, head: Head, parameters: Arrays, part: str
    ) -> tuple[dict[str, NDArray[np.float64]], dict[str, NDArray[Any]], dict[str, NDArray[np.int64]]]:
        """Predictions, labels and subgroups of the patients of a part."""
        plan = session.plan
        cohort, data = self._data(session, head.trial, part)
        kept = self.memories.of(head).after if session.local else {}
        everything = session.whole.flatten(session.complete(parameters, kept))
        session.network.vector.copy_(torch.from_numpy(everything))
        session.network.eval()
        with torch.no_grad():
            predictions = predict(plan, session.network(data.values, data.seen))
        rows = self._rows(plan, cohort, head.trial, part)
        labels = {t: v[rows] for t, v in cohort.labels.items()}
        return predictions, labels, {s: v[rows] for s, v in cohort.subgroups.items()}

    def tabulated(self, head: Head, parameters: Arrays, *, part: str, subgroups: bool) -> NDArray[np.float64]:
        """Exact tables over a part of this site's patients, for the site's own eyes: no message of a private plan has them."""
        session = self._session(head)
        session.layout.check(parameters)
        with one_thread():
            predictions, labels, members = self._predicted(session, head, parameters, part)
        return tabulate(session.plan, predictions, labels, members, subgroups=subgroups)

    def _evaluate(self, request: Evaluate) -> Tables:
        vector = self.tabulated(request.head, request.parameters, part=request.part, subgroups=request.subgroups)
        cells, counts = sparse(vector)
        return Tables(head=request.head, site=self.name, size=len(vector), cells=cells, counts=counts)
