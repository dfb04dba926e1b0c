"""The study plan: every mistake named with its path, all at once; one hash, equal on every machine."""

from __future__ import annotations

import copy
import datetime as dt
import json
import math
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from oncofed_shared.errors import ConfigError, ExitCode
from oncofed_shared.plan import Plan, compile_pattern, load, parse, read_toml
from oncofed_shared.ring import RING_LIMIT

STUDY: dict[str, Any] = {
    "main_task": "survival",
    "study": {"name": "known", "purpose": "a plan whose hash everybody knows"},
    "tasks": {
        "survival": {"kind": "survival", "time": "days", "event": "event", "edges": [0, 365, 730.5], "horizon": 365},
        "response": {"kind": "classification", "label": "response", "classes": ["no", "yes"], "weight": 0.5},
    },
    "modalities": {
        "clinical": {
            "tokens": "columns",
            "columns": {
                "age": {"kind": "numeric", "unit": "years", "range": [0, 120]},
                "sex": {"kind": "categorical", "categories": ["female", "male"]},
                "stage": {"kind": "ordinal", "order": ["I", "II", "III"]},
            },
        },
        "genes": {"patterns": ["{gene}_rnaseq"], "tokens": {"a": ["A*"], "b": ["B*"]}, "transform": "signed_log"},
    },
    "model": {"width": 8, "heads": 2},
    "training": {"rounds": 3, "rate": 0.1, "class_weights": {"response": [1.0, 2.0]}},
    "strategy": {"name": "fedadam", "rate": 0.01},
    "evaluation": {
        "split": {"train": 0.6, "validation": 0.2, "test": 0.2},
        "subgroups": {"age": {"column": "age", "edges": [0, 50, 120]}},
        "reference": {"age": {"features": ["age"]}},
        "main_reference": "age",
    },
    "privacy": {"noise": "none"},
    "simulation": {"cohort": {"sites": 3, "patients": 30, "seed": 1}},
}


def study(**changes: Any) -> dict[str, Any]:
    """The study with values put at dotted paths; `...` deletes."""
    content = copy.deepcopy(STUDY)
    for path, value in changes.items():
        *parents, last = path.split("__")
        here = content
        for name in parents:
            here = here.setdefault(name, {})
        if value is ...:
            del here[last]
        else:
            here[last] = copy.deepcopy(value)
    return content


