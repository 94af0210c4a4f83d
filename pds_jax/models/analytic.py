"""Exact scores: laws of x_0 for which the score of x_t = m_t x_0 + std_t z is known in closed form.

Everything is written for x̄ = x/m_t, whose noise variance is v = (std_t/m_t)², so that the three SDEs are one case:

    s(x, t) = ∇ log q_v(x̄) / m_t,    E[x_0 | x_t] = x̄ + v ∇ log q_v(x̄),    log p_t(x) = log q_v(x̄) − dim log m_t

with q_v the law of x_0 + √v z. Each law is a pytree, its SDE a leaf: pass it through ``jax.jit`` as an argument, and
``law.replace(sde=...)`` is the same law under another SDE. Toy problems in the plane are images of shape (1, 1, 2).

Source: Tweedie's formula (Efron, "Tweedie's formula and selection bias", 2011); the rest derived, see docs/theory.md.
"""

from __future__ import annotations

import abc
import math
from typing import Any

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


@flax.struct.dataclass
class ExactScore(abc.ABC):
    """A law of x_0 with its exact score; a subclass writes three functions of (x̄ (B, H, W, C), v (B,)).

    Attributes:
      sde: the SDE that adds the noise.
    """

    sde: SDE

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of one image."""

    @abc.abstractmethod
    def sample(self, key: Key, n: int) -> Array:
        """Draw x_0 exactly.

        Args:
          key: random key.
          n: number of images.

        Returns:
          (n, H, W, C) float32.
        """

    @abc.abstractmethod
    def moments(self) -> tuple[Array, Array]:
        """Mean (H, W, C) of x_0, and its variances as the law describes them (see the class)."""

    @abc.abstractmethod
    def _score(self, x_bar: Array, v: Array) -> Array:
        """∇ log q_v."""

    @abc.abstractmethod
    def _denoised(self, x_bar: Array, v: Array) -> Array:
        """E[x_0 | x̄], without the cancellation of x̄ + v ∇ log q_v under much noise."""

    @abc.abstractmethod
    def _log_prob(self, x_bar: Array, v: Array) -> Array:
        """log q_v."""

    def __call__(self, x: Array, t: Array) -> Array:
        """Score s(x, t) = ∇ log p_t(x).

        Args:
          x: (B, H, W, C) float32.
          t: (B,) times.

        Returns:
          (B, H, W, C) float32.
        """
        scale, x_bar, v = self._normalised(x, t)
        return ops.batch_mul(1 / scale, self._score(x_bar, v))

    def denoiser(self, x: Array, t: Array) -> Array:
        """E[x_0 | x_t = x]; shapes as in the call."""
        _, x_bar, v = self._normalised(x, t)
        return self._denoised(x_bar, v)

    def log_prob(self, x: Array, t: Array) -> Array:
        """log p_t(x) in nats; (B,) from x (B, H, W, C), t (B,)."""
        scale, x_bar, v = self._normalised(x, t)
        return self._log_prob(x_bar, v) - math.prod(self.shape) * jnp.log(scale)

    def marginal(self, t: Array) -> tuple[Array, Array]:
        """Mean m_t μ and variances m_t² V + std_t² of x_t, with (μ, V) = :meth:`moments`.

        Args:
          t: (B,) times.

        Returns:
          (B, H, W, C) mean and (B, ...) variances.
        """
        mean, variance = (jnp.broadcast_to(a[None], (t.shape[0], *a.shape)) for a in self.moments())
        scale, std = self.sde.mean_scale(t), self.sde.std(t)
        return ops.batch_mul(scale, mean), ops.batch_mul(jnp.square(scale), variance) + self._white(std, variance)

    def sample_at(self, key: Key, t: Array) -> Array:
        """Draw one x_t per time; (B, H, W, C) from t (B,)."""
        of_data, of_noise = jax.random.split(key)
        mean, std = self.sde.marginal_prob(self.sample(of_data, t.shape[0]), t)
        return mean + ops.batch_mul(std, jax.random.normal(of_noise, mean.shape, jnp.float32))

    def _normalised(self, x: Array, t: Array) -> tuple[Array, Array, Array]:
        """(m_t, x̄, v), after a check of the shape."""
        if x.shape[1:] != self.shape:
            raise PdsError(f"this law is of images (H, W, C) = {self.shape}, got a batch of shape {x.shape}")
        scale, std = self.sde.mean_scale(t), self.sde.std(t)
        return scale, ops.batch_mul(1 / scale, x), jnp.square(std / scale)

    def _white(self, std: Array, variance: Array) -> Array:
        """Variances of std z in the form of :meth:`moments`: white noise adds to each alike."""
        return _as(jnp.square(std), variance)


class _Gaussian(ExactScore):
    """What Gaussian laws share; they differ in the basis in which the covariance is diagonal.

    A subclass has ``mean`` (H, W, C) and says what its modes are.
    """

    mean: Array

    @property
    @abc.abstractmethod
    def _modes(self) -> Array:
        """Variance P of each mode."""

    @abc.abstractmethod
    def _filtered(self, x: Array, gain: Array) -> Array:
        """Multiply each mode of x (B, H, W, C) by its gain (B or 1, modes)."""

    @abc.abstractmethod
    def _sum(self, of_modes: Array) -> Array:
        """Sum over all dimensions of a function of the modes; (B,) from (B, modes)."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of one image."""
        height, width, channels = self.mean.shape
        return height, width, channels

    def moments(self) -> tuple[Array, Array]:
        """Mean (H, W, C) and P."""
        return self.mean, self._modes

    def sample(self, key: Key, n: int) -> Array:
        """μ + Σ^½ z; see :meth:`ExactScore.sample`."""
        z = jax.random.normal(key, (_checked_count(n), *self.shape), jnp.float32)
        return self.mean[None] + self._filtered(z, jnp.sqrt(self._modes)[None])

    def _total(self, v: Array) -> Array:
        """P + v; (B, modes)."""
        return self._modes[None] + _as(v, self._modes[None])

    def _score(self, x_bar: Array, v: Array) -> Array:
        return -self._filtered(x_bar - self.mean[None], 1 / self._total(v))

    def _denoised(self, x_bar: Array, v: Array) -> Array:
        return self.mean[None] + self._filtered(x_bar - self.mean[None], self._modes[None] / self._total(v))

    def _log_prob(self, x_bar: Array, v: Array) -> Array:
        offset, total = x_bar - self.mean[None], self._total(v)
        mahalanobis = jnp.sum(offset * self._filtered(offset, 1 / total), axis=(1, 2, 3))
        return -0.5 * (mahalanobis + self._sum(_LOG_2PI + jnp.log(total)))


