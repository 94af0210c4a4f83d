"""What a user may add without an edit of the package: an SDE, a predictor with an option, a corrector."""

import math

import jax.numpy as jnp

from pds_jax.correctors import register_corrector
from pds_jax.ops import batch_mul
from pds_jax.predictors import register_predictor
from pds_jax.sde_lib import SDE, VESDE, register_sde


@register_sde("cosine")
class CosineVP(SDE):
    """x_t = cos(a t) x_0 + sin(a t) z, a little below π/2: only what the base class asks for."""

    def __init__(self, angle=1.5, N=1000):
        self.angle, self.N = angle, N

    def sde(self, x, t):
        beta = 2 * self.angle * jnp.tan(self.angle * t)
        return batch_mul(-0.5 * beta, x), jnp.sqrt(beta)

    def mean_scale(self, t):
        return jnp.cos(self.angle * t)

    def std(self, t):
        return jnp.sin(self.angle * t)


@register_sde("subvesde")
class SubVE(VESDE):
    """VE whose noise vanishes at t = 0: std² = σ(t)² − σ_min²."""

    def std(self, t):
        sigma = super().std(t)
        return jnp.sqrt(jnp.maximum(jnp.square(sigma) - jnp.square(self.sigma_min), 1e-12))

    def sde(self, x, t):
        return jnp.zeros_like(x), VESDE.std(self, t) * math.sqrt(2) * jnp.sqrt(jnp.log(self.sigma_max / self.sigma_min))


@register_predictor("half_noise")
def half_noise(x, t, z, *, sde, score_fn, preconditioner, amount=0.5):
    f, G = sde.reverse(score_fn).discretize(x, t)
    x_mean = x - preconditioner.drift(f)
    return x_mean + amount * batch_mul(G, preconditioner.apply(z)), x_mean


@register_corrector("small_step")
def small_step(x, t, z, *, sde, score_fn, preconditioner, snr):
    epsilon = jnp.square(snr * sde.std(t)) / 2
    x_mean = x + batch_mul(epsilon, preconditioner.drift(score_fn(x, t)))
    return x_mean + batch_mul(jnp.sqrt(2 * epsilon), preconditioner.apply(z)), x_mean
