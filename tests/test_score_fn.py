"""Score functions of networks: labels and scalings, the Wiener parametrisation, refusals."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits
from pds_jax import losses, score_fn, time_grids
from pds_jax.models import create_model, init_model
from pds_jax.ops import batch_mul
from pds_jax.sde_lib import VESDE, VPSDE, subVPSDE
from pds_jax.types import PdsError


class Echo(nn.Module):
    """A network that answers a + label, so that a test can read which label it was given."""

    centered: bool = True
    scale_by_sigma: bool = False

    @nn.compact
    def __call__(self, x, time_cond, train=True):
        a = self.param("a", nn.initializers.zeros, ())
        out = jnp.zeros_like(x) + a + time_cond.astype(jnp.float32)[:, None, None, None]
        return out + 100.0 if train else out


PARAMS = {"a": jnp.float32(0)}
X = jax.random.normal(jax.random.key(0), (3, 8, 6, 2))
T = jnp.array([1.0, 0.5, 1e-3])


def labels_of(score, scale=None):
    out = score(X, T)
    assert out.dtype == jnp.float32 and out.shape == X.shape
    return np.asarray(out[:, 0, 0, 0] if scale is None else -out[:, 0, 0, 0] * scale)


def test_labels_of_each_kind():
    ve, vp, sub = VESDE(N=1000), VPSDE(N=1000), subVPSDE(N=1000)
    np.testing.assert_allclose(labels_of(score_fn.get_score_fn(ve, Echo(), PARAMS)), ve.std(T), rtol=1e-6)
    discrete = score_fn.get_score_fn(ve, Echo(), PARAMS, continuous=False)
    np.testing.assert_array_equal(labels_of(discrete), [0, 500, 998])  # 499.5 rounds to even, 0 is the noisiest
    for sde in (vp, sub):
        got = labels_of(score_fn.get_score_fn(sde, Echo(), PARAMS), sde.std(T))
        np.testing.assert_allclose(got, 999 * T, rtol=1e-5)
    std = vp.sqrt_1m_alphas_cumprod[(np.asarray(T) * 999).astype(int)]
    discrete = score_fn.get_score_fn(vp, Echo(), PARAMS, continuous=False)
    np.testing.assert_allclose(labels_of(discrete, std), 999 * T, rtol=1e-5)
    # subVP has no discrete form
    np.testing.assert_array_equal(
        score_fn.get_score_fn(sub, Echo(), PARAMS, continuous=False)(X, T),
        score_fn.get_score_fn(sub, Echo(), PARAMS)(X, T),
    )


def test_discrete_labels_count_in_training_levels():
    """A 232-scale network sampled with N = 20: at t = 0.05 the level of label 219, not 18."""
    sampler = VESDE(N=20)
    t = jnp.full((3,), 0.05)
    kept = score_fn.get_score_fn(sampler, Echo(), PARAMS, continuous=False, num_scales=232)(X, t)
    original = score_fn.get_score_fn(sampler, Echo(), PARAMS, continuous=False, num_scales=232, labels="sampler")(X, t)
    assert float(kept[0, 0, 0, 0]) == 219 and float(original[0, 0, 0, 0]) == 18
    times = time_grids.uniform(1.0, 5e-4, 20)
    sigma = sampler.discrete_sigmas[np.asarray(sampler.index(jnp.asarray(times)))]
    training = VESDE(N=232)
    label = np.round((1 - times) * 231).astype(int)
    assert np.abs(np.log(training.discrete_sigmas[:232][::-1][label] / sigma)).max() < np.log(5000) / 231


def test_train_and_rngs_reach_the_network():
    class Noisy(nn.Module):
        @nn.compact
        def __call__(self, x, time_cond, train=True):
            return nn.Dropout(0.5, deterministic=not train)(jnp.ones_like(x))

    eager = score_fn.get_score_fn(VESDE(), Noisy(), {})(X, T)
    np.testing.assert_array_equal(eager, np.ones_like(X))
    dropped = score_fn.get_score_fn(VESDE(), Noisy(), {}, train=True, rngs={"dropout": jax.random.key(1)})(X, T)
    assert set(np.unique(dropped)) == {0.0, 2.0}


def test_new_parameters_compile_nothing():
    traced = []

    @jax.jit
    def run(score, x, t):
        traced.append(1)
        return score(x, t)

    a = run(score_fn.get_score_fn(VESDE(N=1000), Echo(), {"a": jnp.float32(1)}), X, T)
    b = run(score_fn.get_score_fn(VESDE(N=20), Echo(), {"a": jnp.float32(2)}), X, T)
    assert len(traced) == 1
    np.testing.assert_allclose(b - a, np.ones_like(X), atol=1e-5)


def spectrum(seed=0, shape=(8, 6, 2)):
    rng = np.random.default_rng(seed)
    field = rng.normal(size=(50, *shape)).cumsum(axis=1).cumsum(axis=2) * 0.1
    power = np.mean(np.abs(np.fft.rfft2(field, axes=(1, 2))) ** 2, axis=0) / (shape[0] * shape[1])
    for column in (0, -1):
        power[:, column] = (power[:, column] + np.roll(power[::-1, column], 1, axis=0)) / 2
    return rng.uniform(size=shape).astype(np.float32), power.astype(np.float32)


class Zero(nn.Module):
    centered: bool = True
    scale_by_sigma: bool = False

    @nn.compact
    def __call__(self, x, time_cond, train=True):
        return jnp.zeros_like(x)


@pytest.mark.parametrize("sde", [VESDE(), VPSDE(), subVPSDE()], ids=["ve", "vp", "subvp"])
def test_wiener_with_a_silent_network_is_the_exact_gaussian_score(sde):
    """Against −(m² Σ + std² I)⁻¹ (x − m μ) with the dense Σ of the spectrum, in float64."""
    mean, power = spectrum()
    score = score_fn.get_score_fn(sde, Zero(), {}, parametrisation="wiener", statistics=(mean, power))(X, T)
    h, w, c = mean.shape
    basis = np.eye(h * w).reshape(h * w, h, w)
    for channel in range(c):
        columns = np.fft.irfft2(np.fft.rfft2(basis) * power[..., channel].astype(np.float64), s=(h, w))
        cov = columns.reshape(h * w, h * w)
        for b in range(3):
            m, std = float(sde.mean_scale(T)[b]), float(sde.std(T)[b])
            gap = np.asarray(X[b, ..., channel], np.float64) - m * mean[..., channel]
            expected = -np.linalg.solve(m * m * cov + std * std * np.eye(h * w), gap.reshape(-1))
            error = np.abs(np.asarray(score[b, ..., channel]).reshape(-1) - expected).max() / np.abs(expected).max()
            assert error < 1e-4


def test_wiener_network_sees_and_gives_unit_scale():
    """On Gaussian data the input of the network and its target (x_0 − D_W)/τ have unit variance at every noise."""
    mean, power = spectrum()
    sde = VESDE(0.01, 50)
    seen = []

    class Spy(Zero):
        @nn.compact
        def __call__(self, x, time_cond, train=True):
            seen.append(x)
            return jnp.zeros_like(x)

    keys = jax.random.split(jax.random.key(3), 2)
    n = 4000
    white = jax.random.normal(keys[0], (n, *mean.shape))
    clean = mean[None] + np.fft.irfft2(np.fft.rfft2(white, axes=(1, 2)) * np.sqrt(power), s=mean.shape[:2], axes=(1, 2))
    for t in (0.0, 0.4, 1.0):
        times = jnp.full((n,), t)
        level = sde.std(times)
        x = jnp.asarray(clean, jnp.float32) + batch_mul(level, jax.random.normal(keys[1], clean.shape))
        score = score_fn.get_score_fn(sde, Spy(), {}, parametrisation="wiener", statistics=(mean, power))(x, times)
        _, tau = score_fn.wiener_scales(power, level, mean.shape[1])
        target = (clean - (x + batch_mul(jnp.square(level), score))) / np.asarray(tau)[:, None, None, None]
        assert abs(float(np.mean(np.square(target))) - 1) < 0.05
        assert abs(float(jnp.mean(jnp.square(seen[-1]))) - 1) < 0.05


def test_wiener_input_does_not_depend_on_the_networks_own_shift():
    mean, power = spectrum()

    class Linear(Zero):
        @nn.compact
        def __call__(self, x, time_cond, train=True):
            return x if self.centered else 2 * x - 1

    scores = [
        score_fn.get_score_fn(VESDE(), Linear(centered=c), {}, parametrisation="wiener", statistics=(mean, power))(X, T)
        for c in (True, False)
    ]
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-4, atol=1e-4)


EDM = {"parametrisation": "edm", "data_mean": 0.3, "sigma_data": 0.6}


@pytest.mark.parametrize("sde", [VESDE(), VPSDE(), subVPSDE()], ids=["ve", "vp", "subvp"])
def test_edm_with_a_silent_network_is_the_exact_score_of_white_data(sde):
    """−(x − m μ₀)/(m² σ_d² + std²), in float64."""
    score = np.asarray(score_fn.get_score_fn(sde, Zero(), {}, **EDM)(X, T), np.float64)
    m, std = (np.asarray(f(T), np.float64)[:, None, None, None] for f in (sde.mean_scale, sde.std))
    expected = -(np.asarray(X, np.float64) - m * 0.3) / (m**2 * 0.36 + std**2)
    np.testing.assert_allclose(score, expected, rtol=2e-5, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize("sde", [VESDE(0.01, 50), VPSDE()], ids=["ve", "vp"])
def test_edm_network_sees_and_gives_unit_scale(sde, centered):
    """Input and target (x_0 − its skip)/c_out have unit variance at every noise, whatever data have σ_d and μ₀."""
    rng = np.random.default_rng(0)
    clean = 0.3 + 0.6 * rng.choice([-1.0, 1.0], (2000, 4, 4, 1))  # not Gaussian: two levels
    seen = []

    class Spy(Zero):
        @nn.compact
        def __call__(self, x, time_cond, train=True):
            seen.append(x if self.centered else 2 * x - 1)
            return jnp.zeros_like(x)

    for t in (1e-3, 0.4, 1.0):
        times = jnp.full((len(clean),), t)
        m, std = float(sde.mean_scale(times)[0]), float(sde.std(times)[0])
        x = jnp.asarray(m * clean + std * rng.standard_normal(clean.shape), jnp.float32)
        score = np.asarray(score_fn.get_score_fn(sde, Spy(centered=centered), {}, **EDM)(x, times), np.float64)
        skip = (np.asarray(x) + std**2 * score) / m
        c_out = float(score_fn.edm_scales(0.6, jnp.full((1,), std / m))[2][0])
        assert np.mean(((clean - skip) / c_out) ** 2) == pytest.approx(1, abs=0.03)
        assert float(jnp.mean(jnp.square(seen[-1]))) == pytest.approx(1, abs=0.03)


def test_the_weights_of_edm_make_its_loss_the_network_error():
    """With the unit weight, 1/c_out² on the denoiser, the loss is the mean square of target − network output."""
    rng = np.random.default_rng(1)
    sde, t = VESDE(0.01, 50), jnp.asarray([0.0, 0.5, 1.0])
    x0, z = (jnp.asarray(rng.normal(size=X.shape), jnp.float32) for _ in range(2))
    score = score_fn.get_score_fn(sde, Zero(), {}, **EDM)
    weight = losses.unit_weight(sde, lambda level: score_fn.edm_scales(0.6, level)[2])
    found = losses.sde_loss(sde, score, x0, t, z, reduce_mean=True, likelihood_weighting=False, weight=weight)
    level = np.asarray(sde.std(t), np.float64)[:, None, None, None]
    gap, noisy = np.asarray(x0) - 0.3, np.asarray(x0) - 0.3 + level * np.asarray(z)
    target = (gap - 0.36 / (0.36 + level**2) * noisy) / (0.6 * level / np.sqrt(0.36 + level**2))
    np.testing.assert_allclose(found, np.mean(target**2), rtol=1e-4)


def test_edm_parameters_compile_nothing_new():
    traced = []

    @jax.jit
    def run(score, x, t):
        traced.append(1)
        return score(x, t)

    for mean in (0.3, 0.4):
        run(score_fn.get_score_fn(VESDE(), Zero(), {}, **{**EDM, "data_mean": mean}), X, T)
    assert len(traced) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parametrisation": "mine"}, "known: score_sde, edm, wiener"),
        ({"parametrisation": "edm"}, "sigma_data > 0"),
        ({**EDM, "sigma_data": -1.0}, "sigma_data > 0"),
        ({**EDM, "data_mean": float("nan")}, "data_mean"),
        ({**EDM, "continuous": False}, "continuous"),
        ({"labels": "mine"}, "known: training, sampler"),
        ({"parametrisation": "wiener"}, "needs the statistics"),
        ({"parametrisation": "wiener", "statistics": spectrum(), "continuous": False}, "continuous"),
        ({"parametrisation": "wiener", "statistics": (spectrum()[0], spectrum()[0])}, "cannot have shape"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(PdsError, match=message):
        score_fn.get_score_fn(VESDE(), Echo(), PARAMS, **options)


@pytest.mark.parametrize("options", [EDM, {"parametrisation": "wiener", "statistics": spectrum()}])
def test_scaled_parametrisations_refuse_a_network_that_scales(options):
    with pytest.raises(PdsError, match="scale_by_sigma"):
        score_fn.get_score_fn(VESDE(), Echo(scale_by_sigma=True), PARAMS, **options)


def test_what_a_lower_precision_does_to_a_score_is_measured():
    def score(x, t):  # stands for a device that multiplies otherwise than in float32 unless told
        return -x * (1.0 if jax.config.jax_default_matmul_precision == "highest" else 1.01)

    fn = jax.tree_util.Partial(score)
    with jax.default_matmul_precision("bfloat16"):
        assert score_fn.precision_effect(fn, VESDE(), (8, 6, 2)) == pytest.approx(0.01, rel=1e-3)
    with jax.default_matmul_precision("highest"):
        assert score_fn.precision_effect(fn, VESDE(), (8, 6, 2)) == 0.0


@pytest.mark.slow
def test_what_a_networks_dtype_does_to_a_score_is_measured():
    config = digits.get_config("nf=8,ch_mult=1:1,num_res_blocks=1")
    params = jax.tree.map(lambda leaf: leaf + 0.1, init_model(jax.random.key(0), config))

    def effect(dtype):
        config.model.dtype = dtype
        found = score_fn.get_score_fn(VESDE(), create_model(config), params)
        return score_fn.precision_effect(found, VESDE(), (8, 8, 1))

    with jax.default_matmul_precision("highest"):
        assert effect("float32") == 0.0 and 1e-4 < effect("bfloat16") < 0.1


@pytest.mark.slow
def test_a_network_deep_in_a_score_is_measured_too():
    from pds_jax import denoisers, guidance
    from pds_jax.convert import edm

    sizes = {"img_resolution": 8, "in_channels": 3, "out_channels": 3, "model_channels": 8, "channel_mult": [1]}
    arguments = {**sizes, "num_blocks": 1, "attn_resolutions": [], "label_dim": 2}
    config = edm.config_from_arguments("EDMPrecond", "SongUNet", arguments)
    config.model.dtype = "bfloat16"
    params = jax.tree.map(lambda leaf: leaf + 0.1, init_model(jax.random.key(0), config))
    found = denoisers.get_score(config, VESDE(0.01, 80), create_model(config), params)
    found = guidance.conditional(found, guidance.one_hot([0, 1, 1], 2))
    with jax.default_matmul_precision("highest"):
        assert 1e-5 < score_fn.precision_effect(found, VESDE(0.01, 80), (8, 8, 3)) < 0.1
