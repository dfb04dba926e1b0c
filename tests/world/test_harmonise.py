"""Harmonisation from a plan to predictions: hospitals together fix what pooled patients do, and keep what is their own."""

from __future__ import annotations

import csv
import io
import itertools
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tomli_w
from neuroCombat import neuroCombat as library
from neuroCombat.neuroCombat import it_sol
from numpy.typing import NDArray

from oncofed_client.leaving import leaving
from oncofed_client.locations import LOCATIONS, harmony_of, own_locations
from oncofed_client.private_answers import guard
from oncofed_client.session import training_set
from oncofed_client.site import Site
from oncofed_client.source import keep_rows
from oncofed_server.aggregator import Aggregator
from oncofed_server.run_state import Phase, Received, Start
from oncofed_shared.errors import ConfigError, LocalProtocolError, PolicyRefusal
from oncofed_shared.features import Preparation, aligned
from oncofed_shared.harmonise import TOO_FEW
from oncofed_shared.messages import Head, Open, Refusal, Summarise, Summary, Trial, from_bytes, to_bytes
from oncofed_shared.plan import Plan, load
from oncofed_shared.releases import uncharged
from oncofed_simulations.__main__ import main
from oncofed_simulations.compare_variants import chosen_variants
from oncofed_simulations.consortium import Consortium, Run, federated_roster, open_site
from oncofed_simulations.synthetic import write_cohort

Values = NDArray[np.float64]
MakePlan = Callable[..., Plan]
MakeConsortium = Callable[..., Consortium]
TRIAL = Trial(seed=3)
COMBAT: dict[str, Any] = {"kind": "combat", "covariates": ["clinical.age", "clinical.sex"], "minimum": 4}


def plan_of(make_plan: MakePlan, **more: Any) -> Plan:
    return make_plan(**{"modalities__shape__harmonise": COMBAT, "training__dtype": "float64"} | more)


def final(run: Run) -> tuple[Preparation, Values]:
    state = run.state
    assert state.phase is Phase.DONE
    assert state.preparation is not None
    assert state.server is not None
    return state.preparation, state.server.parameters


def values_of(plan: Plan, site: Site, preparation: Preparation, part: int = 0) -> tuple[Values, Values]:
    """A site's own patients of a part as they are, and harmonised: (n, columns) both."""
    cohort = site.source.cohort(plan)
    parts = site.source.split(plan, cohort, TRIAL)
    locations = own_locations(plan, preparation.columns, preparation.harmonisation, cohort, parts == 0)
    rows = parts == part
    values = {m: v[rows] for m, v in cohort.values.items()}  # noqa: PD011 - no frame
    harmony = harmony_of(preparation.harmonisation, locations, cohort, rows)
    plain = aligned(plan, preparation.columns, values, cohort.columns)
    return plain, aligned(plan, preparation.columns, values, cohort.columns, harmony)


@pytest.mark.parametrize("reduction", [None, {"kind": "pca", "components": 3}], ids=["columns", "components"])
def test_a_federation_fixes_and_trains_what_pooled_patients_do(
    make_plan: MakePlan, make_consortium: MakeConsortium, tmp_path: Path, reduction: dict[str, Any] | None
) -> None:
    plan = plan_of(make_plan, modalities__shape__reduction=reduction)
    consortium = make_consortium(plan, tmp_path)
    (one, federated), (two, pooled) = (final(run(TRIAL)) for run in (consortium.federated, consortium.pooled))
    assert one.columns == two.columns
    assert set(one.harmonisation) == {f"shape.{w}" for w in ("mean", "spread", "effects", "middle")}
    for key, array in one.arrays().items():
        np.testing.assert_allclose(array, two.arrays()[key], atol=1e-6)
    np.testing.assert_allclose(federated, pooled, atol=1e-6)


