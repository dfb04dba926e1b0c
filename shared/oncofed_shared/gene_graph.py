"""Public gene graphs and gene sets: found by the plan, checked by their hash, read, and laid over a modality's columns."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from oncofed_shared.errors import ConfigError
from oncofed_shared.plan import Modality, Plan, compile_pattern
from oncofed_shared.plan_genes import GeneFile, GeneGraph, GeneSets

__all__ = [
    "Graph",
    "Places",
    "check_gene_files",
    "gene_of",
    "graph_of",
    "names_gene_files",
    "normalised",
    "places",
    "read_gene_sets",
    "read_graph",
    "sets_of",
    "with_files",
]

LARGEST_FILE = 1 << 26
"""Bytes. A graph over all genes has a few million; whatever is larger was not meant to be one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Graph:
    """An undirected graph without loops.

    Attributes:
        genes: sorted.
        edges: (e, 2) places in `genes`, the smaller first, each edge once, sorted.
    """

    genes: tuple[str, ...]
    edges: NDArray[np.int64]


def _bad(where: str, what: str) -> ConfigError:
    return ConfigError(f"{where}: {what}", code="gene-file")


def _text(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise _bad(where, "is not UTF-8 text; get the file that belongs to this plan") from None


def read_graph(content: bytes, where: str) -> Graph:
    """Read a list of edges: two gene symbols a line, between tabs or spaces. Empty lines and lines that begin with # are skipped.

    Raises:
        ConfigError: a line has another number of symbols, or there is no edge (code `gene-file`).
    """
    pairs: set[tuple[str, str]] = set()
    for number, line in enumerate(_text(content, where).splitlines(), 1):
        parts = line.split()
        if not parts or parts[0].startswith("#"):
            continue
        if len(parts) != 2:
            raise _bad(f"{where}, line {number}", f"has {len(parts)} words; a line of a graph is two gene symbols")
        a, b = sorted(parts)
        if a != b:
            pairs.add((a, b))
    if not pairs:
        raise _bad(where, "holds no edge; a line of a graph is two gene symbols")
    genes = tuple(sorted({gene for pair in pairs for gene in pair}))
    place = {gene: i for i, gene in enumerate(genes)}
    edges = sorted((place[a], place[b]) for a, b in pairs)
    return Graph(genes=genes, edges=np.array(edges, dtype=np.int64))


def read_gene_sets(content: bytes, where: str) -> dict[str, tuple[str, ...]]:
    """Read a .gmt file: per line a set's name, where it is from, and its genes, between tabs.

    Returns:
        Genes by set, both sorted.

    Raises:
        ConfigError: a line has no gene, a name occurs twice or has a dot, or there is no set (code `gene-file`).
    """
    found: dict[str, tuple[str, ...]] = {}
    for number, line in enumerate(_text(content, where).splitlines(), 1):
        if not line.strip():
            continue
        name, *rest = (part.strip() for part in line.split("\t"))
        genes = {gene for gene in rest[1:] if gene}
        if not name or not genes:
            raise _bad(f"{where}, line {number}", "is not a set's name, its source and its genes, between tabs")
        if name in found or "." in name:
            raise _bad(f"{where}, line {number}", "names a set that has a dot in its name, or was there before")
        found[name] = tuple(sorted(genes))
    if not found:
        raise _bad(where, "holds no gene set")
    return dict(sorted(found.items()))


def _content(files: str | None, named: GeneFile) -> tuple[bytes, str]:
    """Bytes of a file, after a look at their hash, and how messages call it."""
    where = Path(files or ".") / named.file
    try:
        size = where.stat().st_size
        content = where.read_bytes() if size <= LARGEST_FILE else b""
    except OSError as error:
        raise _bad(
            str(where),
            f"cannot be read ({error.strerror}); put the file there, or say where it is: a site with files in [site], "
            "a simulation with files in [simulation]",
        ) from None
    found = hashlib.sha256(content).hexdigest()
    if size > LARGEST_FILE or found != named.sha256:
        has = f"has {size} bytes" if size > LARGEST_FILE else f"has the SHA-256 {found}"
        raise _bad(str(where), f"{has}, and the plan says {named.sha256}; get the file that belongs to this plan")
    return content, str(where)


# Reading 200,000 edges takes half a second, and a network is built often; the same bytes are the same graph.
_graph = lru_cache(maxsize=8)(read_graph)


def graph_of(files: str | None, named: GeneGraph) -> Graph:
    """Read the graph that a plan names.

    Args:
        files: folder in which it lies.

    Guarantees:
        - Other bytes than the plan's are never read.

    Raises:
        ConfigError: the file is absent, not the plan's, or no graph (code `gene-file`).
    """
    return _graph(*_content(files, named))


def sets_of(files: str | None, named: GeneSets) -> dict[str, tuple[str, ...]]:
    """Read the gene sets that a plan names, as `graph_of` reads a graph."""
    return read_gene_sets(*_content(files, named))


def names_gene_files(plan: Plan) -> bool:
    """Whether a plan names any file about genes."""
    return any(m.graph is not None or m.pathways is not None for m in plan.modalities.values())


def with_files(plan: Plan, files: Path) -> Plan:
    """The plan with the folder of its files about genes, which is no part of its hash; a plan without any is as it was."""
    if not names_gene_files(plan):
        return plan
    placed = plan.simulation.model_copy(update={"files": str(files)})
    return plan.model_copy(update={"simulation": placed})


def check_gene_files(plan: Plan) -> None:
    """Read every file about genes that a plan names; a site does so before it answers anything.

    Raises:
        ConfigError: one is absent or not the plan's (code `gene-file`).
    """
    files = plan.simulation.files
    for modality in plan.modalities.values():
        if modality.graph is not None:
            graph_of(files, modality.graph)
        if modality.pathways is not None:
            sets_of(files, modality.pathways)


def gene_of(modality: Modality, column: str) -> tuple[str, int] | None:
    """The gene that a column is about, and the number of the pattern that says so: its channel. None where no pattern does."""
    for channel, pattern in enumerate(modality.patterns or ()):
        found = compile_pattern(pattern).fullmatch(column)
        if found is not None and "gene" in found.groupdict():
            return found["gene"], channel
    return None


@dataclass(frozen=True, kw_only=True, slots=True)
class Places:
    """Where a modality's columns lie by gene and channel.

    Attributes:
        genes: sorted; each has a column at least.
        index: (genes, channels) place among the modality's columns, or -1.
    """

    genes: tuple[str, ...]
    index: NDArray[np.int64]


def places(modality: Modality, columns: tuple[str, ...]) -> Places:
    """Lay a modality's columns out by gene and channel."""
    found = [gene_of(modality, c) for c in columns]
    genes = tuple(sorted({gene for gene, _ in filter(None, found)}))
    row = {gene: i for i, gene in enumerate(genes)}
    index = np.full((len(genes), len(modality.patterns or ())), -1, dtype=np.int64)
    for place, pair in enumerate(found):
        if pair is not None:
            index[row[pair[0]], pair[1]] = place
    return Places(genes=genes, index=index)


def normalised(graph: Graph, genes: tuple[str, ...]) -> NDArray[np.float64]:
    """D^-1/2 (A + I) D^-1/2 over the given genes (Kipf & Welling 2017, eq. 2), (genes, genes).

    A gene that the graph does not know has an edge to itself alone: it is read, and mixes with nothing.
    """
    row = {gene: i for i, gene in enumerate(genes)}
    kept = np.array([row.get(gene, -1) for gene in graph.genes], dtype=np.int64)[graph.edges]
    kept = kept[(kept >= 0).all(axis=1)]
    adjacency = np.eye(len(genes))
    adjacency[kept[:, 0], kept[:, 1]] = adjacency[kept[:, 1], kept[:, 0]] = 1.0
    scale = adjacency.sum(axis=1) ** -0.5
    scaled: NDArray[np.float64] = adjacency * scale[:, None] * scale[None, :]
    return scaled
