"""A plan with noise drawn once: numbers of sites that can keep its promise, and nothing that has no place in a summed step."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oncofed_shared.errors import ConfigError
from oncofed_shared.plan import ConsortiumPrivacy, Plan, parse
from oncofed_shared.releases import uncharged

STUDY: dict[str, Any] = {
    "study": {"name": "private", "purpose": "see that nobody is seen"},
    "tasks": {"r": {"kind": "classification", "label": "r", "classes": ["no", "yes"]}},
    "modalities": {"genes": {"scaling": "minmax", "range": [0, 4], "patterns": ["g*"]}},
    "training": {"rounds": 3},
    "strategy": {"name": "fedavg"},
    "privacy": {
        "noise": "consortium",
        "epsilon": 3,
        "delta": 1e-5,
        "clip_norm": 1,
        "sampling_rate": 0.5,
        "patients": {"alpha": 60, "beta": 40, "gamma": 30},
    },
}


def study(changes: dict[str, Any]) -> dict[str, Any]:
    """The study with values at dotted paths; `...` deletes."""
    content = copy.deepcopy(STUDY)
    for path, value in changes.items():
        *parents, last = path.split(".")
        here = content
        for name in parents:
            here = here.setdefault(name, {})
        if value is ...:
            del here[last]
        else:
            here[last] = value
    return content


def of_sites(sites: int, **privacy: Any) -> Plan:
    patients = {f"site-{i}": 50 for i in range(sites)}
    return parse(study({"privacy": STUDY["privacy"] | {"patients": patients} | privacy}))


MISTAKES = {
    "two sites": ({"privacy.patients.gamma": ...}, "privacy.patients: has 2 sites; a sum of fewer than 3 hides nobody"),
    "nobody colludes": ({"privacy.collude": 0}, "privacy.collude: must be at least 1"),
    "too many drop": ({"privacy.drop": 1}, "privacy.drop: 3 sites, 1 of whom collude, open a sum only by 3 together, so at most 0"),
    "too many collude": ({"privacy.collude": 3}, "privacy.drop: 3 sites, 3 of whom collude"),
    "low threshold": ({"privacy.threshold": 2}, "privacy.threshold: must be 3 to 3: 2 x threshold > sites + collude"),
    "ring": ({"privacy.ring_bits": 24}, "privacy.ring_bits: "),
    "no spare": ({"privacy.spare_steps": -1}, "privacy.spare_steps: Input should be greater than or equal to 0"),
    "tables": ({"privacy.release_tables": True}, "privacy.release_tables: unknown key"),
    "local steps": ({"training.local_steps": 2}, "training.local_steps: must be 1 with noise = 'consortium'"),
    "adam": ({"training.optimiser": "adam"}, "training.optimiser: must be 'sgd' without momentum"),
    "momentum": ({"training.momentum": 0.5}, "training.optimiser: must be 'sgd' without momentum"),
    "some asked": ({"strategy.participation": 0.5}, "strategy.participation: must be 1 with noise = 'consortium'"),
    "dropout": ({"training.dropout": 0.1}, "training.dropout: must be 0 with privacy"),
    "input dropout": ({"training.input_dropout": 0.1}, "training.input_dropout: must be 0 with privacy"),
    "batch": ({"training.batch": 16}, "training.batch: must be 'all' with privacy"),
    "folds": ({"evaluation.folds": 5}, "evaluation.folds: must be left out with privacy"),
    "scores": ({"privacy.score_epsilon": 0}, "privacy.score_epsilon: Input should be greater than 0"),
    "scaffold": ({"strategy.name": "scaffold"}, "privacy.noise: 'consortium' cannot be combined with scaffold"),
    "local layers": ({"strategy.local": ["linear.*"]}, "privacy.noise: 'consortium' cannot be combined with fedavg with"),
    "delta": ({"privacy.delta": 0.01}, "privacy.delta: must be below 1 / (patients of all sites), 1 / 130"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_named_with_its_path(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(study(changes))
    assert any(p.startswith(f"study: {message}") for p in caught.value.problems), caught.value.problems


@pytest.mark.parametrize("noise", ["site", "consortium"])
def test_dropout_is_refused_wherever_there_is_noise_and_nowhere_else(noise: str) -> None:
    changes = {"training.dropout": 0.1, "privacy.noise": noise}
    with pytest.raises(ConfigError, match=r"training\.dropout: must be 0"):
        parse(study(changes))
    parse(study({"training.dropout": 0.1, "privacy": {"noise": "none"}}))


@given(
    sites=st.integers(1, 60),
    drop=st.integers(0, 60),
    collude=st.integers(0, 60),
    threshold=st.none() | st.integers(2, 61),
)
def test_numbers_of_sites_are_legal_exactly_when_the_rule_says_so(
    sites: int, drop: int, collude: int, threshold: int | None
) -> None:
    smallest = next(t for t in range(200) if 2 * t > sites + collude)
    t = smallest if threshold is None else threshold
    legal = sites >= 3 and collude >= 1 and 2 * t > sites + collude and sites - drop >= t
    chosen = {} if threshold is None else {"threshold": threshold}
    if not legal:
        with pytest.raises(ConfigError, match=r"^study: privacy\.(patients|drop|collude|threshold): "):
            of_sites(sites, drop=drop, collude=collude, **chosen)
        return
    privacy = of_sites(sites, drop=drop, collude=collude, **chosen).privacy
    assert isinstance(privacy, ConsortiumPrivacy)
    assert privacy.threshold == t
    # Two groups that open a sum have more in common than all who collude, and honest shares remain.
    assert 2 * t - sites > collude
    assert privacy.honest == sites - drop - collude >= 1


def test_a_reference_may_count_on_nobody_colluding() -> None:
    privacy = of_sites(3, reference=True, collude=0).privacy
    assert isinstance(privacy, ConsortiumPrivacy)
    assert (privacy.collude, privacy.threshold, privacy.honest) == (0, 2, 3)


def test_the_threshold_that_was_filled_in_is_in_the_hash() -> None:
    left_out, written = of_sites(5), of_sites(5, threshold=4)
    assert left_out.hash == written.hash
    assert left_out.hash != of_sites(5, threshold=5).hash
    assert parse(left_out.model_dump(mode="json")) == left_out


def test_what_leaves_uncharged_is_neither_an_update_nor_a_table() -> None:
    lines = uncharged(parse(study({})), runs=3)
    assert not any(word in line for line in lines for word in ("update", "tables", "sums", "numbers of patients"))
    assert any("2 more training runs" in line for line in lines)
