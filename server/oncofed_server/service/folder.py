"""The aggregator's folder: settings, keys, who is enrolled, the newest roster, the studies.

DIR/aggregator.toml            name, address, plan key, current step key
DIR/keys/                      ca.key ca.crt server.key server.crt loopback.key loopback.crt aggregator.key step-*.key
DIR/sites/<site>.request       enrolment requests as they came
DIR/roster.json                newest roster epoch, signed by the plan key
DIR/studies/<id>/              study, wanted.json, status.json, journal, model, result
DIR/run/                       of the running service: SuperLink's database, proxy, bundle, logs
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self

import tomli_w
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import Field

from oncofed_server.service.authority import make_authority, make_certificate, renew_authority
from oncofed_server.service.keys import new_key, read_key, read_public_key
from oncofed_shared.errors import ConfigError, DataError
from oncofed_shared.public_keys import public_of
from oncofed_shared.storage import write_whole
from oncofed_shared.strict import Frozen, read_toml, validate

__all__ = ["AggregatorSettings", "Folder", "check_site_name", "split_address"]

SETTINGS = "aggregator.toml"
_ADDRESS = r"^([A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]):[0-9]{1,5}$"
_KEY = r"^[0-9a-f]{64}$"
_HEADING = """\
# An oncofed aggregator. `address` is what sites connect to, and what its certificate says; `listen` is where the proxy
# listens on this machine. `plan_key` signs studies and rosters and lies somewhere else; new studies name `step_key`.
"""


class AggregatorSettings(Frozen):
    """What `aggregator.toml` says.

    Attributes:
        name: shown to sites.
        address: HOST:PORT that sites connect to.
        listen: HOST:PORT on this machine; all of its addresses with the port of `address` where none is given.
        plan_key: raw public key in hex.
        step_key: raw public key in hex, of the step key that new studies name.
        body_megabytes: most of one request through the proxy; Flower sends models in pieces of 5 MB.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+ -]{0,63}$")]
    address: Annotated[str, Field(pattern=_ADDRESS)]
    listen: Annotated[str, Field(pattern=_ADDRESS)] | None = None
    plan_key: Annotated[str, Field(pattern=_KEY)]
    step_key: Annotated[str, Field(pattern=_KEY)]
    body_megabytes: Annotated[int, Field(ge=8, le=4096)] = 64


