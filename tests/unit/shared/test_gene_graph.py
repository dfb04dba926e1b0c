"""Files about genes: their hash, what they may hold, and how they lie over a modality's columns."""

from __future__ import annotations

import hashlib
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oncofed_shared.errors import ConfigError
from oncofed_shared.gene_graph import (
    Graph,
    check_gene_files,
    gene_of,
    graph_of,
    normalised,
    places,
    read_gene_sets,
    read_graph,
    sets_of,
)
from oncofed_shared.plan import Modality, Plan, load, parse
from oncofed_shared.plan_genes import GeneGraph, GeneSets

GENES = tuple("ABCDEFG")
PUBLIC = Path(__file__).resolve().parents[4] / "shared" / "data" / "gene_graph"
has_public = pytest.mark.skipif(not PUBLIC.exists(), reason="the public gene graph is not beside this repository")


def edges_of(graph: Graph) -> set[tuple[str, str]]:
    return {(graph.genes[a], graph.genes[b]) for a, b in graph.edges.tolist()}


@given(
    st.sets(st.tuples(st.sampled_from(GENES), st.sampled_from(GENES)), min_size=1), st.sampled_from(["\t", " ", "  "])
)
def test_a_graph_is_its_edges_whatever_their_order_and_direction(pairs: set[tuple[str, str]], between: str) -> None:
    wanted = {(a, b) for a, b in pairs if a < b} | {(b, a) for a, b in pairs if b < a}
    if not wanted:
        with pytest.raises(ConfigError, match="holds no edge"):
            read_graph(b"A A\n", "file")
        return
    lines = [f"{a}{between}{b}" for a, b in pairs]
    graphs = [read_graph("\n".join(order).encode(), "file") for order in (lines, lines[::-1], [*lines, *lines])]
    for graph in graphs:
        assert edges_of(graph) == wanted
        assert list(graph.genes) == sorted(graph.genes)
        assert np.array_equal(graph.edges, graphs[0].edges)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"A B\nA B C\n", "file, line 2: has 3 words; a line of a graph is two gene symbols"),
        (b"A\n", "file, line 1: has 1 words"),
        (b"\n# A B\n", "file: holds no edge"),
        (b"\xff\xfe\n", "file: is not UTF-8 text"),
    ],
)
def test_what_is_no_graph_is_refused_with_its_line(content: bytes, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read_graph(content, "file")
    assert caught.value.code == "gene-file"


def test_gene_sets_are_read() -> None:
    assert read_gene_sets(b"TWO\tsource\tB\tA\tA\t\n\nONE\tsource\tC\r\n", "file") == {"ONE": ("C",), "TWO": ("A", "B")}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"ONE\tsource\n", "file, line 1: is not a set's name"),
        (b"ONE\tx\tA\nONE\tx\tB\n", "file, line 2: names a set that .* was there before"),
        (b"O.E\tx\tA\n", "file, line 1: names a set that has a dot"),
        (b"\n", "file: holds no gene set"),
    ],
)
def test_what_are_no_gene_sets_is_refused_with_its_line(content: bytes, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_gene_sets(content, "file")


def named(content: bytes) -> dict[str, Any]:
    return {"file": "genes.txt", "sha256": hashlib.sha256(content).hexdigest()}


def study(content: bytes, **simulation: Any) -> dict[str, Any]:
    return {
        "study": {"name": "s", "purpose": "a study for tests"},
        "tasks": {"two": {"kind": "classification", "label": "two", "classes": ["no", "yes"]}},
        "modalities": {"genes": {"encoder": "graph", "patterns": ["{gene}_rna"], "graph": named(content)}},
        "training": {"rounds": 1},
        "simulation": simulation,
    }


def written(content: dict[str, Any]) -> str:
    graph = content["modalities"]["genes"]["graph"]
    files = "".join(f'files = "{f}"\n' for f in [content["simulation"].get("files")] if f)
    return (
        'main_task = "two"\n[study]\nname = "s"\npurpose = "a study for tests"\n'
        '[tasks.two]\nkind = "classification"\nlabel = "two"\nclasses = ["no", "yes"]\n'
        '[modalities.genes]\nencoder = "graph"\npatterns = ["{gene}_rna"]\n'
        f'graph = {{ file = "{graph["file"]}", sha256 = "{graph["sha256"]}" }}\n[training]\nrounds = 1\n[simulation]\n{files}'
    )


def test_a_file_is_found_beside_the_study_or_where_the_study_says_and_that_is_no_part_of_the_hash(
    tmp_path: Path,
) -> None:
    content = b"A B\n"
    (tmp_path / "near").mkdir()
    (tmp_path / "far").mkdir()
    (tmp_path / "near" / "genes.txt").write_bytes(content)
    (tmp_path / "near" / "study.toml").write_text(written(study(content)))
    (tmp_path / "far" / "study.toml").write_text(written(study(content, files="../near")))
    plans = [load(tmp_path / folder / "study.toml") for folder in ("near", "far")]
    for plan in plans:
        check_gene_files(plan)
        # What is made of a plan finds the file too.
        check_gene_files(parse(plan.model_dump(mode="json")))
    assert plans[0].hash == plans[1].hash == parse(study(content)).hash
    assert str(tmp_path).encode() not in plans[1].canonical


def test_a_plan_without_files_says_nothing_of_a_folder(tmp_path: Path) -> None:
    content = study(b"A B\n")
    text = (
        written(content).replace("[modalities.genes]\nencoder", "[modalities.genes]\n#encoder").replace("graph =", "#")
    )
    (tmp_path / "study.toml").write_text(text)
    assert load(tmp_path / "study.toml").simulation.files is None


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (
            None,
            r"genes.txt: cannot be read \(No such file or directory\); put the file there, or say where it is",
        ),
        (
            b"A C\n",
            "genes.txt: has the SHA-256 [0-9a-f]{64}, and the plan says [0-9a-f]{64}; get the file that belongs",
        ),
        (b"A B", "genes.txt: has the SHA-256"),
    ],
)
def test_other_bytes_than_the_plan_s_are_never_read(tmp_path: Path, found: bytes | None, message: str) -> None:
    if found is not None:
        (tmp_path / "genes.txt").write_bytes(found)
    plan = parse(study(b"A B\n", files=str(tmp_path)))
    with pytest.raises(ConfigError, match=message) as caught:
        check_gene_files(plan)
    assert caught.value.code == "gene-file"
    (tmp_path / "genes.txt").write_bytes(b"A B\n")
    check_gene_files(plan)
    # A second look is a look at the bytes again, and not at what was read before.
    (tmp_path / "genes.txt").write_bytes(b"A C\n")
    with pytest.raises(ConfigError, match="SHA-256"):
        check_gene_files(plan)


