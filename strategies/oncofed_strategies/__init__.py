"""Given a mean of updates, what is the next global model? State in, state out; nothing is remembered elsewhere.

The mean update is a pseudo-gradient with its sign turned (Reddi et al. 2021, algorithm 2), so every rule here is one optimiser
of `torch.optim` on a flat float64 vector: FedAvg is SGD with rate 1, FedAvgM has momentum, FedAdam is Adam, FedAdagrad Adagrad.
"""

from oncofed_strategies.server_optimiser import STRATEGIES, ServerState, apply, init

__all__ = ["STRATEGIES", "ServerState", "apply", "init"]
