"""Devices and processes: the only file that knows there may be several.

Data parallelism by ``jax.pmap``: every device runs the same program on its slice. Training averages gradients over
all devices of all processes; sampling in norm mode "sample" never communicates, for an image depends on its own key
alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import os
import platform
import sys
import time
import traceback
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from pds_jax import sampling, statistics
from pds_jax.correctors import NORMS
from pds_jax.io.files import Stopped
from pds_jax.types import Array, Key, PdsError, ScoreFn

if TYPE_CHECKING:  # sampling need not wait for optax
    import optax

    from pds_jax.train_state import TrainState

AXIS = "batch"
# Processes that sample their shares end hours apart; the coordinator waits for the last.
_WAIT_AT_THE_END = 14 * 24 * 3600


# --- processes -------------------------------------------------------------------------------------------------


def initialize_distributed(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    environment: Mapping[str, str] = os.environ,
) -> bool:
    """Join the other processes of a run; must come before any array exists.

    Explicit arguments win; else PDS_JAX_COORDINATOR, PDS_JAX_NUM_PROCESSES and PDS_JAX_PROCESS_ID; else whatever
    ``jax.distributed`` finds by itself (SLURM, TPU pods, Open MPI) if PDS_JAX_DISTRIBUTED=1.

    Args:
      coordinator: "host:port" of process 0.
      num_processes: how many processes.
      process_id: which this one is.
      environment: where the variables are looked up.

    Returns:
      Whether there is more than this process to talk to.

    Raises:
      PdsError: only some of the three are given, or they are no numbers.
    """
    given = [
        coordinator or environment.get("PDS_JAX_COORDINATOR"),
        num_processes if num_processes is not None else environment.get("PDS_JAX_NUM_PROCESSES"),
        process_id if process_id is not None else environment.get("PDS_JAX_PROCESS_ID"),
    ]
    if all(value is None for value in given):
        if environment.get("PDS_JAX_DISTRIBUTED") != "1":
            return False
        jax.distributed.initialize(shutdown_timeout_seconds=_WAIT_AT_THE_END)
        return jax.process_count() > 1
    if any(value is None for value in given):
        raise PdsError("several processes need all of coordinator (host:port), num_processes and process_id")
    try:
        count, index = int(str(given[1])), int(str(given[2]))
    except ValueError as error:
        raise PdsError(f"num_processes={given[1]!r} and process_id={given[2]!r} must be whole numbers") from error
    if not 0 <= index < count:
        raise PdsError(f"process_id={index} must be from 0 to num_processes - 1 = {count - 1}")
    jax.distributed.initialize(str(given[0]), count, index, shutdown_timeout_seconds=_WAIT_AT_THE_END)
    return count > 1


def is_first_process() -> bool:
    """Whether this process is the one that writes files that all share."""
    return jax.process_index() == 0


def process_share() -> tuple[int, int]:
    """(index, count): this process is the index-th of count."""
    return jax.process_index(), jax.process_count()


def gather(tree: Any) -> list[Any]:
    """Every process's tree of host arrays, in the order of the processes, bit for bit; all must call it.

    Args:
      tree: arrays of any dtype, of the same structure, shapes and dtypes in every process.

    Returns:
      One tree a process; ``[tree]`` where there is one.
    """
    if jax.process_count() == 1:
        return [tree]
    leaves, structure = jax.tree.flatten(jax.tree.map(np.asarray, tree))
    # As bytes, since float64 would become float32 on the way.
    rows = [multihost_utils.process_allgather(np.frombuffer(leaf.tobytes(), np.uint8)) for leaf in leaves]

    def of_process(index: int) -> Any:
        parts = [
            np.frombuffer(np.asarray(row[index]).tobytes(), leaf.dtype).reshape(leaf.shape)
            for row, leaf in zip(rows, leaves, strict=True)
        ]
        return jax.tree.unflatten(structure, parts)

    return [of_process(index) for index in range(jax.process_count())]


@contextlib.contextmanager
def ending_at_once() -> Iterator[None]:
    """End this process at once when the block fails, if it is one of several.

    It would wait for the others at its end, and they for it in their next mean over devices; its silence stops them.
    """
    try:
        yield
    except BaseException as error:
        if not jax.distributed.is_initialized():
            raise
        stopped = isinstance(error, Stopped)
        print("stopped by SIGTERM" if stopped else f"pds_jax: {type(error).__name__}: {error}", file=sys.stderr)
        if not isinstance(error, PdsError | FloatingPointError | Stopped):
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0 if stopped else 2)


def wait_for_all(name: str) -> None:
    """Go on when every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def any_process(flag: bool) -> bool:
    """Whether the flag is up in any process; all must call it."""
    return any(bool(found) for found in gather(np.asarray(flag)))


