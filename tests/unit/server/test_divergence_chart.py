"""The report shows how far sites were apart, where that is known."""

from __future__ import annotations

from typing import Any

from oncofed_server.report_charts import learning_curves
from oncofed_server.report_scores import read_study


def rounds(divergence: list[Any]) -> dict[str, Any]:
    return {
        "study": "s",
        "rounds": [
            {"seed": 0, "round": k, "train_loss": 1 / k, "validation": {}, "divergence": d}
            for k, d in enumerate(divergence, 1)
        ],
    }


def titles(divergence: list[Any]) -> list[str]:
    return [title for title, _ in learning_curves(read_study(rounds(divergence)))]


def test_divergence_is_a_learning_curve_of_its_own() -> None:
    raw = rounds([{"mean": 0.8, "max": 1.1}, {"mean": 0.25, "max": 1.3}, None])
    (title, picture) = learning_curves(read_study(raw))[-1]
    assert title == "Divergence between sites"
    assert "0.8000 in round 1, 0.2500 in round 2" in picture


def test_where_it_is_not_known_there_is_no_curve() -> None:
    assert titles([None, None]) == ["Training loss"]
