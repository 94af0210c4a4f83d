"""The statements of docs/theory.md, each on the functions that sample, for Gaussian data with the exact score.

On such data a step is affine and acts on each frequency alone, so its image of an impulse tells all: with A and B the
gains of x and of z, the variance of a mode goes V -> |A|² V + |B|² and its mean m -> A m + b.
"""

import functools
import math
import pathlib
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pds_jax import alpha, correctors, preconditioner, predictors, sde_lib, solenoidal, solvers, spectral, time_grids
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


@functools.partial(jax.jit, static_argnames=("name", "variant"))
def _gains(name, variant, times, ends, arguments):
    step = correctors.CORRECTORS.get(name) or predictors.get_predictor(name)
    law = arguments.pop("law")
    x, z = (jnp.zeros((3, *SHAPE), jnp.float32).at[row, 0, 0, 0].set(1.0) for row in (1, 2))

    def one(pair):
        t, t_next = (jnp.full((3,), v, jnp.float32) for v in pair)
        # One with a memory is given none, which on Gaussian data is right.
        options = {"variant": variant, "t_next": t_next, "memory": solvers.Memory.empty(x), **arguments}
        noisy, quiet = step(x, t, z, score_fn=law, **options)[:2]
        transform = functools.partial(jnp.fft.rfft2, axes=(0, 1))
        return transform(quiet[1] - quiet[0]), transform(noisy[2] - quiet[2]), transform(quiet[0])

    return jax.lax.map(one, (times, ends))


def gains(name, times, variant="paper", **arguments):
    """A, B and b of a step at every time, as half planes (N, H, W // 2 + 1, C); programs are shared between tests."""
    times = np.asarray(times, np.float32)
    ends = np.append(times[1:], np.float32(0))
    padding = (0, -len(times) % 32 if len(times) < 256 else -len(times) % 2048)
    padded = np.pad(times, padding, mode="edge"), np.pad(ends, padding, mode="edge")
    arguments = {"preconditioner": preconditioner.identity(), "moments": (MEAN, POWER), **arguments}
    return [np.asarray(g, np.complex128)[: len(times)] for g in _gains(name, variant, *padded, arguments)]


def law_after(name, times, mean, variance, **arguments):
    """Mean (a half plane) and variance of every mode after all steps, the last one without its noise."""
    mean, variance = np.asarray(mean, np.complex128), np.asarray(variance, np.float64)
    for i, (a, b, c) in enumerate(zip(*gains(name, times, **arguments), strict=True)):
        mean = a * mean + c
        variance = np.abs(a) ** 2 * variance + (np.abs(b) ** 2 if i < len(times) - 1 else 0)
    return mean, variance


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
    return {"freq": freq, "both": both, "skew": solenoidal.with_solenoidal(both, 0.8)}


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
        (a,), (b,), _ = gains("ald", [t], sde=sde, law=law, preconditioner=filter_of(lam), snr=jnp.float32(snr))
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
            start = lam * (POWER + SIGMA_MAX**2) / (2 * lam - 1)  # leaves no transient of the prior
            m = filter_of(lam)
            _, variance = law_after(
                "reverse_diffusion", uniform(n), np.zeros(HALF), start, sde=sde, law=law, preconditioner=m
            )
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
        steps = gains(name, times, "exact", sde=sde, law=law, preconditioner=filter_of(lam))
        _, start = (np.asarray(a[0]) for a in law.marginal(times[:1]))
        mean = np.fft.rfft2(np.asarray(law.marginal(times[:1])[0][0]), axes=(0, 1))
        for a, b, c in zip(*(g[:-1] for g in steps), strict=True):
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
        m = filter_of(q / fresh)
        a, _, _ = gains("reverse_diffusion", uniform(n)[:-2], sde=sde, law=law, preconditioner=m)
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
        a, b, _ = gains("reverse_diffusion", times, sde=sde, law=law, preconditioner=filter_of(lam))
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


# ---- 6 to 8: spectral samplers ----

SDES = {
    "ve": sde_lib.VESDE(0.01, SIGMA_MAX),
    "vp": sde_lib.VPSDE(),
    "subvp": sde_lib.subVPSDE(),
}


