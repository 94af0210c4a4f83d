"""The processes of a run, and communication between them."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from pds_jax.io.files import Stopped
from pds_jax.types import PdsError

# Processes that sample their shares end hours apart; the coordinator waits for the last.
_WAIT_AT_THE_END = 14 * 24 * 3600


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
      num_processes: number of processes.
      process_id: index of this process.
      environment: mapping that the variables are read from.

    Returns:
      Whether there is more than one process.

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
def abort_on_failure() -> Iterator[None]:
    """End this process at once when the block fails, if it is one of several.

    Otherwise it would wait for the others at its end, and they for it in their next mean over devices.
    """
    try:
        yield
    except BaseException as error:
        if not jax.distributed.is_initialized():
            raise
        stopped = isinstance(error, Stopped)
        print(f"stopped by {error}" if stopped else f"pds_jax: {type(error).__name__}: {error}", file=sys.stderr)
        if not isinstance(error, PdsError | FloatingPointError | Stopped):
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0 if stopped else 2)


def wait_for_all(name: str) -> None:
    """Continue when every process has reached this call."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process; all must call it."""
    return any(bool(found) for found in gather(np.asarray(flag)))


def from_process_zero(find: Callable[[], Any]) -> Any:
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


def check_on_all_processes(check: Callable[[], object]) -> None:
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
