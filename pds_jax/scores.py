"""Score functions for the sampler: any callable, with its result checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from pds_jax.types import Array, PdsError, ScoreFn


@flax.struct.dataclass
class _Closed:
    """A callable pytree some of whose leaves are not arrays: those are static."""

    arrays: Any
    rest: Any = flax.struct.field(pytree_node=False)

    def __call__(self, x: Array, t: Array) -> Array:
        structure, others = self.rest
        leaves = [own if array is None else array for array, own in zip(self.arrays, others, strict=True)]
        return jax.tree.unflatten(structure, leaves)(x, t)


def as_pytree(score_fn: ScoreFn) -> ScoreFn:
    """Turn any callable into an argument of a compiled function; a pytree of arrays is returned unchanged.

    A plain function is static: another function object compiles again, so create it once. So are the leaves of a pytree
    that are not arrays, such as the activation functions of an Equinox module.

    Raises:
      PdsError: not callable.
    """
    if not callable(score_fn):
        raise PdsError(f"a score function is a callable s(x, t), not {type(score_fn).__name__}")
    leaves, structure = jax.tree.flatten(score_fn)
    arrays = [leaf if hasattr(leaf, "dtype") or type(leaf) in (int, float) else None for leaf in leaves]
    if all(array is not None for array in arrays):
        return score_fn
    if len(leaves) == 1 and leaves[0] is score_fn:
        return jax.tree_util.Partial(score_fn)
    others = tuple(leaf if array is None else None for leaf, array in zip(leaves, arrays, strict=True))
    return _Closed(arrays, (structure, others))


def lay_out(score_fn: Any, copy: Callable[[Any], Any], split: Callable[[Any], Any]) -> Any:
    """Place a score function on devices: as it says itself, where it knows something of every image, else copied."""
    return score_fn.lay_out(copy, split) if hasattr(score_fn, "lay_out") else copy(score_fn)


def evaluations(score_fn: Any) -> int:
    """Network evaluations per image of one call of a score function; 1 unless it has ``evaluations``."""
    return int(getattr(score_fn, "evaluations", 1))


def checked(score_fn: ScoreFn) -> ScoreFn:
    """The score function, refusing at trace time an answer that is not a float image batch of the input's shape."""

    def score(x: Array, t: Array) -> Array:
        s = score_fn(x, t)
        if getattr(s, "shape", None) != x.shape or not jnp.issubdtype(s.dtype, jnp.floating):
            got = f"{getattr(s, 'dtype', type(s).__name__)} {getattr(s, 'shape', '')}"
            raise PdsError(f"the score function returned {got} for images {x.dtype} {x.shape}: it must keep the shape")
        return s.astype(jnp.float32)

    return score


def known(s: Array, at: tuple[Array, Array] | None = None) -> ScoreFn:
    """A score function whose only value, s at (x, t), has been computed.

    With ``at``, that x and t, it refuses any other. The arrays themselves are compared: while a program is traced
    their values are not known.
    """

    def score(x: Array, t: Array) -> Array:
        if at is not None and (x is not at[0] or t is not at[1]):
            raise PdsError(
                "a step evaluates the score once, at its own x and t: call score_fn(x, t) with those two, and make a "
                "second evaluation a second stage (second=)"
            )
        return s

    return score


def finite(x: Array) -> Array:
    """(B,) int32, 1 for images without NaN and infinity."""
    return jnp.all(jnp.isfinite(x.reshape(x.shape[0], -1)), axis=1).astype(jnp.int32)
