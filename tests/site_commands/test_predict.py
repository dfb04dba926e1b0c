"""`oncofed-site predict`: a risk for each patient who may be looked at, at the site, and for nobody else."""

from __future__ import annotations

import csv
import hashlib
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from oncofed_client.predicting import days_until, read_model
from oncofed_client.session import training_set
from oncofed_client.settings import load_settings
from oncofed_client.source import FolderSource
from oncofed_shared.errors import DataError
from oncofed_shared.losses import predict
from oncofed_shared.model_seal import seal_model
from oncofed_shared.network_weights import modality_weights
from oncofed_shared.plan import Plan
from oncofed_shared.storage import read_arrays, write_arrays
from oncofed_simulations.__main__ import main as simulate
from oncofed_simulations.run import Options, run_study

from .conftest import STEP_KEY, Run


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def model(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(trained / "model.safetensors", tmp_path / "model.safetensors"))


def test_the_table_holds_what_the_network_says(run: Run, site: Path, model: Path, tmp_path: Path):
    code, out, err = run("predict", site, "--model", model, "--out", tmp_path / "risk.csv")
    assert (code, err) == (0, "")
    assert "nobody vouches for it" in out
    assert "must not leave this site" in out
    assert stat.S_IMODE((tmp_path / "risk.csv").stat().st_mode) == 0o600
    rows = {row["patient_id"]: row for row in rows_of(tmp_path / "risk.csv")}
    # Once more, by the way on which a run evaluates.
    made = read_model(model)
    cohort = FolderSource(site, load_settings(site)).cohort(made.plan)
    data = training_set(made.plan, made.preparation, cohort, slice(None))
    expected = predict(made.plan, made.network(data.values, data.seen))
    weights = modality_weights(made.network, data.values, data.seen)
    assert set(cohort.patients) <= set(rows)
    horizon = made.plan.tasks["survival"].edges.index(365) - 1
    for i, patient in enumerate(cohort.patients):
        row = rows[patient]
        assert float(row["survival.risk"]) == pytest.approx(1 - expected["survival"][i, horizon], abs=1e-5)
        assert float(row["response.responder"]) == pytest.approx(expected["response"][i, 1], abs=1e-5)
        for modality, weight in weights.items():
            assert float(row[f"weight.{modality}"]) == pytest.approx(float(weight[i]), abs=1e-5)
        assert sum(float(v) for k, v in row.items() if k.startswith("weight.")) == pytest.approx(1, abs=1e-4)
    shown = {p for p in rows if p in out}
    assert shown == set()


def test_nobody_enters_who_did_not_consent_and_labels_are_not_needed(run: Run, site: Path, model: Path, tmp_path: Path):
    clinical = site / "clinical.csv"
    with clinical.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    settings = load_settings(site)
    said = settings.consent
    no = {r["patient_id"] for r in rows if r[said.column] != said.value}
    assert no
    for row in rows:
        row |= {"os_days": "nonsense", "os_event": "", "response": "nonsense"}
    with clinical.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    code, _, err = run("predict", site, "--model", model, "--out", tmp_path / "risk.csv")
    assert (code, err) == (0, "")
    found = {row["patient_id"] for row in rows_of(tmp_path / "risk.csv")}
    assert found
    assert not found & no
    text = (site / "site.toml").read_text()
    (site / "site.toml").write_text(text.replace(f'value = "{said.value}"', 'value = "never said"'))
    code, _, err = run("predict", site, "--model", model, "--out", tmp_path / "none.csv")
    assert code == 4
    assert "nobody may enter" in err
    assert not (tmp_path / "none.csv").exists()


