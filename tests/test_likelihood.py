"""Bits per dimension: recorded cases, closed forms, solver choices, the set, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pds_jax import parallel, preconditioner
from pds_jax.likelihood import LARGEST_EXACT, SOLVERS, dequantize, evaluate_bpd, get_likelihood_fn
from pds_jax.ops import irfft2, rfft2
from pds_jax.sde_lib import VESDE, VPSDE, subVPSDE
from pds_jax.types import PdsError

SDES = {"vpsde": VPSDE(), "subvpsde": subVPSDE(), "vesde": VESDE()}
EPS = 1e-5
KEY = jax.random.key(0)


def centered(x):
    return (x + 1.0) / 2.0


def identity(x):
    return x


def gaussian_score(sde, m, s2):
    """Score of data N(m, s2 I), m (H, W, C)."""
    return jax.tree_util.Partial(_gaussian_score, sde, jnp.asarray(m), jnp.float32(s2))


def _gaussian_score(sde, m, s2, x, t):
    a, std = sde.mean_scale(t)[:, None, None, None], sde.std(t)[:, None, None, None]
    return -(x - a * m[None]) / (a * a * s2 + std * std)


def spectral_score(sde, power):
    """Score of stationary data of mean 0 whose frequencies (H, W//2+1, C) have variances `power`."""
    return jax.tree_util.Partial(_spectral_score, sde, jnp.asarray(power))


def _spectral_score(sde, power, x, t):
    a, std = sde.mean_scale(t)[:, None, None, None], sde.std(t)[:, None, None, None]
    variance = a * a * power[None] + std * std
    return -irfft2(rfft2(x) / variance.astype(jnp.complex64), x.shape[1:3])


def scales(sde):
    """Mean factor and standard deviation at eps and T, float64."""
    t = jnp.array([EPS, 1.0], jnp.float32)
    return np.asarray(sde.mean_scale(t), np.float64), np.asarray(sde.std(t), np.float64)


def flow_bpd(sde, x, m, s2):
    """Closed form: the flow of a Gaussian is linear, z = a_T m + (x − a_0 m) S_T / S_0; data in [-1, 1]."""
    a, std = scales(sde)
    spread = np.sqrt(a**2 * s2 + std**2)
    z = a[1] * m + (x - a[0] * m) * spread[1] / spread[0]
    dim, prior = m.size, float(sde.prior_std)
    logp = -np.square(z / prior).sum((1, 2, 3)) / 2 - dim * (np.log(2 * np.pi) / 2 + np.log(prior))
    logp += dim * np.log(spread[1] / spread[0])
    return -logp / (dim * np.log(2)) + 7, z


@pytest.fixture(scope="module")
def recorded(golden):
    with np.load(golden / "score_sde/sde/likelihood.npz") as arrays:
        return dict(arrays)


@pytest.mark.parametrize("kind", ["Rademacher", "Gaussian"])
@pytest.mark.parametrize("name", SDES)
def test_recorded_cases(recorded, name, kind):
    sde = SDES[name]
    data, epsilon = jnp.asarray(recorded[f"{name}.data"]), jnp.asarray(recorded[f"{name}.{kind}.epsilon"])
    score_fn = gaussian_score(sde, recorded["m"], recorded["s2"])
    bpd, z, nfe = get_likelihood_fn(sde, centered, kind)(KEY, score_fn, data, epsilon)
    np.testing.assert_allclose(bpd, recorded[f"{name}.{kind}.centered.bpd"], rtol=1e-5)
    expected_z = recorded[f"{name}.{kind}.centered.z"]
    assert np.abs(z - expected_z).max() <= 1e-4 * np.abs(expected_z).max()
    assert np.all(nfe <= 1.5 * recorded[f"{name}.{kind}.centered.nfe"])


def test_a_wider_range_of_the_data_is_one_bit_more(recorded):
    offsets = [get_likelihood_fn(SDES["vpsde"], scaler).offset for scaler in (centered, identity)]
    key = "vpsde.Rademacher.{}.bpd"
    gap = recorded[key.format("uncentered")] - recorded[key.format("centered")]
    np.testing.assert_allclose(offsets[1] - offsets[0], gap, rtol=1e-5)


@pytest.mark.parametrize("name", SDES)
def test_gaussian_data_by_the_linear_flow(recorded, name):
    """Whatever the prior mismatch, the ODE itself is solved: measured within 2e-5 bits/dim."""
    sde, data = SDES[name], jnp.asarray(recorded[f"{name}.data"])
    bpd, z, _ = get_likelihood_fn(sde, centered)(KEY, gaussian_score(sde, recorded["m"], 0.25), data)
    expected, expected_z = flow_bpd(sde, np.asarray(data, np.float64), recorded["m"].astype(np.float64), 0.25)
    np.testing.assert_allclose(bpd, expected, atol=1e-4)
    assert np.abs(z - expected_z).max() <= 1e-4 * np.abs(expected_z).max()


@pytest.mark.parametrize("name", ["vpsde", "subvpsde"])
def test_gaussian_data_of_mean_zero_have_their_own_density(name):
    sde, shape = SDES[name], (8, 8, 3)
    x = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32) * 0.5
    bpd, _, _ = get_likelihood_fn(sde, centered)(KEY, gaussian_score(sde, np.zeros(shape, np.float32), 0.25), x)
    density = np.square(x / 0.5).mean((1, 2, 3)) / 2 + np.log(2 * np.pi * 0.25) / 2
    np.testing.assert_allclose(bpd, density / np.log(2) + 7, atol=1e-3)


