"""Exact scores: each against the gradient of its log-density, its samples, dense float64 formulas and one another."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pds_jax import statistics
from pds_jax.models import analytic
from pds_jax.sde_lib import VESDE, VPSDE, subVPSDE
from pds_jax.types import PdsError, ScoreFn

SDES = {"ve": VESDE(), "vp": VPSDE(), "subvp": subVPSDE()}
SHAPE = (4, 6, 2)
TIMES = jnp.array([1.0, 0.6, 0.3, 0.1, 0.01])


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def spectrum(shape, seed=0):
    """A positive, even power spectrum: of noise averaged over a few images, falling off with frequency."""
    half = np.abs(np.fft.rfft2(draw(3, *shape, seed=seed), axes=(1, 2))) ** 2
    fall = 1 / (1 + np.arange(shape[1] // 2 + 1) ** 2)
    return half.mean(axis=0) / (shape[0] * shape[1]) * fall[None, :, None] + 0.02


def covariance(size, seed=0):
    root = draw(size, size, seed=seed).astype(np.float64)
    return root @ root.T / size


def frequency(sde, shape=SHAPE):
    return analytic.FrequencyGaussian.create(sde, draw(*shape), spectrum(shape))


def pixel(sde, shape=SHAPE):
    return analytic.PixelGaussian.create(sde, draw(*shape), np.square(draw(*shape, seed=1)) + 0.01)


def dense(sde, shape=SHAPE):
    return analytic.DenseGaussian.create(sde, draw(*shape), covariance(int(np.prod(shape))))


def mixture(sde, shape=SHAPE):
    variances = np.square(draw(3, *shape, seed=1)) + 0.01
    return analytic.GaussianMixture.create(sde, [1.0, 3.0, 0.5], draw(3, *shape), variances)


def empirical(sde, shape=SHAPE):
    return analytic.EmpiricalLaw.create(sde, draw(11, *shape), width=0.2, chunk=4)


LAWS = [frequency, pixel, dense, mixture, empirical]


# LLVM's optimisations cost more than they save here.
fast_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@fast_jit
def evaluate(law, x, t):
    return law(x, t), law.denoiser(x, t), law.log_prob(x, t)


@fast_jit
def gradient(law, x, t):
    return jax.grad(lambda y: jnp.sum(law.log_prob(y, t)))(x)


@fast_jit
def score_and_gradient(law, x, t):
    return law(x, t), gradient.__wrapped__(law, x, t)


@functools.partial(fast_jit, static_argnums=1)
def clean(law, n):
    return law.sample(jax.random.key(1), n)


@fast_jit
def noisy(law, t=TIMES):
    return law.sample_at(jax.random.key(5), t)


def agree(got, want, rtol=2e-5):
    """Each sample to a relative error of its largest value: they differ in scale by orders of magnitude."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape
    scale = np.abs(want).reshape(len(want), -1).max(axis=1).reshape(-1, *(1,) * (want.ndim - 1))
    np.testing.assert_array_less(np.abs(got - want) / scale, rtol)


def levels(sde, t):
    """m_t and std_t in float64, shaped to stand beside images."""
    return (np.asarray(f(t), np.float64)[:, None, None, None] for f in (sde.mean_scale, sde.std))


@pytest.mark.parametrize("sde", SDES)
@pytest.mark.parametrize("make", LAWS)
def test_score_is_the_gradient_of_the_log_density(make, sde):
    sde = SDES[sde]
    law = make(sde)
    assert isinstance(law, ScoreFn)
    x = noisy(law)
    score, denoised, log_prob = evaluate(law, x, TIMES)
    assert score.dtype == denoised.dtype == log_prob.dtype == jnp.float32
    assert score.shape == denoised.shape == x.shape and log_prob.shape == TIMES.shape
    agree(score, gradient(law, x, TIMES))
    # Tweedie's formula in float64; x and std² s cancel down to the data's size, so an error counts on the scale of x.
    m, std = levels(sde, TIMES)
    x64 = np.asarray(x, np.float64)
    error = np.abs(m * np.asarray(denoised, np.float64) - (x64 + std**2 * np.asarray(score, np.float64)))
    np.testing.assert_array_less(error / np.abs(x64).max(axis=(1, 2, 3), keepdims=True), 1e-6)


@pytest.mark.parametrize("shape", [(1, 1, 2), (5, 3, 1)], ids=str)
@pytest.mark.parametrize("make", LAWS)
def test_any_shape(make, shape):
    law = make(SDES["vp"], shape)
    assert law.shape == shape
    x = draw(5, *shape, seed=3)
    score, log_gradient = score_and_gradient(law, x, TIMES)
    assert score.shape == x.shape
    agree(score, log_gradient)


