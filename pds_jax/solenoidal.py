"""The skew-symmetric drift S beside M Mᵀ, which leaves the stationary law of Langevin dynamics unchanged."""

from __future__ import annotations

import math

import numpy as np

from pds_jax.filters import float32, odd_half_plane
from pds_jax.preconditioner import Label, Preconditioner
from pds_jax.types import PdsError


def with_solenoidal(
    m: Preconditioner, strength: float, shape: tuple[int, int, int] | None = None, w: np.ndarray | None = None
) -> Preconditioner:
    """Add the skew-symmetric drift S = F⁻¹[i w(k) F[·]], w odd; the noise stays M z.

    By default w(k) = strength · sin(2π(k_h / H + k_w / W)), for which S is the central difference along the diagonal,
    (S g)(h, w) = strength · (g(h + 1, w + 1) − g(h − 1, w − 1)) / 2.
    Source: the term S of Ma et al., IJCV 2025; this choice of w is derived, see docs/theory.md.

    Args:
      m: M.
      strength: factor of w, finite; 0 does not change M.
      shape: (H, W, C), needed only where M is the identity.
      w: (H, W) or (H, W, C) real odd function of frequency, zero frequency first, instead of the sine.

    Returns:
      M with w added to ``skew``, (H, W // 2 + 1, C) float32; m itself if the strength is 0.

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
    odd = float32(strength * odd_half_plane(w, shape))
    return m.replace(  # type: ignore[attr-defined]
        skew=odd if m.skew is None else m.skew + odd,
        shape=tuple(shape),
        alpha=float32(math.inf) if m.alpha is None else m.alpha,
        recipe=Label(f"{m.recipe} + solenoidal({strength:g})"),
    )