@flax.struct.dataclass
class FrequencyGaussian(_Gaussian):
    """Gaussian with independent frequencies: s = −F⁻¹[F(x̄ − μ)/(P + v)]/m_t.

    Attributes:
      sde: the SDE.
      mean: (H, W, C) μ.
      power: (H, W // 2 + 1, C) spectrum P; white noise of variance 1 has P = 1. The variances of
        :meth:`ExactScore.marginal` are spectra too.
    """

    mean: Array
    power: Array

    @classmethod
    def create(cls, sde: SDE, mean: Any, power: Any) -> FrequencyGaussian:
        """Check and convert; arguments as the attributes.

        Raises:
          PdsError: shapes that do not fit, negative or non-finite power, power not even (then not of real images).
        """
        mean = _checked("mean", mean, ndim=3)
        height, width, channels = mean.shape
        power = _checked("power", power, (height, width // 2 + 1, channels), nonnegative=True)
        own = power[:, [0] if width % 2 else [0, width // 2]]
        if not np.allclose(own, np.roll(own[::-1], 1, axis=0), rtol=_ROUNDING, atol=_ROUNDING * float(power.max())):
            raise PdsError("power must be even, P(k) = P(−k): columns 0 and W/2 of the half plane are not")
        return cls(sde, jnp.asarray(mean), jnp.asarray(power))

    @property
    def _modes(self) -> Array:
        return self.power

    def _filtered(self, x: Array, gain: Array) -> Array:
        return filtered(x, gain)

    def _sum(self, of_modes: Array) -> Array:
        return math.prod(self.shape) * plane_mean(of_modes, self.shape[1])


@flax.struct.dataclass
class PixelGaussian(_Gaussian):
    """Gaussian with independent pixels: s = −(x̄ − μ)/(V + v)/m_t.

    Attributes:
      sde: the SDE.
      mean: (H, W, C) μ.
      var: (H, W, C) V.
    """

    mean: Array
    var: Array

    @classmethod
    def create(cls, sde: SDE, mean: Any, var: Any) -> PixelGaussian:
        """Check and convert; arguments as the attributes.

        Raises:
          PdsError: shapes that do not fit, negative or non-finite variance.
        """
        mean = _checked("mean", mean, ndim=3)
        var = _checked("var", var, mean.shape, nonnegative=True)
        return cls(sde, jnp.asarray(mean), jnp.asarray(var))

    @property
    def _modes(self) -> Array:
        return self.var

    def _filtered(self, x: Array, gain: Array) -> Array:
        return gain * x

    def _sum(self, of_modes: Array) -> Array:
        return jnp.sum(of_modes, axis=(1, 2, 3))


@flax.struct.dataclass
class DenseGaussian(_Gaussian):
    """Gaussian with any covariance Σ = U diag(λ) Uᵀ, for small images: s = −U diag(1/(λ + v)) Uᵀ(x̄ − μ)/m_t.

    The variances of :meth:`ExactScore.marginal` are covariances (B, D, D), D = H·W·C.

    Attributes:
      sde: the SDE.
      mean: (H, W, C) μ.
      eigenvalues: (D,) λ.
      eigenvectors: (D, D) U, one per column.
    """

    mean: Array
    eigenvalues: Array
    eigenvectors: Array

    @classmethod
    def create(cls, sde: SDE, mean: Any, covariance: Any, shape: tuple[int, int, int] | None = None) -> DenseGaussian:
        """Decompose the covariance, in float64 on the host.

        Args:
          sde: the SDE.
          mean: (D,) or (H, W, C) μ.
          covariance: (D, D) Σ over the flattened image.
          shape: (H, W, C); by default the mean's, or (1, 1, D).

        Returns:
          The law.

        Raises:
          PdsError: shapes that do not fit, Σ not symmetric or not positive semi-definite.
        """
        mean = _checked("mean", mean)
        shape = shape or (mean.shape if mean.ndim == 3 else (1, 1, mean.size))
        if math.prod(shape) != mean.size:
            raise PdsError(f"a mean of {mean.size} values is no image of shape (H, W, C) = {tuple(shape)}")
        sigma = _checked("covariance", covariance, (mean.size, mean.size), dtype=np.float64)
        slack = _ROUNDING * float(np.abs(sigma).max())
        if np.abs(sigma - sigma.T).max() > slack:
            raise PdsError("the covariance is not symmetric")
        values, vectors = np.linalg.eigh((sigma + sigma.T) / 2)
        if values[0] < -slack:
            raise PdsError(f"the covariance has a negative eigenvalue, {values[0]:g}")
        to_jax = [jnp.asarray(a, jnp.float32) for a in (mean.reshape(shape), np.maximum(values, 0), vectors)]
        return cls(sde, *to_jax)

    def moments(self) -> tuple[Array, Array]:
        """Mean (H, W, C) and Σ (D, D)."""
        scaled = self.eigenvectors * self.eigenvalues[None]
        return self.mean, jnp.matmul(scaled, self.eigenvectors.T, precision=_HIGHEST)

    @property
    def _modes(self) -> Array:
        return self.eigenvalues

    def _filtered(self, x: Array, gain: Array) -> Array:
        modes = gain * jnp.matmul(x.reshape(x.shape[0], -1), self.eigenvectors, precision=_HIGHEST)
        return jnp.matmul(modes, self.eigenvectors.T, precision=_HIGHEST).reshape(x.shape)

    def _sum(self, of_modes: Array) -> Array:
        return jnp.sum(of_modes, axis=1)

    def _white(self, std: Array, variance: Array) -> Array:
        return _as(jnp.square(std), variance) * jnp.eye(variance.shape[1], dtype=jnp.float32)[None]


@flax.struct.dataclass
class GaussianMixture(ExactScore):
    """Σ_k w_k N(μ_k, V_k): s = −Σ_k r_k (x̄ − μ_k)/(V_k + v)/m_t with responsibilities r ∝ w N(x̄; μ, V + v).

    Memory is B·K images: for few components. Variances of :meth:`ExactScore.marginal` are those of single pixels.

    Attributes:
      sde: the SDE.
      log_weights: (K,) log w.
      means: (K, H, W, C) μ.
      variances: (K, H, W, C) V.
    """

    log_weights: Array
    means: Array
    variances: Array

    @classmethod
    def create(cls, sde: SDE, weights: Any, means: Any, variances: Any) -> GaussianMixture:
        """Check, normalise and convert.

        Args:
          sde: the SDE.
          weights: (K,), not negative; any positive sum.
          means: (K, H, W, C).
          variances: a scalar or (K,), isotropic; or (K, H, W, C), diagonal.

        Returns:
          The law.

        Raises:
          PdsError: no component, shapes that do not fit, negative weights or variances.
        """
        means = _checked("means", means, ndim=4)
        weights = _checked("weights", weights, means.shape[:1], nonnegative=True)
        variances = _checked("variances", variances, nonnegative=True)
        if variances.shape not in ((), means.shape[:1], means.shape):
            raise PdsError(f"variances must be (), (K,) or (K, H, W, C) = {means.shape}, got {variances.shape}")
        if weights.sum() <= 0:
            raise PdsError("all weights of the mixture are 0")
        variances = variances.reshape(variances.shape + (1,) * (4 - variances.ndim)) if variances.ndim else variances
        with np.errstate(divide="ignore"):
            log_weights = np.log(weights / weights.sum())
        variances = np.broadcast_to(variances, means.shape)
        return cls(
            sde, jnp.asarray(log_weights), jnp.asarray(means), jnp.asarray(np.broadcast_to(variances, means.shape))
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of one image."""
        _, height, width, channels = self.means.shape
        return height, width, channels

    def moments(self) -> tuple[Array, Array]:
        """Mean (H, W, C) and variance (H, W, C) of each pixel."""
        w = jnp.exp(self.log_weights)
        mean = jnp.sum(ops.batch_mul(w, self.means), axis=0)
        return mean, jnp.sum(ops.batch_mul(w, self.variances + jnp.square(self.means - mean[None])), axis=0)

    def sample(self, key: Key, n: int) -> Array:
        """A component, then its Gaussian; see :meth:`ExactScore.sample`."""
        of_component, of_noise = jax.random.split(key)
        k = jax.random.categorical(of_component, self.log_weights, shape=(_checked_count(n),))
        z = jax.random.normal(of_noise, (n, *self.shape), jnp.float32)
        return self.means[k] + jnp.sqrt(self.variances[k]) * z

    def _parts(self, x_bar: Array, v: Array) -> tuple[Array, Array, Array]:
        """x̄ − μ_k (B, K, H, W, C), V_k + v (B, K, H, W, C), log w_k N(x̄; μ_k, V_k + v) (B, K)."""
        offset = x_bar[:, None] - self.means[None]
        total = self.variances[None] + _as(v, offset)
        log_parts = jnp.sum(jnp.square(offset) / total + jnp.log(total) + _LOG_2PI, axis=(2, 3, 4))
        return offset, total, self.log_weights[None] - 0.5 * log_parts

    def _score(self, x_bar: Array, v: Array) -> Array:
        offset, total, log_parts = self._parts(x_bar, v)
        return -jnp.sum(jax.nn.softmax(log_parts, axis=1)[..., None, None, None] * (offset / total), axis=1)

    def _denoised(self, x_bar: Array, v: Array) -> Array:
        offset, total, log_parts = self._parts(x_bar, v)
        of_component = self.means[None] + self.variances[None] / total * offset
        return jnp.sum(jax.nn.softmax(log_parts, axis=1)[..., None, None, None] * of_component, axis=1)

    def _log_prob(self, x_bar: Array, v: Array) -> Array:
        return jax.nn.logsumexp(self._parts(x_bar, v)[2], axis=1)


@flax.struct.dataclass
class EmpiricalLaw(ExactScore):
    """Images y_k widened by N(0, h²): s = (Σ_k w_k y_k − x̄)/(h² + v)/m_t, w = softmax(−‖x̄ − y_k‖²/2(h² + v)).

    The softmax runs over chunks of images with a running maximum, so memory beyond the images is that of B·chunk
    logits and one chunk. Distances come from one matrix product of centred data in float32 (full precision also on
    accelerators): a squared distance errs by about 1e-7 times the squared norms, so two images weigh against each
    other correctly as long as h² + v stays well above that. Variances of :meth:`ExactScore.marginal` are of pixels.

    Attributes:
      sde: the SDE.
      mean: (H, W, C) mean image.
      var: (H, W, C) variance of each pixel, h² included.
      points: (chunks, chunk, D) images less the mean; the last ones may be padding.
      bias: (chunks, chunk) −½‖points‖², −∞ for padding.
      width: h.
      count: number of images.
    """

    mean: Array
    var: Array
    points: Array
    bias: Array
    width: Array
    count: Array

    @classmethod
    def create(cls, sde: SDE, images: Any, width: float = 0.0, chunk: int = 1024) -> EmpiricalLaw:
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
        if not 0 <= width < math.inf:
            raise PdsError(f"width={width}: the images are widened by a standard deviation of at least 0")
        if chunk < 1:
            raise PdsError(f"chunk={chunk}: at least one image per chunk")
        images = _checked("images", images, ndim=4)
        n, shape = len(images), images.shape[1:]
        chunk = min(chunk, n)
        mean = images.mean(axis=0, dtype=np.float64).astype(np.float32)
        points = np.zeros((-(-n // chunk), chunk, math.prod(shape)), np.float32)
        points.reshape(-1, *shape)[:n] = images - mean
        squares = [np.square(block, dtype=np.float64) for block in points]
        bias = -0.5 * np.stack([block.sum(axis=1) for block in squares])
        bias.reshape(-1)[n:] = -math.inf
        var = sum(block.sum(axis=0) for block in squares).reshape(shape) / n + width**2
        arrays = (mean, var, points, bias, width)
        to_jax = [jnp.asarray(a, jnp.float32) for a in arrays]
        return cls(sde, *to_jax, count=jnp.int32(n))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of one image."""
        height, width, channels = self.mean.shape
        return height, width, channels

    def moments(self) -> tuple[Array, Array]:
        """Mean (H, W, C) and variance (H, W, C) of each pixel."""
        return self.mean, self.var

    def sample(self, key: Key, n: int) -> Array:
        """An image, then its noise; see :meth:`ExactScore.sample`."""
        of_image, of_noise = jax.random.split(key)
        k = jax.random.randint(of_image, (_checked_count(n),), 0, self.count)
        z = jax.random.normal(of_noise, (n, *self.shape), jnp.float32)
        return self.mean[None] + self.points.reshape(-1, *self.shape)[k] + self.width * z

    def _sums(self, x_bar: Array, v: Array) -> tuple[Array, Array, Array, Array]:
        """Centred x̄ (B, D), h² + v (B, 1), Σ_k w_k y_k (B, D), log Σ_k exp((x̄·y_k − ½‖y_k‖²)/(h² + v)) (B,)."""
        x = (x_bar - self.mean[None]).reshape(x_bar.shape[0], -1)
        total = (jnp.square(self.width) + v)[:, None]

        def add(carry: tuple[Array, Array, Array], block: tuple[Array, Array]) -> tuple[Any, None]:
            top, mass, weighted = carry
            points, bias = block
            logits = (jnp.matmul(x, points.T, precision=_HIGHEST) + bias[None]) / total
            new_top = jax.lax.stop_gradient(jnp.maximum(top, jnp.max(logits, axis=1)))
            weights, old = jnp.exp(logits - new_top[:, None]), jnp.exp(top - new_top)
            weighted = old[:, None] * weighted + jnp.matmul(weights, points, precision=_HIGHEST)
            return (new_top, old * mass + jnp.sum(weights, axis=1), weighted), None

        start = jnp.full(x.shape[:1], -jnp.inf, jnp.float32), jnp.zeros(x.shape[:1], jnp.float32), jnp.zeros_like(x)
        (top, mass, weighted), _ = jax.lax.scan(add, start, (self.points, self.bias))
        return x, total, weighted / mass[:, None], top + jnp.log(mass)

    def _score(self, x_bar: Array, v: Array) -> Array:
        x, total, nearest, _ = self._sums(x_bar, v)
        return ((nearest - x) / total).reshape(x_bar.shape)

    def _denoised(self, x_bar: Array, v: Array) -> Array:
        x, total, nearest, _ = self._sums(x_bar, v)
        offset = (v[:, None] / total) * nearest + (jnp.square(self.width) / total) * x
        return self.mean[None] + offset.reshape(x_bar.shape)

    def _log_prob(self, x_bar: Array, v: Array) -> Array:
        x, total, _, log_sum = self._sums(x_bar, v)
        log_norm = 0.5 * x.shape[1] * (_LOG_2PI + jnp.log(total[:, 0])) + jnp.log(self.count.astype(jnp.float32))
        return log_sum - 0.5 * jnp.sum(jnp.square(x), axis=1) / total[:, 0] - log_norm


def from_statistics(sde: SDE, statistics: Statistics, centered: bool = False) -> FrequencyGaussian:
    """Gaussian with the mean and power spectrum of a data set.

    Args:
      sde: the SDE.
      statistics: of the data set.
      centered: whether the model works in [-1, 1] (``config.data.centered``).

    Returns:
      The law, in the model's range.
    """
    return FrequencyGaussian.create(sde, *statistics.to_range(centered))


def from_images(sde: SDE, images: Any, width: float, centered: bool = False, chunk: int = 1024) -> EmpiricalLaw:
    """Empirical law of an image set, widened.

    Args:
      sde: the SDE.
      images: (N, H, W, C) uint8, or floating point in [0, 1].
      width: h, in the model's units.
      centered: whether the model works in [-1, 1] (``config.data.centered``).
      chunk: images per chunk of the softmax.

    Returns:
      The law, in the model's range.

    Raises:
      PdsError: bad images, as in :func:`statistics.checked_images`, or none; negative width.
    """
    (checked,) = checked_images([images])
    return EmpiricalLaw.create(sde, 2 * checked - 1 if centered else checked, width, chunk)


def _as(v: Array, like: Array) -> Array:
    """v (B,) with axes of length 1 up to the rank of `like`."""
    return v.reshape(v.shape + (1,) * (like.ndim - 1))


def _checked(
    name: str,
    values: Any,
    shape: tuple[int, ...] | None = None,
    *,
    ndim: int | None = None,
    nonnegative: bool = False,
    dtype: Any = np.float32,
) -> np.ndarray:
    """A finite floating-point array of the expected shape or rank, on the host."""
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
