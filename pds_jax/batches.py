"""Sample many seeds in batches that fit into memory."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import logging

from pds_jax import parallel, sampling, scores
from pds_jax.correctors import NORMS
from pds_jax.data.arrays import from_unit
from pds_jax.io.images import to_uint8, to_uint8_on_device
from pds_jax.io.progress import Bar
from pds_jax.types import PdsError, ScoreFn

MAX_BATCH = 64

Decode = Callable[[Any], np.ndarray]
Saver = Callable[[Sequence[int], np.ndarray], None]
# Seeds -> (condition of the sampler or None, score function), for those images.
Given = Callable[[Sequence[int]], tuple[Any, ScoreFn]]
OnCost = Callable[[int, int, parallel.Cost], None]  # (images at once, batches still to make, what one costs)


@dataclasses.dataclass
class Batches:
    """The batches of a run; call it with the seeds still to do. See ``assembly.draw`` and ``parallel.sample``.

    Attributes:
      steps: of the sampler; 0 if it decides as it goes.
      size: images at once.
      compile_seconds: spent on compiling.
      aside_seconds: spent on compiling and on measuring the cost.
      evaluations: of the network, of one score of the last batch.
    """

    sampler: Any
    steps: int
    given: Given
    size: int
    adapt: bool
    on_cost: OnCost | None
    finish: parallel.Finish | None
    bar: Bar
    trajectory_every: int = 0
    compile_seconds: float = 0.0
    aside_seconds: float = 0.0
    evaluations: int = 1
    _warm: int = 0

    @property
    def _together(self) -> bool:
        return getattr(self.sampler, "mean_fn", None) is NORMS["batch"]

    def __call__(self, todo: Sequence[int]) -> tuple[list[int], sampling.Run]:
        """Make the next batch of the seeds to do; which seeds, and the run."""
        offset = self.bar.done
        while True:
            batch = list(todo[: self.size])
            # One program serves the last batch too; but copies would enter a mean over the batch.
            filled = batch + [batch[-1]] * (0 if self._together else self.size - len(batch))
            keys = sampling.image_keys(filled)
            try:
                condition, score_fn = self.given(filled)
                self.evaluations = scores.evaluations(score_fn)
                if self._warm != len(filled):
                    self._prepare(keys, score_fn, condition, -(-len(todo) // self.size))
                run = parallel.sample(
                    self.sampler,
                    keys,
                    score_fn,
                    progress=lambda done, _: self.bar.reach(offset + done),
                    trajectory_every=self.trajectory_every,
                    condition=condition,
                    finish=self.finish,
                )
                self._check_solved(filled, run)
                return batch, run
            except parallel.OutOfMemory:
                if not self.adapt or self.size == 1:
                    raise
                self.size //= 2
                logging.warning("out of memory; continuing with %d images at once", self.size)

    @staticmethod
    def _check_solved(seeds: Sequence[int], run: sampling.Run) -> None:
        """Raise if the adaptive solver did not finish an image."""
        solved = np.broadcast_to(np.asarray(run.nfe) >= 0, len(seeds))
        if not solved.all():
            raise sampling.SamplingDiverged(
                f"the adaptive solver gave up on the image of seed {seeds[int(np.argmin(solved))]}: the flow of this "
                "network is too steep for it; use --method=pc, e.g. --predictor=dpmpp_2m --corrector=none"
            )

    def _prepare(self, keys: Any, score_fn: ScoreFn, condition: Any, count: int) -> None:
        """Compile before timing starts, and report the expected cost."""
        start = time.perf_counter()
        parallel.warm_up(self.sampler, keys, score_fn, condition)
        compiling = time.perf_counter() - start
        self.compile_seconds += compiling
        if self.on_cost is not None:
            cost = parallel.cost(self.sampler, keys, score_fn, condition)
            self.on_cost(len(keys), count, dataclasses.replace(cost, compile_seconds=compiling))
        self.aside_seconds += time.perf_counter() - start
        self._warm = len(keys)
        self.bar.start(self.bar.done + max(self.steps, 1) * count)


class Saving:
    """Fetches and saves one batch of bytes in another thread, while the devices make the next."""

    def __init__(self, save: Saver | None, decode: Decode | None = None):
        """``save`` is called with seeds and images (n, H, W, C); without it nothing may be added.

        ``decode`` makes images in [0, 1] of what is added, which then lies on the host, made without a finish.
        """
        self._save, self._decode = save, decode
        self._pool = concurrent.futures.ThreadPoolExecutor(1)
        self._last: concurrent.futures.Future[None] | None = None

    def add(self, images: Any, batch: Sequence[int]) -> None:
        """Save a batch made with :func:`finish_of`; waits for the one before, and raises what that did."""
        if self._last is not None:
            self._last.result()
        self._last = self._pool.submit(self._fetch_and_save, images, batch)

    def _fetch_and_save(self, images: Any, batch: Sequence[int]) -> None:
        assert self._save is not None
        if self._decode is not None:
            self._save(batch, to_uint8(self._decode(images[: len(batch)])))
            return
        pixels, finite = (part[: len(batch)] for part in images.fetch())
        if not finite.all():
            seed = batch[int(np.argmin(finite))]
            raise PdsError(f"the image of seed {seed} holds NaN or infinity and cannot be written")
        self._save(batch, pixels)

    def __enter__(self) -> Saving:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._pool.shutdown()
        if kind is None and self._last is not None:
            self._last.result()


@functools.cache
def finish_of(unscale: Callable[[Any], Any], value_range: tuple[float, float] | None = None) -> parallel.Finish:
    """Images in the model's range to bytes, or to float32 in a declared range, and whether they are finite."""
    if value_range is None:
        return lambda x: to_uint8_on_device(unscale(x))

    def floats(x: Any) -> tuple[Any, Any]:
        finite = jnp.all(jnp.isfinite(x), axis=(1, 2, 3))
        return from_unit(jnp.clip(unscale(x), 0.0, 1.0), value_range), finite

    return floats
