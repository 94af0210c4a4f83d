"""Predictors: recorded updates, order of convergence, M, refusals. Their laws are in test_battery.py."""

import functools
import re

import gaussian
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recorded import SDES, load, nhwc, pds_mask, relative, score_sde_score, worst_sample

from pds_jax import predictors
from pds_jax.models.analytic import FrequencyGaussian
from pds_jax.preconditioner import Preconditioner, identity
from pds_jax.sde_lib import VESDE, VPSDE, subVPSDE
from pds_jax.types import PdsError

RNG = np.random.default_rng(0)
X, Z = RNG.normal(size=(2, 3, 6, 5, 2)).astype(np.float32)
T = np.array([0.9, 0.4, 0.05], np.float32)
STEPPING = ("reverse_diffusion", "euler_maruyama", "ancestral_sampling")


@functools.partial(jax.jit, static_argnames=("name", "probability_flow", "variant"))
def step(name, x, t, z, sde, score_fn, preconditioner=None, probability_flow=False, variant="paper"):
    return predictors.get_predictor(name)(
        x,
        t,
        z,
        sde=sde,
        score_fn=score_fn,
        preconditioner=preconditioner,
        probability_flow=probability_flow,
        variant=variant,
    )


@jax.tree_util.Partial
def score(x, t):
    return -x / (0.3 + t[:, None, None, None]) + 0.1


def test_recorded_updates_of_score_sde(golden):
    data = load(golden / "score_sde" / "sde" / "predictor_corrector.npz")
    checked = 0
    for key in data:
        match = re.fullmatch(r"(\w+)\.N(\d+)\.(t_\w+)\.(\w+)\.pf([01])\.(x_out|x_mean)", key)
        if match is None:
            continue
        kind, n, times, name, flow, what = match.groups()
        sde, base = SDES[kind](N=int(n)), f"{kind}.N{n}.{times}"
        x, x_mean = step(
            name,
            data[f"{base}.x_in"],
            data[f"{base}.t"],
            data["predictor.noise"],
            sde,
            score_sde_score(data, sde),
            probability_flow=flow == "1",
        )
        error = worst_sample(x if what == "x_out" else x_mean, data[key])
        # What is recorded cancels in float32: the difference of levels at N = 1000, and 1 − m_t² of subVP near t = 0.
        assert error < (5e-5 if n == "1000" or kind == "subvpsde" else 1e-5), (key, error)
        checked += 1
    assert checked > 40


def test_recorded_updates_of_the_released_code(golden):
    data = load(golden / "torch" / "pds" / "single_updates.npz")
    times = {"eq": data["t_eq"], "mix": data["t_mix"], "T": np.ones(2), "eps": np.full(2, 5e-4)}
    recorded = jax.tree_util.Partial(lambda s, x, t: s, nhwc(data["score"]))
    checked = 0
    for key in data:
        match = re.fullmatch(r"(rd|rdpf)\.([a-z]+)(\d+)\.(\w+)\.(\w+)\.(x_out|x_mean)", key)
        if match is None:
            continue
        kind, name, n, mask, t, what = match.groups()
        x, x_mean = step(
            "reverse_diffusion",
            nhwc(data["x_in"]),
            np.float32(times[t]),
            nhwc(data["noise"]),
            SDES[name](N=int(n)),
            recorded,
            pds_mask(golden, mask),
            probability_flow=kind == "rdpf",
        )
        assert relative(x if what == "x_out" else x_mean, nhwc(data[key])) < 5e-6, key
        checked += 1
    assert checked > 25


@pytest.mark.parametrize("name", STEPPING)
@pytest.mark.parametrize("variant", predictors.VARIANTS)
def test_identity_is_no_preconditioner_to_the_bit(name, variant):
    sde = VPSDE(N=100)
    plain = step(name, X, T, Z, sde, score, variant=variant)
    for a, b in zip(step(name, X, T, Z, sde, score, identity(), variant=variant), plain, strict=True):
        np.testing.assert_array_equal(a, b)
    paper = step(name, X, T, Z, sde, score)
    np.testing.assert_allclose(plain[0], paper[0], rtol=1e-5, atol=1e-6)


def filters():
    freq = 1 + 0.5 * RNG.uniform(size=(6, 3, 2))
    freq[:, 0] = (freq[:, 0] + np.roll(freq[::-1, 0], 1, axis=0)) / 2
    return Preconditioner(
        freq=np.float32(freq), space=np.float32(1 + 0.3 * RNG.uniform(size=(6, 5, 2))), shape=(6, 5, 2)
    )


