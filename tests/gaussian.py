"""The law of Gaussian data under a sampler, mode by mode in float64: what the battery compares samples with.

A step on a mode with data variance P, drift eigenvalue λ = |M|² and Gaussian score is affine, x' = a x + b μ + c z.
Everything here is written from the formulas of the steps, without the package's code.
"""

import dataclasses
import functools
import math

import numpy as np

SHAPE = (8, 8, 1)


@dataclasses.dataclass(frozen=True)
class Sde:
    """m_t, std_t, and the discretisation, in float64."""

    kind: str
    N: int

    def index(self, t):
        return int(np.float32(t) * np.float32(self.N - 1))

    def log_mean(self, t):
        return -(t**2) * 19.9 / 4 - 0.1 * t / 2

    def m(self, t):
        return 1.0 if self.kind == "vesde" else math.exp(self.log_mean(t))

    def std(self, t):
        if self.kind == "vesde":
            return 0.01 * 5000**t
        variance = -math.expm1(2 * self.log_mean(t))
        return math.sqrt(variance) if self.kind == "vpsde" else variance

    def beta(self, t):
        return 0.1 + 19.9 * t

    def g2(self, t):
        if self.kind == "vesde":
            return self.std(t) ** 2 * 2 * math.log(5000)
        return self.beta(t) * (1 if self.kind == "vpsde" else -math.expm1(4 * self.log_mean(t)))

    def f(self, t):
        return 0.0 if self.kind == "vesde" else -self.beta(t) / 2

    def sigma(self, k):
        return 0.01 * 5000 ** (k / (self.N - 1)) if k >= 0 else 0.0

    def beta_k(self, k):
        return (0.1 + 19.9 * k / (self.N - 1)) / self.N

    def discretised(self, t):
        """f / x and G²."""
        k = self.index(t)
        if self.kind == "vesde":
            return 0.0, self.sigma(k) ** 2 - self.sigma(k - 1) ** 2
        if self.kind == "vpsde":
            return math.sqrt(1 - self.beta_k(k)) - 1, self.beta_k(k)
        return self.f(t) / self.N, self.g2(t) / self.N

    def a_t(self, t):
        return 1.0 if self.kind == "vesde" else 1 - self.beta_k(self.index(t))

    def level(self, t):
        return 0.0 if t == 0 else self.std(t) / self.m(t)


def reverse_diffusion(sde, t, t_next, P, lam, variant):
    f, g2 = sde.discretised(t)
    total = sde.m(t) ** 2 * P + sde.std(t) ** 2
    share = lam if variant == "paper" else (1 + lam) / 2
    linear = lam * f if variant == "paper" else f
    return 1 - linear - share * g2 / total, share * g2 * sde.m(t) / total, np.sqrt(g2 * lam)


def euler_maruyama(sde, t, t_next, P, lam, variant):
    f, g2 = sde.f(t) / sde.N, sde.g2(t) / sde.N
    total = sde.m(t) ** 2 * P + sde.std(t) ** 2
    share = lam if variant == "paper" else (1 + lam) / 2
    return 1 - f - share * g2 / total, share * g2 * sde.m(t) / total, np.sqrt(g2 * lam)


def ancestral_sampling(sde, t, t_next, P, lam, variant):
    k, total = sde.index(t), sde.m(t) ** 2 * P + sde.std(t) ** 2
    share = lam if variant == "paper" else (1 + lam) / 2
    if sde.kind == "vesde":
        s2, below = sde.sigma(k) ** 2, sde.sigma(k - 1) ** 2
        gap = s2 - below
        return 1 - share * gap / total, share * gap / total, np.sqrt(below * gap / s2 * lam)
    beta = sde.beta_k(k)
    root = math.sqrt(1 - beta)
    return (1 - share * beta / total) / root, share * beta * sde.m(t) / total / root, np.sqrt(beta * lam)


def none(sde, t, t_next, P, lam, variant):
    one = np.ones_like(P * lam)
    return one, 0 * one, 0 * one


def toward_data(sde, t, t_next, P, fraction):
    """x̄' = x̄ + fraction (D − x̄), in x."""
    s2, scale = sde.level(t) ** 2, (1.0 if t_next == 0 else sde.m(t_next))
    pull = fraction * s2 / (P + s2)
    return scale * (1 - pull) / sde.m(t), scale * pull


def ddim(sde, t, t_next, P, lam, variant):
    a, b = toward_data(sde, t, t_next, P, 1 - sde.level(t_next) / sde.level(t))
    return a, b, 0 * a


