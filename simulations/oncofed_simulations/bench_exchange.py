"""What one exchange costs: a request to every site and all their answers, with trivial work, beside Flower as it comes.

Both are real: an aggregator and sites with all their processes, TLS, nodes with keys. Ours has in addition the proxy, the fence,
the daemon, signatures and receipts. `python -m oncofed_simulations.bench exchange` runs both, one after the other.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import psutil
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from oncofed_server.service.authority import make_authority, make_certificate
from oncofed_shared.processes import Descendants, subreaper
from oncofed_shared.storage import write_whole
from oncofed_simulations.bench_measure import Measure
from oncofed_simulations.deployment import Consortium, Service, free_port, new_consortium, resident, wait_until
from oncofed_simulations.synthetic import write_cohort

__all__ = ["NO_DAEMON", "STAGES", "exchange", "intervals", "stages"]

SITES, ROUNDS, PATIENTS = 2, 24, 60
NAMES = tuple(f"site-{i + 1}" for i in range(SITES))
STUDY = Path(__file__).resolve().parents[1] / "studies" / "exchange.toml"
PATIENCE = 900.0
IDLE = 8.0
_GLANCE = 0.4
ASKED = r"Receiving: (query\.oncofed_step|train) message"
_STARTED = r"Start `flwr-clientapp` process"
STAGES = (
    ("the site is asked again", r"Sent successfully", ASKED),
    ("the relay runs", ASKED, _STARTED),
    ("the daemon has answered", _STARTED, r"request\.answered"),
    ("the answer is sent", r"request\.answered", r"Sending: "),
    ("the answer is there", r"Sending: ", r"Sent successfully"),
)
"""What lies between two lines that a site prints, in their order. The relay starts while the request is still being pulled."""
NO_DAEMON = ("the answer is made", _STARTED, r"Sending: ")
_BUNDLE = """\
[project]
name = "stock"
version = "1.0.0"
license = { file = "LICENSE" }
dependencies = ["flwr>=1.41.0"]

[tool.flwr.app]
publisher = "oncofed"
fab-format-version = 1
flwr-version-target = "1.41.0"
fab-include = ["/pyproject.toml", "/README.md", "/LICENSE"]

[tool.flwr.app.components]
serverapp = "oncofed_simulations.flower_stock:server_app"
clientapp = "oncofed_simulations.flower_stock:client_app"

[tool.flwr.app.config]
sites = 0
rounds = 0
parameters = 0
"""


def intervals(service: Service) -> list[float]:
    """Seconds between one request to a site and the next."""
    return [b - a for a, b in pairwise(service.said(ASKED))]


def stages(service: Service) -> dict[str, float]:
    """Median seconds of each of `STAGES`: from a line to the first of the other kind behind it.

    Flower as it comes has no daemon: its two stages around one are one, `NO_DAEMON`.
    """
    with_daemon = bool(service.said(r"request\.answered"))
    found = {}
    for name, first, then in STAGES if with_daemon else (*STAGES[:2], NO_DAEMON, *STAGES[4:]):
        ends = service.said(then)
        gaps = [end - at for at in service.said(first) if (end := next((e for e in ends if e >= at), None)) is not None]
        if gaps:
            found[name] = statistics.median(gaps)
    return found


def exchange(folder: Path) -> list[Measure]:
    """Ours and Flower's, in one run."""
    ours, rows, parameters = _ours(folder / "ours")
    stock, theirs = _stock(folder / "stock", parameters)
    one, other = statistics.median(ours), statistics.median(stock)
    size = f"{SITES} sites, {parameters} parameters, median of"
    rows = [
        Measure(name="exchange", value=one, unit="s", note=f"{size} {len(ours)}"),
        Measure(name="exchange, Flower as it comes", value=other, unit="s", note=f"{size} {len(stock)}"),
        Measure(name="exchange / Flower as it comes", value=one / other, unit="x", goal=0.9, note="stretch goal 0.6"),
        *rows,
    ]
    rows += [Measure(name=f"Flower as it comes: {name}", value=value, unit="s") for name, value in theirs.items()]
    return rows


def _ours(folder: Path) -> tuple[list[float], list[Measure], int]:
    folder.mkdir(parents=True)
    with new_consortium(folder) as consortium:
        write_cohort(folder / "sites", sites=SITES, patients=PATIENTS, seed=3)
        consortium.join(NAMES)
        study = consortium.submit(STUDY, NAMES)
        consortium.start(NAMES)
        site, over = consortium.sites[NAMES[0]], threading.Event()
        with ThreadPoolExecutor(1) as pool:
            seen = pool.submit(_relays, site, over)
            try:
                status = consortium.finish(study, PATIENCE)
            finally:
                over.set()
        if status["phase"] != "done":
            raise SystemExit(f"the study ended as {status['phase']}: {status.get('why')}")
        rows = [Measure(name=f"exchange: {name}", value=value, unit="s") for name, value in stages(site).items()]
        time.sleep(IDLE)
        rows += [*_memory(site), seen.result()]
        return intervals(site), rows, _parameters(consortium, study)