def of_first(find: Callable[[], Any]) -> Any:
    """What the first process finds, in every process; all must call it.

    Args:
      find: called in the first process alone; gives what JSON can hold.

    Returns:
      What it gave, so that all processes go the same way.

    Raises:
      PdsError: what the first process raised, in every process.
    """
    if jax.process_count() == 1:
        return find()
    found: dict[str, Any] = {}
    if is_first_process():
        try:
            found["value"] = find()
        except PdsError as error:
            found["error"] = str(error)
    found = _gather_json(found)[0]
    if "error" in found:
        raise PdsError(found["error"])
    return found["value"]


def in_all(check: Callable[[], object]) -> None:
    """Check something in every process; all must call it, and ``check`` must not talk to the others.

    Raises:
      PdsError: this process's or, where it has none, that of another one.
    """
    own = None
    try:
        check()
    except PdsError as error:
        own = error
    errors = [message for message in _gather_json(str(own or "")) if message]
    if own is not None:
        raise own
    if errors:
        raise PdsError(errors[0])


def _gather_json(value: Any) -> list[Any]:
    """Every process's value, which JSON can hold."""
    text = json.dumps(value).encode()
    size = max(int(length) for length in gather(np.int64(len(text))))
    return [json.loads(row.tobytes()) for row in gather(np.frombuffer(text.ljust(size), np.uint8))]


def devices() -> list[str]:
    """Names of this process's devices, for manifests."""
    return [f"{device.platform}:{device.device_kind}" for device in jax.local_devices()]


def hardware() -> dict[str, str]:
    """What this runs on, for tables: devices, architecture, versions; not the machine's name."""
    device = jax.local_devices()[0]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    kind = f"{cores} CPU cores" if device.platform == "cpu" else f"{jax.local_device_count()} {device.device_kind}"
    versions = {"jax": jax.__version__, "python": platform.python_version()}
    return {"devices": kind, "architecture": platform.machine(), **versions}


# --- placing trees and batches ---------------------------------------------------------------------------------


def replicate(tree: Any, count: int | None = None) -> Any:
    """Give each leaf a leading axis with one copy a local device; typed keys are not leaves here.

    Args:
      tree: arrays.
      count: how many devices; by default all local ones.

    Returns:
      The tree, on the host until a compiled function takes it.
    """
    copies = count or jax.local_device_count()
    return jax.tree.map(lambda leaf: np.broadcast_to(np.asarray(leaf)[None], (copies, *np.shape(leaf))), tree)


def unreplicate(tree: Any) -> Any:
    """The first local device's copy of a tree with a leading axis of devices, on the host.

    Read from that device alone. Indexing would be a program of all devices, and one of those must not run beside
    another, such as the next step of a training: on CPUs they may wait for each other for ever.
    """

    def first(leaf: Any) -> np.ndarray:
        here = leaf.addressable_shards[0].data if isinstance(leaf, jax.Array) else leaf
        return np.asarray(here)[0]

    return jax.tree.map(first, tree)


def check_divides(batch_size: int, what: str) -> int:
    """Images a device gets of a batch over all devices of all processes.

    Args:
      batch_size: images of the whole batch.
      what: the field's name, for the message.

    Raises:
      PdsError: the batch does not split evenly.
    """
    count = jax.device_count()
    if batch_size % count:
        raise PdsError(f"{what}={batch_size} does not split over {count} devices; use a multiple of {count}")
    return batch_size // count


