"""The aggregator's folder, keys, registry and signed studies, by its commands; no process, no network."""

from __future__ import annotations

import io
import ipaddress
import json
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from rich.console import Console
from typer.testing import CliRunner

from oncofed_server.__main__ import app
from oncofed_server.service.authority import days_left
from oncofed_server.service.bell import NOW
from oncofed_server.service.folder import Folder
from oncofed_server.service.keys import new_key, read_key
from oncofed_server.service.proxy import FLEET_PATHS, configuration
from oncofed_server.service.registry import newest_roster
from oncofed_server.service.status import status_of, status_page
from oncofed_server.service.studies import Wanted, all_studies, find_study, read_any_study
from oncofed_server.spending import spending
from oncofed_shared.enrolment import read_enrolment, write_enrolment_request
from oncofed_shared.errors import ConfigError, DataError, OncofedError
from oncofed_shared.plan import Plan
from oncofed_shared.public_keys import key_fingerprint, public_of
from oncofed_shared.signed_document import sign_document

SITES = ("site-1", "site-2", "site-3")


class Hub:
    """An aggregator and the commands over it."""

    def __init__(self, root: Path) -> None:
        self.root, self.path = root, root / "hub"
        self.keys: dict[str, Ed25519PrivateKey] = {}
        self("plan-key", "--out", str(root / "plan.key"))
        self(
            *("init", str(self.path), "--name", "hub", "--address", "hub.example.org:8443"),
            *("--plan-key", str(root / "plan.pub")),
        )

    def __call__(self, *words: str) -> str:
        result = CliRunner().invoke(app, list(words), catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    def on(self, *words: str) -> str:
        return self(*words, "--dir", str(self.path))

    @property
    def folder(self) -> Folder:
        return Folder.open(self.path)

    @property
    def plan_key(self) -> str:
        return str(self.root / "plan.key")

    def request(self, site: str, *, key: Ed25519PrivateKey | None = None, node: Any = None) -> Path:
        identity = self.keys[site] = key or Ed25519PrivateKey.generate()
        node = node or ec.generate_private_key(ec.SECP384R1())
        text = node.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
        path = self.root / f"{site}.request"
        path.write_bytes(write_enrolment_request(site=site, node_key=text, key=identity))
        return path

    def enrol(self, *sites: str) -> None:
        for site in sites:
            self.on("enrol", str(self.request(site)), "--out", str(self.root / f"{site}.answer"))

    def plan(self, plan: Plan) -> Path:
        path = self.root / "study.toml"
        content = json.loads(plan.canonical)
        path.write_text(tomli_w.dumps(_without_none(content)))
        return path

    def prepare(self, plan: Plan, *more: str, name: str = "x.study") -> Path:
        out = self.root / name
        self.on("prepare", str(self.plan(plan)), "--plan-key", self.plan_key, "--out", str(out), *more)
        return out


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    return [_without_none(v) for v in value] if isinstance(value, list) else value


@pytest.fixture
def hub(tmp_path: Path) -> Hub:
    return Hub(tmp_path)


def test_private_halves_are_their_owners_alone_and_are_never_replaced(hub: Hub) -> None:
    private = [*hub.path.rglob("*.key"), hub.root / "plan.key"]
    assert len(private) == 6
    assert {p.stat().st_mode & 0o777 for p in private} == {0o600}
    assert hub.path.stat().st_mode & 0o777 == 0o700
    before = (hub.root / "plan.key").read_bytes()
    with pytest.raises(ConfigError, match="never replaced"):
        new_key(hub.root / "plan.key")
    assert (hub.root / "plan.key").read_bytes() == before
    (hub.root / "plan.key").chmod(0o644)
    with pytest.raises(DataError, match="others than its owner"):
        read_key(hub.root / "plan.key")


def test_the_plan_key_is_not_in_the_aggregators_folder(hub: Hub) -> None:
    secret = read_key(hub.root / "plan.key").private_bytes_raw()
    assert all(secret not in p.read_bytes() for p in hub.path.rglob("*") if p.is_file())
    assert hub.folder.plan_key == public_of(read_key(hub.root / "plan.key"))


def test_a_folder_is_made_once_and_whole(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not empty"):
        Folder.create(hub.path, name="hub", address="a:1", plan_key=bytes(32), now=0.0)
    with pytest.raises(ConfigError, match=r"has no aggregator\.toml"):
        Folder.open(tmp_path / "nothing")
    for address in ("nowhere", "a:0", "a:99999", "a b:1"):
        with pytest.raises(ConfigError):
            Folder.create(tmp_path / "other", name="hub", address=address, plan_key=bytes(32), now=0.0)
        assert not (tmp_path / "other").exists()
    with pytest.raises(ConfigError, match="cannot be made a folder"):
        Folder.create(hub.root / "plan.pub", name="hub", address="a:1", plan_key=bytes(32), now=0.0)


def test_a_wrong_plan_key_renews_nothing(hub: Hub) -> None:
    new_key(hub.root / "other.key")
    before = {p: p.read_bytes() for p in hub.path.rglob("*") if p.is_file()}
    for key, said in ((hub.root / "other.key", "sites know"), (hub.root / "plan.pub", "is not a private key")):
        result = CliRunner().invoke(app, ["renew", "--step-key", "--plan-key", str(key), "--dir", str(hub.path)])
        assert isinstance(result.exception, OncofedError)
        assert said in str(result.exception)
    assert {p: p.read_bytes() for p in hub.path.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("width", [80, 120])
def test_a_status_can_be_read_on_a_narrow_terminal(hub: Hub, make_plan: Callable[..., Plan], width: int) -> None:
    hub.enrol(*SITES)
    hub.on("submit", str(hub.prepare(make_plan(study__name="glioma_survival_private"))))
    shown = status_of(hub.folder, now=time.time())
    row = shown["studies"][0]
    notes = [{"site": "site-2", "what": "not yet: it has not approved", "at": 1.0}]
    row |= {"phase": "delivering", "round": 100, "rounds": 250, "step_phase": "validate", "notes": notes}
    row |= {"waiting": dict.fromkeys(SITES, True), "connected": list(SITES), "excluded": {"site-2": "gone"}}
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(status_page(shown))
    page = console.export_text()
    assert "\u2026" not in page, page
    assert page.isascii(), page
    assert row["id"][:8] in page
    assert find_study(hub.folder, row["id"][:8]).study.id == row["id"]
    for word in ("100/250", "3/3", "site-2: not yet"):
        assert word in page, page


def test_what_is_no_request_is_named_by_its_file(hub: Hub) -> None:
    wrong = hub.root / "wrong.request"
    wrong.write_bytes(b"[]")
    with pytest.raises(DataError, match=r"wrong\.request: is not a signed oncofed file"):
        hub.on("enrol", str(wrong), "--out", str(hub.root / "answer"))


def test_the_authority_signs_servers_of_these_names_and_cannot_make_another_authority(hub: Hub) -> None:
    keys = hub.folder.keys
    authority = x509.load_pem_x509_certificate((keys / "ca.crt").read_bytes())
    limits = authority.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert (limits.ca, limits.path_length) == (True, 0)
    for name, shown in (("server", "hub.example.org"), ("loopback", ipaddress.ip_address("127.0.0.1"))):
        made = x509.load_pem_x509_certificate((keys / f"{name}.crt").read_bytes())
        made.verify_directly_issued_by(authority)
        assert not made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert shown in [n.value for n in names]
        assert 396 < days_left(keys / f"{name}.crt", now=time.time()) < 397
        # OpenSSL takes both halves together.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(keys / f"{name}.crt", keys / f"{name}.key")


def test_renewed_certificates_are_trusted_by_those_who_have_the_authoritys(hub: Hub) -> None:
    before = (hub.folder.keys / "server.crt").read_bytes(), (hub.folder.keys / "ca.crt").read_bytes()
    hub.on("renew")
    after = (hub.folder.keys / "server.crt").read_bytes(), (hub.folder.keys / "ca.crt").read_bytes()
    assert (after[0] != before[0], after[1] == before[1]) == (True, True)
    authority = x509.load_pem_x509_certificate(after[1])
    x509.load_pem_x509_certificate(after[0]).verify_directly_issued_by(authority)


def test_an_answer_tells_a_site_all_that_it_needs_and_names_its_request(hub: Hub) -> None:
    hub.enrol("site-1")
    answer = read_enrolment((hub.root / "site-1.answer").read_bytes())
    assert (answer.site, answer.aggregator, answer.address) == ("site-1", "hub", "hub.example.org:8443")
    assert answer.identity == public_of(hub.keys["site-1"])
    assert answer.plan_key == hub.folder.plan_key
    assert answer.signer == public_of(hub.folder.own_key())
    assert "PRIVATE" not in answer.certificate
    assert "waits for a roster" in hub.on("list")


def test_enrolling_with_the_plan_key_signs_a_roster_at_once(hub: Hub) -> None:
    words = ("--out", str(hub.root / "a"), "--plan-key", hub.plan_key)
    hub.on("enrol", str(hub.request("site-1")), *words)
    epoch = newest_roster(hub.folder)
    assert epoch is not None
    assert (epoch.number, dict(epoch.sites)) == (1, {"site-1": public_of(hub.keys["site-1"])})
    assert "in roster" in hub.on("list")


def test_nobody_takes_anothers_name_key_or_gate(hub: Hub) -> None:
    node = ec.generate_private_key(ec.SECP384R1())
    first = Ed25519PrivateKey.generate()
    hub.on("enrol", str(hub.request("site-1", key=first, node=node)), "--out", str(hub.root / "a"))
    for site, key, own, why in (
        ("site-1", None, None, "enrolled with another key"),
        ("site-2", first, None, "has the identity of 'site-1'"),
        ("site-2", None, node, "the key of 'site-1's gate"),
    ):
        path = hub.request(site, key=key, node=own)
        with pytest.raises(ConfigError, match=why):
            hub.on("enrol", str(path), "--out", str(hub.root / "b"))
    assert not (hub.root / "b").exists()
    assert len(list(hub.folder.sites.iterdir())) == 1


def test_a_revoked_key_never_comes_back_and_a_new_one_may(hub: Hub) -> None:
    hub.enrol("site-1")
    old = hub.keys["site-1"]
    hub.on("revoke", "site-1", "--plan-key", hub.plan_key)
    epoch = newest_roster(hub.folder)
    assert epoch is not None
    assert epoch.standing("site-1", public_of(old)) == "revoked"
    with pytest.raises(ConfigError, match="was revoked"):
        hub.on("enrol", str(hub.request("site-1", key=old)), "--out", str(hub.root / "b"))
    with pytest.raises(ConfigError, match="revoked already"):
        hub.on("revoke", "site-1", "--plan-key", hub.plan_key)
    hub.enrol("site-1")
    hub.on("renew", "--plan-key", hub.plan_key)
    newer = newest_roster(hub.folder)
    assert newer is not None
    assert newer.number == epoch.number + 1
    assert newer.standing("site-1", public_of(hub.keys["site-1"])) == "member"
    assert newer.standing("site-1", public_of(old)) == "revoked"


def test_another_plan_key_signs_nothing_here(hub: Hub) -> None:
    hub.enrol("site-1")
    hub("plan-key", "--out", str(hub.root / "other.key"))
    with pytest.raises(ConfigError, match="sites know"):
        hub.on("revoke", "site-1", "--plan-key", str(hub.root / "other.key"))
    assert newest_roster(hub.folder) is None


def test_a_prepared_study_has_the_roster_the_step_key_and_no_simulation(
    hub: Hub, make_plan: Callable[..., Plan]
) -> None:
    hub.enrol(*SITES)
    plan = make_plan()
    path = hub.prepare(plan, "--seed", "4")
    study = read_any_study(path, hub.folder)
    assert study.plan.hash == plan.hash
    assert study.plan.simulation == type(plan.simulation)()
    assert dict(study.roster) == {s: public_of(hub.keys[s]) for s in SITES}
    assert (study.step_key, study.quorum, study.trial.seed, study.epoch) == (hub.folder.step_key, 3, 4, 1)
    assert b'"simulation"' not in path.read_bytes()
    # The roster is new enough: the next study needs no other.
    assert read_any_study(hub.prepare(plan, "--sites", "site-1,site-2", name="y.study"), hub.folder).epoch == 1
    assert read_any_study(path, hub.folder).session != read_any_study(hub.root / "y.study", hub.folder).session


def test_a_study_that_does_not_fit_its_sites_is_not_signed(
    hub: Hub, make_plan: Callable[..., Plan], tmp_path: Path
) -> None:
    hub.enrol(*SITES)
    for words, why in (
        (("--sites", "site-1,site-9"), "'site-9' is not enrolled"),
        (("--sites", "site-1,site-1,site-2"), "names a site twice"),
        (("--fold", "2"), "has no evaluation.folds"),
        (("--quorum", "1"), "more than half"),
    ):
        with pytest.raises(ConfigError, match=why):
            hub.prepare(make_plan(), *words)
    with pytest.raises(ConfigError, match="has 5 folds"):
        hub.prepare(make_plan(evaluation__folds=5))
    assert not (tmp_path / "x.study").exists()


def test_a_private_study_needs_exactly_the_sites_that_it_counts(hub: Hub, make_plan: Callable[..., Plan]) -> None:
    hub.enrol(*SITES, "site-4")
    plan = _private(make_plan, SITES)
    study = read_any_study(hub.prepare(plan), hub.folder)
    # Nobody has to name them, and none may be missing but for `drop`.
    assert (tuple(study.roster), study.quorum) == (SITES, 3)
    with pytest.raises(ConfigError, match="they differ in site-4"):
        hub.prepare(plan, "--sites", ",".join((*SITES, "site-4")))
    with pytest.raises(ConfigError, match="'site-9' is not enrolled"):
        hub.prepare(_private(make_plan, ("site-1", "site-2", "site-9")))


def _private(make_plan: Callable[..., Plan], sites: tuple[str, ...]) -> Plan:
    return make_plan(
        modalities={"shape": {"table": "radiomics", "patterns": ["shape_*"], "scaling": "none"}},
        training__rate=1.0,
        training__local_steps=1,
        training__batch="all",
        training__optimiser="sgd",
        training__class_weights="none",
        privacy={
            "noise": "consortium",
            "epsilon": 3,
            "delta": 1e-5,
            "clip_norm": 1.0,
            "sampling_rate": 0.5,
            "patients": dict.fromkeys(sites, 40),
        },
    )


def test_what_a_private_study_costs_is_worked_out_when_it_is_submitted(
    hub: Hub, make_plan: Callable[..., Plan]
) -> None:
    hub.enrol(*SITES)
    plan = _private(make_plan, SITES)
    hub.on("submit", str(hub.prepare(plan)))
    (place,) = all_studies(hub.folder)
    assert place.spending == {s: spending(plan, s).epsilon for s in SITES}
    assert 0 < place.spending["site-1"] <= 3


def test_submit_takes_in_what_the_plan_key_signed_and_whose_sites_still_hold(
    hub: Hub, make_plan: Callable[..., Plan]
) -> None:
    hub.enrol(*SITES)
    path = hub.prepare(make_plan())
    out = hub.on("submit", str(path))
    place = all_studies(hub.folder)[0]
    assert place.study.id in out
    assert place.wanted is Wanted.RUN
    for text in (str(path), place.study.id, place.study.id[:8], "small"):
        assert find_study(hub.folder, text).study.id == place.study.id
    with pytest.raises(ConfigError, match="is no study that was submitted"):
        find_study(hub.folder, "0000000")
    hub.on("pause", "small")
    assert find_study(hub.folder, "small").wanted is Wanted.PAUSE
    hub.on("resume", "small")
    hub.on("cancel", "small")
    for again in (("resume", "small"), ("submit", str(path))):
        with pytest.raises(ConfigError, match="cancelled, for good"):
            hub.on(*again)
    shown = json.loads(hub.on("status", "--json"))
    assert shown["studies"][0]["phase"] == "cancelled"
    assert "small" in hub.on("status")


def test_a_study_with_one_bit_changed_or_of_a_revoked_site_or_too_old_is_not_taken_in(
    hub: Hub, make_plan: Callable[..., Plan], tmp_path: Path
) -> None:
    hub.enrol(*SITES)
    path = hub.prepare(make_plan())
    content = path.read_text()
    (tmp_path / "bad.study").write_text(content.replace('"quorum": 3', '"quorum": 2'))
    with pytest.raises(DataError, match="was changed or damaged"):
        hub.on("submit", str(tmp_path / "bad.study"))
    short = hub.prepare(make_plan(), "--expires-days", "0.001", name="short.study")
    hub.on("revoke", "site-2", "--plan-key", hub.plan_key)
    with pytest.raises(ConfigError, match="'site-2' is not in the newest roster"):
        hub.on("submit", str(path))
    from oncofed_server.service.studies import add_study  # noqa: PLC0415 - with a clock of its own

    with pytest.raises(ConfigError, match="has expired"):
        add_study(hub.folder, short, now=time.time() + 1000)
    assert all_studies(hub.folder) == []


def test_a_new_step_key_is_for_new_studies_and_old_ones_keep_theirs(hub: Hub, make_plan: Callable[..., Plan]) -> None:
    hub.enrol(*SITES)
    old = read_any_study(hub.prepare(make_plan()), hub.folder)
    hub.on("renew", "--step-key")
    new = read_any_study(hub.prepare(make_plan(), name="new.study"), hub.folder)
    assert old.step_key != new.step_key
    for study in (old, new):
        assert public_of(hub.folder.step_key_of(study.step_key)) == study.step_key
    with pytest.raises(DataError, match="prepared for another aggregator"):
        hub.folder.step_key_of(bytes(32))


def test_nginx_is_told_eleven_paths_and_nothing_that_a_folders_name_could_smuggle_in(hub: Hub, tmp_path: Path) -> None:
    text = configuration(hub.folder, upstream=4711, bell=4712, as_root=False)
    paths = [line.split()[2] for line in text.splitlines() if "location = " in line]
    assert sorted(paths) == sorted([*FLEET_PATHS, NOW])
    # Beside them what nobody knows, and the way to the SuperLink without a bell, which no client can name.
    assert text.count("location ") == len(paths) + 2
    assert "location / { return 404; }" in text
    assert "location @now {" in text
    assert "listen 0.0.0.0:8443 ssl" in text
    assert "user " not in text
    assert text.count("proxy_pass ") == len(paths) + 1
    assert text.count("proxy_pass http://127.0.0.1:4712/;") == 1
    odd = tmp_path / "a;b"
    hub.path.rename(odd)
    with pytest.raises(ConfigError, match="move the aggregator's folder"):
        configuration(Folder.open(odd), upstream=1, bell=2, as_root=False)


def test_mistakes_are_one_line_and_an_exit_code_never_a_traceback(hub: Hub, tmp_path: Path) -> None:
    for words in (
        ("enrol", str(tmp_path / "absent"), "--out", str(tmp_path / "a")),
        ("submit", str(tmp_path / "absent")),
        ("report", "nothing", "--out", str(tmp_path / "o")),
    ):
        result = CliRunner().invoke(app, [*words, "--dir", str(hub.path)])
        assert isinstance(result.exception, OncofedError)
        assert len(result.exception.problems) == 1


def test_every_key_of_a_name_that_was_ever_revoked_stays_revoked(hub: Hub) -> None:
    """A hospital enrols anew again and again; none of its earlier keys comes back under any name."""
    before: list[Ed25519PrivateKey] = []
    for _ in range(4):
        hub.enrol("site-1")
        before.append(hub.keys["site-1"])
        hub.on("revoke", "site-1", "--plan-key", hub.plan_key)
    hub.enrol("site-1", "site-2")
    hub.on("renew", "--plan-key", hub.plan_key)
    epoch = newest_roster(hub.folder)
    assert epoch is not None
    assert len(epoch.gone) == len(before)
    assert set(epoch.sites) == {"site-1", "site-2"}
    for key in before:
        for name in ("site-1", "site-2", "site-9"):
            assert epoch.standing(name, public_of(key)) == "revoked"
            with pytest.raises(ConfigError, match="was revoked"):
                hub.on("enrol", str(hub.request(name, key=key)), "--out", str(hub.root / "b"))


def test_a_revoked_step_key_signs_nothing_new_and_studies_name_another(
    hub: Hub, make_plan: Callable[..., Plan]
) -> None:
    hub.enrol(*SITES)
    path = hub.prepare(make_plan())
    old = read_any_study(path, hub.folder)
    fingerprint = key_fingerprint(old.step_key)
    assert f"step key: {fingerprint} (new studies name it)" in hub.on("list")
    hub.on("revoke", "--step-key", fingerprint, "--plan-key", hub.plan_key)
    assert f"step key: {fingerprint} (revoked)" in hub.on("list")
    epoch = newest_roster(hub.folder)
    assert epoch is not None
    assert epoch.step_keys == {old.step_key}
    with pytest.raises(ConfigError, match="step key was revoked"):
        hub.on("submit", str(path))
    new = read_any_study(hub.prepare(make_plan(), name="new.study"), hub.folder)
    assert new.step_key != old.step_key
    for words, why in (
        (("--step-key", fingerprint), "is revoked already"),
        (("--step-key", "0" * 32), "is no step key"),
        ((), "either a site or"),
        (("site-1", "--step-key", fingerprint), "either a site or"),
    ):
        with pytest.raises(ConfigError, match=why):
            hub.on("revoke", *words, "--plan-key", hub.plan_key)
    # It stays revoked in the epochs that follow.
    hub.on("renew", "--plan-key", hub.plan_key)
    later = newest_roster(hub.folder)
    assert later is not None
    assert (later.number, later.step_keys) == (epoch.number + 1, {old.step_key})


def test_only_the_former_key_can_hand_its_place_over(hub: Hub) -> None:
    hub.enrol("site-1", "site-2")
    first, new = hub.keys["site-1"], Ed25519PrivateKey.generate()
    node = ec.generate_private_key(ec.SECP384R1()).public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    path = hub.root / "renewal.request"

    def ask(**words: Any) -> None:
        path.write_bytes(write_enrolment_request(site="site-1", node_key=node.decode(), key=new, **words))
        hub.on("enrol", str(path), "--out", str(hub.root / "c"), "--plan-key", hub.plan_key)

    for former in ({}, {"former": Ed25519PrivateKey.generate()}, {"former": hub.keys["site-2"]}):
        with pytest.raises(ConfigError, match="enrolled with another key"):
            ask(**former)
    whole = write_enrolment_request(site="site-1", node_key=node.decode(), key=new, former=first)
    body = json.loads(whole)["body"]
    # The former key's signature is for this key alone.
    other = Ed25519PrivateKey.generate()
    forged = body | {"identity": public_of(other).hex()}
    path.write_bytes(sign_document("enrolment-request", forged, other))
    with pytest.raises(DataError, match="has not signed that"):
        hub.on("enrol", str(path), "--out", str(hub.root / "c"))
    ask(former=first)
    epoch = newest_roster(hub.folder)
    assert epoch is not None
    assert epoch.standing("site-1", public_of(new)) == "member"
    assert epoch.standing("site-1", public_of(first)) == "member"
    assert epoch.sites["site-1"] == public_of(new)
    hub.on("revoke", "site-1", "--plan-key", hub.plan_key)
    last = newest_roster(hub.folder)
    assert last is not None
    assert {last.standing("site-1", public_of(k)) for k in (first, new)} == {"revoked"}


def test_a_warning_comes_before_each_end_and_a_renewed_authority_is_the_same_to_its_sites(
    hub: Hub, make_plan: Callable[..., Plan]
) -> None:
    hub.enrol(*SITES)
    hub.on("submit", str(hub.prepare(make_plan())))
    now, day = time.time(), 86_400.0
    for days, said in (
        (1, ()),
        (25, ("the roster is 25 days old",)),
        (160, ("small: expires in 20 days",)),
        (380, ("the server's certificate ends in 17 days",)),
        (3400, ("the authority's certificate ends in",)),
    ):
        found = status_of(hub.folder, now=now + days * day)["warnings"]
        assert bool(found) == bool(said)
        assert all(any(text.startswith(each) for text in found) for each in said), found
    before = x509.load_pem_x509_certificate(hub.folder.certificate.read_bytes())
    hub.on("renew", "--authority")
    after = x509.load_pem_x509_certificate(hub.folder.certificate.read_bytes())
    assert before.serial_number != after.serial_number
    leaf = x509.load_pem_x509_certificate((hub.folder.keys / "server.crt").read_bytes())
    for authority in (before, after):
        leaf.verify_directly_issued_by(authority)
    hub.on("enrol", str(hub.folder.sites / "site-1.request"), "--out", str(hub.root / "again"))
    assert read_enrolment((hub.root / "again").read_bytes()).certificate.encode() == hub.folder.certificate.read_bytes()
