"""Clocks that take turns."""

import math

import numpy as np
import pytest

from pds_jax import parallel
from pds_jax.bench import timing


def test_turns_alternate_and_end_with_the_time():
    order = []

    def timer(name):
        return lambda: order.append(name) or len(order)

    timers = {"a": timer("a"), "b": timer("b")}
    np.testing.assert_array_equal(timing.in_turns(timers, 3)["a"], [1, 4, 5])
    assert "".join(order) == "abbaab"
    assert timing.in_turns(timers, 3, until=-math.inf) == {"a": [7], "b": [8]}


def test_a_clock_is_warmed_up_and_gives_seconds_a_call(monkeypatch):
    calls, now = [], [0.0]

    def run():
        calls.append(1)
        now[0] += 3.0
        return np.zeros(1)

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    timer = timing.clock(run, calls=4)
    assert len(calls) == 1
    assert timer() == pytest.approx(3.0) and len(calls) == 5


@pytest.mark.parametrize("backend, waits", [("cpu", 5), ("gpu", 1)])
def test_calls_do_not_run_side_by_side(monkeypatch, backend, waits):
    """A CPU runs what does not depend on each other at once; a GPU one after the other, and is not to wait for us."""
    waited = []
    timer = timing.clock(lambda: np.zeros(1), calls=4)
    monkeypatch.setattr(timing.jax, "default_backend", lambda: backend)
    monkeypatch.setattr(timing.jax, "block_until_ready", waited.append)
    timer()
    assert len(waited) == waits


def test_the_hardware_is_named_without_the_machine():
    found = parallel.hardware()
    assert set(found) == {"devices", "architecture", "jax", "python"} and found["devices"].endswith("CPU cores")
