"""Nothing about a patient crosses a site's boundary: every byte of a whole run is searched for planted values.

Planted are values that no sum or count equals by chance, and that many patients of a site share a column with: a sum over one
patient is that patient, which is why a site has a smallest cohort. The search looks for each as text in every encoding and as a
number in every width, byte order and fixed point that is used on the way. It is the same search that finds a row which a bad site
adds to its messages.
"""

from __future__ import annotations

import contextlib
import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from oncofed_client.cohort import Cohort
from oncofed_client.site import Site
from oncofed_shared.errors import RemoteProtocolError
from oncofed_shared.features import Preparation, prepared_input
from oncofed_shared.messages import (
    Description,
    Open,
    Ready,
    Refusal,
    Reply,
    Request,
    Summary,
    Tables,
    Trial,
    Update,
    from_bytes,
)
from oncofed_shared.plan import Plan
from oncofed_shared.ring import encode
from oncofed_simulations import consortium
from oncofed_simulations.run import Options, run_study

PATIENT = "beta-0000"
RENAMED = "MRN-7719-ZEPHYRINE"
TEXTS = {
    "patient's id": RENAMED,
    "another id": "MRN-7719-QUILLON",
    "date of birth": "1987-06-05",
    "date in another form": "05.06.1987",
    "free text": "pleomorphic xanthoastrocytoma, see letter of Dr Ormerod",
    "a text in a numeric column": "unbekannt-4711",
}
NUMBERS = {
    "age": 91.73812,
    "follow-up in days": 3_271_946.0,
    "a laboratory value": 48_151.62342,
}
PATTERN = np.array(
    [
        7.31, -3.877, 11.93, 0.4471, -8.219, 5.3307, 2.7113, -6.0891,
        9.5479, -1.2389, 4.9181, -10.313, 6.6617, 3.0713, -2.4337, 8.1757,
    ]
)  # fmt: skip
READ = "the patient as the network reads him"
FORMATS = ("<f4", ">f4", "<f8", ">f8", "<i4", ">i4", "<i8", ">i8")


def text_forms(text: str) -> Iterator[bytes]:
    for encoding in ("utf-8", "utf-16-le", "utf-16-be"):
        yield text.encode(encoding)
        yield text.lower().encode(encoding)


def ring_forms(values: np.ndarray[Any, Any]) -> Iterator[bytes]:
    """As fixed point, as an update would carry it."""
    encoded = encode(values, 2.0**22)
    yield encoded.astype("<u8").tobytes()
    yield encoded.astype(">u8").tobytes()


def number_forms(value: float) -> Iterator[bytes]:
    for form in FORMATS:
        if "f" in form or value.is_integer():
            yield np.array([value]).astype(form).tobytes()
    yield from ring_forms(np.array([value]))
    for text in {repr(value), f"{value:g}", f"{value:.4f}"} | ({str(int(value))} if value.is_integer() else set()):
        yield from text_forms(text)


def row_forms(row: np.ndarray[Any, Any]) -> Iterator[bytes]:
    """Any eight neighbouring values of a row of numbers."""
    for start in range(len(row) - 7):
        part = row[start : start + 8]
        for form in FORMATS[:4]:
            yield part.astype(form).tobytes()
        yield from ring_forms(part)


def sentinels(rows: dict[str, list[np.ndarray[Any, Any]]]) -> dict[str, list[bytes]]:
    """What must not be found, by name, in all its forms."""
    wanted = {n: list(text_forms(t)) for n, t in TEXTS.items()}
    wanted |= {n: list(number_forms(v)) for n, v in NUMBERS.items()}
    return wanted | {n: [form for row in several for form in row_forms(row)] for n, several in rows.items()}


def found(content: bytes, wanted: dict[str, list[bytes]]) -> set[str]:
    """Names of the planted values that a piece of content holds."""
    return {name for name, forms in wanted.items() if any(form in content for form in forms)}


@dataclass
class Wire:
    """Everything that crossed a site's boundary."""

    content: io.BytesIO = field(default_factory=io.BytesIO)
    kinds: set[str] = field(default_factory=set)
    openings: dict[bytes, Open] = field(default_factory=dict)

    def tap(self, direction: str, site: str, content: bytes) -> None:
        """Keep one message; both directions count."""
        del site
        message = from_bytes(content)
        self.kinds.add(f"{direction} {type(message).__name__}")
        if isinstance(message, Open):
            self.openings[b"".join(a.tobytes() for a in message.arrays.values())] = message
        # A gap, so that nothing is found across two messages.
        self.content.write(content + bytes(64))


