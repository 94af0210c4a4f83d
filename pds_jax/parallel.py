"""Data parallelism over devices and processes; no other module handles devices.

Data parallelism by ``jax.pmap``: every device runs the same program on its slice. Training averages gradients over
all devices of all processes; sampling in norm mode "sample" never communicates.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
import platform
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pds_jax import sampling, statistics
from pds_jax.correctors import NORMS
from pds_jax.keys import generator, typed
from pds_jax.processes import gather, process_share
from pds_jax.scores import as_pytree
from pds_jax.types import Array, Key, PdsError, ScoreFn

AXIS = "batch"


def devices() -> list[str]:
    """Names of this process's devices, for manifests."""
    return [f"{device.platform}:{device.device_kind}" for device in jax.local_devices()]


def hardware() -> dict[str, str]:
    """Devices, architecture and versions, for tables; not the machine's name."""
    device = jax.local_devices()[0]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    kind = f"{cores} CPU cores" if device.platform == "cpu" else f"{jax.local_device_count()} {device.device_kind}"
    versions = {"jax": jax.__version__, "python": platform.python_version()}
    return {"devices": kind, "architecture": platform.machine(), **versions}


def replicate(tree: Any, count: int | None = None) -> Any:
    """Give each leaf a leading axis with one copy for each local device, on the host.

    Args:
      tree: arrays.
      count: number of devices D; None for all local ones.

    Returns:
      The tree with leaves (D, ...).
    """
    copies = (count or jax.local_device_count(),)
    return jax.tree.map(lambda leaf: np.broadcast_to(np.asarray(leaf), copies + np.shape(leaf)), tree)


def unreplicate(tree: Any) -> Any:
    """The first local device's copy of a tree with a leading axis of devices, on the host."""
    # Indexing would be a program of all devices, and on CPUs two of those may wait for each other for ever.

    def first(leaf: Any) -> np.ndarray:
        here = leaf.addressable_shards[0].data if isinstance(leaf, jax.Array) else leaf
        return np.asarray(here)[0]

    return jax.tree.map(first, tree)


def check_divides(batch_size: int, what: str) -> int:
    """Images a device gets of a batch; raises if the batch does not split over all devices of all processes.

    Args:
      batch_size: images of the batch.
      what: its name in the message.

    Returns:
      Images a device.

    Raises:
      PdsError: the number of devices does not divide the batch.
    """
    if batch_size % (count := jax.device_count()):
        raise PdsError(f"{what}={batch_size} does not split over {count} devices; use a multiple of {count}")
    return batch_size // count


def check_last_batch(count: int, size: int) -> None:
    """Raise if several processes make a batch together and cannot share the last one.

    Args:
      count: images of the run.
      size: images a batch.

    Raises:
      PdsError: there are several processes, and their devices do not divide the last batch.
    """
    if jax.process_count() > 1:
        check_divides(count % size or size, "norm=batch: images of the last batch")


