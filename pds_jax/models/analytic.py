"""Exact scores: laws of x_0 for which the score of x_t = m_t x_0 + std_t z is known in closed form.

Everything is written for x̄ = x/m_t, whose noise variance is v = (std_t/m_t)², so that the three SDEs are one case:

    s(x, t) = ∇ log q_v(x̄)/m_t,    E[x_0 | x_t] = x̄ + v ∇ log q_v(x̄),    log p_t(x) = log q_v(x̄) − D log m_t

with q_v the law of x_0 + √v z and D = H·W·C. Make a law by its ``create``, which checks its arguments; it is a pytree
with the SDE inside: pass it through ``jax.jit`` as an argument, and ``law.replace(sde=...)`` for another SDE.
Toy problems in the plane are images of shape (1, 1, 2).

Source: Tweedie's formula (Robbins 1956; Efron, "Tweedie's formula and selection bias", 2011) and Gaussian algebra.
"""

from __future__ import annotations

import abc
import math
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from pds_jax import ops
from pds_jax.sde_lib import SDE
from pds_jax.spectral import filtered, plane_mean
from pds_jax.statistics import Statistics, checked_images
from pds_jax.types import Array, Key, PdsError

_HIGHEST = jax.lax.Precision.HIGHEST
_LOG_2PI = math.log(2 * math.pi)
_ROUNDING = 1e-5  # relative asymmetry or negativity that float32 input may carry


class _Facts(NamedTuple):
    """What a law knows at x̄; a compiled caller that reads one of them does not pay for the others."""

    score: Array  # (B, H, W, C) ∇ log q_v
    denoised: Array  # (B, H, W, C) E[x_0 | x̄], written so that x̄ and v·score do not cancel under much noise
    log_prob: Array  # (B,) log q_v


@flax.struct.dataclass
class ExactScore(abc.ABC):
    """A law of x_0 and its exact score at every t.

    Attributes:
      sde: the SDE that adds the noise.
      mean: (H, W, C) mean μ of x_0.
      variance: its variances, of each pixel (H, W, C) unless the law says otherwise.
    """

    sde: SDE
    mean: Array
    variance: Array

    @abc.abstractmethod
    def sample(self, key: Key, n: int) -> Array:
        """Draw x_0 exactly; (n, H, W, C) float32."""

    @abc.abstractmethod
    def _facts(self, x_bar: Array, v: Array) -> _Facts:
        """Facts at x̄ (B, H, W, C), v (B,)."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of one image."""
        height, width, channels = self.mean.shape
        return height, width, channels

    def __call__(self, x: Array, t: Array) -> Array:
        """Score s(x, t) = ∇ log p_t(x).

        Args:
          x: (B, H, W, C) float32.
          t: (B,) times.

        Returns:
          (B, H, W, C) float32.

        Raises:
          PdsError: x has another (H, W, C).
        """
        return ops.batch_mul(1 / self.sde.mean_scale(t), self._facts_at(x, t).score)

    def denoiser(self, x: Array, t: Array) -> Array:
        """E[x_0 | x_t = x]; shapes and errors as in the call."""
        return self._facts_at(x, t).denoised

    def log_prob(self, x: Array, t: Array) -> Array:
        """log p_t(x) in nats, (B,); arguments and errors as in the call."""
        return self._facts_at(x, t).log_prob - math.prod(self.shape) * jnp.log(self.sde.mean_scale(t))

    def marginal(self, t: Array) -> tuple[Array, Array]:
        """Mean m_t μ (B, H, W, C) and variances m_t² V + std_t² (B, ...) of x_t, in the form of ``variance``."""
        mean, white = self.sde.marginal_prob(jnp.stack([self.mean] * t.shape[0]), t)
        scaled = ops.batch_mul(jnp.square(self.sde.mean_scale(t)), jnp.stack([self.variance] * t.shape[0]))
        return mean, scaled + self._white(jnp.square(white))

    def sample_at(self, key: Key, t: Array) -> Array:
        """Draw one x_t for each time; (B, H, W, C) from t (B,)."""
        of_data, of_noise = jax.random.split(key)
        mean, std = self.sde.marginal_prob(self.sample(of_data, t.shape[0]), t)
        return mean + ops.batch_mul(std, jax.random.normal(of_noise, mean.shape, jnp.float32))

    def _facts_at(self, x: Array, t: Array) -> _Facts:
        if x.shape[1:] != self.shape:
            raise PdsError(f"this law is of images (H, W, C) = {self.shape}, got a batch of shape {x.shape}")
        scale = self.sde.mean_scale(t)
        return self._facts(ops.batch_mul(1 / scale, x), jnp.square(self.sde.std(t) / scale))

    def _white(self, v: Array) -> Array:
        """White noise of variance v (B,) in the form of ``variance``: it adds to each alike."""
        return _as(v, self.variance.ndim + 1)