def variances_of(law, x):
    """Sample mean, and sample variances in the law's form, with the standard error of each as if x were Gaussian."""
    x = np.asarray(x, np.float64)
    n, mean = len(x), x.mean(axis=0)
    offset = x - mean
    if isinstance(law, analytic.FrequencyGaussian):
        var = (np.abs(np.fft.rfft2(offset, axes=(1, 2))) ** 2).mean(axis=0) / (x.shape[1] * x.shape[2])
        return mean, var, np.sqrt(2 / n) * var
    if isinstance(law, analytic.DenseGaussian):
        rows = offset.reshape(n, -1)
        var = rows.T @ rows / n
        diagonal = np.diag(var)
        return mean, var, np.sqrt((diagonal[:, None] * diagonal + var**2) / n)
    var = (offset**2).mean(axis=0)
    return mean, var, np.sqrt(((offset**2).var(axis=0)) / n)


@pytest.mark.parametrize("make", LAWS)
def test_samples_have_the_moments(make):
    law, n = make(SDES["vp"]), 4000
    t = jnp.full((n,), 0.15)
    marginal = [np.asarray(a[0]) for a in law.marginal(t[:2])]
    of_data = np.asarray(law.mean), np.asarray(law.variance)
    for x, (want_mean, want) in ((clean(law, n), of_data), (noisy(law, t), marginal)):
        assert x.dtype == jnp.float32 and x.shape == (n, *SHAPE)
        mean, var, error = variances_of(law, x)
        spread = np.asarray(x, np.float64).std(axis=0) / np.sqrt(n)
        assert (np.abs(mean - want_mean) / spread).max() < 5
        assert (np.abs(var - want) / error).max() < 5.5


@pytest.mark.parametrize("sde", SDES)
def test_marginal_is_the_law_of_the_noisy_images(sde):
    """m_t μ and m_t² V + std_t², written out for each form of the variances."""
    sde = SDES[sde]
    m, std = (np.asarray(f(TIMES), np.float64) for f in (sde.mean_scale, sde.std))
    for make in LAWS:
        law = make(sde)
        mean, var = law.marginal(TIMES)
        white = np.eye(law.variance.shape[0]) if make is dense else 1
        for k in range(len(m)):
            np.testing.assert_allclose(mean[k], m[k] * np.asarray(law.mean), rtol=1e-5)
            want = m[k] ** 2 * np.asarray(law.variance) + std[k] ** 2 * white
            np.testing.assert_allclose(var[k], want, rtol=1e-5, atol=1e-6 * want.max())


def reference(sde, mean, sigma, x, t):
    """Score, E[x_0 | x_t] and log-density of a Gaussian by dense float64 algebra in x, not in x̄."""
    x64, mean = np.asarray(x, np.float64).reshape(len(x), -1), np.asarray(mean, np.float64).ravel()
    scores, denoised, log_probs = [], [], []
    for row, m, std in zip(x64, *(np.asarray(f(t), np.float64) for f in (sde.mean_scale, sde.std)), strict=True):
        total = m**2 * sigma + std**2 * np.eye(len(mean))
        offset = row - m * mean
        scores.append(-np.linalg.solve(total, offset))
        denoised.append(mean - m * sigma @ scores[-1])
        log_probs.append(-0.5 * (-offset @ scores[-1] + np.linalg.slogdet(2 * np.pi * total)[1]))
    return np.reshape(scores, x.shape), np.reshape(denoised, x.shape), np.array(log_probs)


def matrix(law):
    """Covariance of a Gaussian law, in float64."""
    size, shape = law.mean.size, law.shape
    basis = np.eye(size).reshape(size, *shape)
    if isinstance(law, analytic.PixelGaussian):
        return np.diag(np.asarray(law.variance, np.float64).ravel())
    power = np.asarray(law.variance, np.float64)
    return np.fft.irfft2(power * np.fft.rfft2(basis, axes=(1, 2)), s=shape[:2], axes=(1, 2)).reshape(size, size)


@pytest.mark.parametrize("sde", SDES)
@pytest.mark.parametrize(("make", "shape"), [(frequency, SHAPE), (frequency, (3, 5, 1)), (pixel, SHAPE)])
def test_gaussians_agree_with_dense_algebra(make, shape, sde):
    sde = SDES[sde]
    law = make(sde, shape)
    sigma = matrix(law)
    x = noisy(law)
    want = reference(sde, law.mean, sigma, x, TIMES)
    for other in (law, analytic.DenseGaussian.create(sde, law.mean, sigma)):
        for got, exact in zip(evaluate(other, x, TIMES), want, strict=True):
            agree(got, exact)
    np.testing.assert_allclose(analytic.DenseGaussian.create(sde, law.mean, sigma).variance, sigma, atol=1e-6)


