"""Five years of a consortium by a clock of its own: keys and certificates are renewed, and nobody notices but those who should.

People do what `status` warns of, in time. Every twenty days each study that lives is asked at every site, through real doors: an
answer that does not come, or a refusal, is a study that was interrupted.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

sys.path.insert(0, str(Path(__file__).resolve().parent))

import airlock_world
from airlock_world import Lines, World, aggregator_of, private_changes, run

from oncofed_client.approvals import approve
from oncofed_client.door import Door, open_door
from oncofed_client.enrol import ENROLMENT_FILE, install, installed, request_enrolment
from oncofed_client.identity import identity_of, public_half
from oncofed_client.ledger import LEDGER_FILE, verify
from oncofed_client.ledger_verify import read_account
from oncofed_client.node_key import node_public
from oncofed_client.receipts import RECEIPTS_FILE, verify_receipts
from oncofed_client.site_keys import current_key, next_key, take_next
from oncofed_server.run_state import Phase
from oncofed_server.service.folder import Folder
from oncofed_server.service.prepare import prepare
from oncofed_server.service.registry import enrol, gate_keys, newest_roster, publish_roster, revoke
from oncofed_server.service.status import status_of
from oncofed_server.service.studies import StudyFolder, Wanted, add_study
from oncofed_shared.messages import Describe, Description, Head, Refusal, from_bytes, to_bytes
from oncofed_shared.public_keys import public_of
from oncofed_shared.sealed import open_reply, open_request, seal_request

HOST, START, DAY = "hub.example.org", 1_800_000_000.0, 86_400.0
TICK, YEARS = 20, 5
FIRST = ("site-1", "site-2", "site-3")


@dataclass(kw_only=True)
class Consortium:
    """An aggregator's folder, sites' states and doors, and a clock."""

    root: Path
    hospitals: Path
    plan: Any
    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    day: int = 0
    doors: dict[str, Door] = field(default_factory=dict)
    logs: dict[str, Lines] = field(default_factory=dict)
    studies: list[StudyFolder] = field(default_factory=list)
    numbers: dict[tuple[str, str], int] = field(default_factory=dict)
    answers: int = 0

    @property
    def now(self) -> float:
        return START + self.day * DAY

    @property
    def folder(self) -> Folder:
        return Folder.open(self.root / "hub")

    def state(self, site: str) -> Path:
        return self.root / "states" / site

    def join(self, site: str, *, renew: bool = False) -> None:
        """A request, an answer, its installation; the door of a new site."""
        request, answer = self.root / f"{site}.request", self.root / f"{site}.answer"
        request_enrolment(self.state(site), site=site, out=request, renew=renew)
        answer.write_bytes(enrol(self.folder, request.read_bytes(), now=self.now, plan_key=self.key))
        if renew:
            # The answer is days on its way; until it is installed the keys before are used.
            self.ask_all()
            self.day += 3
            self.ask_all()
        install(self.state(site), answer, fingerprint=None, now=self.now)
        if site not in self.doors:
            self.logs[site] = Lines()
            self.doors[site] = open_door(
                self.hospitals / site, self.state(site), clock=lambda: self.now, log=self.logs[site], synced=False
            )

    def study(self, sites: tuple[str, ...]) -> StudyFolder:
        """Prepared, approved everywhere, submitted."""
        content = prepare(
            self.folder, self.plan, self.key, sites=sites, seed=0, fold=-1, quorum=None, days=180, epoch_days=60, now=self.now
        )  # fmt: skip
        path = self.root / "x.study"
        path.write_bytes(content)
        place = add_study(self.folder, path, now=self.now)
        place.want(Wanted.RUN)
        for site in sites:
            approve(self.state(site), content, now=self.now, site=site)
        self.studies.append(place)
        return place

    def ask(self, place: StudyFolder, site: str, *, roster: bytes | None = None) -> Any:
        """What a site answers to one message of a study."""
        study = place.study
        number = self.numbers[study.id, site] = self.numbers.get((study.id, site), 0) + 1
        head = Head(session=study.session, step=number, attempt=0, plan_hash=study.plan.hash, trial=study.trial)
        content = seal_request(
            to_bytes(Describe(head=head)),
            study_id=study.id,
            site=site,
            number=number,
            roster=roster or self.folder.roster.read_bytes(),
            key=self.folder.step_key_of(study.step_key),
        )
        reply = self.doors[site].handle(content)
        opened = open_reply(
            reply,
            request_digest=open_request(content).digest,
            study_id=study.id,
            site=site,
            identity=study.roster[site],
        )
        return from_bytes(opened.body)

    @property
    def alive(self) -> list[StudyFolder]:
        return [p for p in self.studies if p.wanted is Wanted.RUN and self.now <= p.study.expires]

    def ask_all(self) -> None:
        """Every living study is answered by every site of it."""
        for place in self.alive:
            for site in place.study.roster:
                assert isinstance(self.ask(place, site), Description), (self.day, site, self.logs[site].codes())
                self.answers += 1

    def tls(self, site: str) -> bool:
        """Whether a site trusts the server's certificate today."""
        enrolment = installed(self.state(site))
        assert enrolment is not None
        authority = x509.load_pem_x509_certificate(enrolment.certificate.encode())
        return trusted(
            authority, x509.load_pem_x509_certificate((self.folder.keys / "server.crt").read_bytes()), self.now
        )

    def do_what_status_says(self) -> list[str]:
        """As a person would, who looks every twenty days."""
        warnings = status_of(self.folder, now=self.now)["warnings"]
        for text in warnings:
            if "server's certificate ends" in text:
                self.folder.make_certificates(now=self.now)
            elif "roster is" in text:
                publish_roster(self.folder, self.key, now=self.now)
        return warnings


