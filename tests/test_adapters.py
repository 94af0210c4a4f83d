"""Every prediction of Gaussian data, under every SDE, gives the closed-form score."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pds_jax import adapters
from pds_jax.ops import batch_mul
from pds_jax.sde_lib import VESDE, VPSDE, subVPSDE
from pds_jax.types import PdsError, ScoreFn

VARIANCE, MEAN = 0.3, 0.2
SDES = {"ve": VESDE(0.01, 50, 100), "vp": VPSDE(0.1, 20, 100), "subvp": subVPSDE(0.1, 20, 100)}


def exact_score(sde, x, t):
    m, std = np.float64(sde.mean_scale(t)), np.float64(sde.std(t))
    m, std = m[:, None, None, None], std[:, None, None, None]
    return -(x - m * MEAN) / (m**2 * VARIANCE + std**2)


def denoise(x, sigma):
    """E[x_0 | x̄] of N(MEAN, VARIANCE)."""
    s2 = jnp.square(sigma)
    return batch_mul(1 / (VARIANCE + s2), VARIANCE * x + s2[:, None, None, None] * MEAN)


def epsilon_of(alpha, sigma):
    """E[ε | x] for x = α x_0 + σ ε, as a function of (x, k) with α and σ functions of k."""

    def epsilon(x, k):
        a, s = alpha(k), sigma(k)
        return batch_mul(s / (a * a * VARIANCE + s * s), x - a[:, None, None, None] * MEAN)

    return epsilon


def velocity_of(alpha, sigma):
    def v(x, k):
        a, s = alpha(k), sigma(k)
        e = epsilon_of(alpha, sigma)(x, k)
        x0 = batch_mul(1 / a, x - batch_mul(s, e))
        return batch_mul(a, e) - batch_mul(s, x0)

    return v


@pytest.fixture
def x_t():
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(size=(5, 4, 4, 3)), jnp.float32), jnp.asarray([0.05, 0.2, 0.5, 0.8, 1.0], jnp.float32)


def close(sde, score, x_t, rtol=2e-5):
    x, t = x_t
    x = batch_mul(sde.mean_scale(t) + sde.std(t), x)
    got, want = np.asarray(jax.jit(lambda f: f(x, t))(score)), exact_score(sde, np.float64(x), t)
    assert got.dtype == np.float32 and isinstance(score, ScoreFn)
    scale = np.abs(want).max(axis=(1, 2, 3), keepdims=True)
    np.testing.assert_allclose(got / scale, want / scale, atol=rtol)


@pytest.mark.parametrize("name", SDES)
def test_denoiser(name, x_t):
    # (m D − x)/std² subtracts two numbers near x; for little noise this costs digits.
    close(SDES[name], adapters.from_denoiser(denoise, SDES[name]), x_t, 3e-4)


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize(("make", "of"), [(adapters.from_epsilon, epsilon_of), (adapters.from_v, velocity_of)])
def test_network_of_the_sde_itself(name, make, of, x_t):
    sde = SDES[name]
    close(sde, make(of(sde.mean_scale, sde.std), sde), x_t)


def tables(kind, n=4000):
    """A schedule as functions of a continuous k in [0, n − 1], and its tables."""
    levels = (1e-3, 2e2)

    def level(k):
        return jnp.exp(jnp.log(levels[0]) + k / (n - 1) * jnp.log(levels[1] / levels[0]))

    norm = {"vp": lambda s: 1.0 + 0 * s, "ve": lambda s: 1 + s * s, "odd": lambda s: 2 + jnp.sin(jnp.log(s))}[kind]
    alpha = lambda k: jnp.sqrt(norm(level(k)) / (1 + level(k) ** 2))  # noqa: E731
    sigma = lambda k: alpha(k) * level(k)  # noqa: E731
    k = jnp.arange(n, dtype=jnp.float32)
    return alpha, sigma, np.asarray(alpha(k)), np.asarray(sigma(k))


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize("kind", ["vp", "ve", "odd"])
@pytest.mark.parametrize(("make", "of"), [(adapters.from_epsilon, epsilon_of), (adapters.from_v, velocity_of)])
def test_network_of_another_schedule(name, kind, make, of, x_t):
    alpha, sigma, alphas, sigmas = tables(kind)
    score = make(of(alpha, sigma), SDES[name], alpha=alphas, sigma=sigmas)
    close(SDES[name], score, x_t, 2e-4)


def test_a_falling_schedule_and_its_own_times(x_t):
    alpha, sigma, alphas, sigmas = tables("vp")
    n = len(alphas)
    reverse = epsilon_of(lambda u: alpha((1 - u) * (n - 1)), lambda u: sigma((1 - u) * (n - 1)))
    score = adapters.from_epsilon(
        reverse, SDES["vp"], alpha=alphas[::-1], sigma=sigmas[::-1], times=1 - np.arange(n)[::-1] / (n - 1)
    )
    close(SDES["vp"], score, x_t, 2e-4)


def test_ddpm_schedules():
    linear, cosine = (adapters.ddpm_schedule(name) for name in ("linear", "cosine"))
    np.testing.assert_allclose(np.exp(linear.log_levels[[0, -1]]), [0.0100005, np.sqrt(1 / 4.0358e-5 - 1)], rtol=1e-4)
    np.testing.assert_allclose(linear.log_norms, 0, atol=1e-6)
    np.testing.assert_allclose(np.exp(cosine.log_levels[0]), 0.006423, rtol=1e-3)
    sde = VPSDE(0.1, 20, 1000)
    np.testing.assert_allclose(sde.discrete_betas[:1000], adapters.ddpm_betas("linear"), rtol=1e-5)
    with pytest.raises(PdsError, match="linear, cosine"):
        adapters.ddpm_schedule("sigmoid")


@pytest.mark.parametrize("n", [1000, 4000, 250])
def test_rescaled_times_are_those_of_a_thousand_steps(n):
    plain = adapters.ddpm_schedule("cosine", n)
    table = adapters.ddpm_schedule("cosine", n, rescale_timesteps=True)
    np.testing.assert_array_equal(plain.times, np.arange(n))
    np.testing.assert_allclose(table.times, np.arange(n) * 1000.0 / n, rtol=1e-6)
    np.testing.assert_array_equal(table.log_levels, plain.log_levels)


def test_level_is_found_at_the_table_s_entries():
    table = adapters.ddpm_schedule("cosine")
    alpha, sigma, time = table.at(jnp.exp(table.log_levels[np.asarray([0, 17, 500, 999])]))
    np.testing.assert_allclose(time, [0, 17, 500, 999], atol=2e-2)
    np.testing.assert_allclose(np.square(alpha) + np.square(sigma), 1, rtol=1e-6)


def test_pytrees_stay_traced_and_functions_are_compiled_in():
    x, t = jnp.ones((1, 2, 2, 1), jnp.float32), jnp.asarray([0.5], jnp.float32)
    traces = []

    @jax.jit
    def call(score, x, t):
        traces.append(1)
        return score(x, t)

    def scaled(a, x, s):
        return a * denoise(x, s)

    for scale in (1.0, 2.0):
        net = jax.tree_util.Partial(scaled, jnp.float32(scale))
        call(adapters.from_denoiser(net, SDES["ve"], evaluations=2), x, t)
    assert len(traces) == 1
    assert adapters.from_denoiser(denoise, SDES["ve"]).evaluations == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha": [1.0, 0.5]}, "alpha and sigma"),
        ({"alpha": [1.0, 0.5], "sigma": [0.1]}, "one shape"),
        ({"alpha": [1.0, 0.0], "sigma": [0.1, 0.2]}, "above 0"),
        ({"alpha": [1.0, 0.5, 0.7], "sigma": [0.1, 1.0, 0.5]}, "strictly"),
        ({"alpha": [1.0, 1.0], "sigma": [0.1, 0.1]}, "strictly"),
        ({"alpha": [1.0], "sigma": [0.1]}, "n >= 2"),
    ],
)
def test_bad_schedules_are_named(arguments, message):
    with pytest.raises(PdsError, match=message):
        adapters.from_epsilon(denoise, SDES["vp"], **arguments)
