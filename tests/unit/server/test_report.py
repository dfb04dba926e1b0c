"""The report shows the result's numbers, all of them honestly, and loads nothing."""

from __future__ import annotations

import copy
import json
import math
import random
import re
import subprocess
import sys
import textwrap
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oncofed_server.figures import nice_ticks
from oncofed_server.report import headline, render, write_report
from oncofed_server.report_scores import Score, plain, read_study
from oncofed_server.report_verdict import Relation, relate, verdict
from oncofed_shared.errors import StorageError
from oncofed_shared.plan import parse

SITES = {
    "henry-ford": 243, "case-western": 188, "md-anderson": 121, "duke": 87, "ucsf": 64,
    "emory-university": 52, "st-joseph-arizona": 41, "unc": 17, "asterand": 9, "cureline": 4,
}  # fmt: skip
EXTERNAL = {"toronto-western": 48, "heidelberg": 12}
FEW = "fewer than 10 test patients"
HOLD = {"clinical": 1.0, "radiomics": 0.2, "expression": 0.6, "mutations": 0.9}
STUDY = {
    "study": {
        "name": "glioma_sample",
        "purpose": "Predict overall survival and IDH status of adult glioma from clinical data, "
        "radiomics, expression and mutations, and say what that adds to age and sex.",
    },
    "tasks": {
        "survival": {
            "kind": "survival", "time": "os_days", "event": "os_event",
            "edges": [0, 182, 365, 730, 1095, 1825, 3650], "horizon": 730,
        },
        "idh": {"kind": "classification", "label": "IDH_STATUS", "classes": ["WT", "Mutant"]},
    },
    "modalities": {
        "clinical": {
            "columns": {
                "age": {"kind": "numeric", "unit": "years", "range": [0, 120]},
                "sex": {"kind": "categorical", "categories": ["FEMALE", "MALE"]},
            }
        },
        "radiomics": {"patterns": ["VOLUME_*", "TEXTURE_*"], "transform": "signed_log"},
        "expression": {"patterns": ["{gene}_rnaseq"], "tokens": 8},
        "mutations": {"patterns": ["{gene}_mut"], "scaling": "none", "exclude": ["IDH*"]},
    },
    "training": {"rounds": 60},
    "evaluation": {
        "reference": {"age_sex": {"features": ["age", "sex"]}, "linear": {"features": ["*"]}},
        "subgroups": {"cohort": {"column": "cohort", "values": ["GBM", "LGG"]}},
    },
}  # fmt: skip
PLAN = parse(STUDY).model_dump(mode="json")
CENTRES: dict[str, dict[str, dict[str, float]]] = {
    "survival": {
        "c_index": {"federated": 0.756, "pooled": 0.752, "alone": 0.591, "reference": 0.719},
        "brier": {"federated": 0.171, "pooled": 0.173, "alone": 0.231, "reference": 0.186},
    },
    "idh": {
        "auc": {"federated": 0.941, "pooled": 0.948, "alone": 0.803, "reference": 0.781},
        "accuracy": {"federated": 0.873, "pooled": 0.88, "alone": 0.744, "reference": 0.72},
        "sensitivity": {"federated": 0.861, "pooled": 0.874, "alone": 0.7, "reference": 0.69},
        "specificity": {"federated": 0.883, "pooled": 0.889, "alone": 0.77, "reference": 0.74},
        "f1": {"federated": 0.852, "pooled": 0.86, "alone": 0.69, "reference": 0.68},
        "brier": {"federated": 0.094, "pooled": 0.091, "alone": 0.17, "reference": 0.18},
    },
}