def test_columns_are_laid_out_by_gene_and_channel() -> None:
    modality = Modality(patterns=("{gene}_rna", "{gene}_cnv"))
    columns = ("A_cnv", "B_rna", "A_rna", "C_D_cnv", "other")
    assert gene_of(modality, "C_D_cnv") == ("C_D", 1)
    assert gene_of(modality, "other") is None
    found = places(modality, columns)
    assert found.genes == ("A", "B", "C_D")
    assert found.index.tolist() == [[2, 0], [1, -1], [-1, 3]]


def test_the_normalised_graph_is_that_of_kipf_and_welling_whatever_the_order_of_genes() -> None:
    graph = read_graph(b"A B\nB C\nC X\n", "file")
    for genes in permutations(("A", "B", "C", "Z")):
        degree = {"A": 2, "B": 3, "C": 2, "Z": 1}
        near = {("A", "B"), ("B", "A"), ("B", "C"), ("C", "B"), *((g, g) for g in genes)}
        wanted = [[(a, b) in near and (degree[a] * degree[b]) ** -0.5 for b in genes] for a in genes]
        assert np.allclose(normalised(graph, genes), np.array(wanted, dtype=float), rtol=1e-14)


@has_public
def test_the_public_graph_and_gene_sets_are_what_their_readme_says() -> None:
    def of(file: str) -> dict[str, Any]:
        return {"file": file, "sha256": hashlib.sha256((PUBLIC / file).read_bytes()).hexdigest()}

    graph = graph_of(str(PUBLIC), GeneGraph(**of("pynbs_CancerSubnetwork.txt")))
    assert (len(graph.genes), len(graph.edges)) == (2291, 204453)
    sets = sets_of(str(PUBLIC), GeneSets(**of("h.all.v6.2.symbols.gmt")))
    assert len(sets) == 50
    assert {"TP53", "CDKN1A"} <= set(sets["HALLMARK_P53_PATHWAY"])


def test_two_plans_that_name_other_bytes_have_another_hash() -> None:
    plans: list[Plan] = [parse(study(b"A B\n")), parse(study(b"A C\n"))]
    assert plans[0].hash != plans[1].hash
