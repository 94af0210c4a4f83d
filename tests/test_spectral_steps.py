"""The spectral family: exact on Gaussian data at any number of steps, special cases, orders, refusals."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pds_jax import correctors, predictors, runner, sampling, solvers, spectral, spectral_steps
from pds_jax.models.analytic import FrequencyGaussian, GaussianMixture
from pds_jax.preconditioner import Preconditioner, flat, from_radius, identity
from pds_jax.sde_lib import VESDE, VPSDE, subVPSDE
from pds_jax.solenoidal import with_solenoidal
from pds_jax.types import PdsError

SHAPE = (6, 4, 2)
PLANE = (6, 3, 2)
SDES = {"ve": VESDE(0.05, 20, 10), "vp": VPSDE(N=10), "subvp": subVPSDE(N=10)}
RNG = np.random.default_rng(0)
MEAN = (0.5 + 0.2 * RNG.normal(size=SHAPE)).astype(np.float32)
K = np.hypot(np.fft.fftfreq(6)[:, None], np.fft.rfftfreq(4)[None])[..., None]
POWER = (np.array([0.5, 0.3]) / (1 + 30 * K**2)).astype(np.float32)
CROSS = (0.3 / (1 + 30 * K**2)).astype(np.float32)  # of the two channels
Z = RNG.normal(size=(4, *SHAPE)).astype(np.float32)
M = Preconditioner(freq=jnp.asarray(1 + 0.4 * np.broadcast_to(K, PLANE), jnp.float32), shape=SHAPE)
QUICK = {"xla_backend_optimization_level": 1}  # compiling costs more than running here
quick = functools.partial(jax.jit, compiler_options=QUICK)


def make(sde, n, name="spectral", corrector="none", **options):
    given = {"statistics": (MEAN, POWER), "prior": "matched", "grid": "edm", **options}
    return sampling.get_pc_sampler(sde.with_num_scales(n), SHAPE, name, corrector, **given)


@quick
def solve(sampler, z, law):
    """From the prior made of z, with the noise of the keys 0, 1, ..."""
    return sampler.result(sampler.run_all(sampler.start(z), law))


def mixture(sde):
    means = np.stack([MEAN - 0.5, MEAN + 0.7]).reshape(2, *SHAPE)
    return GaussianMixture.create(sde, [0.4, 0.6], means, np.float32(0.3))


@jax.tree_util.Partial
def correlated(sde, moments, x, t):
    """The score of N(μ, ·) whose channels are correlated as the moments say."""
    m, level = spectral.noise_level(sde, t)
    step = spectral.wiener_step(x / m[:, None, None, None], level, moments)
    return step / (m * level**2)[:, None, None, None]


@quick
def one_step(sampler, law, t, t_next):
    """Images of 0, of an impulse in x and of one in z, in each channel: (2 C + 1, H, W, C) without and with noise."""
    channels = sampler.shape[-1]
    count = 2 * channels + 1
    x, z = (jnp.zeros((count, *sampler.shape)) for _ in range(2))
    for c in range(channels):
        x, z = x.at[1 + c, 0, 0, c].set(1.0), z.at[1 + channels + c, 0, 0, c].set(1.0)
    step = sampler.kinds[0]
    words = {"sde": sampler.sde, "score_fn": law, "preconditioner": sampler.preconditioner, "moments": sampler.moments}
    own = {**sampler.numbers, **dict(sampler.choices)}
    times = (jnp.full(count, v, jnp.float32) for v in (t, t_next))
    t, t_next = times
    return step(x, t, z, t_next=t_next, memory=solvers.Memory.empty(x), **words, **own)[:2]


def covariance_after(sampler, law, mean, covariance):
    """Mean (H, W // 2 + 1, C) and covariance (…, C, C) per mode after every row of a table; exact recursion."""
    rows, c = sampler.table.rows, SHAPE[-1]
    for t, t_next in zip(rows.t, rows.t_next, strict=True):
        noisy, quiet = (np.asarray(a, np.float64) for a in one_step(sampler, law, t, t_next))
        transform = functools.partial(np.fft.rfft2, axes=(-3, -2))
        a = np.stack([transform(quiet[1 + i] - quiet[0]) for i in range(c)], axis=-1)
        b = np.stack([transform(noisy[1 + c + i] - quiet[1 + c + i]) for i in range(c)], axis=-1)
        mean = np.einsum("hwij,hwj->hwi", a, mean) + transform(quiet[0])
        covariance = np.einsum("hwij,hwjk,hwlk->hwil", a, covariance, a.conj()) + np.einsum(
            "hwij,hwlj->hwil", b, b.conj()
        )
        yield t_next, mean, covariance


def matrix(moments):
    """Covariance per mode in the channels' own axes."""
    _, power, basis = (None if v is None else np.asarray(v, np.float64) for v in spectral.parts(moments))
    basis = np.eye(SHAPE[-1]) if basis is None else basis
    return np.einsum("hwc,ic,jc->hwij", power[0], basis, basis)


LAMBDAS = {"0": 0.0, "0.3": 0.3, "1": 1.0, "4": 4.0, "map": 2 * np.broadcast_to(K, PLANE).astype(np.float32), "M": "M"}


@pytest.mark.parametrize("colours", [False, True], ids=["channels", "colours"])
@pytest.mark.parametrize("lam", LAMBDAS.values(), ids=LAMBDAS)
@pytest.mark.parametrize("kind", ["ve", pytest.param("vp", marks=pytest.mark.slow), "subvp"])
def test_gaussian_data_are_exact_at_any_number_of_steps(kind, lam, colours):
    """Mean and covariance of every mode after each of 1, 2 and 5 steps, for any λ and M, colours, head start."""
    m = (flat(1.3) if colours else M) if isinstance(lam, str) else None
    for n, head_start in ((2, None), (3, None), (6, 5.0)):
        sampler = make(SDES[kind], n, stochasticity=lam, preconditioner=m, head_start=head_start, denoise=False,
                       colours=colours, statistics=(MEAN, POWER, CROSS), eps=0.02)  # fmt: skip
        sde, moments = sampler.sde, sampler.moments
        law = jax.tree_util.Partial(correlated, sde, moments)
        first = sampler.table.rows.t[:1]
        scale, std = (float(v[0]) for v in (sde.mean_scale(first), sde.std(first)))
        start = scale * np.fft.rfft2(MEAN, axes=(0, 1)), scale**2 * matrix(moments) + std**2 * np.eye(2)
        assert len(sampler.table) == n - 1
        for t_next, mean, covariance in covariance_after(sampler, law, *start):
            scale, std = (float(f(np.array([t_next]))[0]) for f in (sde.mean_scale, sde.std))
            wanted = scale**2 * matrix(moments) + std**2 * np.eye(2)
            np.testing.assert_allclose(covariance, wanted, rtol=3e-3, atol=1e-4 * np.abs(wanted).max())
            np.testing.assert_allclose(mean, scale * np.fft.rfft2(MEAN, axes=(0, 1)), atol=3e-3)


def test_the_step_to_the_data_ends_at_the_data():
    """The flow ends at N(μ, P), and λ = 1 at the denoiser's image."""
    sde = SDES["ve"]
    law = FrequencyGaussian.create(sde, MEAN, POWER)
    wanted = MEAN + np.fft.irfft2(np.fft.rfft2(Z, axes=(1, 2)) * np.sqrt(POWER), s=SHAPE[:2], axes=(1, 2))
    np.testing.assert_allclose(solve(make(sde, 4), Z, law), wanted, atol=1e-3)
    t = jnp.full(4, 0.4)
    step = predictors.get_predictor("spectral")
    words = {"sde": sde, "score_fn": mixture(sde), "moments": (MEAN, POWER), "memory": solvers.Memory.empty(Z)}
    x = step(Z, t, None, t_next=0 * t, stochasticity=1.0, **words)[1]
    np.testing.assert_allclose(x, mixture(sde).denoiser(Z, t), atol=1e-5)


def noise_free(sampler):
    """The sampler with z = 0."""
    return dataclasses.replace(sampler, kinds=tuple(dataclasses.replace(step, draws=0) for step in sampler.kinds))


@pytest.mark.parametrize(("lam", "kappa", "order"), [(0.0, 1.0, 2), (0.0, 0.0, 1), (1.0, 1.0, 2)])
def test_order_of_convergence(lam, kappa, order):
    """On the mixture, without noise, against 512 steps."""
    sde, law = SDES["ve"], mixture(SDES["ve"])
    options = {"denoise": False, "eps": 0.1, "grid": "uniform", "stochasticity": lam}
    fine = solve(noise_free(make(sde, 513, kappa=1.0, **options)), Z, law)
    steps = (32, 64) if order == 1 else (24, 48)
    errors = [
        float(jnp.abs(solve(noise_free(make(sde, n + 1, kappa=kappa, **options)), Z, law) - fine).max()) for n in steps
    ]
    assert errors[1] < 0.06
    assert 2**order * 0.7 < errors[0] / errors[1] < 2**order * 1.6, errors


@pytest.mark.parametrize(("lam", "plain"), [(0.0, "dpmpp_2m"), (1.0, "sde_dpmpp_2m")])
@pytest.mark.parametrize("kind", ["ve", "vp"])
def test_without_the_spectrum_it_is_dpm_solver(kind, lam, plain):
    """Whatever the mean, and to the last step."""
    law = mixture(SDES[kind])
    ours = solve(make(SDES[kind], 6, stochasticity=lam, spectrum=0.0), Z, law)
    np.testing.assert_allclose(ours, solve(make(SDES[kind], 6, plain), Z, law), atol=2e-4)


def test_the_old_names_are_settings():
    """spectral_ddim and spectral_ancestral by their formulas, and what they share with the family."""
    sde = SDES["ve"]
    x, t, t_next = jnp.asarray(3 * Z), jnp.full(4, 0.6), jnp.full(4, 0.4)
    words = {"sde": sde, "score_fn": mixture(sde), "moments": (MEAN, POWER)}
    v, below = (np.float64(f) for f in (sde.std(t)[0] ** 2, sde.std(t_next)[0] ** 2))
    score = np.asarray(mixture(sde)(x, t), np.float64)
    c = (POWER + v) * (1 - np.sqrt((POWER + below) / (POWER + v)))
    flow = x + np.fft.irfft2(np.fft.rfft2(score, axes=(1, 2)) * c, s=SHAPE[:2], axes=(1, 2))
    ddim = predictors.get_predictor("spectral_ddim")(x, t, None, t_next=t_next, **words)[0]
    np.testing.assert_allclose(ddim, flow, atol=2e-4)
    noisy, quiet = predictors.get_predictor("spectral_ancestral")(x, t, Z, t_next=t_next, **words)
    np.testing.assert_allclose(quiet, x + (v - below) * score, atol=2e-4)
    deviation = np.sqrt((v - below) * (POWER + below) / (POWER + v))
    noise = np.fft.irfft2(np.fft.rfft2(Z, axes=(1, 2)) * deviation, s=SHAPE[:2], axes=(1, 2))
    np.testing.assert_allclose(noisy - quiet, noise, atol=2e-4)
    step = predictors.get_predictor("spectral")
    family = step(x, t, Z, t_next=t_next, memory=solvers.Memory.empty(x), stochasticity=1.0, spectrum=0.0, **words)
    gap = family[1] - x
    np.testing.assert_allclose(gap, (v - below) * score, rtol=1e-3, atol=2e-4)


def test_integrals_against_closed_forms():
    p = jnp.asarray([1e-3, 0.1, 4.0, 300.0]).reshape(1, 1, 4, 1)
    for s, t in ((80.0, 20.0), (5.0, 0.5), (0.3, 0.02)):
        level, below = jnp.array([s]), jnp.array([t])
        P = np.asarray(p, np.float64)
        root = np.sqrt(P)
        flow = np.sqrt((P + t**2) / P) * (np.arcsinh(root / t) - np.arcsinh(root / s))
        reverse = (P + t**2) / P * (np.log1p(P / t**2) - np.log1p(P / s**2))
        for lam, wanted in ((0.0, flow), (1.0, reverse)):
            np.testing.assert_allclose(spectral_steps.integrals(p, level, below, lam)[0], wanted, rtol=2e-5)
    ratio, h = 0.25, np.log(4)  # P = 0: c_k = ∫₀ʰ e^{v − h} vᵏ dv
    for lam in (10.0, 100.0, 1000.0):  # decays much faster than the levels
        level, below = jnp.array([50.0]), jnp.array([0.01])
        c0, c1 = spectral_steps.integrals(jnp.zeros((1, 1, 1, 1)), level, below, lam)
        np.testing.assert_allclose(c0, 1.0, rtol=1e-5)
        np.testing.assert_allclose(c1, np.log(5000) - 1 / (1 + lam), rtol=1e-5)
    c0, c1 = spectral_steps.integrals(jnp.zeros((1, 1, 1, 1)), jnp.array([2.0]), jnp.array([0.5]), 0.0)
    np.testing.assert_allclose((c0, c1), np.array([1 - ratio, h - 1 + ratio]).reshape(2, 1, 1, 1, 1), rtol=1e-5)


def test_another_setting_compiles_nothing():
    """Another NFE, κ, λ, spectrum or head start."""
    traced = []

    @jax.tree_util.Partial
    def counted(x, t):
        traced.append(1)
        return -x / (1 + t[:, None, None, None])

    sampling.run(make(SDES["ve"], 5, head_start=10.0), sampling.image_keys(range(2)), counted)
    first, programs = len(traced), runner._run_chunk._cache_size()
    other = make(SDES["ve"], 9, stochasticity=0.7, kappa=0.4, spectrum=0.5, head_start=4.0)
    sampling.run(other, sampling.image_keys(range(2)), counted)
    assert first > 0 and len(traced) == first and runner._run_chunk._cache_size() == programs


@pytest.mark.parametrize("m", [identity(), M, flat(1.5)], ids=["plain", "freq", "flat"])
@pytest.mark.parametrize("snr", [0.1, 1.0, 30.0])
def test_the_exact_corrector_keeps_the_law_at_any_step_size(m, snr):
    """Mean and variance of every mode under Gaussian data, where Langevin steps diverge from snr = 1 on."""
    sde = SDES["vp"]
    t = jnp.full(5, 0.7)
    law = FrequencyGaussian.create(sde, MEAN, POWER)
    step = correctors.get_corrector("langevin_exact")
    x = np.zeros((5, *SHAPE), np.float32)
    x[1, 0, 0, 0] = x[2, 0, 0, 1] = 1
    z = np.roll(x, 2, axis=0)
    words = {"sde": sde, "score_fn": law, "moments": (MEAN, POWER), "preconditioner": m, "snr": snr}
    noisy, quiet = (np.fft.rfft2(v, axes=(1, 2)) for v in step(x, t, z, **words))
    scale, std = float(sde.mean_scale(t)[0]), float(sde.std(t)[0])
    total = scale**2 * POWER + std**2
    mean = scale * np.fft.rfft2(MEAN, axes=(0, 1))
    for c in range(2):
        a, b = (quiet[1 + c] - quiet[0])[..., c], (noisy[3 + c] - quiet[3 + c])[..., c]
        np.testing.assert_allclose(np.abs(a) ** 2 * total[..., c] + np.abs(b) ** 2, total[..., c], rtol=2e-4)
        np.testing.assert_allclose(a * mean[..., c] + quiet[0][..., c], mean[..., c], atol=2e-3)
    assert np.abs(quiet[1] - quiet[0]).max() < 1


def test_a_small_exact_step_is_a_langevin_step():
    sde, t = SDES["ve"], jnp.full(4, 0.5)
    words = {"sde": sde, "score_fn": mixture(sde), "preconditioner": M, "snr": 0.01}
    step, plain = correctors.get_corrector("langevin_exact"), correctors.get_corrector("ald")
    ours, theirs = step(Z, t, Z, moments=(MEAN, POWER), **words), plain(Z, t, Z, **words)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a - Z, b - Z, rtol=2e-2, atol=1e-5)


