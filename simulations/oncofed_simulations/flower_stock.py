"""Flower as it comes, beside which our exchange is measured: its `ServerApp` with `FedAvg`, and a `ClientApp` that does nothing.

Models of the same size go down and up as ours. Flower's own processes, options and pauses; TLS and keys of nodes as in ours.
"""

from __future__ import annotations

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

__all__ = ["client_app", "server_app"]

client_app = ClientApp()
server_app = ServerApp()


@client_app.train()
def _train(message: Message, context: Context) -> Message:
    del context
    content = RecordDict({"arrays": message.content["arrays"], "metrics": MetricRecord({"num-examples": 1.0})})
    return Message(content=content, reply_to=message)


@server_app.main()
def _main(grid: Grid, context: Context) -> None:
    sites = int(context.run_config["sites"])
    values = np.zeros(int(context.run_config["parameters"]), dtype=np.float32)
    average = FedAvg(fraction_evaluate=0.0, min_train_nodes=sites, min_evaluate_nodes=sites, min_available_nodes=sites)
    average.start(
        grid=grid,
        initial_arrays=ArrayRecord([values]),
        num_rounds=int(context.run_config["rounds"]),
        train_config=ConfigRecord(),
    )
