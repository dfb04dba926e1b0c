"""Names of columns that the plan lists: a site says nothing of its own, reads no other, and lacks what it has not measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from oncofed_client.reserving import known_parameters
from oncofed_shared.errors import ConfigError
from oncofed_shared.features import encoded_columns
from oncofed_shared.messages import Describe, Description, Head, Trial
from oncofed_shared.plan import Plan
from oncofed_shared.releases import uncharged
from oncofed_simulations.consortium import open_site

Make = Callable[..., Plan]
LISTED = ["TP53_mut", "KRAS_mut", "NOWHERE_mut"]
CLINICAL = {"table": "clinical", "scaling": "none", "columns": {"age": {"kind": "numeric", "range": [0, 120]}}}
GENES = {"table": "mutations", "patterns": ["{gene}_mut"], "scaling": "none"}
PRIVATE = {
    "noise": "consortium", "epsilon": 3.0, "delta": 1e-5, "clip_norm": 0.5, "sampling_rate": 0.5,
    "patients": {"site-1": 40, "site-2": 30, "site-3": 20},
}  # fmt: skip


def plan_of(make_plan: Make, **genes: object) -> Plan:
    return make_plan(modalities={"clinical": CLINICAL, "mutations": GENES | genes}, privacy=PRIVATE)


def described(plan: Plan, folder: Path) -> tuple[Description, dict[str, tuple[str, ...]]]:
    """What a site says, and the columns that it reads."""
    site = open_site(folder, plan, state=None, minimum=None)
    head = Head(session="s", step=1, attempt=0, plan_hash=plan.hash, trial=Trial(seed=0))
    answer = site.handle(Describe(head=head))
    assert isinstance(answer, Description)
    return answer, site.source.cohort(plan).columns


def test_a_site_under_a_private_plan_says_the_plans_names_and_reads_no_other(make_plan: Make, hospitals: Path) -> None:
    plan = plan_of(make_plan, vocabulary=LISTED)
    answer, read = described(plan, hospitals / "site-1")
    assert answer.columns == {"clinical": ("age",), "mutations": tuple(sorted(LISTED))}
    assert read["mutations"] == ("KRAS_mut", "TP53_mut")
    assert encoded_columns(plan.modalities["mutations"]) == tuple(sorted(LISTED))
    assert not [line for line in uncharged(plan) if "names of columns" in line]
    # The network's size is known before anybody is asked, so that approval reserves the whole budget.
    assert known_parameters(plan, seed=0)


def test_without_a_list_a_site_says_what_it_has_and_that_is_named(make_plan: Make, hospitals: Path) -> None:
    plan = plan_of(make_plan)
    answer, read = described(plan, hospitals / "site-1")
    assert answer.columns["mutations"] == read["mutations"]
    assert len(read["mutations"]) > 3
    (line,) = [line for line in uncharged(plan) if "names of columns" in line]
    assert "in mutations:" in line
    assert known_parameters(plan, seed=0) is None


@pytest.mark.parametrize(
    ("genes", "where"),
    [
        ({"vocabulary": ["TP53_rnaseq"]}, r"mutations\.vocabulary: 'TP53_rnaseq' fits no pattern"),
        (
            {"vocabulary": ["TP53_mut"], "exclude": ["TP53_*"]},
            "'TP53_mut' fits no pattern of this modality, or is excluded",
        ),
        ({"vocabulary": ["TP53_mut", "TP53_mut"]}, "must be distinct"),
        ({"vocabulary": []}, r"mutations\.vocabulary"),
    ],
)
def test_a_list_that_is_none_is_a_mistake_of_the_plan(make_plan: Make, genes: dict[str, object], where: str) -> None:
    with pytest.raises(ConfigError, match=where):
        plan_of(make_plan, **genes)