def test_a_model_that_does_not_fit_its_seal_is_refused(run: Run, site: Path, model: Path, tmp_path: Path):
    content = bytearray(model.read_bytes())
    beside = model.with_name(f"{model.name}.signed")
    beside.write_bytes(seal_model("a" * 64, bytes(content), b"{}", STEP_KEY))
    code, out, _ = run("predict", site, "--model", model, "--out", tmp_path / "risk.csv")
    assert code == 0
    assert "is the model of study aaaaaaaaaaaa, sealed by" in out
    seal = beside.read_bytes()
    content[-1] ^= 1
    model.write_bytes(bytes(content))
    code, _, err = run("predict", site, "--model", model, "--out", tmp_path / "other.csv")
    assert code == 3
    assert "is not the model that was sealed" in err
    beside.write_bytes(seal.replace(b"aaaa", b"bbbb", 1))
    code, _, err = run("predict", site, "--model", model, "--out", tmp_path / "other.csv")
    assert code == 3
    assert "signature" in err
    assert not (tmp_path / "other.csv").exists()


def test_a_model_that_was_never_calibrated_says_so(run: Run, site: Path, model: Path, tmp_path: Path):
    out = tmp_path / "risk.csv"
    assert "has no interval" not in run("predict", site, "--model", model, "--out", out)[1]
    assert "response.observed.low" in out.read_text().splitlines()[0]
    arrays, facts = read_arrays(model)
    write_arrays(model, arrays, facts | {"certainty": {}})
    code, said, _ = run("predict", site, "--model", model, "--out", out)
    assert (code, "response: has no interval" in said, "survival: has no interval" in said) == (0, True, False)
    columns = out.read_text().splitlines()[0].split(",")
    assert "response.observed.low" not in columns
    assert {"survival.days_10", "survival.days_90"} <= set(columns)


def test_wrong_files_have_one_clear_error(run: Run, site: Path, trained: Path, tmp_path: Path):
    out = tmp_path / "risk.csv"
    bad = tmp_path / "bad.safetensors"
    for content in (b"", b"\0" * 100, (trained / "report.html").read_bytes()):
        bad.write_bytes(content)
        code, _, err = run("predict", site, "--model", bad, "--out", out)
        assert code == 3
        assert "is not a" in err
    assert run("predict", site, "--model", tmp_path / "absent", "--out", out)[0] == 3
    model = trained / "model.safetensors"
    code, _, err = run("predict", tmp_path / "absent", "--model", model, "--out", out)
    assert code == 3
    assert "is not a folder" in err
    assert run("predict", tmp_path, "--model", model, "--out", out)[0] == 3
    code, _, err = run("predict", site, "--model", model, "--out", site / "site.toml" / "x.csv")
    assert code == 3
    assert "cannot be written" in err
    for table in ("clinical", "radiomics", "mutations"):
        text = (site / "site.toml").read_text()
        (site / "site.toml").write_text(text.replace(f"tables.{table}]", f"tables.other_{table}]"))
    code, _, err = run("predict", site, "--model", model, "--out", out)
    assert code in {3, 4}
    assert err
    assert not out.exists()


@pytest.mark.parametrize("what", ["plan_hash", "columns", "network"])
def test_a_model_whose_parts_do_not_belong_together_is_refused(trained: Path, tmp_path: Path, what: str):

    arrays, facts = read_arrays(trained / "model.safetensors")
    if what == "plan_hash":
        facts["plan_hash"] = "0" * 64
    elif what == "columns":
        facts["columns"]["shape"] = facts["columns"]["shape"][1:]
    else:
        name = next(n for n in arrays if n.startswith("network."))
        arrays[name] = np.full_like(arrays[name], np.nan)
    write_arrays(tmp_path / "model.safetensors", arrays, facts)
    with pytest.raises(DataError, match="is not a model that this version can use"):
        read_model(tmp_path / "model.safetensors")


EDGES_OF_GENES = b"TP53\tPTEN\nPTEN\tRB1\n"


