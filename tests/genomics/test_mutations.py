"""Mutations: a VCF and the MAF made from it are one table, an independent reader sees the same, and hostile files are refused."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pysam
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oncofed_client.genomics.impact import read_mutations
from oncofed_client.genomics.inputs import open_files
from oncofed_client.genomics.settings import GenomicsSettings
from oncofed_shared.errors import DataError
from oncofed_shared.plan import MutationFeatures, validate

FEATURES = validate(
    MutationFeatures,
    {
        "kind": "mutations",
        "genes": ["PTEN", "BRCA1"],
        "severity": {"source": "made for this test", "terms": {"stop_gained": 1.0}},
        "drivers": {
            "source": "made for this test",
            "oncogenes": {"KRAS": 1.0, "EGFR": 1.0},
            "suppressors": {"TP53": 1.0},
        },
    },
    "study",
)
PATIENTS = ["P1", "P2", "P3"]
HEAD = (
    "##fileformat=VCFv4.2\n"
    '##FILTER=<ID=LowQual,Description="Low">\n'
    '##INFO=<ID=DP,Number=1,Type=Integer,Description="Depth">\n'
    '{annotation}\n##FORMAT=<ID=GT,Number=1,Type=String,Description="Genotype">\n'
    '##FORMAT=<ID=AD,Number=R,Type=Integer,Description="Depths">\n'
    "##contig=<ID=chr17>\n##contig=<ID=chr7>\n"
    "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\t{samples}\n"
)
CSQ = (
    '##INFO=<ID=CSQ,Number=.,Type=String,Description="Consequence annotations from Ensembl VEP. '
    'Format: Allele|Consequence|IMPACT|SYMBOL|Gene|BIOTYPE|CANONICAL|ALLELE_NUM">'
)
ANN = (
    "##INFO=<ID=ANN,Number=.,Type=String,Description=\"Functional annotations: 'Allele | Annotation | Annotation_Impact | "
    "Gene_Name | Gene_ID | Feature_Type | Feature_ID | Transcript_BioType' \">"
)
CLASSES = {
    "stop_gained": "Nonsense_Mutation",
    "missense_variant": "Missense_Mutation",
    "synonymous_variant": "Silent",
    "splice_donor_variant": "Splice_Site",
    "splice_acceptor_variant": "Splice_Site",
    "frameshift_variant": "Frame_Shift_",
    "inframe_deletion": "In_Frame_",
    "intron_variant": "Intron",
    "5_prime_UTR_variant": "5'UTR",
    "upstream_gene_variant": "5'Flank",
    "start_lost": "Translation_Start_Site",
}
MAF_HEAD = (
    "#version 2.4\nHugo_Symbol\tChromosome\tStart_Position\tEnd_Position\tVariant_Classification\tVariant_Type\t"
    "Reference_Allele\tTumor_Seq_Allele1\tTumor_Seq_Allele2\tTumor_Sample_Barcode\tFILTER\n"
)
GENE = st.sampled_from(["TP53", "p53", "EGFR", "ERBB1", "KRAS", "PTEN", "ERBB2", "BOGUS"])
BASES = st.text("ACGT", min_size=1, max_size=4)


@st.composite
def records(draw):
    """Lines of a VCF, each allele annotated by its number, with a second, milder annotation that must not win."""
    lines = []
    for position in draw(st.lists(st.integers(1, 900), min_size=1, max_size=8, unique=True)):
        ref = draw(BASES)
        alts = draw(st.lists(BASES.filter(lambda a, r=ref: a != r), min_size=1, max_size=3, unique=True))
        entries = []
        for number, alt in enumerate(alts, 1):
            gene, term = draw(GENE), draw(st.sampled_from(sorted(CLASSES)))
            entries.append(f"{alt}|downstream_gene_variant|MODIFIER|PTEN||protein_coding||{number}")
            entries.append(f"{alt}|{term}&coding_transcript_variant|HIGH|{gene}||protein_coding|YES|{number}")
        genotype = st.sampled_from(["0", ".", *map(str, range(1, len(alts) + 1))])
        calls = [f"{draw(genotype)}{draw(st.sampled_from('/|'))}{draw(genotype)}:9,9" for _ in PATIENTS]
        status = draw(st.sampled_from(["PASS", ".", "LowQual"]))
        info = f"DP=3;CSQ={','.join(draw(st.permutations(entries)))}"
        chromosome = draw(st.sampled_from(["chr7", "chr17"]))
        lines.append(
            "\t".join([chromosome, str(position), ".", ref, ",".join(alts), ".", status, info, "GT:AD", *calls])
        )
    return lines


def maf_of(vcf: Path) -> list[str]:
    """The MAF that vcf2maf's rules make of a VCF, by way of htslib."""
    rows = []
    with pysam.VariantFile(str(vcf)) as stream:
        for record in stream:
            entries = [dict(zip(("alt", "terms", "impact", "gene", "id", "type", "usual", "number"), e.split("|"), strict=True))
                       for e in record.info["CSQ"]]  # fmt: skip
            for sample, call in record.samples.items():
                for number in sorted({a for a in call.allele_indices if a}):
                    (own,) = [e for e in entries if e["number"] == str(number) and e["usual"]]
                    ref, alt, start = record.ref, record.alts[number - 1], record.pos
                    while ref and alt and ref[0] == alt[0]:
                        ref, alt, start = ref[1:], alt[1:], start + 1
                    if not ref:
                        start -= 1
                    name = CLASSES[own["terms"].split("&")[0]]
                    name += ("Ins" if len(alt) > len(ref) else "Del") if name.endswith("_") else ""
                    status = ";".join(record.filter.keys()) or "."
                    rows.append("\t".join([own["gene"], record.chrom, str(start), str(start + max(len(ref) - 1, 0)), name, "x",
                                           ref or "-", ref or "-", alt or "-", sample, status]))  # fmt: skip
    return rows