def problems(content: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(content)
    assert caught.value.exit_code is ExitCode.INPUT
    return list(caught.value.problems)


def test_hash_of_a_known_plan() -> None:
    # Changes only with the schema: then a released plan has another hash, and `format` must change with it.
    assert parse(STUDY).hash == "fbfc6581487c7d5dec38c9f780057e8a91c70bfe5e68706ad7590e1747b06c75"


def test_canonical_form_is_sorted_ascii_json_without_the_simulation() -> None:
    plan = parse(STUDY)
    content = json.loads(plan.canonical)
    assert "simulation" not in content
    assert plan.canonical == json.dumps(content, sort_keys=True, separators=(",", ":")).encode("ascii")
    # What was read back is the same plan: the form says everything.
    assert parse(content).hash == plan.hash


MISTAKES = {
    "unknown key": ({"training__epochs": 3}, "training.epochs: unknown key"),
    "unknown table": ({"trainning": {}}, "trainning: unknown key"),
    "missing": ({"training__rounds": ...}, "training.rounds: is missing"),
    "text for a number": ({"training__rate": "0.1"}, "training.rate: "),
    "truth for a number": ({"training__rounds": True}, "training.rounds: "),
    "number for a truth": ({"model__linear_path": 1}, "model.linear_path: "),
    "fraction for a count": ({"training__rounds": 2.5}, "training.rounds: "),
    "number for a text": ({"study__name": 7}, "study.name: "),
    "text for a list": ({"modalities__genes__patterns": "{gene}"}, "modalities.genes.patterns: "),
    "in a task that is named like its kind": (
        {"tasks__survival__edges": [0, "x", 730.5]},
        "tasks.survival.edges.1: ",
    ),
    "unknown kind": ({"tasks__survival__kind": "cox"}, "tasks.survival: "),
    "edges descend": ({"tasks__survival__edges": [0, 365, 100]}, "tasks.survival.edges: must be strictly ascending"),
    "edges start late": ({"tasks__survival__edges": [1, 365, 730]}, "tasks.survival.edges: must start at 0"),
    "horizon elsewhere": ({"tasks__survival__horizon": 100}, "tasks.survival.horizon: must be one of edges"),
    "classes twice": ({"tasks__response__classes": ["no", "no"]}, "tasks.response.classes: must be distinct"),
    "categories twice": (
        {"modalities__clinical__columns__sex__categories": ["f", "f"]},
        "modalities.clinical.columns.sex.categories: must be distinct",
    ),
    "range upside down": (
        {"modalities__clinical__columns__age__range": [120, 0]},
        "modalities.clinical.columns.age.range: must be strictly ascending",
    ),
    "column without its list": (
        {"modalities__clinical__columns__sex__categories": ...},
        "modalities.clinical.columns.sex.categories: is missing",
    ),
    "neither columns nor patterns": ({"modalities__genes__patterns": ...}, "modalities.genes.patterns: give either"),
    "a pattern with two equal parts": (
        {"modalities__genes__patterns": ["{g}_{g}"]},
        "modalities.genes.patterns: pattern",
    ),
    "the same in a token": ({"modalities__genes__tokens": {"a": ["{g}_{g}"]}}, "modalities.genes.tokens: pattern"),
    "a token's pattern is no text": ({"modalities__genes__tokens": {"a": [1]}}, "modalities.genes.tokens.a.0: "),
    "neither of two types": ({"training__batch": "some"}, "training.batch: "),
    "batch of nobody": ({"training__batch": 0}, "training.batch: "),
    "constants without numbers": ({"modalities__genes__scaling": "constants"}, "modalities.genes.spread: center and"),
    "numbers without constants": ({"modalities__genes__center": 1.0}, "modalities.genes.spread: center and"),
    "logarithm of a negative range": (
        {"modalities__genes__transform": "log", "modalities__genes__range": [-1, 1]},
        "modalities.genes.transform: 'log' takes no negative value",
    ),
    "heads do not divide": ({"model__heads": 3}, "model.heads: width must be a multiple"),
    "no network": ({"model__layers": 0, "model__linear_path": False}, "model.linear_path: layers = 0"),
    "infinite": ({"training__rate": math.inf}, "training.rate: Input should be a finite number"),
    "not a number": ({"training__dropout": math.nan}, "training.dropout: Input should be a finite number"),
    "not a number, deep": (
        {"evaluation__subgroups__age__edges": [0, math.nan]},
        "evaluation.subgroups.age.edges.1: Input should be a finite number",
    ),
    "split adds up to more": ({"evaluation__split__test": 0.9}, "evaluation.split.test: train + validation + test"),
    "published split without a part": (
        {"evaluation__split": {"column": "fold", "train": ["train"]}},
        "evaluation.split.test: is missing",
    ),
    "published split, a value in two parts": (
        {"evaluation__split": {"column": "fold", "train": ["a"], "test": ["a"]}},
        "evaluation.split.test: must be distinct",
    ),
    "unknown main task": ({"main_task": "x"}, "main_task: no task has this name; there are"),
    "weights of no task": ({"training__class_weights": {"x": [1.0]}}, "training.class_weights.x: not a class"),
    "weights too few": ({"training__class_weights": {"response": [1.0]}}, "training.class_weights.response: 1 weights"),
    "unknown reference": ({"evaluation__main_reference": "x"}, "evaluation.main_reference: expected one of age"),
    "a name with a dot": ({"tasks": {"a.b": STUDY["tasks"]["survival"]}, "main_task": "a.b"}, "tasks.a.b: "),
    "overflow": ({"training__max_sites": 100_000}, "training.max_sites: range x max_sites"),
    "a date": ({"study__purpose": dt.date(2020, 1, 1)}, "dates are not used here"),
}


@pytest.mark.parametrize(("changes", "expected"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_named_with_its_path_and_once(changes: dict[str, Any], expected: str) -> None:
    if "training__class_weights" not in changes and "tasks" in changes:
        changes = {**changes, "training__class_weights": "none"}
    found = problems(study(**changes))
    assert len(found) == 1, found
    assert found[0].startswith(f"study: {expected}"), found[0]


def test_all_mistakes_are_named_at_once() -> None:
    one_of_each = {
        "training__epochs": 3,
        "training__rate": "0.1",
        "training__max_sites": 100_000,
        "tasks__survival__horizon": 100,
        "tasks__response__classes": ["no"],
        "modalities__genes__tokens": 0,
        "modalities__clinical__columns__age__range": [1, 0],
        "model__heads": 3,
        "evaluation__main_reference": "x",
        "evaluation__split__test": 0.9,
    }
    found = problems(study(**one_of_each))
    paths = {line.split(": ")[1] for line in found}
    assert paths == {key.replace("__", ".") for key in one_of_each}
    assert len(found) == len(one_of_each)


@given(st.sampled_from(sorted(MISTAKES)), st.sampled_from(sorted(MISTAKES)))
@settings(max_examples=40)
def test_mistakes_never_end_in_another_error(one: str, two: str) -> None:
    both = MISTAKES[two][0] | MISTAKES[one][0]
    assert problems(study(**both))


def test_a_sum_that_could_overflow_the_ring_is_refused() -> None:
    sites = 1000
    fits = RING_LIMIT / sites
    parse(study(training__range=fits, training__max_sites=sites))
    assert (
        "overflows the ring" in problems(study(training__range=math.nextafter(fits, 1e9), training__max_sites=sites))[0]
    )
    assert "overflows the ring" in problems(study(training__range=RING_LIMIT))[0]


def shuffled(content: Any, random: Any) -> Any:
    if isinstance(content, dict):
        keys = list(content)
        random.shuffle(keys)
        return {k: shuffled(content[k], random) for k in keys}
    return [shuffled(v, random) for v in content] if isinstance(content, list) else content


@given(st.randoms(use_true_random=False))
@settings(max_examples=40)
def test_the_order_of_keys_means_nothing(random: Any) -> None:
    other, plan = parse(shuffled(STUDY, random)), parse(STUDY)
    assert other.hash == plan.hash
    assert list(other.modalities) == list(plan.modalities)
    assert other.task_names == plan.task_names


@given(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=3) | st.none())
@settings(max_examples=25)
def test_the_simulation_is_not_part_of_the_hash(cohort: Any) -> None:
    assert parse(study(simulation={"cohort": cohort})).hash == parse(STUDY).hash
    assert parse(study(simulation=...)).hash == parse(STUDY).hash


def leaves(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(content, dict):
        return [leaf for k, v in content.items() for leaf in leaves(v, (*path, k))]
    if isinstance(content, list):
        return [leaf for i, v in enumerate(content) for leaf in leaves(v, (*path, i))]
    return [path]


CANONICAL = json.loads(parse(STUDY).canonical)


def other_value(value: Any, random: Any) -> list[Any]:
    """Values of the same kind, and null."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int | float):
        return [value + random.choice([1, 2, 8]), value / 2, value * 1.5, -value]
    if isinstance(value, str):
        return [value + "x", "none", "log", "minmax", "drop", "fedavg", "adam", "float64", "sgd", "balanced", "free"]
    return [1.0, "x", ["x"], {"a": ["x"]}]


@given(st.sampled_from(leaves(CANONICAL)), st.randoms(use_true_random=False))
@settings(max_examples=300)
def test_the_hash_changes_with_everything_else(path: tuple[Any, ...], random: Any) -> None:
    content = copy.deepcopy(CANONICAL)
    here = content
    for name in path[:-1]:
        here = here[name]
    before = here[path[-1]]
    here[path[-1]] = random.choice(other_value(before, random))
    try:
        changed = parse(content)
    except ConfigError:
        return
    assert (changed.hash == parse(CANONICAL).hash) == (repr(here[path[-1]]) == repr(before))


def test_numbers_may_be_written_as_integers() -> None:
    assert parse(study(training__rate=1)).hash == parse(study(training__rate=1.0)).hash


def test_a_plan_cannot_be_changed() -> None:
    plan = parse(STUDY)
    with pytest.raises(ValidationError):
        plan.training.rounds = 5  # type: ignore[misc]


def test_the_first_task_and_reference_written_are_the_main_ones() -> None:
    plan = parse(study(main_task=..., evaluation__main_reference=...))
    assert plan.main_task == "survival"
    assert plan.task_names == ("survival", "response")
    assert plan.evaluation.main_reference == "age"
    assert plan.hash == parse(STUDY).hash


def test_files_are_read_and_their_mistakes_have_the_file(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text(tomli_w.dumps(STUDY), encoding="utf-8")
    assert load(path).hash == parse(STUDY).hash
    path.write_text(tomli_w.dumps(study(training__epochs=3)), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"study\.toml: training\.epochs: unknown key"):
        load(path)


def test_a_file_that_is_no_toml_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text("[study]\nname = x\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="line 2"):
        read_toml(path)
    path.write_bytes(b'name = "\xff"')
    with pytest.raises(ConfigError, match="UTF-8"):
        read_toml(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_toml(tmp_path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_toml(tmp_path / "absent.toml")


@given(st.text(max_size=20), st.text(max_size=20))
def test_a_pattern_matches_its_own_text_and_nothing_of_it_is_a_regular_expression(text: str, gene: str) -> None:
    plain = text.replace("{", "").replace("*", "").replace("\n", "")
    gene = gene.replace("\n", "") or "g"
    assert compile_pattern(plain).fullmatch(plain)
    found = compile_pattern(plain + "{gene}_x").fullmatch(plain + gene + "_x")
    assert found is not None
    assert found["gene"] == gene
    assert compile_pattern(plain + "*").fullmatch(plain + gene)


def test_groups_of_a_subgroup_are_named_in_order() -> None:
    subgroups = {"age": {"column": "age", "edges": [0, 50, 120]}, "sex": {"column": "sex", "values": ["m", "f"]}}
    plan: Plan = parse(study(evaluation__subgroups=subgroups))
    assert plan.evaluation.subgroups["age"].groups == ("0-50", "50-120")
    assert plan.evaluation.subgroups["sex"].groups == ("m", "f")