def start_of(law):
    """Mean (a half plane) and variance of p_T."""
    mean, variance = (np.asarray(a[0], np.float64) for a in law.marginal(jnp.ones(1, jnp.float32)))
    return np.fft.rfft2(mean, axes=(0, 1)), variance


@pytest.mark.parametrize("kind", SDES)
def test_spectral_ancestral_is_exact_at_any_number_of_steps(kind):
    """From p_T the law at every time is p_t; the last mean is that of the data, its variance P²/(P + σ²)."""
    for n in (2, 5, 20):
        sde = SDES[kind].with_num_scales(n)
        law = FrequencyGaussian.create(sde, MEAN, POWER)
        times = time_grids.uniform(1.0, 0.02, n)
        mean, variance = start_of(law)
        means, variances = (np.asarray(a, np.float64) for a in law.marginal(jnp.asarray(times)))
        a, b, c = gains("spectral_ancestral", times, sde=sde, law=law)
        for i in range(n - 1):
            mean, variance = a[i] * mean + c[i], np.abs(a[i]) ** 2 * variance + np.abs(b[i]) ** 2
            np.testing.assert_allclose(variance, variances[i + 1], rtol=2e-3)
            np.testing.assert_allclose(mean, np.fft.rfft2(means[i + 1], axes=(0, 1)), atol=2e-3)
        level = float(sde.std(times[-1:])[0] / sde.mean_scale(times[-1:])[0])
        _, variance = law_after("spectral_ancestral", times, *start_of(law), sde=sde, law=law)
        np.testing.assert_allclose(variance, POWER**2 / (POWER + level**2), rtol=5e-3)


@pytest.mark.parametrize("name", ["spectral_ddim", "spectral_dpmpp_2m"])
@pytest.mark.parametrize("kind", SDES)
def test_spectral_ddim_is_exact_at_any_number_of_steps(kind, name):
    """From p_T the flow ends at N(μ, P); so does the multistep method."""
    for n in (2, 5, 20):
        sde = SDES[kind].with_num_scales(n)
        law = FrequencyGaussian.create(sde, MEAN, POWER)
        mean, variance = law_after(name, time_grids.uniform(1.0, 1e-3, n), *start_of(law), sde=sde, law=law)
        np.testing.assert_allclose(variance, POWER, rtol=5e-3)
        np.testing.assert_allclose(mean, np.fft.rfft2(MEAN, axes=(0, 1)), atol=5e-3)


def test_ddim_and_ancestral_sampling_are_the_case_without_data():
    """The spectral steps with P → 0."""
    sde = SDES["ve"].with_num_scales(10)
    law = FrequencyGaussian.create(sde, MEAN, POWER)
    none = (0 * MEAN, np.full(HALF, 1e-10, np.float32))
    times = time_grids.uniform(1.0, 0.1, 10)
    plain = gains("ddim", times, sde=sde, law=law)[0][:-1]
    for name in ("spectral_ddim", "spectral_dpmpp_2m"):
        np.testing.assert_allclose(gains(name, times, sde=sde, law=law, moments=none)[0][:-1], plain, rtol=1e-3)
    noise = gains("spectral_ancestral", times, sde=sde, law=law, moments=none)[1][:-1]
    sigma = np.asarray(sde.std(times), np.float64)
    expected = sigma[1:] * np.sqrt(1 - (sigma[1:] / sigma[:-1]) ** 2)
    np.testing.assert_allclose(noise[:, 1, 1, 0], expected, rtol=1e-3)


# ---- 10: M in the multistep solver of the reverse SDE ----


