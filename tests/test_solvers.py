"""Solvers: exact where they claim to be, their order where not, the recorded adaptive ODE sampler."""

import functools

import gaussian
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recorded import SDES, load, score_sde_score, worst_sample

from pds_jax import predictors, sampling, solvers
from pds_jax.models.analytic import FrequencyGaussian, GaussianMixture
from pds_jax.preconditioner import from_radius, identity
from pds_jax.sde_lib import VESDE, VPSDE, subVPSDE
from pds_jax.types import PdsError

SHAPE = (6, 4, 2)
KINDS = [VESDE(0.05, 20, 10), VPSDE(N=10), subVPSDE(N=10)]
IDS = ["ve", "vp", "subvp"]
ODE = ["ddim", "heun", "dpmpp_2m", "spectral_ddim", "spectral_dpmpp_2m"]
RNG = np.random.default_rng(0)
MEAN = (0.5 + 0.2 * RNG.normal(size=SHAPE)).astype(np.float32)
K = np.hypot(np.fft.fftfreq(6)[:, None], np.fft.rfftfreq(4)[None])[..., None]
POWER = np.repeat(0.5 / (1 + 30 * K**2), 2, axis=2).astype(np.float32)
Z = RNG.normal(size=(4, *SHAPE)).astype(np.float32)
QUICK = {"xla_backend_optimization_level": 1}  # compiling costs more than running here


@functools.partial(jax.jit, compiler_options=QUICK)
def solve(sampler, z, law):
    """From the prior made of z, without further noise: for the ODE solvers."""
    return sampler.result(sampler.run_all(sampler.start(z), law))


def make(sde, n, name, **options):
    return sampling.get_pc_sampler(
        sde.with_num_scales(n), SHAPE, name, "none", **{"statistics": (MEAN, POWER), "prior": "matched", **options}
    )


@functools.partial(jax.jit, static_argnames=("name", "variant"), compiler_options=QUICK)
def one_step(name, x, t, z, *, variant="paper", **options):
    return predictors.get_predictor(name)(x, t, z, variant=variant, memory=solvers.Memory.empty(x), **options)[:2]


def spectral_images(z):
    """The images that the exact flow turns the matched prior's draws into: μ + F⁻¹ √P F z."""
    spectrum = np.fft.rfft2(z.astype(np.float64), axes=(1, 2)) * np.sqrt(POWER)
    return MEAN + np.fft.irfft2(spectrum, s=SHAPE[:2], axes=(1, 2))


@pytest.mark.parametrize("name", ["spectral_ddim", "spectral_dpmpp_2m"])
@pytest.mark.parametrize("sde", KINDS, ids=IDS)
def test_spectral_flows_are_exact_on_gaussian_data(sde, name):
    law = FrequencyGaussian.create(sde, MEAN, POWER)
    for n, grid in ((2, "uniform"), (5, "edm"), (20, "uniform")):
        x = solve(make(sde, n, name, grid=grid), Z, law)
        np.testing.assert_allclose(x, spectral_images(Z), atol=1e-3)


def mixture(sde):
    """Two blobs: nonlinear, so that no solver is exact; shapes of 24 numbers stay cheap."""
    means = np.stack([MEAN - 0.5, MEAN + 0.7]).reshape(2, *SHAPE)
    return GaussianMixture.create(sde, [0.4, 0.6], means, np.float32(0.3))


@pytest.mark.parametrize("sde", [KINDS[0], pytest.param(KINDS[1], marks=pytest.mark.slow)], ids=IDS[:2])
@pytest.mark.parametrize(
    ("name", "order"),
    [("ddim", 1), ("heun", 2), ("dpmpp_2m", 2), ("spectral_ddim", 1), ("spectral_dpmpp_2m", 2)],
)
def test_order_of_convergence(sde, name, order):
    """Error at eps (no step to the data) against a fine solution, with N − 1 and 2 (N − 1) steps."""
    options = {"denoise": False, "eps": 0.1, "grid": "uniform"}
    law = mixture(sde)
    fine = solve(make(sde, 1025, "heun", **options), Z, law)
    steps = (32, 64) if order == 1 else (24, 48)
    errors = [float(jnp.abs(solve(make(sde, n + 1, name, **options), Z, law) - fine).max()) for n in steps]
    assert errors[1] < 0.05
    assert 2**order * 0.7 < errors[0] / errors[1] < 2**order * 1.6, errors