def mutations(folder: Path, **files: object):
    content = {"aliases": "hgnc.tsv", "mutations": {"panel": "exome", **files}}
    return read_mutations(open_files(folder, validate(GenomicsSettings, content, "site.toml: genomics")), FEATURES)


@given(records(), st.randoms(use_true_random=False))
def test_a_vcf_and_its_maf_are_one_table_in_any_order(lines, random):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "hgnc.tsv").write_text(
            "symbol\talias_symbol\tprev_symbol\nTP53\tp53\t\nEGFR\tERBB1\t\nERBB2\t\t\nKRAS\t\t\nPTEN\t\t\nBRCA1\t\t\n"
        )
        head = HEAD.format(annotation=CSQ, samples="\t".join(PATIENTS))
        (folder / "a.vcf").write_text(head + "\n".join(lines) + "\n")
        rows = maf_of(folder / "a.vcf")
        random.shuffle(lines)
        with pysam.BGZFile(str(folder / "b.vcf.gz"), "w") as stream:
            stream.write((head + "\n".join(lines)).encode())
        random.shuffle(rows)
        (folder / "a.maf").write_text(MAF_HEAD + "\n".join(rows))
        plain, packed, maf = (mutations(folder, files=[f]) for f in ("a.vcf", "b.vcf.gz", "a.maf"))
    assert plain.rows == packed.rows == maf.rows
    assert set(plain.covered) == set(PATIENTS) >= set(maf.covered)
    expected = sum(r.split("\t")[-1] in {"PASS", "."} and r.split("\t")[0] not in {"ERBB2", "BOGUS"} for r in rows)
    # Two records may be one mutation, written at two positions.
    assert bool(expected) <= len(plain.rows) <= expected


def line(info: str, *calls: str, alt: str = "T", ref: str = "C", status: str = "PASS", form: str = "GT") -> str:
    return "\t".join(["chr17", "100", ".", ref, alt, "50", status, info, form, *calls]) + "\n"


def vcf(*lines: str, samples: str = "S1\tS2", annotation: str = CSQ) -> str:
    return HEAD.format(annotation=annotation, samples=samples) + "".join(lines)


STOP = "CSQ=T|stop_gained|HIGH|TP53||protein_coding|YES|1"


def read(site, content: str | dict[str, str], **more: object):
    files = content if isinstance(content, dict) else {"a.vcf": content}
    given_ = {"panel": "exome", "files": list(files), **more.pop("mutations", {})}
    return read_mutations(site(files, mutations=given_, **more), FEATURES)


def told(found) -> list[tuple[object, ...]]:
    return [(m.patient, m.gene, m.position, m.ref, m.alt, m.consequence) for m in found.rows]


