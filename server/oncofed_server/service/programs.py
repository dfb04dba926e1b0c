"""What `oncofed-aggregator start` runs: the SuperLink, the proxy, and the dispatcher, each started again when it ends."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from oncofed_server.service.bell import PORT_FILE
from oncofed_server.service.folder import Folder
from oncofed_server.service.proxy import find_nginx, write_proxy
from oncofed_shared.keeping import Program
from oncofed_shared.storage import dump_json, write_whole

__all__ = ["CONNECTION", "environment", "free_port", "programs", "superlink_port"]

CONNECTION = "oncofed"
"""How Flower's client calls this aggregator's SuperLink."""
HOME = "flower"


def environment(folder: Folder, given: Mapping[str, str]) -> dict[str, str]:
    """What Flower's programs see: no way home to anybody, and their own home in the aggregator's folder."""
    path = os.pathsep.join([str(Path(sys.executable).parent), given.get("PATH", os.defpath)])
    kept = {k: v for k, v in given.items() if not k.startswith("FLWR_")}
    return kept | {
        "PATH": path,
        "FLWR_HOME": str(folder.run / HOME),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
        "RAY_USAGE_STATS_ENABLED": "0",
        # A proxy to the world is not for talking to oneself.
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
    }


def free_port() -> int:
    """A port on 127.0.0.1 that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def superlink_port(folder: Folder) -> int | None:
    """Where the SuperLink of a running service listens; None where none was started."""
    path = folder.run / "superlink.port"
    return int(path.read_text()) if path.exists() else None


def programs(folder: Folder, *, given: Mapping[str, str], port: int, logs: Callable[[str], Path]) -> list[Program]:
    """The programs of a service.

    Args:
        given: environment of this process.
        port: for the SuperLink, on 127.0.0.1.
        logs: a program's log file.

    Raises:
        ConfigError: nginx is not installed.
    """
    env = environment(folder, given)
    nginx = find_nginx(env["PATH"])
    flower = str(Path(sys.executable).with_name("flower-superlink"))
    keys = folder.keys
    write_whole(folder.run / "superlink.port", str(port).encode())
    write_whole(folder.run / HOME / "config.toml", _connection(folder, port).encode(), private=True)
    bell = free_port()
    write_whole(folder.run / PORT_FILE, str(bell).encode())
    config = write_proxy(folder, upstream=port, bell=bell, as_root=os.geteuid() == 0)

    def superlink() -> list[str]:
        return _logged(
            logs("superlink"),
            [
                flower,
                *("--ssl-certfile", str(keys / "loopback.crt"), "--ssl-keyfile", str(keys / "loopback.key")),
                *("--ssl-ca-certfile", str(keys / "ca.crt"), "--enable-supernode-auth"),
                *("--database", str(folder.run / "superlink.db"), "--host", "127.0.0.1", "--port", str(port)),
                "--disable-runtime-dependency-installation",
            ],
        )

    def proxy() -> list[str]:
        return _logged(logs("proxy"), [nginx, "-e", str(folder.run / "proxy.log"), "-c", str(config)])

    def dispatcher() -> list[str]:
        return _logged(
            logs("dispatcher"), [sys.executable, "-m", "oncofed_server", "dispatch", "--dir", str(folder.path)]
        )

    return [
        Program(name="SuperLink", command=superlink, environment=env),
        Program(name="proxy", command=proxy, environment=env),
        Program(name="dispatcher", command=dispatcher, environment=env),
    ]


def _logged(log: Path, words: list[str]) -> list[str]:
    """The same program with both its outputs at the end of a file."""
    return ["/bin/sh", "-c", 'log=$1; shift; exec "$@" >>"$log" 2>&1', "sh", str(log), *words]


def _connection(folder: Folder, port: int) -> str:
    ca = dump_json(str(folder.keys / "ca.crt")).decode().strip()
    return (
        f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\naddress = "127.0.0.1:{port}"\n'
        f"root-certificates = {ca}\n"
    )
