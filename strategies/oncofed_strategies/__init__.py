"""Given the sums of a round, what is the next global model? State in, state out; nothing is remembered elsewhere.

The mean update is a pseudo-gradient with its sign turned (Reddi et al. 2021, algorithm 2), so most rules here are one optimiser
on a flat float64 vector, from `torch.optim` where it has one: FedAvg is SGD with rate 1, FedAvgM has momentum, FedAdam is Adam,
FedAdagrad Adagrad; FedYogi is in `adaptive`. SCAFFOLD and q-FedAvg do arithmetic of their own before that step.
"""

from oncofed_strategies.rules import STRATEGIES, StrategyEntry, Sums, advance, control
from oncofed_strategies.server_optimiser import ServerState, apply, init

__all__ = ["STRATEGIES", "ServerState", "StrategyEntry", "Sums", "advance", "apply", "control", "init"]