def test_snpeff_is_read_like_vep(site):
    entry = "T|stop_gained|HIGH|TP53|ENSG1|transcript|T1|protein_coding,G|missense_variant|MODERATE|TP53|ENSG1|transcript|T1|coding"
    found = read(site, vcf(line(f"ANN={entry};DP=1", "0/1", "1/2", alt="T,G"), annotation=ANN))
    assert told(found) == [
        ("S1", "TP53", 100, "C", "T", "stop_gained"),
        ("S2", "TP53", 100, "C", "G", "missense_variant"),
        ("S2", "TP53", 100, "C", "T", "stop_gained"),
    ]


def test_alleles_without_numbers_are_told_as_vep_writes_them(site):
    annotation = CSQ.replace("|ALLELE_NUM", "")
    entries = "-|frameshift_variant|HIGH|TP53||protein_coding|,TT|inframe_insertion|M|EGFR||protein_coding|"
    found = read(site, vcf(line(f"CSQ={entries}", "0/1", "0|2", ref="CT", alt="C,CTT"), annotation=annotation))
    assert told(found) == [
        ("S1", "TP53", 101, "T", "", "frameshift_variant"),
        ("S2", "EGFR", 102, "", "T", "inframe_indel"),
    ]


def test_the_gravest_gene_and_its_canonical_transcript_are_chosen(site):
    entries = [
        "T|intron_variant|M|KRAS||protein_coding|YES|1",
        "T|stop_gained|HIGH|EGFR||nonsense_mediated_decay||1",
        "T|missense_variant|M|TP53||protein_coding||1",
        "T|synonymous_variant|L|TP53||protein_coding|YES|1",
    ]
    found = read(site, vcf(line("CSQ=" + ",".join(entries), "0/1", "0/0")))
    assert told(found) == [("S1", "TP53", 100, "C", "T", "synonymous_variant")]


def test_what_is_no_mutation_is_left_out_and_counted(site):
    lines = [
        line(STOP, "0/1", "./."),
        line(STOP, "0/1", "0/1", status="LowQual"),
        line("DP=3", "0/1", "0/1"),
        line("XCSQ=1;CSQ=T|new_term|HIGH|TP53||protein_coding|YES|1", "1", ".", alt="T,<NON_REF>"),
        line("CSQ=T|stop_gained|HIGH|NEWGENE||protein_coding|YES|1", "0/1", "0/0"),
    ]
    found = read(site, vcf(*lines))
    assert told(found) == [("S1", "TP53", 100, "C", "T", "stop_gained")]
    assert set(found.covered) == {"S1", "S2"}
    said = [p.split(": ", 1)[1] for p in found.problems]
    assert said == [
        "1 records were left out, because FILTER is not in genomics.mutations.filters",
        "1 alleles have no annotation and were left out",
        "1 alleles have no consequence that is known and count as 'sequence_variant'",
        "1 names of genes could not be mapped: NEWGENE",
    ]


def test_one_file_per_patient_named_by_the_file(site):
    files = {
        "v/P1.mutect.vcf": vcf(line(STOP, "0/0", "0/1"), samples="NORMAL\tTUMOR"),
        "v/P2.vcf": vcf(samples="NORMAL\tTUMOR"),
    }
    found = read(site, files, mutations={"patient": "file", "tumour": "TUMOR", "files": ["v/*.vcf"]})
    assert told(found) == [("P1", "TP53", 100, "C", "T", "stop_gained")]
    assert set(found.covered) == {"P1", "P2"}
    bare = vcf(line(STOP)).replace("\tFORMAT\tS1\tS2", "").replace("\tGT\n", "\n")
    assert told(read(site, {"P7.vcf": bare}, mutations={"patient": "file"})) == [
        ("P7", "TP53", 100, "C", "T", "stop_gained")
    ]
    strelka = vcf(line(STOP, "5", "6", form="DP"), samples="NORMAL\tTUMOR")
    assert len(read(site, {"P8.vcf": strelka}, mutations={"patient": "file", "tumour": "TUMOR"}).rows) == 1


def test_two_samples_of_a_patient_count_once_and_others_not(site):
    links = "sample_id\tpatient_id\nS1\tP1\nS2\tP1\nS9\tP9\n"
    content = {"a.vcf": vcf(line(STOP, "0/1", "1/1", "0/1"), samples="S1\tS2\tNORMAL"), "l.tsv": links}
    found = read(site, content, samples={"file": "l.tsv"}, mutations={"files": ["a.vcf"]})
    assert told(found) == [("P1", "TP53", 100, "C", "T", "stop_gained")]
    assert set(found.covered) == {"P1", "P9"}, "who is in the table of samples was sequenced"
    assert "1 samples are not in genomics.samples" in found.problems[0]


