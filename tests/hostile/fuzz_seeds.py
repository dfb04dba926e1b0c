"""Sound inputs from which a fuzzer starts."""

from __future__ import annotations

import gzip
import tempfile
from pathlib import Path

import pydicom
from pydicom.uid import ImplicitVRLittleEndian, RLELossless
from small_export import write_export
from variant_cases import COLUMNS, CSQ, MAF, RECORD

ANN = CSQ.replace("ID=CSQ", "ID=ANN").replace("From VEP. Format: ", "Functional annotations: '").replace('">', "'\">")


def dicom_seeds(folder: Path) -> dict[str, bytes]:
    """One file of each kind that the door reads, in two transfer syntaxes more; JPEG is decoded in another process."""
    seeds = {}
    for kind, segments in (("outlines", False), ("segments", True)):
        export = write_export(folder / kind, segments=segments, pet=True, mr=True)
        seeds |= {f"{kind}-{name}": (export / name).read_bytes() for name in ("ct0", "pet0", "mr0", "region")}
    data = pydicom.dcmread(folder / "outlines" / "ct1")
    data.compress(RLELossless)
    data.save_as(folder / "rle")
    data = pydicom.dcmread(folder / "outlines" / "ct2")
    data.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    data.save_as(folder / "implicit", implicit_vr=True, little_endian=True)
    return seeds | {name: (folder / name).read_bytes() for name in ("rle", "implicit")}


def variant_seeds() -> dict[str, bytes]:
    """A VCF of each annotator, one packed, and a MAF; the first byte says which."""
    vep, snpeff = (f"{head}{COLUMNS}P1\tP2\n{RECORD.replace('0/1', '0/1:9	1|0:4')}" for head in (CSQ, ANN))
    snpeff = snpeff.replace("CSQ=T", "AC=1;ANN=T")
    several = (
        "chr12\t25205300\trs1\tCAG\tC,CAT,<DEL>\t.\tq10;PASS\tDP=5;CSQ=-|frameshift_variant&stop_gained|HIGH|KRAS,T|"
    )
    several += "missense_variant|MODERATE|KRAS;AF=0.5\tGT:AD\t0/1:3,4\t./.\n"
    vep += several + several.replace("CAG\tC,CAT,<DEL>", "N\t]chr2:321681]G").replace("q10;PASS", ".")
    header = MAF.rstrip("\n") + "\tTumor_Seq_Allele1\tFILTER\tMutation_Status\n"
    full = "#version 2.4\n" + header + "KRAS\tchr12\t25205300\tFrame_Shift_Del\tAG\t-\tP1\tAG\tPASS\tSomatic\n"
    full += "TP53\t17\t7670700\tIn_Frame_Ins\t-\tACG\tP2\t-\tPASS\tGermline\n"
    maf = f"{MAF}TP53\t17\t7670700\tNonsense_Mutation\tC\tT\tP1\n"
    return {
        "vep": b"\0" + vep.encode(),
        "snpeff": b"\0" + snpeff.encode(),
        "maf": b"\1" + maf.encode(),
        "maf-full": b"\1" + full.encode(),
        "packed": b"\2" + gzip.compress(vep.encode(), mtime=0),
    }


WORDS = {
    "dicom": ("SQ", "UN", "DS", "CS", "nan", "1e999", "-1", "ISO 2022 IR 87", "CLOSED_PLANAR", "FRACTIONAL"),
    "variants": (
        *(
            "\\x09",
            "\\x0a",
            "CSQ=",
            "ANN=",
            ";CSQ=",
            "0/1",
            "1|2",
            "./.",
            "GT",
            "PASS",
            "chr12",
            "##",
            "#CHROM",
            "KRAS",
        ),
        *(
            "missense_variant",
            "stop_gained",
            "&",
            "|",
            ",",
            "<DEL>",
            "<NON_REF>",
            "*",
            "Silent",
            "Missense_Mutation",
            "-",
        ),
    ),
}
"""Words that mean something to a door; a fuzzer puts them anywhere."""


def write_words(door: str, path: Path) -> None:
    """Write the dictionary of a door as libFuzzer reads it."""
    path.write_text("".join(f'"{word}"\n' for word in WORDS[door]), encoding="ascii")


def write_seeds(door: str, corpus: Path) -> None:
    """Write the seeds of a door into a new folder."""
    corpus.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as name:
        seeds = dicom_seeds(Path(name)) if door == "dicom" else variant_seeds()
    for key, content in seeds.items():
        (corpus / key).write_bytes(content)