def _arm(rng: random.Random, centre: float, half: float, arm: str) -> dict[str, Any]:
    def wobble(by: float) -> float:
        return min(0.995, max(0.02, centre + rng.gauss(0, by)))

    test = {site: round(0.15 * n) for site, n in SITES.items()}
    shown = [s for s, n in test.items() if n >= 10 and not (arm == "alone" and s == "ucsf")]
    scores = {s: wobble(0.04) for s in shown}
    why = {s: FEW for s in SITES if s not in scores}
    if arm == "alone":
        why["ucsf"] = "could not train a model of its own"
    width = {s: half * math.sqrt(140 / test[s]) for s in shown}
    external = {s: wobble(0.03) if n > 20 else None for s, n in EXTERNAL.items()}
    entry: dict[str, Any] = {
        "overall": centre,
        "ci": [centre - half, centre + 0.9 * half],
        "per_site": {s: scores.get(s) for s in SITES},
        "per_site_ci": {s: [v - width[s], min(1.0, v + width[s])] for s, v in scores.items()},
        "why": why,
        "per_seed": [centre + rng.gauss(0, 0.006) for _ in range(5)],
        "subgroups": {
            "cohort": {
                "GBM": {
                    "overall": centre - 0.13,
                    "ci": [centre - 0.2, centre - 0.06],
                    "patients": 71,
                },
                "LGG": {
                    "overall": centre - 0.05,
                    "ci": [centre - 0.13, centre + 0.02],
                    "patients": 54,
                },
                "other": {"overall": None, "ci": None, "patients": None, "why": {"overall": FEW}},
            }
        },
        "exact": centre + 0.0007,
    }
    if arm != "alone":
        entry["external"] = {
            "overall": centre - 0.02, "ci": [centre - 0.09, centre + 0.04],
            "per_site": external, "per_site_ci": {}, "why": {"heidelberg": FEW},
        }  # fmt: skip
    else:
        nothing = {"overall": None, "per_site": {}, "why": {"overall": "not scored"}}
        entry["external"] = nothing
    return entry


def _tasks(rng: random.Random) -> dict[str, Any]:
    half = {"survival": 0.045, "idh": 0.03}
    return {
        task: {
            metric: {arm: _arm(rng, centre, half[task], arm) for arm, centre in arms.items()}
            for metric, arms in metrics.items()
        }
        for task, metrics in CENTRES.items()
    }


def _rounds(rng: random.Random) -> list[dict[str, Any]]:
    rounds = []
    for seed in range(5):
        for k in range(1, 61):
            part = 1 - math.exp(-k / (11 + seed))
            rounds.append(
                {
                    "seed": seed, "round": k, "seconds": 0.41,
                    "train_loss": 2.1 - 1.1 * part + rng.gauss(0, 0.006),
                    "validation": {
                        "survival": {"c_index": 0.5 + 0.25 * part + rng.gauss(0, 0.004)},
                        "idh": {"auc": 0.5 + 0.43 * part + rng.gauss(0, 0.004)},
                    } if k % 5 == 0 else {},
                    "bytes_up": 812_345, "bytes_down": 901_234,
                }
            )  # fmt: skip
    return rounds


def _figures() -> dict[str, Any]:
    def km(rate: float) -> list[list[float]]:
        return [[30.0 * k, math.exp(-rate * k / 12)] for k in range(84)]

    def roc(power: float) -> list[list[float]]:
        return [[k / 50, (k / 50) ** power] for k in range(51)]

    survival = {
        arm: {
            "km": {"low": km(0.06 * f), "middle": km(0.28), "high": km(0.75 / f)},
            "calibration": [[0.1 + 0.16 * k, 0.1 + 0.16 * k + s * (k - 2), 20 + 9 * k] for k in range(5)],
        }
        for arm, f, s in (("federated", 1, 0.015), ("pooled", 1, 0.01), ("reference", 1.5, -0.04))
    }
    idh = {
        arm: {
            "roc": roc(p),
            "calibration": [[0.05 + 0.2 * k, 0.04 + 0.21 * k, 40 - 9 * abs(k - 2)] for k in range(5)],
            "confusion": [[68, 9], [7, 43]],
            "classes": ["WT", "Mutant"],
        }
        for arm, p in (("federated", 0.09), ("pooled", 0.08), ("reference", 0.4))
    }
    return {"survival": survival, "idh": idh}