def test_sites_train_on_what_neurocombat_makes_of_the_merged_patients(
    make_plan: MakePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cohort(tmp_path / "sites", sites=4, patients=160, seed=5, gaps=0.0)
    plan = plan_of(make_plan, training__rounds=1)
    folders = sorted((tmp_path / "sites").iterdir())
    sites = {f.name: open_site(f, plan, state=None, minimum=None) for f in folders}
    consortium = Consortium(plan=plan, sites=sites, externals={}, store=tmp_path / "store")
    preparation, _ = final(consortium.federated(TRIAL))
    clinical, shape = (len(preparation.columns[m]) for m in ("clinical", "mutations"))
    part = slice(clinical + shape, None)
    with_shape = [n for n, s in sites.items() if s.source.cohort(plan).columns["shape"]]
    both = {n: values_of(plan, sites[n], preparation) for n in with_shape}
    whole = np.concatenate([b[0] for b in both.values()])
    ours = np.concatenate([b[1] for b in both.values()])[:, part]
    frame = pd.DataFrame(
        {
            "hospital": np.repeat(np.arange(len(both)), [len(b[0]) for b in both.values()]),
            # The library holds it as a 32-bit float; around 60 a tenth of a year is then off by a millionth.
            "age": whole[:, preparation.columns["clinical"].index("age")] - 60,
            "sex": whole[:, preparation.columns["clinical"].index("sex=male")],
        }
    )
    monkeypatch.setattr(it_sol, "__defaults__", (1e-13,))
    made = library(whole[:, part].T, frame, "hospital", categorical_cols=["sex"], continuous_cols=["age"])["data"].T
    spread = preparation.harmonisation["shape.spread"]
    assert len(with_shape) == 3
    np.testing.assert_allclose(ours / spread, made / spread, atol=1e-6)
    assert np.abs(whole[:, part] - ours).max() > 0.1 * spread.max()


def test_patients_who_did_not_train_are_moved_as_those_who_did(
    make_plan: MakePlan, make_consortium: MakeConsortium, tmp_path: Path
) -> None:
    plan = plan_of(make_plan, modalities__shape__harmonise=COMBAT | {"covariates": []})
    consortium = make_consortium(plan, tmp_path)
    preparation, _ = final(consortium.federated(TRIAL))
    site = consortium.sites["site-1"]
    (a, one), (b, two) = (values_of(plan, site, preparation, part) for part in (0, 2))
    column = a.shape[1] - 1
    seen, other = ~np.isnan(a[:, column]), ~np.isnan(b[:, column])
    slope, start = np.polyfit(a[seen, column], one[seen, column], 1)
    np.testing.assert_allclose(two[other, column], start + slope * b[other, column], rtol=1e-9)


def test_a_hospitals_location_is_in_none_of_its_messages(
    make_plan: MakePlan, make_consortium: MakeConsortium, tmp_path: Path
) -> None:
    plan = plan_of(make_plan)
    sent: list[bytes] = []
    consortium = make_consortium(
        plan, tmp_path, tap=lambda way, _, content: sent.append(content) if way == "up" else None
    )
    preparation, _ = final(consortium.federated(TRIAL))
    for site in consortium.sites.values():
        cohort = site.source.cohort(plan)
        train = site.source.split(plan, cohort, TRIAL) == 0
        locations = own_locations(plan, preparation.columns, preparation.harmonisation, cohort, train)
        assert locations is not None
        for array in (locations["shape"][0].shift, locations["shape"][0].scale):
            assert array.std() > 0 or not cohort.columns["shape"]
            numbers = [v for v in array.tolist() if v not in {0.0, 1.0}]
            assert not any(np.float64(v).tobytes() in content for v in numbers for content in sent)


def test_a_hospital_from_outside_is_scored_with_a_location_of_its_own(
    make_plan: MakePlan, make_consortium: MakeConsortium, tmp_path: Path
) -> None:
    plan = plan_of(make_plan)
    consortium = make_consortium(plan, tmp_path, externals=("site-2",))
    run = consortium.federated(TRIAL)
    preparation, _ = final(run)
    assert run.tables["site-2"].sum() > 0
    site = consortium.externals["site-2"]
    cohort = site.source.cohort(plan)
    nobody = np.zeros(len(cohort.patients), dtype=bool)
    own = own_locations(plan, preparation.columns, preparation.harmonisation, cohort, nobody)
    everybody = own_locations(plan, preparation.columns, preparation.harmonisation, cohort, ~nobody)
    assert own is not None
    assert everybody is not None
    np.testing.assert_array_equal(own["shape"][0].shift, everybody["shape"][0].shift)
    with pytest.raises(LocalProtocolError, match="own location"):
        training_set(plan, preparation, cohort, slice(None))


def test_a_hospital_with_too_few_patients_leaves_the_run_and_the_others_agree_without_it(
    make_plan: MakePlan, make_consortium: MakeConsortium, tmp_path: Path
) -> None:
    plan = plan_of(make_plan)
    patients = {
        n: int((~np.isnan(values_of(plan, s, _plain(plan, s))[0][:, -1])).sum())
        for n, s in make_consortium(plan, tmp_path / "a").sites.items()
        if s.source.cohort(plan).columns["shape"]
    }
    (fewest, least), (_, more), *_ = sorted(patients.items(), key=lambda p: p[1])
    assert 3 < least < more
    strict = plan_of(make_plan, modalities__shape__harmonise=COMBAT | {"minimum": least + 2})
    run = make_consortium(strict, tmp_path / "b").federated(TRIAL)
    assert run.state.excluded == {fewest: TOO_FEW}
    apart = make_consortium(strict, tmp_path / "c")
    del apart.sites[fewest]
    one, two = final(run)[0], final(apart.federated(TRIAL))[0]
    for key, array in one.arrays().items():
        np.testing.assert_array_equal(array, two.arrays()[key])


def _plain(plan: Plan, site: Site) -> Preparation:
    columns = dict(sorted(site.source.cohort(plan).columns.items()))
    none = np.zeros(sum(len(c) for c in columns.values()))
    return Preparation(columns=columns, center=none, spread=none + 1, fill=none, class_weights={})


class Talk:
    """The aggregator's half of a conversation with one site, as bytes."""

    def __init__(self, plan: Plan, folder: Path, state: Path | None = None) -> None:
        self.site, self.plan = open_site(folder, plan, state=state, minimum=None), plan
        self.columns = self.site.source.cohort(plan).columns

    @property
    def head(self) -> Head:
        return Head(session="s", step=1, attempt=0, plan_hash=self.plan.hash, trial=TRIAL)

    def ask(self, request: Any) -> Any:
        return from_bytes(to_bytes(self.site.handle(from_bytes(to_bytes(request)))))  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [1, 2], ids=["sums of the harmonisation", "sums of scaling"])
