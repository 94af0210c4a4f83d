"""The operator M of preconditioned diffusion sampling, made of a frequency filter R and a pixel filter A.

    M z    = F⁻¹[ R ⊙ F[ A ⊙ z ] ]                          noise
    Mᵀ g   = A ⊙ F⁻¹[ R ⊙ F[ g ] ]
    M Mᵀ g = F⁻¹[ R ⊙ F[ A² ⊙ F⁻¹[ R ⊙ F[ g ] ] ] ]         drift

F is the 2-D DFT over (H, W). R is real and even, R(k) = R(−k), so the half plane of the real transform is enough
and F⁻¹ R F is symmetric. Without A, M Mᵀ is one transform pair; the identity costs nothing.
Here "preconditioning" is that of the sampling dynamics, not that of a network's input and output.

Source: Ma, Zhu, Feng, Zhang, "Preconditioned Score-based Generative Models", IJCV 2025 (arXiv 2302.06504).
"""

from __future__ import annotations

import dataclasses
import math
import os
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from pds_jax import filters as raw
from pds_jax import ops
from pds_jax.filters import float32
from pds_jax.types import Array, PdsError, check_choice, is_number

FILTERS = ("freq", "space", "both")


@dataclasses.dataclass(frozen=True)
class Label:
    """How filters were made, in words. All labels are equal, so filters made otherwise do not recompile."""

    text: str = dataclasses.field(compare=False)

    def __str__(self) -> str:
        return self.text


