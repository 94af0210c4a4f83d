"""The statements of docs/theory.md, each on the functions that sample, for Gaussian data with the exact score.

On such data a step is affine and acts on each frequency alone, so its image of an impulse tells all: with A and B the
gains of x and of z, the variance of a mode goes V -> |A|² V + |B|² and its mean m -> A m + b.
"""

import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pds_jax import alpha, correctors, preconditioner, predictors, sde_lib, time_grids
from pds_jax.models.analytic import FrequencyGaussian

SHAPE = (4, 5, 1)
HALF = (4, 3, 1)
SIGMA_MAX = 26.0


K = np.hypot(np.fft.fftfreq(4)[:, None], np.fft.rfftfreq(5)[None])[..., None]
POWER = (4 / (1 + 40 * K**2) ** 2).astype(np.float32)
MEAN = (0.5 + 0.1 * np.random.default_rng(0).standard_normal(SHAPE)).astype(np.float32)


def rising(largest):
    """Eigenvalues λ of M Mᵀ that rise with |k| from 1 to `largest`."""
    return 1 + (largest - 1) * K / K.max()


def filter_of(lam):
    """M with these eigenvalues of M Mᵀ."""
    freq = jnp.asarray(np.sqrt(np.broadcast_to(lam, HALF)), jnp.float32)
    return preconditioner.Preconditioner(freq=freq, alpha=jnp.float32(math.nan), shape=SHAPE)


def uniform(n):
    return time_grids.uniform(1.0, 1e-5, n)


def gains(step, times):
    """A, B and b of step(x, t, z, t_next) at every time, as half planes (N, H, W // 2 + 1, C)."""
    impulse = jnp.zeros((1, *SHAPE), jnp.float32).at[0, 0, 0, 0].set(1.0)
    zero = jnp.zeros_like(impulse)

    def one(pair):
        t, t_next = (jnp.full((1,), v, jnp.float32) for v in pair)
        _, constant = step(zero, t, zero, t_next)
        _, response = step(impulse, t, zero, t_next)
        noisy, quiet = step(zero, t, impulse, t_next)
        return [jnp.fft.rfft2(x[0], axes=(0, 1)) for x in (response - constant, noisy - quiet, constant)]

    ends = np.append(times[1:], 0.0).astype(np.float32)
    found = jax.jit(lambda t, e: jax.lax.map(one, (t, e)))(times, ends)
    return [np.asarray(g, np.complex128) for g in found]


def law_after(step, times, mean, variance):
    """Mean (a half plane) and variance of every mode after all steps, the last one without its noise."""
    mean, variance = np.asarray(mean, np.complex128), np.asarray(variance, np.float64)
    for i, (a, b, c) in enumerate(zip(*gains(step, times), strict=True)):
        mean = a * mean + c
        variance = np.abs(a) ** 2 * variance + (np.abs(b) ** 2 if i < len(times) - 1 else 0)
    return mean, variance


def predictor(name, sde, law, **options):
    """step(x, t, z, t_next) of a predictor."""
    return lambda x, t, z, t_next: predictors.get_predictor(name)(
        x, t, z, t_next=t_next, sde=sde, score_fn=law, **options
    )


def dense(m):
    """The matrices of M and of M Mᵀ + S."""
    basis = jnp.eye(math.prod(SHAPE), dtype=jnp.float32).reshape(-1, *SHAPE)
    images = m.apply(basis), m.drift(basis)
    return [np.asarray(x, np.float64).reshape(len(basis), -1).T for x in images]


def ve(n, sigma_min=0.01):
    sde = sde_lib.VESDE(sigma_min, SIGMA_MAX, n)
    return sde, FrequencyGaussian.create(sde, MEAN, POWER)


