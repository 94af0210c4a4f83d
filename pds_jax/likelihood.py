"""Bits per dimension of a model, by the probability-flow ODE.

    dx/dt = f(x, t) − ½ g(t)² s(x, t),    log p_0(x) = log π(x_T) + ∫ ∇·(dx/dt) dt

(Song et al. 2021, eqs. 13 and 39). The divergence is ε·J ε with random ε (Skilling 1989, Hutchinson 1990), or exact.
Each image has its own adaptive steps, so its result does not depend on the other images of the batch.

The likelihood is a property of the model, not of a sampler: a preconditioner is refused.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, MutableMapping
from typing import Any

import diffrax
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from pds_jax.scores import as_pytree
from pds_jax.sde_lib import SDE
from pds_jax.types import Array, Key, PdsError, ScoreFn, unknown_name

SOLVERS: dict[str, Callable[[], Any]] = {
    "RK45": diffrax.Dopri5,
    "RK23": diffrax.Bosh3,
    "DOP853": diffrax.Dopri8,
    "Tsit5": diffrax.Tsit5,
}
HUTCHINSON_TYPES = ("Rademacher", "Gaussian", "exact")
# The exact divergence costs one Jacobian-vector product per value of an image, at every evaluation.
LARGEST_EXACT = 4096
_CHUNK = 64
# Given, because the solver's own choice of it would cost evaluations that it does not count.
_FIRST_STEP = 1e-3


def get_likelihood_fn(
    sde: SDE,
    inverse_scaler: Callable[[Any], Any],
    hutchinson_type: str = "Rademacher",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    method: str = "RK45",
    eps: float = 1e-5,
    max_steps: int = 10_000,
    preconditioner: Any = None,
) -> Likelihood:
    """The log-likelihood of data in bits per dimension, log2 |du/dx| + 8 − log2 p(x) / D.

    u = inverse_scaler(x) is in [0, 1] and holds 256 levels, dequantised (:func:`dequantize`).

    Args:
      sde: an SDE of sde_lib.
      inverse_scaler: the map from the network's range to [0, 1]; only its slope is used.
      hutchinson_type: 'Rademacher', 'Gaussian' (random ε) or 'exact' (small images only).
      rtol: relative tolerance of the solver.
      atol: absolute tolerance of the solver.
      method: 'RK45' (Dormand-Prince), 'RK23', 'DOP853' or 'Tsit5'.
      eps: start of the ODE in t; above 0, because the score can be singular at 0.
      max_steps: largest number of steps per image, with rejected ones.
      preconditioner: None or the identity.

    Returns:
      likelihood_fn(key, score_fn, data, epsilon=None) -> (bpd, z, nfe).

    Raises:
      PdsError: unknown method or type, tolerances that are not positive, eps outside (0, 1), an inverse_scaler whose
        slope is not positive, or a preconditioner.
    """
    if preconditioner is not None and not preconditioner.is_identity:
        raise PdsError(
            "likelihood with a preconditioner: M changes how samples are drawn, not the model, and the "
            "probability-flow ODE has no M; compute bits/dim without it (alpha=inf)"
        )
    if method not in SOLVERS:
        raise PdsError("likelihood: " + unknown_name("method", method, SOLVERS))
    if hutchinson_type not in HUTCHINSON_TYPES:
        raise PdsError("likelihood: " + unknown_name("hutchinson_type", hutchinson_type, HUTCHINSON_TYPES))
    for name, tolerance in (("rtol", rtol), ("atol", atol)):
        if not tolerance > 0:
            raise PdsError(f"likelihood: {name}={tolerance} must be positive, for instance 1e-5")
    if not 0 < eps < 1:
        raise PdsError(f"likelihood: eps={eps} must lie between 0 and 1, for instance 1e-5")
    slope = float(jax.grad(lambda x: jnp.asarray(inverse_scaler(x)))(0.0))
    if not slope > 0:
        raise PdsError(f"likelihood: inverse_scaler has slope {slope} at 0; it must rise from the data to [0, 1]")
    return Likelihood(
        sde=sde,
        offset=jnp.float32(8.0 + math.log2(slope)),
        rtol=jnp.float32(rtol),
        atol=jnp.float32(atol),
        eps=jnp.float32(eps),
        hutchinson_type=hutchinson_type,
        method=method,
        max_steps=max_steps,
    )


@flax.struct.dataclass
class Likelihood:
    """Callable of :func:`get_likelihood_fn`, a pytree: another tolerance or SDE constant does not recompile."""

    sde: SDE
    offset: Array
    rtol: Array
    atol: Array
    eps: Array
    hutchinson_type: str = flax.struct.field(pytree_node=False)
    method: str = flax.struct.field(pytree_node=False)
    max_steps: int = flax.struct.field(pytree_node=False)

    def __call__(
        self, key: Key, score_fn: ScoreFn, data: Array, epsilon: Array | None = None
    ) -> tuple[Array, Array, Array]:
        """Bits per dimension of each image.

        Args:
          key: one typed key, or one per image (B,), for ε; not used by 'exact' or with epsilon.
          score_fn: the score s(x, t).
          data: (B, H, W, C) float32 in the network's range, dequantised.
          epsilon: (B, H, W, C) float32, ε itself, for replay.

        Returns:
          bpd (B,), z (B, H, W, C) the latent code x_T, nfe (B,) int32 score evaluations. bpd is NaN where the solver
          did not reach T in max_steps.

        Raises:
          PdsError: data or epsilon of the wrong shape, or images too large for 'exact'.
        """
        if data.ndim != 4:
            raise PdsError(f"likelihood: data must be (B, H, W, C), not {data.shape}")
        if self.hutchinson_type == "exact" and math.prod(data.shape[1:]) > LARGEST_EXACT:
            raise PdsError(
                f"likelihood: images {data.shape[1:]} hold {math.prod(data.shape[1:])} values; hutchinson_type='exact' "
                f"is for {LARGEST_EXACT} at most, use 'Rademacher'"
            )
        if epsilon is None:
            epsilon = self.draw_epsilon(key, data)
        elif epsilon.shape != data.shape:
            raise PdsError(f"likelihood: epsilon is {epsilon.shape} but data is {data.shape}")
        return _solve_batch(
            (self.sde, as_pytree(score_fn)),
            (self.rtol, self.atol),
            self.eps,
            self.offset,
            data,
            epsilon,
            exact=self.hutchinson_type == "exact",
            method=self.method,
            max_steps=self.max_steps,
        )

    def draw_epsilon(self, key: Key, data: Array) -> Array:
        """Draw ε of mean 0 and covariance I, (B, H, W, C), each image by its own key."""
        keys = key if key.ndim == 1 else jax.random.split(key, data.shape[0])
        if self.hutchinson_type == "Rademacher":
            return jax.vmap(lambda k: jax.random.rademacher(k, data.shape[1:], jnp.float32))(keys)
        return jax.vmap(lambda k: jax.random.normal(k, data.shape[1:], jnp.float32))(keys)


@functools.partial(jax.jit, static_argnames=("exact", "method", "max_steps"))
def _solve_batch(
    problem: tuple[SDE, ScoreFn],
    tolerances: tuple[Array, Array],
    eps: Array,
    offset: Array,
    data: Array,
    epsilon: Array,
    *,
    exact: bool,
    method: str,
    max_steps: int,
) -> tuple[Array, Array, Array]:
    sde, score_fn = problem

    def solve(x: Array, epsilon: Array) -> tuple[Array, Array, Array, Array]:
        field = _field(sde, score_fn, None if exact else epsilon)
        return _solve(field, x, eps, jnp.float32(sde.T), tolerances, SOLVERS[method](), max_steps)

    z, delta, steps, reached = jax.vmap(solve)(data, epsilon)
    logp = sde.prior_logp(z) + delta
    bpd = -logp / (math.log(2.0) * math.prod(data.shape[1:])) + offset
    return jnp.where(reached, bpd, jnp.nan), z, _evaluations(method, steps)


def _field(sde: SDE, score_fn: ScoreFn, epsilon: Array | None) -> Callable[..., tuple[Array, Array]]:
    """The right-hand side for one image (H, W, C): velocity, and its divergence (exact where epsilon is None)."""

    def field(t: Array, state: tuple[Array, Array], args: None) -> tuple[Array, Array]:
        def velocity(x: Array) -> Array:
            drift, _ = sde.reverse(score_fn, probability_flow=True).sde(x[None], t[None])
            return drift[0]

        if epsilon is None:
            return velocity(state[0]), _trace(velocity, state[0])
        v, pushed = jax.jvp(velocity, (state[0],), (epsilon,))
        return v, jnp.sum(pushed * epsilon)

    return field


def _solve(
    field: Callable[..., tuple[Array, Array]],
    x: Array,
    t0: Array,
    t1: Array,
    tolerances: tuple[Array, Array],
    solver: Any,
    max_steps: int,
) -> tuple[Array, Array, Array, Array]:
    """One image (H, W, C): (x_T, ∫ ∇·v dt, steps, whether T was reached)."""
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        solver,
        t0=t0,
        t1=t1,
        dt0=_FIRST_STEP,
        y0=(x, jnp.float32(0.0)),
        stepsize_controller=diffrax.PIDController(rtol=tolerances[0], atol=tolerances[1]),
        max_steps=max_steps,
        throw=False,
        # Only the values are wanted: no tape of the solve.
        adjoint=diffrax.ForwardMode(),
    )
    (z,), (delta,) = solution.ys
    return z, delta, solution.stats["num_steps"], solution.result == diffrax.RESULTS.successful


def _trace(velocity: Callable[[Array], Array], x: Array) -> Array:
    """Σ_i ∂v_i/∂x_i, exactly."""
    basis = jnp.eye(x.size, dtype=x.dtype)

    def entry(row: Array) -> Array:
        direction = row.reshape(x.shape)
        return jnp.sum(jax.jvp(velocity, (x,), (direction,))[1] * direction)

    return jnp.sum(jax.lax.map(entry, basis, batch_size=min(_CHUNK, x.size)))


def _evaluations(method: str, steps: Array) -> Array:
    """Evaluations of the field; every solver here passes its last stage on to the next step."""
    return (SOLVERS[method]().tableau.num_stages - 1) * steps + 1


def dequantize(keys: Key, images: Array) -> Array:
    """Spread 256 levels over the unit interval, u = (255 x + U[0, 1)) / 256.

    Args:
      keys: (B,) typed keys, one per image.
      images: (B, H, W, C) uint8, or float32 in [0, 1] holding multiples of 1/255.

    Returns:
      (B, H, W, C) float32 in [0, 1).
    """
    levels = images.astype(jnp.float32) if images.dtype == jnp.uint8 else jnp.round(images * 255.0)
    noise = jax.vmap(lambda key: jax.random.uniform(key, images.shape[1:], jnp.float32))(keys)
    return (levels + noise) / 256.0


@flax.struct.dataclass
class BitsPerDim:
    """Bits per dimension of a set.

    Attributes:
      mean: over images and repeats.
      std_err: standard error of the mean over images (repeats of an image averaged first).
      per_image: (n,) mean over repeats.
      per_repeat: (R,) mean over images.
      nfe: mean number of evaluations per image.
    """

    mean: float
    std_err: float
    per_image: np.ndarray
    per_repeat: np.ndarray
    nfe: float


def evaluate_bpd(
    likelihood_fn: Likelihood,
    score_fn: ScoreFn,
    batches: Callable[[], Iterable[np.ndarray]],
    key: Key,
    *,
    scaler: Callable[[Any], Any],
    repeats: int = 5,
    uniform_dequantization: bool = True,
    data_parallel: Callable[[Any, Any], Callable[[Any], Any]] | None = None,
    done: MutableMapping[str, np.ndarray] | None = None,
    progress: Callable[[int], None] | None = None,
) -> BitsPerDim:
    """Pass a set `repeats` times, each with new dequantisation noise and ε.

    Noise is a function of the index of the image and the repeat, so the batch size does not change the result.

    Args:
      likelihood_fn: of :func:`get_likelihood_fn`.
      score_fn: the score.
      batches: called once a repeat, gives images (b, H, W, C) in [0, 1] (or uint8) in a fixed order; the last batch may
        be ragged.
      key: one typed key.
      scaler: the map from [0, 1] to the network's range.
      repeats: passes over the set.
      uniform_dequantization: off when the images are continuous or dequantised already.
      data_parallel: (function, arguments) -> function of a batch on several devices, as ``parallel.data_parallel``.
      done: bits/dim and evaluations (2, b) of batches by "repeat-first image"; those in it are not computed again,
        others are put in.
      progress: called with the number of images after each batch.

    Returns:
      The figures.

    Raises:
      PdsError: an empty set, or an image whose ODE did not reach T (its index is named).
    """
    arguments = likelihood_fn, as_pytree(score_fn)
    on_one = functools.partial(_bpd_and_nfe, arguments)
    compute = on_one if data_parallel is None else data_parallel(_bpd_and_nfe, arguments)
    done = {} if done is None else done
    table, evaluations = [], []
    for repeat in range(repeats):
        row, start, size = [], 0, None
        for images in batches():
            count = len(images)
            size = size or count
            found = done.get(f"{repeat}-{start}")
            if found is None or found.shape != (2, count):
                keys, x = _noised(_pad(images, size), jax.random.fold_in(key, repeat), start, uniform_dequantization)
                found = np.stack([np.asarray(part, np.float64)[:count] for part in compute((keys, scaler(x)))])
                _require_finite(found[0], start)
                done[f"{repeat}-{start}"] = found
            row.append(found[0])
            evaluations.append(found[1])
            start += count
            if progress is not None:
                progress(count)
        if not row:
            raise PdsError("bits/dim: the data set is empty")
        table.append(np.concatenate(row))
    bpds = np.stack(table)
    per_image = bpds.mean(0)
    std_err = float(per_image.std(ddof=1) / np.sqrt(len(per_image))) if len(per_image) > 1 else math.nan
    return BitsPerDim(
        mean=float(bpds.mean()),
        std_err=std_err,
        per_image=per_image,
        per_repeat=bpds.mean(1),
        nfe=float(np.concatenate(evaluations).mean()),
    )


def _bpd_and_nfe(arguments: tuple[Likelihood, ScoreFn], batch: tuple[Key, Array]) -> tuple[Array, Array]:
    (likelihood_fn, score_fn), (keys, x) = arguments, batch
    bpd, _, nfe = likelihood_fn(keys, score_fn, x)
    return bpd, nfe


def _noised(images: np.ndarray, key: Key, start: int, uniform_dequantization: bool) -> tuple[Key, Array]:
    """Keys of ε (B,) and the images of a batch, both functions of the images' indices."""
    indices = jnp.arange(start, start + len(images))
    keys = jax.vmap(lambda index: jax.random.split(jax.random.fold_in(key, index)))(indices)
    x = jnp.asarray(images)
    if uniform_dequantization:
        x = dequantize(keys[:, 0], x)
    elif x.dtype == jnp.uint8:
        x = x.astype(jnp.float32) / 255.0
    return keys[:, 1], x


def _pad(images: np.ndarray, size: int) -> np.ndarray:
    """Repeat the last image up to the size that is compiled."""
    missing = size - len(images)
    return np.concatenate([images, np.repeat(images[-1:], missing, axis=0)]) if missing > 0 else images


def _require_finite(bpd: np.ndarray, start: int) -> None:
    bad = np.flatnonzero(~np.isfinite(bpd))
    if bad.size:
        raise PdsError(
            f"likelihood: the ODE of image {start + int(bad[0])} did not reach T; raise max_steps or the tolerances, "
            "or check the score function on that image"
        )