def plant(world: Any) -> None:
    """Put the sentinels into the files of the second hospital, whose patient 0 is one who trains."""
    alpha, beta, gamma = world.hospitals
    clinical = beta.tables["clinical"]
    count = len(clinical["patient_id"])
    assert clinical["patient_id"][0] == PATIENT
    assert clinical["part"][0] == "train"
    clinical["age"] = [a or "60.0" for a in clinical["age"]]
    clinical["age"][0] = str(NUMBERS["age"])
    clinical["os_days"][0], clinical["os_event"][0] = str(int(NUMBERS["follow-up in days"])), "0"
    clinical["birth_date"] = [f"19{60 + i % 30}-01-01" for i in range(count)]
    clinical["birth_date"][0] = TEXTS["date of birth"]
    clinical["seen_on"] = [TEXTS["date in another form"], *["01.01.2001"] * (count - 1)]
    clinical["letter"] = [TEXTS["free text"], *["none"] * (count - 1)]
    genes = beta.tables["genes"]
    genes["LAB_rna"] = [f"{40_000 + 31 * i}.5" for i in range(len(genes["patient_id"]))]
    genes["LAB_rna"][0] = str(NUMBERS["a laboratory value"])
    voxels = beta.tables["voxels"] = {"patient_id": list(genes["patient_id"])}
    rng = np.random.default_rng(16)
    for k, value in enumerate(PATTERN):
        others = rng.normal(0, 5, len(genes["patient_id"]) - 1)
        voxels[f"voxel_{k:02d}"] = [str(value), *[f"{v:.4f}" for v in others]]
    for table in beta.tables.values():
        for old, new in ((PATIENT, RENAMED), ("beta-0001", TEXTS["another id"])):
            table["patient_id"] = [new if p == old else p for p in table["patient_id"]]
    # A hospital whose files are wrong says so without the wrong cell.
    gamma.tables["clinical"]["age"][3] = TEXTS["a text in a numeric column"]
    alpha.tables["clinical"]["birth_date"] = [TEXTS["date in another form"]] * len(
        alpha.tables["clinical"]["patient_id"]
    )


@pytest.fixture
def planted(world: Any) -> Any:
    plant(world)
    world.change(
        modalities={"voxels": {"table": "voxels", "patterns": ["voxel_*"], "tokens": 2}},
        training={"rounds": 3, "validate_every": 1},
        evaluation={
            "subgroups": {"old": {"column": "age", "edges": [0, 70, 120]}},
            "reference": {"age": {"features": ["age"]}},
        },
        simulation={"site": {"tables": {"voxels": {"file": "voxels.csv"}}}},
    )
    return world.write()


def as_read(plan: Plan, site: Site, opening: Open) -> np.ndarray[Any, Any]:
    """The planted patient as the network of a session reads him: transformed, scaled, clipped."""
    preparation = Preparation.from_arrays(plan, opening.columns, opening.arrays)
    cohort = site.source.cohort(plan)
    table, _ = prepared_input(plan, preparation, cohort.values, cohort.columns)
    return np.asarray(table[cohort.patients.index(RENAMED)])


def leaks(world: Any) -> tuple[set[str], set[str], Wire]:
    """A whole run with everything on: what was found on the wire, what in the results, and the wire."""
    wire = Wire()
    plan = world.plan
    # A site that is not ours may end a run; what crossed until then has crossed.
    with contextlib.suppress(RemoteProtocolError):
        run_study(plan, Options(sites=world.sites, external=None, out=world.out, seeds=(0, 1), tap=wire.tap))
    site = consortium.open_site(world.sites / "beta", plan, state=None, minimum=None)
    rows = {"a row of voxels": [PATTERN], READ: [as_read(plan, site, o) for o in wire.openings.values()]}
    assert rows[READ]
    wanted = sentinels(rows)
    # The site's own folder below OUT is the site's; everything else is for everybody.
    files = [p for p in world.out.rglob("*") if p.is_file() and world.out / "sites" not in p.parents]
    results = set().union(*(found(p.read_bytes(), wanted) for p in files))
    return found(wire.content.getvalue(), wanted), results, wire


def test_search_finds_what_it_is_for() -> None:
    """Every form of every sentinel, in the middle of other bytes."""
    wanted = sentinels({"a row of voxels": [PATTERN]})
    noise = np.random.default_rng(0).bytes(1000)
    for name, forms in wanted.items():
        for form in forms:
            assert name in found(noise + form + noise, wanted)
    assert not found(noise, wanted)
    assert struct.pack("<f", NUMBERS["age"]) in wanted["age"]
    assert struct.pack(">q", int(NUMBERS["follow-up in days"])) in wanted["follow-up in days"]