def sample() -> dict[str, Any]:
    """A realistic result: ten sites, two external hospitals, two tasks, five seeds."""
    rng = random.Random(0)
    tasks = _tasks(rng)
    linear = {
        t: {m: _arm(rng, a["reference"] + 0.02, 0.05, "reference") for m, a in metrics.items()}
        for t, metrics in CENTRES.items()
    }
    first = {t: {m: a["reference"] for m, a in metrics.items()} for t, metrics in tasks.items()}
    splits = {
        arm: {"overall": c, "sd": 0.021, "ci": [c - 0.04, c + 0.04],
              "per_split": [c + rng.gauss(0, 0.02) for _ in range(20)]}
        for arm, c in CENTRES["survival"]["c_index"].items()
    }  # fmt: skip
    sites = [
        {
            "name": s, "patients": n, "train": n - 2 * round(0.15 * n),
            "validation": round(0.15 * n), "test": round(0.15 * n),
            "epsilon": None, "delta": None, "trained": s != "cureline",
            "modalities": {
                m: 0 if k % 3 == 1 and m == "radiomics" else round(part * n)
                for m, part in HOLD.items()
            },
            "events": {"survival": round(0.5 * n), "idh.0": n - round(0.3 * n), "idh.1": round(0.3 * n)},
            "external": s in EXTERNAL,
        }
        for k, (s, n) in enumerate({**SITES, **EXTERNAL}.items())
    ]  # fmt: skip
    return {
        "study": "glioma_sample", "purpose": PLAN["study"]["purpose"], "plan": PLAN,
        "plan_hash": "5be1c0" + 58 * "7", "created": "2025-01-01T12:00:00Z",
        "versions": {"oncofed": "0.1.0", "python": "3.11.9", "torch": "2.13.0"},
        "seconds": 431.2, "bytes_up": 243_703_500, "bytes_down": 270_370_200,
        "uncharged": ["feature means and variances", "each round's updates", "tables of counts"],
        "seeds": [0, 1, 2, 3, 4], "rounds": _rounds(rng), "sites": sites,
        "excluded": [
            {"name": "milan-besta", "why": "3 consented patients, the site's policy asks for 10"}
        ],
        "tasks": tasks, "references": {"age_sex": first, "linear": linear},
        "binning_error": {"survival": {"c_index": 0.0021, "brier": 0.0008}, "idh": {"auc": 0.0012}},
        "figures": _figures(),
        "resplits": {"survival": {"c_index": splits}}, "folds": {},
    }  # fmt: skip


class Reader(HTMLParser):
    """Tags, attributes and, per labelled table, the rows of (text, numbers of its <data>)."""

    VOID = frozenset({"meta", "br", "img", "link", "input"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.open: list[str] = []
        self.data: list[tuple[float, str]] = []
        self.tables: dict[str, dict[str, list[float]]] = {}
        self.table = self.row = ""
        self.text: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, k, v or "") for k, v in attrs]
        given = dict(attrs)
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "table":
            self.table = given.get("aria-label") or ""
        if tag == "tr":
            self.row = ""
        if tag == "data":
            self.data.append((float(given["value"] or "nan"), ""))
            rows = self.tables.setdefault(self.table, {})
            rows.setdefault(self.row, []).append(self.data[-1][0])

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, k, v or "") for k, v in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, text: str) -> None:
        self.text.append(text)
        if "th" in self.open and "tbody" in self.open and text.strip() and not self.row:
            self.row = text.strip()
        if self.open and self.open[-1] == "data":
            self.data[-1] = (self.data[-1][0], text)


def _numbers(tree: object) -> set[float]:
    if isinstance(tree, dict):
        return set().union(*map(_numbers, tree.values()))
    if isinstance(tree, list):
        return set().union(*map(_numbers, tree))
    return {float(tree)} if isinstance(tree, int | float) else set()


def _renamed(tree: Any, names: dict[str, str]) -> Any:
    if isinstance(tree, dict):
        return {names.get(k, k): _renamed(v, names) for k, v in tree.items()}
    if isinstance(tree, list):
        return [_renamed(v, names) for v in tree]
    return names.get(tree, tree) if isinstance(tree, str) else tree


def _set(result: dict[str, Any], arm: str, overall: float | None, ci: list[float] | None) -> dict[str, Any]:
    entry = result["tasks"]["survival"]["c_index"][arm]
    entry.update(overall=overall, ci=ci)
    return result


@pytest.fixture(scope="module")
def page() -> str:
    return render(sample())


def test_page_loads_nothing_and_runs_nothing(page: str) -> None:
    read = Reader(page)
    assert not read.open, "every element is closed"
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form"} & set(read.tags)
    for tag, name, value in read.attributes:
        assert not name.startswith("on"), (tag, name)
        assert name not in {"src", "srcset", "action", "data", "xlink:href", "background"}
        assert name != "href" or value.startswith("#")
        assert "url(" not in value
    assert "url(" not in page
    assert "@import" not in page
    assert not re.search(r"https?://", page)
    anchors = {v for _, k, v in read.attributes if k == "id"}
    assert {v[1:] for _, k, v in read.attributes if k == "href"} <= anchors