def test_white_noise_has_power_one():
    ones = np.ones((4, 4, 2))
    white = analytic.FrequencyGaussian.create(SDES["ve"], 0 * draw(*SHAPE), ones)
    other = analytic.PixelGaussian.create(SDES["ve"], 0 * draw(*SHAPE), np.ones(SHAPE))
    x = noisy(white)
    for got, want in zip(evaluate(white, x, TIMES), evaluate(other, x, TIMES), strict=True):
        agree(got, want)


def test_recorded_gaussian(golden):
    """Data N(m, s² I): exact bits per dimension at t = 1e-5, recorded in float64."""
    t = jnp.full((2,), 1e-5)
    with np.load(golden / "score_sde/sde/likelihood.npz") as z:
        for name, sde in (("vesde", VESDE()), ("vpsde", VPSDE()), ("subvpsde", subVPSDE())):
            var = np.full(z["m"].shape, z["s2"])
            laws = (
                analytic.PixelGaussian.create(sde, z["m"], var),
                analytic.FrequencyGaussian.create(sde, z["m"], var[:, :5]),
                analytic.GaussianMixture.create(sde, [1.0], z["m"][None], z["s2"]),
            )
            for law in laws:
                bits = -evaluate(law, jnp.asarray(z[f"{name}.data"]), t)[2] / (np.log(2) * var.size) + 7
                np.testing.assert_allclose(bits, z[f"{name}.exact_gaussian_bpd_centered"], rtol=1e-5)


@pytest.mark.parametrize("sde", SDES)
def test_mixture_of_one_is_a_gaussian(sde):
    one = pixel(SDES[sde])
    mix = analytic.GaussianMixture.create(one.sde, [0.3], one.mean[None], one.variance[None])
    x = noisy(one)
    for got, want in zip(evaluate(mix, x, TIMES), evaluate(one, x, TIMES), strict=True):
        agree(got, want)
    np.testing.assert_allclose(mix.variance, one.variance, rtol=1e-6)


def test_mixture_is_the_sum_of_its_components():
    """Also a component of weight 0, isotropic variances, and images so far away that every density underflows."""
    sde, w, means, v = SDES["vp"], np.array([0.25, 0.0, 0.75]), draw(3, *SHAPE), np.array([0.5, 1.0, 0.04])
    law = analytic.GaussianMixture.create(sde, 4 * w, means, v)
    x = jnp.concatenate([noisy(law)[:4], jnp.full((1, *SHAPE), 40.0)])
    parts = [reference(sde, mu, s * np.eye(mu.size), x, TIMES) for mu, s in zip(means, v, strict=True)]
    with np.errstate(divide="ignore"):
        logs = np.log(w) + np.stack([part[2] for part in parts], axis=1)
    log_prob = np.logaddexp.reduce(logs, axis=1)
    r = np.exp(logs - log_prob[:, None])
    score, denoised, got_log_prob = evaluate(law, x, TIMES)
    agree(score, sum(r[:, k, None, None, None] * parts[k][0] for k in range(3)))
    agree(denoised, sum(r[:, k, None, None, None] * parts[k][1] for k in range(3)))
    agree(got_log_prob, log_prob)
    number = analytic.GaussianMixture.create(sde, w, means, 0.5)
    np.testing.assert_array_equal(number.variances, np.full(means.shape, 0.5, np.float32))


def empirical_reference(sde, images, width, x, t):
    """Everything at once in float64, by direct differences."""
    y, x64 = np.asarray(images, np.float64).reshape(len(images), -1), np.asarray(x, np.float64).reshape(len(x), -1)
    m, std = (np.asarray(f(t), np.float64)[:, None] for f in (sde.mean_scale, sde.std))
    total = m**2 * width**2 + std**2
    logs = -0.5 * np.square(x64[:, None] - m[:, :, None] * y).sum(axis=2) / total
    log_sum = np.logaddexp.reduce(logs, axis=1, keepdims=True)
    score = (m * np.exp(logs - log_sum) @ y - x64) / total
    log_prob = log_sum - np.log(len(y)) - 0.5 * y.shape[1] * np.log(2 * np.pi * total)
    denoised = (x64 + std**2 * score) / m
    return score.reshape(x.shape), denoised.reshape(x.shape), log_prob[:, 0]


