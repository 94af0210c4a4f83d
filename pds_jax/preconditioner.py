"""The operator M of preconditioned diffusion sampling, made of a frequency filter R and a pixel filter A.

    M z    = F⁻¹[ R ⊙ F[ A ⊙ z ] ]                          noise
    Mᵀ g   = A ⊙ F⁻¹[ R ⊙ F[ g ] ]
    M Mᵀ g = F⁻¹[ R ⊙ F[ A² ⊙ F⁻¹[ R ⊙ F[ g ] ] ] ]         drift

F is the 2-D DFT over (H, W). R is real and even, R(k) = R(−k), so the half plane of the real transform holds all of it
and F⁻¹ R F is symmetric. Without A, M Mᵀ is one transform pair; the identity is no operation at all.
"Preconditioning" is of the sampling dynamics here, not of a network's inputs and outputs.

Source: Ma, Zhu, Feng, Zhang, "Preconditioned Score-based Generative Models", IJCV 2025 (arXiv 2302.06504).
"""

from __future__ import annotations

import hashlib
import math
import os
from typing import Any, Protocol

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from pds_jax import ops
from pds_jax.alpha import alpha_auto
from pds_jax.filters import (
    RECIPES,
    check_alpha,
    check_choice,
    even,
    float32,
    frequency_filter,
    largest_eigenvalue,
    pixel_filter,
    raw_mask,
    reflected,
    squared_frequency,
)
from pds_jax.types import Array, PdsError

__all__ = [
    "FILTERS",
    "RECIPES",
    "Preconditioner",
    "alpha_auto",
    "chain",
    "flat",
    "from_masks",
    "from_radius",
    "from_statistics",
    "identity",
    "lambda_max",
    "with_solenoidal",
]

FILTERS = ("freq", "space", "both")


class _Label:
    """Name of a recipe. All labels are equal, so that another recipe with the same filters compiles nothing."""

    def __init__(self, text: str):
        self.text = text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Label)

    def __hash__(self) -> int:
        return 0

    def __repr__(self) -> str:
        return self.text


class StatisticsLike(Protocol):
    """The part of ``statistics.Statistics`` that filters are made from."""

    @property
    def r_f(self) -> np.ndarray:
        """(H, W, C) log(1 + mean |F x|²)."""
        ...

    @property
    def r_a(self) -> np.ndarray:
        """(H, W, C) mean x²."""
        ...


