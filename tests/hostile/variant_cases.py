"""Variant files that no caller wrote: each function writes one folder."""

from __future__ import annotations

import gzip
import zipfile
from collections.abc import Callable
from pathlib import Path

CSQ = (
    "##fileformat=VCFv4.2\n"
    '##INFO=<ID=CSQ,Number=.,Type=String,Description="From VEP. Format: Allele|Consequence|IMPACT|SYMBOL">\n'
)
COLUMNS = "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\t"
RECORD = "chr12\t25205300\t.\tC\tT\t100\tPASS\tCSQ=T|missense_variant|MODERATE|KRAS\tGT\t0/1\n"
MAF = (
    "Hugo_Symbol\tChromosome\tStart_Position\tVariant_Classification\tReference_Allele\tTumor_Seq_Allele2\t"
    "Tumor_Sample_Barcode\n"
)


def vcf(folder: Path, body: str | bytes, *, samples: str = "P1") -> None:
    """Write `a.vcf`: a whole header and what follows it."""
    folder.mkdir()
    tail = body.encode() if isinstance(body, str) else body
    (folder / "a.vcf").write_bytes(f"{CSQ}{COLUMNS}{samples}\n".encode() + tail)


def sound(folder: Path) -> None:
    vcf(folder, RECORD)


def line_of_100_megabytes(folder: Path) -> None:
    vcf(folder, RECORD.replace("MODERATE", "x" * 100_000_000))


def header_line_of_100_megabytes(folder: Path) -> None:
    folder.mkdir()
    (folder / "a.vcf").write_bytes(b"##fileformat=VCFv4.2\n##" + b"x" * 100_000_000 + b"\n")


def gzip_bomb(folder: Path) -> None:
    """Sixteen gigabytes of one letter in sixteen megabytes."""
    folder.mkdir()
    start = gzip.compress(f"{CSQ}{COLUMNS}P1\n".encode())
    (folder / "a.vcf.gz").write_bytes(start + gzip.compress(b"#" * 2**26, 6) * 250)


def gzip_bomb_of_lines(folder: Path) -> None:
    """The same, as lines of a header, each short enough."""
    folder.mkdir()
    start = gzip.compress(CSQ.encode())
    (folder / "a.vcf.gz").write_bytes(start + gzip.compress((b"##" + b"x" * (2**20 - 3) + b"\n") * 64, 6) * 250)


def zip_in_disguise(folder: Path) -> None:
    folder.mkdir()
    with zipfile.ZipFile(folder / "a.vcf.gz", "w") as archive:
        archive.writestr("../../a.vcf", CSQ + RECORD)