def test_a_site_with_broken_sums_leaves_and_the_others_agree_anew(
    make_plan: MakePlan, hospitals: Path, number: int
) -> None:
    plan = plan_of(make_plan, training__rounds=1)

    def run(names: tuple[str, ...], spoilt: str = "") -> Aggregator:
        sites = {n: Talk(plan, hospitals / n) for n in names}
        aggregator = Aggregator(plan, federated_roster(names, ()), TRIAL, session="s")
        queue, asked = aggregator.step(Start(now=0.0)), itertools.count(1)
        while queue:
            outgoing = queue.pop(0)
            reply = sites[outgoing.site].ask(outgoing.request)
            if outgoing.site == spoilt and isinstance(reply, Summary) and next(asked) == number:
                reply = replace(reply, sums=reply.sums[:-1])
            queue += aggregator.step(Received(now=0.0, reply=reply))
        return aggregator

    broken, apart = run(("site-1", "site-2", "site-4"), "site-2"), run(("site-1", "site-4"))
    assert set(broken.state.excluded) == {"site-2"}
    assert broken.state.phase is apart.state.phase is Phase.DONE
    assert broken.state.preparation is not None
    assert apart.state.preparation is not None
    for key, array in broken.state.preparation.arrays().items():
        np.testing.assert_array_equal(array, apart.state.preparation.arrays()[key])