def preconditioners():
    """M with one filter, with both, and with a solenoidal term."""
    raw = np.random.default_rng(1).random((20, *SHAPE))
    power = np.mean(np.abs(np.fft.fft2(raw, axes=(1, 2))) ** 2, axis=0)
    stats = types.SimpleNamespace(r_f=np.log1p(power), r_a=np.mean(raw**2, axis=0))
    freq, both = (preconditioner.from_statistics(stats, 1.5, which) for which in ("freq", "both"))
    return {"freq": freq, "both": both, "skew": preconditioner.with_solenoidal(both, 0.8)}


# ---- 1 and 2: Langevin dynamics ----


@pytest.mark.parametrize("name", ["freq", "both", "skew"])
def test_langevin_dynamics_keeps_its_law_for_any_m_and_s(name):
    """Stationary covariance of dx = (M Mᵀ + S) s dτ + √2 M dw on N(0, Σ): B Σ + Σ Bᵀ + 2 M Mᵀ = 0."""
    m, drift = dense(preconditioners()[name])
    root = np.random.default_rng(2).standard_normal((20, 20))
    sigma = root @ root.T + 0.1 * np.eye(20)
    flow = -drift @ np.linalg.inv(sigma)
    residual = flow @ sigma + sigma @ flow.T + 2 * m @ m.T
    np.testing.assert_allclose(residual, 0, atol=1e-5 * np.abs(m @ m.T).max())
    assert np.linalg.eigvals(flow).real.max() < 0


def test_langevin_steps_keep_it_up_to_their_size():
    """With step ε a mode of total variance A settles at 2A / (2 − e), e = ε λ / A."""
    sde, law = ve(100)
    lam, t = rising(1.6), np.float32(0.5)
    std = float(sde.std(jnp.array([t]))[0])
    total = POWER + std**2
    for snr in (0.3, 0.05):
        m = filter_of(lam)
        (a,), (b,), _ = gains(
            lambda x, t, z, _, m=m, snr=snr: correctors.ald(
                x, t, z, sde=sde, score_fn=law, preconditioner=m, snr=jnp.float32(snr)
            ),
            np.array([t]),
        )
        settled = np.abs(b) ** 2 / (1 - np.abs(a) ** 2)
        e = 2 * (snr * std) ** 2 * lam / total
        np.testing.assert_allclose(settled, total * 2 / (2 - e), rtol=2e-4)


@pytest.mark.parametrize("name", ["freq", "both"])
def test_m_is_a_change_of_coordinates(name):
    """A step with M from x = M y is M times a plain step from y with the score Mᵀ s(M y) of the law of y."""
    sde, law = ve(100)
    m = preconditioners()[name]
    y, z = jnp.asarray(np.random.default_rng(3).standard_normal((2, 3, *SHAPE)), jnp.float32)
    t = jnp.full((3,), 0.4, jnp.float32)
    common = {"sde": sde, "snr": jnp.float32(0.2)}
    plain, _ = correctors.ald(y, t, z, score_fn=lambda y, t: m.transpose(law(m.apply(y), t)), **common)
    moved, _ = correctors.ald(m.apply(y), t, z, score_fn=law, preconditioner=m, **common)
    np.testing.assert_allclose(m.apply(plain), moved, atol=2e-5)


# ---- 3: the bias of the paper's predictor and its removal ----


def test_the_papers_predictor_is_biased_by_its_gain():
    """Its continuous limit ends at P m² / (2 m² − 1), the predictor without M at P; the error falls like 1/N."""
    for lam in (1.0, 1.5625):
        limit, errors = POWER * lam / (2 * lam - 1), []
        for n in (500, 1000):
            sde, law = ve(n, sigma_min=1e-3)
            step = predictor("reverse_diffusion", sde, law, preconditioner=filter_of(lam))
            start = lam * (POWER + SIGMA_MAX**2) / (2 * lam - 1)  # leaves no transient of the prior
            _, variance = law_after(step, uniform(n), np.zeros(HALF), start)
            errors.append(np.abs(variance / limit - 1).max())
        assert errors[1] < 0.03
        assert errors[0] / errors[1] == pytest.approx(2, rel=0.15)
    assert 1 - 1.5625 / (2 * 1.5625 - 1) == pytest.approx(0.26, abs=0.01)


