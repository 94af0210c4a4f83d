"""SDEs against the recorded values of score_sde and of the released PDS code, and against closed forms."""

import functools
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pds_jax import sde_lib
from pds_jax.types import PdsError

SDES = {"vesde": sde_lib.VESDE, "vpsde": sde_lib.VPSDE, "subvpsde": sde_lib.subVPSDE}
# Recorded in float32 with 1 − exp(2 log m), which has few digits left here: 0.6 % wrong at 1e-5.
FEW_DIGITS = 1e-2


@jax.jit
def evaluate(sde, x, t, score):
    values = {}
    values["drift"], values["diffusion"] = sde.sde(x, t)
    values["mean"], values["std"] = sde.marginal_prob(x, t)
    values["f"], values["G"] = sde.discretize(x, t)
    values["prior_logp"] = sde.prior_logp(x)
    for name, probability_flow in (("rev", False), ("revpf", True)):
        reverse = sde.reverse(lambda x, t: score, probability_flow)
        values[f"{name}_drift"], values[f"{name}_diffusion"] = reverse.sde(x, t)
        values[f"{name}_f"], values[f"{name}_G"] = reverse.discretize(x, t)
    return values


@functools.cache
def recorded(golden, name):
    with np.load(golden / "score_sde" / "sde" / f"sde_{name}.npz") as data:
        return dict(data)


def per_sample(a, b):
    a, b = (np.asarray(v, np.float64).reshape(len(v), -1) for v in (a, b))
    return np.abs(a - b).max(axis=1) / np.maximum(np.abs(b).max(axis=1), 1e-30)


@pytest.mark.parametrize("name", SDES)
def test_recorded_values(golden, name):
    data = recorded(golden, name)
    sde, t = SDES[name](N=1000), data["t"]
    values = evaluate(sde, data["x"], t, data["score"])
    settled = t >= FEW_DIGITS
    for key, value in values.items():
        error = per_sample(value, data[key])
        if key in ("f", "rev_f", "revpf_f"):  # subtracted from x: their float32 cancellation counts on that scale
            size = np.abs(data["x"]).max(axis=(1, 2, 3)) / np.abs(data[key]).max(axis=(1, 2, 3)).clip(1e-30)
            error = error / np.maximum(1, size)
        assert error[settled].max() < 1e-4, key
        assert key in ("std", "G", "diffusion") or error[~settled].max() < 1e-4 or name != "vesde", key


@pytest.mark.parametrize("name", SDES)
def test_recorded_prior(golden, name):
    data = recorded(golden, name)
    sde = SDES[name](N=1000)
    np.testing.assert_allclose(data["prior_noise"] * np.asarray(sde.prior_std), data["prior_sample"], rtol=1e-6)
    sample = sde.prior_sampling(jax.random.key(0), (4, 8, 8, 3))
    assert sample.dtype == jnp.float32
    assert abs(float(jnp.std(sample)) / float(sde.prior_std) - 1) < 0.1


@pytest.mark.parametrize(
    ("name", "table", "rtol"),
    [
        ("vesde", "discrete_sigmas", 1e-6),
        ("vpsde", "discrete_betas", 1e-6),
        ("vpsde", "alphas", 1e-6),
        ("vpsde", "alphas_cumprod", 1e-6),
        ("vpsde", "sqrt_alphas_cumprod", 1e-6),
        ("vpsde", "sqrt_1m_alphas_cumprod", 1e-4),  # recorded with 1 − cumprod in float32
    ],
)
def test_recorded_tables(golden, name, table, rtol):
    expected = recorded(golden, name)[f"table_{table}"]
    np.testing.assert_allclose(getattr(SDES[name](N=1000), table)[:1000], expected, rtol=rtol)


@pytest.mark.parametrize("name", ["vpsde", "subvpsde"])
def test_std_keeps_its_digits_near_zero(name):
    sde = SDES[name]()
    t = np.array([1e-5, 1e-4, 1e-3, 1e-2, 0.5, 1.0], np.float32)
    log_mean = -(t.astype(np.float64) ** 2) * 19.9 / 4 - 0.1 * t.astype(np.float64) / 2
    variance = -np.expm1(2 * log_mean)
    expected = np.sqrt(variance) if name == "vpsde" else variance
    np.testing.assert_allclose(sde.std(t), expected, rtol=1e-6)


@jax.jit
def levels(sde, t):
    return sde.index(t), sde.discretize(jnp.ones((2000, 1)), t)[1], sde.std(t)


def test_recorded_schedules(golden):
    """G, index and label of every recorded speed-up; t is the recorded one."""
    bases = {
        "ve50": (sde_lib.VESDE(0.01, 50), 1000),
        "bedroom": (sde_lib.VESDE(0.01, 378), 2000),
        "church": (sde_lib.VESDE(0.01, 380), 2000),
        "ffhq": (sde_lib.VESDE(0.01, 1348), 2000),
        "vp": (sde_lib.VPSDE(), 1000),
        "subvp": (sde_lib.subVPSDE(), 1000),
    }
    checked = 0
    with np.load(golden / "torch" / "pds" / "schedules.npz") as data:
        for tag, steps in sorted({tuple(key.split(".")[:2]) for key in data.files}):
            prefix = f"{tag}.{steps}."
            t, (base, scales) = data[prefix + "t"], bases[tag]
            sde = base.with_num_scales(int(scales / float(steps[1:])))
            assert int(sde.N) == len(t)
            k, G, std = (v[: len(t)] for v in levels(sde, np.pad(t, (0, 2000 - len(t)), mode="edge")))
            np.testing.assert_array_equal(k, data[prefix + "k"])
            # subVP cancels in the recorded 1 − exp at the end of the longest schedule.
            np.testing.assert_allclose(G, data[prefix + "G"], rtol=3e-5 if len(t) >= 1000 else 1e-5)
            label = 999 * t if "vp" in tag else std
            np.testing.assert_allclose(label, data[prefix + "label"], rtol=2e-6)
            checked += 1
    assert checked == 29


