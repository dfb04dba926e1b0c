"""Names of genes: what a table of them resolves, and what is said of the rest."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oncofed_client.genomics.genes import GeneNames, Unmapped, read_gene_names
from oncofed_client.genomics.settings import Limits
from oncofed_shared.errors import DataError

LABEL = st.text("ABC", min_size=1, max_size=2)
ROW = st.tuples(LABEL, st.lists(LABEL, max_size=3), st.lists(LABEL, max_size=3))


@given(st.lists(ROW, min_size=1, max_size=6, unique_by=lambda r: r[0]), st.randoms(use_true_random=False))
def test_resolving_is_idempotent_and_does_not_depend_on_the_order(rows, random):
    def read(order):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "names.tsv"
            lines = ["symbol\talias_symbol\tprev_symbol", *(f"{s}\t{'|'.join(a)}\t{'|'.join(p)}" for s, a, p in order)]
            path.write_text("\n".join(lines))
            return read_gene_names(path, Limits())

    names = read(rows)
    shuffled = list(rows)
    random.shuffle(shuffled)
    again = read(shuffled)
    assert (names.approved, names.ambiguous) == (again.approved, again.ambiguous)
    symbols = {s for s, *_ in rows}
    for label in {*symbols, *(x for _, a, p in rows for x in (*a, *p))}:
        gene = names.resolve(label)
        assert (gene is None) == (label in names.ambiguous)
        if gene is not None:
            assert gene in symbols
            assert names.resolve(gene) == gene
            owners = {s for s, _, p in rows if label in p} or {s for s, a, _ in rows if label in a}
            assert gene == label if label in symbols else {gene} == owners


def test_resolves_what_the_papers_call_genes(site):
    names = site({}).names
    called = ["TP53", "p53", "HER2", "K-RAS", "ERBB", "ENSG00000141510.17", "SHARED", "nobody"]
    assert [names.resolve(c) for c in called] == ["TP53", "TP53", "ERBB2", "KRAS", "EGFR", "TP53", None, None]
    assert names.wanted(["HER2", "TP53"]) == {"ERBB2": "HER2", "TP53": "TP53"}


def test_custom_downloads_have_other_headers(tmp_path):
    path = tmp_path / "custom.txt"
    path.write_text("Approved symbol\tAlias symbols\tPrevious symbols\nERBB2\tNEU, HER-2, HER2\tNGL\n")
    assert read_gene_names(path, Limits()).resolve("HER2") == "ERBB2"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name\tx\nA\tB\n", "row 1: expected the columns symbol"),
        ("symbol\talias_symbol\nA\tB\nA\tC\n", "row 3, column symbol: the same symbol as in row 2"),
        ("symbol\talias_symbol\n\tB\n", "row 2, column symbol: expected a symbol"),
        ("symbol\talias_symbol\nA\n", "row 2: expected 2 cells"),
        ("", "row 1: expected the columns symbol"),
    ],
)
def test_a_wrong_table_is_refused(tmp_path, text, expected):
    path = tmp_path / "names.tsv"
    path.write_text(text)
    with pytest.raises(DataError, match=expected):
        read_gene_names(path, Limits())


def test_names_of_genes_are_shown_and_names_of_patients_are_not(site):
    names = site({}).names
    unmapped = Unmapped()
    for label in ["FOO1", "SHARED", "PAT-7", "12-03-1980", "xPAT-7x"]:
        unmapped.add(label, names)
    (line,) = unmapped.lines(Path("f"), 10, {"PAT-7"})
    assert line.endswith(
        "5 names of genes could not be mapped, 1 of them because several genes share the name: FOO1, SHARED"
    )
    (line,) = unmapped.lines(Path("f"), 4)
    assert "FOO1" not in line
    assert "is genomics.aliases the right table?" in line


def test_without_a_table_a_name_is_its_own():
    assert GeneNames().resolve("anything") == "anything"
    assert GeneNames().resolve("ENSG00000141510.17") == "ENSG00000141510"
