"""nginx in front of the SuperLink: the only thing that the network can reach, and it knows eleven paths.

The SuperLink serves Fleet API (SuperNodes), Runtime API (ServerApps) and Control API (`flwr run`) on one port, and its Control
API is open to whoever holds the CA's certificate. So it listens on 127.0.0.1, and the proxy passes on what a registered
SuperNode asks for, path by path. A path is compared whole, and what goes on is the constant that was compared, never what the
client has written. A gate's question for messages waits at the bell (`bell`) and is then sent on to `NOW`, which asks the
SuperLink; without a bell it is asked at once.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path

from oncofed_server.service.bell import HOLD, NOW
from oncofed_server.service.folder import Folder, split_address
from oncofed_shared.errors import ConfigError
from oncofed_shared.storage import write_whole

__all__ = ["FLEET_PATHS", "PULL", "configuration", "find_nginx", "write_proxy"]

PULL = "/v1/fleet/pull-messages"

FLEET_PATHS = tuple(
    f"/v1/fleet/{name}"
    for name in (
        "activate-node",
        "confirm-message-received",
        "deactivate-node",
        "get-fab",
        "get-run",
        "pull-messages",
        "pull-object",
        "push-messages",
        "push-object",
        "send-node-heartbeat",
    )
)
"""What a SuperNode with a registered key calls (flwr 1.41, `fleet_http_connection.py`). Not `register-node` and
`unregister-node`: nodes are registered by the aggregator."""

_TEMPLATE = """\
# Written by `oncofed-aggregator start`; changed by hand it is overwritten.
{user}worker_processes 1;
daemon off;
pid {folder}/nginx.pid;
error_log {log} warn;

events {{ worker_connections 1024; }}

http {{
    access_log off;
    server_tokens off;
    client_max_body_size {body}m;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    client_header_timeout 30s;
    client_body_timeout 60s;
    send_timeout 60s;
    keepalive_timeout 75s;
    merge_slashes off;
    limit_conn_zone $binary_remote_addr zone=clients:1m;
    limit_conn clients 256;

    upstream superlink {{
        server 127.0.0.1:{upstream};
        keepalive 16;
    }}

    server {{
        listen {listen} ssl;
        ssl_certificate {keys}/server.crt;
        ssl_certificate_key {keys}/server.key;
        ssl_protocols TLSv1.2 TLSv1.3;
        ssl_session_tickets off;

        proxy_http_version 1.1;
        proxy_set_header Connection "";
        proxy_set_header Host localhost;
        proxy_ssl_trusted_certificate {keys}/ca.crt;
        proxy_ssl_verify on;
        proxy_ssl_name localhost;
        proxy_connect_timeout 5s;
        proxy_read_timeout 120s;
        proxy_next_upstream off;

        location / {{ return 404; }}
{locations}
        location = {pull} {{
            if ($request_method != POST) {{ return 405; }}
            set $args "";
            set $asked {pull};
            proxy_pass_request_body off;
            proxy_set_header Content-Length "";
            proxy_set_header Connection close;
            proxy_connect_timeout 1s;
            proxy_read_timeout {patience}s;
            error_page 502 504 = @now;
            proxy_pass http://127.0.0.1:{bell}/;
        }}
        location = {now} {{
            if ($request_method != POST) {{ return 405; }}
            set $args "";
            proxy_pass https://superlink{pull};
        }}
        location @now {{ proxy_pass https://superlink$asked; }}
    }}
}}
"""
_LOCATION = """\
        location = {path} {{
            if ($request_method != POST) {{ return 405; }}
            set $args "";
            proxy_pass https://superlink{path};
        }}
"""


def configuration(folder: Folder, *, upstream: int, bell: int, as_root: bool) -> str:
    """Nginx's configuration.

    Args:
        upstream: the SuperLink's port on 127.0.0.1.
        bell: the bell's.
        as_root: whether nginx is started by root, whose workers would become another user that cannot read its files.
    """
    for path in (folder.run, folder.keys):
        if any(c in str(path) for c in " ;{}\"'\\\n$#"):
            raise ConfigError(
                f"{path}: nginx cannot be given a path with such a character; move the aggregator's folder"
            )
    settings = folder.settings
    port = split_address(settings.address)[1]
    return _TEMPLATE.format(
        user="user root;\n" if as_root else "",
        folder=folder.run / "proxy",
        log=folder.run / "proxy.log",
        keys=folder.keys,
        body=settings.body_megabytes,
        upstream=upstream,
        listen=settings.listen or f"0.0.0.0:{port}",
        locations="".join(_LOCATION.format(path=path) for path in FLEET_PATHS if path != PULL),
        pull=PULL,
        now=NOW,
        patience=math.ceil(HOLD + 5.0),
        bell=bell,
    )


def write_proxy(folder: Folder, *, upstream: int, bell: int, as_root: bool) -> Path:
    """Write the configuration and the folders that it names; its path."""
    place = folder.run / "proxy"
    for name in ("body", "proxy", "fastcgi", "uwsgi", "scgi"):
        (place / name).mkdir(mode=0o700, parents=True, exist_ok=True)
    target = place / "nginx.conf"
    write_whole(target, configuration(folder, upstream=upstream, bell=bell, as_root=as_root).encode(), private=True)
    return target


def find_nginx(path: str) -> str:
    """The program, looked for where distributions put it too.

    Raises:
        ConfigError: it is not installed.
    """
    found = shutil.which("nginx", path=f"{path}:/usr/sbin:/usr/local/sbin")
    if found is None:
        raise ConfigError(
            "nginx: is not installed, and without it hospitals would reach more of the SuperLink than they need; install it "
            "from the distribution (apt-get install nginx-light, dnf install nginx)"
        )
    return found