class _Gaussian(ExactScore):
    """N(μ, Σ); subclasses differ in the modes in which Σ is diagonal, with variances P, by default ``variance``."""

    @property
    def _modes(self) -> Array:
        """P."""
        return self.variance

    @abc.abstractmethod
    def _filtered(self, x: Array, gain: Array) -> Array:
        """Multiply the modes of x (B, H, W, C) by their gain (B or 1, modes)."""

    @abc.abstractmethod
    def _sum(self, of_modes: Array) -> Array:
        """Sum a function of the modes, (B, modes), over all D dimensions; (B,)."""

    def sample(self, key: Key, n: int) -> Array:
        """μ + Σ^½ z; (n, H, W, C) float32."""
        z = jax.random.normal(key, (_checked_count(n), *self.shape), jnp.float32)
        return self.mean[None] + self._filtered(z, jnp.sqrt(self._modes)[None])

    def _facts(self, x_bar: Array, v: Array) -> _Facts:
        offset, p = x_bar - self.mean[None], self._modes[None]
        total = p + _as(v, p.ndim)
        score = -self._filtered(offset, 1 / total)
        log_prob = 0.5 * (jnp.sum(offset * score, axis=(1, 2, 3)) - self._sum(_LOG_2PI + jnp.log(total)))
        return _Facts(score, self.mean[None] + self._filtered(offset, p / total), log_prob)