@flax.struct.dataclass
class Preconditioner:
    """The linear operator M on images (B, H, W, C), in float32; a pytree whose filters are traced.

    Attributes:
      freq: (H, W // 2 + 1, C) frequency filter R, or None.
      space: (H, W, C) pixel filter A, or None.
      skew: (H, W // 2 + 1, C) real odd w of the solenoidal term S = F⁻¹ i w F, or None.
      alpha: () strength that the filters were made with, NaN if there is none.
      shape: (H, W, C), None for the identity.
      recipe: how the filters were made.
    """

    freq: Array | None = None
    space: Array | None = None
    skew: Array | None = None
    alpha: Array | None = None
    shape: tuple[int, int, int] | None = flax.struct.field(pytree_node=False, default=None)
    recipe: Any = flax.struct.field(pytree_node=False, default=Label("identity"))

    @property
    def is_identity(self) -> bool:
        """Whether M = I and S = 0, in which case every method returns its argument untouched."""
        return self.freq is None and self.space is None and self.skew is None

    def apply(self, z: Array) -> Array:
        """M z = F⁻¹[R ⊙ F[A ⊙ z]].

        Args:
          z: (B, H, W, C).

        Returns:
          (B, H, W, C) float32; z itself if M is the identity.

        Raises:
          PdsError: z is of another shape than the filters.
        """
        if self.freq is None and self.space is None:
            return z
        z = self._checked(z)
        if self.space is not None:
            z = z * self.space[None]
        return z if self.freq is None else self._filter(z, self.freq)

    def transpose(self, g: Array) -> Array:
        """Mᵀ g = A ⊙ F⁻¹[R ⊙ F[g]]; otherwise as :meth:`apply`."""
        if self.freq is None and self.space is None:
            return g
        g = self._checked(g)
        if self.freq is not None:
            g = self._filter(g, self.freq)
        return g if self.space is None else g * self.space[None]

    def gram(self, g: Array) -> Array:
        """M Mᵀ g; otherwise as :meth:`apply`."""
        if self.freq is None and self.space is None:
            return g
        g = self._checked(g)
        if self.space is None:
            assert self.freq is not None
            return self._filter(g, jnp.square(self.freq))
        square = jnp.square(self.space)[None]
        if self.freq is None:
            return g * square
        return self._filter(self._filter(g, self.freq) * square, self.freq)

    def drift(self, g: Array) -> Array:
        """(M Mᵀ + S) g: the drift whose noise is M z; otherwise as :meth:`apply`.

        Langevin dynamics dx = (M Mᵀ + S) s(x) dτ + √2 M dw leaves the density with score s unchanged for any M and
        any skew-symmetric S. Source: Ma et al., IJCV 2025; proof in docs/theory.md.
        """
        if self.skew is None:
            return self.gram(g)
        g = self._checked(g)
        if self.space is None:
            real = jnp.ones_like(self.skew) if self.freq is None else jnp.square(self.freq)
            return self._filter(g, jax.lax.complex(real, self.skew))
        return self.gram(g) + self._filter(g, jax.lax.complex(jnp.zeros_like(self.skew), self.skew))

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise if images are of another shape than the filters.

        Args:
          shape: (H, W, C) of the images.

        Raises:
          PdsError: the shapes differ.
        """
        if self.shape is not None and tuple(shape) != self.shape:
            raise PdsError(
                f"the filters of M are (H, W, C) = {self.shape}, the images are {tuple(shape)}; make statistics or "
                "masks of images of that size, or use the filter of two numbers (r, lambda)"
            )

    def describe(self) -> dict[str, Any]:
        """A description of M for a manifest: recipe, filters, alpha, shape, sha256 of the float32 filters, λ_max."""
        leaves = {"freq": self.freq, "space": self.space, "skew": self.skew}
        alpha = math.inf if self.alpha is None else float(self.alpha)
        return {
            "recipe": str(self.recipe),
            "filters": sorted(name for name, leaf in leaves.items() if leaf is not None),
            "alpha": None if math.isnan(alpha) else ("inf" if math.isinf(alpha) else alpha),
            "shape": None if self.shape is None else list(self.shape),
            "sha256": raw.digest(leaves),
            "lambda_max": float(lambda_max(self)),
        }

    def _checked(self, x: Array) -> Array:
        self.check_shape(x.shape[1:])
        return x.astype(jnp.float32)

    def _filter(self, x: Array, multiplier: Array) -> Array:
        """F⁻¹[multiplier ⊙ F[x]] for a half-plane multiplier, real or complex."""
        spectrum = ops.rfft2(x)
        if jnp.iscomplexobj(multiplier):
            product = multiplier[None] * spectrum
        else:
            product = jax.lax.complex(multiplier[None] * spectrum.real, multiplier[None] * spectrum.imag)
        return ops.irfft2(product, (x.shape[1], x.shape[2]))


def identity() -> Preconditioner:
    """M = I, with which a sampler is the one without PDS, bit for bit and without a transform.

    Returns:
      M without filters.
    """
    return Preconditioner()


def flat(gain: float) -> Preconditioner:
    """M = c I: noise times c, drift times c², no transform and no data.

    A baseline for PDS: the same gain at every frequency.

    Args:
      gain: c, finite and > 0; 1 gives the identity.

    Returns:
      M, for images of any shape; its pixel filter is (1, 1, 1).

    Raises:
      PdsError: c not positive or not finite.
    """
    if not (is_number(gain) and math.isfinite(gain) and gain > 0):
        raise PdsError(f"flat gain c={gain}: use a finite number > 0, for instance 1.15")
    if gain == 1:
        return identity()
    recipe = Label(f"flat({gain:g})")
    return Preconditioner(space=jnp.full((1, 1, 1), gain, jnp.float32), alpha=float32(math.nan), recipe=recipe)


def from_statistics(
    stats: Any,
    alpha: float | Array,
    filters: str = "freq",
    recipe: str = "ijcv2025",
) -> Preconditioner:
    """M from the statistics of a data set.

    R = α / (r_f / max r_f + α − 1), A = α / (r_a / max r_a + α − 1)      recipe "ijcv2025"
    R = α / (r_f + α − 1),           A = 1 / r_a                          recipe "eccv2022"

    The maximum is one number over all positions and channels, so R and A lie in [1, α / (α − 1)] for "ijcv2025".
    Source: Ma et al., IJCV 2025 (arXiv 2302.06504) and ECCV 2022 (arXiv 2207.02196), and their released code.

    Args:
      stats: with r_f = log(1 + mean |F x|²) and r_a = mean x², both (H, W, C): a ``statistics.Statistics``.
      alpha: strength, > 1; a larger value is weaker, infinity gives the identity. May be a traced scalar.
      filters: "freq" (R only), "space" (A only) or "both".
      recipe: "ijcv2025" or "eccv2022".

    Returns:
      M for images of the statistics' shape.

    Raises:
      PdsError: alpha ≤ 1 or NaN, unknown filters or recipe, unusable statistics.
    """
    if alpha is None or isinstance(alpha, str):
        raise PdsError(f"alpha={alpha!r}: use a number here; auto and tune need a sampler, see pds_jax.plan")
    if not (hasattr(stats, "r_f") and hasattr(stats, "r_a")):
        raise PdsError(
            f"stats is a {type(stats).__name__}: use a Statistics, for instance pds_jax.statistics.load(path)"
        )
    check_choice("filters", filters, FILTERS)
    return _from_raw(
        np.asarray(stats.r_f) if filters in ("freq", "both") else None,
        np.asarray(stats.r_a) if filters in ("space", "both") else None,
        alpha,
        recipe,
    )


def from_masks(
    freq: str | os.PathLike[str] | np.ndarray | None,
    space: str | os.PathLike[str] | np.ndarray | None,
    alpha: float | Array,
    recipe: str = "ijcv2025",
    shape: tuple[int, int, int] | None = None,
) -> Preconditioner:
    """M from the raw masks of the PyTorch release, r_f and r_a, with the equations of :func:`from_statistics`.

    Args:
      freq: r_f, (C, H, W) floats, finite and ≥ 0, zero frequency first, or the path of its .npy; None or "" for none.
      space: r_a, likewise.
      alpha: strength, > 1; a larger value is weaker, infinity gives the identity. May be a traced scalar.
      recipe: "ijcv2025" or "eccv2022".
      shape: (H, W, C) that the masks must have, None for any.

    Returns:
      M for images of the masks' shape; the identity without masks.

    Raises:
      PdsError: a file that cannot be read, masks of other shapes, dtypes or values, a frequency mask with
        r_f(k) ≠ r_f(−k), alpha ≤ 1 or NaN, or an unknown recipe.

    Source: the masks that mask_gen_demo.py of the released code writes.
    """
    masks = raw.raw_mask(freq, "frequency mask", shape), raw.raw_mask(space, "space mask", shape)
    return _from_raw(*masks, alpha, recipe)


def from_radius(shape: tuple[int, int, int], r: float, lam: float) -> Preconditioner:
    """M from two numbers, without data: R(k) = 1 where |k| ≤ √2 r, else λ.

    |k| is the distance from the zero frequency in bins. Source: the figure caption "(r, λ) = (0.1H, 1.6)" of Ma et
    al. The radius √2 r, (h − H/2)² + (w − W/2)² ≤ 2 r² in shifted coordinates, is not in the released code, whose masks
    are made from data: to repeat that figure, check it against the paper.

    Args:
      shape: (H, W, C) of the images.
      r: radius in frequency bins, ≥ 0, for instance 0.1 H.
      lam: gain of M outside the radius, λ in the source, > 0, for instance 1.6; 1 gives the identity.

    Returns:
      M for images of the shape.

    Raises:
      PdsError: r negative, λ not positive, or either not finite.
    """
    if not (is_number(r) and math.isfinite(r) and r >= 0):
        raise PdsError(f"radius r={r}: use a finite number of frequency bins >= 0, for instance 0.1 * H")
    if not (is_number(lam) and math.isfinite(lam) and lam > 0):
        raise PdsError(f"gain lambda={lam}: use a finite number > 0, for instance 1.6")
    if lam == 1:
        return identity()
    if len(shape) != 3:
        raise PdsError(f"shape={tuple(shape)}: use the (H, W, C) of the images")
    height, width, channels = shape
    freq = np.where(raw.squared_frequency(height, width) <= 2 * r * r, 1.0, lam)[:, : width // 2 + 1, None]
    return Preconditioner(
        freq=float32(np.repeat(freq, channels, axis=2)),
        alpha=float32(math.nan),
        shape=(height, width, channels),
        recipe=Label(f"radius(r={r:g}, lambda={lam:g})"),
    )


def chain(first: Preconditioner, second: Preconditioner) -> Preconditioner:
    """The product M = M₁ M₂, M₂ applied first, where it is again a frequency filter after a pixel filter.

    The solenoidal terms are added.

    Args:
      first: M₁.
      second: M₂.

    Returns:
      M; its filters are the products R₁ R₂ and A₁ A₂.

    Raises:
      PdsError: M₁ has a pixel filter and M₂ a frequency filter, or their shapes differ.
    """
    if first.is_identity or second.is_identity:
        return second if first.is_identity else first
    if None not in (first.shape, second.shape) and first.shape != second.shape:
        raise PdsError(f"chain: M₁ is for images {first.shape}, M₂ for {second.shape}; build both for one (H, W, C)")
    if first.shape is not None and first.space is not None and second.freq is not None:
        raise PdsError(
            "cannot chain a pixel filter after a frequency filter: M is a frequency filter after a pixel filter; put "
            "the pixel filter second"
        )

    def both(a: Array | None, b: Array | None, join: Any) -> Array | None:
        return (b if a is None else a) if a is None or b is None else join(a, b)

    return Preconditioner(
        freq=both(first.freq, second.freq, jnp.multiply),
        space=both(first.space, second.space, jnp.multiply),
        skew=both(first.skew, second.skew, jnp.add),
        alpha=float32(math.nan),
        shape=first.shape or second.shape,
        recipe=Label(f"{first.recipe} * {second.recipe}"),
    )


def lambda_max(m: Preconditioner) -> Array:
    """Largest eigenvalue of M Mᵀ.

    Args:
      m: M, with concrete filters if it has both.

    Returns:
      () float32.
    """
    return raw.largest_gain(m.freq, m.space)


def _from_raw(r_f: np.ndarray | None, r_a: np.ndarray | None, alpha: float | Array, recipe: str) -> Preconditioner:
    """M from raw (H, W, C) statistics of which either may be missing."""
    freq, space, shape = raw.filters_of(r_f, r_a, alpha, recipe)
    if freq is None and space is None:
        return identity()
    return Preconditioner(freq, space, alpha=float32(alpha), shape=shape, recipe=Label(recipe))
