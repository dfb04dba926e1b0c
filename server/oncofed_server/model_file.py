"""The file of a finished run's model: parameters, the preparation of its inputs, and the plan that says what they mean."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from oncofed_server.aggregator import Aggregator
from oncofed_server.run_state import Roster, State
from oncofed_shared.errors import LocalProtocolError
from oncofed_shared.messages import Trial
from oncofed_shared.plan import Plan
from oncofed_shared.storage import write_arrays

__all__ = ["write_model"]


def write_model(path: Path, plan: Plan, trial: Trial, state: State, *, certainty: Mapping[str, Any]) -> None:
    """Write the model of a run; equal runs give equal bytes, whoever drove them.

    Args:
        certainty: of `certainty.certainty`: per task what predictions have meant; empty where nobody knows.

    Raises:
        LocalProtocolError: the run has no model.
    """
    if state.preparation is None:
        raise LocalProtocolError("a run without a preparation has no model")
    nobody = Roster(trainers=(), evaluators=())
    parameters = Aggregator(plan, nobody, trial, session="", state=state).parameters()
    arrays: dict[str, NDArray[Any]] = {f"network.{n}": a for n, a in parameters.items()}
    arrays |= {f"preparation.{n}": a for n, a in state.preparation.arrays().items()}
    facts = {
        "format": 1,
        "study": plan.study.name,
        "plan_hash": plan.hash,
        "plan": plan.canonical.decode(),
        "columns": {m: list(c) for m, c in state.preparation.columns.items()},
        "seed": trial.seed,
        "certainty": dict(certainty),
    }
    write_arrays(path, arrays, facts)