@pytest.fixture(scope="module")
def along_a_graph(
    hospitals: Path, make_plan: Callable[..., Plan], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A run whose network follows a gene graph and reads components of the radiomics: the graph's folder, and the model."""
    folder = tmp_path_factory.mktemp("genes")
    (folder / "graph.txt").write_bytes(EDGES_OF_GENES)
    genes = {
        "patterns": ["{gene}_mut"],
        "encoder": "graph",
        "graph": {"file": "graph.txt", "sha256": hashlib.sha256(EDGES_OF_GENES).hexdigest()},
    }
    plan = make_plan(
        modalities__mutations=genes,
        modalities__shape__reduction={"kind": "pca", "components": 2},
        training__rounds=2,
        simulation={"files": str(folder)},
    )
    run_study(plan, Options(sites=hospitals, external=None, out=folder / "out", baselines=False))
    return folder, folder / "out" / "model.safetensors"


@pytest.mark.parametrize("named", [False, True])
def test_a_model_along_a_gene_graph_needs_the_plan_s_graph_at_the_site(
    run: Run, site: Path, along_a_graph: tuple[Path, Path], tmp_path: Path, named: bool
):
    """In the folder that `site.toml` names, or in the site's own."""
    out, model, graph = tmp_path / "risk.csv", along_a_graph[1], site / "graph.txt"
    if named:
        graph = tmp_path / "public" / "graph.txt"
        graph.parent.mkdir()
        text = (site / "site.toml").read_text()
        (site / "site.toml").write_text(text.replace("[site]\n", '[site]\nfiles = "../public"\n'))
    for content in (None, EDGES_OF_GENES + b"RB1\tTP53\n"):
        if content is not None:
            graph.write_bytes(content)
        code, _, err = run("predict", site, "--model", model, "--out", out)
        assert code == 3
        assert "graph.txt" in err
        assert "is not a model" not in err
        assert not out.exists()
    graph.write_bytes(EDGES_OF_GENES)
    assert run("predict", site, "--model", model, "--out", out)[0] == 0
    made = read_model(model, graph.parent)
    cohort = FolderSource(site, load_settings(site)).cohort(made.plan)
    data = training_set(made.plan, made.preparation, cohort, slice(None))
    expected = predict(made.plan, made.network(data.values, data.seen))["response"][:, 1]
    found = {row["patient_id"]: float(row["response.responder"]) for row in rows_of(out)}
    assert [found[p] for p in cohort.patients] == pytest.approx(expected.tolist(), abs=1e-5)


def test_a_simulation_finds_the_graph_beside_its_study(
    site: Path, along_a_graph: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder, model = along_a_graph
    content = read_model(model, folder).plan.model_dump(mode="json", exclude_none=True) | {"simulation": {}}
    (folder / "study.toml").write_text(tomli_w.dumps(content))
    arguments = ["predict", str(model), "--site", str(site), "--out", str(tmp_path / "risk.csv")]
    for study, code in (([], 3), (["--study", str(folder / "study.toml")], None)):
        monkeypatch.setattr("sys.argv", ["oncofed-simulate", *arguments, *study])
        with pytest.raises(SystemExit) as ended:
            simulate()
        assert (ended.value.code or None) == code
    assert len(rows_of(tmp_path / "risk.csv")) > 0


CURVES = hnp.arrays(np.float64, (4, 5), elements=st.floats(0, 1)).map(lambda h: np.cumprod(1 - h, axis=1))
EDGES = (0.0, 30.0, 90.0, 180.0, 365.0, 700.0)


@given(CURVES, st.floats(0.01, 0.99))
def test_days_are_where_the_curve_crosses(curve, share):
    days = days_until(curve, EDGES, share)
    whole = np.concatenate([np.ones((4, 1)), curve], axis=1)
    for i in range(4):
        if np.isnan(days[i]):
            assert curve[i, -1] > 1 - share
        else:
            assert 0 <= days[i] <= EDGES[-1]
            assert np.interp(days[i], EDGES, whole[i]) == pytest.approx(1 - share, abs=1e-6)


@given(CURVES)
def test_a_larger_share_takes_longer(curve):
    few, half, many = (np.nan_to_num(days_until(curve, EDGES, s), nan=np.inf) for s in (0.1, 0.5, 0.9))
    assert (few <= half).all()
    assert (half <= many).all()
