"""Any bytes at all: a table, or one error that names the file. Nothing else, and no patient in it."""

from __future__ import annotations

import gzip
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oncofed_client.genomics.copy_number import read_copy_number
from oncofed_client.genomics.expression import read_expression
from oncofed_client.genomics.impact import mutation_impact, read_mutations
from oncofed_client.genomics.inputs import open_files
from oncofed_client.genomics.settings import GenomicsSettings
from oncofed_client.prepare.feature_table import FeatureTable
from oncofed_shared.errors import OncofedError
from oncofed_shared.plan import CopyNumberFeatures, ExpressionFeatures, MutationFeatures, validate

NAMES = b"symbol\talias_symbol\tprev_symbol\nTP53\tp53|LFS1\t\nKRAS\tK-RAS\tKRAS2\n"
VCF = (
    b'##fileformat=VCFv4.2\n##INFO=<ID=CSQ,Number=.,Type=String,Description="x Format: Allele|Consequence|SYMBOL|ALLELE_NUM">\n'
    b"#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\tANNA\tBERTA\n"
    b"chr17\t100\t.\tC\tT,CA\t.\tPASS\tDP=3;CSQ=T|stop_gained|TP53|1,A|frameshift_variant|K-RAS|2\tGT:AD\t0/1:3\t2|1:4\n"
)
MAF = (
    b"#version 2.4\nHugo_Symbol\tChromosome\tStart_Position\tVariant_Classification\tReference_Allele\tTumor_Seq_Allele2\t"
    b"Tumor_Sample_Barcode\tFILTER\nTP53\tchr17\t100\tNonsense_Mutation\tC\tT\tANNA\tPASS\n"
)
MATRIX = b"gene\tANNA\tBERTA\nTP53\t10\t7\np53\t3\t4\nKRAS\t5\tNA\n"
SEG = b"ID\tchrom\tloc.start\tloc.end\tnum.mark\tseg.mean\nANNA\t17\t1\t500\t3\t-0.4\nANNA\t17\t501\t900\t3\t0.7\n"
PLACES = b"gene\tchromosome\tstart\tend\nTP53\t17\t100\t600\nKRAS\t12\t5\t9\n"
IMPACT = validate(
    MutationFeatures,
    {
        "kind": "mutations",
        "severity": {"source": "made for this test", "terms": {"stop_gained": 1.0}},
        "drivers": {"source": "made for this test", "oncogenes": {"KRAS": 1.0}, "suppressors": {"TP53": 1.0}},
    },
    "study",
)
EXPRESSION = ExpressionFeatures(kind="expression")
COPY_NUMBER = CopyNumberFeatures(kind="copy_number", values="log2")


def run(files: dict[str, bytes], kind: str) -> FeatureTable:
    """Read a whole site."""
    content: dict[str, Any] = {"aliases": "names.tsv", "gene_table": "places.tsv"}
    content["expression"] = {"files": ["m.tsv"]}
    content["copy_number"] = {"files": ["a.seg"], "format": "segments", "values": "log2"}
    content["mutations"] = {"files": ["a.vcf" if kind == "a.vcf" else "a.maf"], "panel": "exome"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, text in files.items():
            (folder / file).write_bytes(text)
        site = open_files(folder, validate(GenomicsSettings, content, "site.toml"))
        if kind in {"a.vcf", "a.maf"}:
            return mutation_impact(read_mutations(site, IMPACT), IMPACT, site.names, site.panels)
        if kind == "m.tsv":
            return read_expression(site, EXPRESSION)
        return read_copy_number(site, COPY_NUMBER)


def said(file: str, text: bytes) -> tuple[tuple[str, ...], bool]:
    """What a person is told, and whether it is an error."""
    kind = {"names.tsv": "m.tsv", "places.tsv": "a.seg"}.get(file, file)
    try:
        return run({**GOOD, file: text}, kind).problems, False
    except OncofedError as error:
        return error.problems, True


GOOD = {"names.tsv": NAMES, "places.tsv": PLACES, "a.vcf": VCF, "a.maf": MAF, "m.tsv": MATRIX, "a.seg": SEG}
TOKENS = [
    b"\t",
    b"\n",
    b"\r",
    b"\0",
    b'"',
    b"|",
    b",",
    b";",
    b"=",
    b"NA",
    b"nan",
    b"-1",
    b"1e309",
    b"9" * 30,
    b"\xff",
    b"<",
    b"ANNA",
]


@st.composite
def damaged(draw):
    """A good file with a few places overwritten, cut out or doubled, perhaps packed and cut."""
    file = draw(st.sampled_from(sorted(GOOD)))
    text = GOOD[file]
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.integers(0, 12)))
        what = draw(st.sampled_from(TOKENS) | st.binary(max_size=4) | st.just(text[start:end] * 2))
        text = text[:start] + what + text[end:]
    if draw(st.booleans()):
        packed = gzip.compress(text)
        text = packed[: draw(st.integers(0, len(packed)))] if draw(st.booleans()) else packed
    return file, text


@settings(max_examples=400)
@given(damaged())
def test_damaged_files_give_a_table_or_one_clear_error(case):
    told, failed = said(*case)
    assert not failed or len(told) == 1
    # Damage can put a patient's name where a gene's should be; test_genes says when such a label is shown.
    told = tuple(line for line in told if failed or "could not be mapped" not in line)
    assert not any(name in line for line in told for name in ("ANNA", "BERTA"))


@settings(max_examples=100)
@given(st.sampled_from(sorted(GOOD)), st.binary(max_size=200))
def test_any_bytes_give_a_table_or_one_clear_error(file, text):
    told, failed = said(file, text)
    assert not failed or len(told) == 1


@pytest.mark.parametrize("kind", ["a.vcf", "a.maf", "m.tsv", "a.seg"])
def test_the_undamaged_files_are_read(kind):
    assert run(GOOD, kind).patients[0] == "ANNA"