def _memory(site: Service) -> list[Measure]:
    """What a site's processes have when nobody asks them."""
    daemon = [p for p in site.tree() if "daemon" in p.cmdline() and "--daemon" not in p.cmdline()]
    gate = [p for p in site.tree() if p not in daemon]
    rows = []
    for name, processes, goal in (("daemon", daemon, 600.0), ("gate", gate, 200.0)):
        shared, whole = resident(processes)
        note = f"{len(processes)} processes, shared pages once; sum of resident sets {whole:.0f}"
        rows.append(Measure(name=f"{name}, idle", value=shared, unit="MiB", goal=goal, note=note))
    return rows


def _relays(site: Service, over: threading.Event) -> Measure:
    """The largest resident set of a message's relay that was seen, with all that it shares with its parent."""
    most, alone = 0, 0
    while not over.wait(_GLANCE):
        for process in site.tree():
            with contextlib.suppress(psutil.Error):
                if process.name() == "flwr-clientapp":
                    memory = process.memory_full_info()
                    most, alone = max(most, memory.rss), max(alone, memory.uss)
    note = f"resident set, shared pages too; its own pages {alone / 2**20:.0f}"
    return Measure(name="relay", value=most / 2**20, unit="MiB", goal=120.0, note=note)


def _parameters(consortium: Consortium, study: str) -> int:
    result = consortium.place / "studies" / study / "model.safetensors"
    with result.open("rb") as file:
        head = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return sum(_product(entry["shape"]) for name, entry in head.items() if name != "__metadata__")


def _product(shape: Sequence[int]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


# -- Flower as it comes -------------------------------------------------------------------------------------------------------


def _stock(folder: Path, parameters: int) -> tuple[list[float], dict[str, float]]:
    """Flower's own SuperLink, SuperNodes and strategy, with TLS and keys of nodes."""
    folder.mkdir(parents=True)
    keys, port = _keys(folder), free_port()
    path = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
    silent = {"PATH": path, "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1", "FLWR_HOME": str(folder / "home")}
    connection = f'[superlink]\ndefault = "o"\n\n[superlink.o]\naddress = "127.0.0.1:{port}"\n'
    write_whole(folder / "home" / "config.toml", f'{connection}root-certificates = "{folder}/ca.crt"\n'.encode())
    write_whole(folder / "bundle" / "pyproject.toml", _BUNDLE.encode())
    for name in ("README.md", "LICENSE"):
        write_whole(folder / "bundle" / name, b"Apache-2.0\n")
    with subreaper():
        ours = Descendants()
        try:
            link = Service(name="superlink", words=_superlink(folder, port), environment=silent)
            link.start()
            wait_until(lambda: link.said("Uvicorn running|startup complete"), 120.0, link.tail)
            for name in keys:
                _flwr(silent, "supernode", "register", str(folder / f"{name}.pub"), "o")
            nodes = [
                Service(name=n, words=_supernode(folder, n, port), environment=_own(silent, folder, n)) for n in keys
            ]
            for node in nodes:
                node.start()
            for node in nodes:
                wait_until(lambda node=node: node.said("SuperNode ID"), 120.0, node.tail)  # type: ignore[misc]
            config = f"sites={SITES} rounds={ROUNDS} parameters={parameters}"
            _flwr(silent, "run", str(folder / "bundle"), "o", "-c", config)
            wait_until(lambda: len(nodes[0].said("Sent successfully")) >= ROUNDS, PATIENCE, nodes[0].tail)
            return intervals(nodes[0]), stages(nodes[0])
        finally:
            ours.kill(patience=20.0)


def _own(silent: Mapping[str, str], folder: Path, name: str) -> dict[str, str]:
    return {**silent, "FLWR_HOME": str(folder / name)}


def _keys(folder: Path) -> tuple[str, ...]:
    """An authority, a certificate, and a key for each node."""
    now = time.time()
    make_authority(folder / "ca.crt", folder / "ca.key", name="stock", now=now)
    made = {"certificate": folder / "link.crt", "key": folder / "link.key"}
    make_certificate(folder / "ca.crt", folder / "ca.key", **made, host="127.0.0.1", now=now)
    for name in NAMES:
        key = ec.generate_private_key(ec.SECP384R1())
        private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
        write_whole(folder / f"{name}.key", private, private=True)
        public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
        write_whole(folder / f"{name}.pub", public + b"\n")
    return NAMES


def _program(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def _superlink(folder: Path, port: int) -> list[str]:
    return [
        _program("flower-superlink"),
        *("--ssl-certfile", str(folder / "link.crt"), "--ssl-keyfile", str(folder / "link.key")),
        *("--ssl-ca-certfile", str(folder / "ca.crt"), "--enable-supernode-auth"),
        *("--database", str(folder / "link.db"), "--host", "127.0.0.1", "--port", str(port)),
        "--disable-runtime-dependency-installation",
    ]


def _supernode(folder: Path, name: str, port: int) -> list[str]:
    return [
        _program("flower-supernode"),
        *("--superlink", f"127.0.0.1:{port}", "--root-certificates", str(folder / "ca.crt")),
        *("--auth-supernode-private-key", str(folder / f"{name}.key")),
        *("--host", "127.0.0.1", "--port", str(free_port())),
    ]


def _flwr(environment: Mapping[str, str], *words: str) -> None:
    client = Service(name="flwr", words=[_program("flwr"), *words], environment=environment)
    client.start()
    if client.process is None or client.process.wait(120):
        raise SystemExit(f"flwr {words[0]} failed: {client.tail()}")