def test_a_site_refuses_what_was_never_agreed(make_plan: MakePlan, hospitals: Path) -> None:
    talk = Talk(plan_of(make_plan), hospitals / "site-1")
    own = talk.columns
    first = talk.ask(Summarise(head=talk.head, columns=own))
    assert isinstance(first, Summary)
    for arrays in ({"shape.mean": np.zeros(len(own["shape"]))}, {"other.mean": np.zeros(2)}):
        reply = talk.ask(Summarise(head=talk.head, columns=own, arrays=arrays))
        assert isinstance(reply, Refusal)
        assert reply.code == "protocol"
    opening = Open(head=talk.head, columns=own, arrays=_plain(talk.plan, talk.site).arrays())
    assert isinstance(talk.ask(opening), Refusal)


def test_a_location_is_found_once_and_survives_a_restart_and_a_withdrawal(
    make_plan: MakePlan, make_consortium: MakeConsortium, hospitals: Path, tmp_path: Path
) -> None:
    plan = plan_of(make_plan)
    preparation, _ = final(make_consortium(plan, tmp_path / "store").federated(TRIAL))
    state = tmp_path / "state"
    opening: dict[str, Any] = {"columns": preparation.columns, "arrays": preparation.arrays()}
    talk = Talk(plan, hospitals / "site-1", state)
    talk.ask(Open(head=talk.head, **opening))
    found = talk.site.sessions["s"].locations
    assert found is not None
    (kept,) = (state / LOCATIONS).iterdir()
    assert kept.stat().st_mode & 0o077 == 0
    again = Talk(plan, hospitals / "site-1", state)
    source = again.site.source
    whole = source.cohort(plan)
    # Half of the patients are gone: where the hospital's values lie is what it was when the run began.
    rows = np.arange(len(whole.patients)) % 2 == 0
    fewer = keep_rows(whole, rows)
    source.cohort = lambda _: fewer  # type: ignore[method-assign]
    assert again.site._session(talk.head).locations is not None
    second = again.site._session(talk.head).locations
    assert second is not None
    np.testing.assert_array_equal(second["shape"][0].shift, found["shape"][0].shift)
    np.testing.assert_array_equal(second["shape"][0].scale, found["shape"][0].scale)


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        (
            {"shape__harmonise": COMBAT | {"covariates": ["clinical.weight"]}},
            "shape.harmonise.covariates: 'clinical.weight'",
        ),
        ({"shape__harmonise": COMBAT | {"covariates": ["age"]}}, "expected MODALITY.COLUMN"),
        ({"shape__harmonise": COMBAT | {"covariates": ["shape.x"]}}, "another modality"),
        ({"shape__harmonise": COMBAT | {"covariates": ["mutations.A_mut"]}}, "names no column 'A_mut'"),
        ({"shape__harmonise": COMBAT | {"covariates": ["clinical.age", "clinical.age"]}}, "distinct"),
        ({"shape__harmonise": COMBAT | {"minimum": 2}}, "minimum"),
        ({"shape__harmonise": COMBAT, "shape__reduction": {"kind": "lasso", "keep": 2}}, "reduction.kind = 'lasso'"),
        ({"clinical__harmonise": {"kind": "combat"}}, "categories and ranks"),
        (
            {
                "shape__harmonise": COMBAT | {"covariates": ["mutations.A_mut"]},
                "mutations__harmonise": {"kind": "combat"},
            },
            "'mutations' is harmonised itself",
        ),
        (
            {"shape__harmonise": COMBAT, "clinical__reduction": {"kind": "relieff", "keep": 2}},
            "may leave this column out",
        ),
        ({"shape__harmonise": {"kind": "mean"}}, "combat"),
    ],
)
def test_a_harmonisation_that_cannot_be_is_refused_with_its_place(
    make_plan: MakePlan, changes: dict[str, Any], where: str
) -> None:
    with pytest.raises(ConfigError, match=where.replace(".", r"\.")):
        make_plan(**{f"modalities__{k}": v for k, v in changes.items()})


