"""What `init` proposes for sequencing files: `[genomics]` from what lies in a folder."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from oncofed_client.genomics.lines import plain_suffix, text_lines, text_rows
from oncofed_client.genomics.settings import EXOME, Limits
from oncofed_client.imaging.settings import ImagingSettings
from oncofed_client.imaging.walk import files_below
from oncofed_client.prepare.propose_imaging import as_toml
from oncofed_shared.errors import DataError

__all__ = ["propose_genomics"]

_SMALL = Limits(line_mb=16, file_gb=1)
_HEADERS = (
    ("aliases", ({"symbol", "approved symbol"}, {"alias_symbol", "alias symbols", "prev_symbol", "previous symbols"})),
    (
        "segments",
        (
            {"chrom", "chromosome", "chr"},
            {"seg.mean", "segment_mean", "segmean", "log2", "log2_ratio"},
        ),
    ),
    (
        "gene_table",
        ({"gene", "symbol", "gene_name", "hugo_symbol"}, {"chrom", "chromosome", "chr"}, {"start", "start_position"}),
    ),
    ("samples", ({"sample_id"}, {"patient_id"})),
)
"""What tells a table of a genomics core: in its header one of each set."""
_GENE_WORDS = {"gene", "gene_id", "gene_name", "hugo_symbol", "symbol", "geneid"}
_SAMPLE_WORDS = {"sample", "sample_id", "patient", "patient_id", "id", ""}
_TEXTS = {".tsv", ".txt", ".csv", ".seg", ".maf", ".vcf"}
_COPY_WORDS = ("cnv", "cna", "copy", "gistic")


def _kind_of(path: Path) -> str | None:
    """What a file of a genomics core is, by its name and its first lines."""
    suffix = plain_suffix(path)
    if suffix in {".vcf", ".maf"}:
        return suffix.removeprefix(".")
    rows = text_rows(path, _SMALL)
    _, header = next(rows, (1, []))
    names = [h.casefold() for h in header]
    for kind, sets in _HEADERS:
        if all(set(names) & wanted for wanted in sets):
            return kind
    if len(names) == 1 and (names[0] in _GENE_WORDS or header[0].isupper()):
        return "panel"
    _, first = next(rows, (2, []))
    numbers = sum(_is_number(c) for c in first[1:])
    if len(names) > 3 and names[0] in _GENE_WORDS | _SAMPLE_WORDS and numbers > len(first) // 2:
        copies = any(word in path.name.casefold() for word in _COPY_WORDS)
        return "copies" if copies else "expression"
    return None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _as_pattern(folder: Path, paths: Sequence[Path]) -> list[str]:
    """One pattern for many files of a folder, their names for a few."""
    inside = [path.relative_to(folder) for path in paths]
    parents = {p.parent for p in inside}
    if len(inside) > 3 and len(parents) == 1:
        suffixes = {"".join(p.suffixes[-2:]) if p.suffix in {".gz", ".bgz"} else p.suffix for p in inside}
        return sorted((parents.copy().pop() / f"*{s}").as_posix() for s in suffixes)
    return sorted(p.as_posix() for p in inside)


def _mutations(folder: Path, kinds: Mapping[str, list[Path]], people: Collection[str]) -> dict[str, Any]:
    kind = "vcf" if "vcf" in kinds else "maf"
    paths = kinds[kind]
    made: dict[str, Any] = {"files": _as_pattern(folder, paths), "panel": EXOME}
    if kind == "vcf":
        if len(paths) > 1 and all(path.name.split(".")[0] in people for path in paths):
            made["patient"] = "file"
        samples = _samples(paths[0])
        tumour = next((s for s in samples if s.casefold() in {"tumor", "tumour"}), None)
        if tumour is not None:
            made["tumour"] = tumour
    return made


def _samples(path: Path) -> list[str]:
    """Names of the samples of a VCF."""
    for _, cells in _vcf_header(path):
        if cells[:1] == ["#CHROM"]:
            return cells[9:]
    return []


def _vcf_header(path: Path) -> Iterator[tuple[int, list[str]]]:
    for row, line in text_lines(path, _SMALL):
        yield row, line.split("\t")
        if not line.startswith("##"):
            return


def _kinds(folder: Path, taken: Collection[str]) -> dict[str, list[Path]]:
    """Files by what they are."""
    kinds: dict[str, list[Path]] = {}
    root = folder.resolve()
    for path in files_below(root, ImagingSettings().limits).files:
        inside = path.relative_to(root)
        if plain_suffix(path) not in _TEXTS or inside.as_posix() in taken:
            continue
        try:
            kind = _kind_of(path)
        except (DataError, OSError):
            continue
        if kind is not None:
            kinds.setdefault(kind, []).append(folder / inside)
    return kinds


def _copy_number(folder: Path, kinds: Mapping[str, list[Path]]) -> dict[str, Any]:
    if "segments" in kinds and "gene_table" in kinds:
        return {"files": _as_pattern(folder, kinds["segments"]), "format": "segments", "values": "log2"}
    return {"files": _as_pattern(folder, kinds["copies"]), "format": "genes", "values": "calls"}


def _notes(kinds: Mapping[str, list[Path]]) -> list[str]:
    """What a person should look at before the proposal is used."""
    singles = ("aliases", "gene_table", "samples", "panel")
    notes = [f"more than one file looks like {k}; the first is taken" for k in singles if len(kinds.get(k, ())) > 1]
    if "segments" in kinds and "gene_table" not in kinds:
        notes.append("segments need gene_table, a table of genes with chromosome, start and end; none was found")
    if {"vcf", "maf"} & set(kinds) and "panel" not in kinds:
        notes.append("panel = exome says that every gene was sequenced; if not, list the genes of the panel in a file")
    if {"vcf", "maf"} <= set(kinds):
        notes.append("there are VCF and MAF files; the VCF are taken")
    return notes


def propose_genomics(folder: Path, people: Collection[str], taken: Collection[str]) -> str:
    """`[genomics]` for what lies in a folder, as text; empty where there are no sequencing files.

    Args:
        folder: the site's.
        people: ids in the site's tables.
        taken: names of the files in the folder that are tables of the site.

    Raises:
        DataError: the folder cannot be read.
    """
    kinds = _kinds(folder, taken)
    if not {"expression", "segments", "copies", "vcf", "maf"} & set(kinds):
        return ""
    first = {kind: paths[0].relative_to(folder).as_posix() for kind, paths in kinds.items()}
    content: dict[str, Any] = {key: first[key] for key in ("aliases", "gene_table") if key in kinds}
    if "samples" in kinds:
        content["samples"] = {"file": first["samples"]}
    if "expression" in kinds:
        content["expression"] = {"files": _as_pattern(folder, kinds["expression"])}
    if {"segments", "gene_table"} <= set(kinds) or "copies" in kinds:
        content["copy_number"] = _copy_number(folder, kinds)
    if {"vcf", "maf"} & set(kinds):
        content["mutations"] = _mutations(folder, kinds, people)
        if "panel" in kinds:
            content["panels"] = {"panel": first["panel"]}
            content["mutations"]["panel"] = "panel"
    head = "Sequencing files: patterns of their names, whose samples they are, what was sequenced."
    return as_toml("genomics", content, [head, *(f"NOTE: {note}" for note in _notes(kinds))])
