"""Lines of a log: names from a list, values of a form, whatever a fact holds."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oncofed_client.log_lines import NAMES as SITE
from oncofed_server.service.log_lines import NAMES as AGGREGATOR
from oncofed_shared.log_lines import LONGEST, Form, LogLines

SIDES = {"site": LogLines(names=SITE), "aggregator": LogLines(names=AGGREGATOR)}
HELD_BACK = "MRN-7719-ZEPHYRINE"


class Odd:
    """A thing that shows a secret however it is written."""

    def __repr__(self) -> str:
        return HELD_BACK

    __str__ = __repr__

    def __len__(self) -> int:
        return 3


NAME = st.sampled_from([*SITE, *AGGREGATOR, "patient", "value", "row", "message", "loss"]) | st.text(max_size=50)
ANYTHING: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=600) | st.binary(max_size=20)
    | st.builds(Odd),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip


def allowed(value: Any, form: Form) -> bool:
    """Whether a value is of a form, said once more and by other means."""
    if form is Form.NUMBER:
        return type(value) in {int, float} and -1e18 < value < 1e18
    if type(value) is not str:
        return False
    if form is Form.WORD:
        return len(value) <= 128 and all(c.isascii() and (c.isalnum() or c in "_.,:;+=@/#() -") for c in value)
    return len(value) <= LONGEST and value.isprintable()


@pytest.mark.parametrize("side", SIDES)
@given(event=st.text(max_size=200), facts=st.dictionaries(NAME, ANYTHING, max_size=6))
def test_a_line_has_nothing_but_names_of_the_list_with_values_of_their_form(
    side: str, event: str, facts: dict[str, Any]
) -> None:
    lines = SIDES[side]
    line = lines.line(event, facts, now=1.0)
    assert line.isascii()
    assert "\n" not in line
    said = json.loads(line)
    assert said.pop("time") == 1.0
    assert len(said.pop("event")) <= 127
    back = said.pop("kept_back", [])
    assert set(said) <= set(lines.names)
    assert all(allowed(value, lines.names[name]) for name, value in said.items())
    # What is not said is named, and only named.
    assert set(facts) - set(said) <= set(back) or "?" in back
    assert all(name == "?" or (name.isascii() and len(name) <= 31) for name in back)


@pytest.mark.parametrize("side", SIDES)
@given(name=NAME, wrap=st.sampled_from([lambda s: [s], lambda s: {"a": s}, lambda s: s.encode(), lambda s: Odd()]))
def test_what_is_of_no_form_never_gets_out(side: str, name: str, wrap: Any) -> None:
    lines = SIDES[side]
    assert HELD_BACK not in lines.line("x.done", {name: wrap(HELD_BACK)}, now=1.0)
    if name not in lines.names:
        assert HELD_BACK not in lines.line("x.done", {name: HELD_BACK}, now=1.0)
    elif lines.names[name] is not Form.TEXT:
        assert HELD_BACK not in lines.line("x.done", {name: f"{HELD_BACK}\n"}, now=1.0)


@pytest.mark.parametrize("names", [SITE, AGGREGATOR])
def test_no_list_has_a_name_for_what_belongs_to_a_patient_or_to_training(names: dict[str, Form]) -> None:
    assert not set(names) & {"patient", "patient_id", "patients", "value", "row", "column", "loss", "count", "batch"}


def test_a_line_is_written_at_once() -> None:
    stream = io.StringIO()
    LogLines(names={"code": Form.WORD, "text": Form.TEXT}).say("x.done", to=stream, code="a", text="b\nc", other=1)
    (line,) = stream.getvalue().splitlines()
    said = json.loads(line)
    assert said.pop("time") > 0
    assert said == {"event": "x.done", "code": "a", "text": "b c", "kept_back": ["other"]}
