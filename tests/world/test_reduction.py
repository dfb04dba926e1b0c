"""Reductions from a plan to a model: sites together fix what pooled patients do, and only sums leave a site."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.linear_model import Lasso

from oncofed_client.check import check_study
from oncofed_client.private_answers import guard
from oncofed_client.settings import load_settings
from oncofed_server.aggregator import Aggregator
from oncofed_server.run_state import Phase, Received, Roster, Start
from oncofed_shared.errors import ConfigError, PolicyRefusal, RemoteProtocolError
from oncofed_shared.features import Preparation, column_sums, network_columns, prepare, prepared_input, scaled_input
from oncofed_shared.group_lasso import grouped
from oncofed_shared.messages import Describe, Head, Open, Reduce, Reduced, Refusal, Reply, Trial, from_bytes, to_bytes
from oncofed_shared.moments import PATH
from oncofed_shared.plan import NoPrivacy, Plan, parse
from oncofed_shared.releases import uncharged
from oncofed_shared.relieff import class_sums, class_weights, response_sums, response_weights
from oncofed_simulations.__main__ import main
from oncofed_simulations.consortium import Consortium, Run, open_site
from oncofed_simulations.pooled import PooledSource

Values = NDArray[np.float64]
MakePlan = Callable[..., Plan]
MakeConsortium = Callable[..., Consortium]
TRIAL = Trial(seed=3)
REDUCTIONS: dict[str, dict[str, Any]] = {
    "pca": {"kind": "pca", "components": 3},
    "whitened pca": {"kind": "pca", "components": 3, "whiten": True},
    "lasso": {"kind": "lasso", "keep": 4},
    "lasso against radiomics": {"kind": "lasso", "keep": 4, "against": "shape"},
    "autoencoder": {"kind": "autoencoder", "components": 3, "hidden": 6, "rounds": 12},
    "linear autoencoder": {"kind": "autoencoder", "components": 2, "hidden": 0, "rounds": 5},
    "group lasso": {"kind": "group_lasso", "strength": 2.5},
    "relieff": {"kind": "relieff", "keep": 5, "neighbours": 4},
    "relieff against radiomics": {"kind": "relieff", "keep": 5, "against": "shape"},
}
EXACT = [n for n in REDUCTIONS if not n.startswith("relieff")]
MAIN = ("survival", "response")


def plan_of(make_plan: MakePlan, reduction: dict[str, Any], main: str = "survival", **more: Any) -> Plan:
    changes = {"modalities__mutations__reduction": reduction, "main_task": main, "training__dtype": "float64"}
    return make_plan(**changes | more)


def final(run: Run) -> tuple[Preparation, Values]:
    state = run.state
    assert state.phase is Phase.DONE
    assert state.preparation is not None
    assert state.server is not None
    return state.preparation, state.server.parameters


class Merged:
    """All sites' training patients in one place, scaled as the consortium scales them."""

    def __init__(self, plan: Plan, consortium: Consortium) -> None:
        source = PooledSource([s.source for s in consortium.sites.values()])
        cohort = source.cohort(plan)
        train = source.split(plan, cohort, TRIAL) == 0
        values = {m: v[train] for m, v in cohort.values.items()}
        self.labels = {t: v[train] for t, v in cohort.labels.items()}
        sums = column_sums(plan, cohort.columns, values, cohort.columns, self.labels)
        self.columns = cohort.columns
        table, seen = scaled_input(plan, prepare(plan, cohort.columns, sums), values, cohort.columns)
        start, self.table, self.seen = 0, {}, {}
        for name in sorted(cohort.columns):
            part = slice(start, start + len(cohort.columns[name]))
            self.table[name], self.seen[name], start = table[:, part], seen[:, part], part.stop
        site = np.repeat(
            np.arange(len(consortium.sites)), [len(s.source.cohort(plan).patients) for s in consortium.sites.values()]
        )
        self.site = site[train]

    def has(self, name: str) -> NDArray[np.bool_]:
        return np.asarray(self.seen[name].any(axis=1), dtype=bool)

    def residuals(self, plan: Plan) -> tuple[Values, NDArray[np.bool_]]:
        """Events less what the common hazards expect, interval by interval, from days and events alone."""
        task: Any = plan.tasks["survival"]
        at_risk, happened = [], []
        for days, event in self.labels["survival"]:
            bounds = list(zip(task.edges, task.edges[1:], strict=False))
            died = [bool(event == 1 and a < days <= b) or bool(event == 1 and days == 0 and a == 0) for a, b in bounds]
            lived = [days > b if event == 1 else days >= (a + b) / 2 for a, b in bounds]
            at_risk.append([d or bool(v) for d, v in zip(died, lived, strict=True)])
            happened.append(died)
        risk, events = np.array(at_risk, dtype=float), np.array(happened, dtype=float)
        rows = self.has("mutations")
        hazards = events[rows].sum(axis=0) / np.maximum(risk[rows].sum(axis=0), 1)
        self.hazards = hazards
        return events.sum(axis=1) - risk @ hazards, np.asarray(risk.any(axis=1), dtype=bool)