def split(batch: np.ndarray) -> np.ndarray:
    """Give each local device its share: (n, B, …) to (D, n, B / D, …), image order kept."""
    n, total = batch.shape[:2]
    count = jax.local_device_count()
    return np.moveaxis(batch.reshape(n, count, total // count, *batch.shape[2:]), 1, 0)


def local_slice(batch_size: int) -> slice:
    """The part of a batch's positions that this process holds."""
    share = batch_size // jax.process_count()
    return slice(jax.process_index() * share, (jax.process_index() + 1) * share)


# --- training --------------------------------------------------------------------------------------------------


def make_train_step(
    loss_fn: Callable[[Key, Any, Array], Array],
    optimizer: optax.GradientTransformation,
    *,
    ema_rate: float,
    ema_warmup: bool,
) -> Callable[[TrainState, np.ndarray, Key], tuple[TrainState, Array]]:
    """Compile n optimiser steps over all devices into one call.

    Args:
      loss_fn: (keys (B,), params, batch) -> scalar mean over the batch.
      optimizer: see ``train_state.get_optimizer``.
      ema_rate: see ``train_state.ema_decay``.
      ema_warmup: likewise.

    Returns:
      step(placed state, batches (D, n, b, H, W, C), key) -> (state, losses (D, n)). Image i of step s draws from
      fold_in(fold_in(key, s), i), so the number of devices changes nothing but the order of sums.
    """

    from pds_jax.train_state import apply_gradients

    def one(state: TrainState, batch: Array, key: Key) -> tuple[TrainState, Array]:
        size = batch.shape[0]
        index = jax.lax.axis_index(AXIS) * size + jnp.arange(size)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, state.step), index)
        loss, grads = jax.value_and_grad(loss_fn, argnums=1)(keys, state.params, batch)
        loss, grads = jax.lax.pmean((loss, grads), AXIS)
        return apply_gradients(state, grads, optimizer, ema_rate=ema_rate, ema_warmup=ema_warmup), loss

    def many(state: TrainState, batches: Array, key: Key) -> tuple[TrainState, Array]:
        if jax.default_backend() != "cpu":
            return jax.lax.scan(lambda carry, batch: one(carry, batch, key), state, batches)
        # XLA's CPU backend runs the gradients of convolutions inside a loop on a slow path (10 times slower here).
        losses = []
        for batch in batches:
            state, loss = one(state, batch, key)
            losses.append(loss)
        return state, jnp.stack(losses)

    return jax.pmap(many, axis_name=AXIS, in_axes=(0, 0, None))


def place_state(state: TrainState) -> TrainState:
    """A copy of a training state on every device; for one on the host the step would be compiled once more."""
    return jax.pmap(lambda tree: tree, axis_name=AXIS)(replicate(state))


# --- sampling --------------------------------------------------------------------------------------------------


def all_device_mean(values: Array) -> Array:
    """Mean over the batches of all devices, for the Langevin corrector's norm mode "batch".

    Args:
      values: (b,) norms of this device's images.

    Returns:
      (b,) the mean norm of all images.
    """
    return jnp.broadcast_to(jax.lax.pmean(jnp.mean(values), AXIS), values.shape)


@functools.lru_cache(maxsize=8)
def _programs(count: int, everywhere: bool = False) -> tuple[Any, Any, Any, Any]:
    """Parallel init, chunk, whole run and result on the first ``count`` local devices; made once, compiled once.

    ``everywhere``: on all devices of all processes instead, which then exchange their norms.
    """
    chosen = None if everywhere else jax.local_devices()[:count]
    init = jax.pmap(
        lambda sampler, keys, condition: sampler.init(keys, condition), AXIS, in_axes=(None, 0, 0), devices=chosen
    )
    chunk = jax.pmap(
        lambda sampler, carry, steps, score_fn: sampler.run_chunk(carry, steps, score_fn),
        AXIS,
        in_axes=(None, 0, None, 0),
        devices=chosen,
    )
    whole = jax.pmap(
        lambda sampler, keys, score_fn: sampler(keys, score_fn), AXIS, in_axes=(None, 0, 0), devices=chosen
    )
    result = jax.pmap(lambda sampler, carry: sampler.result(carry), AXIS, in_axes=(None, 0), devices=chosen)
    return init, chunk, whole, result


@dataclasses.dataclass(frozen=True)
class _Placed:
    """A sampling job laid out over devices."""

    sampler: Any
    keys: Key
    score_fn: ScoreFn
    condition: Any
    count: int
    size: int
    everywhere: bool = False

    @property
    def programs(self) -> tuple[Any, Any, Any, Any]:
        return _programs(self.count, self.everywhere)

    def gather(self, images: Any) -> np.ndarray:
        """(D, b, H, W, C) of the devices to the (B, H, W, C) that were asked for."""
        host = np.asarray(images)
        host = host.reshape(-1, *host.shape[2:])
        return np.concatenate(gather(host)) if self.everywhere else host[: self.size]

    def finished(self, images: Any, finish: Finish | None) -> Any:
        """The images on the host; or, with ``finish``, what it makes of them, on the way there."""
        if finish is None:
            return self.gather(images)
        outputs = _finish_program(finish, self.count, self.everywhere)(images)
        if self.everywhere:  # processes exchange their parts now, in the order of their programs
            fetched = jax.tree.map(self.gather, outputs)
            return Later(lambda: fetched)
        return Later(lambda: jax.tree.map(self.gather, outputs))


