"""Predictors: one step of the reverse SDE, from noise level i to i − 1, with M in its dynamics.

With g, h the drift of the forward SDE and s the score, a step takes the score's share of the drift as

    variant "paper"   M Mᵀ s               (½ M Mᵀ s for the probability flow)
    variant "exact"   ½ (s + M Mᵀ s)       (½ s for the probability flow, which takes no M)

and its noise as M z. "paper" is the method of Ma et al.; its marginals are biased unless M is the identity. "exact"
is the probability flow plus Langevin dynamics with M, which keeps every marginal (docs/theory.md). Both are the plain
predictor if M is the identity. A solenoidal term S goes with M Mᵀ everywhere: (M Mᵀ + S) s.

Sources: Song et al., ICLR 2021 (the predictors); Ma et al., IJCV 2025, arXiv 2302.06504 (M). The released code of the
latter preconditions reverse_diffusion only; here all predictors use M.
"""

from __future__ import annotations

import jax.numpy as jnp

from pds_jax.ops import batch_mul
from pds_jax.preconditioner import Preconditioner, identity
from pds_jax.sde_lib import SDE
from pds_jax.steps import Step, registrar
from pds_jax.types import Array, PdsError, Registry, ScoreFn, check_choice

PREDICTORS: Registry[Step] = Registry("predictor")
VARIANTS = ("paper", "exact")
register_predictor, get_predictor = registrar(PREDICTORS), PREDICTORS.find
_IDENTITY = identity()


def score_drift(s: Array, m: Preconditioner, variant: str, probability_flow: bool) -> Array:
    """The score's share of the drift of a reverse step, by the table at the top of this module.

    Args:
      s: (B, H, W, C) float32 scores.
      m: M.
      variant: "paper" or "exact".
      probability_flow: whether the step is one of the ODE, without noise.

    Returns:
      (B, H, W, C) float32.

    Raises:
      PdsError: unknown variant, or M in an exact probability flow.
    """
    check_choice("variant", variant, VARIANTS)
    if variant == "paper":
        return (0.5 if probability_flow else 1.0) * m.drift(s)
    if probability_flow:
        if not m.is_identity:
            raise PdsError("the probability flow has no noise for M to act on; use variant 'paper' or no M")
        return 0.5 * s
    return 0.5 * (s + m.drift(s))


@register_predictor("reverse_diffusion")
def reverse_diffusion(
    x: Array,
    t: Array,
    z: Array,
    *,
    sde: SDE,
    score_fn: ScoreFn,
    preconditioner: Preconditioner = _IDENTITY,
    probability_flow: bool = False,
    variant: str = "paper",
) -> tuple[Array, Array]:
    """Reverse of the SDE's own discretisation: x_mean = x − M Mᵀ (f − G² s), x = x_mean + G M z.

    The paper's variant preconditions all of f, for VP its linear part too, as in the released code; "exact" does not
    change that part: x_mean = x − f + ½ G² (s + M Mᵀ s).

    Args:
      x: (B, H, W, C) float32 images at t.
      t: (B,) times.
      z: (B, H, W, C) standard normal noise; unused by the probability flow.
      sde: forward SDE.
      score_fn: score function.
      preconditioner: M.
      probability_flow: step the ODE instead, without noise.
      variant: "paper" or "exact".

    Returns:
      x and x_mean, one level below.

    Raises:
      PdsError: unknown variant, or M in the probability flow of the variant "exact".
    """
    m = preconditioner
    if variant == "paper":
        f, G = sde.reverse(score_fn, probability_flow).discretize(x, t)
        x_mean = x - m.drift(f)
    else:
        f, G = sde.discretize(x, t)
        drift = score_drift(score_fn(x, t), m, variant, probability_flow)
        x_mean = x - f + batch_mul(jnp.square(G), drift)
    return _with_noise(x_mean, G, z, m, probability_flow)


@register_predictor("euler_maruyama")
def euler_maruyama(
    x: Array,
    t: Array,
    z: Array,
    *,
    sde: SDE,
    score_fn: ScoreFn,
    preconditioner: Preconditioner = _IDENTITY,
    probability_flow: bool = False,
    variant: str = "paper",
) -> tuple[Array, Array]:
    """Euler–Maruyama with step 1/N: x_mean = x − (f − g² M Mᵀ s)/N, x = x_mean + g M z/√N.

    Only the score is preconditioned, in both variants: f is the linear drift. Args, Returns and Raises as
    :func:`reverse_diffusion`.
    """
    m, n = preconditioner, jnp.float32(sde.N)
    f, g = sde.sde(x, t)
    drift = f - batch_mul(jnp.square(g), score_drift(score_fn(x, t), m, variant, probability_flow))
    return _with_noise(x - drift / n, g / jnp.sqrt(n), z, m, probability_flow)


@register_predictor("ancestral_sampling")
def ancestral_sampling(
    x: Array,
    t: Array,
    z: Array,
    *,
    sde: SDE,
    score_fn: ScoreFn,
    preconditioner: Preconditioner = _IDENTITY,
    variant: str = "paper",
) -> tuple[Array, Array]:
    """Ancestral sampling of SMLD and DDPM.

    VE: x_mean = x + (σ_i² − σ_{i−1}²) M Mᵀ s, noise of deviation √(σ_{i−1}² (σ_i² − σ_{i−1}²)/σ_i²);
    VP: x_mean = (x + β_i M Mᵀ s)/√(1 − β_i), noise of deviation √β_i; the noise is M z.

    Args and Returns as :func:`reverse_diffusion`.

    Raises:
      PdsError: as :func:`score_drift`, or an SDE that has no ancestral sampling (subVP).

    Source: Song et al., ICLR 2021, appendix F (VE); Ho et al., NeurIPS 2020, algorithm 2 (VP).
    """
    m = preconditioner
    gap, shrink, deviation = sde.ancestral(t)
    mean = x + batch_mul(gap, score_drift(score_fn(x, t), m, variant, False))
    return _with_noise(batch_mul(shrink, mean), deviation, z, m, False)


def _with_noise(x_mean: Array, scale: Array, z: Array, m: Preconditioner, silent: bool) -> tuple[Array, Array]:
    """x = x_mean + scale · M z, or x = x_mean."""
    return (x_mean if silent else x_mean + batch_mul(scale, m.apply(z))), x_mean


# It has no row in a table: x stays.
register_predictor("none", draws=0)(lambda x, t, z: (x, x))