@pytest.mark.parametrize("n", [10, 40])
def test_the_exact_sde_solver_keeps_amplified_modes_above_the_noise(n):
    """A mode of noise settles at (1 + ρ)/(2 − λ(1 − ρ)) of the noise's variance: at 1 for M = I, above it for λ > 1."""
    sde, lam = sde_lib.VESDE(0.01, SIGMA_MAX, n), rising(1.56)
    law = FrequencyGaussian.create(sde, MEAN, 0 * POWER)
    times = uniform(n)
    levels = np.asarray(sde.std(times), np.float64)
    (a, *_), (b, *_), _ = gains("sde_dpmpp_2m", times, "exact", sde=sde, law=law, preconditioner=filter_of(lam))
    rho = levels[1] / levels[0]
    np.testing.assert_allclose(np.abs(a), np.broadcast_to(rho * np.abs(1 - lam * (1 - rho)), HALF), rtol=1e-3)
    settled = np.abs(b) ** 2 / levels[1] ** 2 / (1 - np.abs(a) ** 2 / rho**2)
    expected = (1 + rho) / (2 - lam * (1 - rho))
    np.testing.assert_allclose(settled, np.broadcast_to(expected, HALF), rtol=2e-3)
    assert expected[K == 0].max() == pytest.approx(1) and expected.max() > 1.05
    last = gains("sde_dpmpp_2m", times, "exact", sde=sde, law=law, preconditioner=filter_of(lam))
    np.testing.assert_allclose(np.abs(last[0][-1]), 0, atol=1e-5)  # the step to the data is the denoiser, whatever M
    np.testing.assert_allclose(np.abs(last[1][-1]), 0, atol=1e-5)


def test_every_statement_names_tests_that_exist():
    root = pathlib.Path(__file__).parents[1]
    text = (root / "docs" / "theory.md").read_text()
    named = re.findall(r"`(?:(tests/\w+\.py))?::(test_\w+)`", text)
    assert len(named) >= 14
    path = ""
    for file, name in named:
        path = file or path
        assert f"def {name}(" in (root / path).read_text(), f"docs/theory.md names {path}::{name}"
    sections = text.split("\n## ")[1:]
    assert all("Checked by" in section for section in sections)


# ---- 9: the matched prior ----


def test_what_the_standard_prior_leaves_and_the_matched_one_does_not():
    """In standard deviations of the data, after the flow and after fine reverse diffusion."""
    mean_hat, total = np.fft.rfft2(MEAN, axes=(0, 1)), POWER + SIGMA_MAX**2
    unit = np.sqrt(POWER * math.prod(SHAPE))

    def left(name, n, start):
        sde = sde_lib.VESDE(1e-3, SIGMA_MAX, n)
        law = FrequencyGaussian.create(sde, MEAN, POWER)
        mean, variance = law_after(name, uniform(n), *start, sde=sde, law=law)
        return np.abs(mean - mean_hat) / unit, variance / POWER

    standard = np.zeros(HALF), np.full(HALF, SIGMA_MAX**2)
    size = np.abs(mean_hat) / np.sqrt(total * math.prod(SHAPE))
    offset, ratio = left("spectral_ddim", 20, standard)
    np.testing.assert_allclose(offset, size, rtol=0.02, atol=1e-4)
    np.testing.assert_allclose(ratio, SIGMA_MAX**2 / total, rtol=2e-3)
    offset, ratio = left("reverse_diffusion", 1500, standard)
    np.testing.assert_allclose(offset, size * np.sqrt(POWER / total), rtol=0.1, atol=1e-3)
    np.testing.assert_allclose(ratio, 1 - (POWER / total) ** 2, rtol=0.02)
    offset, ratio = left("spectral_ddim", 20, (mean_hat, total))
    assert offset.max() < 2e-3
    np.testing.assert_allclose(ratio, 1, rtol=2e-3)


@pytest.mark.parametrize("kind", SDES)
def test_the_matched_prior_is_the_law_of_gaussian_data_at_the_start(kind):
    law = FrequencyGaussian.create(SDES[kind], MEAN, POWER)
    both = np.zeros((2, *SHAPE), np.float32)
    both[1, 0, 0, 0] = 1
    drawn = np.asarray(spectral.matched_prior(both, SDES[kind], jnp.float32(1), (MEAN, POWER)))
    mean, variance = start_of(law)
    np.testing.assert_allclose(np.fft.rfft2(drawn[0], axes=(0, 1)), mean, atol=1e-4)
    gain = np.fft.rfft2(drawn[1] - drawn[0], axes=(0, 1))
    np.testing.assert_allclose(np.abs(gain) ** 2, variance, rtol=1e-4)