def test_nothing_of_a_patient_crosses_in_a_whole_run(planted: Any, capfd: pytest.CaptureFixture[str]) -> None:
    on_wire, in_results, wire = leaks(planted)
    assert on_wire == set()
    assert in_results == set()
    assert {p.name for p in planted.out.iterdir()} >= {
        "model.safetensors",
        "report.html",
        "result.json",
        "manifest.json",
    }
    # The search saw a run in which everything happened, and the sentinels were in it.
    asked = {"Describe", "Summarise", "Open", "Train", "Evaluate"}
    answered = {"Description", "Summary", "Ready", "Update", "Tables"}
    assert wire.kinds == {f"down {k}" for k in asked} | {f"up {k}" for k in answered}
    site = consortium.open_site(planted.sites / "beta", planted.plan, state=None, minimum=None)
    cohort = site.source.cohort(planted.plan)
    row = cohort.patients.index(RENAMED)
    assert site.source.split(planted.plan, cohort, Trial(seed=0))[row] == 0
    np.testing.assert_array_equal(cohort.values["voxels"][row], PATTERN)
    assert cohort.labels["survival"][row][0] == NUMBERS["follow-up in days"]
    excluded = (planted.out / "result.json").read_text(encoding="utf-8")
    assert "clinical.csv" in excluded
    # Neither what is printed nor what the sites note for themselves has a patient's value.
    printed = capfd.readouterr()
    journals = b"".join(p.read_bytes() for p in planted.out.rglob("journal.txt"))
    assert not found((printed.out + printed.err).encode() + journals, sentinels({}))


class LeakingSite(Site):
    """A site that appends one row of one patient to a message; hospitals without that patient are as ever."""

    def __init__(self, where: str, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.where = where

    def handle(self, request: Request) -> Reply:
        reply = super().handle(request)
        plan = self.plans[request.head.plan_hash]
        cohort = self.source.cohort(plan) if self.name == "beta" else None
        if cohort is None or RENAMED not in cohort.patients:
            return reply
        return self._leak(reply, plan, cohort, cohort.patients.index(RENAMED))

    def _leak(self, reply: Any, plan: Plan, cohort: Cohort, patient: int) -> Reply:
        row = cohort.values["voxels"][patient]
        leaked: Reply = reply
        match self.where, reply:
            case "tables", Tables():
                leaked = replace(reply, counts=np.concatenate([reply.counts, row]))
            case "sums", Summary():
                leaked = replace(reply, sums=np.concatenate([reply.sums, row]))
            case "update", Update():
                # In fixed point, in place of parameters: the message looks as it should.
                vector = np.concatenate([reply.vector[:5], encode(row, 1e6), reply.vector[5 + len(row) :]])
                leaked = replace(reply, vector=vector)
            case "update, scaled", Update():
                preparation = self.sessions[reply.head.session].preparation
                table, _ = prepared_input(plan, preparation, cohort.values, cohort.columns)
                leaked = replace(reply, vector=np.concatenate([reply.vector, encode(table[patient], 1e6)]))
            case "column names", Description():
                leaked = replace(reply, columns={**reply.columns, "genes": (*reply.columns["genes"], f"{RENAMED}_rna")})
            case "counts", Description():
                # An integer of msgpack: four bytes, the highest first.
                leaked = replace(reply, events={**reply.events, "survival": int(cohort.labels["survival"][patient][0])})
            case "refusal", Tables():
                text = f"cannot score the patient aged {cohort.values['clinical'][patient][0]}"
                leaked = Refusal(head=reply.head, site=self.name, code="data", text=text)
            case "name", Ready():
                leaked = replace(reply, site=RENAMED)
        return leaked


VARIANTS = {
    "tables": "a row of voxels",
    "sums": "a row of voxels",
    "update": "a row of voxels",
    "update, scaled": READ,
    "column names": "patient's id",
    "counts": "follow-up in days",
    "refusal": "age",
    "name": "patient's id",
}


@pytest.mark.parametrize("where", VARIANTS)
def test_a_site_that_leaks_one_row_is_found(where: str, planted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same run and the same search, with a site that is not ours."""
    monkeypatch.setattr(consortium, "Site", partial(LeakingSite, where))
    on_wire, _, _ = leaks(planted)
    assert VARIANTS[where] in on_wire
