"""Interleaved timing: the programs are timed in turns, so that other load affects all of them alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

Timer = Callable[[], float]


def clock(run: Callable[[], Any], calls: int = 1) -> Timer:
    """A timer of seconds a call.

    Args:
      run: what is timed; called once here, so that compiling is over.
      calls: calls a reading. A CPU, which would run them side by side, is waited for after each; another device after
        the last, so that it does not wait for the host in between.

    Returns:
      () -> seconds of the clock.
    """
    jax.block_until_ready(run())

    def timer() -> float:
        on_cpu, outputs = jax.default_backend() == "cpu", None
        start = time.perf_counter()
        for _ in range(calls):
            outputs = run()
            if on_cpu:
                jax.block_until_ready(outputs)
        jax.block_until_ready(outputs)
        return (time.perf_counter() - start) / calls

    return timer


def in_turns(timers: Mapping[str, Timer], turns: int, until: float = math.inf) -> dict[str, np.ndarray]:
    """Readings of every timer in every turn; the order is reversed every other turn.

    Args:
      timers: by name.
      turns: how many.
      until: value of ``time.monotonic`` after which no turn but the first begins.

    Returns:
      (turns,) seconds by name.
    """
    rows: dict[str, list[float]] = {name: [] for name in timers}
    for turn in range(turns):
        if turn and time.monotonic() > until:
            break
        for name in list(timers)[:: 1 if turn % 2 == 0 else -1]:
            rows[name].append(timers[name]())
    return {name: np.array(seconds) for name, seconds in rows.items()}