def test_the_corrector_may_be_at_chosen_levels():
    sampler = make(SDES["ve"], 8, "spectral_ddim", "langevin_exact", corrector_levels=(0.2, 5.0))
    rows = sampler.table.rows
    corrected = [sampler.kinds[k].kind == "corrector" for k in rows.kind]
    levels = np.asarray(sampler.sde.std(jnp.asarray(rows.t)))
    assert 8 < len(sampler.table) < 16
    np.testing.assert_array_equal(np.unique(rows.t[corrected]), np.unique(rows.t[(levels >= 0.2) & (levels <= 5)]))
    law = FrequencyGaussian.create(sampler.sde, MEAN, POWER)
    assert np.isfinite(solve(sampler, Z, law)).all()
    one_level = make(SDES["ve"], 5, "spectral", "langevin_exact", kappa=0.0, stochasticity=1.0)
    assert int(one_level.nfe) == 10


def test_a_corrector_without_statistics():
    """spectrum = 0 needs no statistics."""
    sampler = sampling.get_pc_sampler(VESDE(N=4), SHAPE, "reverse_diffusion", "langevin_exact", spectrum=0.0, snr=0.5)
    assert np.isfinite(solve(sampler, Z, mixture(VESDE(N=4)))).all()


def test_colours_are_the_eigenvectors_of_the_channels():
    """Of noise mixed by a matrix, and white noise stays white."""
    rng = np.random.default_rng(1)
    mix = np.array([[1.0, 0.5, 0.2], [0.5, 1.0, 0.4], [0.3, 0.1, 0.8]])
    images = rng.normal(size=(500, 4, 4, 3)) @ mix
    spectra = np.fft.rfft2(images, axes=(1, 2)) / 4
    first, second = np.triu_indices(3, 1)
    cross = np.mean((spectra[..., first] * spectra[..., second].conj()).real, axis=0)
    power, basis = spectral.in_colours(np.mean(np.abs(spectra) ** 2, axis=0), cross, 4)
    np.testing.assert_allclose(basis.T @ basis, np.eye(3), atol=1e-6)
    rotated = np.fft.rfft2(images @ basis, axes=(1, 2)) / 4
    np.testing.assert_allclose(power, np.mean(np.abs(rotated) ** 2, axis=0), rtol=1e-4)
    covariance = basis.T @ np.einsum("nhwi,nhwj->ij", images, images) @ basis / images[..., 0].size
    np.testing.assert_allclose(covariance, np.diag(np.diag(covariance)), atol=1e-5)
    assert np.all(np.diff(np.diag(covariance)) < 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stochasticity": -0.1}, "stochasticity=-0.1"),
        ({"stochasticity": "m"}, "or 'M'"),
        ({"stochasticity": np.ones((2, 2))}, "stochasticity"),
        ({"stochasticity": float("nan")}, "finite"),
        ({"preconditioner": M}, "use 'M'"),
        ({"preconditioner": M.replace(space=jnp.ones(SHAPE)), "stochasticity": "M"}, "per frequency"),
        ({"preconditioner": with_solenoidal(M, 0.5), "stochasticity": "M"}, "solenoidal"),
        ({"preconditioner": from_radius(SHAPE, 1.0, 1.3), "stochasticity": 1.0}, "use 'M'"),
        ({"spectrum": 1.5}, "spectrum=1.5"),
        ({"kappa": -1.0}, "kappa=-1"),
        ({"kappa": "x"}, "kappa=x: use finite numbers"),
        ({"spectrum": "x"}, "spectrum=x: use finite numbers"),
        ({"stochasticity": "x"}, "stochasticity=.x.: use a number"),
        ({"head_start": 100.0}, "head_start=100.*at most 20"),
        ({"head_start": 0.01}, "head_start=0.01"),
        ({"head_start": "auto"}, "plan"),
        ({"head_start": 5.0, "prior": "standard"}, "prior 'matched'"),
        ({"colours": True}, "cross-spectra"),
        ({"statistics": None}, "statistics"),
        ({"statistics": (MEAN[:4], POWER)}, "the sampler makes"),
        ({"corrector_levels": (0.1, 1.0)}, "no corrector"),
        ({"corrector": "langevin_exact", "kappa": 0.5}, "compares two steps"),
        ({"corrector": "langevin_exact", "kappa": 0.0, "corrector_levels": (30.0, 40.0)}, "no time has a level"),
        ({"churn": 3.0}, "no churn option"),
    ],
)
def test_bad_options_are_refused_by_name(options, message):
    with pytest.raises(PdsError, match=message):
        make(SDES["ve"], 6, **options)


