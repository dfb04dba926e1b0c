"""Each attack works where there is no privacy, finds nothing where there is, and notices when it is switched off."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from oncofed_client import integer_step, private_training, site
from oncofed_client.patient_gradients import backward, per_patient
from oncofed_client.session import training_set
from oncofed_client.source import FolderSource
from oncofed_shared.errors import ConfigError
from oncofed_shared.features import network_columns, no_sums, prepare, unite
from oncofed_shared.losses import patient_losses
from oncofed_shared.network import build
from oncofed_shared.plan import load, parse
from oncofed_simulations import audit_reconstruction as reconstruction
from oncofed_simulations.__main__ import app
from oncofed_simulations.audit import AuditOptions, audit, audit_lines
from oncofed_simulations.audit_canaries import joined
from oncofed_simulations.audit_differencing import audit_differencing
from oncofed_simulations.audit_gradients import Attacker
from oncofed_simulations.audit_membership import audit_membership
from oncofed_simulations.audit_page import page
from oncofed_simulations.audit_path import attacked_plan
from oncofed_simulations.consortium import folder_settings

from .conftest import study

STUDIES = Path(__file__).resolve().parents[2] / "simulations" / "studies"


def patients_of(plan, folder):
    """Preparation, and everybody of all hospitals."""
    folders = [f for f in sorted(folder.iterdir()) if f.is_dir()]
    cohorts = [FolderSource(f, folder_settings(f, plan)).cohort(plan) for f in folders]
    columns = unite(plan, [c.columns for c in cohorts])
    preparation = prepare(plan, columns, no_sums(plan, columns))
    return preparation, joined([training_set(plan, preparation, c, slice(None)) for c in cohorts])


@pytest.mark.parametrize("layers", [0, 1])
def test_the_attackers_gradients_are_those_of_the_code(folder, layers):
    content = study("site").model_dump(mode="json")
    model, training = content["model"] | {"layers": layers, "width": 8, "heads": 2}, content["training"]
    plan = parse(content | {"model": model, "training": training | {"dtype": "float64"}})
    preparation, everybody = patients_of(plan, folder)
    few = everybody.rows(torch.arange(20))
    network = build(plan, network_columns(plan, preparation), seed=3)
    attacker = Attacker.of(plan, preparation)
    weights = attacker.layout.flatten({n: p.detach().numpy() for n, p in network.named.items()})
    with per_patient(network) as hooked:
        own = backward(hooked, plan, few, patient_losses).each().numpy()
    np.testing.assert_allclose(attacker.gradients(weights, few), own, rtol=1e-9, atol=1e-12)


def found_by(rows, *, control):
    return {(r["batch"], r["model"], r["view"]): r["found"] for r in rows if r["control"] is control}


def no_noise(patch):
    """A site that forgets its noise."""
    for module in (integer_step, private_training):
        patch.setattr(module, "add_discrete_gaussian", lambda random, sigma, numbers: None)


def test_a_record_is_recovered_without_privacy_and_not_with_it(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(reconstruction, "BATCHES", (1,))
    rows = reconstruction.audit_reconstruction(study("site", rounds=5, rate=0.5), folder, tmp_path / "r", seed=0)
    control, private = found_by(rows, control=True), found_by(rows, control=False)
    single = {model: n for (_, model, view), n in control.items() if view == "single update, no noise"}
    assert single == {"honest": 4, "honest, hazards = free": 4, "imprint": 4}
    assert {view for _, _, view in private} == {
        "single update, noised", "masked upload of a site", "sum of all sites, noised",
    }  # fmt: skip
    assert set(private.values()) == {0}


def test_a_site_that_forgets_its_noise_is_read(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(reconstruction, "BATCHES", (1,))
    monkeypatch.setattr(reconstruction, "_models", lambda plan: ("imprint",))
    no_noise(monkeypatch)
    rows = reconstruction.audit_reconstruction(study("site", rounds=4), folder, tmp_path / "r", seed=0)
    assert found_by(rows, control=False)[1, "imprint", "single update, noised"] == 4


@pytest.mark.slow
def test_no_record_of_1_8_or_32_is_recovered_with_privacy(folder, tmp_path):
    rows = reconstruction.audit_reconstruction(study("site", rounds=60, rate=0.5), folder, tmp_path / "r", seed=0)
    control, private = found_by(rows, control=True), found_by(rows, control=False)
    assert set(private.values()) == {0}
    for batch in (1, 8):
        assert control[batch, "honest, hazards = free", "single update, no noise"] > 0
        assert control[batch, "imprint", "single update, no noise"] > 0
    assert {b for b, _, _ in private} == {1, 8, 32}


def test_members_are_told_from_others_without_privacy_and_hardly_with_it(folder):
    plan = study("site", rounds=20, rate=0.5)
    preparation, everybody = patients_of(plan, folder)
    found = audit_membership(plan, preparation, everybody, seed=0, shadows=12)
    assert found["control"]["auc"] > 0.65
    assert found["private"]["auc"] < found["control"]["auc"] - 0.1
    for alarm in found["private"]["alarms"]:
        assert alarm["low"] <= alarm["most"]


def by_kind(rows):
    return {r["what"]: r for r in rows}


def test_the_difference_of_two_studies_is_a_record_without_privacy_and_refused_with_it(folder, tmp_path):
    rows = by_kind(audit_differencing(study("site"), folder, tmp_path / "d", seed=0))
    assert rows["sums of columns, no privacy"]["found"] == 1
    assert rows["tables of test patients, no privacy"]["found"] == 1
    for kind in ("sums of columns", "tables of test patients"):
        own = rows[f"{kind}, under the plan"]
        assert (own["answered"], own["code"], own["wrong"]) == (
            False, "uncharged-statistics" if kind == "sums of columns" else "uncharged-tables", False,
        )  # fmt: skip
    noised = rows["noised tables of test patients"]
    assert noised["low"] <= noised["true"] <= noised["high"]
    assert noised["false"] < noised["true"] <= noised["most"]
    assert not noised["wrong"]


def test_tables_that_a_plan_releases_uncharged_are_said_to_tell(folder, tmp_path):
    rows = by_kind(audit_differencing(study_with_tables(), folder, tmp_path / "d", seed=0))
    own = rows["tables of test patients, under the plan"]
    assert (own["answered"], own["found"], own["uncharged"], own["wrong"]) == (True, 1.0, True, False)


def study_with_tables():
    content = study("site").model_dump(mode="json")
    return parse(content | {"privacy": content["privacy"] | {"release_tables": True}})


def test_a_site_that_answers_what_it_should_refuse_is_noticed(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(site, "guard", lambda plan, name, request: None)
    rows = by_kind(audit_differencing(study("site"), folder, tmp_path / "d", seed=0))
    assert rows["sums of columns, under the plan"]["wrong"]


def test_an_audit_writes_its_report_and_says_the_same_there(folder, tmp_path):
    out = tmp_path / "out"
    options = AuditOptions(
        sites=folder, out=out, canaries=300, attacks=("canaries", "differencing"), command="audit it"
    )
    result = audit(study("site"), options)
    kept = json.loads((out / "audit.json").read_bytes())
    assert kept["canaries"]["claim"]["epsilon"] == pytest.approx(result["canaries"]["claim"]["epsilon"])
    assert kept["wrong"] == []
    assert (out / "audit.html").read_text(encoding="utf-8") == page(result)
    assert not (out / "work").exists()
    text = "\n".join(audit_lines(result))
    assert f"claimed {kept['canaries']['claim']['epsilon']:.2f}" in text
    assert "not as promised: nothing" in text
    for shown in ("Epsilon, claimed and attacked", "The difference of two studies", "audit it"):
        assert shown in page(result)


def test_what_cannot_be_audited_is_refused(folder, tmp_path):
    content = study("site").model_dump(mode="json")
    with pytest.raises(ConfigError, match="no claim to audit"):
        attacked_plan(parse(content | {"privacy": {"noise": "none"}}))
    with pytest.raises(ConfigError, match="local layers"):
        attacked_plan(parse(content | {"strategy": {"name": "fedavg", "local": ["linear.*"]}}))
    with pytest.raises(ConfigError, match=r"modalities\.radiomics: is reduced or harmonised"):
        attacked_plan(load(STUDIES / "scanners_private.toml"))
    with pytest.raises(ConfigError, match=r"modalities\.expression: is reduced or harmonised"):
        attacked_plan(load(STUDIES / "reduction_private.toml"))
    with pytest.raises(ConfigError, match="--attacks"):
        audit(study("site"), AuditOptions(sites=folder, out=tmp_path / "o", attacks=("canaries", "magic")))
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigError, match="is not empty"):
        audit(study("site"), AuditOptions(sites=folder, out=tmp_path / "taken"))


def test_the_mechanism_that_is_attacked_is_the_plans():
    content = study("site").model_dump(mode="json")
    training = content["training"] | {"rounds": 3, "local_steps": 4, "optimiser": "adam"}
    made = attacked_plan(parse(content | {"training": training, "strategy": {"name": "fedadam"}}))
    assert (made.training.rounds, made.training.local_steps, made.training.optimiser) == (12, 1, "sgd")
    assert made.privacy == study("site").privacy


def test_the_command_is_there():
    assert "audit" in {c.name for c in app.registered_commands}