def test_every_picture_is_well_formed_and_has_a_text_alternative(page: str) -> None:
    pictures = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(pictures) > 30
    for picture in pictures:
        root = ET.fromstring(picture)
        assert root.get("role") == "img"
        assert root.get("aria-label")


def test_hostile_names_stay_text(page: str) -> None:
    hostile = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>{{ 7 * 7 }}&\x1b[2J\u202e\udc80"
    chosen = ["henry-ford", "toronto-western", "milan-besta", "cureline", "idh", "cohort", "GBM"]
    chosen += [
        "WT",
        "radiomics",
        "age_sex",
        "linear",
        "torch",
        FEW,
        "age",
        "glioma_sample",
        "2.13.0",
    ]
    names = {name: f"{k}{hostile}{name}" for k, name in enumerate(chosen)}
    names |= {f"idh.{k}": f"{names['idh']}.{k}" for k in range(2)}
    shown = render(_renamed(sample(), names))
    assert Reader(shown).tags == Reader(page).tags, "no element was added or lost"
    assert "<script" not in shown
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert "&lt;script&gt;" in shown
    assert "\x1b" not in headline(_renamed(sample(), names))


def test_every_number_is_the_results(page: str) -> None:
    read, known = Reader(page), _numbers(sample())
    derived = {value for rows in (read.tables["Bytes and time of each run"],) for value in rows}
    assert derived
    for value, text in read.data:
        if re.fullmatch(r"\d\.\d{3,4}", text):
            assert value in known
            assert text in {f"{value:.3f}", f"{value:.4f}"}
        elif re.fullmatch(r"[\d,]+", text):
            assert f"{value:,.0f}" == text
    assert len(read.data) > 300


def test_tables_say_whose_number_it_is(page: str) -> None:
    result, read = sample(), Reader(page)
    scores = result["tasks"]["survival"]["c_index"]
    by_site = read.tables["C-index of survival by site"]
    tests = {s["name"]: s["test"] for s in result["sites"]}
    for site in ("henry-ford", "case-western", "md-anderson", "duke"):
        expected = [float(tests[site])]
        for arm in ("federated", "pooled", "alone", "reference"):
            expected += [scores[arm]["per_site"][site], *scores[arm]["per_site_ci"][site]]
        assert by_site[site] == expected
    hero = read.tables["C-index of survival in each arm, with intervals"]
    assert hero["Federated"] == [scores["federated"]["overall"], *scores["federated"]["ci"]]
    assert hero["Reference (age + sex)"][0] == scores["reference"]["overall"]
    everything = read.tables["All metrics of idh"]
    order = ["auc", "accuracy", "sensitivity", "specificity", "f1", "brier"]
    pooled = [result["tasks"]["idh"][m]["pooled"] for m in order]
    assert everything["Pooled"] == [v for a in pooled for v in (a["overall"], *a["ci"])]
    who = read.tables["Sites that took part"]["duke"]
    assert who == [87, 61, 13, 13, 44, 61, 26, 87, 52, 78, 17]
    assert read.tables["All metrics of idh"].keys() >= {"Reference (all columns, linear)"}


def test_a_number_that_does_not_exist_is_a_dash_with_its_reason(page: str) -> None:
    assert re.search(r"<bdi>ucsf</bdi>.*?<sup>a</sup>", page, flags=re.DOTALL)
    assert "<sup>a</sup> could not train a model of its own" in page
    assert re.search(rf"Not shown, {FEW}: <b><bdi>emory-university</bdi></b>", page)
    assert "3 consented patients, the site&#39;s policy asks for 10" in page
    result = sample()
    result["tasks"]["survival"]["c_index"]["pooled"]["overall"] = math.nan
    text = " ".join(Reader(render(result)).text)
    assert not re.search(r"\b(nan|None|inf)\b", text)


def test_exact_values_are_marked_as_not_released(page: str) -> None:
    assert page.count("not released, simulation only") == 2
    exact = Reader(page).tables["Exact values, simulation only"]["C-index, Federated"]
    assert exact[3:] == [0.756 + 0.0007, 0.0021]
    result = sample()
    for metrics in result["tasks"].values():
        for arms in metrics.values():
            for arm in arms.values():
                del arm["exact"]
    assert "simulation only" not in render(result)


def _paths(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner: list[tuple[Any, Any]] = []
    if isinstance(tree, dict):
        inner = list(tree.items())
    elif isinstance(tree, list):
        inner = list(enumerate(tree[:2]))
    return [p for k, v in inner for p in ((*path, k), *_paths(v, (*path, k)))]


SAMPLE = sample()
PATHS = _paths(SAMPLE)


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(
    path=st.sampled_from(PATHS),
    value=st.sampled_from(["delete", None, math.nan, "text", [], {}, 0, -1e9, True]),
)
def test_any_missing_or_odd_part_is_survived(path: tuple[Any, ...], value: Any) -> None:
    result = copy.deepcopy(SAMPLE)
    place = result
    for step in path[:-1]:
        place = place[step]
    if value == "delete":
        del place[path[-1]]
    else:
        place[path[-1]] = value
    assert not Reader(render(result)).open
    assert headline(result)


@pytest.mark.parametrize("part", sorted(SAMPLE))
def test_each_part_may_be_absent(part: str) -> None:
    result = {k: v for k, v in SAMPLE.items() if k != part}
    assert "</html>" in render(result)
    assert headline(result)


def test_nothing_at_all_is_said_to_be_nothing() -> None:
    assert "No result" in render({})
    assert headline({}) == "No result: the run has no task."


def test_one_site_and_fifty_sites() -> None:
    for n in (1, 50):
        result = sample()
        names = [f"hospital-{k}" for k in range(n)]
        result["sites"] = [{**result["sites"][0], "name": name} for name in names]
        for metrics in result["tasks"].values():
            for arms in metrics.values():
                for arm in arms.values():
                    arm["per_site"] = dict.fromkeys(names, 0.7)
                    arm["per_site_ci"] = {name: [0.6, 0.8] for name in names}
        rows = Reader(render(result)).tables["C-index of survival by site"]
        assert list(rows) == names


def test_without_pooled_arm_and_validation() -> None:
    result = sample()
    for metrics in result["tasks"].values():
        for arms in metrics.values():
            del arms["pooled"]
    for entry in result["rounds"]:
        entry["validation"] = {}
    page = render(result)
    assert "validation C-index" not in page
    assert "not compared with pooled training (not part of this run)" in page
    assert "This run has no overall score of: pooled (survival), pooled (idh)" in page


def test_same_result_gives_the_same_bytes(tmp_path: Path) -> None:
    source = tmp_path / "result.json"
    source.write_text(json.dumps(SAMPLE))
    script = (
        "import json, sys; from pathlib import Path; from oncofed_server.report import render; "
        "sys.stdout.buffer.write(render(json.loads(Path(sys.argv[1]).read_text())).encode())"
    )
    other = subprocess.run(
        [sys.executable, "-c", script, str(source)],
        capture_output=True, check=True, env={"PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert write_report(SAMPLE, tmp_path / "new").read_bytes() == other.stdout


CLEAR = [0.71, 0.80]


@pytest.mark.parametrize(
    ("alone", "reference", "title", "words"),
    [
        ((0.59, [0.55, 0.63]), (0.62, [0.58, 0.66]), "Worth it.", "clearly better than a site"),
        ((0.752, [0.70, 0.79]), (0.60, [0.55, 0.65]), "No gain shown.", "no better than a site"),
        (
            (0.59, [0.55, 0.63]), (0.751, [0.70, 0.79]),
            "Better than a site alone, but age + sex alone does as well.",
            "no better than the reference age + sex (0.751)",
        ),
        (
            (0.59, [0.55, 0.63]), (0.80, [0.76, 0.84]),
            "Better than a site alone, but age + sex alone does better.",
            "lower than the reference age + sex (0.800)",
        ),
        (
            (0.72, [0.67, 0.77]), (0.60, [0.55, 0.65]), "Perhaps worth it: the intervals overlap.",
            "higher than a site alone on average (0.720), but the intervals overlap",
        ),
        ((0.85, [0.82, 0.88]), (0.6, None), "Not worth it: a site alone does better.", "worse than"),
        (
            (0.59, [0.55, 0.63]), (0.719, [0.67, 0.76]),
            "Worth it over a site alone; not shown to beat age + sex.", "but the intervals overlap",
        ),
    ],
)  # fmt: skip
def test_headline_is_honest(
    alone: tuple[float, list[float] | None],
    reference: tuple[float, list[float] | None],
    title: str,
    words: str,
) -> None:
    result = _set(_set(_set(sample(), "federated", 0.756, CLEAR), "alone", *alone), "reference", *reference)
    text = headline(result)
    assert text.startswith(title)
    assert words in text
    assert "0.756 (95 % interval 0.710 to 0.800)" in text
    assert "\n" not in text


def test_headline_names_another_reference_that_does_as_well() -> None:
    result = sample()
    result["references"]["linear"]["survival"]["c_index"]["overall"] = 0.755
    assert headline(result).endswith("no better than the reference all columns, linear (0.755).")
    assert "A simple reference model does as well, or better: all columns, linear (0.755)" in render(result)
    assert "all columns, linear" not in headline(sample())


def test_folds_are_runs_of_their_own_and_all_reference_models_are_in_the_re_splits() -> None:
    result = sample()
    for entry in result["rounds"]:
        entry["fold"] = entry["round"] % 2
    spreads = result["resplits"]["survival"]["c_index"]
    spreads["linear"] = spreads["reference"]
    read = Reader(render(result))
    assert set(read.tables["Bytes and time of each run"]) >= {"seed 0, fold 0", "seed 4, fold 1"}
    assert read.tables["Random re-splits of survival"]["Reference (all columns, linear)"][0] == 0.719


def test_headline_says_chance_and_absence() -> None:
    chance = headline(_set(sample(), "federated", 0.55, [0.49, 0.62]))
    assert chance.startswith("Not shown to be better than chance")
    result = _set(sample(), "federated", None, None)
    result["tasks"]["survival"]["c_index"]["federated"]["why"] = {"overall": "fewer than 3 events"}
    assert headline(result) == ("No federated result. There is no federated C-index for survival: fewer than 3 events.")


def test_for_whom_counts_sites_and_names_those_without_gain() -> None:
    result = sample()
    arms = result["tasks"]["survival"]["c_index"]
    for arm, scores in (("federated", (0.8, 0.8, 0.6)), ("alone", (0.6, 0.78, 0.7))):
        arms[arm]["per_site"] = dict(zip(("a", "b", "c"), scores, strict=True))
        arms[arm]["per_site_ci"] = {s: [v - 0.05, v + 0.05] for s, v in arms[arm]["per_site"].items()}
    study = read_study(result)
    assert study.main is not None
    assert verdict(study, study.main).evidence[0] == (
        "Site by site it scored higher than the site's own model at 2 of the 3 sites where both "
        "can be shown, with intervals apart at 1; not at c."
    )


def test_limits_follow_from_the_result(page: str) -> None:
    assert "No new hospital" not in page
    assert "That the network is needed for survival" in page
    assert "That the network is needed for idh" not in page
    assert "The overall score of survival within a cohort" in page
    assert "C-index of survival: 0.0021" in page
    assert "radiomics (111)" in page
    result = sample()
    for metrics in result["tasks"].values():
        for arms in metrics.values():
            for arm in arms.values():
                del arm["external"]
    result["seeds"] = [0]
    del result["resplits"]
    page = render(result)
    assert "No hospital outside the consortium was tested" in page
    assert "One random seed was run" in page
    assert "One split into training and test patients was used" in page


def test_privacy_is_shown_as_it_is(page: str) -> None:
    assert "No differential privacy: noise = none." in page
    assert "<li>tables of counts</li>" in page
    result = sample()
    result["sites"][0].update(epsilon=2.5, delta=1e-5)
    result["plan"] = {**PLAN, "privacy": {"noise": "site"}}
    assert Reader(render(result)).tables["Privacy spent"] == {"henry-ford": [2.5, 1e-5]}


def private_by_the_consortium(**more: Any) -> dict[str, Any]:
    result = sample()
    for site in result["sites"]:
        site.update(epsilon=2.9, delta=1e-5, epsilon_alone=9.25)
    privacy = {"noise": "consortium", "epsilon": 3, "sampling_rate": 0.5, "clip_norm": 1.0, "drop": 2, "collude": 1}
    result["plan"] = {**PLAN, "privacy": privacy}
    return result | more


def test_drop_collude_and_epsilon_if_all_others_collude_stand_beside_epsilon() -> None:
    page = render(private_by_the_consortium())
    reader = Reader(page)
    assert reader.tables["Privacy spent"]["henry-ford"] == [2.9, 1e-5, 9.25]
    assert "epsilon, noise by the consortium (drop 2, collude 1)" in page
    assert "at most 2 sites drop out of a sum and at most 1 site tell" in page
    assert "epsilon if all others collude" in page
    assert "group privacy of size m" in page
    assert "DP-SGD at each site" not in page
    without = private_by_the_consortium()
    for site in without["sites"]:
        site["epsilon_alone"] = None
    assert "no bound" in render(without)


def test_scores_that_no_site_releases_are_marked_everywhere() -> None:
    page = render(private_by_the_consortium())
    assert "What is released is the model alone." in page
    assert page.count("not released, simulation only") > len(STUDY["tasks"])
    assert "which is what sites release" not in page
    assert "the scores are among that" not in page
    row = {"task": "survival", "metric": "c_index", "value": 0.7, "ci": [0.6, 0.8], "why": "", "epsilon": 3.0}
    assert "What is released stands in Released scores." in render(private_by_the_consortium(released=[row]))


def test_noise_at_each_site_stands_beside_noise_drawn_once_and_nowhere_else() -> None:
    result = private_by_the_consortium()
    for metrics in result["tasks"].values():
        for arms in metrics.values():
            arms["site_noise"] = arms["pooled"]
    page = render(result)
    assert "Noise at each site (not released)" in page
    assert "what drawing it once is worth" in page
    assert "Noise at each site" not in render(result | {"plan": {**PLAN, "privacy": {"noise": "site"}}})


def test_what_nobody_counts_has_no_sum_and_what_nobody_says_no_curve() -> None:
    result = private_by_the_consortium()
    for site in result["sites"]:
        site.update(train=None, validation=None, test=None, modalities={}, events={})
    for entry in result["rounds"]:
        entry.update(train_loss=None, validation={}, divergence=None)
    page = render(result)
    assert "≥ 0" not in page
    assert "under a private plan no site says its loss" in page


scores = st.builds(
    lambda v, a, b: Score(value=v, low=v - a, high=v + b),
    *(st.floats(0, 1) for _ in range(3)),
)


@given(a=scores, b=scores)
def test_relation_is_antisymmetric_and_turns_for_brier(a: Score, b: Score) -> None:
    assert relate(a, b).value == -relate(b, a).value
    assert relate(a, b, "brier") is relate(b, a, "auc")
    if relate(a, b) is Relation.CLEARLY_ABOVE:
        assert a.low is not None
        assert b.high is not None
        assert a.low > b.high - 1e-9


@given(st.text())
def test_plain_text_has_no_control_characters_and_is_encodable(text: str) -> None:
    shown = plain(text)
    assert len(shown) == len(text)
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", shown)
    assert plain(shown) == shown


@given(low=st.floats(-1e6, 1e6), span=st.floats(1e-3, 1e6), most=st.integers(2, 9))
def test_ticks_are_few_ascending_and_inside(low: float, span: float, most: int) -> None:
    ticks = nice_ticks(low, low + span, most)
    assert len(ticks) <= most + 1
    assert ticks == sorted(set(ticks))
    slack = 1e-6 * max(1.0, abs(low), span)
    assert all(low - slack <= t <= low + span + slack for t in ticks)


def test_full_disk_leaves_the_old_report_and_nothing_else(tmp_path: Path) -> None:
    old = write_report({}, tmp_path).read_bytes()
    source = tmp_path.parent / f"{tmp_path.name}.json"
    source.write_text(json.dumps(SAMPLE))
    script = textwrap.dedent(
        """
        import json, resource, sys
        from pathlib import Path
        from oncofed_server.report import write_report
        from oncofed_shared.errors import StorageError
        result = json.loads(Path(sys.argv[1]).read_text())
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
        try:
            write_report(result, Path(sys.argv[2]))
        except StorageError as error:
            print(error)
            sys.exit(error.exit_code)
        """
    )
    run = subprocess.run(
        [sys.executable, "-c", script, str(source), str(tmp_path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 3, run.stderr
    assert "report.html" in run.stdout
    assert len(run.stdout.strip().splitlines()) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_bytes() == old


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(StorageError, match="cannot be written"):
        write_report({}, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


if __name__ == "__main__":
    print(write_report(sample(), Path(sys.argv[1])))
    print(headline(sample()))
