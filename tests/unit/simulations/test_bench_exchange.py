"""What the benchmark of an exchange reads out of lines and of memory."""

from __future__ import annotations

import os
import sys

import psutil
import pytest

from oncofed_shared.errors import LocalProtocolError
from oncofed_simulations.bench_exchange import NO_DAEMON, STAGES, STUDY, intervals, stages
from oncofed_simulations.deployment import Service, resident, wait_until

ROUND = (
    (0.0, "INFO :      Receiving: query.oncofed_step message (ID: 1)"),
    (0.3, "INFO :      Start `flwr-clientapp` process"),
    (0.4, "INFO :      Received successfully"),
    (0.6, '{"time": 1.0, "event": "request.answered"}'),
    (1.0, "INFO :      Sending: query.oncofed_step message (ID: 2)"),
    (1.2, "INFO :      Sent successfully"),
)


def service(rounds: int, length: float) -> Service:
    made = Service(name="site", words=[])
    made.lines = [(k * length + at, line) for k in range(rounds) for at, line in ROUND]
    return made


def test_an_exchange_is_from_one_request_to_the_next_and_its_stages_add_up_to_it():
    site = service(5, 1.5)
    assert intervals(site) == pytest.approx([1.5] * 4)
    found = stages(site)
    assert list(found) == [name for name, _, _ in STAGES]
    assert list(found.values()) == pytest.approx([0.3, 0.3, 0.3, 0.4, 0.2])
    assert sum(found.values()) == pytest.approx(1.5)


def test_of_flower_as_it_comes_there_are_the_stages_that_it_has():
    site = service(3, 2.0)
    site.lines = [
        (at, line.replace("query.oncofed_step", "train")) for at, line in site.lines if "answered" not in line
    ]
    assert intervals(site) == pytest.approx([2.0, 2.0])
    found = stages(site)
    assert set(found) == {NO_DAEMON[0]} | {name for name, *both in STAGES if r"request\.answered" not in both}
    assert sum(found.values()) == pytest.approx(2.0)
    assert intervals(Service(name="none", words=[])) == []


def test_the_study_asks_for_twenty_exchanges_at_least():
    assert "rounds = 24" in STUDY.read_text(encoding="utf-8")


def test_a_page_that_a_copy_shares_counts_once_together_and_twice_in_the_sum():
    size = 64 << 20
    kept = bytearray(os.urandom(1 << 20) * 64)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writing)
        os.read(reading, 1)
        os._exit(0)
    try:
        me, copy = psutil.Process(), psutil.Process(child)
        alone, whole_alone = resident([me])
        both, whole = resident([me, copy])
        assert len(kept) == size
        # Alone, a page that a copy has too counts for half.
        assert both - alone > 30
        assert whole - whole_alone > 60
        assert both < whole - 60
    finally:
        os.close(writing)
        os.close(reading)
        os.waitpid(child, 0)


def test_what_a_service_prints_is_kept_with_its_moment_and_its_code_is_told():
    made = Service(name="one", words=[sys.executable, "-c", "print('first'); print('second')"])
    assert made.stop() == 0
    assert made.tree() == []
    made.start()
    wait_until(lambda: made.said("second"), 30.0, made.tail)
    assert made.process is not None
    assert made.process.wait(30) == 0
    assert made.said("first")[0] <= made.said("second")[0]
    assert made.tail(1) == "second"
    with pytest.raises(LocalProtocolError, match="never"):
        wait_until(lambda: False, 0.1, lambda: "never")
    made.process.stdout.close()  # type: ignore[union-attr] - it was started