def split(batch: np.ndarray) -> np.ndarray:
    """Give each local device its share: (n, B, …) to (D, n, B / D, …), image order kept."""
    (n, total), count = batch.shape[:2], jax.local_device_count()
    return np.moveaxis(batch.reshape(n, count, total // count, *batch.shape[2:]), 1, 0)


def local_slice(batch_size: int) -> slice:
    """The part of a batch's positions that this process holds."""
    share = batch_size // jax.process_count()
    return slice(jax.process_index() * share, (jax.process_index() + 1) * share)


def make_train_step(
    loss_fn: Callable[[Key, Any, Array], Array], optimizer: Any, **average: Any
) -> Callable[[Any, np.ndarray, Key], tuple[Any, Array]]:
    """Compile n optimiser steps over all devices into one call.

    Args:
      loss_fn: (keys (B,), params, batch) -> scalar mean over the batch.
      optimizer, **average: see ``train_state.apply_gradients``.

    Returns:
      step(placed state, batches (D, n, b, H, W, C), key) -> (state, losses (D, n)). Image i of step s draws from
      fold_in(fold_in(key, s), i), so the number of devices changes the order of sums only.
    """

    from pds_jax.train_state import apply_gradients  # sampling need not wait for optax

    def one(state: Any, batch: Array, key: Key) -> tuple[Any, Array]:
        keys = _keys_here(jax.random.fold_in(key, state.step), len(batch))
        loss, grads = jax.value_and_grad(loss_fn, argnums=1)(keys, state.params, batch)
        if jax.device_count() > 1:  # over one device a pmean is the identity, and costs time on a CPU
            loss, grads = jax.lax.pmean((loss, grads), AXIS)
        return apply_gradients(state, grads, optimizer, **average), loss

    def many(state: Any, batches: Array, key: Key) -> tuple[Any, Array]:
        if jax.default_backend() != "cpu":
            return jax.lax.scan(lambda carry, batch: one(carry, batch, key), state, batches)
        # XLA's CPU backend runs the gradients of convolutions inside a loop on a slow path (10 times slower here).
        losses = []
        for batch in batches:
            state, loss = one(state, batch, key)
            losses.append(loss)
        return state, jnp.stack(losses)

    return jax.pmap(many, axis_name=AXIS, in_axes=(0, 0, None))


def make_eval_step(
    loss_fn: Callable[[Key, Any, Array], Array],
) -> Callable[[Any, np.ndarray, Key], Array]:
    """Compile the loss of the averaged parameters over all devices.

    Args:
      loss_fn: as in :func:`make_train_step`.

    Returns:
      evaluate(placed state, batches (D, 1, b, H, W, C), key) -> losses (D,), all the same. Image i after s steps draws
      from fold_in(fold_in(key, s), i).
    """

    def mean(state: Any, batches: Array, key: Key) -> Array:
        keys = _keys_here(jax.random.fold_in(key, state.step), batches.shape[1])
        loss = loss_fn(keys, state.ema_params, batches[0])
        return jax.lax.pmean(loss, AXIS) if jax.device_count() > 1 else loss

    return jax.pmap(mean, axis_name=AXIS, in_axes=(0, 0, None))


def _keys_here(key: Key, size: int) -> Key:
    """The keys (size,) of this device's part of a batch: fold_in of an image's index in the whole batch."""
    index = jax.lax.axis_index(AXIS) * size + jnp.arange(size)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, index)


def place_state(state: Any) -> Any:
    """A copy of a training state on every device; for one on the host the step would be compiled once more."""
    return _mapped(_identity, jax.local_device_count())(replicate(state))


def all_device_mean(values: Array) -> Array:
    """Mean over the batches of all devices, (b,) from norms (b,), for the corrector's norm mode "batch"."""
    return jnp.broadcast_to(jax.lax.pmean(jnp.mean(values), AXIS), values.shape)


Finish = Callable[[Array], Any]


@dataclasses.dataclass(frozen=True)
class Deferred:
    """Arrays that are still on the devices; ``fetch()`` brings them to the host, from another thread too."""

    fetch: Callable[[], Any]


class OutOfMemory(PdsError):
    """A batch does not fit into a device's memory."""


@dataclasses.dataclass(frozen=True)
class _Job:
    """A batch laid out over the first `count` local devices, or over all devices of all processes (`everywhere`)."""

    sampler: Any
    keys: Key
    score_fn: ScoreFn
    condition: Any
    count: int
    size: int
    everywhere: bool
    own: bool  # whether the score's leaves have the axis of devices, as those of a condition have

    def gather(self, images: Any) -> np.ndarray:
        """(D, b, ...) of the devices to the (B, ...) that were asked for."""
        host = np.asarray(images)
        host = host.reshape(-1, *host.shape[2:])
        return np.concatenate(gather(host)) if self.everywhere else host[: self.size]

    def finished(self, images: Any, finish: Finish | None) -> Any:
        """The images on the host; or, with ``finish``, what it makes of them, on the way there."""
        if finish is None:
            return self.gather(images)
        outputs = _mapped(finish, self.count, self.everywhere)(images)
        if self.everywhere:  # processes exchange their parts now, in the order of their programs
            fetched = jax.tree.map(self.gather, outputs)
            return Deferred(lambda: fetched)
        return Deferred(lambda: jax.tree.map(self.gather, outputs))


@functools.lru_cache(maxsize=16)
def _programs(count: int, everywhere: bool, own: bool) -> tuple[Any, Any, Any]:
    """Parallel init, chunk and result; made once, compiled once."""
    over = functools.partial(jax.pmap, axis_name=AXIS, devices=_chosen(count, everywhere))
    init = over(lambda sampler, keys, condition: sampler.init(keys, condition), in_axes=(None, 0, 0))
    axes = (None, 0, None, 0 if own else None)
    chunk = over(lambda sampler, carry, rows, score_fn: sampler.run_chunk(carry, rows, score_fn), in_axes=axes)
    return init, chunk, over(lambda sampler, carry: sampler.result(carry), in_axes=(None, 0))


@functools.lru_cache(maxsize=16)
def _mapped(fn: Callable[[Any], Any], count: int, everywhere: bool = False) -> Callable[[Any], Any]:
    return jax.pmap(fn, AXIS, devices=_chosen(count, everywhere))


def _chosen(count: int, everywhere: bool) -> Any:
    return None if everywhere else jax.local_devices()[:count]


def _identity(tree: Any) -> Any:
    return tree


def _split_images(tree: Any, count: int) -> Any:
    """Leaves (B, …) to (count, ⌈B / count⌉, …), filled up with the last image."""

    def split_leaf(leaf: Any) -> Any:
        share = -(-leaf.shape[0] // count)
        rows = np.minimum(np.arange(count * share), leaf.shape[0] - 1)
        return leaf[rows].reshape(count, share, *leaf.shape[1:])

    return jax.tree.map(split_leaf, tree)


def _replicated(tree: Any, count: int) -> Any:
    """A copy of each leaf on each of the first `count` local devices; one that is there already stays."""
    mesh = jax.sharding.Mesh(np.array(jax.local_devices()[:count]), (AXIS,))
    return jax.device_put(tree, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))


def _place(sampler: Any, keys: Key, score_fn: ScoreFn, condition: Any = None) -> _Job:
    keys, score_fn = typed(keys), as_pytree(score_fn)
    size, count, everywhere = len(keys), min(jax.local_device_count(), len(keys)), False
    own = hasattr(score_fn, "lay_out")  # it knows something of every image, a class or a measurement
    if sampler.mean_fn is NORMS["batch"]:
        # Every image enters the mean norm, so there may be no padding.
        sampler = dataclasses.replace(sampler, mean_fn=all_device_mean)
        everywhere = jax.process_count() > 1
        if everywhere:
            if own:
                raise PdsError("norm=batch over several processes takes no condition; use norm=sample")
            check_divides(size, "norm=batch: images of a batch")
            here = local_slice(size)
            keys, condition = keys[here], jax.tree.map(lambda leaf: leaf[here], condition)
            size //= jax.process_count()
        count = math.gcd(size, jax.local_device_count())
    for leaf in jax.tree.leaves(condition):
        if len(leaf) != size:
            raise PdsError(f"the condition holds {len(leaf)} images, but there are {size} keys; make as many of both")
    split_images = functools.partial(_split_images, count=count)
    if own:
        placed = score_fn.lay_out(lambda tree: replicate(tree, count), split_images)  # type: ignore[attr-defined]
        score_fn = _mapped(_identity, count)(placed)
    elif not everywhere:
        score_fn = _replicated(score_fn, count)
    return _Job(sampler, split_images(keys), score_fn, split_images(condition), count, size, everywhere, own)


@contextlib.contextmanager
def _sampling(count: int) -> Iterator[None]:
    """Draw with the generator that is named; raise :class:`OutOfMemory` when a device runs out of memory."""
    try:
        with generator():
            yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise OutOfMemory(
            f"{count} images at once do not fit into the memory of {jax.local_device_count()} {jax.default_backend()} "
            f"devices: use a smaller --batch_size, or --max_batch=auto, which finds one ({error})"
        ) from error


def sample(
    sampler: Any,
    keys: Key,
    score_fn: ScoreFn,
    *,
    progress: Callable[[int, int], None] | None = None,
    trajectory_every: int = 0,
    condition: Any = None,
    finish: Finish | None = None,
    **options: Any,
) -> sampling.Run:
    """Sample one image per key on all local devices.

    A batch that is not divisible is padded with its last key, and the padding is removed.

    Args:
      sampler, keys, score_fn, progress, trajectory_every, condition, **options: see ``runner.run``.
      finish: images (b, H, W, C) -> arrays that begin with b, a pure function that the devices compute in the end; make
        it once, since each new one is compiled.

    Returns:
      Images (B, H, W, C), NFE and trajectory, on the host. With ``finish`` x is a :class:`Deferred` of what it returns.

    Raises:
      OutOfMemory: the batch is too large for the devices.
      PdsError: no keys, a condition of other images than the keys, or as ``runner.run``.
    """
    if len(keys) == 0:
        raise PdsError("no images were asked for: the keys are empty")
    with _sampling(len(keys)):
        job = _place(sampler, keys, score_fn, condition)
        init, chunk, result = _programs(job.count, job.everywhere, job.own)
        done = sampling.run(
            job.sampler,
            job.keys,
            job.score_fn,
            init_fn=lambda sampler, keys: init(sampler, keys, job.condition),
            chunk_fn=chunk,
            result_fn=None if condition is None else result,
            progress=progress,
            trajectory_every=trajectory_every,
            # Processes that wait for each other must make the same chunks.
            pace=None if job.everywhere else sampling.PACE,
            **options,
        )
        trajectory = [(step, t, job.gather(images)) for step, t, images in done.trajectory]
        nfe = done.nfe if np.ndim(done.nfe) == 0 else np.asarray(done.nfe).reshape(-1)[: job.size]
        return sampling.Run(job.finished(done.x, finish), nfe, trajectory)


def warm_up(sampler: Any, keys: Key, score_fn: ScoreFn, condition: Any = None) -> None:
    """Compile what :func:`sample` with as many keys will run, by a chunk of no rows.

    Args:
      sampler, keys, score_fn, condition: see :func:`sample`.

    Raises:
      OutOfMemory: the batch is too large for the devices.
      PdsError: a condition of other images than the keys.
    """
    with _sampling(len(keys)):
        job = _place(sampler, keys, score_fn, condition)
        init, chunk, _ = _programs(job.count, job.everywhere, job.own)
        carry = init(job.sampler, job.keys, job.condition)
        jax.block_until_ready(chunk(job.sampler, carry, jnp.int32(0), job.score_fn))


@dataclasses.dataclass(frozen=True)
class Cost:
    """Expected cost of a batch.

    Attributes:
      step_seconds: seconds of one step, measured; None for an adaptive solver.
      device_bytes: bytes of one device for weights, state and temporaries, by the compiler's account; None if unknown.
      compile_seconds: seconds to compile what the batch runs, or to read it from the cache.
    """

    step_seconds: float | None
    device_bytes: int | None
    compile_seconds: float = 0.0


def cost(sampler: Any, keys: Key, score_fn: ScoreFn, condition: Any = None) -> Cost:
    """Time and memory of a batch, by one row of the program that :func:`warm_up` compiled.

    Args:
      sampler, keys, score_fn, condition: see :func:`sample`.

    Returns:
      The cost, without the time to compile.

    Raises:
      OutOfMemory: the batch is too large for the devices.
      PdsError: a condition of other images than the keys.
    """
    if sampler.nfe is None:
        return Cost(None, None)
    with _sampling(len(keys)):
        job = _place(sampler, keys, score_fn, condition)
        init, chunk, _ = _programs(job.count, job.everywhere, job.own)
        words = job.sampler, init(job.sampler, job.keys, job.condition), jnp.int32(1), job.score_fn
        jax.block_until_ready(words)
        seconds = math.inf
        for _ in range(2):  # the first row of a process is a slow one
            start = time.perf_counter()
            jax.block_until_ready(chunk(*words))
            seconds = min(seconds, time.perf_counter() - start)
            if seconds > 1 and not job.everywhere:  # processes that wait for each other must make as many rows
                break
        found = chunk.lower(*words).compile().memory_analysis()
    kinds = ("argument", "output", "temp")
    size = found and sum(getattr(found, f"{kind}_size_in_bytes") for kind in kinds) - found.alias_size_in_bytes
    return Cost(seconds * int(sampler.nfe) / sampler.steps, size and int(size))


def data_parallel(fn: Callable[[Any, Any], Any], shared: Any) -> Callable[[Any], Any]:
    """Let all local devices compute fn(shared, batch) -> outputs, both of which begin with the images.

    Args:
      fn: pure function; (shared, batch) -> outputs.
      shared: arrays that all images share, such as parameters; copied to every device once.

    Returns:
      batch -> outputs on the host. A batch that does not divide is filled up with its last image and cut again.
    """
    count = jax.local_device_count()
    program = jax.pmap(fn, AXIS, in_axes=(None, 0), devices=_chosen(count, False))
    placed = _replicated(shared, count)

    def run(batch: Any) -> Any:
        size = len(jax.tree.leaves(batch)[0])
        outputs = program(placed, _split_images(batch, count))
        return jax.tree.map(lambda leaf: np.asarray(leaf).reshape(-1, *leaf.shape[2:])[:size], outputs)

    return run


def data_parallel_everywhere(fn: Callable[[Any, Any], Any], shared: Any) -> Callable[[Any], Any]:
    """Like :func:`data_parallel`, over all devices of all processes, which must all call it with the same batch.

    Args:
      fn: see :func:`data_parallel`.
      shared: see :func:`data_parallel`.

    Returns:
      batch -> outputs of the whole batch, in every process; each computes an equal part.
    """
    here, (index, count) = data_parallel(fn, shared), process_share()
    if count == 1:
        return here

    def run(batch: Any) -> Any:
        size = len(jax.tree.leaves(batch)[0])
        share = -(-size // count)
        positions = np.minimum(np.arange(index * share, (index + 1) * share), size - 1)
        parts = gather(here(jax.tree.map(lambda leaf: leaf[positions], batch)))
        return jax.tree.map(lambda *rows: np.concatenate(rows)[:size], *parts)

    return run


@functools.lru_cache(maxsize=1)
def _sums_program() -> Callable[..., Any]:
    def sums(images: Array, weights: Array) -> statistics.Sums:
        return jax.lax.psum(statistics.accumulate(images, weights), AXIS)

    return jax.pmap(sums, AXIS)


def sums_fn(images: np.ndarray, weights: np.ndarray) -> statistics.Sums:
    """Sums of one block over all devices of all processes, for ``statistics.compute_statistics(sums_fn=...)``.

    Args:
      images: (B, H, W, C) float32 in [0, 1], the same in every process.
      weights: (B,) float32, 1 for an image and 0 for padding, the same in every process.

    Returns:
      The sums, on the host, the same in every process.
    """
    missing = -len(images) % jax.device_count()
    images, weights = (np.concatenate([a, np.zeros((missing, *a.shape[1:]), a.dtype)]) for a in (images, weights))
    here = local_slice(len(images))
    shaped = (a[here].reshape(jax.local_device_count(), -1, *a.shape[1:]) for a in (images, weights))
    return unreplicate(_sums_program()(*shaped))
