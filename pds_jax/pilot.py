"""Gains, measured on a pilot run, that give the steps of a sampler the variance of Gaussian data.

After a step of ``spectral_steps.spectral`` a mode of Gaussian data has the variance P + s'², N of it from the noise of
the step. With a network it differs. A pilot run of a few hundred images measures it: after each step, every ring of
frequencies is multiplied by

    g = √(Σ (P + s'² − N) / Σ V),    V the power of the images' modes about the mean before the noise is added,

clipped, and 1 in the two lowest rings, which hold the variety of the images and not their detail. The sampler then
applies the same gains to every image: one table, traced. It needs P and no images. Derived, see docs/theory.md.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pds_jax.keys import image_keys
from pds_jax.ops import batch_mul, half_plane_weights
from pds_jax.sampling import PCSampler
from pds_jax.scores import as_pytree
from pds_jax.spectral import from_modes, modewise, noise_level, parts, scaled, to_modes
from pds_jax.spectral_steps import eigenvalues, ring_gains, rings
from pds_jax.types import Array, PdsError, ScoreFn

IMAGES = 512
LIMITS = (0.5, 1.6)
_KEPT = 2  # lowest rings, whose gain is 1
_FIRST_SEED = 2**31 + 2**20  # far from those of a run


def with_gains(
    sampler: Any, score_fn: ScoreFn, images: int = IMAGES, batch_size: int = 64, first_seed: int = _FIRST_SEED
) -> PCSampler:
    """The sampler with the gains of a pilot run, which costs `images` times its NFE evaluations.

    Args:
      sampler: of ``get_pc_sampler`` with predictor "spectral" alone.
      score_fn: score function.
      images: of the pilot run.
      batch_size: most images at once.
      first_seed: the pilot's images have the seeds from this one on.

    Returns:
      The sampler; its rows hold the gains g, (rows, rings) float32.

    Raises:
      PdsError: a sampler of other steps than ``spectral``, or a pilot that is not finite.
    """
    kinds = getattr(sampler, "kinds", ())
    if [step.name for step in kinds] != ["spectral"]:
        names = ", ".join(step.name for step in kinds) or "others"
        raise PdsError(f"pilot_gain corrects the steps of predictor 'spectral' alone, this sampler has {names}")
    score_fn = as_pytree(score_fn)
    plane = (sampler.shape[0], sampler.shape[1] // 2 + 1)
    gains = np.ones((sampler.rows.t.shape[0], int(rings(plane).max()) + 1), np.float32)
    sampler = _with(sampler, gains)
    seeds = np.array_split(np.arange(first_seed, first_seed + images), -(-images // batch_size))
    carries = [_begun(sampler, image_keys(part)) for part in seeds]
    for row in range(int(sampler.count)):
        carries = [_stepped(sampler, carry, score_fn) for carry in carries]
        power = np.sum([np.asarray(_power(sampler, carry, row), np.float64) for carry in carries], axis=0) / images
        if not np.isfinite(power).all():
            raise PdsError(f"pilot_gain: the pilot's images are not finite after row {row + 1}")
        gains[row] = _gains(power, np.asarray(_expected(sampler, row), np.float64), plane)
        carries = [_corrected(sampler, carry, row, gains[row]) for carry in carries]
    return _with(sampler, gains)


def _with(sampler: PCSampler, gains: np.ndarray) -> PCSampler:
    return dataclasses.replace(sampler, rows=dataclasses.replace(sampler.rows, coefficients=jnp.asarray(gains)))


def _gains(power: np.ndarray, expected: np.ndarray, plane: tuple[int, int]) -> np.ndarray:
    """g per ring, from V and what it should be, (H, W // 2 + 1, C)."""
    sums = [np.bincount(rings(plane).ravel(), v.sum(axis=-1).ravel()) for v in (expected, power)]
    found = np.clip(np.sqrt(sums[0] / np.maximum(sums[1], 1e-30)), *LIMITS)
    found[:_KEPT] = 1.0
    return found.astype(np.float32)


@jax.jit
def _begun(sampler: PCSampler, keys: Any) -> Any:
    return sampler.init(keys)


@jax.jit
def _stepped(sampler: PCSampler, carry: Any, score_fn: ScoreFn) -> Any:
    return sampler.run_chunk(carry, 1, score_fn)


def _levels(sampler: PCSampler, row: Any) -> tuple[Array, Array, Array]:
    """s, s' and m', () each."""
    (_, level), (m_next, below) = (
        noise_level(sampler.sde, jnp.asarray(column)[row][None]) for column in (sampler.rows.t, sampler.rows.t_next)
    )
    return level[0], below[0], m_next[0]


def _deviation(sampler: PCSampler, x: Array, row: Any) -> Array:
    """Modes of x̄ − μ, normalised so that white noise of variance 1 has power 1."""
    mean, _, basis = parts(sampler.moments)
    pixels = sampler.shape[0] * sampler.shape[1]
    return scaled(jnp.float32(pixels**-0.5), to_modes(x / _levels(sampler, row)[2] - mean, basis))


@jax.jit
def _power(sampler: PCSampler, carry: Any, row: Any) -> Array:
    """Σ |modes|² over the images, (H, W // 2 + 1, C), each column counted as often as it stands in the full plane."""
    modes = _deviation(sampler, carry.x_mean, row)
    return _counted(sampler, jnp.sum(jnp.square(modes.real) + jnp.square(modes.imag), axis=0))


@jax.jit
def _expected(sampler: PCSampler, row: Any) -> Array:
    """P + s'² − N, counted likewise."""
    power = parts(sampler.moments)[1]
    own = {**sampler.numbers, **dict(sampler.choices)}
    lam = own["stochasticity"]
    lam = eigenvalues(sampler.preconditioner) if isinstance(lam, str) else modewise(lam)
    share = modewise(own["spectrum"]) * power
    level, below, _ = _levels(sampler, row)
    q = (share + below**2) / (share + level**2)
    added = (share + below**2) * (1 - jnp.maximum(q, 1e-34) ** lam)
    return _counted(sampler, jnp.broadcast_to(power + below**2 - added, power.shape)[0])


def _counted(sampler: PCSampler, half: Array) -> Array:
    return half * half_plane_weights(sampler.shape[1])[None, :, None]


@jax.jit
def _corrected(sampler: PCSampler, carry: Any, row: Any, gains: Array) -> Any:
    """The images as the sampler with these gains would have made them."""
    basis = parts(sampler.moments)[2]
    modes = to_modes(carry.x_mean / _levels(sampler, row)[2] - parts(sampler.moments)[0], basis)
    change = from_modes(scaled(ring_gains(gains, modes.shape[1:3]) - 1, modes), sampler.shape[1], basis)
    change = batch_mul(jnp.full(change.shape[:1], _levels(sampler, row)[2]), change)
    return dataclasses.replace(carry, x=carry.x + change, x_mean=carry.x_mean + change)
