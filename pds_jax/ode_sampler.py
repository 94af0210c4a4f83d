"""The adaptive sampler of the probability-flow ODE."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from pds_jax.keys import normal, typed
from pds_jax.predictors import get_predictor
from pds_jax.sampler_checks import PRIORS, check_names, checked_moments, image_shape
from pds_jax.scores import checked, finite
from pds_jax.sde_lib import SDE
from pds_jax.solvers import adaptive
from pds_jax.spectral import matched_prior
from pds_jax.steps import Step
from pds_jax.table import Carry, Table, from_rows
from pds_jax.types import Array, Key, PdsError, ScoreFn


@flax.struct.dataclass
class ODESampler:
    """Adaptive probability-flow sampler made by :func:`get_ode_sampler`.

    Attributes:
      sde: SDE.
      eps: () last time.
      rtol: () relative tolerance.
      atol: () absolute tolerance.
      moments: (mean, power) of the data in the model's range, or None.
      shape: (H, W, C).
      denoise: whether one noiseless reverse-diffusion step from eps is added.
      prior: "standard" or "matched".
    """

    sde: SDE
    eps: Any
    rtol: Any
    atol: Any
    moments: Any = None
    shape: tuple[int, int, int] = flax.struct.field(pytree_node=False, default=(0, 0, 0))
    denoise: bool = flax.struct.field(pytree_node=False, default=False)
    prior: str = flax.struct.field(pytree_node=False, default="standard")

    nfe = None  # the solver decides as it goes; a finished carry has it as its rows
    mean_fn = None

    @property
    def steps(self) -> int:
        """1: the whole solution is one step of the loop."""
        return 1

    @property
    def table(self) -> Table:
        """One row, from T to eps."""
        row = {"iteration": 1, "t": self.sde.T, "t_next": self.eps}
        return from_rows([row], (Step("solver", "adaptive", adaptive, draws=0),), 0)

    def __call__(self, keys: Key, score_fn: ScoreFn) -> tuple[Array, Array]:
        """Sample one image per key; returns (B, H, W, C) images and the NFE of each, (B,) int32."""
        return self.solve(normal(typed(keys), 0, 0, self.shape), score_fn)

    def init(self, keys: Key, condition: Any = None) -> Carry:
        """Draw the prior; one image per key (B,)."""
        if condition is not None:
            raise PdsError(
                "an adaptive ODE sampler takes no condition; use predictors and correctors (sampling.method=pc)"
            )
        keys = typed(keys)
        x = self._prior(normal(keys, 0, 0, self.shape))
        done = jnp.zeros(x.shape[:1], jnp.int32)
        return Carry(x, x, keys, done, done)

    def run_chunk(self, carry: Carry, rows: int | Array, score_fn: ScoreFn) -> Carry:
        """Solve; with 0 rows do nothing."""

        def solve(carry: Carry) -> Carry:
            x, nfe = self._solve(carry.x, score_fn)
            return Carry(x, x, carry.keys, nfe, finite(x))

        return jax.lax.cond(jnp.asarray(rows) > 0, solve, lambda same: same, carry)

    def result(self, carry: Carry) -> Array:
        """The images."""
        return carry.x

    def solve(self, z: Array, score_fn: ScoreFn) -> tuple[Array, Array]:
        """Sample from the prior made of standard normal noise z (B, H, W, C); returns as a call does."""
        return self._solve(self._prior(z), score_fn)

    def _prior(self, z: Array) -> Array:
        if self.prior == "matched":
            return matched_prior(z, self.sde, jnp.float32(self.sde.T), self.moments)
        return z * self.sde.prior_std

    def _solve(self, x: Array, score_fn: ScoreFn) -> tuple[Array, Array]:
        x, nfe = adaptive(x, sde=self.sde, score_fn=score_fn, eps=self.eps, rtol=self.rtol, atol=self.atol)
        if self.denoise:
            t, score_fn = jnp.full(x.shape[:1], self.eps), checked(score_fn)
            x, nfe = get_predictor("reverse_diffusion")(x, t, x, sde=self.sde, score_fn=score_fn)[1], nfe + 1
        return x, nfe


def get_ode_sampler(
    sde: SDE,
    shape: Sequence[int],
    *,
    eps: float | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    denoise: bool = False,
    prior: str = "standard",
    statistics: Any = None,
) -> ODESampler:
    """Probability-flow ODE from T to eps by an adaptive Runge–Kutta method of order 5 (diffrax).

    Each image has its own steps, so it does not depend on the batch; the batch takes as long as its slowest image.
    (score_sde uses the same steps of SciPy's RK45 for the whole batch.) denoise adds one reverse-diffusion step without
    noise, as in score_sde, which counts as one evaluation.

    Args:
      sde: SDE; its N matters to denoise only.
      shape: (H, W, C) or (B, H, W, C).
      eps: last time, by default the SDE's.
      rtol: relative tolerance.
      atol: absolute tolerance, in the data's units.
      denoise: see above.
      prior: "standard" or "matched", see :func:`get_pc_sampler`.
      statistics: (mean, power) in the model's range, for the matched prior.

    Returns:
      The sampler, ``sampler(keys, score_fn) -> (x, nfe (B,))``.

    Raises:
      PdsError: bad eps, tolerances, prior or statistics.
    """
    of_image, last = image_shape(shape), sde.default_eps if eps is None else float(eps)
    if not 0 < last < sde.T:
        raise PdsError(f"eps={eps}: use a time between 0 and {sde.T:g}")
    if not (0 < rtol < 1 and 0 < atol < math.inf):
        raise PdsError(f"tolerances rtol={rtol}, atol={atol}: use 0 < rtol < 1 and atol > 0 (1e-5 is usual)")
    check_names(prior=(prior, PRIORS))
    return ODESampler(
        sde=sde,
        eps=np.float32(last),
        rtol=np.float32(rtol),
        atol=np.float32(atol),
        moments=checked_moments(statistics, of_image) if prior == "matched" else None,
        shape=of_image,
        denoise=bool(denoise),
        prior=prior,
    )
