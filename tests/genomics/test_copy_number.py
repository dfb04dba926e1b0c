"""Copy number: what segments mean for a gene, base by base, and what files of other kinds are refused with."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oncofed_client.genomics.copy_number import as_calls, read_copy_number
from oncofed_client.genomics.segments import GenePlace, Segment, gene_means
from oncofed_shared.errors import ConfigError, DataError
from oncofed_shared.plan import CopyNumberFeatures, validate

CNVKIT = {"source": "the defaults of `cnvkit call`", "edges": [-1.1, -0.25, 0.2, 0.7]}


def features(**given_: object) -> CopyNumberFeatures:
    return validate(CopyNumberFeatures, {"kind": "copy_number", **given_}, "study")


PLACES = st.tuples(st.sampled_from("12"), st.integers(1, 60), st.integers(1, 60)).map(
    lambda t: GenePlace(chromosome=t[0], start=min(t[1:]), end=max(t[1:]))
)


@st.composite
def segments(draw):
    """Segments side by side, with gaps, on two chromosomes."""
    made = []
    for where in "12":
        cuts = sorted(draw(st.sets(st.integers(1, 60), max_size=8)))
        for start, after in pairwise(cuts):
            if draw(st.booleans()):
                mean = draw(st.floats(-3, 3).map(lambda x: round(x, 3)))
                made.append(Segment(chromosome=where, start=start, end=after - 1, mean=mean))
    return draw(st.permutations(made))


@given(segments(), st.lists(PLACES, max_size=6))
def test_a_gene_has_the_mean_of_its_measured_bases(cut, genes):
    ratio = {(s.chromosome, base): s.mean for s in cut for base in range(s.start, s.end + 1)}
    for gene, found in zip(genes, gene_means(cut, genes), strict=True):
        bases = [ratio.get((gene.chromosome, b)) for b in range(gene.start, gene.end + 1)]
        known = [b for b in bases if b is not None]
        np.testing.assert_allclose(found, np.mean(known) if known else np.nan, rtol=0, atol=1e-12)


GENES = "gene\tchromosome\tstart\tend\nTP53\tchr17\t101\t200\nEGFR\t7\t1\t100\nHER2\t17\t900\t950\nBOGUS9\t1\t1\t2\n"
BED = "chr17\t100\t200\tTP53\nchr7\t0\t100\tEGFR\nchr17\t899\t950\tHER2\n"
SEG = (
    "ID\tchrom\tloc.start\tloc.end\tnum.mark\tseg.mean\n"
    "S1\t17\t1\t150\t10\t-1.0\nS1\t17\t151\t500\t10\t0.5\nS1\t7\t1\t1000\t10\t1.25\nS2\t17\t1\t5000\t3\t0.1\nS2\t7\t1\t10\t3\tNA\n"
)


@pytest.mark.parametrize("table", [("genes.tsv", GENES), ("genes.bed", BED)])
def test_segments_become_ratios_and_calls(site, table):
    name, text = table
    files = {"files": ["a.seg"], "format": "segments", "values": "log2"}
    made = site({name: text, "a.seg": SEG}, gene_table=name, copy_number=files)
    ratios = read_copy_number(made, features(values="log2", genes=["TP53", "EGFR", "HER2", "KRAS"]))
    assert ratios.columns == ("TP53_cnv", "EGFR_cnv", "HER2_cnv", "KRAS_cnv")
    expected = [[-0.25, 1.25, np.nan, np.nan], [0.1, np.nan, 0.1, np.nan]]
    np.testing.assert_allclose(ratios.rows_of(["S1", "S2"]), expected)
    assert any("1 segments have no ratio" in p for p in ratios.problems)
    assert any(p.endswith("KRAS") for p in ratios.problems)
    calls = read_copy_number(made, features(thresholds=CNVKIT))
    assert calls.columns == ("EGFR_cnv", "ERBB2_cnv", "TP53_cnv")
    np.testing.assert_array_equal(calls.rows_of(["S1", "S2"]), [[2, np.nan, -1], [np.nan, 0, 0]])
    with pytest.raises(ConfigError, match="has log2, and the study asks for calls; the study could give thresholds"):
        read_copy_number(made, features())


@given(st.lists(st.floats(-5, 5), min_size=1), st.floats(-5, 5))
def test_calls_rise_with_the_ratio(ratios, more):
    edges = (-1.1, -0.25, 0.2, 0.7)
    calls = as_calls(np.array(ratios), edges)
    assert set(calls.tolist()) <= {-2, -1, 0, 1, 2}
    assert (as_calls(np.array(ratios) + abs(more), edges) >= calls).all()
    for ratio, call in zip(ratios, calls.tolist(), strict=True):
        assert call == sum(ratio > e for e in edges) - 2


GISTIC = "Gene Symbol\tLocus ID\tCytoband\tS1\tS2\nTP53\t7157\t17p13.1\t-2\t0\nERBB2\t2064\t17q12\t1\tNA\n"


def test_gene_level_calls_as_gistic_writes_them(site):
    files = {"files": ["g.txt"], "format": "genes", "values": "calls"}
    made = site({"g.txt": GISTIC}, copy_number=files)
    table = read_copy_number(made, features(genes=["HER2", "TP53"]))
    assert (table.columns, table.patients) == (("HER2_cnv", "TP53_cnv"), ("S1", "S2"))
    np.testing.assert_array_equal(table.values, [[1, -2], [np.nan, 0]])
    with pytest.raises(ConfigError, match="has calls, and the study asks for log2"):
        read_copy_number(made, features(values="log2"))
    made = site({"g.txt": GISTIC.replace("-2", "-3")}, copy_number=files)
    with pytest.raises(DataError, match="expected calls from -2 to 2, found others at the gene TP53"):
        read_copy_number(made, features())


HEADER = "ID\tchrom\tloc.start\tloc.end\tnum.mark\tseg.mean\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sample\tx\nS1\t1\n", "row 1: expected the header of a SEG file, with a column chr or chrom or chromosome"),
        (HEADER + "ANNA\t1\t5\t9\t1\tx\n", "row 2, column seg.mean: expected a log2 ratio"),
        (HEADER + "ANNA\t1\t5\t9\t1\t1e999\n", "row 2, column seg.mean: expected a log2 ratio"),
        (HEADER + "ANNA\t1\t9\t5\t1\t0\n", "row 2, column end: expected an end that is not before the start"),
        (HEADER + "ANNA\t1\t-9\t5\t1\t0\n", "row 2, column start: expected a position"),
        (HEADER + "ANNA\t1\t1\t5\t1\n", "row 2: expected 6 cells as in the header, found 5"),
        (HEADER + "\t1\t1\t5\t1\t0\n", "row 2: expected the name of a sample"),
        (HEADER + "ANNA\t1\t1\t5\t1\t0\nANNA\tchr1\t5\t9\t1\t0\n", "row 3: this segment and that of row 2 overlap"),
    ],
)
def test_one_clear_error_and_nobody_named(site, text, expected):
    files = {"files": ["a.seg"], "format": "segments", "values": "log2"}
    made = site({"g.tsv": GENES, "a.seg": text}, gene_table="g.tsv", copy_number=files)
    with pytest.raises(DataError, match=expected) as caught:
        read_copy_number(made, features(values="log2"))
    assert "ANNA" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\tb\n", "row 1: expected the header of a gene table"),
        ("gene\tchr\tstart\tend\nTP53\t17\t9\t3\n", "row 2, column end: expected an end"),
        ("gene\tchr\tstart\tend\nTP53\t17\t1\t3\nTP53\t17\t1\t3\n", "row 3: the gene of row 2 again"),
        ("gene\tchr\tstart\tend\nBOGUS\t17\t1\t3\n", "found none that is known"),
    ],
)
def test_a_wrong_gene_table_is_refused(site, text, expected):
    files = {"files": ["a.seg"], "format": "segments", "values": "log2"}
    made = site({"g.tsv": text, "a.seg": SEG}, gene_table="g.tsv", copy_number=files)
    with pytest.raises(DataError, match=expected):
        read_copy_number(made, features(values="log2"))