NOBODY = "ANNA-1980"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "row 1: expected ##fileformat=VCFv4"),
        (vcf().replace("VCFv4.2", "BCF"), "row 1: expected ##fileformat=VCFv4"),
        ("##fileformat=VCFv4.2\n", "ends before the line #CHROM"),
        (vcf(annotation="##x=1"), "has neither INFO/CSQ nor INFO/ANN"),
        (vcf(samples=f"{NOBODY}\t{NOBODY}"), "expected samples with distinct names"),
        (vcf().replace("POS\tID", "ID\tPOS"), "expected the line #CHROM, POS"),
        (vcf(line(STOP, "0/1")), "row 10: expected 11 cells as in the line #CHROM, found 10"),
        (vcf(line(STOP, NOBODY, "0/0")), "row 10, column number 10: expected a genotype of alleles 0 to 1"),
        (vcf(line(STOP, "0/1", "0/2")), "row 10, column number 11: expected a genotype of alleles 0 to 1"),
        (vcf(line(STOP, "0/1", "0/\u0662")), "row 10, column number 11: expected a genotype"),
        (vcf(line(STOP, "7", "8", form="DP")), "row 10: has no genotype"),
        (vcf(line(STOP, "0/1", "0/1", ref=NOBODY)), "row 10, column REF: expected bases"),
        (vcf(line(STOP, "0/1", "0/1", alt="T,")), "row 10, column ALT: expected bases"),
        (vcf(line(STOP, "0/1", "0/1").replace("\t100\t", "\t-1\t")), "row 10, column POS: expected a position"),
        (vcf(line("CSQ=T|stop_gained", "0/1", "0/1")), "row 10, column INFO/CSQ: expected annotations with 8 fields"),
    ],
)
def test_a_malformed_vcf_has_one_clear_error(site, content, expected):
    with pytest.raises(DataError, match=expected) as caught:
        read(site, content)
    assert len(caught.value.problems) == 1
    assert NOBODY not in str(caught.value)


def maf(*rows: str) -> dict[str, str]:
    return {"a.maf": MAF_HEAD + "".join(r + "\n" for r in rows)}


ROW = "TP53\tchr17\t100\t100\tNonsense_Mutation\tSNP\tC\tC\tT\tS1\tPASS"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"a.maf": "a\tb\n"}, "row 1: expected the header of a MAF.*it lacks Hugo_Symbol"),
        (maf(ROW + "\tx"), "row 3: expected 11 cells"),
        (maf(ROW.replace("Nonsense_Mutation", NOBODY)), "row 3, column Variant_Classification: expected a class"),
        (maf(ROW.replace("\tS1\t", "\t\t")), "row 3, column Tumor_Sample_Barcode: expected the name of a sample"),
        (maf(ROW.replace("100\t100", "x\t100")), "row 3, column Start_Position: expected a position"),
        (maf(ROW.replace("C\tC\tT", "C\tC\tC")), "row 3, column Tumor_Seq_Allele2: expected an allele that differs"),
        (maf(ROW.replace("C\tC\tT", f"C\tC\t{NOBODY}")), "row 3, column Tumor_Seq_Allele2: expected bases"),
    ],
)
def test_a_malformed_maf_has_one_clear_error(site, content, expected):
    with pytest.raises(DataError, match=expected) as caught:
        read(site, content)
    assert NOBODY not in str(caught.value)


def test_what_a_maf_leaves_out_is_counted(site):
    head = MAF_HEAD.replace("FILTER", "FILTER\tMutation_Status")
    rows = [
        ROW + "\tSomatic",
        ROW.replace("PASS", "common_variant") + "\tSomatic",
        ROW.replace("\tS1\t", "\tS2\t") + "\tGermline",
    ]
    found = read(site, {"a.maf": head + "\n".join(rows)})
    assert told(found) == [("S1", "TP53", 100, "C", "T", "stop_gained")]
    assert len(found.problems) == 2


def test_a_file_of_another_name_needs_its_format(site):
    with pytest.raises(DataError, match=r"expected a \.vcf or a \.maf"):
        read(site, {"a.txt": MAF_HEAD + ROW})
    assert len(read(site, {"a.txt": MAF_HEAD + ROW}, mutations={"format": "maf"}).rows) == 1