@flax.struct.dataclass
class Preconditioner:
    """The linear operator M on images (B, H, W, C), in float32; a pytree whose filters are traced.

    Attributes:
      freq: (H, W // 2 + 1, C) frequency filter R, or None.
      space: (H, W, C) pixel filter A, or None.
      skew: (H, W // 2 + 1, C) real odd w of the solenoidal term S = F⁻¹ i w F, or None.
      alpha: () the PDS parameter the filters came from, NaN where there is none.
      shape: (H, W, C), None for the identity.
      recipe: how the filters were made.
    """

    freq: Array | None = None
    space: Array | None = None
    skew: Array | None = None
    alpha: Array | None = None
    shape: tuple[int, int, int] | None = flax.struct.field(pytree_node=False, default=None)
    recipe: Any = flax.struct.field(pytree_node=False, default=_Label("identity"))

    @property
    def is_identity(self) -> bool:
        """Whether M = I and S = 0, in which case every method returns its argument untouched."""
        return self.freq is None and self.space is None and self.skew is None

    def apply(self, z: Array) -> Array:
        """M z = F⁻¹[R ⊙ F[A ⊙ z]].

        Args:
          z: (B, H, W, C) floating point.

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
        """Mᵀ g = A ⊙ F⁻¹[R ⊙ F[g]]; arguments, result and errors as in :meth:`apply`."""
        if self.freq is None and self.space is None:
            return g
        g = self._checked(g)
        if self.freq is not None:
            g = self._filter(g, self.freq)
        return g if self.space is None else g * self.space[None]

    def gram(self, g: Array) -> Array:
        """M Mᵀ g; arguments, result and errors as in :meth:`apply`."""
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
        """(M Mᵀ + S) g: the drift whose noise is M z; arguments, result and errors as in :meth:`apply`.

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
        """Refuse images of another shape than the filters.

        Args:
          shape: (H, W, C) of the images.

        Raises:
          PdsError: names both shapes.
        """
        if self.shape is not None and tuple(shape) != self.shape:
            raise PdsError(
                f"the filters of M are (H, W, C) = {self.shape}, the images are {tuple(shape)}; make statistics or "
                "masks of images of that size, or use the filter of two numbers (r, lambda)"
            )

    def describe(self) -> dict[str, Any]:
        """What M is, for a manifest: recipe, filters, alpha, shape, sha256 of the float32 filters, λ_max."""
        leaves = {"freq": self.freq, "space": self.space, "skew": self.skew}
        present = {name: np.asarray(leaf, "<f4") for name, leaf in leaves.items() if leaf is not None}
        digest = hashlib.sha256()
        for name, array in present.items():
            digest.update(name.encode() + np.ascontiguousarray(array).tobytes())
        alpha = math.inf if self.alpha is None else float(self.alpha)
        return {
            "recipe": str(self.recipe),
            "filters": sorted(present),
            "alpha": None if math.isnan(alpha) else ("inf" if math.isinf(alpha) else alpha),
            "shape": None if self.shape is None else list(self.shape),
            "sha256": digest.hexdigest() if present else None,
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
    """M = I: the sampler without PDS, to the bit and without a transform."""
    return Preconditioner()


def flat(gain: float) -> Preconditioner:
    """M = c I: noise times c, drift times c², no transform and no data.

    What is left of PDS without the shape of M: the control that its filters are compared with.

    Args:
      gain: c > 0; 1 gives the identity.

    Raises:
      PdsError: c not positive or not finite.
    """
    if not (math.isfinite(gain) and gain > 0):
        raise PdsError(f"flat gain c={gain}: use a finite number > 0, for instance 1.15")
    if gain == 1:
        return identity()
    recipe = _Label(f"flat({gain:g})")
    return Preconditioner(space=jnp.full((1, 1, 1), gain, jnp.float32), alpha=float32(math.nan), recipe=recipe)


def from_statistics(
    stats: StatisticsLike,
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
      stats: statistics of images (H, W, C).
      alpha: strength, > 1; the larger the weaker, infinity gives the identity. May be a traced scalar.
      filters: "freq" (R only), "space" (A only) or "both".
      recipe: "ijcv2025" or "eccv2022".

    Returns:
      M.

    Raises:
      PdsError: alpha ≤ 1 or NaN, unknown filters or recipe, unusable statistics.
    """
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
    """M from the raw masks of the PyTorch release, made into filters as in :func:`from_statistics`.

    Args:
      freq: raw frequency mask log(1 + mean |F x|²), (C, H, W), as an array or a .npy path; None or "" for none.
      space: raw pixel mask mean x², likewise.
      alpha: see :func:`from_statistics`.
      recipe: see :func:`from_statistics`.
      shape: (H, W, C) of the images to be sampled, checked if given.

    Returns:
      M; the identity if there is no mask.

    Raises:
      PdsError: unreadable file, pickled objects, a dtype that is not floating point, another shape, values that are
        negative or not finite, an asymmetric frequency mask, or a bad alpha or recipe.
    """
    return _from_raw(
        raw_mask(freq, "frequency mask", shape), raw_mask(space, "space mask", shape), alpha, recipe
    )


def from_radius(shape: tuple[int, int, int], r: float, lam: float) -> Preconditioner:
    """M from two numbers, without data: R(k) = 1 where |k| ≤ √2 r, else λ.

    |k| is the distance from the zero frequency in bins. Source: the figure caption "(r, λ) = (0.1H, 1.6)" of Ma et
    al.; that the radius is √2 r, (h − H/2)² + (w − W/2)² ≤ 2 r² in shifted coordinates, is recalled, not verified.

    Args:
      shape: (H, W, C) of the images.
      r: radius in frequency bins, ≥ 0, for instance 0.1 H.
      lam: gain λ outside it, > 0; 1 gives the identity.

    Returns:
      M.

    Raises:
      PdsError: r negative, λ not positive, or either not finite.
    """
    if not (math.isfinite(r) and r >= 0):
        raise PdsError(f"radius r={r}: use a finite number of frequency bins >= 0, for instance 0.1 * H")
    if not (math.isfinite(lam) and lam > 0):
        raise PdsError(f"gain lambda={lam}: use a finite number > 0, for instance 1.6")
    if lam == 1:
        return identity()
    height, width, channels = shape
    inside = squared_frequency(height, width) <= 2 * r * r
    freq = np.where(inside, 1.0, lam)[:, : width // 2 + 1, None]
    return Preconditioner(
        freq=float32(np.repeat(freq, channels, axis=2)),
        alpha=float32(math.nan),
        shape=(height, width, channels),
        recipe=_Label(f"radius(r={r:g}, lambda={lam:g})"),
    )


def chain(first: Preconditioner, second: Preconditioner) -> Preconditioner:
    """The product M = M₁ M₂, where it is again a frequency filter after a pixel filter.

    Args:
      first: M₁, applied last.
      second: M₂, applied first.

    Returns:
      M; its solenoidal term is the sum of the two.

    Raises:
      PdsError: M₁ has a pixel filter and M₂ a frequency filter, or their shapes differ.
    """
    if first.is_identity or second.is_identity:
        return second if first.is_identity else first
    if None not in (first.shape, second.shape) and first.shape != second.shape:
        raise PdsError(f"cannot chain preconditioners of shapes {first.shape} and {second.shape}")
    if first.shape is not None and first.space is not None and second.freq is not None:
        raise PdsError(
            "cannot chain a pixel filter after a frequency filter: M is a frequency filter after a pixel filter; put "
            "the pixel filter second"
        )
    return Preconditioner(
        freq=_combined(first.freq, second.freq, jnp.multiply),
        space=_combined(first.space, second.space, jnp.multiply),
        skew=_combined(first.skew, second.skew, jnp.add),
        alpha=float32(math.nan),
        shape=first.shape or second.shape,
        recipe=_Label(f"{first.recipe} * {second.recipe}"),
    )


def with_solenoidal(
    m: Preconditioner, strength: float, shape: tuple[int, int, int] | None = None, w: np.ndarray | None = None
) -> Preconditioner:
    """Add the skew-symmetric drift S = F⁻¹[i w(k) F[·]], w odd; the noise stays M z.

    By default w(k) = strength · sin(2π(k_h / H + k_w / W)), for which S is the central difference along the diagonal,
    (S g)(h, w) = strength · (g(h + 1, w + 1) − g(h − 1, w − 1)) / 2.
    Source: the term S of Ma et al., IJCV 2025; this choice of w is derived, see docs/theory.md.

    Args:
      m: M.
      strength: factor of w, finite; 0 leaves M alone.
      shape: (H, W, C), needed only where M is the identity.
      w: (H, W) or (H, W, C) real odd function of frequency, zero frequency first, in place of the sine.

    Returns:
      M with S.

    Raises:
      PdsError: strength not finite, shape missing, or w not odd.
    """
    if not math.isfinite(strength):
        raise PdsError(f"solenoidal strength {strength}: use a finite number, 0 for none")
    shape = m.shape if m.shape is not None else shape
    if shape is None:
        raise PdsError("the solenoidal term of an identity M needs the image shape (H, W, C)")
    if strength == 0:
        return m
    height, width, channels = shape
    if w is None:
        w = np.sin(2 * np.pi * (np.arange(height)[:, None] / height + np.arange(width)[None, :] / width))
    w = np.broadcast_to(w[:, :, None] if w.ndim == 2 else w, shape).astype(np.float64)
    even = (w + reflected(w)) / 2
    if not np.abs(even).max() <= 1e-6 * max(np.abs(w).max(), 1e-30):
        raise PdsError(f"solenoidal multiplier w must be odd, w(-k) = -w(k); its even part is {np.abs(even).max():g}")
    odd = strength * (w - even)[:, : width // 2 + 1]
    skew = float32(odd) if m.skew is None else m.skew + float32(odd)
    return m.replace(  # type: ignore[attr-defined]
        skew=skew,
        shape=(height, width, channels),
        alpha=float32(math.inf) if m.alpha is None else m.alpha,
        recipe=_Label(f"{m.recipe} + solenoidal({strength:g})"),
    )


def lambda_max(m: Preconditioner) -> Array:
    """Largest eigenvalue of M Mᵀ.

    With one filter it is the largest of its squares; with both, M Mᵀ has the eigenvalues of Mᵀ M = A F⁻¹ R² F A,
    whose largest is found on the host by Lanczos iteration.

    Args:
      m: M.

    Returns:
      () float32.
    """
    if m.freq is not None and m.space is not None:
        return float32(largest_eigenvalue(np.asarray(m.freq, np.float64), np.asarray(m.space, np.float64)))
    leaf = m.space if m.freq is None else m.freq
    return jnp.float32(1) if leaf is None else jnp.max(jnp.square(leaf))


def _from_raw(
    r_f: np.ndarray | None, r_a: np.ndarray | None, alpha: float | Array, recipe: str
) -> Preconditioner:
    """M from raw (H, W, C) statistics of which either may be missing."""
    check_choice("recipe", recipe, RECIPES)
    traced = isinstance(alpha, jax.core.Tracer)
    if not traced:
        check_alpha(float(alpha))
    present = r_f if r_f is not None else r_a
    if present is None or (not traced and math.isinf(float(alpha))):
        return identity()
    if r_f is not None and r_a is not None and r_f.shape != r_a.shape:
        raise PdsError(f"the frequency mask is of images {r_f.shape}, the space mask of images {r_a.shape}")
    if r_f is not None:
        r_f = even(r_f)
    height, width, channels = present.shape
    level = jnp.asarray(alpha, jnp.float32)
    return Preconditioner(
        freq=None if r_f is None else frequency_filter(r_f, level, recipe)[:, : width // 2 + 1],
        space=None if r_a is None else pixel_filter(r_a, level, recipe),
        alpha=level,
        shape=(height, width, channels),
        recipe=_Label(recipe),
    )


def _combined(a: Array | None, b: Array | None, operation: Any) -> Array | None:
    if a is None or b is None:
        return b if a is None else a
    return operation(a, b)
