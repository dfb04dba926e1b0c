"""Whatever happens to a file, the door gives what is in it or says clearly that it cannot."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import doors  # noqa: E402 - lie beside this file
from fuzz_seeds import dicom_seeds, variant_seeds  # noqa: E402
from small_export import PERSON, write_export  # noqa: E402
from variant_cases import COLUMNS, CSQ, RECORD  # noqa: E402

from oncofed_client.genomics.impact import read_mutations  # noqa: E402
from oncofed_client.genomics.inputs import open_files  # noqa: E402
from oncofed_client.genomics.settings import GenomicsSettings  # noqa: E402
from oncofed_client.imaging.series import find_series  # noqa: E402
from oncofed_shared.strict import validate  # noqa: E402

Damage = tuple[float, float, bytes]
DAMAGE = st.tuples(st.floats(0, 1), st.floats(0, 0.2), st.binary(max_size=40))
FILES = st.sampled_from(["ct1", "region", "pet0"])
VCF = f"{CSQ}{COLUMNS}P1\n{RECORD}{RECORD.replace('KRAS', 'TP53').replace('0/1', '0/0')}".encode()
SECRETS = [text for text in PERSON.identifying() if len(text) > 4]


def damaged(content: bytes, damage: Damage) -> bytes:
    """Take a part out and put other bytes in its place."""
    place, part, instead = damage
    start = int(place * len(content))
    return content[:start] + instead + content[start + int(part * len(content)) :]


def clear(messages: list[str]) -> None:
    for message in messages:
        assert message.isprintable()
        assert not any(secret in message for secret in SECRETS)


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, dict[str, bytes]]:
    root = tmp_path_factory.mktemp("export")
    made = {kind: write_export(root / str(kind), segments=kind, pet=True) for kind in (False, True)}
    return {kind: {p.name: p.read_bytes() for p in folder.iterdir()} for kind, folder in made.items()}


@settings(max_examples=150)
@given(segments=st.booleans(), name=FILES, damage=DAMAGE)
def test_damaged_dicom(export: dict[bool, dict[str, bytes]], segments: bool, name: str, damage: Damage) -> None:
    with tempfile.TemporaryDirectory() as where:
        folder = Path(where)
        for file, content in export[segments].items():
            (folder / file).write_bytes(damaged(content, damage) if file == name else content)
        before = sorted(folder.iterdir())
        clear(doors.dicom(folder))
        assert sorted(folder.iterdir()) == before


@settings(max_examples=300)
@given(damage=DAMAGE)
def test_damaged_vcf(damage: Damage) -> None:
    with tempfile.TemporaryDirectory() as where:
        (Path(where) / "a.vcf").write_bytes(damaged(VCF, damage))
        clear(doors.variants(Path(where)))


@settings(max_examples=60)
@given(
    rows=st.lists(
        st.tuples(st.integers(1, 10**6), st.sampled_from(["KRAS", "TP53", "EGFR"]), st.sampled_from("ACG")),
        max_size=12,
    ),
    order=st.randoms(use_true_random=False),
)
def test_the_order_of_records_means_nothing(rows: list[tuple[int, str, str]], order) -> None:
    records = [RECORD.replace("25205300", str(p)).replace("KRAS", g).replace("\tC\tT", f"\t{r}\tT") for p, g, r in rows]
    shuffled = list(records)
    order.shuffle(shuffled)
    tables = []
    for chosen in (records, shuffled):
        with tempfile.TemporaryDirectory() as where:
            (Path(where) / "a.vcf").write_text(f"{CSQ}{COLUMNS}P1\n{''.join(chosen)}", encoding="utf-8")
            content = {"mutations": {"files": ["a.vcf"], "panel": "exome"}}
            files = open_files(Path(where), validate(GenomicsSettings, content, "genomics"))
            tables.append(read_mutations(files, doors.MUTATIONS).rows)
    assert tables[0] == tables[1]
    assert len(tables[0]) == len({row for row in rows if row[1] != "EGFR"})


@pytest.mark.parametrize("name", variant_seeds())
def test_what_the_fuzzer_starts_from_is_sound(name: str, tmp_path: Path) -> None:
    content = variant_seeds()[name]
    (tmp_path / f"a.{('vcf', 'maf', 'vcf.gz')[content[0]]}").write_bytes(content[1:])
    messages = doors.variants(tmp_path)
    assert all("left out" in m or "no annotation" in m for m in messages), messages


def test_every_file_that_the_fuzzer_starts_from_is_of_a_series(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    for name, content in dicom_seeds(tmp_path / "made").items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "one.dcm").write_bytes(content)
        found = find_series(tmp_path / name, doors.IMAGING)
        assert len(found.series) == 1
        assert found.problems == ()