def test_a_plan_that_does_not_harmonise_keeps_its_hash(make_plan: MakePlan) -> None:
    assert b"harmonise" not in make_plan().canonical
    assert plan_of(make_plan).hash != make_plan().hash


def test_it_is_named_wherever_a_data_officer_looks(make_plan: MakePlan) -> None:
    plan, plain = plan_of(make_plan), make_plan()
    (named,) = set(uncharged(plan)) - set(uncharged(plain))
    assert "harmonisation of shape" in named
    assert "location and scale" in named
    assert [found.what for found in leaving(plan, 10) if "harmonisation of shape" in found.what] == [named]


def test_a_variant_without_the_covariates_modality_harmonises_without_them(make_plan: MakePlan) -> None:
    (alone,), left = chosen_variants(plan_of(make_plan), "shape")
    settings = alone.plan.modalities["shape"].harmonise
    assert settings is not None
    assert settings.covariates == ()
    assert not left


@pytest.mark.parametrize("noise", ["site", "consortium"])
def test_a_private_study_refuses_it(make_plan: MakePlan, noise: str) -> None:
    privacy = {
        "noise": noise, "epsilon": 5.0, "delta": 1e-4, "clip_norm": 1.0, "sampling_rate": 0.5,
        "patients": {f"site-{k}": 30 for k in range(1, 5)},
    }  # fmt: skip
    with pytest.raises(ConfigError, match=r"modalities\.shape\.harmonise: a hospital's location and scale"):
        plan_of(make_plan, privacy=privacy)


def test_a_private_study_answers_no_request_for_its_sums() -> None:
    plan = load(Path(__file__).parents[2] / "simulations/studies/demo_private.toml")
    head = Head(session="s", step=1, attempt=0, plan_hash=plan.hash, trial=TRIAL)
    with pytest.raises(PolicyRefusal) as refused:
        guard(plan, "site-1", Summarise(head=head, columns={}, arrays={"shape.mean": np.zeros(1)}))
    assert refused.value.code == "uncharged-statistics"


def by_command(*arguments: object) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["oncofed-simulate", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
    return caught.value.code


def test_predictions_have_the_location_of_training_or_one_of_their_own_patients_or_none_are_made(
    make_plan: MakePlan, hospitals: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = plan_of(make_plan, training__rounds=2).model_dump(mode="json", exclude_none=True)
    study, out = tmp_path / "study.toml", tmp_path / "out"
    study.write_text(tomli_w.dumps(content))
    assert by_command("run", study, "--sites", hospitals, "--out", out, "--no-baselines") == 0
    site, model, state = hospitals / "site-1", out / "model.safetensors", out / "sites" / "site-1"

    def table(name: str, folder: Path, *more: object) -> list[dict[str, str]]:
        made = tmp_path / f"{name}.csv"
        assert by_command("predict", model, "--site", folder, "--out", made, *more) == 0
        return list(csv.DictReader(io.StringIO(made.read_text())))

    as_trained, as_new = table("trained", site, "--state", state), table("new", site)
    assert [r["patient_id"] for r in as_trained] == [r["patient_id"] for r in as_new]
    assert as_trained != as_new
    # A few patients of a hospital that has trained go with where all of its patients lay.
    few = tmp_path / "few"
    shutil.copytree(site, few)
    path = few / "radiomics.csv"
    head, *rows = path.read_text().splitlines()
    path.write_text("\n".join([head, *rows[:3]]) + "\n")
    kept = {r.partition(",")[0] for r in rows[:3]}
    before = {r["patient_id"]: r for r in as_trained if r["patient_id"] in kept}
    assert {r["patient_id"]: r for r in table("few", few, "--state", state) if r["patient_id"] in before} == before
    capsys.readouterr()
    assert by_command("predict", model, "--site", few, "--out", tmp_path / "none.csv") == 4
    assert "too few to find this hospital's own location" in capsys.readouterr().err
    assert not (tmp_path / "none.csv").exists()
