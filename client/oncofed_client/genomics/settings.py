"""The `[genomics]` table of a site's settings: which files, whose samples, which genes a panel covers."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from oncofed_shared.strict import Frozen

__all__ = [
    "EXOME",
    "CopyNumberFiles",
    "ExpressionFiles",
    "GenomicsSettings",
    "Limits",
    "MutationFiles",
    "Samples",
]

EXOME = "exome"
"""The panel of an assay that covers every gene."""

Text = Annotated[str, Field(min_length=1, pattern=r"\S")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+ -]{0,63}$")]


def _inside(path: str) -> str:
    parts = PurePosixPath(path.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or ":" in parts.parts[0]:
        message = "must lie in the site's folder and be written relative to it"
        raise ValueError(message)
    return path


File = Annotated[Text, AfterValidator(_inside)]
Files = Annotated[tuple[File, ...], Field(min_length=1)]


class Limits(Frozen):
    """What is still believed to be a file of a genomics core, and not a mistake or an attack.

    Attributes:
        line_mb: longest line.
        file_gb: largest file, unpacked.
        ratio: how many times larger than packed a file may get.
    """

    line_mb: Annotated[int, Field(ge=1, le=1024)] = 16
    file_gb: Annotated[int, Field(ge=1, le=1024)] = 50
    ratio: Annotated[int, Field(ge=10, le=1100)] = 400


class Samples(Frozen):
    """Which patient a sample belongs to. Without this a sample has the name of its patient.

    Attributes:
        file: table of samples; samples that are not in it are not read. It also names the patients who were sequenced.
        sample, patient: its columns.
        panel: its column with the panel of each sample, for mutations.
        characters: without `file`: the patient is this many first characters of the sample (12 in a TCGA barcode).
    """

    file: File | None = None
    sample: Text = "sample_id"
    patient: Text = "patient_id"
    panel: Text | None = None
    characters: Annotated[int, Field(ge=1, le=64)] | None = None

    @field_validator("panel")
    @classmethod
    def _in_file(cls, panel: str | None, info: ValidationInfo) -> str | None:
        if panel is not None and info.data.get("file", "") is None:
            message = "is a column of file, which is missing"
            raise ValueError(message)
        return panel

    @field_validator("characters")
    @classmethod
    def _one_way(cls, characters: int | None, info: ValidationInfo) -> int | None:
        if "file" in info.data and (characters is None) == (info.data["file"] is None):
            message = "give either file or characters"
            raise ValueError(message)
        return characters


class ExpressionFiles(Frozen):
    """Matrices of genes and samples.

    Attributes:
        files: `.tsv`, `.txt` or `.csv`, also `.gz`; a `*` matches within a name.
        values: what they hold; without it, what they look like.
        genes_in: where the genes are; without it, where known genes are found.
        label: column with the gene's name, where genes are in rows; without it, the first.
        column: of files with one sample each, as the GDC's: the column that is read. The sample is the file's name up to the first
            dot.
    """

    files: Files
    values: Literal["counts", "tpm", "zscores"] | None = None
    genes_in: Literal["rows", "columns"] | None = None
    label: Text | None = None
    column: Text | None = None

    @field_validator("column")
    @classmethod
    def _of_rows(cls, column: str | None, info: ValidationInfo) -> str | None:
        if column is not None and info.data.get("genes_in") == "columns":
            message = "is read where genes are in rows; remove it or genes_in"
            raise ValueError(message)
        return column


class CopyNumberFiles(Frozen):
    """Copy number per gene, or segments.

    Attributes:
        files: as for expression.
        format: `genes` is a matrix of genes and samples, `segments` a SEG table, for which `gene_table` is needed.
        values: what they hold.
        genes_in, label: as for expression, of a matrix.
    """

    files: Files
    format: Literal["genes", "segments"]
    values: Literal["log2", "calls"]
    genes_in: Literal["rows", "columns"] | None = None
    label: Text | None = None

    @field_validator("values")
    @classmethod
    def _of_segments(cls, values: str, info: ValidationInfo) -> str:
        if values == "calls" and info.data.get("format") == "segments":
            message = "segments hold 'log2' ratios; calls stand in a matrix of genes"
            raise ValueError(message)
        return values


class MutationFiles(Frozen):
    """Called variants.

    Attributes:
        files: `.vcf` or `.maf`, also `.gz`.
        format: without it, by the name of each file.
        patient: whether a VCF's samples name the patients, or its file name up to the first dot does.
        tumour: the sample that is read, where a VCF also has the normal one.
        panel: what was sequenced: a name under `panels`, or `exome` for every gene. The column `samples.panel` goes before it.
        filters: what FILTER must say. A missing one is an empty text or a dot.
    """

    files: Files
    format: Literal["vcf", "maf"] | None = None
    patient: Literal["sample", "file"] = "sample"
    tumour: Text | None = None
    panel: Name
    filters: tuple[str, ...] = ("PASS", ".", "")

    @field_validator("tumour")
    @classmethod
    def _in_file(cls, tumour: str | None, info: ValidationInfo) -> str | None:
        if tumour is not None and info.data.get("patient") == "sample":
            message = "goes with patient = 'file'; samples that are no patient's are left out of the table of samples"
            raise ValueError(message)
        return tumour


class GenomicsSettings(Frozen):
    """All of `[genomics]`.

    Attributes:
        aliases: HGNC-style table of gene names; without it names are taken as they are.
        gene_table: where each gene lies, for segments.
        panels: per panel the file with its genes, one in a line.
    """

    aliases: File | None = None
    gene_table: File | None = None
    samples: Samples | None = None
    panels: dict[Name, File] = Field(default_factory=dict)
    expression: ExpressionFiles | None = None
    copy_number: CopyNumberFiles | None = None
    mutations: MutationFiles | None = None
    limits: Limits = Limits()

    @field_validator("panels")
    @classmethod
    def _not_exome(cls, panels: dict[str, str]) -> dict[str, str]:
        if EXOME in panels:
            message = f"'{EXOME}' means every gene and takes no file"
            raise ValueError(message)
        return panels

    @field_validator("copy_number")
    @classmethod
    def _places(cls, files: CopyNumberFiles | None, info: ValidationInfo) -> CopyNumberFiles | None:
        if files is not None and files.format == "segments" and info.data.get("gene_table", "") is None:
            message = "segments need gene_table, which is missing"
            raise ValueError(message)
        return files

    @field_validator("mutations")
    @classmethod
    def _panel(cls, files: MutationFiles | None, info: ValidationInfo) -> MutationFiles | None:
        known = (EXOME, *info.data.get("panels", ()))
        if files is not None and files.panel not in known and "panels" in info.data:
            message = f".panel: no panel has this name; there are {', '.join(known)}"
            raise ValueError(message)
        return files
