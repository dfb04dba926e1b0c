"""A run's state as a file, so that a killed run goes on from its last finished round."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oncofed_server.rounds import Cost, Divergence
from oncofed_server.run_state import Phase, State
from oncofed_shared.features import Preparation
from oncofed_shared.messages import Description, Head, Trial
from oncofed_shared.plan import Plan
from oncofed_shared.scoring import dense, sparse
from oncofed_shared.storage import read_arrays, write_arrays
from oncofed_strategies import ServerState

__all__ = ["load_state", "save_state"]


def _prefixed(prefix: str, arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def save_state(path: Path, state: State) -> None:
    """Write a state between two rounds, or a finished one."""
    arrays: dict[str, NDArray[Any]] = {}
    facts: dict[str, Any] = {
        "phase": state.phase.value,
        "round": state.round,
        "step": state.step,
        "attempt": state.attempt,
        "deadline": state.deadline,
        "pending": sorted(state.pending),
        "round_cost": dataclasses.asdict(state.round_cost),
        "excluded": dict(state.excluded),
        "losses": list(state.losses),
        "divergence": [d and dataclasses.asdict(d) for d in state.divergence],
        "participants": [list(names) for names in state.participants],
        "why": state.why,
        "lost": state.lost,
        "present": state.present,
        "cost": dataclasses.asdict(state.cost),
        "costs": [dataclasses.asdict(c) for c in state.costs],
        "descriptions": [dataclasses.asdict(d) for d in state.descriptions.values()],
        "columns": None,
    }
    if state.server is not None:
        arrays["server.parameters"] = state.server.parameters
        arrays |= {f"memory.{k}": v for k, v in state.server.memory.items()}
    if state.preparation is not None:
        arrays |= {f"preparation.{k}": v for k, v in state.preparation.arrays().items()}
        facts["columns"] = {m: list(c) for m, c in state.preparation.columns.items()}
    for name, counts in (("histogram", state.histogram), ("released", state.released)):
        if counts is not None:
            arrays[name] = counts
    facts["sizes"] = {}
    tables = {f"validation.{r}": v for r, v in state.validation.items()}
    tables |= {f"tables.{s}": v for s, v in state.tables.items()}
    for name, vector in tables.items():
        facts["sizes"][name] = len(vector)
        arrays[f"cells.{name}"], arrays[f"counts.{name}"] = sparse(vector)
    write_arrays(path, arrays or {"empty": np.zeros(1)}, facts)


def load_state(path: Path, plan: Plan) -> State:
    """Read a state; `Start` makes an aggregator go on from it."""
    arrays, facts = read_arrays(path)
    server = preparation = None
    if "server.parameters" in arrays:
        server = ServerState(parameters=arrays["server.parameters"], memory=_prefixed("memory.", arrays))
    if facts["columns"] is not None:
        columns = {m: tuple(c) for m, c in facts["columns"].items()}
        preparation = Preparation.from_arrays(plan, columns, _prefixed("preparation.", arrays))
    tables = {
        name: dense(size, arrays[f"cells.{name}"], arrays[f"counts.{name}"]) for name, size in facts["sizes"].items()
    }
    return State(
        phase=Phase(facts["phase"]),
        round=facts["round"],
        step=facts["step"],
        attempt=facts["attempt"],
        deadline=facts["deadline"],
        pending=frozenset(facts["pending"]),
        round_cost=Cost(**facts["round_cost"]),
        server=server,
        preparation=preparation,
        descriptions={d["site"]: _description(d) for d in facts["descriptions"]},
        excluded=facts["excluded"],
        losses=tuple(facts["losses"]),
        divergence=tuple(d and Divergence(**d) for d in facts["divergence"]),
        participants=tuple(tuple(names) for names in facts["participants"]),
        validation={int(r): v for r, v in _prefixed("validation.", tables).items()},
        tables=_prefixed("tables.", tables),
        why=facts["why"],
        lost=facts["lost"],
        present=facts["present"],
        histogram=arrays.get("histogram"),
        released=arrays.get("released"),
        cost=Cost(**facts["cost"]),
        costs=tuple(Cost(**c) for c in facts["costs"]),
    )


def _description(content: dict[str, Any]) -> Description:
    head = content.pop("head")
    columns = {m: tuple(c) for m, c in content.pop("columns").items()}
    return Description(head=Head(**head | {"trial": Trial(**head["trial"])}), columns=columns, **content)