@pytest.mark.parametrize("name", SDES)
def test_discretisation_tends_to_the_sde(name):
    """f N → f(x, t) and G √N → g(t) as N grows."""
    x, t = jnp.full((3, 2), 0.7), jnp.array([0.2, 0.5, 0.9])
    errors = []
    for n in (1000, 4000):
        sde = SDES[name](N=n)
        f, G = sde.discretize(x, t)
        drift, diffusion = sde.sde(x, t)
        errors.append(float(jnp.max(jnp.abs(f * n - drift)) + jnp.max(jnp.abs(G * math.sqrt(n) / diffusion - 1))))
    assert errors[1] < max(0.4 * errors[0], 1e-5)


@pytest.mark.parametrize("name", SDES)
def test_t_of_level_inverts(name):
    sde = SDES[name]()
    t = np.array([1e-3, 0.05, 0.3, 0.8, 1.0], np.float32)
    np.testing.assert_allclose(sde.t_of_level(sde.std(t) / sde.mean_scale(t)), t, rtol=2e-5)


def test_marginal_matches_simulation_of_the_sde():
    """Moments follow m' = f m and (σ²)' = 2 f σ² + g²; integrated by the midpoint rule in float64."""
    for sde in (sde_lib.VESDE(0.01, 50), sde_lib.VPSDE(), sde_lib.subVPSDE()):
        steps = 4000
        mid = ((np.arange(steps) + 0.5) / steps).astype(np.float32)
        rate = np.asarray(sde.sde(jnp.ones((steps, 1)), jnp.asarray(mid))[0][:, 0], np.float64)
        g2 = np.asarray(sde.sde(jnp.ones((steps, 1)), jnp.asarray(mid))[1], np.float64) ** 2
        log_mean, variance = 0.0, float(sde.std(jnp.zeros(1))[0]) ** 2
        for f, q in zip(rate, g2, strict=True):
            variance = (variance * (1 + f / steps) + q / steps) / (1 - f / steps)
            log_mean += f / steps
        assert abs(math.exp(log_mean) / float(sde.mean_scale(jnp.ones(1))[0]) - 1) < 1e-5
        assert abs(math.sqrt(variance) / float(sde.std(jnp.ones(1))[0]) - 1) < 1e-4


def test_another_sde_compiles_nothing():
    traced = []

    @jax.jit
    def G(sde, t):
        traced.append(1)
        return sde.discretize(jnp.ones((2, 1)), t)[1]

    t = jnp.array([1.0, 0.5])
    first = G(sde_lib.VESDE(0.01, 50, 1000), t)
    second = G(sde_lib.VESDE(0.02, 378, 17), t)
    assert len(traced) == 1
    assert not np.allclose(first, second)
    np.testing.assert_allclose(second, sde_lib.VESDE(0.02, 378, 17).discretize(jnp.ones((2, 1)), t)[1], rtol=1e-5)


def test_with_num_scales_keeps_the_parameters():
    sde = sde_lib.VPSDE(0.1, 20, 1000).with_num_scales(50)
    again = sde_lib.VPSDE(0.1, 20, 50)
    assert set(vars(sde)) == set(vars(again))
    for name, value in vars(sde).items():
        np.testing.assert_array_equal(value, vars(again)[name])


def test_langevin_factor():
    t = jnp.array([1.0, 0.5, 0.05])
    np.testing.assert_array_equal(sde_lib.VESDE().alphas_at(t), np.ones(3))
    alphas = 1 - np.linspace(0.1 / 20, 20 / 20, 20)
    for cls in (sde_lib.VPSDE, sde_lib.subVPSDE):
        np.testing.assert_allclose(cls(N=20).alphas_at(t), alphas[[19, 9, 0]], rtol=1e-6, atol=1e-7)


def test_get_sde():
    training = types.SimpleNamespace(sde="vesde")
    model = types.SimpleNamespace(sigma_min=0.01, sigma_max=50.0, beta_min=0.1, beta_max=20.0, num_scales=1000)
    config = types.SimpleNamespace(training=training, model=model)
    sde, eps = sde_lib.get_sde(config)
    assert isinstance(sde, sde_lib.VESDE) and int(sde.N) == 1000 and eps == 1e-5
    for name, cls in (("vpsde", sde_lib.VPSDE), ("subvpsde", sde_lib.subVPSDE)):
        training.sde = name
        sde, eps = sde_lib.get_sde(config, N=50)
        assert type(sde) is cls and int(sde.N) == 50 and eps == 1e-3
    training.sde = "edm"
    with pytest.raises(PdsError, match="known: .*subvpsde, vesde, vpsde"):
        sde_lib.get_sde(config)


@pytest.mark.parametrize(
    "make",
    [
        lambda: sde_lib.VESDE(50, 0.01),
        lambda: sde_lib.VESDE(0.0, 50),
        lambda: sde_lib.VESDE(0.01, math.nan),
        lambda: sde_lib.VESDE(N=0),
        lambda: sde_lib.VPSDE(N=2.5),
        lambda: sde_lib.VPSDE(20, 0.1),
        lambda: sde_lib.subVPSDE(0.1, math.inf),
    ],
)
def test_bad_parameters_are_refused(make):
    with pytest.raises(PdsError):
        make()


def test_immutable():
    with pytest.raises(AttributeError, match="with_num_scales"):
        sde_lib.VESDE().N = 20