def test_spectral_steps_without_data_power_are_the_plain_ones():
    """P = 0: spectral_ddim is ddim, spectral_ancestral ancestral sampling of SMLD."""
    sde, zero = KINDS[0].with_num_scales(10), 1e-12 * POWER
    t, below = np.full(4, 5 / 9, np.float32), np.full(4, 4 / 9, np.float32)
    common = {"sde": sde, "score_fn": mixture(sde), "t_next": below, "moments": (MEAN, zero)}
    for ours, plain, nudge in (("spectral_ddim", "ddim", 0), ("spectral_ancestral", "ancestral_sampling", 1e-5)):
        # Nudged, so that the level of the table is that of t.
        results = one_step(ours, 3 * Z, t, Z, **common), one_step(plain, 3 * Z, t + np.float32(nudge), Z, **common)
        for a, b in zip(*results, strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("name", ["sde_dpmpp_2m", "spectral_ancestral"])
@pytest.mark.parametrize("variant", predictors.VARIANTS)
def test_noisy_solvers_apply_m(name, variant):
    """On any score: the noise is M z, and of the drift the named share goes through M Mᵀ."""
    sde, m = KINDS[0], from_radius(SHAPE, 1.0, 1.3)
    t, below = np.full(4, 0.6, np.float32), np.full(4, 0.4, np.float32)
    options = {"sde": sde, "score_fn": mixture(sde), "t_next": below, "moments": (MEAN, POWER), "variant": variant}
    x = 3 * Z
    noisy, quiet = (np.asarray(v) for v in one_step(name, x, t, Z, preconditioner=m, **options))
    plain, plain_quiet = (np.asarray(v) for v in one_step(name, x, t, Z, preconditioner=identity(), **options))
    ones = np.ones(SHAPE, np.float32)
    apply, gram = gaussian.numpy_m(m.replace(space=ones))
    np.testing.assert_allclose(noisy - quiet, apply(plain - plain_quiet), rtol=1e-3, atol=1e-3)
    ratio = (20 / 0.05) ** (0.4 - 0.6)
    exact_share = ratio / (1 + ratio) if name == "sde_dpmpp_2m" else 0.5
    share = 1.0 if variant == "paper" else exact_share
    expected = (1 - share) * (plain_quiet - x) + share * gram(plain_quiet - x)
    np.testing.assert_allclose(quiet - x, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("sde", KINDS, ids=IDS)
def test_spectral_ancestral_has_the_laws_covariance(sde):
    """One step from x_t ~ p_t gives x_s ~ p_s: its gains per mode, read off impulses, against m² P + std²."""
    law = FrequencyGaussian.create(sde, MEAN, POWER)
    impulse = np.zeros((3, *SHAPE), np.float32)
    impulse[1, 0, 0] = 1
    noise = np.zeros((3, *SHAPE), np.float32)
    noise[2, 0, 0] = 1
    for t, s in ((0.9, 0.4), (0.3, 0.0)):
        times, ends = np.full(3, t, np.float32), np.full(3, s, np.float32)
        options = {"sde": sde, "score_fn": law, "t_next": ends, "moments": (MEAN, POWER)}
        x, quiet = one_step("spectral_ancestral", impulse, times, noise, **options)
        transform = functools.partial(np.fft.rfft2, axes=(0, 1))
        gain = np.abs(transform(np.asarray(quiet[1] - quiet[0], np.float64))) ** 2
        added = np.abs(transform(np.asarray(x[2] - quiet[2], np.float64))) ** 2
        start, end = (
            np.float64(m) ** 2 * POWER + np.float64(v) ** 2
            for m, v in ((sde.mean_scale(times)[0], sde.std(times)[0]), _end(sde, s))
        )
        np.testing.assert_allclose(gain * start + added, end, rtol=2e-4)


def _end(sde, s):
    if s == 0:
        return 1.0, 0.0
    t = jnp.array([s], jnp.float32)
    return sde.mean_scale(t)[0], sde.std(t)[0]


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("ddim", {}, 6),
        ("ddim", {"denoise": False}, 5),
        ("heun", {}, 11),
        ("heun", {"denoise": False}, 10),
        ("spectral_dpmpp_2m", {}, 6),
    ],
)
def test_evaluations_are_counted(name, options, expected):
    calls = []

    def counted(x, t):
        jax.debug.callback(lambda: calls.append(1))
        return -x / (1 + t[:, None, None, None])

    sampler = make(KINDS[0], 6, name, **options)
    jax.jit(lambda keys: sampler(keys, counted)[0], compiler_options=QUICK)(sampling.image_keys([0]))
    jax.effects_barrier()
    assert len(calls) == int(sampler.nfe) == expected