def spectral_ddim(sde, t, t_next, P, lam, variant):
    s2, below = sde.level(t) ** 2, sde.level(t_next) ** 2
    a, b = toward_data(sde, t, t_next, P, (P + s2) / s2 * (1 - np.sqrt((P + below) / (P + s2))))
    return a, b, 0 * a


def spectral_ancestral(sde, t, t_next, P, lam, variant):
    s2, below = sde.level(t) ** 2, sde.level(t_next) ** 2
    share = lam if variant == "paper" else (1 + lam) / 2
    a, b = toward_data(sde, t, t_next, P, share * (1 - below / s2))
    scale = 1.0 if t_next == 0 else sde.m(t_next)
    return a, b, scale * np.sqrt((s2 - below) * (P + below) / (P + s2) * lam)


PREDICTORS = {
    f.__name__: f
    for f in (reverse_diffusion, euler_maruyama, ancestral_sampling, none, ddim, spectral_ddim, spectral_ancestral)
}


def langevin(epsilon, sde, t, P, lam):
    total = sde.m(t) ** 2 * P + sde.std(t) ** 2
    return 1 - epsilon * lam / total, epsilon * lam * sde.m(t) / total, np.sqrt(2 * epsilon * lam)


def step_size(corrector, sde, t, P, lam, mean, variance, mu, weights, snr):
    """ε of a corrector; for "langevin" with the norms of a large batch."""
    if corrector == "ald":
        return 2 * sde.a_t(t) * (snr * sde.std(t)) ** 2
    total = sde.m(t) ** 2 * P + sde.std(t) ** 2
    offset = np.abs(mean - sde.m(t) * mu) ** 2
    g2 = np.sum(weights * (lam / total) ** 2 * (variance + offset))
    return 2 * sde.a_t(t) * snr**2 * np.sum(weights * lam) / g2


def law(sde, times, predictor, corrector, *, P, lam, mu, weights, variant="paper", snr=0.16, n_steps=1):
    """Mean and variance of every mode of the sampler's result.

    Args:
      sde: of this file.
      times: the grid.
      predictor: name.
      corrector: name.
      P: data variance of the modes.
      lam: eigenvalues of M Mᵀ, of the same shape.
      mu: data mean of the modes (complex for frequencies, normalised so that white noise has variance 1).
      weights: how many dimensions each mode stands for.
      variant: of the predictor.
      snr: of the corrector.
      n_steps: corrector steps.
    """
    sigma = 50.0 if sde.kind == "vesde" else 1.0
    mean, variance = 0 * mu, sigma**2 * (lam if variant == "paper" else np.ones_like(lam))
    quiet = mean, variance
    for i, t in enumerate(times):
        t_next = times[i + 1] if i + 1 < len(times) else 0.0
        if corrector != "none":
            for _ in range(n_steps):
                epsilon = step_size(corrector, sde, t, P, lam, mean, variance, mu, weights, snr)
                a, b, c = langevin(epsilon, sde, t, P, lam)
                quiet = a * mean + b * mu, a**2 * variance
                mean, variance = quiet[0], quiet[1] + c**2
        if predictor != "none":
            a, b, c = PREDICTORS[predictor](sde, float(t), float(t_next), P, lam, variant)
            quiet = a * mean + b * mu, a**2 * variance
            mean, variance = quiet[0], quiet[1] + c**2
    return quiet


@functools.cache
def data(seed=0):
    """A mean image, a spectrum (half plane) and pixel variances of a smooth random field."""
    rng = np.random.default_rng(seed)
    height, width, _ = SHAPE
    k = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])[..., None]
    power = 0.5 / (1 + 30 * k**2) ** 1.5
    return 0.5 + 0.2 * rng.normal(size=SHAPE), power, 0.02 + 0.3 * rng.uniform(size=SHAPE)


def modes(images):
    """Half-plane coefficients, normalised so that white noise of variance 1 has variance 1 in each."""
    return np.fft.rfft2(np.asarray(images, np.float64), axes=(-3, -2)) / math.sqrt(SHAPE[0] * SHAPE[1])


def half_plane_weights():
    weights = np.full((SHAPE[0], SHAPE[1] // 2 + 1, 1), 2.0)
    weights[:, [0, -1]] = 1.0
    return weights


def numpy_m(m):
    """M and M Mᵀ of a preconditioner with both filters, in NumPy's float64."""
    freq, space = (np.asarray(v, np.float64) for v in (m.freq, m.space))

    def multiply(x):
        return np.fft.irfft2(np.fft.rfft2(x, axes=(1, 2)) * freq, s=space.shape[:2], axes=(1, 2))

    def apply(z):
        return multiply(np.asarray(z, np.float64) * space)

    return apply, lambda g: multiply(space**2 * multiply(np.asarray(g, np.float64)))