def trusted(authority: x509.Certificate, leaf: x509.Certificate, now: float) -> bool:
    builder = PolicyBuilder().store(Store([authority])).time(datetime.fromtimestamp(now, UTC).replace(tzinfo=None))
    try:
        builder.build_server_verifier(x509.DNSName(HOST)).verify(leaf, [])
    except VerificationError:
        return False
    return True


@pytest.fixture
def consortium(tmp_path: Path, hospitals: Path, make_plan: Callable[..., Any]) -> Iterator[Consortium]:
    made = Consortium(root=tmp_path, hospitals=hospitals, plan=make_plan())
    Folder.create(tmp_path / "hub", name="hub", address=f"{HOST}:8443", plan_key=public_of(made.key), now=START)
    for site in FIRST:
        made.join(site)
    yield made
    for door in made.doors.values():
        door.close()


def papers_of(consortium: Consortium, sites: tuple[str, ...]) -> dict[str, bytes]:
    """What was issued to these sites, as it lies there and at the aggregator."""
    files = [consortium.state(s) / ENROLMENT_FILE for s in sites]
    files += [consortium.folder.sites / f"{s}.request" for s in sites]
    return {str(f): hashlib.sha256(f.read_bytes()).digest() for f in files}


def test_five_years_of_renewals_interrupt_no_study(consortium: Consortium) -> None:
    world, sites = consortium, FIRST
    first_certificate = x509.load_pem_x509_certificate((world.folder.keys / "server.crt").read_bytes())
    first_keys = {s: public_of(current_key(world.state(s))) for s in FIRST}
    warned: set[str] = set()
    due = {"study": 0, "step key": 200, "authority": 1000, "fourth site": 800}
    renewals = {site: 300 + 60 * number for number, site in enumerate(FIRST)}
    while world.day < YEARS * 365:
        warned |= {w.split(" in ")[0].split(" is ")[0] for w in world.do_what_status_says()}
        if world.day >= due["study"]:
            due["study"] += 120
            world.study(sites)
        if world.day >= due["step key"]:
            due["step key"] += 200
            world.folder.renew_step_key()
        if world.day >= due["authority"]:
            due["authority"] = 10**6
            before = world.folder.certificate.read_bytes()
            world.folder.renew_authority(now=world.now)
            world.folder.make_certificates(now=world.now)
            assert world.folder.certificate.read_bytes() != before
        if world.day >= due["fourth site"]:
            due["fourth site"] = 10**6
            issued = papers_of(world, FIRST)
            world.join("site-4")
            assert papers_of(world, FIRST) == issued
            sites = (*FIRST, "site-4")
        for site, day in renewals.items():
            if world.day >= day:
                renewals[site] += 365
                former = node_public(world.state(site))
                world.join(site, renew=True)
                assert list(gate_keys(world.folder, now=world.now).values()).count(site) == 2
                assert former not in gate_keys(world.folder, now=world.now + 31 * DAY)
        world.ask_all()
        assert all(world.tls(site) for site in sites)
        world.day += TICK
    assert warned >= {"the server's certificate ends", "the roster"}
    assert len(world.studies) >= 15
    assert world.answers > 400
    # Everybody has other keys than at the beginning, and the records of five years are one chain under one key.
    for site in FIRST:
        assert public_of(current_key(world.state(site))) != first_keys[site]
        assert verify_receipts(world.state(site) / RECEIPTS_FILE, public_half(world.state(site)), ledger=None) == []
    # What has ended is refused: a study, a certificate, and keys that no living study names.
    expired = next(p for p in world.studies if world.now > p.study.expires)
    refusal = world.ask(expired, "site-1")
    assert isinstance(refusal, Refusal)
    assert refusal.code == "expired"
    authority = x509.load_pem_x509_certificate(world.folder.certificate.read_bytes())
    assert not trusted(authority, first_certificate, world.now)
    assert not trusted(authority, first_certificate, START + 398 * DAY)
    epoch = publish_roster(world.folder, world.key, now=world.now)
    assert {s: epoch.standing(s, k) for s, k in first_keys.items()} == dict.fromkeys(FIRST, "other-key")