# Components and codes look at no task.
@pytest.mark.parametrize(
    ("name", "main"), [(n, "survival") for n in EXACT] + [("lasso", "response"), ("group lasso", "response")]
)
def test_a_federation_fixes_and_trains_what_pooled_patients_do(
    make_plan: MakePlan, make_consortium: MakeConsortium, tmp_path: Path, name: str, main: str
) -> None:
    plan = plan_of(make_plan, REDUCTIONS[name], main)
    consortium = make_consortium(plan, tmp_path)
    (one, federated), (two, pooled) = (final(run(TRIAL)) for run in (consortium.federated, consortium.pooled))
    assert one.columns == two.columns
    assert one.reduction.keys() == two.reduction.keys()
    for key, array in one.reduction.items():
        np.testing.assert_allclose(array, two.reduction[key], atol=1e-6)
    np.testing.assert_allclose(federated, pooled, atol=1e-6)


def test_components_are_scikit_learns_over_the_merged_patients(
    make_plan: MakePlan, make_consortium: MakeConsortium, tmp_path: Path
) -> None:
    plan = plan_of(make_plan, REDUCTIONS["whitened pca"])
    consortium = make_consortium(plan, tmp_path)
    preparation, _ = final(consortium.federated(TRIAL))
    merged = Merged(plan, consortium)
    table = merged.table["mutations"][merged.has("mutations")]
    pooled = PCA(3, svd_solver="full").fit(table)
    found = (
        preparation.reduction["mutations.map"].reshape(3, -1)
        * np.sqrt(pooled.explained_variance_ * (len(table) - 1) / len(table))[:, None]
    )
    signs = np.sign((found * pooled.components_).sum(axis=1))
    np.testing.assert_allclose(found * signs[:, None], pooled.components_, atol=1e-6)
    assert network_columns(plan, preparation)["mutations"] == ("component_1", "component_2", "component_3")


@pytest.mark.parametrize("main", MAIN)
def test_a_lasso_keeps_scikit_learns_columns_over_the_merged_patients(
    make_plan: MakePlan, make_consortium: MakeConsortium, tmp_path: Path, main: str
) -> None:
    plan = plan_of(make_plan, REDUCTIONS["lasso"], main)
    consortium = make_consortium(plan, tmp_path)
    preparation, _ = final(consortium.federated(TRIAL))
    merged = Merged(plan, consortium)
    if main == "survival":
        wanted, known = merged.residuals(plan)
    else:
        wanted, known = merged.labels["response"].astype(float), merged.labels["response"] >= 0
    rows = merged.has("mutations") & known
    table, wanted = merged.table["mutations"][rows], wanted[rows]
    largest = np.abs((table - table.mean(axis=0)).T @ (wanted - wanted.mean())).max() / len(table)
    for share in PATH:
        weights = Lasso(alpha=largest * share, tol=1e-12, max_iter=1_000_000).fit(table, wanted).coef_
        if np.count_nonzero(weights) >= 4:
            break
    best = np.sort(np.argsort(-np.abs(weights), kind="stable")[:4])
    assert preparation.columns["mutations"] == tuple(merged.columns["mutations"][i] for i in best)