def test_a_head_start_needs_a_predictor_of_any_grid():
    with pytest.raises(PdsError, match="the SDE's own levels"):
        make(SDES["ve"], 6, "reverse_diffusion", grid="uniform", head_start=5.0)


@pytest.mark.parametrize("sde", [VPSDE(N=5), subVPSDE(N=5)])
def test_the_exact_corrector_needs_no_alphas(sde):
    """β_max/N > 1 makes the step size of "langevin" negative; "langevin_exact" has none."""
    law = FrequencyGaussian.create(sde, MEAN, POWER)
    sampler = sampling.get_pc_sampler(
        sde, SHAPE, "spectral_ddim", "langevin_exact", statistics=(MEAN, POWER), prior="matched", snr=0.5
    )
    assert np.isfinite(solve(sampler, Z, law)).all()
    with pytest.raises(PdsError, match="needs 1 - beta_i"):
        sampling.get_pc_sampler(sde, SHAPE, "ddim", "langevin")


@pytest.mark.parametrize("name", ["stochasticity", "spectrum"])
def test_numbers_per_frequency_must_be_even(name):
    uneven = np.full(POWER.shape, 0.5)
    uneven[1, 0] = 0.9
    with pytest.raises(PdsError, match=f"{name} is not even.*columns 0 and W/2"):
        make(SDES["ve"], 4, "spectral", "none", **{name: uneven})
    uneven[-1, 0] = 0.9
    make(SDES["ve"], 4, "spectral", "none", **{name: uneven})


def test_an_uneven_power_is_refused():
    uneven = np.array(POWER)
    uneven[1, 0] *= 2
    with pytest.raises(PdsError, match="statistics: the power is not even"):
        sampling.get_pc_sampler(SDES["ve"], SHAPE, "spectral", "none", statistics=(MEAN, uneven))
