"""Linear measurements y = A x of an image: known pixels, gray values, block means, a blur.

Each has a pseudo-inverse A⁺ whose projector Π = A⁺ A is orthogonal, so that an image splits into the part that y fixes,
Π x = A⁺ y, and the rest. Every leaf begins with the batch, like the images it belongs to.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from pds_jax.ops import irfft2, rfft2
from pds_jax.types import Array, PdsError

REC601 = (0.299, 0.587, 0.114)


class Operator(abc.ABC):
    """A linear map A on images (B, H, W, C)."""

    @abc.abstractmethod
    def forward(self, x: Array) -> Array:
        """Measure: A x, from x (B, H, W, C)."""

    @abc.abstractmethod
    def transpose(self, y: Array) -> Array:
        """Return Aᵀ y, (B, H, W, C)."""

    @abc.abstractmethod
    def pinv(self, y: Array) -> Array:
        """Return A⁺ y, the image of least norm that measures as y; (B, H, W, C)."""

    def project(self, x: Array) -> Array:
        """Return Π x = A⁺ A x, (B, H, W, C)."""
        return self.pinv(self.forward(x))

    def merge(self, x: Array, known: Array) -> Array:
        """Put the known part in place: x − Π x + known, with known = Π known; (B, H, W, C)."""
        return x - self.project(x) + known


@flax.struct.dataclass
class Pixels(Operator):
    """Known pixels, A x = mask ⊙ x.

    Attributes:
      mask: (B, H, W, C) float32, 1 where known, else 0.
    """

    mask: Array

    def forward(self, x: Array) -> Array:
        """mask ⊙ x; what x holds elsewhere does not matter, be it NaN."""
        return jnp.where(self.mask > 0, x, jnp.zeros_like(x))

    def transpose(self, y: Array) -> Array:
        """Aᵀ = A."""
        return self.forward(y)

    def pinv(self, y: Array) -> Array:
        """A⁺ = A."""
        return self.forward(y)

    def merge(self, x: Array, known: Array) -> Array:
        """The known pixels exactly, bit for bit."""
        return jnp.where(self.mask > 0, known, x)


@flax.struct.dataclass
class Gray(Operator):
    """Weighted mean of the channels, A x = Σ_c w_c x_c, (B, H, W, 1).

    Attributes:
      weights: (B, C) w.
    """

    weights: Array

    def forward(self, x: Array) -> Array:
        """Gray values (B, H, W, 1)."""
        return jnp.sum(x * self._w, axis=-1, keepdims=True)

    def transpose(self, y: Array) -> Array:
        """w y."""
        return y * self._w

    def pinv(self, y: Array) -> Array:
        """w y / ‖w‖²."""
        return y * (self._w / jnp.sum(jnp.square(self._w), axis=-1, keepdims=True))

    @property
    def _w(self) -> Array:
        return self.weights[:, None, None, :]


@flax.struct.dataclass
class BlockMean(Operator):
    """Mean of every block of factor x factor pixels, (B, H / factor, W / factor, C).

    Attributes:
      factor: side of a block.
    """

    factor: int = flax.struct.field(pytree_node=False)

    def forward(self, x: Array) -> Array:
        """Block means."""
        b, h, w, c = x.shape
        f = self.factor
        return x.reshape(b, h // f, f, w // f, f, c).mean(axis=(2, 4))

    def transpose(self, y: Array) -> Array:
        """Every value spread over its block."""
        return self.pinv(y) / self.factor**2

    def pinv(self, y: Array) -> Array:
        """Every value repeated over its block."""
        return jnp.repeat(jnp.repeat(y, self.factor, axis=1), self.factor, axis=2)


@flax.struct.dataclass
class Blur(Operator):
    """Circular convolution, A x = F⁻¹[h ⊙ F x].

    Attributes:
      transfer: (B, H, W // 2 + 1, C) complex64 h.
      passed: (B, H, W // 2 + 1, C) float32, 1 at the frequencies that the measurement is taken to fix.
    """

    transfer: Array
    passed: Array

    def forward(self, x: Array) -> Array:
        """Blurred images."""
        return self._filter(x, self.transfer)

    def transpose(self, y: Array) -> Array:
        """F⁻¹[h* ⊙ F y]."""
        return self._filter(y, jnp.conj(self.transfer))

    def pinv(self, y: Array) -> Array:
        """F⁻¹[h* / |h|² ⊙ F y] at the frequencies that pass, 0 at the others."""
        power = jnp.square(jnp.abs(self.transfer))
        inverse = jnp.where(self.passed > 0, 1 / jnp.where(self.passed > 0, power, jnp.ones_like(power)), 0.0)
        return self._filter(y, jnp.conj(self.transfer) * inverse.astype(jnp.complex64))

    def project(self, x: Array) -> Array:
        """The frequencies that pass."""
        return self._filter(x, self.passed.astype(jnp.complex64))

    @staticmethod
    def _filter(x: Array, multiplier: Array) -> Array:
        return irfft2(rfft2(x) * multiplier, (x.shape[1], x.shape[2]))


def pixels(mask: np.ndarray, shape: Sequence[int]) -> Pixels:
    """Known pixels of images.

    Args:
      mask: 1 (or True) where known, else 0; (H, W), (H, W, C or 1) or (B, H, W, C or 1).
      shape: (B, H, W, C) of the images.

    Raises:
      PdsError: the mask does not fit the images, or holds other values than 0 and 1.
    """
    mask = np.asarray(mask)
    full = mask[None, :, :, None] if mask.ndim == 2 else mask[None] if mask.ndim == 3 else mask
    fits = full.ndim == 4 and all(m in (1, s) for m, s in zip(full.shape, shape, strict=True))
    if not fits or full.shape[1:3] != tuple(shape[1:3]):
        b, h, w, c = shape
        raise PdsError(
            f"mask {mask.shape} does not match images (B, H, W, C) = {tuple(shape)}: give ({h}, {w}), ({h}, {w}, 1 or "
            f"{c}) or ({b}, {h}, {w}, 1 or {c})"
        )
    other = np.unique(full[(full != 0) & (full != 1)])
    if other.size:
        raise PdsError(
            f"a mask holds 1 where a pixel is known and 0 elsewhere, this one also {other.size} other value(s) such as "
            f"{other[0]:g}; threshold it first"
        )
    return Pixels(jnp.asarray(np.broadcast_to(full, shape), jnp.float32))


def gray(weights: Sequence[float], batch: int) -> Gray:
    """Weighted mean of the channels.

    Args:
      weights: (C,), positive, of sum 1, such as (1/3, 1/3, 1/3) or ``REC601``.
      batch: B.

    Raises:
      PdsError: other weights.
    """
    w = np.asarray(weights, np.float64)
    if w.ndim != 1 or not np.all(w >= 0) or not np.isclose(w.sum(), 1.0, atol=1e-4):
        raise PdsError(f"weights of the channels must be positive and sum to 1, not {np.asarray(weights).tolist()}")
    return Gray(jnp.asarray(np.broadcast_to(w, (batch, w.size)), jnp.float32))


def block_mean(factor: int) -> BlockMean:
    """Mean of every block of factor x factor pixels.

    Raises:
      PdsError: a factor below 2.
    """
    if int(factor) != factor or factor < 2:
        raise PdsError(f"factor={factor}: use a whole number of at least 2")
    return BlockMean(int(factor))


def blur(kernel: np.ndarray, shape: Sequence[int], threshold: float = 0.05) -> Blur:
    """Circular convolution with a kernel.

    Args:
      kernel: (h, w), of odd sides, its centre in the middle, sum 1 (then images may be in [0, 1] or [-1, 1] alike).
      shape: (B, H, W, C) of the images.
      threshold: a frequency passes if |h| is above this; a lower one amplifies the measurement's noise more.

    Raises:
      PdsError: a kernel that is not like that or larger than the images, or a threshold not in (0, 1).
    """
    kernel = np.asarray(kernel, np.float64)
    b, h, w, c = shape
    if kernel.ndim != 2 or not all(side % 2 for side in kernel.shape):
        raise PdsError(f"a blur kernel is (h, w) with odd sides, not {kernel.shape}")
    if kernel.shape[0] > h or kernel.shape[1] > w:
        raise PdsError(f"the blur kernel {kernel.shape} is larger than the images ({h}, {w})")
    if not np.all(np.isfinite(kernel)) or not np.isclose(kernel.sum(), 1.0, atol=1e-4):
        raise PdsError(f"a blur kernel must sum to 1, this one sums to {kernel.sum():.4g}; divide it by its sum")
    if not 0 < threshold < 1:
        raise PdsError(f"threshold={threshold}: use a number between 0 and 1")
    padded = np.zeros((h, w))
    padded[: kernel.shape[0], : kernel.shape[1]] = kernel
    centred = np.roll(padded, (-(kernel.shape[0] // 2), -(kernel.shape[1] // 2)), (0, 1))
    transfer = np.fft.rfft2(centred)[None, :, :, None]
    full = (b, h, w // 2 + 1, c)
    return Blur(
        jnp.asarray(np.broadcast_to(transfer, full), jnp.complex64),
        jnp.asarray(np.broadcast_to(np.abs(transfer) > threshold, full), jnp.float32),
    )


def gaussian_kernel(sigma: float) -> np.ndarray:
    """(2r + 1, 2r + 1) kernel of a Gaussian blur of deviation sigma in pixels, r = ceil(3 sigma), sum 1.

    Raises:
      PdsError: a sigma that is not positive.
    """
    if not 0 < sigma < np.inf:
        raise PdsError(f"sigma={sigma}: the deviation of a blur, in pixels, must be positive")
    r = int(np.ceil(3 * sigma))
    line = np.exp(-np.square(np.arange(-r, r + 1) / sigma) / 2)
    kernel = np.outer(line, line)
    return kernel / kernel.sum()


def conjugate_gradients(matvec: Callable[[Array], Array], b: Array, steps: int) -> Array:
    """Solve matvec(v) = b per sample by a fixed number of conjugate-gradient steps (Hestenes and Stiefel 1952).

    Args:
      matvec: a symmetric positive semi-definite map on arrays shaped as b, each sample by itself.
      b: (B, ...) right-hand side in its range.
      steps: number of steps.

    Returns:
      (B, ...) v.
    """

    def dot(u: Array, v: Array) -> Array:
        return jnp.sum(u * v, axis=tuple(range(1, u.ndim)), keepdims=True)

    def safe(a: Array, c: Array) -> Array:
        return jnp.where(c > 0, a / jnp.where(c > 0, c, jnp.ones_like(c)), jnp.zeros_like(c))

    def step(_: Array, state: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        v, r, p, rr = state
        q = matvec(p)
        a = safe(rr, dot(p, q))
        v, r = v + a * p, r - a * q
        new = dot(r, r)
        return v, r, r + safe(new, rr) * p, new

    return jax.lax.fori_loop(0, steps, step, (jnp.zeros_like(b), b, b, dot(b, b)))[0]
