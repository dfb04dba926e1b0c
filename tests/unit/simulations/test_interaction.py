"""The planted interaction: neither side alone says anything, both together do, and switched off nothing does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from oncofed_shared.errors import ConfigError
from oncofed_shared.plan import load, parse
from oncofed_shared.storage import dump_json
from oncofed_simulations.compare_pair import main, paired
from oncofed_simulations.compare_variants import chosen_variants, whole_plan
from oncofed_simulations.interaction import COLUMNS, PATHWAYS, draw_tables, draw_tumours
from oncofed_simulations.synthetic import read_settings, write_cohort

STUDIES = Path(__file__).resolve().parents[3] / "simulations" / "studies"


@given(st.integers(0, 2**31), st.integers(1, 50))
@settings(max_examples=25)
def test_half_of_the_pathways_are_active_in_everybody_so_that_genes_alone_say_nothing(seed: int, count: int) -> None:
    tumours = draw_tumours(np.random.default_rng(seed), count, 1.0)
    assert tumours.active.sum(axis=1).tolist() == [PATHWAYS // 2] * count
    assert np.array_equal(tumours.responded, tumours.active[np.arange(count), tumours.driver])


def test_neither_side_says_anything_and_both_say_nearly_everything() -> None:
    rng = np.random.default_rng(0)
    tumours = draw_tumours(rng, 20_000, 0.9)
    tables = draw_tables(rng, tumours, 1.0)
    assert {n: t.shape[1] for n, t in tables.items()} == {n: len(c) for n, c in COLUMNS.items()}
    half = slice(0, 10_000), slice(10_000, None)
    image, genes = (t.reshape(20_000, PATHWAYS, -1).mean(axis=2) for t in tables.values())
    # Four standard errors of an AUC of 10,000 patients without a signal are 0.024.
    for alone in (image, genes, np.concatenate([image, genes], axis=1), image[:, :, None] * image[:, None, :]):
        flat = alone.reshape(20_000, -1)
        model = LogisticRegression(max_iter=500).fit(flat[half[0]], tumours.responded[half[0]])
        shown = model.predict_proba(flat[half[1]])[:, 1]
        assert abs(roc_auc_score(tumours.responded[half[1]], shown) - 0.5) < 0.024
    assert roc_auc_score(tumours.responded, genes[np.arange(20_000), image.argmax(axis=1)]) > 0.9
    off = draw_tumours(rng, 20_000, 0.0)
    assert abs(roc_auc_score(off.responded, off.active[np.arange(20_000), off.driver]) - 0.5) < 0.024


def test_the_same_settings_write_the_same_bytes_and_without_them_the_other_cohort(tmp_path: Path) -> None:
    for name, interaction in (("a", 0.5), ("b", 0.5), ("c", None)):
        write_cohort(tmp_path / name, sites=3, patients=60, seed=1, interaction=interaction)
    files = {n: {p.relative_to(tmp_path / n): p.read_bytes() for p in (tmp_path / n).rglob("*.*")} for n in "abc"}
    assert files["a"] == files["b"]
    sites = {p.parts[0] for p in files["a"]}
    assert all(Path(site, "expression.csv") in files["a"] for site in sites), "no hospital lacks a modality"
    assert not set(files["a"].values()) & {v for p, v in files["c"].items() if p.name != "site.toml"}
    with pytest.raises(ConfigError, match="interaction"):
        read_settings({"sites": 1, "patients": 10, "seed": 1, "interaction": 1.5})


def test_the_study_has_every_variant_and_a_single_modality_is_read_by_a_transformer() -> None:
    plan = load(STUDIES / "planted_interaction.toml")
    made, left = chosen_variants(whole_plan(plan, 5), "all")
    assert left == {}
    fusions = {v.name: v.plan.model.fusion for v in made}
    assert fusions["radiomics"] == fusions["genomics"] == "transformer"
    assert fusions["two_way"] == "two_way"
    content = plan.model_dump(mode="json")
    content["modalities"].pop("radiomics")
    with pytest.raises(ConfigError, match="two_way"):
        parse(content)


def written(folder: Path, folds: dict[str, list[float | None]], held_out: int | None = 5) -> Path:
    variants = {n: {"response": {"folds": f}} for n, f in folds.items()}
    folder.mkdir()
    (folder / "compare.json").write_bytes(dump_json({"protocol": {"folds": held_out}, "variants": variants}))
    return folder


def test_a_pair_is_tested_over_folds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = written(tmp_path / "out", {"a": [0.8, 0.9, 0.7, 0.8, 0.8], "b": [0.7, 0.7, 0.7, 0.6, 0.8]})
    found = paired(out, "a", "b")["response"]
    differences = np.array([0.1, 0.2, 0.0, 0.2, 0.0])
    assert found.value == pytest.approx(0.1)
    # Nadeau & Bengio 2003, equation 10: the variance of a mean of 5 folds, of which each tests a fourth of what trains it.
    assert found.variance * found.factor == pytest.approx((1 / 5 + 1 / 4) * differences.var(ddof=1))
    assert paired(out, "b", "a")["response"].p(corrected=True) == pytest.approx(1 - found.p(corrected=True))
    main([str(out), "a", "b"])
    assert capsys.readouterr().out.startswith("a - b: response +0.1000 (95 % ")


def test_what_cannot_be_paired_is_refused(tmp_path: Path) -> None:
    out = written(tmp_path / "out", {"a": [0.5], "b": [0.5]})
    hospitals = written(tmp_path / "hospitals", {"a": [0.5], "b": [0.5]}, None)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "compare.json").write_text(json.dumps({"variants": {}}), encoding="utf-8")
    for folder, names, message in (
        (out, ("a", "c"), "has no variant c; it has a, b"),
        (hospitals, ("a", "b"), "held out hospitals"),
        (tmp_path / "broken", ("a", "b"), "no finished comparison"),
        (tmp_path / "nowhere", ("a", "b"), "no finished comparison"),
    ):
        with pytest.raises(ConfigError, match=message):
            paired(folder, *names)
    with pytest.raises(ConfigError, match="two variants"):
        main([str(out)])