@pytest.mark.parametrize("denoise", [False, True])
def test_evaluations_of_the_adaptive_ode_are_counted(denoise):
    calls = []

    def counted(x, t):
        jax.debug.callback(calls.append, t[0])
        return -x / (1 + jnp.square(KINDS[0].std(t))[:, None, None, None])

    sampler = sampling.get_ode_sampler(KINDS[0], (2, 2, 1), rtol=1e-2, atol=1e-2, denoise=denoise)
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):  # diffrax promotes
        run = jax.jit(lambda keys: sampler(keys, counted)[1], compiler_options=QUICK)
        nfe = int(run(sampling.image_keys([0]))[0])
    jax.effects_barrier()
    assert len(calls) == nfe > 6


@pytest.mark.slow
def test_one_step_solvers_go_with_a_corrector():
    sde = KINDS[0].with_num_scales(12)
    sampler = sampling.get_pc_sampler(sde, SHAPE, "ddim", "langevin", statistics=(MEAN, POWER), prior="matched")
    assert int(sampler.nfe) == 24 and sampler.draws == 1
    x = sampling.run(sampler, sampling.image_keys(range(200)), FrequencyGaussian.create(sde, MEAN, POWER)).x
    assert np.abs(np.asarray(x).mean(axis=0) - MEAN).max() < 0.2


@pytest.mark.parametrize(
    ("name", "denoise"),
    [
        ("vpsde", 1),
        *(pytest.param(n, d, marks=pytest.mark.slow) for n in ("vesde", "subvpsde") for d in (0, 1)),
    ],
)
def test_recorded_adaptive_ode(golden, name, denoise):
    data = load(golden / "score_sde" / "sde" / "ode_sampler.npz")
    sde = SDES[name](N=1000)
    score = score_sde_score(data, sde)
    sampler = sampling.get_ode_sampler(sde, (8, 8, 3), denoise=bool(denoise))
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):  # diffrax promotes
        run = jax.jit(lambda sampler, z: sampler.solve(z, score), compiler_options=QUICK)
        x, nfe = run(sampler, data[f"{name}.z"] / sde.prior_std)
    assert worst_sample(x, data[f"{name}.denoise{denoise}.x"]) < 5e-5
    assert int(nfe.max()) <= 1.3 * int(data[f"{name}.denoise{denoise}.nfe"])


@pytest.mark.slow
def test_adaptive_ode_is_exact_from_the_matched_prior_whatever_the_batch():
    sde = VESDE(0.05, 20)
    law = FrequencyGaussian.create(sde, MEAN, POWER)
    sampler = sampling.get_ode_sampler(sde, SHAPE, eps=0.01, prior="matched", statistics=(MEAN, POWER), rtol=1e-6)
    low = sde.std(jnp.array([0.01]))[0]
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        run = jax.jit(lambda sampler, keys, law: sampler(keys, law), compiler_options=QUICK)
        keys = sampling.image_keys(range(4))
        x, nfe = run(sampler, keys, law)
        pair, _ = run(sampler, keys[np.array([2, 0])], law)
    z = jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(jax.random.fold_in(k, 0), 0), SHAPE))(keys)
    spectrum = np.fft.rfft2(z, axes=(1, 2)) * np.sqrt(POWER + float(low) ** 2)
    expected = MEAN + np.fft.irfft2(spectrum, s=SHAPE[:2], axes=(1, 2))
    np.testing.assert_allclose(x, expected, atol=1e-4)
    np.testing.assert_allclose(pair, x[np.array([2, 0])], atol=1e-5)
    assert nfe.shape == (4,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": 0.0}, "between 0 and 1"),
        ({"rtol": 0.0}, "rtol"),
        ({"atol": -1.0}, "atol"),
        ({"prior": "mine"}, "known: standard, matched"),
        ({"prior": "matched"}, "statistics"),
    ],
)
def test_bad_ode_options_are_refused(options, message):
    with pytest.raises(PdsError, match=message):
        sampling.get_ode_sampler(VESDE(), SHAPE, **options)
