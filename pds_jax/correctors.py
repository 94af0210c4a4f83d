"""Correctors: Langevin steps at a fixed time t, whose stationary distribution is p_t for any M.

    g = (M Mᵀ + S) s(x, t),  n = M z,  x_mean = x + ε g,  x = x_mean + √(2 ε) n

They differ in the step size ε. Sources: Song et al., ICLR 2021, algorithms 4 and 5; Ma et al., IJCV 2025 (M).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from pds_jax.ops import batch_mul, norms
from pds_jax.preconditioner import Preconditioner, identity
from pds_jax.sde_lib import SDE
from pds_jax.steps import Step, registrar
from pds_jax.types import Array, Registry, ScoreFn

CORRECTORS: Registry[Step] = Registry("corrector")
register_corrector, get_corrector = registrar(CORRECTORS), CORRECTORS.find
_IDENTITY = identity()


def norm_per_image(norm: Array) -> Array:
    """Norm mode "sample": each image's own norm, so an image depends on its seed only."""
    return norm


def mean_norm_over_batch(norm: Array) -> Array:
    """Norm mode "batch": the mean over the batch, as in the original codes."""
    return jnp.broadcast_to(jnp.mean(norm), norm.shape)


NORMS: dict[str, Callable[[Array], Array]] = {"sample": norm_per_image, "batch": mean_norm_over_batch}


@register_corrector("langevin")
def langevin(
    x: Array,
    t: Array,
    z: Array,
    *,
    sde: SDE,
    score_fn: ScoreFn,
    preconditioner: Preconditioner = _IDENTITY,
    snr: float | Array,
    mean_fn: Callable[[Array], Array] = norm_per_image,
) -> tuple[Array, Array]:
    """One Langevin step with ε = 2 a_t (snr ‖n‖/‖g‖)², norms taken after M.

    Args:
      x, t, z, sde, score_fn, preconditioner: see ``predictors.reverse_diffusion``.
      snr: signal-to-noise ratio, () float32.
      mean_fn: function of the norms (B,): :func:`norm_per_image`, :func:`mean_norm_over_batch`, or the mean over
        all devices.

    Returns:
      x and x_mean.
    """
    m = preconditioner
    g, n = m.drift(score_fn(x, t)), m.apply(z)
    ratio = snr * mean_fn(norms(n)) / mean_fn(norms(g))
    return _step(x, g, n, 2 * sde.alphas_at(t) * jnp.square(ratio))


@register_corrector("ald")
def ald(
    x: Array, t: Array, z: Array, *, sde: SDE, score_fn: ScoreFn, preconditioner: Preconditioner = _IDENTITY, snr: Any
) -> tuple[Array, Array]:
    """One step of annealed Langevin dynamics, ε = 2 a_t (snr std(t))²; Args and Returns as :func:`langevin`.

    Source: Song and Ermon, NeurIPS 2019, algorithm 1, with the step size of score_sde.
    """
    m = preconditioner
    epsilon = 2 * sde.alphas_at(t) * jnp.square(snr * sde.std(t))
    return _step(x, m.drift(score_fn(x, t)), m.apply(z), epsilon)


def _step(x: Array, g: Array, n: Array, epsilon: Array) -> tuple[Array, Array]:
    x_mean = x + batch_mul(epsilon, g)
    return x_mean + batch_mul(jnp.sqrt(2 * epsilon), n), x_mean


# It has no row in a table: x stays.
register_corrector("none", draws=0)(lambda x, t, z: (x, x))
