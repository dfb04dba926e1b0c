"""The gate's ClientApp: what Flower delivers goes to the daemon, what the daemon answers goes back. It decides nothing.

Flower imports it by name from what the site itself installed: the bundle of the aggregator has no code. Where the daemon's socket
is stands in the node's own configuration, which `gate` writes and no message can change.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from flwr.app import Context

from oncofed_client.app import Handle, relay
from oncofed_client.daemon_client import call

__all__ = ["PATIENCE", "app"]

# Seconds for which a daemon may be away while it is started anew; afterwards the aggregator asks again.
PATIENCE = 120.0


def _connect(context: Context) -> Handle:
    return partial(call, Path(str(context.node_config["socket"])), patience=PATIENCE)


def _name(context: Context) -> str:
    return str(context.node_config["site"])


app = relay(_connect, _name)
