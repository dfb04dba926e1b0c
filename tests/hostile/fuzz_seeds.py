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
    maf = f"{MAF}TP53\t17\t7670700\tNonsense_Mutation\tC\tT\tP1\n"
    return {
        "vep": b"\0" + vep.encode(),
        "snpeff": b"\0" + snpeff.encode(),
        "maf": b"\1" + maf.encode(),
        "packed": b"\2" + gzip.compress(vep.encode(), mtime=0),
    }


def write_seeds(door: str, corpus: Path) -> None:
    """Write the seeds of a door into a new folder."""
    corpus.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as name:
        seeds = dicom_seeds(Path(name)) if door == "dicom" else variant_seeds()
    for key, content in seeds.items():
        (corpus / key).write_bytes(content)
