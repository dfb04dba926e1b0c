"""Tables of features: shapes that agree, and gaps that stay gaps."""

from __future__ import annotations

import numpy as np
import pytest

from oncofed_client.prepare.feature_table import FeatureTable, joined


def table(columns: str, patients: str, values: object) -> FeatureTable:
    return FeatureTable(
        columns=tuple(columns), patients=tuple(patients), values=np.array(values, float), problems=("note",)
    )


@pytest.mark.parametrize(
    ("columns", "patients", "values"),
    [("ab", "x", [[1]]), ("aa", "x", [[1, 2]]), ("a", "xx", [[1], [2]]), ("a", "x", [[np.inf]]), ("a", "x", [1.0])],
)
def test_a_reader_cannot_give_a_table_that_contradicts_itself(columns, patients, values):
    with pytest.raises(ValueError, match=r"values|unique"):
        table(columns, patients, values)
    with pytest.raises(ValueError, match="float64"):
        FeatureTable(columns=("a",), patients=("x",), values=np.zeros((1, 1), np.float32))


def test_tables_are_joined_over_all_patients():
    both = joined([table("ab", "xz", [[1, 2], [3, 4]]), table("c", "yx", [[5], [6]])])
    assert (both.columns, both.patients, both.problems) == (("a", "b", "c"), ("x", "y", "z"), ("note",))
    gap = np.nan
    np.testing.assert_array_equal(both.values, [[1, 2, 6], [gap, gap, 5], [3, 4, gap]])
    np.testing.assert_array_equal(both.rows_of(["z", "nobody"]), [[3, 4, gap], [gap, gap, gap]])
    assert "x" not in repr(both).replace("FeatureTable", "")
    assert joined([]).values.shape == (0, 0)
    with pytest.raises(ValueError, match="unique"):
        joined([both, table("a", "x", [[1]])])