@pytest.mark.slow
def test_exact_divergence_where_the_estimate_is_random():
    """Data with a spectrum: ε·Jε depends on ε, the exact trace does not and gives the closed form."""
    sde, shape = SDES["vpsde"], (4, 4, 1)
    rng = np.random.default_rng(1)
    k = np.minimum(np.arange(4), 4 - np.arange(4))
    radius = np.hypot(k[:, None], k[None, :])[..., None]
    full = 0.5 / (1 + radius) ** 2
    x = np.fft.ifft2(np.fft.fft2(rng.normal(size=(2, *shape)), axes=(1, 2)) * np.sqrt(full), axes=(1, 2)).real
    score_fn, x = spectral_score(sde, full[:, :3].astype(np.float32)), x.astype(np.float32)
    bpd, _, _ = get_likelihood_fn(sde, centered, "exact")(KEY, score_fn, x)

    (a0, a1), (s0, s1) = scales(sde)
    spread0, spread1 = a0**2 * full + s0**2, a1**2 * full + s1**2
    x_hat = np.abs(np.fft.fft2(x, axes=(1, 2), norm="ortho")) ** 2
    z2 = x_hat * (spread1 / spread0)
    logp = -(z2.sum((1, 2, 3)) + 16 * np.log(2 * np.pi)) / 2 + np.log(spread1 / spread0).sum() / 2
    np.testing.assert_allclose(bpd, -logp / (16 * np.log(2)) + 7, atol=1e-4)

    estimate, _, _ = get_likelihood_fn(sde, centered)(KEY, score_fn, jnp.tile(x[:1], (256, 1, 1, 1)))
    spread = np.std(estimate) / 16
    assert spread > 1e-3
    np.testing.assert_allclose(np.mean(estimate), bpd[0], atol=4 * spread)


OTHERS = [pytest.param(method, marks=pytest.mark.slow) for method in sorted(set(SOLVERS) - {"RK45"})]


@pytest.mark.parametrize("method", ["RK45", *OTHERS])
def test_every_solver_finds_the_likelihood_and_counts_its_evaluations(method):
    sde, m, calls = SDES["vpsde"], np.full((2, 2, 1), 0.3, np.float32), []

    def counted(x, t):
        jax.debug.callback(lambda t: calls.append(t), t)
        return _gaussian_score(sde, jnp.asarray(m), jnp.float32(0.25), x, t)

    x = np.array([0.1, -0.7, 0.4, 0.9], np.float32).reshape(1, 2, 2, 1)
    bpd, _, nfe = get_likelihood_fn(sde, centered, method=method)(KEY, counted, x)
    jax.effects_barrier()
    np.testing.assert_allclose(bpd, flow_bpd(sde, x.astype(np.float64), m, 0.25)[0], atol=1e-4)
    assert len(calls) == int(nfe[0]) > 20


def test_other_tolerances_and_sdes_do_not_recompile():
    x, traces = jnp.ones((1, 2, 2, 1), jnp.float32), []

    def score_fn(x, t):
        traces.append(1)
        return -x

    get_likelihood_fn(VPSDE(0.1, 20.0), centered)(KEY, score_fn, x)
    first = len(traces)
    get_likelihood_fn(VPSDE(0.2, 10.0), identity, "Gaussian", rtol=1e-3, atol=1e-4, eps=1e-3)(KEY, score_fn, x)
    assert len(traces) == first > 0


def test_dequantisation_stays_in_the_level_and_is_uniform():
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    keys = jax.random.split(KEY, 64)
    u = np.asarray(dequantize(keys, jnp.asarray(np.repeat(levels, 64, axis=0))))
    noise = u * 256 - levels.astype(np.float64)
    assert noise.min() >= 0 and noise.max() < 1
    assert abs(noise.mean() - 0.5) < 5 * np.sqrt(1 / 12 / noise.size)
    np.testing.assert_array_equal(u, dequantize(keys, jnp.asarray(np.repeat(levels, 64, 0), jnp.float32) / 255.0))