@pytest.mark.parametrize("main", MAIN)
@pytest.mark.parametrize("name", ["relieff", "relieff against radiomics"])
def test_relieff_keeps_the_columns_of_all_patients_each_among_his_own_hospital(
    make_plan: MakePlan, make_consortium: MakeConsortium, tmp_path: Path, name: str, main: str
) -> None:
    settings = REDUCTIONS[name]
    plan = plan_of(make_plan, settings, main)
    consortium = make_consortium(plan, tmp_path)
    preparation, _ = final(consortium.federated(TRIAL))
    merged, neighbours = Merged(plan, consortium), settings.get("neighbours", 10)
    table, rows = merged.table["mutations"] / 10, merged.has("mutations")
    label = merged.labels["response"]
    residuals, known = merged.residuals(plan)
    by_class = main == "response" and "against" not in settings
    if by_class:
        rows &= label >= 0
    elif "against" in settings:
        rows &= merged.has("shape")
        responses = merged.table["shape"] / 10
    else:
        rows &= known
        responses = residuals[:, None] / (1 + merged.hazards.sum())
    total: Values | float = 0.0
    for site in range(4):
        own = rows & (merged.site == site)
        if by_class:
            total = total + class_sums(table[own], label[own], 2, neighbours)
        else:
            total = total + response_sums(table[own], responses[own], neighbours)
    assert isinstance(total, np.ndarray)
    weights = class_weights(total, np.bincount(label[rows]).astype(float)) if by_class else response_weights(total)
    best = np.sort(np.argsort(-weights, kind="stable")[:5])
    assert preparation.columns["mutations"] == tuple(merged.columns["mutations"][i] for i in best)


def test_a_group_lasso_that_is_strong_takes_columns_out_whole_and_one_that_is_weak_does_not(
    make_plan: MakePlan, make_consortium: MakeConsortium, tmp_path: Path
) -> None:
    zeros = {}
    for strength in (0.0, 2.5, 200.0):
        plan = plan_of(make_plan, {"kind": "group_lasso", "strength": strength})
        consortium = make_consortium(plan, tmp_path / str(strength))
        run = consortium.federated(TRIAL)
        nobody = Roster(trainers=(), evaluators=())
        linear = Aggregator(plan, nobody, TRIAL, session="", state=run.state).parameters()["linear.weight"]
        preparation, _ = final(run)
        columns = [c for m in sorted(preparation.columns) for c in preparation.columns[m]]
        zeros[strength] = {c for c, w in zip(columns, linear.T, strict=True) if not w.any()}
        genes = set(preparation.columns["mutations"])
    assert zeros[0.0] == set()
    assert set() < zeros[2.5] < genes
    assert zeros[200.0] == genes


def test_a_patient_without_the_modality_has_no_component_and_a_gap_counts_as_the_mean(make_plan: MakePlan) -> None:
    plan = plan_of(make_plan, REDUCTIONS["pca"])
    columns = {"clinical": ("age", "sex=female", "sex=male", "stage"), "mutations": ("A_mut", "B_mut"), "shape": ()}
    ones = np.ones(6)
    preparation = Preparation(
        columns=columns,
        center=0 * ones,
        spread=ones,
        fill=ones,
        class_weights={"response": np.ones(2)},
        reduction={"mutations.mean": np.array([0.5, 0.0]), "mutations.map": np.array([2.0, 1.0])},
    )
    genes = np.array([[1.0, 3.0], [np.nan, 3.0], [np.nan, np.nan]])
    values = {"clinical": np.ones((3, 4)), "mutations": genes, "shape": np.empty((3, 0))}
    made, seen = prepared_input(plan, preparation, values, columns)
    assert made[:, 4].tolist() == [0.5 * 2 + 3, -0.5 * 2 + 3, 0]
    assert seen[:, 4].tolist() == [True, True, False]