def split_address(address: str) -> tuple[str, int]:
    """HOST:PORT as a pair; brackets of an IPv6 address are taken off."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65_536:
        raise ConfigError(f"{address}: expected HOST:PORT, like aggregator.example.org:8443")
    return host.strip("[]"), int(port)


@dataclass(frozen=True, kw_only=True)
class Folder:
    """An aggregator's folder, opened with `open` or made with `create`."""

    path: Path
    settings: AggregatorSettings

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a folder.

        Raises:
            ConfigError: it is not an aggregator's.
        """
        if not (path / SETTINGS).exists():
            raise ConfigError(f"{path}: has no {SETTINGS}; make an aggregator with `oncofed-aggregator init {path}`")
        settings = validate(AggregatorSettings, read_toml(path / SETTINGS), str(path / SETTINGS))
        return cls(path=path.resolve(), settings=settings)

    @classmethod
    def create(
        cls, path: Path, *, name: str, address: str, plan_key: bytes, listen: str | None = None, now: float
    ) -> Self:
        """Make a folder with an authority, certificates, the aggregator's key and a first step key.

        Raises:
            ConfigError: there is one already, or an argument is wrong; then nothing is written.
        """
        content = {"name": name, "address": address, "plan_key": plan_key.hex()} | (
            {"listen": listen} if listen else {}
        )
        where = "oncofed-aggregator init"
        validate(AggregatorSettings, content | {"step_key": "0" * 64}, where)
        for each in (address, listen or address):
            split_address(each)
        try:
            if path.exists() and any(path.iterdir()):
                raise ConfigError(f"{path}: is not empty; choose a new folder for an aggregator")
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.chmod(0o700)
        except OSError as error:
            raise ConfigError(
                f"{path}: cannot be made a folder ({error.strerror}); choose a new folder for an aggregator"
            ) from None
        keys = path / "keys"
        make_authority(keys / "ca.crt", keys / "ca.key", name=name, now=now)
        new_key(keys / "aggregator.key")
        step = _new_step_key(keys)
        settings = validate(AggregatorSettings, content | {"step_key": step.hex()}, where)
        made = cls(path=path.resolve(), settings=settings)
        made.make_certificates(now=now)
        # Last, because a folder with settings is a whole one.
        made._write_settings()
        return made

    # -- keys -----------------------------------------------------------------------------------------------------------------

    @property
    def keys(self) -> Path:
        """Folder of keys and certificates."""
        return self.path / "keys"

    @property
    def certificate(self) -> Path:
        """Of the authority, which sites trust."""
        return self.keys / "ca.crt"

    @property
    def plan_key(self) -> bytes:
        """32 bytes."""
        return bytes.fromhex(self.settings.plan_key)

    @property
    def step_key(self) -> bytes:
        """32 bytes, of the step key that new studies name."""
        return bytes.fromhex(self.settings.step_key)

    def own_key(self) -> Ed25519PrivateKey:
        """Signs answers to enrolments."""
        return read_key(self.keys / "aggregator.key")

    def step_keys(self) -> tuple[bytes, ...]:
        """The public halves of all step keys that were made here and not taken away, 32 bytes each."""
        return tuple(sorted(read_public_key(path) for path in self.keys.glob("step-*.pub")))

    def step_key_of(self, public: bytes) -> Ed25519PrivateKey:
        """The private half of a study's step key.

        Raises:
            DataError: this aggregator does not have it.
        """
        path = _step_file(self.keys, public)
        if not path.exists():
            raise DataError(
                f"{path}: is not there: the study was prepared for another aggregator, or the key was taken away after "
                "`renew`; prepare the study anew"
            )
        key = read_key(path)
        if public_of(key) != public:
            raise DataError(f"{path}: holds another key than its name says; bring it back from a backup")
        return key

    def make_certificates(self, *, now: float) -> None:
        """New certificates for the proxy and the SuperLink; those who have the authority's go on trusting."""
        host, _ = split_address(self.settings.address)
        for name, shown in (("server", host), ("loopback", "127.0.0.1")):
            make_certificate(
                self.certificate,
                self.keys / "ca.key",
                certificate=self.keys / f"{name}.crt",
                key=self.keys / f"{name}.key",
                host=shown,
                now=now,
            )

    def renew_authority(self, *, now: float) -> None:
        """A new certificate of the authority, of the same key: sites that have the one before go on trusting until that ends."""
        renew_authority(self.certificate, self.keys / "ca.key", now=now)

    def renew_step_key(self) -> Folder:
        """A new step key for new studies; studies that are signed keep theirs."""
        step = _new_step_key(self.keys)
        made = Folder(path=self.path, settings=self.settings.model_copy(update={"step_key": step.hex()}))
        made._write_settings()
        return made

    def _write_settings(self) -> None:
        content = self.settings.model_dump(exclude_none=True)
        write_whole(self.path / SETTINGS, (_HEADING + "\n" + tomli_w.dumps(content)).encode())

    # -- places ---------------------------------------------------------------------------------------------------------------

    @property
    def sites(self) -> Path:
        """Folder of enrolment requests."""
        return self.path / "sites"

    @property
    def roster(self) -> Path:
        """The newest roster epoch."""
        return self.path / "roster.json"

    @property
    def studies(self) -> Path:
        """Folder of studies."""
        return self.path / "studies"

    @property
    def run(self) -> Path:
        """Folder of the running service."""
        return self.path / "run"


def _step_file(keys: Path, public: bytes) -> Path:
    return keys / f"step-{public.hex()[:16]}.key"


def _new_step_key(keys: Path) -> bytes:
    temporary = keys / f".step-{time.time_ns()}.key"
    public = public_of(new_key(temporary))
    temporary.rename(_step_file(keys, public))
    temporary.with_suffix(".pub").rename(_step_file(keys, public).with_suffix(".pub"))
    return public


def check_site_name(name: str) -> str:
    """A site's name that is a file's name too."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+ -]{0,63}", name):
        raise ConfigError(f"{name}: is not a site's name")
    return name
