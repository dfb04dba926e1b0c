"""What a gene is called: labels of files to approved symbols, by a table of the HGNC kind (B-24).

Columns of the table: `symbol`, `alias_symbol`, `prev_symbol` and, where present, `ensembl_gene_id`, as in the "complete set"
of genenames.org, or `Approved symbol`, `Alias symbols`, `Previous symbols`, `Ensembl gene ID`, as in its custom downloads.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from oncofed_client.genomics.lines import fault, text_rows
from oncofed_client.genomics.settings import Limits

__all__ = ["GeneNames", "Unmapped", "read_gene_names", "read_panel"]

_COLUMNS = {
    "symbol": {"symbol", "approved symbol", "approved_symbol"},
    "previous": {"prev_symbol", "previous symbols", "previous symbol", "previous_symbols"},
    "alias": {"alias_symbol", "alias symbols", "alias symbol", "alias_symbols"},
    "ensembl": {"ensembl_gene_id", "ensembl gene id", "ensembl id(supplied by ensembl)"},
}
_ENSEMBL = re.compile(r"(ENSG\d{11})\.\d+")
_SYMBOL = re.compile(r"[A-Za-z][A-Za-z0-9._-]{1,30}")
_SHOWN = 12
_MOST_LABELS = 100_000
"""A file that is no table of genes must not fill the memory with names."""


@dataclass(frozen=True, kw_only=True, slots=True, repr=False, eq=False)
class GeneNames:
    """Approved symbols by label.

    Attributes:
        approved: label -> approved symbol; an approved symbol is its own. None: there is no table, a label is its own.
        ambiguous: labels that several genes share, which therefore name none.

    Guarantees:
        - `resolve(resolve(x)) == resolve(x)` for every label that it knows.
    """

    approved: dict[str, str] | None = None
    ambiguous: frozenset[str] = frozenset()

    def resolve(self, label: str) -> str | None:
        """Approved symbol of a label, or None. The version of an Ensembl id (`ENSG00000141510.17`) does not matter."""
        match = _ENSEMBL.fullmatch(label)
        plain = match[1] if match else label
        return plain if self.approved is None else self.approved.get(plain)

    def knows(self, label: str) -> bool:
        """Whether the table has the label; without a table an Ensembl id is known alone."""
        if self.approved is None:
            return label.startswith("ENSG")
        return self.resolve(label) is not None

    def wanted(self, genes: Collection[str]) -> dict[str, str]:
        """Approved symbol -> the name that the study uses, which may be older than the table."""
        return {self.resolve(gene) or gene: gene for gene in genes}


def _split(text: str) -> Iterable[str]:
    return (part for raw in re.split(r"[|,]", text) if (part := raw.strip()))


def _places(path: Path, header: list[str], row: int) -> dict[str, int]:
    names = [h.casefold() for h in header]
    places = {key: i for key, known in _COLUMNS.items() for i, name in enumerate(names) if name in known}
    if "symbol" not in places or not {"previous", "alias"} & set(places):
        message = (
            "expected the columns symbol, alias_symbol and prev_symbol, separated by tabs, as genenames.org writes them"
        )
        raise fault(path, message, row=row)
    return places


def read_gene_names(path: Path, limits: Limits) -> GeneNames:
    """Read a table of gene names.

    An approved symbol goes before a previous one, a previous one before an alias; a label that two genes share is
    ambiguous.

    Raises:
        DataError: it is not such a table, or names a symbol twice.
    """
    rows = text_rows(path, limits)
    row, header = next(rows, (1, []))
    places = _places(path, header, row)
    symbols: dict[str, int] = {}
    labels: dict[str, dict[str, set[str]]] = {"ensembl": {}, "previous": {}, "alias": {}}
    for row, cells in rows:
        if len(cells) != len(header):
            raise fault(path, f"expected {len(header)} cells as in the header, found {len(cells)}", row=row)
        symbol = cells[places["symbol"]]
        if not symbol:
            raise fault(path, "expected a symbol, the cell is empty", row=row, column="symbol")
        if symbol in symbols:
            raise fault(path, f"the same symbol as in row {symbols[symbol]}; delete one", row=row, column="symbol")
        symbols[symbol] = row
        for kind, owners in labels.items():
            for label in _split(cells[places[kind]]) if kind in places else ():
                owners.setdefault(label, set()).add(symbol)
    return _names(symbols, labels.values())


def _names(symbols: Iterable[str], labels: Iterable[dict[str, set[str]]]) -> GeneNames:
    """Put the kinds of labels together, the first kind first."""
    approved = {symbol: symbol for symbol in symbols}
    ambiguous: set[str] = set()
    for owners in labels:
        for label, genes in owners.items():
            if label in approved or label in ambiguous:
                continue
            if len(genes) == 1:
                approved[label] = next(iter(genes))
            else:
                ambiguous.add(label)
    return GeneNames(approved=approved, ambiguous=frozenset(ambiguous))


def read_panel(path: Path, names: GeneNames, limits: Limits) -> tuple[frozenset[str], tuple[str, ...]]:
    """Read the genes that a panel covers, one in a line.

    Returns:
        Approved symbols, and what could not be mapped, for a person.

    Raises:
        DataError: there is no gene in it.
    """
    unmapped = Unmapped()
    genes = set()
    for _, cells in text_rows(path, limits):
        gene = names.resolve(cells[0])
        if gene is None:
            unmapped.add(cells[0], names)
        else:
            genes.add(gene)
    if not genes:
        raise fault(path, "expected a gene in each line, found none that is known")
    return frozenset(genes), unmapped.lines(path, len(genes))


@dataclass(frozen=True, kw_only=True, slots=True, repr=False, eq=False)
class Unmapped:
    """Labels that name no gene: counted, and named where that shows no patient."""

    labels: dict[str, bool] = field(default_factory=dict)

    def add(self, label: str, names: GeneNames) -> None:
        """Note a label."""
        if len(self.labels) < _MOST_LABELS:
            self.labels[label[:64]] = label in names.ambiguous

    def lines(self, path: Path, mapped: int, hidden: Collection[str] = ()) -> tuple[str, ...]:
        """At most one line.

        Args:
            path: the file.
            mapped: how many labels were mapped. Names are shown only where most were: a table that lies on its side has
                patients where genes should be.
            hidden: ids of samples and patients, never shown. An id that stands nowhere else in the file cannot be told from a
                name of a gene.
        """
        if not self.labels:
            return ()
        text = f"{path}: {len(self.labels)} names of genes could not be mapped"
        ambiguous = sum(self.labels.values())
        text += f", {ambiguous} of them because several genes share the name" if ambiguous else ""
        if mapped < len(self.labels):
            return (f"{text}, more than were; is genomics.aliases the right table?",)
        # An id may also be glued to a name; very short ids stand in many names by chance.
        ids = [i for i in hidden if len(i) > 3]
        safe = (
            x for x in sorted(self.labels) if _SYMBOL.fullmatch(x) and x not in hidden and not any(i in x for i in ids)
        )
        shown = list(islice(safe, _SHOWN + 1))
        more = ", ..." if len(shown) > _SHOWN else ""
        return (f"{text}: {', '.join(shown[:_SHOWN])}{more}" if shown else text,)
