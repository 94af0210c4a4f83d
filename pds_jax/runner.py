"""Sampling from the host: chunk by chunk, with progress, a trajectory, and an early stop if a sample diverges."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pds_jax.keys import generator
from pds_jax.scores import as_pytree
from pds_jax.table import CHUNK
from pds_jax.types import Array, Key, PdsError, ScoreFn, is_number

PACE = 1.0  # target seconds between two progress reports


class SamplingDiverged(PdsError, FloatingPointError):
    """A sample became NaN or infinite, or is certain to; the message names the step and a remedy."""


@dataclasses.dataclass(frozen=True)
class Run:
    """What :func:`run` returns.

    Attributes:
      x: (B, H, W, C) float32 images, on a device or the host.
      nfe: score evaluations per image; (B,) where an adaptive solver decided.
      trajectory: (step, t, x_mean) every ``trajectory_every`` steps, on the host.
    """

    x: Any
    nfe: Any
    trajectory: list[tuple[int, float, np.ndarray]]


def run(
    sampler: Any,
    keys: Key,
    score_fn: ScoreFn,
    *,
    chunk: int = CHUNK,
    pace: float | None = PACE,
    progress: Callable[[int, int], None] | None = None,
    trajectory_every: int = 0,
    init_fn: Callable[..., Any] | None = None,
    chunk_fn: Callable[[Any, Any, Any, ScoreFn], Any] | None = None,
    result_fn: Callable[[Any, Any], Any] | None = None,
    condition: Any = None,
) -> Run:
    """Sample from the host.

    Args:
      sampler: of ``sampling.get_pc_sampler``.
      keys: (B,) one key per image.
      score_fn: score function.
      chunk: most steps between two reports, of at most ``table.CHUNK`` rows; any value runs the same program.
      pace: seconds between two reports, at which signals are handled too; the number of steps between them adapts,
        beginning with one. None: always ``chunk`` steps.
      progress: called with (steps done, total steps).
      trajectory_every: keep x_mean every this many steps; 0 keeps none.
      init_fn: (sampler, keys[, condition]) -> carry, compiled; one device by default.
      chunk_fn: (sampler, carry, rows, score_fn) -> carry, compiled; one device by default.
      result_fn: (sampler, carry) -> images; one device by default.
      condition: what is known of the images, of ``controllable_generation``.

    Returns:
      The images.

    Raises:
      SamplingDiverged: a sample is NaN or infinite; names the image, the step and its time.
      PdsError: the score function returns another shape.
    """
    if not (is_number(trajectory_every) and int(trajectory_every) == trajectory_every >= 0):
        raise PdsError(f"trajectory_every={trajectory_every!r}: use a whole number of at least 0")
    if 0 in getattr(keys, "shape", ()):
        raise PdsError("no keys were given; give one per image, see pds_jax.image_keys")
    init_fn, chunk_fn, score_fn = init_fn or _init, chunk_fn or _run_chunk, as_pytree(score_fn)
    ends = sampler.table.ends
    each = int(np.max(np.diff(ends, prepend=0)))
    total, done, longest = len(ends), 0, max(min(chunk, CHUNK // each), 1)
    length = longest if pace is None else 1
    trajectory: list[tuple[int, float, np.ndarray]] = []
    with generator():
        carry = init_fn(sampler, keys, *([] if condition is None else [condition]))
        while done < total:
            target, begun = min(done + length, total), time.perf_counter()
            if trajectory_every:
                target = min(target, (done // trajectory_every + 1) * trajectory_every)
            rows = int(ends[target - 1])
            carry = _advance(sampler, carry, rows - (int(ends[done - 1]) if done else 0), score_fn, chunk_fn)
            check_finite(sampler, carry, rows)
            if pace is not None:
                rate = (target - done) / max(time.perf_counter() - begun, 1e-9)
                length = max(min(int(rate * pace), longest), 1)
            done = target
            if progress is not None:
                progress(done, total)
            if trajectory_every and done % trajectory_every == 0:
                trajectory.append((done, float(sampler.times[done - 1]), np.asarray(carry.x_mean)))
        images = result_fn(sampler, carry) if result_fn is not None else sampler.result(carry)
    return Run(images, carry.row if sampler.nfe is None else int(sampler.nfe), trajectory)


def _advance(sampler: Any, carry: Any, rows: int, score_fn: ScoreFn, chunk_fn: Any) -> Any:
    """Advance by `rows` rows, in calls of at most CHUNK."""
    while rows > 0:
        carry = chunk_fn(sampler, carry, jnp.int32(min(rows, CHUNK)), score_fn)
        rows -= CHUNK
    return carry


def check_finite(sampler: Any, carry: Any, done: int) -> None:
    """Stop a run in which an image is no longer finite after `done` rows.

    Raises:
      SamplingDiverged: names the image, the step and its time.
    """
    finite = np.asarray(carry.finite).reshape(-1)
    if np.all(finite >= done):
        return
    image, table = int(np.argmin(finite)), sampler.table
    row = max(int(finite[image]), 0)
    raise SamplingDiverged(
        f"image {image} of {finite.size} became NaN or infinite at step {table.rows.iteration[row] - 1} of "
        f"{len(table.ends)}, t={table.rows.t[row]:.5g}: either the score function returned it, or the steps are too "
        "large for this M (use a larger alpha, more steps or a smaller snr)"
    )


@jax.jit
def _init(sampler: Any, keys: Key, condition: Any = None) -> Any:
    return sampler.init(keys, condition)


@jax.jit
def _run_chunk(sampler: Any, carry: Any, rows: Array, score_fn: ScoreFn) -> Any:
    return sampler.run_chunk(carry, rows, score_fn)