@pytest.mark.parametrize("name", ["reverse_diffusion", "euler_maruyama"])
@pytest.mark.parametrize("kind", ["ve", "vp", "subvp"])
def test_the_exact_variant_keeps_every_marginal(kind, name):
    """For any M the law at every time tends to p_t, with an error that falls like 1/N."""
    errors = []
    lam = rising(1.8)
    for n in (400, 800):
        sde = {"ve": sde_lib.VESDE(0.01, SIGMA_MAX, n), "vp": sde_lib.VPSDE(N=n), "subvp": sde_lib.subVPSDE(N=n)}[kind]
        law = FrequencyGaussian.create(sde, MEAN, POWER)
        times = np.linspace(1, 0.3, int(0.7 * n) + 1, dtype=np.float32)
        step = predictor(name, sde, law, preconditioner=filter_of(lam), variant="exact")
        _, start = (np.asarray(a[0]) for a in law.marginal(times[:1]))
        mean = np.fft.rfft2(np.asarray(law.marginal(times[:1])[0][0]), axes=(0, 1))
        for a, b, c in zip(*(g[:-1] for g in gains(step, times)), strict=True):
            mean, start = a * mean + c, np.abs(a) ** 2 * start + np.abs(b) ** 2
        target_mean, target = (np.asarray(x[0]) for x in law.marginal(times[-1:]))
        errors.append(np.abs(start / target - 1).max())
        offset = np.abs(mean - np.fft.rfft2(target_mean, axes=(0, 1))) / np.sqrt(target * 20)
        assert offset.max() < 0.02
    assert errors[1] < 0.03
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.25)


# ---- 4: stability ----


def test_the_predictor_diverges_beyond_the_stability_limit():
    """|A| = |1 − q|, q = λ G²/(σ² + P): above 1 exactly when q > 2."""
    n = 40
    sde = sde_lib.VESDE(0.01, SIGMA_MAX, n)
    law = FrequencyGaussian.create(sde, 0 * MEAN, 0 * POWER)
    fresh = 1 - (0.01 / SIGMA_MAX) ** (2 / (n - 1))
    for q, diverges in ((1.9, False), (2.1, True)):
        step = predictor("reverse_diffusion", sde, law, preconditioner=filter_of(q / fresh))
        a, _, _ = gains(step, uniform(n)[:-2])
        np.testing.assert_allclose(np.abs(a), abs(1 - q), rtol=0.02)
        assert bool(np.prod(np.abs(a), axis=0).min() > 1) == diverges


# ---- 5: the lag ----


@pytest.mark.parametrize("n", [40, 66, 100, 200])
def test_gain_removes_the_lag_of_a_mode_of_noise(n):
    """V/σ² settles at 1/r without M, and at 1 or least with the gain of alpha(N)."""
    sde = sde_lib.VESDE(0.01, SIGMA_MAX, n)
    law = FrequencyGaussian.create(sde, 0 * MEAN, 0 * POWER + 1e-9)
    r = (0.01 / SIGMA_MAX) ** (2 / (n - 1))
    best = alpha.best_gain(r)
    times = uniform(n)[: n // 2]
    below = np.asarray(sde.discrete_sigmas)[n - n // 2 - 1]

    def lag(lam):
        step = predictor("reverse_diffusion", sde, law, preconditioner=filter_of(lam))
        a, b, _ = gains(step, times)
        variance = np.full(HALF, lam * SIGMA_MAX**2)
        for i in range(len(times)):
            variance = np.abs(a[i]) ** 2 * variance + np.abs(b[i]) ** 2
        return float((variance / below**2).mean())

    assert lag(1.0) == pytest.approx(1 / r, rel=0.01)
    if 1 - r <= 0.25:
        assert lag(best) == pytest.approx(1, rel=0.01)
    else:
        assert best == pytest.approx(1 / math.sqrt(1 - r))
        assert 1 < lag(best) < min(lag(best - 0.05), lag(best + 0.05), lag(1.0))