@pytest.mark.parametrize("chunk", [1, 4, 500])
@pytest.mark.parametrize("width", [0.0, 0.2])
def test_chunked_softmax_is_the_whole_one(chunk, width):
    images = draw(11, *SHAPE)
    images[7] = images[2]  # two of a kind count twice
    sde = SDES["vp"]
    law = analytic.EmpiricalLaw.create(sde, images, width, chunk)
    m, std = levels(sde, TIMES)
    x = (m * images[1:6] + std * draw(5, *SHAPE, seed=2)).astype(np.float32)
    x[4] = 30  # so far away that every density underflows
    for got, want in zip(evaluate(law, x, TIMES), empirical_reference(sde, images, width, x, TIMES), strict=True):
        agree(got, want)


@pytest.mark.parametrize("sde", SDES)
def test_empirical_law_is_a_mixture(sde):
    law = empirical(SDES[sde])
    mix = analytic.GaussianMixture.create(SDES[sde], np.ones(11), draw(11, *SHAPE), 0.2**2)
    x = noisy(law)
    for got, want in zip(evaluate(law, x, TIMES), evaluate(mix, x, TIMES), strict=True):
        agree(got, want, rtol=1e-4)  # the mixture's logits are sums of dim terms of order 1
    np.testing.assert_allclose(law.mean, mix.mean, atol=1e-6)
    np.testing.assert_allclose(law.variance, mix.variance, rtol=1e-5)


@functools.cache
def photos():
    """Smooth positive images far from zero and close to one another: where expanded squares lose digits."""
    spatial = np.cumsum(np.cumsum(draw(400, 16, 16, 3), axis=1), axis=2)
    return (0.6 + 0.01 * spatial).clip(0, 1)


@pytest.mark.parametrize("sde", ["ve", "vp"])
def test_float32_distances_are_good_enough(sde):
    sde = SDES[sde]
    law = analytic.EmpiricalLaw.create(sde, photos(), 0.03, chunk=64)
    t = jnp.array([1.0, 0.3, 0.2, 0.1, 0.03, 1e-3, 1e-5])
    x = noisy(law, t)
    score, _, log_prob = evaluate(law, x, t)
    want, _, want_log_prob = empirical_reference(sde, photos(), 0.03, x, t)
    agree(score, want, rtol=1e-3)
    np.testing.assert_allclose(log_prob, want_log_prob, rtol=1e-5, atol=0.02)


def test_denoiser_keeps_its_digits_under_much_noise():
    sde = VESDE(sigma_max=1348)
    law = empirical(sde)
    t = jnp.ones_like(TIMES)
    x = noisy(law, t)
    agree(evaluate(law, x, t)[1], empirical_reference(sde, draw(11, *SHAPE), 0.2, x, t)[1], rtol=1e-5)


def test_memory_does_not_grow_with_the_images():
    def temporary(count):
        law = analytic.EmpiricalLaw.create(SDES["ve"], draw(count, 4, 4, 1), 0.1, chunk=64)
        lowered = jax.jit(lambda law, x, t: law(x, t)).lower(law, draw(8, 4, 4, 1), jnp.ones((8,)))
        return lowered.compile().memory_analysis().temp_size_in_bytes

    small, large = temporary(512), temporary(8192)
    assert large <= small + 4096  # a table of offsets at most; the images are 480 kB more


def test_parameters_are_traced():
    count = 0

    @jax.jit
    def run(law, x, t):
        nonlocal count
        count += 1
        return law(x, t)

    x = draw(2, *SHAPE)
    for sde in (VESDE(), VESDE(sigma_max=90, N=10)):
        law = empirical(sde)
        for other in (law, law.replace(width=jnp.float32(0.5), count=jnp.int32(9))):
            run(other, x, jnp.array([0.5, 0.1]))
    assert count == 1


def test_same_law_under_another_sde():
    law = frequency(SDES["ve"])
    x = noisy(law.replace(sde=SDES["vp"]))
    moved = evaluate(law.replace(sde=SDES["vp"]), x, TIMES)
    for got, want in zip(moved, evaluate(frequency(SDES["vp"]), x, TIMES), strict=True):
        np.testing.assert_array_equal(got, want)


