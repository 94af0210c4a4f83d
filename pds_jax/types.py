"""Types shared by the whole package: aliases, the two protocols of the sampler, and the error class."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import jax

Array = jax.Array
Key = jax.Array


class PdsError(ValueError):
    """Bad input, found before any long work starts; the message says what, where and what to do."""


@runtime_checkable
class ScoreFn(Protocol):
    """A score function s(x, t) = ∇ₓ log p_t(x).

    To travel through ``jax.jit`` as an argument it should be a pytree, for instance
    ``jax.tree_util.Partial(fn, params)``.
    """

    def __call__(self, x: Array, t: Array) -> Array:
        """Return the score, float32 (B, H, W, C), of images x (B, H, W, C) at times t (B,)."""
        ...


@runtime_checkable
class PreconditionerLike(Protocol):
    """The linear operator M of preconditioned diffusion sampling, on float32 images (B, H, W, C)."""

    def apply(self, z: Array) -> Array:
        """Return M z."""
        ...

    def transpose(self, g: Array) -> Array:
        """Return Mᵀ g."""
        ...

    def gram(self, g: Array) -> Array:
        """Return M Mᵀ g."""
        ...