class Site:
    """The aggregator's half of a conversation with one site."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.site, self.plan = open_site(folder, plan, state=None, minimum=None), plan

    def head(self) -> Head:
        return Head(session="s", step=1, attempt=0, plan_hash=self.plan.hash, trial=TRIAL)

    def ask(self, request: Any) -> Any:
        return from_bytes(to_bytes(self.site.handle(from_bytes(to_bytes(request)))))  # type: ignore[arg-type]

    def prepared(self) -> Preparation:
        cohort = self.site.source.cohort(self.plan)
        return prepare(
            self.plan,
            cohort.columns,
            column_sums(self.plan, cohort.columns, cohort.values, cohort.columns, cohort.labels),
        )

    def reduce(self, number: int = 0, **arrays: NDArray[Any]) -> Any:
        own = self.prepared()
        agreed = {f"reduction.{n}": a for n, a in arrays.items()}
        return self.ask(Reduce(head=self.head(), number=number, columns=own.columns, arrays=own.arrays() | agreed))


def refused(reply: Any, code: str) -> None:
    assert isinstance(reply, Refusal), reply
    assert reply.code == code


def test_a_site_answers_the_plan_s_exchanges_and_no_other(make_plan: MakePlan, hospitals: Path) -> None:
    site = Site(plan_of(make_plan, REDUCTIONS["lasso"]), hospitals / "site-1")
    assert isinstance(site.reduce(), Reduced)
    assert isinstance(site.reduce(1, **{"mutations.hazards": np.full(4, 0.1)}), Reduced)
    for number in (-1, 2, 10**9):
        refused(site.reduce(number), "protocol")
    for hazards in (np.full(3, 0.1), np.full(4, np.nan), np.zeros((4, 1)), np.full(4, 0.1, np.float32)):
        refused(site.reduce(1, **{"mutations.hazards": hazards}), "protocol")
    refused(site.reduce(1), "protocol")
    refused(Site(make_plan(), hospitals / "site-1").reduce(), "protocol")


@pytest.mark.parametrize("arrays", [{}, {"mean": np.zeros(2)}, {"mean": np.zeros(20), "map": np.zeros(7)}])
def test_a_site_opens_no_session_with_components_that_do_not_fit(
    make_plan: MakePlan, hospitals: Path, arrays: dict[str, Values]
) -> None:
    site = Site(plan_of(make_plan, REDUCTIONS["pca"]), hospitals / "site-1")
    own = site.prepared()
    sent = own.arrays() | {f"reduction.mutations.{n}": a for n, a in arrays.items()}
    refused(site.ask(Open(head=site.head(), columns=own.columns, arrays=sent)), "protocol")


PRIVATE: dict[str, Any] = {
    "study": {"name": "private", "purpose": "see that nobody is seen"},
    "tasks": {"r": {"kind": "classification", "label": "r", "classes": ["no", "yes"]}},
    "modalities": {
        "genes": {"scaling": "minmax", "range": [0, 4], "patterns": ["g*"]},
        "shape": {"scaling": "minmax", "range": [0, 4], "patterns": ["s*"]},
    },
    "training": {"rounds": 3},
    "evaluation": {"split": {"train": 0.8, "validation": 0.0, "test": 0.2}},
    "privacy": {
        "noise": "site", "epsilon": 3, "delta": 1e-5, "clip_norm": 1, "sampling_rate": 0.5, "patients": {"alpha": 60},
    },
}  # fmt: skip


def private(reduction: dict[str, Any]) -> Plan:
    content = copy.deepcopy(PRIVATE)
    content["modalities"]["genes"]["reduction"] = reduction
    return parse(content)


@pytest.mark.parametrize("name", [n for n in REDUCTIONS if n != "group lasso"])
def test_a_private_plan_has_no_reduction_whose_sums_are_not_charged(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        private(REDUCTIONS[name])
    (found,) = caught.value.problems
    assert found.startswith(f"study: modalities.genes.reduction.kind: '{REDUCTIONS[name]['kind']}' ")
    why = {"relieff": "compares near patients", "autoencoder": "is a training of its own"}
    assert why.get(REDUCTIONS[name]["kind"], "releases sums over patients") in found


def test_a_private_plan_may_have_a_group_lasso_and_a_site_then_answers_no_exchange() -> None:
    plan = private(REDUCTIONS["group lasso"])
    assert grouped(plan)
    head = Head(session="s", step=1, attempt=0, plan_hash=plan.hash, trial=TRIAL)
    with pytest.raises(PolicyRefusal, match="no statistics of patients"):
        guard(plan, "alpha", Reduce(head=head, number=0, columns={}, arrays={}))


@pytest.mark.parametrize("name", REDUCTIONS)
def test_what_a_reduction_releases_is_named(make_plan: MakePlan, name: str) -> None:
    plan = plan_of(make_plan, REDUCTIONS[name])
    assert isinstance(plan.privacy, NoPrivacy)
    named = [line for line in uncharged(plan) if "(reduction of mutations)" in line]
    assert len(named) == (name != "group lasso")


@pytest.mark.parametrize(
    ("reduction", "more", "message"),
    [
        (
            {"kind": "lasso", "keep": 2, "against": "nobody"},
            {},
            "modalities.mutations.reduction.against: names no other",
        ),
        (
            {"kind": "lasso", "keep": 2, "against": "mutations"},
            {},
            "modalities.mutations.reduction.against: names no other",
        ),
        ({"kind": "pca"}, {}, "modalities.mutations.reduction.components: is missing"),
        ({"kind": "umap", "components": 2}, {}, "modalities.mutations.reduction: "),
        (REDUCTIONS["group lasso"], {"strategy__name": "fedadam"}, "reduction.kind: 'group_lasso' needs strategy.name"),
        (
            REDUCTIONS["group lasso"],
            {"training__local_steps": 2},
            "reduction.kind: 'group_lasso' needs training.optimiser",
        ),
        (REDUCTIONS["group lasso"], {"training__optimiser": "adam"}, "'group_lasso' needs training.optimiser = 'sgd'"),
    ],
)
def test_a_reduction_that_cannot_be_is_a_mistake_in_the_plan(
    make_plan: MakePlan, reduction: dict[str, Any], more: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_of(make_plan, reduction, **more)


def test_a_plan_without_reductions_keeps_its_hash(make_plan: MakePlan) -> None:
    assert [w for w in (b"reduction", b"graph", b"pathways") if w in make_plan().canonical] == []


# -- the aggregator's door --------------------------------------------------------------------------------------------------------

Spoil = Callable[[Reply], Reply]


def run_with(plan: Plan, hospitals: Path, spoil: Spoil) -> Aggregator:
    """A run in which `site-2` answers `Reduce` as it likes."""
    sites = {n: Site(plan, hospitals / n) for n in ("site-1", "site-2", "site-3")}
    names = tuple(sites)
    aggregator = Aggregator(plan, Roster(trainers=names, evaluators=names), TRIAL, session="s")
    queue = aggregator.step(Start(now=0.0))
    while queue:
        outgoing = queue.pop(0)
        reply = sites[outgoing.site].ask(outgoing.request)
        if isinstance(outgoing.request, Reduce) and outgoing.site == "site-2":
            reply = spoil(reply)
        queue += aggregator.step(Received(now=0.0, reply=reply))
    return aggregator


@pytest.mark.parametrize("name", ["pca", "relieff", "autoencoder"])
def test_a_site_with_broken_sums_leaves_and_the_others_agree_anew(
    make_plan: MakePlan, hospitals: Path, name: str
) -> None:
    plan = plan_of(make_plan, REDUCTIONS[name])

    def cut(reply: Reply) -> Reply:
        assert isinstance(reply, Reduced)
        return replace(reply, sums=reply.sums[:-1])

    def spoilt(reply: Reply) -> Reply:
        assert isinstance(reply, Reduced)
        return replace(reply, sums=reply.sums * np.nan)

    honest = run_with(plan, hospitals, lambda r: r)
    assert honest.state.phase is Phase.DONE
    assert not honest.state.excluded
    for spoil in (cut, spoilt):
        aggregator = run_with(plan, hospitals, spoil)
        assert aggregator.state.phase is Phase.DONE
        assert set(aggregator.state.excluded) == {"site-2"}
        # What is fixed is what the two would have fixed without the third.
        sites = {n: Site(plan, hospitals / n) for n in ("site-1", "site-3")}
        alone = Aggregator(plan, Roster(trainers=tuple(sites), evaluators=tuple(sites)), TRIAL, session="s")
        queue = alone.step(Start(now=0.0))
        while queue:
            outgoing = queue.pop(0)
            queue += alone.step(Received(now=0.0, reply=sites[outgoing.site].ask(outgoing.request)))
        one, two = alone.state.preparation, aggregator.state.preparation
        assert one is not None
        assert two is not None
        assert one.columns == two.columns
        assert all(np.array_equal(one.reduction[k], two.reduction[k]) for k in one.reduction)


def test_a_reduction_that_leaves_nothing_ends_the_run_with_the_reason(make_plan: MakePlan, hospitals: Path) -> None:
    """Nobody has the modality that columns are to go with: none is kept, and there is no other modality."""
    genes = {
        "table": "mutations",
        "patterns": ["{gene}_mut"],
        "reduction": {"kind": "lasso", "keep": 2, "against": "none"},
    }
    plan = make_plan(modalities={"mutations": genes, "none": {"table": "mutations", "patterns": ["nothing_*"]}})
    aggregator = run_with(plan, hospitals, lambda r: r)
    assert aggregator.state.phase is Phase.FAILED
    assert "leave nothing for the network to read" in aggregator.state.why


# -- from the command line --------------------------------------------------------------------------------------------------------


def by_command(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int | str | None:
    monkeypatch.setattr("sys.argv", ["oncofed-simulate", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    return caught.value.code


@pytest.mark.parametrize("name", ["relieff", "group lasso"])
def test_the_command_trains_a_study_with_each_reduction(
    make_plan: MakePlan, hospitals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    content = plan_of(make_plan, REDUCTIONS[name], training__rounds=1).model_dump(mode="json", exclude_none=True)
    study = tmp_path / "study.toml"
    study.write_text(tomli_w.dumps(content))
    out = tmp_path / "out"
    assert by_command(["run", str(study), "--sites", str(hospitals), "--out", str(out)], monkeypatch) == 0
    result = json.loads((out / "result.json").read_text())
    assert any("(reduction of mutations)" in line for line in result["uncharged"]) == (name != "group lasso")
    assert "federated" in result["tasks"]["survival"]["c_index"]


EDGES = b"TP53\tPTEN\nPTEN\tRB1\nRB1\tTP53\nKRAS\tBRAF\n"
SETS = b"ONE\tx\tTP53\tPTEN\tRB1\nTWO\tx\tKRAS\tBRAF\tEGFR\n"


def gene_study(make_plan: MakePlan, folder: Path, encoder: str, **graph: Any) -> Plan:
    def named(file: str, content: bytes, **more: Any) -> dict[str, Any]:
        return {"file": file, "sha256": hashlib.sha256(content).hexdigest(), **more}

    genes: dict[str, Any] = {"patterns": ["{gene}_mut", "{gene}_cnv"], "encoder": encoder}
    if encoder == "graph":
        genes["graph"] = named("graph.txt", EDGES, **graph)
    genes["pathways"] = named("sets.gmt", SETS, smallest=2)
    return make_plan(modalities__mutations=genes, simulation={"files": str(folder)}, training__dtype="float64")


@pytest.mark.parametrize("encoder", ["graph", "attention", "pathways"])
def test_a_federation_along_a_graph_is_pooled_training_and_reads_two_tables(
    make_plan: MakePlan, make_consortium: MakeConsortium, tmp_path: Path, encoder: str
) -> None:
    (tmp_path / "graph.txt").write_bytes(EDGES)
    (tmp_path / "sets.gmt").write_bytes(SETS)
    more = {"kind": "attention"} if encoder == "attention" else {}
    plan = gene_study(make_plan, tmp_path, "pathways" if encoder == "pathways" else "graph", **more)
    consortium = make_consortium(plan, tmp_path / "store")
    (one, federated), (_, pooled) = (final(run(TRIAL)) for run in (consortium.federated, consortium.pooled))
    assert {"TP53_mut", "TP53_cnv"} <= set(one.columns["mutations"])
    np.testing.assert_allclose(federated, pooled, atol=1e-6)


@pytest.mark.parametrize("found", [None, b"TP53\tKRAS\n"])
def test_a_site_without_the_plan_s_graph_answers_nothing(
    make_plan: MakePlan, hospitals: Path, tmp_path: Path, found: bytes | None
) -> None:
    (tmp_path / "sets.gmt").write_bytes(SETS)
    if found is not None:
        (tmp_path / "graph.txt").write_bytes(found)
    plan = gene_study(make_plan, tmp_path, "graph")
    folder = hospitals / "site-1"
    report = check_study(folder, load_settings(folder), plan)
    assert any("graph.txt" in line for line in report.problems)
    assert report.why_not
    site = Site(plan, folder)
    refused(site.ask(Describe(head=site.head())), "gene-file")
    assert "graph.txt" in site.site.journal[0]
    (tmp_path / "graph.txt").write_bytes(EDGES)
    assert not isinstance(site.ask(Describe(head=site.head())), Refusal)
    assert not check_study(folder, load_settings(folder), plan).problems


def test_a_preparation_survives_its_arrays(
    make_plan: MakePlan, make_consortium: MakeConsortium, tmp_path: Path
) -> None:
    plan = plan_of(make_plan, REDUCTIONS["autoencoder"])
    preparation, _ = final(make_consortium(plan, tmp_path).federated(TRIAL))
    again = Preparation.from_arrays(plan, preparation.columns, preparation.arrays())
    assert network_columns(plan, again) == network_columns(plan, preparation)
    spoilt = preparation.arrays() | {"reduction.mutations.spread": np.zeros(3)}
    with pytest.raises(RemoteProtocolError, match="reduction of modality mutations does not fit"):
        Preparation.from_arrays(plan, preparation.columns, spoilt)