@flax.struct.dataclass
class FrequencyGaussian(_Gaussian):
    """Gaussian with independent frequencies: ∇ log q_v = −F⁻¹[F(x̄ − μ)/(P + v)].

    ``variance`` is the spectrum P (H, W // 2 + 1, C); white noise of variance 1 has P = 1.
    """

    @classmethod
    def create(cls, sde: SDE, mean: Any, power: Any) -> FrequencyGaussian:
        """Make the law.

        Args:
          sde: the SDE.
          mean: (H, W, C) μ.
          power: (H, W // 2 + 1, C) P.

        Returns:
          The law.

        Raises:
          PdsError: shapes that do not fit, negative or non-finite power, power not even (no real image has it).
        """
        mean = _checked("mean", mean, ndim=3)
        height, width, channels = mean.shape
        power = _checked("power", power, (height, width // 2 + 1, channels), nonnegative=True)
        paired = power[:, [0] if width % 2 else [0, width // 2]]  # columns that hold both k and −k
        if not np.allclose(paired, np.roll(paired[::-1], 1, axis=0), rtol=_ROUNDING, atol=_ROUNDING * power.max()):
            raise PdsError("power must be even, P(k) = P(−k): columns 0 and W/2 of this half plane are not")
        return cls(sde, jnp.asarray(mean), jnp.asarray(power))

    def _filtered(self, x: Array, gain: Array) -> Array:
        return filtered(x, gain)

    def _sum(self, of_modes: Array) -> Array:
        return math.prod(self.shape) * plane_mean(of_modes, self.shape[1])


@flax.struct.dataclass
class PixelGaussian(_Gaussian):
    """Gaussian with independent pixels: ∇ log q_v = −(x̄ − μ)/(V + v)."""

    @classmethod
    def create(cls, sde: SDE, mean: Any, var: Any) -> PixelGaussian:
        """Make the law.

        Args:
          sde: the SDE.
          mean: (H, W, C) μ.
          var: (H, W, C) V.

        Returns:
          The law.

        Raises:
          PdsError: shapes that do not fit, negative or non-finite variance.
        """
        mean = _checked("mean", mean, ndim=3)
        return cls(sde, jnp.asarray(mean), jnp.asarray(_checked("var", var, mean.shape, nonnegative=True)))

    def _filtered(self, x: Array, gain: Array) -> Array:
        return gain * x

    def _sum(self, of_modes: Array) -> Array:
        return jnp.sum(of_modes, axis=(1, 2, 3))


@flax.struct.dataclass
class DenseGaussian(_Gaussian):
    """Gaussian with any Σ = U diag(λ) Uᵀ, for small images: ∇ log q_v = −U diag(1/(λ + v)) Uᵀ(x̄ − μ).

    ``variance`` is Σ (D, D).

    Attributes:
      eigenvalues: (D,) λ.
      eigenvectors: (D, D) U, one per column.
    """

    eigenvalues: Array
    eigenvectors: Array

    @classmethod
    def create(cls, sde: SDE, mean: Any, covariance: Any) -> DenseGaussian:
        """Decompose the covariance, in float64 on the host.

        Args:
          sde: the SDE.
          mean: (H, W, C), or (D,) for images of shape (1, 1, D).
          covariance: (D, D) Σ of the flattened images.

        Returns:
          The law.

        Raises:
          PdsError: shapes that do not fit, Σ not symmetric or not positive semi-definite.
        """
        mean = np.asarray(mean)
        mean = _checked("mean", mean[None, None] if mean.ndim == 1 else mean, ndim=3)
        sigma = _checked("covariance", covariance, (mean.size, mean.size), dtype=np.float64)
        slack = _ROUNDING * np.abs(sigma).max()
        if np.abs(sigma - sigma.T).max() > slack:
            raise PdsError("the covariance is not symmetric")
        values, vectors = np.linalg.eigh((sigma + sigma.T) / 2)
        if values[0] < -slack:
            raise PdsError(f"the covariance has a negative eigenvalue, {values[0]:g}")
        return cls(sde, *(jnp.asarray(a, jnp.float32) for a in (mean, sigma, np.maximum(values, 0), vectors)))

    @property
    def _modes(self) -> Array:
        return self.eigenvalues

    def _filtered(self, x: Array, gain: Array) -> Array:
        modes = gain * jnp.matmul(x.reshape(x.shape[0], -1), self.eigenvectors, precision=_HIGHEST)
        return jnp.matmul(modes, self.eigenvectors.T, precision=_HIGHEST).reshape(x.shape)

    def _sum(self, of_modes: Array) -> Array:
        return jnp.sum(of_modes, axis=1)

    def _white(self, v: Array) -> Array:
        return _as(v, 3) * jnp.eye(self.eigenvalues.size, dtype=jnp.float32)[None]


@flax.struct.dataclass
class GaussianMixture(ExactScore):
    """Σ_k w_k N(μ_k, V_k): ∇ log q_v = −Σ_k r_k (x̄ − μ_k)/(V_k + v), r_k ∝ w_k N(x̄; μ_k, V_k + v).

    For few components: an evaluation holds B·K images.

    Attributes:
      log_weights: (K,) log w.
      means: (K, H, W, C) μ_k.
      variances: (K, H, W, C) V_k.
    """

    log_weights: Array
    means: Array
    variances: Array

    @classmethod
    def create(cls, sde: SDE, weights: Any, means: Any, variances: Any) -> GaussianMixture:
        """Make the law.

        Args:
          sde: the SDE.
          weights: (K,), not negative, with any positive sum.
          means: (K, H, W, C).
          variances: one number or (K,), isotropic; or (K, H, W, C), diagonal.

        Returns:
          The law.

        Raises:
          PdsError: no component, shapes that do not fit, negative weights or variances.
        """
        means = _checked("means", means, ndim=4)
        weights = _checked("weights", weights, means.shape[:1], nonnegative=True)
        variances = _checked("variances", variances, nonnegative=True)
        if variances.shape not in ((), means.shape[:1], means.shape):
            raise PdsError(f"variances must be of shape (), (K,) or {means.shape}, got {variances.shape}")
        if not weights.sum() > 0:
            raise PdsError("all weights of the mixture are 0")
        if variances.ndim == 1:
            variances = variances[:, None, None, None]
        variances = np.broadcast_to(variances, means.shape)
        w = weights / weights.sum()
        mean = np.tensordot(w, means, 1)
        variance = np.tensordot(w, variances + np.square(means - mean), 1)
        with np.errstate(divide="ignore"):
            arrays = mean, variance, np.log(w), means, variances
        return cls(sde, *(jnp.asarray(a) for a in arrays))

    def sample(self, key: Key, n: int) -> Array:
        """Draw a component, then from it; (n, H, W, C) float32."""
        of_component, of_noise = jax.random.split(key)
        k = jax.random.categorical(of_component, self.log_weights, shape=(_checked_count(n),))
        return self.means[k] + jnp.sqrt(self.variances[k]) * jax.random.normal(of_noise, (n, *self.shape), jnp.float32)

    def _facts(self, x_bar: Array, v: Array) -> _Facts:
        # Images are rows here: on CPU, XLA is fast over a long last axis and slow over a channel axis of length 1.
        rows = len(self.means), -1
        means, variances = self.means.reshape(rows)[None], self.variances.reshape(rows)[None]
        offset = x_bar.reshape(x_bar.shape[0], 1, -1) - means
        total = variances + _as(v, 3)
        terms = jnp.square(offset) / total + jnp.log(total) + _LOG_2PI
        log_parts = self.log_weights[None] - 0.5 * jnp.sum(terms, axis=2)
        r = jax.nn.softmax(log_parts, axis=1)[:, :, None]
        return _Facts(
            score=-jnp.sum(r * (offset / total), axis=1).reshape(x_bar.shape),
            denoised=jnp.sum(r * (means + variances / total * offset), axis=1).reshape(x_bar.shape),
            log_prob=jax.nn.logsumexp(log_parts, axis=1),
        )


@flax.struct.dataclass
class EmpiricalLaw(ExactScore):
    """Images y_k widened by N(0, h²): ∇ log q_v = (Σ_k w_k y_k − x̄)/(h² + v), w = softmax(−‖x̄ − y_k‖²/2(h² + v)).

    The softmax runs over chunks of images with a running maximum, so beyond the images an evaluation holds one chunk
    and (B, chunk) logits. The logits come from a float32 matrix product of centred images: they err by about
    1e-7 ‖x̄ − μ‖ ‖y_k − μ‖/(h² + v), which matters only between images that are nearly as close to x̄ as each other.

    Attributes:
      points: (chunks, chunk, D) images less their mean; the last may be padding.
      bias: (chunks, chunk) −½‖points‖², −∞ for padding.
      width: h.
      count: number of images.
    """

    points: Array
    bias: Array
    width: Array
    count: Array

    @classmethod
    def create(cls, sde: SDE, images: Any, width: float, chunk: int = 1024) -> EmpiricalLaw:
        """Centre the images and cut them into chunks.

        Args:
          sde: the SDE.
          images: (N, H, W, C) floating point, in the model's range.
          width: h ≥ 0, in the same units; 0 leaves point masses.
          chunk: images per chunk.

        Returns:
          The law.

        Raises:
          PdsError: no image, another shape or dtype, values not finite, negative width, chunk < 1.
        """
        if not 0 <= width < math.inf or chunk < 1:
            raise PdsError(f"width={width}, chunk={chunk}: needs a width of at least 0 and chunks of at least 1 image")
        if np.issubdtype(np.asarray(images).dtype, np.integer):
            raise PdsError("images of integers: give them in the model's range, or uint8 ones to from_images")
        images = _checked("images", images, ndim=4)
        n, shape, chunk = len(images), images.shape[1:], min(chunk, len(images))
        mean = images.mean(axis=0, dtype=np.float64).astype(np.float32)
        points = np.zeros((-(-n // chunk), chunk, math.prod(shape)), np.float32)
        np.subtract(images, mean, out=points.reshape(-1, *shape)[:n])
        squares = np.stack([np.square(block, dtype=np.float64).sum(axis=1) for block in points])
        variance = sum(np.square(block, dtype=np.float64).sum(axis=0) for block in points).reshape(shape) / n + width**2
        bias = np.where(np.arange(squares.size).reshape(squares.shape) < n, -0.5 * squares, -math.inf)
        floats = (jnp.asarray(a, jnp.float32) for a in (mean, variance, points, bias, width))
        return cls(sde, *floats, count=jnp.int32(n))  # type: ignore[misc]

    def sample(self, key: Key, n: int) -> Array:
        """Draw an image, then its noise; (n, H, W, C) float32."""
        of_image, of_noise = jax.random.split(key)
        k = jax.random.randint(of_image, (_checked_count(n),), 0, self.count)
        z = jax.random.normal(of_noise, (n, *self.shape), jnp.float32)
        return self.mean[None] + self.points.reshape(-1, *self.shape)[k] + self.width * z

    def _facts(self, x_bar: Array, v: Array) -> _Facts:
        x = (x_bar - self.mean[None]).reshape(x_bar.shape[0], -1)
        v = v[:, None]
        total = jnp.square(self.width) + v
        average, nearest, log_mass = self._softmax(x, total)
        denoised = v / total * average + jnp.square(self.width) / total * x
        # The nearest image's term exactly, the others relative to it: the expanded square would cost log_prob digits.
        log_nearest = -0.5 * jnp.sum(jnp.square(x - nearest) / total + jnp.log(total) + _LOG_2PI, axis=1)
        return _Facts(
            score=((average - x) / total).reshape(x_bar.shape),
            denoised=self.mean[None] + denoised.reshape(x_bar.shape),
            log_prob=log_nearest + log_mass - jnp.log(self.count.astype(jnp.float32)),
        )

    def _softmax(self, x: Array, total: Array) -> tuple[Array, Array, Array]:
        """Σ_k w_k y_k (B, D), the nearest y (B, D), and log Σ_k q_k/q_nearest (B,), at x (B, D), h² + v (B, 1)."""

        def add(carry: Any, block: Any) -> tuple[Any, None]:
            top, best, mass, weighted = carry
            points, bias, first = block
            logits = (jnp.matmul(x, points.T, precision=_HIGHEST) + bias[None]) / total
            here, at = jnp.max(logits, axis=1), first + jnp.argmax(logits, axis=1).astype(jnp.int32)
            new_top = jnp.maximum(top, here)
            old, weights = jnp.exp(top - new_top), jnp.exp(logits - new_top[:, None])
            mass = old * mass + jnp.sum(weights, axis=1)
            weighted = old[:, None] * weighted + jnp.matmul(weights, points, precision=_HIGHEST)
            return (new_top, jnp.where(here > top, at, best), mass, weighted), None

        nothing = jnp.zeros_like(x[:, 0])
        start = nothing - jnp.inf, nothing.astype(jnp.int32), nothing, jnp.zeros_like(x)
        firsts = self.points.shape[1] * jnp.arange(self.points.shape[0], dtype=jnp.int32)
        (_, best, mass, weighted), _ = jax.lax.scan(add, start, (self.points, self.bias, firsts))
        return weighted / mass[:, None], self.points.reshape(-1, x.shape[1])[best], jnp.log(mass)


def from_statistics(sde: SDE, statistics: Statistics, centered: bool = False) -> FrequencyGaussian:
    """Gaussian with the mean and the spectrum of a data set.

    Args:
      sde: the SDE.
      statistics: of the data set.
      centered: whether the model works in [-1, 1] (``config.data.centered``) rather than [0, 1].

    Returns:
      The law, in the model's range.
    """
    return FrequencyGaussian.create(sde, *statistics.to_range(centered))


def from_images(sde: SDE, images: Any, width: float, centered: bool = False, chunk: int = 1024) -> EmpiricalLaw:
    """Empirical law of a data set.

    Args:
      sde: the SDE.
      images: (N, H, W, C) uint8, or floating point in [0, 1].
      width: h in the model's units.
      centered: whether the model works in [-1, 1] (``config.data.centered``) rather than [0, 1].
      chunk: images per chunk.

    Returns:
      The law, in the model's range.

    Raises:
      PdsError: as :func:`pds_jax.statistics.checked_images` and :meth:`EmpiricalLaw.create`.
    """
    (checked,) = checked_images([images])
    return EmpiricalLaw.create(sde, 2 * checked - 1 if centered else checked, width, chunk)


def _as(v: Array, ndim: int) -> Array:
    """v (B,) with `ndim` axes, all but the first of length 1."""
    return v.reshape(v.shape + (1,) * (ndim - 1))


def _checked(
    name: str,
    values: Any,
    shape: tuple[int, ...] | None = None,
    *,
    ndim: int | None = None,
    nonnegative: bool = False,
    dtype: Any = np.float32,
) -> np.ndarray:
    """A finite, non-empty array of the expected shape or rank, on the host."""
    array = np.asarray(values, dtype)
    if shape is not None and array.shape != shape:
        raise PdsError(f"{name} has shape {array.shape}, expected {shape}")
    if ndim is not None and array.ndim != ndim:
        raise PdsError(f"{name} has shape {array.shape}, expected {'(H, W, C)' if ndim == 3 else '(N, H, W, C)'}")
    if array.size == 0:
        raise PdsError(f"{name} is empty, of shape {array.shape}")
    if not np.isfinite(array).all() or (nonnegative and (array < 0).any()):
        wanted = "finite and not negative" if nonnegative else "finite"
        raise PdsError(f"{name} must be {wanted}; it has values from {array.min():g} to {array.max():g}")
    return array


def _checked_count(n: int) -> int:
    if n < 1:
        raise PdsError(f"n={n}: draw at least one image")
    return n