Finish = Callable[[Array], Any]


@dataclasses.dataclass(frozen=True)
class Later:
    """Arrays that are on the devices still.

    Attributes:
      fetch: () -> the arrays on the host; may be called from another thread, while the devices go on.
    """

    fetch: Callable[[], Any]


@functools.lru_cache(maxsize=8)
def _finish_program(finish: Finish, count: int, everywhere: bool) -> Callable[[Any], Any]:
    return jax.pmap(finish, AXIS, devices=None if everywhere else jax.local_devices()[:count])


def _split_images(tree: Any, count: int) -> Any:
    """Leaves (B, …) to (count, ⌈B / count⌉, …), filled up with the last image."""

    def split_leaf(leaf: Any) -> Any:
        share = -(-leaf.shape[0] // count)
        missing = count * share - leaf.shape[0]
        padded = jnp.concatenate([leaf, jnp.broadcast_to(leaf[-1:], (missing, *leaf.shape[1:]))])
        return padded.reshape(count, share, *leaf.shape[1:])

    return jax.tree.map(split_leaf, tree)


def _place(sampler: Any, keys: Key, score_fn: ScoreFn, condition: Any = None) -> _Placed:
    if condition is not None and not hasattr(sampler, "run_chunk"):
        raise PdsError("an adaptive ODE sampler takes no condition; use predictors and correctors (sampling.method=pc)")
    size, count = len(keys), min(jax.local_device_count(), len(keys))
    everywhere = False
    if getattr(sampler, "mean_fn", None) is NORMS["batch"]:
        # Every image enters the mean norm, so there may be no padding.
        sampler = dataclasses.replace(sampler, mean_fn=all_device_mean)
        everywhere = jax.process_count() > 1
        if everywhere:
            check_divides(size, "norm=batch: images of a batch")
            here = local_slice(size)
            keys, condition = keys[here], jax.tree.map(lambda leaf: leaf[here], condition)
            size //= jax.process_count()
            if hasattr(score_fn, "lay_out"):
                raise PdsError("norm=batch over several processes takes no condition; use norm=sample")
        count = math.gcd(size, jax.local_device_count())
    if any(len(leaf) != size for leaf in jax.tree.leaves(condition)):
        raise PdsError(f"the condition is not of {size} images: every leaf of it must begin with that number")
    split_images = functools.partial(_split_images, count=count)
    copy = functools.partial(_copies, count=count, everywhere=everywhere)
    # A score that knows something of every image (a class, a measurement) says which of its leaves are whose.
    if hasattr(score_fn, "lay_out"):
        placed = score_fn.lay_out(copy, lambda tree: _on_devices(count, everywhere)(split_images(tree)))
    else:
        placed = copy(score_fn)
    return _Placed(sampler, split_images(keys), placed, split_images(condition), count, size, everywhere)


@functools.lru_cache(maxsize=8)
def _on_devices(count: int, everywhere: bool) -> Callable[[Any], Any]:
    """Put a tree with a leading axis of devices there once, or every chunk of steps would copy it again."""
    place = jax.pmap(lambda tree: tree, AXIS, devices=None if everywhere else jax.local_devices()[:count])
    return lambda tree: place(tree) if jax.tree.leaves(tree) else tree  # a score function may hold no array


# (id of an array, devices, everywhere) -> (the array, its copies), for as long as the array lives.
_KEPT: dict[tuple[int, int, bool], tuple[Callable[[], Any], Any]] = {}


def _copies(tree: Any, *, count: int, everywhere: bool) -> Any:
    """A copy of each leaf on each device. A ``jax.Array`` never changes: it is copied once, not for every batch."""
    leaves, structure = jax.tree.flatten(tree)
    found = [_kept(leaf, count, everywhere) for leaf in leaves]
    missing = [number for number, copies in enumerate(found) if copies is None]
    made = _on_devices(count, everywhere)(replicate([leaves[number] for number in missing], count))
    for number, copies in zip(missing, made, strict=True):
        found[number] = copies
        _keep(leaves[number], count, everywhere, copies)
    return jax.tree.unflatten(structure, found)


def _kept(leaf: Any, count: int, everywhere: bool) -> Any:
    of, copies = _KEPT.get((id(leaf), count, everywhere), (lambda: None, None))
    return copies if of() is leaf else None


def _keep(leaf: Any, count: int, everywhere: bool, copies: Any) -> None:
    if isinstance(leaf, jax.Array):  # NumPy's may change
        key = (id(leaf), count, everywhere)
        _KEPT[key] = weakref.ref(leaf, lambda _: _KEPT.pop(key, None)), copies


class OutOfMemory(PdsError):
    """A batch does not fit into a device's memory."""


@contextlib.contextmanager
def _naming_lack_of_memory(count: int) -> Iterator[None]:
    try:
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
    chunk: int = sampling.CHUNK,
    progress: Callable[[int, int], None] | None = None,
    trajectory_every: int = 0,
    condition: Any = None,
    finish: Finish | None = None,
) -> sampling.Run:
    """Sample one image a key on all local devices.

    A batch that does not divide is padded with its last key and cut again. A second call with another alpha, snr,
    number of steps, seed or score parameters compiles nothing.

    Args:
      sampler: of ``sampling.get_pc_sampler`` or ``get_ode_sampler``.
      keys: (B,) typed keys.
      score_fn: score function, a pytree.
      chunk: most steps between two signs of life.
      progress: called with (steps done, steps in all).
      trajectory_every: keep x_mean every so many steps; 0 keeps none.
      condition: what is known of the images, of ``controllable_generation``; every leaf begins with B.
      finish: images (b, H, W, C) -> arrays that begin with b, a pure function that the devices compute in the end; make
        it once, since each new one is compiled.

    Returns:
      Images (B, H, W, C), NFE and trajectory, on the host. With ``finish`` x is a :class:`Later` of what it returns.

    Raises:
      SamplingDiverged: an image is NaN or infinite.
      OutOfMemory: the batch is too large for the devices.
      PdsError: no keys, or a condition of other images or with an adaptive solver.
    """
    if len(keys) == 0:
        raise PdsError("no images were asked for: the keys are empty")
    with _naming_lack_of_memory(len(keys)):
        job = _place(sampler, keys, score_fn, condition)
        return _run(job, finish, chunk=chunk, progress=progress, trajectory_every=trajectory_every)


