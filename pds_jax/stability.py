"""Check before sampling whether a setting is certain to diverge."""

from __future__ import annotations

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from pds_jax.preconditioner import Preconditioner, lambda_max
from pds_jax.runner import SamplingDiverged
from pds_jax.sde_lib import SDE
from pds_jax.steps import Step
from pds_jax.types import Array


def step_limit(m: Preconditioner) -> Array:
    """The value that replaces λ_max in the stability limit of a step: max (λ² + w²)/λ with a solenoidal term i w.

    |1 − q (λ + i w)| ≤ 1 iff q (λ² + w²)/λ ≤ 2. Beside a pixel filter, with which S does not commute, w is left out,
    so that a setting is refused only if it is certain to diverge. Derived, see docs/theory.md.

    Args:
      m: M.

    Returns:
      () float32.
    """
    if m.skew is None or m.space is not None:
        return lambda_max(m)
    lam = jnp.ones_like(m.skew) if m.freq is None else jnp.square(m.freq)
    return jnp.max(lam + jnp.square(m.skew) / lam)


def check_stability(sampler: Any, statistics: Any = None) -> float:
    """Raise if the predictor of a sampler is certain to diverge.

    A step multiplies the error of a mode by 1 − q; for reverse diffusion of VE, variant "paper",
    q = λ_max(M Mᵀ) G²/(σ² + v) with v the mode's data variance. |1 − q| > 1 iff q > 2. The predictor itself is asked
    for its q at every time on Gaussian data of the least variance (0 without statistics); the number is what a quarter
    of the steps but the last exceed, since the other steps can make up for a few.
    Derived, see docs/theory.md.

    Args:
      sampler: the sampler.
      statistics: (mean, power) in the model's range, or None.

    Returns:
      The number q.

    Raises:
      SamplingDiverged: q exceeds 2.
    """
    largest = float(step_limit(sampler.preconditioner))
    times = np.append(sampler.times, np.float32(0)) if len(sampler.times) == sampler.steps else sampler.times
    variance = 0.0 if statistics is None else float(np.min(statistics[1]))
    step = next(kind for kind in sampler.kinds if kind.kind == "predictor")
    options = tuple(sorted({**dict(sampler.choices), **{k: float(v) for k, v in sampler.numbers.items()}}.items()))
    q = 1 - np.asarray(_amplification(sampler.sde, times, jnp.float32(largest), jnp.float32(variance), step, options))
    number = float(np.quantile(q[: max(sampler.steps - 1, 1)], 0.75))
    if number > 2:
        by_m = f" (M amplifies the drift up to {largest:.3g} times)" if largest > 1 else ""
        or_else = ", or a weaker M (a larger alpha)" if largest > 1 else ", or another predictor or grid"
        raise SamplingDiverged(
            f"this setting diverges: with N={sampler.steps}, predictor {step.name!r} multiplies errors by "
            f"{number - 1:.3g} or more in a quarter of its steps{by_m}; use more steps{or_else}"
        )
    return number


@flax.struct.dataclass
class _Gain:
    """M that multiplies by √λ."""

    lam: Array

    is_identity = True  # so that a probability flow may be asked too

    def apply(self, z: Array) -> Array:
        return jnp.sqrt(self.lam) * z

    def drift(self, g: Array) -> Array:
        return self.lam * g


@functools.partial(jax.jit, static_argnums=(4, 5))
def _amplification(
    sde: SDE, times: Array, lam: Array, variance: Array, step: Step, options: tuple[tuple[str, Any], ...]
) -> Array:
    """What one step multiplies a mode by, at each time but the last of the padding."""

    def score(x: Array, t: Array) -> Array:
        return -x / (jnp.square(sde.std(t)) + jnp.square(sde.mean_scale(t)) * variance)[:, None, None, None]

    ones = jnp.ones((times.shape[0] - 1, 1, 1, 1), jnp.float32)
    # Noise-free, so the drift alone answers; one pixel, so its spectrum is its variance.
    x_mean = step(
        ones,
        jnp.asarray(times)[:-1],
        0 * ones,
        sde=sde,
        score_fn=score,
        preconditioner=_Gain(lam),
        t_next=jnp.asarray(times)[1:],
        moments=(0 * ones[0], variance * ones[0]),
        memory=None if step.init_memory is None else step.init_memory(ones),
        **{name: value for name, value in options if name in step.options},
    )[1]
    return x_mean[:, 0, 0, 0]