def test_a_revocation_acts_on_the_next_message_of_renewed_and_former_keys_alike(consortium: Consortium) -> None:
    world = consortium
    place = world.study(FIRST)
    world.join("site-2", renew=True)
    later = world.study(FIRST)
    assert place.study.roster["site-2"] != later.study.roster["site-2"]
    world.ask_all()
    before = world.folder.roster.read_bytes()
    revoke(world.folder, "site-2", world.key, now=world.now)
    for each in (place, later):
        refusal = world.ask(each, "site-2")
        assert isinstance(refusal, Refusal)
        assert refusal.code == "revoked"
        assert isinstance(world.ask(each, "site-1"), Description)
        # Who holds the revocation back is too late.
        assert isinstance(world.ask(each, "site-2", roster=before), Refusal)
    # With new keys, asked for by the last one, it comes back under its name; what was revoked does not.
    epoch = newest_roster(world.folder)
    assert epoch is not None
    request, answer = world.root / "again.request", world.root / "again.answer"
    request_enrolment(world.state("site-2"), site="site-2", out=request, renew=True)
    answer.write_bytes(enrol(world.folder, request.read_bytes(), now=world.now, plan_key=world.key))
    install(world.state("site-2"), answer, fingerprint=None, now=world.now)
    assert isinstance(world.ask(world.study(FIRST), "site-2"), Description)
    for each in (place, later):
        assert isinstance(world.ask(each, "site-2"), Refusal)
    assert len(epoch.gone) == 2


def test_secure_sums_and_ledgers_go_on_with_renewed_keys(
    tmp_path: Path, hospitals: Path, make_plan: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Towards others the new key signs, heads of ledgers too; the ledger stays under the first one and keeps what others signed."""
    for site in FIRST:
        renewed = public_of(next_key(tmp_path / site))
        take_next(tmp_path / site, renewed)
        assert public_of(identity_of(tmp_path / site)) != renewed == public_of(current_key(tmp_path / site))
    monkeypatch.setattr(airlock_world, "identity_of", current_key)
    world = World.make(tmp_path, make_plan(**private_changes("consortium")), hospitals)
    aggregator = aggregator_of(world)
    run(world, aggregator)
    assert aggregator.state.phase is Phase.DONE
    for site in FIRST:
        state = tmp_path / site
        assert verify(state / LEDGER_FILE, public_half(state)) == []
        account = read_account(state / LEDGER_FILE, public_half(state))
        assert sum(sum(plan.used) for plan in account.all_plans()) > 0
    world.close()


def test_a_roster_that_nobody_renews_stops_the_sites(consortium: Consortium) -> None:
    world = consortium
    place = world.study(FIRST)
    world.day += 61
    refusal = world.ask(place, "site-1")
    assert isinstance(refusal, Refusal)
    assert refusal.code == "stale-roster"
    publish_roster(world.folder, world.key, now=world.now)
    assert isinstance(world.ask(place, "site-1"), Description)
