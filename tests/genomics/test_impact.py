"""MutationImpact by hand, panels that lack a gene, and a whole site from its files to the study's columns."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oncofed_client.genomics.expression import read_expression
from oncofed_client.genomics.genes import GeneNames
from oncofed_client.genomics.impact import mutation_impact, read_mutations
from oncofed_client.genomics.inventory import summarise
from oncofed_client.genomics.mutations import Mutation, Mutations
from oncofed_client.genomics.settings import GenomicsSettings
from oncofed_client.genomics.source import genomic_files, read_genomics
from oncofed_shared.errors import ConfigError, DataError
from oncofed_shared.plan import ExpressionFeatures, MutationFeatures, Plan, validate
from oncofed_shared.plan_genomics import CONSEQUENCES

IMPACT = {
    "kind": "mutations",
    "genes": ["PTEN"],
    "severity": {"source": "made for this test", "terms": {"stop_gained": 1.0, "missense_variant": 0.5}},
    "drivers": {
        "source": "made for this test",
        "oncogenes": {"KRAS": 1.5},
        "suppressors": {"TP53": 2.0},
        "other": 0.25,
    },
}
FEATURES = validate(MutationFeatures, IMPACT, "study")
NAMES = GeneNames()


def mutation(patient: str, gene: str, what: str, position: int = 1) -> Mutation:
    return Mutation(patient, gene, "1", position, "A", "T", what)  # type: ignore[arg-type]


def scores(rows, covered, panels=None):
    return mutation_impact(Mutations.of(rows, covered, ()), FEATURES, NAMES, panels or {})


def test_a_score_by_hand():
    rows = [
        mutation("P1", "TP53", "stop_gained"),
        mutation("P1", "TP53", "missense_variant", 2),
        mutation("P1", "TP53", "synonymous_variant", 3),
        mutation("P1", "PTEN", "missense_variant"),
        mutation("P2", "KRAS", "missense_variant"),
    ]
    table = scores(rows, {"P2": frozenset({"exome"}), "P1": frozenset({"exome"}), "P3": frozenset({"exome"})})
    assert table.columns == ("KRAS_mut", "PTEN_mut", "TP53_mut")
    assert table.patients == ("P1", "P2", "P3")
    assert table.values.tolist() == [[0, 0.125, 3.0], [0.75, 0, 0], [0, 0, 0]]


ROWS = st.lists(
    st.builds(
        mutation,
        st.sampled_from(["P1", "P2", "P3"]),
        st.sampled_from(["KRAS", "PTEN", "TP53"]),
        st.sampled_from(CONSEQUENCES),
        st.integers(1, 5),
    )
)
EXOMES = dict.fromkeys(["P1", "P2", "P3"], frozenset({"exome"}))


@given(ROWS, st.randoms(use_true_random=False))
def test_scores_are_the_sum_of_f_times_w_whatever_the_order(rows, random):
    table = scores(rows, EXOMES)
    # A mutation is one allele at one position; reported twice it counts once, as the gravest.
    found: dict[tuple[str, str, int], int] = {}
    for row in rows:
        key, rank = (row.patient, row.gene, row.position), CONSEQUENCES.index(row.consequence)
        found[key] = min(rank, found.get(key, rank))
    for i, patient in enumerate(table.patients):
        for j, gene in enumerate(("KRAS", "PTEN", "TP53")):
            f = [
                FEATURES.severity.terms.get(CONSEQUENCES[r], 0)
                for (p, g, _), r in found.items()
                if (p, g) == (patient, gene)
            ]
            assert table.values[i, j] == pytest.approx(sum(f) * {"KRAS": 1.5, "PTEN": 0.25, "TP53": 2.0}[gene])
    random.shuffle(rows)
    np.testing.assert_array_equal(scores(rows, EXOMES).values, table.values)
    one = scores([r for r in rows if r.patient == "P2"], {"P2": EXOMES["P2"]})
    np.testing.assert_array_equal(one.values[0], table.values[1], "a patient depends on himself alone")


def test_a_panel_that_lacks_a_gene_is_missing_and_not_zero():
    covered = {"P1": frozenset({"small"}), "P2": frozenset({"small", "other"}), "P3": frozenset({"small", "exome"})}
    panels = {"small": frozenset({"TP53", "KRAS"}), "other": frozenset({"PTEN"})}
    rows = [mutation("P1", "TP53", "stop_gained"), mutation("P1", "PTEN", "stop_gained")]
    table = scores(rows, covered, panels)
    np.testing.assert_array_equal(table.values, [[0, np.nan, 2], [0, 0, 0], [0, 0, 0]])
    assert table.problems == ("1 scores were left out, because the gene is not in the panel that the patient had",)


MAF = (
    "Hugo_Symbol\tChromosome\tStart_Position\tVariant_Classification\tReference_Allele\tTumor_Seq_Allele2\tTumor_Sample_Barcode\n"
    "p53\t17\t100\tNonsense_Mutation\tC\tT\tS1\nK-RAS\t12\t5\tMissense_Mutation\tG\tA\tS2\n"
)
FILES = {
    "m.maf": MAF,
    "small.txt": "TP53\nK-RAS\nNOGENE1\n",
    "samples.tsv": "sample_id\tpatient_id\tassay\nS1\tP1\tsmall\nS2\tP2\t\nS3\tP3\tsmall\n",
    "rna.tsv": "gene\tS1\tS2\nTP53\t10\t20\nKRAS\t30\t40\n",
    "cna.txt": "Hugo_Symbol\tS1\tS3\nTP53\t-2\t0\n",
}
SETTINGS = {
    "samples": {"file": "samples.tsv", "panel": "assay"},
    "panels": {"small": "small.txt"},
    "mutations": {"files": ["*.maf"], "panel": "exome"},
    "expression": {"files": ["rna.tsv"]},
    "copy_number": {"files": ["cna.txt"], "format": "genes", "values": "calls"},
}


def test_panels_of_samples_come_from_their_table(site):
    made = site(FILES, **SETTINGS)
    found = read_mutations(made, FEATURES)
    assert found.covered == {"P1": {"small"}, "P2": {"exome"}, "P3": {"small"}}
    assert [p.split(": ", 1)[1] for p in found.problems] == ["1 names of genes could not be mapped: NOGENE1"]
    unknown = FILES["samples.tsv"].replace("small", "bigger")
    with pytest.raises(DataError, match=r"names 1 panels that are not under genomics\.panels; there are exome, small"):
        read_mutations(site({**FILES, "samples.tsv": unknown}, **SETTINGS), FEATURES)


def genomic_plan(make_plan) -> Plan:
    modalities = {
        "mutations": {"patterns": ["{gene}_mut"], "genomics": copy.deepcopy(IMPACT)},
        "expression": {
            "patterns": ["{gene}_rnaseq"],
            "genomics": {"kind": "expression", "genes": ["TP53"], "normalisation": "none", "logarithm": False},
        },
        "cnv": {"patterns": ["{gene}_cnv"], "genomics": {"kind": "copy_number", "genes": ["TP53", "KRAS"]}},
        "clinical": {"columns": {"age": {"kind": "numeric"}}},
    }
    return make_plan(modalities=modalities)


def test_a_site_from_its_files_to_the_columns_of_the_study(site, make_plan):
    made = site(FILES, **SETTINGS)
    plan = genomic_plan(make_plan)
    tables = read_genomics(made.folder, made.settings, plan)
    assert set(tables) == {"mutations", "expression", "cnv"}
    np.testing.assert_array_equal(
        tables["mutations"].rows_of(["P1", "P2", "P3"]), [[0, np.nan, 2], [0.75, 0, 0], [0, np.nan, 0]]
    )
    np.testing.assert_array_equal(tables["expression"].rows_of(["P1", "P2", "P3"]), [[10], [20], [np.nan]])
    np.testing.assert_array_equal(tables["cnv"].rows_of(["P1", "P3"]), [[-2, np.nan], [0, np.nan]])
    only = made.settings.model_copy(update={"expression": None, "copy_number": None})
    assert set(read_genomics(made.folder, only, plan)) == {"mutations"}


def test_a_summary_without_a_study(site):
    made = site({**FILES, "broken.maf": "a\tb\n"}, **SETTINGS)
    found = {Path(s.file).name: s for s in summarise(made.folder, made.settings)}
    assert set(found) == {"rna.tsv", "cna.txt", "m.maf", "broken.maf"}
    counted = {name: (s.kind, s.holds, s.patients, s.genes) for name, s in found.items() if s.holds}
    assert counted == {
        "rna.tsv": ("expression", "counts", 2, 2),
        "cna.txt": ("copy_number", "calls", 2, 1),
        "m.maf": ("mutations", "2 mutations in known genes", 2, None),
    }
    assert "row 1: expected the header of a MAF" in found["broken.maf"].problems[0]


def test_every_file_that_decides_is_named_for_the_cache(site):
    made = site({**FILES, "places.tsv": "x"}, **SETTINGS, gene_table="places.tsv")
    found = [p.name for p in genomic_files(made.folder, made.settings)]
    assert found == sorted(["hgnc.tsv", "places.tsv", *FILES])
    (made.folder / "rna.tsv").unlink()
    with pytest.raises(DataError, match=r"rna\.tsv: does not exist"):
        read_expression(made, ExpressionFeatures(kind="expression"))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"aliases": "../names.tsv"}, "aliases: must lie in the site's folder"),
        ({"expression": {"files": ["/etc/*"]}}, r"expression\.files\.0: must lie in the site's folder"),
        ({"expression": {"files": ["C:\\x"]}}, "must lie in the site's folder"),
        ({"expression": {"files": []}}, r"expression\.files: "),
        ({"panels": {"exome": "x"}}, "'exome' means every gene and takes no file"),
        (
            {"mutations": {"files": ["a.vcf"], "panel": "small"}},
            r"mutations\.panel: no panel has this name; there are exome",
        ),
        ({"mutations": {"files": ["a.vcf"]}}, r"mutations\.panel: is missing"),
        ({"mutations": {"files": ["a.vcf"], "panel": "exome", "tumour": "T"}}, "goes with patient = 'file'"),
        ({"copy_number": {"files": ["a"], "format": "segments", "values": "log2"}}, "segments need gene_table"),
        ({"copy_number": {"files": ["a"], "format": "segments", "values": "calls"}}, "segments hold 'log2' ratios"),
        ({"samples": {"file": "a", "characters": 12}}, "give either file or characters"),
        ({"samples": {}}, "give either file or characters"),
        ({"samples": {"characters": 12, "panel": "x"}}, "is a column of file, which is missing"),
        ({"colour": 1}, "colour: unknown key"),
    ],
)
def test_settings_name_every_mistake(content, expected):
    with pytest.raises(ConfigError, match=expected):
        validate(GenomicsSettings, content, "site.toml: genomics")


def test_the_table_of_samples_is_checked(site, tmp_path: Path):
    for text, expected in (
        ("x\ty\n", "row 1: expected the column 'sample_id'"),
        ("sample_id\tpatient_id\nS1\n", "row 2: expected 2 cells"),
        ("sample_id\tpatient_id\nS1\t\n", "row 2: expected a sample and a patient"),
        ("sample_id\tpatient_id\nS1\tP1\nS1\tP2\n", "row 3: this sample stands in an earlier row too"),
    ):
        with pytest.raises(DataError, match=expected) as caught:
            site({"l.tsv": text}, samples={"file": "l.tsv"})
        assert "P1" not in str(caught.value).replace(str(tmp_path), "")
