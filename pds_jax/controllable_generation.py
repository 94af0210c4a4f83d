"""Conditional sampling. A condition pins the known part after every step, or the score is transformed; both use the
same sampling loop and work with every predictor, corrector and M.

*Pinning* (Song et al. 2021, appendix I.2). A measurement y = A x_0 (``operators``) fixes the part k = A⁺ y of the
image. After each update the part Π x of the state is replaced by a draw of its forward law,

    x ← x − Π x + m_t k + std_t Π z,    x_mean ← x_mean − Π x_mean + m_t k,

where t is the time of x: after a predictor step the next one, at the end that of the data. It costs nothing, and the
measurement of the result is y exactly. It is not a draw from p(x | y), because the score sees a noisy y. On Gaussian
images of 4x4 pixels of which every other is known, with 200 steps, the mean of the others is wrong by 0.045 (root mean
square), while y moves it by 0.096. With guidance it is wrong by 0.015, the Monte-Carlo error of 1024 images.

*Guidance* adds ∇ log p(y | x_t) to the score: by a classifier of noisy images (Dhariwal and Nichol 2021), or, for y =
A x_0 + σ_y n, by the law N(D, C) of x_0 given x_t (Song, Vahdat, Mardani, Kautz, ICLR 2023),

    ∇ log p(y | x_t) ≈ (∂D/∂x_t)ᵀ Aᵀ (A C Aᵀ + σ_y² I)⁻¹ (y − A D),    D = (x_t + std_t² s)/m_t,

which is exact for Gaussian data if C is theirs. It costs a backward pass of the network per step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from pds_jax import operators
from pds_jax.operators import Operator, conjugate_gradients
from pds_jax.ops import batch_mul
from pds_jax.scores import evaluations, lay_out
from pds_jax.sde_lib import SDE
from pds_jax.spectral import filtered, noise_level, per_mode
from pds_jax.types import Array, PdsError, ScoreFn

LogitFn = Callable[[Array, Array], Array]
Layout = Callable[[Any], Any]


@flax.struct.dataclass
class Known:
    """A condition of the sampler that pins a part of the image; see the top of this module.

    Every leaf begins with the batch.

    Attributes:
      operator: A.
      y: (B, ...) the measurement, in the model's range.
      known: (B, H, W, C) k = A⁺ y.
      compat: reproduce score_sde's inpainter and colorizer: the known part starts without noise, is one level behind
        after a predictor step and ends at eps, and x_mean keeps the noise of x.
    """

    operator: Operator
    y: Array
    known: Array
    compat: bool = flax.struct.field(pytree_node=False, default=False)

    def start(self, x: Array, t: Array, z: Array, sde: SDE) -> Array:
        """Pin the prior's draw.

        Args:
          x: (B, H, W, C) draw of the prior.
          t: (B,) first time.
          z: (B, H, W, C) the standard normal noise that x was made of.
          sde: the sampler's SDE.

        Returns:
          (B, H, W, C).

        Raises:
          PdsError: the images of the condition are of another shape or number.
        """
        if self.known.shape != x.shape:
            raise PdsError(f"the condition holds images {self.known.shape}, the sampler makes {x.shape}")
        if self.compat:
            return self._start_as_recorded(x)
        return self.pin(x, x, t, z, sde)[0]

    def pin(self, x: Array, x_mean: Array, t: Array, z: Array, sde: SDE) -> tuple[Array, Array]:
        """Replace the known part after an update.

        Args:
          x: (B, H, W, C) images.
          x_mean: (B, H, W, C) images before the update's noise.
          t: (B,) time that x is at; 0 stands for the data.
          z: (B, H, W, C) standard normal noise.
          sde: the sampler's SDE.

        Returns:
          x and x_mean.
        """
        m, level = noise_level(sde, t)
        clean = batch_mul(m, self.known)
        x = self.operator.merge(x, clean + batch_mul(m * level, self._noise(z)))
        return x, self.operator.merge(x if self.compat else x_mean, clean)

    def time(self, t: Array, t_next: Array) -> Array:
        """The time to pin at after a predictor step from t to t_next."""
        return t if self.compat else t_next

    def finish(self, x: Array) -> Array:
        """The result of a run, with the measurement y."""
        return x if self.compat else self.operator.merge(x, self.known)

    def _noise(self, z: Array) -> Array:
        if self.compat and isinstance(self.operator, operators.Gray):
            # score_sde draws in the rotated colour space, whose first channel is the sum over √C.
            return jnp.broadcast_to(z[..., :1], z.shape) / np.sqrt(np.float32(z.shape[-1]))
        return self.operator.project(z)

    def _start_as_recorded(self, x: Array) -> Array:
        if isinstance(self.operator, operators.Gray):
            # Its mask of the rotated space is applied to red, green, blue.
            return self.known + x.at[..., 0].set(0.0)
        return self.operator.merge(x, self.known)


def inpainting(data: np.ndarray, mask: np.ndarray, *, compat: bool = False) -> Known:
    """Keep the known pixels of images and fill in the others.

    Args:
      data: (B, H, W, C) images in the model's range; unknown pixels may hold anything.
      mask: 1 where known, else 0; (H, W), (H, W, C or 1) or (B, H, W, C or 1).
      compat: see :class:`Known`.

    Returns:
      The condition, for ``sampler.init(keys, condition)``; known pixels come back bit for bit.

    Raises:
      PdsError: shapes that do not match, a mask with other values, or known pixels that are not finite.
    """
    data = _images("data", data)
    operator = operators.pixels(mask, data.shape)
    known = _finite("known pixels", operator.forward(jnp.asarray(data)))
    return Known(operator, known, known, compat)


def colorization(
    gray: np.ndarray, *, weights: Sequence[float] | None = None, channels: int = 3, compat: bool = False
) -> Known:
    """Keep the gray values of images and generate their colours.

    Args:
      gray: (B, H, W, 1) gray values in the model's range, or (B, H, W, C) images, of which the gray values are taken.
      weights: (C,) of the channels in the gray value, of sum 1; by default the plain mean, as in score_sde.
        Image programs use ``operators.REC601``.
      channels: C.
      compat: see :class:`Known`.

    Returns:
      The condition.

    Raises:
      PdsError: other shapes or weights, or values that are not finite.
    """
    gray = _finite("gray values", _images("gray", gray))
    w = (1.0 / channels,) * channels if weights is None else weights
    operator = operators.gray(w, len(gray))
    if len(w) != channels or gray.shape[-1] not in (1, channels):
        raise PdsError(f"gray {gray.shape} with {len(w)} weights does not make images of {channels} channels")
    y = jnp.asarray(gray) if gray.shape[-1] == 1 else operator.forward(jnp.asarray(gray))
    return Known(operator, y, operator.pinv(y), compat)


def super_resolution(small: np.ndarray, factor: int) -> Known:
    """Generate images whose means over blocks of factor x factor pixels are given.

    Args:
      small: (B, H / factor, W / factor, C) images in the model's range.
      factor: side of a block.

    Returns:
      The condition.

    Raises:
      PdsError: another shape, a factor below 2, or values that are not finite.
    """
    y = jnp.asarray(_finite("small", _images("small", small)))
    operator = operators.block_mean(factor)
    return Known(operator, y, operator.pinv(y))


def deblurring(blurred: np.ndarray, kernel: np.ndarray, *, threshold: float = 0.05) -> Known:
    """Generate images that a circular blur turns into the given ones.

    Args:
      blurred: (B, H, W, C) images in the model's range.
      kernel: (h, w) of odd sides and sum 1, such as ``operators.gaussian_kernel(2.0)``.
      threshold: only frequencies that keep more than this share of their amplitude are pinned.

    Returns:
      The condition.

    Raises:
      PdsError: another shape or kernel, or values that are not finite.
    """
    blurred = _finite("blurred", _images("blurred", blurred))
    operator, y = operators.blur(kernel, blurred.shape, threshold), jnp.asarray(blurred)
    return Known(operator, y, operator.pinv(y))


@flax.struct.dataclass
class GuidedScore:
    """Score of p(x_t | y) for y = A x_0 + σ_y n; made by :func:`reconstruction_guidance`.

    Attributes:
      score_fn: s(x, t), a pytree.
      sde: the SDE of the score.
      operator: A.
      y: (B, ...) the measurement.
      power: (H, W // 2 + 1, C) spectrum P of the data, or () their variance.
      noise_std: () σ_y.
      scale: () weight of the guidance.
      steps: conjugate-gradient steps.
    """

    score_fn: Any
    sde: SDE
    operator: Operator
    y: Array
    power: Array
    noise_std: Array
    scale: Array
    steps: int = flax.struct.field(pytree_node=False)

    @property
    def evaluations(self) -> int:
        """Evaluations of the score's own network a call."""
        return evaluations(self.score_fn)

    def __call__(self, x: Array, t: Array) -> Array:
        """Score at x (B, H, W, C), t (B,); float32, shaped as x."""
        m, level = noise_level(self.sde, t)

        def denoise(x: Array) -> tuple[Array, Array]:
            s = self.score_fn(x, t)
            return batch_mul(1 / m, x) + batch_mul(m * jnp.square(level), s), s

        d, pull, s = jax.vjp(denoise, x, has_aux=True)
        variance = jnp.square(per_mode(level))
        share = self.power[None] * variance / (self.power[None] + variance) if self.power.ndim else None

        def covariance(v: Array) -> Array:
            if share is not None:
                return filtered(v, share)
            return v * (self.power * variance / (self.power + variance))

        def normal(v: Array) -> Array:
            return self.operator.forward(covariance(self.operator.transpose(v))) + jnp.square(self.noise_std) * v

        residual = conjugate_gradients(normal, self.y - self.operator.forward(d), self.steps)
        (gradient,) = pull(self.operator.transpose(residual))
        return s + self.scale * gradient

    def lay_out(self, copy: Layout, split: Layout) -> GuidedScore:
        """Place on devices: copy what all images share, split what belongs to each."""
        shared = {name: copy(getattr(self, name)) for name in ("sde", "power", "noise_std", "scale")}
        score_fn = lay_out(self.score_fn, copy, split)
        return dataclasses.replace(self, score_fn=score_fn, operator=split(self.operator), y=split(self.y), **shared)


def reconstruction_guidance(
    score_fn: ScoreFn,
    sde: SDE,
    condition: Known,
    *,
    power: np.ndarray | float = 1.0,
    noise_std: float = 0.0,
    scale: float = 1.0,
    steps: int = 32,
) -> GuidedScore:
    """Transform a score into that of images given their measurement; exact for Gaussian data of the given power.

    Use it with or without the condition's pinning. Without pinning, and with noise_std = 0, the measurement of the
    result is y up to the noise at eps.

    Args:
      score_fn: s(x, t), a pytree.
      sde: the SDE of the score.
      condition: :func:`inpainting`, :func:`colorization`, :func:`super_resolution` or :func:`deblurring`.
      power: spectrum (H, W // 2 + 1, C) of the data, ``Statistics.to_range(config.data.centered)[1]``, or one variance.
      noise_std: σ_y, standard deviation of the measurement's own noise, in the model's range.
      scale: weight of the guidance, 1 by theory.
      steps: conjugate-gradient steps; with one variance and a projection A one step is exact.

    Returns:
      The score function, a pytree.

    Raises:
      PdsError: power of another shape or not positive, or a negative noise_std.
    """
    power = np.asarray(power, np.float32)
    _, h, w, c = condition.known.shape
    if power.shape not in ((), (h, w // 2 + 1, c)):
        raise PdsError(f"power must be one variance or a spectrum {(h, w // 2 + 1, c)}, not {power.shape}")
    if not np.all(np.isfinite(power) & (power > 0)):
        raise PdsError("power must be finite and positive everywhere")
    if not 0 <= noise_std < np.inf or steps < 1:
        raise PdsError(f"noise_std={noise_std}, steps={steps}: use a finite noise_std >= 0 and steps >= 1")
    return GuidedScore(
        score_fn=score_fn,
        sde=sde,
        operator=condition.operator,
        y=condition.y,
        power=jnp.asarray(power),
        noise_std=jnp.float32(noise_std),
        scale=jnp.float32(scale),
        steps=int(steps),
    )


@flax.struct.dataclass
class ClassScore:
    """Score of p(x_t | y) for a class y; made by :func:`class_conditional`.

    Attributes:
      score_fn: s(x, t), a pytree.
      sde: the SDE of the score.
      logit_fn: classifier of noisy images, a pytree.
      labels: (B,) int32 classes.
      scale: () weight of the classifier.
      num_classes: K.
    """

    score_fn: Any
    sde: SDE
    logit_fn: Any
    labels: Array
    scale: Array
    num_classes: int = flax.struct.field(pytree_node=False)

    @property
    def evaluations(self) -> int:
        """Evaluations of the score's own network a call."""
        return evaluations(self.score_fn)

    def __call__(self, x: Array, t: Array) -> Array:
        """Score at x (B, H, W, C), t (B,); float32, shaped as x.

        Raises:
          PdsError: another number of images than labels, or of logits than classes.
        """
        return self.score_fn(x, t) + self.scale * jax.grad(self._log_probability)(x, t)

    def _log_probability(self, x: Array, t: Array) -> Array:
        m, level = noise_level(self.sde, t)
        logits = self.logit_fn(batch_mul(1 / m, x), level)
        if logits.shape != (len(self.labels), self.num_classes):
            raise PdsError(
                f"the classifier gives logits {logits.shape}; {len(self.labels)} labels of {self.num_classes} classes "
                f"need ({len(self.labels)}, {self.num_classes})"
            )
        log_p = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
        return jnp.sum(jnp.take_along_axis(log_p, self.labels[:, None], axis=-1))

    def lay_out(self, copy: Layout, split: Layout) -> ClassScore:
        """Place on devices: copy what all images share, split what belongs to each."""
        shared = {name: copy(getattr(self, name)) for name in ("sde", "logit_fn", "scale")}
        score_fn = lay_out(self.score_fn, copy, split)
        return dataclasses.replace(self, score_fn=score_fn, labels=split(self.labels), **shared)


def class_conditional(
    score_fn: ScoreFn, sde: SDE, logit_fn: LogitFn, labels: np.ndarray, *, num_classes: int, scale: float = 1.0
) -> ClassScore:
    """Transform a score into that of images of given classes: s(x, t) + scale ∇ log p(y | x_t).

    Args:
      score_fn: s(x, t), a pytree.
      sde: the SDE of the score.
      logit_fn: (x_0 + σ n (B, H, W, C), σ (B,)) -> logits (B, K), a pytree; for all SDEs, x_t/m_t is such an image.
      labels: (B,) whole numbers in [0, K).
      num_classes: K.
      scale: weight of the classifier; above 1 trades diversity for likeness to the class.

    Returns:
      The score function, a pytree.

    Raises:
      PdsError: labels that are not a list of whole numbers in [0, K); the first bad one is named.
    """
    array = np.asarray(labels)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise PdsError(f"labels must be a list of whole numbers, not {array.dtype} of shape {array.shape}")
    bad = np.flatnonzero((array < 0) | (array >= num_classes))
    if bad.size:
        raise PdsError(f"label {array[bad[0]]} of image {bad[0]} is not one of the classes 0 to {num_classes - 1}")
    return ClassScore(
        score_fn=score_fn,
        sde=sde,
        logit_fn=logit_fn,
        labels=jnp.asarray(array, jnp.int32),
        scale=jnp.float32(scale),
        num_classes=int(num_classes),
    )


def _images(name: str, x: np.ndarray) -> np.ndarray:
    x = np.asarray(x)
    if x.ndim != 4 or 0 in x.shape:
        raise PdsError(f"{name} must be images (B, H, W, C), not of shape {x.shape}")
    if x.dtype.kind != "f":
        raise PdsError(f"{name} is {x.dtype}: bring images to the model's range (float) first")
    return x.astype(np.float32)


def _finite(name: str, x: Any) -> Any:
    if not np.all(np.isfinite(np.asarray(x))):
        raise PdsError(f"{name} contain NaN or infinity; replace these values first")
    return x