def gzip_cut_off(folder: Path) -> None:
    folder.mkdir()
    content = gzip.compress(f"{CSQ}{COLUMNS}P1\n{RECORD * 1000}".encode())
    (folder / "a.vcf.gz").write_bytes(content[: len(content) // 2])


def a_million_alleles(folder: Path) -> None:
    vcf(folder, RECORD.replace("\tT\t100", "\t" + ",".join(["T"] * 1_000_000) + "\t100"))


def a_million_annotations(folder: Path) -> None:
    vcf(folder, RECORD.replace("CSQ=", "CSQ=" + "T|x|y|KRAS," * 1_000_000))


def commas(folder: Path) -> None:
    vcf(folder, RECORD.replace("CSQ=", "CSQ=" + "," * 15_000_000))


def a_hundred_thousand_samples(folder: Path) -> None:
    samples = "\t".join(f"P{i}" for i in range(100_000))
    vcf(folder, RECORD.replace("0/1", "\t".join(["0/1"] * 100_000)), samples=samples)


def many_genes_that_nobody_knows(folder: Path) -> None:
    rows = (RECORD.replace("KRAS", f"GENE{i}").replace("25205300", str(i + 1)) for i in range(30_000))
    vcf(folder, "".join(rows))


def positions_that_are_none(folder: Path) -> None:
    vcf(folder, RECORD.replace("25205300", "9" * 5000))


def not_a_number(folder: Path) -> None:
    vcf(folder, RECORD.replace("25205300", "NaN"))


def negative_position(folder: Path) -> None:
    vcf(folder, RECORD.replace("25205300", "-1"))


def other_digits(folder: Path) -> None:
    vcf(folder, RECORD.replace("25205300", "٢٥٢٠٥٣٠٠"))


def zero_bytes(folder: Path) -> None:
    vcf(folder, RECORD.encode().replace(b"KRAS", b"KR\0S"))


def latin_1(folder: Path) -> None:
    vcf(folder, RECORD.encode().replace(b"KRAS", b"KR\xc4S"))


def utf_16(folder: Path) -> None:
    folder.mkdir()
    (folder / "a.vcf").write_bytes(f"{CSQ}{COLUMNS}P1\n{RECORD}".encode("utf-16"))


def bare_carriage_returns(folder: Path) -> None:
    folder.mkdir()
    (folder / "a.vcf").write_bytes(f"{CSQ}{COLUMNS}P1\n{RECORD}".replace("\n", "\r").encode())


def names_that_lead_away(folder: Path) -> None:
    vcf(folder, RECORD, samples="../../../etc/passwd")


def genotype_of_nothing(folder: Path) -> None:
    vcf(folder, RECORD.replace("0/1", "0/7"))


def short_record(folder: Path) -> None:
    vcf(folder, "chr12\t25205300\n")


def two_samples_alike(folder: Path) -> None:
    vcf(folder, RECORD, samples="P1\tP1")


def an_allele_that_is_a_formula(folder: Path) -> None:
    vcf(folder, RECORD.replace("\tT\t100", "\t=cmd|' /C calc'!A0\t100"))


def no_annotation(folder: Path) -> None:
    folder.mkdir()
    (folder / "a.vcf").write_text(f"##fileformat=VCFv4.2\n{COLUMNS}P1\n{RECORD}", encoding="utf-8")


def an_unknown_column_in_the_annotation(folder: Path) -> None:
    folder.mkdir()
    described = CSQ.replace("Allele|Consequence|IMPACT|SYMBOL", "|" * 100_000)
    (folder / "a.vcf").write_text(f"{described}{COLUMNS}P1\n{RECORD}", encoding="utf-8")


def empty(folder: Path) -> None:
    folder.mkdir()
    (folder / "a.vcf").touch()
    (folder / "b.maf").touch()


def maf(folder: Path, body: str) -> None:
    folder.mkdir()
    (folder / "a.maf").write_text(MAF + body, encoding="utf-8")


def maf_of_100_megabytes_in_a_line(folder: Path) -> None:
    maf(folder, "KRAS\t12\t1\tMissense_Mutation\tC\tT\t" + "P" * 100_000_000 + "\n")


def maf_with_a_quote(folder: Path) -> None:
    maf(folder, '"KRAS\t12\t1\tMissense_Mutation\tC\tT\tP1\n')


def maf_with_a_strange_class(folder: Path) -> None:
    maf(folder, "KRAS\t12\t1\t../../etc\tC\tT\tP1\n")


def maf_without_a_position(folder: Path) -> None:
    maf(folder, "KRAS\t12\tnan\tMissense_Mutation\tC\tT\tP1\n")


VARIANTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "sound": (sound, ""),
    "line_of_100_megabytes": (line_of_100_megabytes, "row 4: the line is longer than 16 MB"),
    "header_line_of_100_megabytes": (header_line_of_100_megabytes, "row 2: the line is longer than 16 MB"),
    "gzip_bomb": (gzip_bomb, "longer than 16 MB"),
    "gzip_bomb_of_lines": (gzip_bomb_of_lines, "times its size"),
    "zip_in_disguise": (zip_in_disguise, "packed with zip"),
    "gzip_cut_off": (gzip_cut_off, "not copied whole"),
    "a_million_alleles": (a_million_alleles, "ALT"),
    "a_million_annotations": (a_million_annotations, "INFO/CSQ"),
    "commas": (commas, "INFO/CSQ"),
    "a_hundred_thousand_samples": (a_hundred_thousand_samples, ""),
    "many_genes_that_nobody_knows": (many_genes_that_nobody_knows, ""),
    "positions_that_are_none": (positions_that_are_none, "row 4, column POS"),
    "not_a_number": (not_a_number, "row 4, column POS"),
    "negative_position": (negative_position, "row 4, column POS"),
    "other_digits": (other_digits, "row 4, column POS"),
    "zero_bytes": (zero_bytes, "row 4: expected text, found a zero byte"),
    "latin_1": (latin_1, "row 4: expected UTF-8"),
    "utf_16": (utf_16, "row 1: expected"),
    "bare_carriage_returns": (bare_carriage_returns, "carriage return"),
    "names_that_lead_away": (names_that_lead_away, ""),
    "genotype_of_nothing": (genotype_of_nothing, "genotype"),
    "short_record": (short_record, "row 4: expected 10 cells"),
    "two_samples_alike": (two_samples_alike, "two alike"),
    "an_allele_that_is_a_formula": (an_allele_that_is_a_formula, "column ALT"),
    "no_annotation": (no_annotation, "VEP"),
    "an_unknown_column_in_the_annotation": (an_unknown_column_in_the_annotation, "VEP"),
    "empty": (empty, "VCF"),
    "maf_of_100_megabytes_in_a_line": (maf_of_100_megabytes_in_a_line, "row 2: the line is longer"),
    "maf_with_a_quote": (maf_with_a_quote, ""),
    "maf_with_a_strange_class": (maf_with_a_strange_class, "column Variant_Classification"),
    "maf_without_a_position": (maf_without_a_position, "column Start_Position"),
}
"""Name -> what makes it, and what some message must say; the empty text where reading it is right."""