def test_from_statistics():
    images = photos()
    stats = statistics.compute_statistics([images])
    plain, centered = (analytic.from_statistics(SDES["ve"], stats, centered=c) for c in (False, True))
    np.testing.assert_array_equal(plain.mean, stats.mean)
    np.testing.assert_allclose(centered.mean, 2 * stats.mean - 1, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(centered.variance, 4 * stats.power, rtol=1e-6)
    _, power, error = variances_of(plain, clean(plain, 1000))
    assert (np.abs(power - stats.power) / error).max() < 6


def test_from_images():
    eight_bit = np.round(photos()[:20] * 255).astype(np.uint8)
    plain = analytic.from_images(SDES["ve"], eight_bit, 0.0)
    centered = analytic.from_images(SDES["ve"], eight_bit / np.float32(255), 0.0, centered=True, chunk=8)
    assert centered.points.shape == (3, 8, 768) and int(centered.count) == 20
    for law, low, scale in ((plain, 0, 255), (centered, -1, 127.5)):
        drawn = (np.asarray(clean(law, 50)) - low) * scale
        distance = np.abs(drawn[:, None] - eight_bit[None]).max(axis=(2, 3, 4))
        assert distance.min(axis=1).max() < 1e-3  # each draw is one of the images
        assert len(set(distance.argmin(axis=1))) > 10


POWER = np.ones((4, 4, 2))
ODD = np.where(np.arange(4)[:, None, None] == 1, 2, POWER)


def without(values, bad):
    values = np.array(values, np.float32)
    values.reshape(-1)[0] = bad
    return values


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda s: analytic.FrequencyGaussian.create(s, draw(*SHAPE), np.ones(SHAPE)), r"power .*\(4, 4, 2\)"),
        (lambda s: analytic.FrequencyGaussian.create(s, draw(*SHAPE), -POWER), "power must be finite and not neg"),
        (lambda s: analytic.FrequencyGaussian.create(s, draw(*SHAPE), ODD), "even"),
        (lambda s: analytic.FrequencyGaussian.create(s, draw(4, 6), POWER), r"mean .*\(H, W, C\)"),
        (lambda s: analytic.FrequencyGaussian.create(s, without(draw(*SHAPE), np.nan), POWER), "mean must be finite"),
        (lambda s: analytic.PixelGaussian.create(s, draw(*SHAPE), -np.ones(SHAPE)), "var must be finite and not neg"),
        (lambda s: analytic.PixelGaussian.create(s, draw(*SHAPE), np.ones((4, 6, 1))), "var has shape"),
        (lambda s: analytic.DenseGaussian.create(s, draw(3), np.eye(4)), "covariance has shape"),
        (lambda s: analytic.DenseGaussian.create(s, draw(2), np.array([[1.0, 0.5], [0, 1]])), "not symmetric"),
        (lambda s: analytic.DenseGaussian.create(s, draw(2), np.diag([1.0, -0.1])), "negative eigenvalue"),
        (lambda s: analytic.GaussianMixture.create(s, [], draw(0, *SHAPE), 1.0), "means is empty"),
        (lambda s: analytic.GaussianMixture.create(s, [1.0], draw(2, *SHAPE), 1.0), "weights has shape"),
        (lambda s: analytic.GaussianMixture.create(s, [1.0, -1], draw(2, *SHAPE), 1.0), "weights must be"),
        (lambda s: analytic.GaussianMixture.create(s, [0.0, 0], draw(2, *SHAPE), 1.0), "all weights"),
        (lambda s: analytic.GaussianMixture.create(s, [1.0, 1], draw(2, *SHAPE), [1.0] * 3), "variances must be of"),
        (lambda s: analytic.GaussianMixture.create(s, [1.0, 1], draw(2, *SHAPE), -1.0), "variances must be finite"),
        (lambda s: analytic.EmpiricalLaw.create(s, draw(0, *SHAPE), 0.1), "images is empty"),
        (lambda s: analytic.EmpiricalLaw.create(s, draw(*SHAPE), 0.1), r"images has shape .*\(N, H, W, C\)"),
        (lambda s: analytic.EmpiricalLaw.create(s, draw(2, *SHAPE), -0.1), "width"),
        (lambda s: analytic.EmpiricalLaw.create(s, draw(2, *SHAPE), 0.1, chunk=0), "chunk"),
        (lambda s: analytic.EmpiricalLaw.create(s, np.zeros((2, *SHAPE), np.uint8), 0.1), "from_images"),
        (lambda s: analytic.EmpiricalLaw.create(s, without(draw(2, *SHAPE), np.inf), 0.1), "images must be finite"),
        (lambda s: analytic.from_images(s, np.zeros((0, *SHAPE), np.uint8), 0.1), "empty"),
        (lambda s: analytic.from_images(s, 3 + draw(2, *SHAPE), 0.1), r"in \[0, 1\]"),
        (lambda s: pixel(s).sample(jax.random.key(0), 0), "n=0"),
        (lambda s: pixel(s)(draw(2, 6, 4, 2), TIMES[:2]), "got a batch"),
        (lambda s: pixel(s).log_prob(draw(*SHAPE), TIMES), "got a batch"),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(PdsError, match=message):
        make(SDES["ve"])
