"""Expression: equal to PyDESeq2, the same on either side, and refused where it is something else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydeseq2.preprocessing import deseq2_norm, deseq2_norm_fit, deseq2_norm_transform

from oncofed_client.genomics.expression import geometric_means, read_expression, size_factors
from oncofed_shared.errors import DataError
from oncofed_shared.plan import ExpressionFeatures, validate

GENES = ["BRCA1", "EGFR", "ERBB2", "KRAS", "PTEN", "TP53"]


def features(**given_: object) -> ExpressionFeatures:
    return validate(ExpressionFeatures, {"kind": "expression", **given_}, "study")


def counts_of(seed: int, n: int = 7, genes: int = 40) -> np.ndarray:
    rng = np.random.default_rng(seed)
    depth = rng.uniform(0.2, 5, (n, 1))
    return rng.negative_binomial(3, 0.01, (n, genes)) * depth // 1


@pytest.mark.parametrize("seed", range(5))
def test_size_factors_equal_pydeseq2(seed):
    counts = counts_of(seed)
    _, theirs = deseq2_norm(counts)
    np.testing.assert_allclose(size_factors(counts), theirs, rtol=1e-9)
    # The federated variant: a reference from one cohort, applied to another.
    means, kept = deseq2_norm_fit(counts_of(100 + seed))
    normalised, theirs = deseq2_norm_transform(counts, means, kept)
    ours = size_factors(counts, np.where(kept, np.exp(means), 0))
    np.testing.assert_allclose(ours, theirs, rtol=1e-9)
    np.testing.assert_allclose(counts / ours[:, None], normalised, rtol=1e-9)


@given(arrays(np.float64, st.tuples(st.integers(1, 6), st.integers(1, 9)), elements=st.integers(0, 50).map(float)))
def test_size_factors_equal_pydeseq2_also_with_zeros(counts):
    _means, kept = deseq2_norm_fit(counts)
    if not kept.any():
        with pytest.raises(DataError, match="no gene has a count above 0 in every sample"):
            size_factors(counts)
        return
    np.testing.assert_allclose(size_factors(counts), deseq2_norm(counts)[1], rtol=1e-9)


def test_with_a_reference_a_sample_depends_on_itself_alone():
    counts, reference = counts_of(1), geometric_means(counts_of(2))
    whole = size_factors(counts, reference)
    for i in range(len(counts)):
        assert size_factors(counts[i : i + 1], reference)[0] == whole[i]
    assert np.isnan(size_factors(np.zeros((1, 40)), reference)[0])


def text_of(values, samples, genes, *, side="rows", separator="\t") -> str:
    if side == "rows":
        lines = [["gene", *samples], *([g, *map(str, row)] for g, row in zip(genes, values.T.tolist(), strict=True))]
    else:
        lines = [["sample", *genes], *([s, *map(str, row)] for s, row in zip(samples, values.tolist(), strict=True))]
    return "\n".join(separator.join(line) for line in lines) + "\n"


SAMPLES = [f"S{i}" for i in range(5)]
COUNTS = np.array(
    [[5, 10, 0, 7, 8, 100], [6, 20, 1, 7, 9, 90], [7, 5, 2, 7, 3, 80], [8, 1, 3, 7, 8, 70], [9, 4, 4, 7, 2, 60]]
)


@settings(max_examples=25)
@given(data=st.data())
def test_the_side_and_the_order_of_a_matrix_do_not_matter(tmp_path_factory, data):
    from oncofed_client.genomics.inputs import open_files  # noqa: PLC0415 - a site per example
    from oncofed_client.genomics.settings import ExpressionFiles, GenomicsSettings  # noqa: PLC0415

    folder = tmp_path_factory.mktemp("site")
    values = data.draw(arrays(np.int64, (5, 6), elements=st.integers(1, 10_000)))
    rows, columns = data.draw(st.permutations(range(5))), data.draw(st.permutations(range(6)))
    (folder / "a.tsv").write_text(text_of(values, SAMPLES, GENES))
    moved = values[np.ix_(rows, columns)]
    samples, genes = [SAMPLES[i] for i in rows], [GENES[i] for i in columns]
    (folder / "b.csv").write_text(text_of(moved, samples, genes, side="columns", separator=","))
    tables = []
    for name in ("a.tsv", "b.csv"):
        files = GenomicsSettings(expression=ExpressionFiles(files=(name,)))
        tables.append(read_expression(open_files(folder, files), features(genes=GENES)))
    first, second = tables
    assert first.columns == second.columns == tuple(f"{g}_rnaseq" for g in GENES)
    assert first.patients == tuple(SAMPLES)
    np.testing.assert_array_equal(second.rows_of(first.patients), first.values)


def test_reads_counts_with_size_factors_and_logarithm(site):
    made = site({"rna/c.tsv.gz": text_of(COUNTS, SAMPLES, GENES)}, expression={"files": ["rna/*.tsv.gz"]})
    table = read_expression(made, features(genes=["TP53", "HER2"]))
    factors = deseq2_norm(COUNTS.astype(float))[1]
    expected = np.log2(1 + COUNTS[:, [5, 2]] / factors[:, None])
    assert table.columns == ("TP53_rnaseq", "HER2_rnaseq")
    np.testing.assert_allclose(table.values, expected, rtol=1e-9)
    assert table.problems == ()


def test_sites_with_a_reference_agree_on_a_patient_whoever_else_is_there(site):
    means = dict(zip(GENES, COUNTS.mean(axis=0).tolist(), strict=True))
    reference = {"source": "a public cohort, made for this test", "counts": means | {"ERBB2": 2.0}}
    wanted = features(genes=["TP53"], reference=reference)
    whole = read_expression(site({"c.tsv": text_of(COUNTS, SAMPLES, GENES)}, expression={"files": ["c.tsv"]}), wanted)
    alone = read_expression(
        site({"c.tsv": text_of(COUNTS[2:3], SAMPLES[2:3], GENES)}, expression={"files": ["c.tsv"]}), wanted
    )
    assert alone.values[0] == whole.values[2]
    few = text_of(COUNTS[:, 4:], SAMPLES, GENES[4:])
    with pytest.raises(DataError, match="only 2 of the 6 genes of the study's reference sample"):
        read_expression(site({"c.tsv": few}, expression={"files": ["c.tsv"]}), wanted)


def test_files_of_several_batches_are_joined_and_a_gene_that_one_lacks_is_missing(site):
    files = {"1.tsv": text_of(COUNTS[:2], SAMPLES[:2], GENES), "2.tsv": text_of(COUNTS[2:, :5], SAMPLES[2:], GENES[:5])}
    made = site(files, expression={"files": ["*.tsv"], "values": "counts"}, aliases=False)
    (made.folder / "hgnc.tsv").unlink()
    table = read_expression(made, features(normalisation="none", logarithm=False, genes=["TP53", "EGFR", "MET"]))
    assert table.patients == tuple(SAMPLES)
    assert table.values[:, 0].tolist()[:2] == [100, 90]
    assert np.isnan(table.values[2:, 0]).all()
    assert table.values[:, 1].tolist() == [10, 20, 5, 1, 4]
    assert table.problems == ("1 genes of the study are in no file and are missing: MET",)
    twice = site({"2.tsv": files["1.tsv"]}, expression={"files": ["1.tsv", "2.tsv"]})
    with pytest.raises(DataError, match=r"holds a patient who stands in .*1\.tsv too") as caught:
        read_expression(twice, features())
    assert "S0" not in str(caught.value)


def test_files_of_common_tools_are_read(site):
    star = "gene_id\tgene_name\tgene_type\tS1\tS2\nN_unmapped\t\t\t9\t9\nENSG00000141510.17\tTP53\tcoding\t3\t4\n"
    htseq = '"S1"\t"S2"\n"TP53"\t3\t4\n"__no_feature"\t5\t5\n'
    counts = "# featureCounts\nGeneid\tChr\tStart\tEnd\tStrand\tLength\tS1\tS2\nTP53\t17\t1\t2\t-\t2\t3\t4\n"
    for text in (star, htseq, counts):
        made = site({"f.txt": text}, expression={"files": ["f.txt"]})
        table = read_expression(made, features(normalisation="none", logarithm=False))
        assert (table.columns, table.patients, table.values.ravel().tolist()) == (
            ("TP53_rnaseq",),
            ("S1", "S2"),
            [3, 4],
        )
        assert table.problems == ()


def test_files_of_one_sample_each_as_the_gdc_has_them(site):
    def text(n):
        return (
            "# gene-model: GENCODE v36\ngene_id\tgene_name\tgene_type\tunstranded\ttpm_unstranded\nN_unmapped\t\t\t99\t\n"
            f"ENSG00000141510.18\tTP53\tprotein_coding\t{n}\t0.5\nENSG00000146648.18\tEGFR\tprotein_coding\t{2 * n}\t1.5\n"
        )

    files = {"rna/A.counts.tsv": text(3), "rna/B.counts.tsv": text(7)}
    made = site(files, expression={"files": ["rna/*.tsv"], "column": "unstranded"})
    table = read_expression(made, features(normalisation="none", logarithm=False, genes=["TP53", "EGFR"]))
    assert (table.patients, table.values.tolist()) == (("A", "B"), [[3, 6], [7, 14]])
    made = site({}, expression={"files": ["rna/*.tsv"], "column": "stranded"})
    with pytest.raises(DataError, match=r"row 2: expected the column 'stranded', named as column in site\.toml"):
        read_expression(made, features())


def test_other_kinds_are_told_apart_and_refused_where_another_is_wanted(site):
    rng = np.random.default_rng(0)
    tpm = rng.dirichlet(np.ones(6), 5) * 1e6
    z = rng.normal(size=(5, 6))
    kinds = {"counts": COUNTS, "tpm": tpm, "zscores": z}
    for kind, values in kinds.items():
        made = site({"f.tsv": text_of(values, SAMPLES, GENES)}, expression={"files": ["f.tsv"]})
        table = read_expression(made, features(values=kind, normalisation="none", logarithm=False, genes=GENES))
        np.testing.assert_array_equal(table.values, values)
        for other in kinds.keys() - {kind}:
            with pytest.raises(DataError, match=f"holds {kind} .*, and the study asks for {other}"):
                read_expression(made, features(values=other, normalisation="none", logarithm=False))
    made = site({"f.tsv": text_of(COUNTS + 0.5, SAMPLES, GENES)}, expression={"files": ["f.tsv"]})
    with pytest.raises(DataError, match="cannot tell whether these are counts"):
        read_expression(made, features())


def test_samples_are_linked_to_patients(site):
    links = "sample_id\tpatient_id\nS0\tP0\nS3\tP3\n"
    settings_ = {"expression": {"files": ["c.tsv"]}, "samples": {"file": "links.tsv"}}
    made = site({"c.tsv": text_of(COUNTS, SAMPLES, GENES), "links.tsv": links}, **settings_)
    table = read_expression(made, features(normalisation="none", logarithm=False, genes=["TP53"]))
    assert (table.patients, table.values.ravel().tolist()) == (("P0", "P3"), [100, 70])
    assert "3 samples are not in genomics.samples" in table.problems[0]
    made = site({"links.tsv": links.replace("P3", "P0")}, **settings_)
    with pytest.raises(DataError, match="row 1, column number 5: a second sample of the same patient") as caught:
        read_expression(made, features())
    assert "P0" not in str(caught.value)
    barcodes = [f"TCGA-AB-000{i}-01A" for i in range(5)]
    made = site(
        {"c.tsv": text_of(COUNTS, barcodes, GENES)}, expression={"files": ["c.tsv"]}, samples={"characters": 12}
    )
    assert read_expression(made, features()).patients[0] == "TCGA-AB-0000"


def test_a_gene_under_two_names(site):
    text = "gene\tS1\tS2\nERBB2\t1\t2\nHER2\t3\t4\nNEU\t3\t4\np53\t5\t6\nLFS1\t7\t8\nEGFR\t9\t9\nBOGUS1\t0\t0\n"
    made = site({"f.tsv": text}, expression={"files": ["f.tsv"]})
    table = read_expression(made, features(normalisation="none", logarithm=False))
    assert dict(zip(table.columns, table.values.T.tolist(), strict=True)) == {
        "EGFR_rnaseq": [9, 9],
        "ERBB2_rnaseq": [1, 2],
    }
    assert [p.split(": ", 1)[1] for p in table.problems] == [
        "1 names of genes could not be mapped: BOGUS1",
        "left out, because each stands here under two names: TP53",
    ]


HEADER = "gene\tANNA\tBERT\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (HEADER + "TP53\t1\tx7y\n", "row 2, column number 3: expected a number with a decimal point, found text"),
        (HEADER + "TP53\t1\t1,5\n", "row 2, column number 3: expected a number"),
        (HEADER + "TP53\t1\t\u0661\n", "row 2, column number 3: expected a number"),
        (HEADER + "TP53\t1\t1_0\n", "row 2, column number 3: expected a number"),
        (HEADER + "TP53\tinf\t1\n", "row 2, column number 2: expected a finite number"),
        (HEADER + "TP53\t1\t1e300\n", "row 2, column number 3: expected a finite number"),
        (HEADER + "TP53\t1\t2\nEGFR\t1\t-2\nKRAS\t900\t900\n", "cannot tell whether"),
        (HEADER + "TP53\t1\t2\nTP53\t1\t2\n", "row 3: the gene of row 2 again"),
        (HEADER + "TP53\t1\n", "row 1: expected|row 2: expected 3 cells"),
        ("gene\tANNA\tANNA\nTP53\t1\t2\n", "row 1, column number 3: a second sample of the same patient"),
        ("gene\tANNA\t\nTP53\t1\t2\n", "row 1, column number 3: expected the name of a sample"),
        ("gene\tANNA\tBERT\nCARL\t1\t2\n", "cannot tell whether genes are in rows or columns"),
        ("gene\n", "row 1: expected a header and rows"),
        ("", "row 1: expected a header and rows"),
        ("sample\tTP53\tTP53\nANNA\t1\t2\n", "row 1, column number 3: the gene of column number 2 again"),
    ],
)
def test_one_clear_error_and_nobody_named(site, text, expected):
    made = site({"f.tsv": text}, expression={"files": ["f.tsv"]})
    with pytest.raises(DataError, match=expected) as caught:
        read_expression(made, features())
    assert len(caught.value.problems) == 1
    assert not any(secret in str(caught.value) for secret in ("ANNA", "BERT", "CARL", "x7y", "1,5"))


def test_declared_counts_below_zero_are_shown_by_their_place(site):
    made = site({"f.tsv": HEADER + "TP53\t1\t2\nEGFR\t1\t-2\n"}, expression={"files": ["f.tsv"], "values": "counts"})
    with pytest.raises(DataError, match="row 3, column number 3: expected counts, 0 or more, found a negative number"):
        read_expression(made, features())


def test_patients_never_become_names_of_columns(site):
    text = "sample\tANNA\tBERT\nTP53\t1\t2\n"
    made = site({"f.tsv": text}, expression={"files": ["f.tsv"], "genes_in": "columns"}, aliases=False)
    assert read_expression(made, features(normalisation="none", genes=["TP53"])).values.shape == (1, 1)
    links = {"samples": {"file": "l.tsv"}, "expression": {"files": ["f.tsv"], "genes_in": "columns"}}
    made = site({"f.tsv": text, "l.tsv": "sample_id\tpatient_id\nANNA\tP1\nTP53\tP2\n"}, aliases=False, **links)
    with pytest.raises(DataError, match="expected names of genes, found patients"):
        read_expression(made, features(normalisation="none"))


def test_no_file_outside_the_folder_is_read(site, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "secret.tsv"
    outside.write_text(text_of(COUNTS, SAMPLES, GENES))
    made = site({}, expression={"files": ["*.link"]})
    with pytest.raises(DataError, match="no file fits"):
        read_expression(made, features())
    (made.folder / "a.link").symlink_to(outside)
    with pytest.raises(DataError, match="leads out of the site's folder"):
        read_expression(made, features())


def test_who_may_not_enter_moves_no_size_factor(site):
    files = {"files": ["c.tsv"]}
    wanted = features(genes=["TP53", "EGFR"])
    made = site({"c.tsv": text_of(COUNTS, SAMPLES, GENES)}, expression=files)
    some = read_expression(made, wanted, frozenset(SAMPLES[:2]))
    whole = read_expression(made, wanted)
    assert not np.array_equal(whole.values[:2], some.values), "the others do move it where they may enter"
    assert read_expression(made, wanted, frozenset()).patients == ()
    alone = read_expression(site({"c.tsv": text_of(COUNTS[:2], SAMPLES[:2], GENES)}, expression=files), wanted)
    assert some.patients == alone.patients
    np.testing.assert_array_equal(some.values, alone.values)