def _run(job: _Placed, finish: Finish | None, **options: Any) -> sampling.Run:
    sampler, (init, run_chunk, whole, result) = job.sampler, job.programs
    if not hasattr(sampler, "run_chunk"):
        images, nfe = whole(job.sampler, job.keys, job.score_fn)
        return sampling.Run(job.finished(images, finish), np.asarray(nfe).reshape(-1)[: job.size], [])
    done = sampling.run(
        sampler,
        job.keys,
        job.score_fn,
        init_fn=lambda sampler, keys: init(sampler, keys, job.condition),
        chunk_fn=run_chunk,
        result_fn=None if job.condition is None else result,
        # Processes that wait for each other must make the same chunks.
        pace=None if job.everywhere else sampling.PACE,
        **options,
    )
    trajectory = [(step, t, job.gather(images)) for step, t, images in done.trajectory]
    return sampling.Run(job.finished(done.x, finish), done.nfe, trajectory)


def warm_up(sampler: Any, keys: Key, score_fn: ScoreFn, condition: Any = None) -> None:
    """Compile what :func:`sample` with as many keys will run, by a chunk of no steps."""
    with _naming_lack_of_memory(len(keys)):
        job = _place(sampler, keys, score_fn, condition)
        init, run_chunk, whole, _ = job.programs
        if hasattr(sampler, "run_chunk"):
            carry = init(job.sampler, job.keys, job.condition)
            jax.block_until_ready(run_chunk(job.sampler, carry, jnp.int32(0), job.score_fn))
            return
        # An adaptive solver has no empty chunk; from T to nearly T it needs a step or two.
        dtype = np.asarray(job.sampler.eps).dtype
        almost = dataclasses.replace(job.sampler, eps=np.asarray(0.99 * job.sampler.sde.T, dtype))
        jax.block_until_ready(whole(almost, job.keys, job.score_fn))


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a batch is expected to cost.

    Attributes:
      step_seconds: of one step, measured; None for an adaptive solver.
      device_bytes: memory of one device for weights, state and temporaries, by the compiler's account; None where it
        gives none.
      compile_seconds: of compiling what the batch runs, or of reading it from the cache.
    """

    step_seconds: float | None
    device_bytes: int | None
    compile_seconds: float = 0.0


def cost(sampler: Any, keys: Key, score_fn: ScoreFn, condition: Any = None) -> Cost:
    """Time and memory of a batch, by one step of the program that :func:`warm_up` compiled."""
    if not hasattr(sampler, "run_chunk"):
        return Cost(None, None)
    with _naming_lack_of_memory(len(keys)):
        job = _place(sampler, keys, score_fn, condition)
        init, run_chunk, _, _ = job.programs
        words = job.sampler, init(job.sampler, job.keys, job.condition), jnp.int32(1), job.score_fn
        jax.block_until_ready(words)
        seconds = math.inf
        for _ in range(2):  # the first step of a process is a slow one
            start = time.perf_counter()
            jax.block_until_ready(run_chunk(*words))
            seconds = min(seconds, time.perf_counter() - start)
            if seconds > 1 and not job.everywhere:  # processes that wait for each other must make as many steps
                break
        memory = run_chunk.lower(*words).compile().memory_analysis()
    seconds *= int(sampler.nfe) / sampler.steps
    if memory is None:
        return Cost(seconds, None)
    parts = (memory.argument_size_in_bytes, memory.output_size_in_bytes, memory.temp_size_in_bytes)
    return Cost(seconds, int(sum(parts) - memory.alias_size_in_bytes))


def program_text(sampler: Any, keys: Key, score_fn: ScoreFn) -> str:
    """The compiled program of one chunk, to look for communication in."""
    job = _place(sampler, keys, score_fn)
    init, run_chunk, _, _ = job.programs
    lowered = run_chunk.lower(job.sampler, init(job.sampler, job.keys, None), jnp.int32(1), job.score_fn)
    return lowered.compile().as_text()


# --- any function of images ------------------------------------------------------------------------------------


def spread(fn: Callable[[Any, Any], Any], shared: Any) -> Callable[[Any], Any]:
    """Let all local devices compute a function of images.

    Args:
      fn: (shared, batch) -> outputs, pure; every leaf of batch and of outputs begins with the images.
      shared: pytree of arrays, such as parameters; copied to every device once.

    Returns:
      batch -> outputs on the host. A batch that does not divide is filled up with its last image and cut again.
    """
    count = jax.local_device_count()
    program = jax.pmap(fn, AXIS, devices=jax.local_devices()[:count])
    placed = _on_devices(count, False)(replicate(shared, count))

    def run(batch: Any) -> Any:
        size = len(jax.tree.leaves(batch)[0])
        outputs = program(placed, _split_images(batch, count))
        return jax.tree.map(lambda leaf: np.asarray(leaf).reshape(-1, *leaf.shape[2:])[:size], outputs)

    return run


def spread_everywhere(fn: Callable[[Any, Any], Any], shared: Any) -> Callable[[Any], Any]:
    """Like :func:`spread`, over all devices of all processes, which must all call it with the same batch.

    Args:
      fn: see :func:`spread`.
      shared: likewise.

    Returns:
      batch -> outputs of the whole batch, the same on every host; each process computes an equal part of them.
    """
    here, (index, count) = spread(fn, shared), process_share()
    if count == 1:
        return here

    def run(batch: Any) -> Any:
        size = len(jax.tree.leaves(batch)[0])
        share = -(-size // count)
        positions = np.minimum(np.arange(index * share, (index + 1) * share), size - 1)
        parts = gather(here(jax.tree.map(lambda leaf: leaf[positions], batch)))
        return jax.tree.map(lambda *rows: np.concatenate(rows)[:size], *parts)

    return run


# --- statistics ------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def _sums_program() -> Callable[..., Any]:
    def sums(images: Array, weights: Array) -> statistics.Sums:
        return jax.lax.psum(statistics.accumulate(images, weights), AXIS)

    return jax.pmap(sums, AXIS)


def sums_fn(images: np.ndarray, weights: np.ndarray) -> statistics.Sums:
    """Sums of one block over all devices of all processes, for ``statistics.compute_statistics(sums_fn=...)``.

    Args:
      images: (B, H, W, C) float32 in [0, 1], the same in every process; each process takes its part.
      weights: (B,) float32, 1 for an image and 0 for padding.

    Returns:
      The block's sums, the same in every process.
    """
    missing = -len(images) % jax.device_count()
    images, weights = (np.concatenate([a, np.zeros((missing, *a.shape[1:]), a.dtype)]) for a in (images, weights))
    here = local_slice(len(images))
    shaped = (a[here].reshape(jax.local_device_count(), -1, *a.shape[1:]) for a in (images, weights))
    return unreplicate(_sums_program()(*shaped))
