"""Final law of the predictor–corrector samplers on Gaussian data, mode by mode, without drawing an image.

With the exact score −(x − μ)/(P + σ²) of a mode, a step of reverse diffusion with gain m = |M| is

    y ← (1 − ΔG m²/(P + σ²)) y + √ΔG m z,        ΔG = σ_i² − σ_{i−1}²,        y = x − μ,

and one of the Langevin corrector the same with ε for ΔG and √(2ε) for √ΔG (VE). So variance and offset of every mode
follow in closed form, at any resolution. ε depends on norms of whole images; here they are replaced by the roots of
their mean squares, which is exact as the number of pixels grows. Derived here.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from pds_jax import alpha as alpha_lib
from pds_jax.types import PdsError


@dataclasses.dataclass(frozen=True)
class Modes:
    """Independent modes of Gaussian data; an amplitude is that of the unitary DFT, white noise has power 1.

    Attributes:
      power: (K,) variances P.
      offset: (K,) squared mean |F μ|²/(H W).
      count: (K,) how many modes of the image are like this one.
      ring: (K,) distance from the zero frequency, for :func:`spectrum_error`.
      pixels: H W.
    """

    power: np.ndarray
    offset: np.ndarray
    count: np.ndarray
    ring: np.ndarray
    pixels: int

    @property
    def variance(self) -> float:
        """Of the data, summed over all modes."""
        return float(np.sum(self.count * self.power))


@dataclasses.dataclass(frozen=True)
class Law:
    """Variances V and squared offsets (..., K) of the modes of a sampler's images."""

    variance: np.ndarray
    offset: np.ndarray


def isotropic_modes(mean: np.ndarray, power: np.ndarray) -> Modes:
    """Modes of a mean image (H, W, C) and a spectrum (H, W // 2 + 1, C), averaged over rings of |k|."""
    height, width, channels = mean.shape
    k = np.hypot(np.fft.fftfreq(height)[:, None] * height, np.fft.rfftfreq(width)[None] * width)
    ring = np.round(k * min(height, width) / np.sqrt(height * width)).astype(int).ravel()
    columns = np.full(width // 2 + 1, 2.0)
    columns[0] = 1.0
    if width % 2 == 0:
        columns[-1] = 1.0
    weight = np.broadcast_to(columns, k.shape).ravel()
    offset = np.square(np.abs(np.fft.rfft2(mean.astype(np.float64), axes=(0, 1)))) / (height * width)
    count = np.bincount(ring, weight)
    used = count > 0
    rows = []
    for channel in range(channels):
        means = [np.bincount(ring, weight * a[..., channel].ravel()) / np.maximum(count, 1) for a in (power, offset)]
        rows.append([means[0][used], means[1][used], count[used], np.flatnonzero(used)])
    p, o, c, r = (np.concatenate(column) for column in zip(*rows, strict=True))
    return Modes(p, o, c, r, height * width)


def pds_gain(modes: Modes, alpha: float) -> np.ndarray:
    """|M| of every mode (K,) by the recipe ijcv2025, R = α/(r/max r + α − 1) with r = log(1 + mean |F x|²)."""
    if not alpha > 1:
        raise PdsError(f"alpha={alpha}: use a number > 1, or infinity for no preconditioning")
    raw = np.log1p(modes.pixels * (modes.power + modes.offset))
    return 1.0 / ((raw / raw.max() - 1.0) / alpha + 1.0)


def final_law(
    modes: Modes,
    gain: Any,
    iterations: int,
    sigma: tuple[float, float],
    *,
    snr: float | None = None,
    eps0: float = 1e-5,
) -> Law:
    """The law after reverse diffusion with N iterations, the corrector first where ``snr`` is given.

    Grid, levels and the last step without noise are those of ``sampling.get_pc_sampler`` with num_scales 1000.

    Args:
      modes: of the data.
      gain: (..., K) or (..., 1) gains m.
      iterations: N ≥ 2.
      sigma: least and largest noise level of the VE SDE.
      snr: of the Langevin corrector; None for the predictor alone.
      eps0: last time at 1000 iterations; the last time here is eps0 · 1000/N, at most 0.1.
    """
    if iterations < 2:
        raise PdsError(f"iterations={iterations}: use 2 or more")
    least, largest = sigma
    level = least * (largest / least) ** (np.arange(iterations)[::-1] / (iterations - 1))
    times = np.linspace(1.0, min(eps0 * max(1000 / iterations, 1.0), 0.1), iterations)
    schedule = alpha_lib.Schedule(
        drift=np.zeros(iterations),
        diffusion=-np.diff(level**2, append=0.0),
        mean_scale=np.ones(iterations),
        std=least * (largest / least) ** times,
        alphas=np.ones(iterations),
        prior_std=largest,
    )
    gains = np.square(np.asarray(gain, np.float64)) * np.ones_like(modes.power)
    return Law(*alpha_lib.final_law(schedule, modes.power, gains, snr or 0.0, 1, modes.offset, modes.count))


def frechet(modes: Modes, law: Law) -> np.ndarray:
    """Squared Wasserstein-2 distance to the data, Σ (√V − √P)² + offset², (...)."""
    gap = np.square(np.sqrt(law.variance) - np.sqrt(modes.power)) + law.offset
    return np.sum(modes.count * gap, axis=-1)


def spectrum_error(modes: Modes, law: Law) -> np.ndarray:
    """Root mean square over rings of log V − log P, both averaged over channels, as ``metrics.simple``'s, (...)."""
    rings = np.unique(modes.ring)
    inside = (modes.ring[:, None] == rings[None]).astype(np.float64)
    ours, theirs = law.variance @ inside, modes.power @ inside
    return np.sqrt(np.mean(np.square(np.log(ours) - np.log(theirs)), axis=-1))