@pytest.mark.parametrize("name", STEPPING)
def test_every_predictor_applies_m(name):
    """The noise is M z; the score's share of the drift is M Mᵀ s, or half of it and half of s."""
    m, sde = filters(), VESDE(N=50)
    apply, gram = gaussian.numpy_m(m)
    x, x_mean = (np.asarray(v) for v in step(name, X, T, Z, sde, score, m))
    plain, plain_mean = (np.asarray(v) for v in step(name, X, T, Z, sde, score))
    np.testing.assert_allclose(x - x_mean, apply(plain - plain_mean), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(x_mean - X, gram(plain_mean - X), rtol=1e-3, atol=2e-3)
    exact = np.asarray(step(name, X, T, Z, sde, score, m, variant="exact")[1])
    np.testing.assert_allclose(exact - X, ((plain_mean - X) + gram(plain_mean - X)) / 2, rtol=1e-3, atol=2e-3)


def test_only_the_papers_reverse_diffusion_preconditions_the_linear_drift():
    m, sde, zero = filters(), VPSDE(N=50), jax.tree_util.Partial(lambda x, t: 0 * x)
    beta = ((0.1 + 19.9 * np.array([44, 19, 2]) / 49) / 50)[:, None, None, None]
    f = (np.sqrt(1 - beta) - 1) * X
    paper = step("reverse_diffusion", X, T, Z, sde, zero, m)[1]
    np.testing.assert_allclose(paper, X - gaussian.numpy_m(m)[1](f), rtol=1e-4, atol=1e-5)
    exact = step("reverse_diffusion", X, T, Z, sde, zero, m, variant="exact")[1]
    np.testing.assert_allclose(exact, X - f, rtol=1e-4, atol=1e-5)
    euler = step("euler_maruyama", X, T, Z, sde, zero, m)[1]
    np.testing.assert_allclose(euler, step("euler_maruyama", X, T, Z, sde, zero)[1], rtol=1e-6)


def test_probability_flow_is_noise_free_and_half_as_fast():
    sde = VESDE(N=50)
    for name in ("reverse_diffusion", "euler_maruyama"):
        x, x_mean = step(name, X, T, Z, sde, score, probability_flow=True)
        np.testing.assert_array_equal(x, x_mean)
        _, full = step(name, X, T, Z, sde, score)
        np.testing.assert_allclose(x_mean - X, (full - X) / 2, rtol=1e-3, atol=1e-3)


FINE, START, END = 256, 0.8, 0.3


@jax.jit
def coarsened(sde, law, x0, dw, ratio):
    """Euler–Maruyama that steps once in `ratio` of the increments dw, with their sum; one program for every ratio."""

    def advance(carry, pair):
        x, total = carry
        i, increment = pair
        total = total + increment
        t = START - (i + 1 - ratio) * jnp.float32((START - END) / FINE)
        # Noise of unit variance: the step multiplies it by 1/√N, N = FINE / ratio / (START − END).
        z = total * jnp.sqrt(jnp.float32(FINE) / ratio)
        stepped, _ = predictors.euler_maruyama(x, jnp.full(x.shape[:1], t), z, sde=sde, score_fn=law)
        due = (i + 1) % ratio == 0
        return (jnp.where(due, stepped, x), jnp.where(due, 0 * total, total)), None

    return jax.lax.scan(advance, (x0, 0 * x0), (jnp.arange(FINE, dtype=jnp.float32), dw))[0][0][:, 0, 0, 0]


@pytest.mark.parametrize("kind", [VPSDE, pytest.param(subVPSDE, marks=pytest.mark.slow)])
def test_euler_maruyama_has_strong_and_weak_order_one(kind):
    """One pixel of Gaussian data, on one Brownian path coarsened; additive noise: strong order 1 too."""
    paths = 4000
    law = FrequencyGaussian.create(kind(), np.full((1, 1, 1), 0.4), np.full((1, 1, 1), 0.2))
    x0 = np.asarray(law.sample_at(jax.random.key(0), jnp.full((paths,), START)))
    dw = np.random.default_rng(1).normal(size=(FINE, paths, 1, 1, 1)).astype(np.float32) / np.float32(np.sqrt(FINE))

    def solve(ratio):
        sde = kind(N=int(round(FINE / ratio / (START - END))))
        return np.asarray(coarsened(sde, law, x0, dw, np.float32(ratio)), np.float64)

    exact = solve(1)
    coarse = [solve(ratio) for ratio in (32, 16, 8)]
    strong = [np.sqrt(np.mean((x - exact) ** 2)) for x in coarse]
    # On the same path: what is left of the difference of mean squares is the bias.
    weak = [abs(np.mean(x**2) - np.mean(exact**2)) for x in coarse]
    assert 1.6 < strong[0] / strong[1] < 2.7 and 1.6 < strong[1] / strong[2] < 2.7
    assert weak[0] / weak[2] > 2.5
    mean, std = (float(v[0]) for v in (kind().mean_scale(jnp.array([END])), kind().std(jnp.array([END]))))
    target = (mean * 0.4) ** 2 + mean * mean * 0.2 + std * std
    assert abs(np.mean(exact**2) / target - 1) < 0.1


def test_the_registry():
    assert {*STEPPING, "none"} <= set(predictors.PREDICTORS)
    with pytest.raises(PdsError, match="unknown predictor 'euler'; known: .*euler_maruyama"):
        predictors.get_predictor("euler")
    with pytest.raises(PdsError, match="already"):
        predictors.register_predictor("none")(predictors.PREDICTORS["none"])


def test_refusals():
    sde = VESDE(N=50)
    with pytest.raises(PdsError, match="no probability_flow"):
        step("ancestral_sampling", X, T, Z, sde, score, probability_flow=True)
    with pytest.raises(PdsError, match="not subVPSDE"):
        step("ancestral_sampling", X, T, Z, subVPSDE(N=50), score)
    with pytest.raises(PdsError, match="known: paper, exact"):
        step("reverse_diffusion", X, T, Z, sde, score, variant="ours")
    with pytest.raises(PdsError, match="no noise for M"):
        step("euler_maruyama", X, T, Z, sde, score, filters(), probability_flow=True, variant="exact")
    with pytest.raises(PdsError, match=r"\(6, 5, 2\)"):
        step("reverse_diffusion", X[:, :5], T, Z[:, :5], sde, score, filters())
