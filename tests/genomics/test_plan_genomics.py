"""The plan's part: every mistake named with its path, and the hash follows what sites must agree on."""

from __future__ import annotations

import copy
from typing import get_args

import pytest

from oncofed_shared.errors import ConfigError
from oncofed_shared.plan import MutationFeatures, Plan, parse
from oncofed_shared.plan_genomics import CONSEQUENCES, Consequence

SEVERITY = {"source": "made for this test", "terms": {"stop_gained": 1.0}}
DRIVERS = {"source": "made for this test", "oncogenes": {"KRAS": 1.0}}
MUTATIONS = {"kind": "mutations", "severity": SEVERITY, "drivers": DRIVERS}
REFERENCE = {"source": "made for this test", "counts": {"TP53": 10.0}}


def study(make_plan, genomics, **modality) -> Plan:
    content = {"patterns": ["{gene}_mut", "{gene}_rnaseq", "{gene}_cnv"], "genomics": genomics, **modality}
    return make_plan(modalities__genes=content)


@pytest.mark.parametrize(
    ("genomics", "expected"),
    [
        ({"kind": "mutation"}, "genomics: .*'expression', 'copy_number', 'mutations'"),
        ({**MUTATIONS, "column": "mut"}, r"genomics\.column: must contain \{gene\} once"),
        ({**MUTATIONS, "column": "{gene}_other"}, r"genomics\.column: no column or pattern of this modality reads"),
        (
            {**MUTATIONS, "severity": {"source": "made up here", "terms": {"nonsense": 1.0}}},
            r"severity\.terms\.nonsense: ",
        ),
        ({**MUTATIONS, "severity": {"terms": {"stop_gained": 1.0}}}, r"severity\.source: is missing"),
        ({**MUTATIONS, "drivers": {**DRIVERS, "suppressors": {"KRAS": 1.0}}}, "KRAS: is an oncogene already"),
        ({**MUTATIONS, "drivers": {"source": "made for this test"}}, "drivers: names no gene"),
        ({**MUTATIONS, "drivers": {**DRIVERS, "oncogenes": {"KRAS": -1.0}}}, r"drivers\.oncogenes\.KRAS: "),
        ({"kind": "expression", "values": "tpm"}, "normalisation: 'size_factors' needs counts; with tpm use 'none'"),
        ({"kind": "expression", "normalisation": "none", "reference": REFERENCE}, "reference: goes with normalisation"),
        ({"kind": "expression", "values": "zscores", "normalisation": "none"}, "logarithm: z-scores have no logarithm"),
        ({"kind": "expression", "reference": {**REFERENCE, "counts": {"TP53": 0.0}}}, r"counts\.TP53: "),
        ({"kind": "expression", "genes": ["TP53", "TP53"]}, "genes: must be distinct"),
        (
            {"kind": "copy_number", "thresholds": {"source": "made for this test", "edges": [1, 0, 2, 3]}},
            "strictly ascending",
        ),
        (
            {
                "kind": "copy_number",
                "values": "log2",
                "thresholds": {"source": "made for this test", "edges": [0, 1, 2, 3]},
            },
            "thresholds: goes with values = 'calls'",
        ),
    ],
)
def test_every_mistake_is_named_with_its_path(make_plan, genomics, expected):
    with pytest.raises(ConfigError, match=expected) as caught:
        study(make_plan, genomics)
    assert all(p.startswith("study: modalities.genes.genomics") for p in caught.value.problems)


def test_what_sites_agree_on_is_in_the_hash_and_a_study_without_it_keeps_its_own(make_plan):
    plain = make_plan()
    assert b"genomics" not in plain.canonical
    first = study(make_plan, MUTATIONS)
    changed = copy.deepcopy(MUTATIONS)
    changed["drivers"]["oncogenes"]["KRAS"] = 2.0
    assert len({plain.hash, first.hash, study(make_plan, changed).hash}) == 3
    again = parse(first.model_dump(mode="json"))
    assert again.hash == first.hash


def test_a_private_study_needs_a_reference(make_plan):
    privacy = {
        "noise": "site", "epsilon": 1.0, "delta": 1e-5, "clip_norm": 1.0, "sampling_rate": 0.1, "patients": {"site-1": 30},
    }  # fmt: skip
    constants = {"scaling": "constants", "center": 0.0, "spread": 1.0}
    genes = {"patterns": ["{gene}_rnaseq"], "genomics": {"kind": "expression"}, **constants}
    with pytest.raises(ConfigError, match=r"modalities\.genes\.genomics\.reference: is missing; with privacy"):
        make_plan(modalities={"genes": genes}, privacy=privacy)
    genes["genomics"] = {"kind": "expression", "reference": REFERENCE}
    make_plan(modalities={"genes": genes}, privacy=privacy)


def test_columns_of_mutations_follow_from_the_plan_alone(make_plan):
    drivers = {**DRIVERS, "suppressors": {"TP53": 2.0}, "other": 0.5}
    features = study(make_plan, {**MUTATIONS, "drivers": drivers, "genes": ["PTEN"]}).modalities["genes"].genomics
    assert isinstance(features, MutationFeatures)
    assert features.all_genes == ("KRAS", "PTEN", "TP53")
    assert [features.drivers.weight(g) for g in features.all_genes] == [1.0, 0.5, 2.0]


def test_the_words_for_consequences_are_one_list():
    assert get_args(Consequence) == CONSEQUENCES
    assert len(set(CONSEQUENCES)) == len(CONSEQUENCES)