@pytest.mark.slow
def test_a_set_gives_the_same_figure_at_any_batch_size():
    sde = SDES["vpsde"]
    images = np.random.default_rng(3).integers(0, 256, (5, 2, 2, 1)).astype(np.uint8)
    score_fn, fn = gaussian_score(sde, np.zeros((2, 2, 1), np.float32), 0.3), get_likelihood_fn(sde, centered)

    def run(size):
        batches = lambda: (images[i : i + size] for i in range(0, 5, size))  # noqa: E731
        return evaluate_bpd(fn, score_fn, batches, KEY, scaler=lambda x: x * 2.0 - 1.0, repeats=2)

    two, three = run(2), run(3)
    np.testing.assert_allclose(two.per_image, three.per_image, rtol=1e-5)
    assert two.per_image.shape == (5,) and two.per_repeat.shape == (2,)
    assert two.per_repeat[0] != two.per_repeat[1]
    np.testing.assert_allclose(two.mean, two.per_image.mean())
    np.testing.assert_allclose(two.std_err, two.per_image.std(ddof=1) / np.sqrt(5))
    u = dequantize(jax.random.split(KEY, 5), jnp.asarray(images))
    density = np.square(np.asarray(u) * 2 - 1).mean((1, 2, 3)) / 0.6 + np.log(2 * np.pi * 0.3) / 2
    np.testing.assert_allclose(two.per_image, density / np.log(2) + 7, atol=0.05)  # other noise within a level


def test_batches_that_are_done_are_not_done_again_and_devices_do_not_matter():
    sde = SDES["vpsde"]
    images = np.random.default_rng(3).integers(0, 256, (5, 2, 2, 1)).astype(np.uint8)
    score_fn, fn = gaussian_score(sde, np.zeros((2, 2, 1), np.float32), 0.3), get_likelihood_fn(sde, centered)
    done, seen = {}, []

    def run(**options):
        batches = lambda: (images[i : i + 3] for i in range(0, 5, 3))  # noqa: E731
        return evaluate_bpd(fn, score_fn, batches, KEY, scaler=lambda x: x * 2.0 - 1.0, repeats=2, **options)

    first = run(done=done, progress=seen.append)
    assert sorted(done) == ["0-0", "0-3", "1-0", "1-3"] and seen == [3, 2, 3, 2]
    done["0-3"] = np.full((2, 2), 7.0)
    second = run(done=done, data_parallel=lambda *_: None)  # nothing to compute: what is stored is believed
    np.testing.assert_array_equal(second.per_image[:3], first.per_image[:3])
    assert second.per_image[4] == (7.0 + done["1-3"][0, 1]) / 2
    np.testing.assert_allclose(run(data_parallel=parallel.data_parallel).per_image, first.per_image, rtol=1e-5)


def test_preconditioners_are_refused_and_the_identity_is_not():
    m = preconditioner.from_radius((8, 8, 3), 0.8, 1.6)
    with pytest.raises(PdsError, match="M changes how samples are drawn"):
        get_likelihood_fn(SDES["vesde"], centered, preconditioner=m)
    get_likelihood_fn(SDES["vesde"], centered, preconditioner=preconditioner.identity())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "BDF"}, "unknown method 'BDF'"),
        ({"hutchinson_type": "sphere"}, "unknown hutchinson_type 'sphere'"),
        ({"rtol": 0.0}, "rtol=0.0"),
        ({"eps": 0.0}, "eps=0.0"),
        ({"inverse_scaler": lambda x: 1.0 - x}, "slope -1.0"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(PdsError, match=message):
        get_likelihood_fn(SDES["vesde"], **{"inverse_scaler": centered, **options})


def test_bad_data():
    fn, score_fn = get_likelihood_fn(SDES["vesde"], centered), lambda x, t: -x
    with pytest.raises(PdsError, match="must be"):
        fn(KEY, score_fn, jnp.zeros((8, 8, 3), jnp.float32))
    x = jnp.zeros((1, 8, 8, 3), jnp.float32)
    with pytest.raises(PdsError, match=r"epsilon is \(8, 8, 3\)"):
        fn(KEY, score_fn, x, x[0])
    with pytest.raises(PdsError, match=str(LARGEST_EXACT)):
        get_likelihood_fn(SDES["vesde"], centered, "exact")(KEY, score_fn, jnp.zeros((1, 64, 64, 3), jnp.float32))
    with pytest.raises(PdsError, match="empty"):
        evaluate_bpd(fn, score_fn, list, KEY, scaler=identity)


def test_an_unfinished_solve_is_nan_and_named():
    fn, x = get_likelihood_fn(SDES["vpsde"], centered, max_steps=3), np.zeros((2, 2, 2, 1), np.uint8)
    score_fn = gaussian_score(SDES["vpsde"], np.zeros((2, 2, 1), np.float32), 0.25)
    assert np.all(np.isnan(fn(KEY, score_fn, x.astype(np.float32))[0]))
    with pytest.raises(PdsError, match="image 0 did not reach T"):
        evaluate_bpd(fn, score_fn, lambda: [x], KEY, scaler=identity)
