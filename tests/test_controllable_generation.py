"""Conditions and guided scores: recorded runs, closed forms on Gaussians, exactness, bad input."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pds_jax import controllable_generation as cg
from pds_jax import operators, preconditioner
from pds_jax.models.analytic import FrequencyGaussian, PixelGaussian
from pds_jax.sampling import get_pc_sampler, image_keys, replay, run
from pds_jax.sde_lib import VESDE, VPSDE, subVPSDE
from pds_jax.types import PdsError

SDES = {"vesde": VESDE, "vpsde": VPSDE, "subvpsde": subVPSDE}
RUNS = [
    ("vesde", 10, "reverse_diffusion", "langevin"),
    ("vpsde", 10, "euler_maruyama", "none"),
    ("vpsde", 25, "reverse_diffusion", "langevin"),
    ("subvpsde", 10, "euler_maruyama", "none"),
]
SHAPE = (2, 6, 4, 3)
RNG = np.random.default_rng(0)
DATA = RNG.random(SHAPE).astype(np.float32)
MASK = RNG.random((6, 4)) < 0.5
KERNEL = np.outer([0.25, 0.5, 0.25], [0.25, 0.5, 0.25])
CONDITIONS = {
    "inpainting": cg.inpainting(DATA, MASK),
    "colorization": cg.colorization(DATA.mean(-1, keepdims=True)),
    "super_resolution": cg.super_resolution(DATA.reshape(2, 3, 2, 2, 2, 3).mean((2, 4)), 2),
    "deblurring": cg.deblurring(operators.blur(KERNEL, SHAPE).forward(jnp.asarray(DATA)), KERNEL, threshold=0.1),
}


# --- recorded runs -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded(golden):
    with np.load(golden / "score_sde/sde/controllable.npz") as arrays:
        return dict(arrays)


@pytest.mark.parametrize("task", ["inpaint", "colorize"])
@pytest.mark.parametrize("setting", RUNS, ids=lambda run: f"{run[0]}{run[1]}")
def test_recorded_runs_with_compat(recorded, setting, task):
    name, n, predictor, corrector = setting
    sde = SDES[name](N=n)
    condition = {
        "inpaint": lambda: cg.inpainting(recorded["data"], recorded["mask"], compat=True),
        "colorize": lambda: cg.colorization(recorded["gray"], compat=True),
    }[task]()
    score_fn = PixelGaussian.create(sde, recorded["m"], np.full((8, 8, 3), recorded["s2"]))
    sampler = get_pc_sampler(sde, (8, 8, 3), predictor, corrector, snr=0.16, eps=1e-5, norm="batch")
    draws = 1 + n * (sampler.draws + 2)
    x, trajectory = replay(sampler, jnp.asarray(recorded[f"noise.{corrector}"][:draws]), score_fn, condition)
    key = f"{task}.{name}.N{n}.{predictor}.{corrector}"
    for ours, kind in ((x, "denoise"), (trajectory["x_pred"][-1], "nodenoise")):
        expected = recorded[f"{key}.{kind}"]
        assert np.abs(ours - expected).max() <= 2e-5 * np.abs(expected).max()


# --- pinning -----------------------------------------------------------------------------------------------------


def gaussian(sde, shape=SHAPE[1:]):
    return PixelGaussian.create(sde, np.full(shape, 0.4, np.float32), np.full(shape, 0.1, np.float32))


M = preconditioner.from_radius(SHAPE[1:], 0.6, 1.4)
SAMPLERS = [
    (VESDE(0.01, 5, N=4), "reverse_diffusion", "langevin", {"preconditioner": M}, "colorization"),
    (VESDE(0.01, 5, N=4), "ancestral_sampling", "none", {"preconditioner": M, "variant": "exact"}, "deblurring"),
    (VESDE(0.01, 5, N=4), "dpmpp_2m", "none", {"grid": "edm"}, "deblurring"),
    (VPSDE(N=30), "euler_maruyama", "none", {"probability_flow": True}, "super_resolution"),
]
MORE_SAMPLERS = [
    (VESDE(0.01, 5, N=4), "none", "ald", {"n_steps": 2}, "super_resolution"),
    (subVPSDE(N=30), "reverse_diffusion", "langevin", {"denoise": False, "preconditioner": M}, "super_resolution"),
]


@pytest.mark.parametrize(
    "setting",
    SAMPLERS + [pytest.param(setting, marks=pytest.mark.slow) for setting in MORE_SAMPLERS],
    ids=lambda setting: f"{type(setting[0]).__name__}-{setting[1]}-{setting[2]}",
)
def test_the_result_measures_as_given_with_every_sampler(setting):
    sde, predictor, corrector, options, other = setting
    sampler = get_pc_sampler(sde, SHAPE, predictor, corrector, snr=0.1, **options)
    sample = jax.jit(lambda keys, score_fn, condition: sampler(keys, score_fn, condition)[0])
    for name in ("inpainting", other):
        condition = CONDITIONS[name]
        x = sample(image_keys([3, 4]), gaussian(sde), condition)
        assert np.all(np.isfinite(x))
        if name == "inpainting":
            np.testing.assert_array_equal(np.asarray(x)[:, MASK], DATA[:, MASK])
        np.testing.assert_allclose(condition.operator.project(x), condition.known, atol=2e-5)
        rest = x - condition.operator.project(x)
        assert np.abs(rest).max() > 0.05


@pytest.mark.parametrize("name", ["inpainting", "deblurring"])
def test_the_known_part_is_at_the_noise_level_of_the_state_throughout(name):
    """From the prior to the end: k m_t plus the very draw that was given, and none of it in x_mean."""
    sde, condition = VESDE(0.01, 5, N=4), CONDITIONS[name]
    sampler = get_pc_sampler(sde, SHAPE, "reverse_diffusion", "langevin", snr=0.1)
    noise = jax.random.normal(jax.random.key(1), (1 + 4 * 4, *SHAPE), jnp.float32)
    project, known = condition.operator.project, condition.known
    start = sampler.start(noise[0], condition=condition)
    np.testing.assert_allclose(project(start.x), known + 5.0 * project(noise[0]), atol=2e-5)

    x, trajectory = replay(sampler, noise, gaussian(sde), condition)
    times = np.append(sampler.times, 0.0).astype(np.float64)
    sigmas = np.where(times > 0, 0.01 * 500**times, 0.0)
    for step in range(4):
        after_corrector, after_predictor = noise[1 + 4 * step + 1], noise[1 + 4 * step + 3]
        tolerance = 2e-5 * (1 + sigmas[step])
        expected = known + np.float32(sigmas[step]) * project(after_corrector)
        np.testing.assert_allclose(project(trajectory["x_corr"][step]), expected, atol=tolerance)
        expected = known + np.float32(sigmas[step + 1]) * project(after_predictor)
        np.testing.assert_allclose(project(trajectory["x_pred"][step]), expected, atol=tolerance)
        for mean in ("x_corr_mean", "x_pred_mean"):
            np.testing.assert_allclose(project(trajectory[mean][step]), known, atol=tolerance)
    # The rest of x_mean has no noise either: it is the predictor's own mean, not x.
    last_mean, last = trajectory["x_pred_mean"][-1], trajectory["x_pred"][-1]
    np.testing.assert_allclose(x - project(x), last_mean - project(last_mean), atol=2e-5)
    assert np.abs((x - last) - project(x - last)).max() > 1e-3


def test_unknown_pixels_may_hold_anything():
    filled = np.where(MASK[None, :, :, None], DATA, np.nan)
    np.testing.assert_array_equal(cg.inpainting(filled, MASK).known, CONDITIONS["inpainting"].known)


def test_run_in_chunks_twice_with_one_condition_and_per_image():
    """The condition survives the donated carries; an image depends on its own row only."""
    sde, condition = VESDE(0.01, 5, N=5), CONDITIONS["inpainting"]
    sampler = get_pc_sampler(sde, SHAPE, snr=0.1)
    first = run(sampler, image_keys([3, 4]), gaussian(sde), condition=condition, chunk=2)
    second = run(sampler, image_keys([3, 4]), gaussian(sde), condition=condition, chunk=3)
    np.testing.assert_array_equal(first.x, second.x)
    assert first.nfe == 10
    row = jax.tree.map(lambda leaf: leaf[1:], condition)
    alone = run(sampler, image_keys([4]), gaussian(sde), condition=row)
    np.testing.assert_allclose(alone.x[0], first.x[1], atol=1e-5)


def test_without_a_condition_nothing_changes():
    """No extra draws: an unconditional run is the one it was, and a free condition leaves the noise of steps alone."""
    sde = VESDE(0.01, 5, N=3)
    sampler = get_pc_sampler(sde, SHAPE, "reverse_diffusion", "none")
    noise = jax.random.normal(jax.random.key(1), (1 + 3 * 3, *SHAPE), jnp.float32)
    free = cg.inpainting(DATA, np.zeros((6, 4)))
    x, _ = replay(sampler, noise, gaussian(sde), free)
    own = jnp.concatenate([noise[:1], noise[2::3]])
    np.testing.assert_array_equal(x, replay(sampler, own, gaussian(sde))[0])


# --- guidance ----------------------------------------------------------------------------------------------------


SMALL = (1, 4, 4, 1)
evaluate = jax.jit(lambda score_fn, x, t: score_fn(x, t))


def spectrum():
    k = np.minimum(np.arange(4), 4 - np.arange(4))
    return (1 / (1 + np.hypot(k[:, None], k[None]))[..., None] ** 2).astype(np.float32)


@functools.cache
def dense_law():
    """Mean (16,) and covariance (16, 16) of the Gaussian with that spectrum."""
    basis = np.fft.fft2(np.eye(16).reshape(16, 4, 4))
    return np.full(16, 0.3), np.fft.ifft2(basis * spectrum()[None, ..., 0]).real.reshape(16, 16)


def small_score(sde):
    return FrequencyGaussian.create(sde, np.full(SMALL[1:], 0.3, np.float32), spectrum()[:, :3])


SMALL_MASK = (np.indices((4, 4)).sum(0) % 2).astype(np.float32)
SMALL_DATA = np.random.default_rng(5).normal(0.3, 0.5, SMALL).astype(np.float32)
SMALL_CONDITIONS = {
    "inpainting": cg.inpainting(SMALL_DATA, SMALL_MASK),
    "super_resolution": cg.super_resolution(SMALL_DATA.reshape(1, 2, 2, 2, 2, 1).mean((2, 4)), 2),
    "deblurring": cg.deblurring(SMALL_DATA, KERNEL),
}


def dense_operator(condition):
    """A as a matrix (n, 16)."""
    a = condition.operator
    columns = [np.asarray(a.forward(jnp.asarray(e.reshape(SMALL), jnp.float32))).ravel() for e in np.eye(16)]
    return np.array(columns, np.float64).T


def posterior(condition, noise_std):
    """Mean (16,) and covariance (16, 16) of x_0 given y."""
    (mu, sigma), a = dense_law(), dense_operator(condition)
    gram = a @ sigma @ a.T + noise_std**2 * np.eye(len(a))
    gain = sigma @ a.T @ np.linalg.pinv(gram, rcond=1e-10)
    return mu + gain @ (np.asarray(condition.y, np.float64).ravel() - a @ mu), sigma - gain @ a @ sigma


@pytest.mark.parametrize("sde", [VESDE(), VPSDE(), subVPSDE()], ids=lambda sde: type(sde).__name__)
@pytest.mark.parametrize("name", SMALL_CONDITIONS)
def test_guided_score_of_gaussian_data_is_that_of_the_posterior(sde, name):
    condition, noise_std = SMALL_CONDITIONS[name], 0.1
    guided = cg.reconstruction_guidance(
        small_score(sde), sde, condition, power=spectrum()[:, :3], noise_std=noise_std, steps=24
    )  # fmt: skip
    mean, covariance = posterior(condition, noise_std)
    for t in (0.2, 0.5, 0.9):
        at = jnp.full((1,), t, jnp.float32)
        m, std = float(sde.mean_scale(at)[0]), float(sde.std(at)[0])
        x = m * mean + std * np.random.default_rng(7).normal(size=16)
        expected = -np.linalg.solve(m**2 * covariance + std**2 * np.eye(16), x - m * mean)
        ours = np.asarray(evaluate(guided, x.reshape(SMALL).astype(np.float32), at)).ravel()
        assert np.abs(ours - expected).max() <= 2e-3 * np.abs(expected).max()


def test_one_variance_is_the_spectrum_of_white_data():
    sde, condition = VESDE(), SMALL_CONDITIONS["inpainting"]
    x, t = jnp.asarray(SMALL_DATA), jnp.array([0.4], jnp.float32)
    flat = np.full((4, 3, 1), 0.7, np.float32)
    guided = [cg.reconstruction_guidance(small_score(sde), sde, condition, power=p, steps=24) for p in (0.7, flat)]
    scores = [evaluate(score_fn, x, t) for score_fn in guided]
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_pinning_alone_is_biased_and_guidance_is_not():
    """The figures of the module's docstring: every other pixel known, 200 steps, 1024 images."""
    sde, count = VESDE(0.01, 5, N=200), 1024
    condition = jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape[1:])), SMALL_CONDITIONS["inpainting"]
    )
    guided = cg.reconstruction_guidance(small_score(sde), sde, condition, power=spectrum()[:, :3], steps=8)
    sampler, unknown = get_pc_sampler(sde, SMALL[1:], "reverse_diffusion", "none"), SMALL_MASK.ravel() == 0
    mean = posterior(SMALL_CONDITIONS["inpainting"], 0.0)[0][unknown]
    errors = []
    for score_fn in (small_score(sde), guided):
        x = run(sampler, image_keys(range(count)), score_fn, condition=condition).x
        found = np.asarray(x, np.float64).reshape(count, 16)[:, unknown].mean(0)
        errors.append(np.sqrt(np.mean(np.square(found - mean))))
    moved = np.sqrt(np.mean(np.square(mean - 0.3)))
    print(f"pinned {errors[0]:.3f}, guided {errors[1]:.3f}, the known pixels move the mean by {moved:.3f}")
    assert errors[0] > 0.035 and errors[1] < 0.025 and 0.09 < moved < 0.1


def test_scale_zero_is_the_score_itself():
    sde, x, t = VESDE(), jnp.asarray(SMALL_DATA), jnp.array([0.4], jnp.float32)
    guided = cg.reconstruction_guidance(small_score(sde), sde, SMALL_CONDITIONS["inpainting"], scale=0.0, steps=24)
    np.testing.assert_allclose(evaluate(guided, x, t), small_score(sde)(x, t), rtol=1e-5)


@pytest.mark.parametrize("pinned", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_guided_samples_are_draws_of_the_posterior(pinned):
    """Gaussian inpainting, 100 steps: mean and variance of p(unknown | known) to Monte-Carlo and step error."""
    sde, count = VESDE(0.01, 5, N=100), 512
    condition = jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape[1:])), SMALL_CONDITIONS["inpainting"]
    )
    guided = cg.reconstruction_guidance(small_score(sde), sde, condition, power=spectrum()[:, :3], steps=8)
    sampler = get_pc_sampler(sde, SMALL[1:], "reverse_diffusion", "none")
    x = run(sampler, image_keys(range(count)), guided, condition=condition if pinned else None).x
    unknown = SMALL_MASK.ravel() == 0
    x = np.asarray(x, np.float64).reshape(count, 16)[:, unknown]
    mean, covariance = (v[unknown] for v in posterior(SMALL_CONDITIONS["inpainting"], 0.0))
    variance = np.diag(covariance[:, unknown])
    error = np.abs(x.mean(0) - mean) / np.sqrt(variance / count)
    assert error.max() < 4.5
    assert np.abs(mean - 0.3).max() > 0.15  # far from the mean without the known pixels: 9 standard errors
    np.testing.assert_allclose(x.var(0).mean(), variance.mean(), rtol=0.12)


# --- classes -----------------------------------------------------------------------------------------------------

CENTRES = np.array([[-1.0, 0.5], [1.5, 0.0], [0.0, -1.0]], np.float32).reshape(3, 1, 1, 2)
CLASS_VARIANCE = 0.09


def exact_logits(x, level):
    """log p(y | x_0 + σ z) of three equal Gaussians, up to a constant."""
    squared = jnp.sum(jnp.square(x[:, None] - jnp.asarray(CENTRES)[None]), axis=(2, 3, 4))
    return -squared / (2 * (CLASS_VARIANCE + jnp.square(level)))[:, None]


LOGITS = jax.tree_util.Partial(exact_logits)


def mixture_score(sde, x, t):
    """Score of the three Gaussians together, from the posterior weights."""
    m, std = sde.mean_scale(t)[:, None], sde.std(t)[:, None]
    weights = jax.nn.softmax(exact_logits(x / m[:, :, None, None], (std / m)[:, 0]), axis=-1)
    mean = jnp.einsum("bk,khwc->bhwc", weights, jnp.asarray(CENTRES))
    return -(x - m[:, :, None, None] * mean) / (m**2 * CLASS_VARIANCE + std**2)[:, :, None, None]


@pytest.mark.parametrize("sde", [VESDE(), VPSDE()], ids=lambda sde: type(sde).__name__)
def test_a_perfect_classifier_gives_the_score_of_the_class(sde):
    labels, t = np.array([0, 1, 2, 1]), jnp.array([0.05, 0.3, 0.6, 1.0], jnp.float32)
    score_fn = jax.tree_util.Partial(mixture_score, sde)
    guided = cg.class_conditional(score_fn, sde, LOGITS, labels, num_classes=3)
    m, std = (np.asarray(v)[:, None, None, None] for v in (sde.mean_scale(t), sde.std(t)))
    x = (m * CENTRES[labels] + std * np.random.default_rng(0).normal(size=(4, 1, 1, 2))).astype(np.float32)
    expected = -(x - m * CENTRES[labels]) / (m**2 * CLASS_VARIANCE + std**2)
    ours = np.asarray(evaluate(guided, jnp.asarray(x), t))
    assert np.all(np.abs(ours - expected).max((1, 2, 3)) <= 1e-3 * np.abs(expected).max((1, 2, 3)))
    twice = cg.class_conditional(score_fn, sde, LOGITS, labels, num_classes=3, scale=2.0)
    plain = np.asarray(evaluate(score_fn, jnp.asarray(x), t))
    np.testing.assert_allclose(evaluate(twice, jnp.asarray(x), t) - plain, 2 * (ours - plain), rtol=1e-3, atol=1e-3)


def test_samples_of_a_class_gather_at_its_centre():
    sde, labels = VESDE(0.01, 10, N=60), np.repeat([0, 1, 2], 64)
    score_fn = jax.tree_util.Partial(mixture_score, sde)
    guided = cg.class_conditional(score_fn, sde, LOGITS, labels, num_classes=3)
    sampler = get_pc_sampler(sde, (1, 1, 2), "reverse_diffusion", "none")
    x = np.asarray(run(sampler, image_keys(range(192)), guided).x).reshape(3, 64, 2)
    assert np.abs(x.mean(1) - CENTRES.reshape(3, 2)).max() < 0.25
    nearest = np.square(x[:, :, None] - CENTRES.reshape(1, 1, 3, 2)).sum(-1).argmin(-1)
    assert (nearest == np.arange(3)[:, None]).mean() > 0.97


# --- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: cg.inpainting(DATA, np.ones((4, 6))), r"mask \(4, 6\) does not match images"),
        (lambda: cg.inpainting(DATA, np.full((6, 4), 0.5)), "1 where a pixel is known"),
        (lambda: cg.inpainting(DATA[0], MASK), r"data must be images \(B, H, W, C\)"),
        (lambda: cg.inpainting((DATA * 255).astype(np.uint8), MASK), "data is uint8"),
        (lambda: cg.inpainting(np.full_like(DATA, np.nan), MASK), "known pixels contain NaN or infinity"),
        (lambda: cg.colorization(DATA[..., :2]), "does not make images of 3 channels"),
        (lambda: cg.colorization(DATA, weights=(0.5, 0.5)), "2 weights"),
        (lambda: cg.colorization(DATA[..., :1], weights=(0.5, 0.5, 0.5)), "sum to 1"),
        (lambda: cg.super_resolution(DATA, 0), "factor=0"),
        (lambda: cg.deblurring(DATA, np.ones((3, 3))), "sum to 1"),
    ],
)
def test_bad_measurements(make, message):
    with pytest.raises(PdsError, match=message):
        make()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 10], "label 10 of image 2 is not one of the classes 0 to 9"),
        ([-1], "label -1 of image 0"),
        ([0.0, 1.0], "whole numbers"),
        ([[0, 1]], "whole numbers"),
    ],
)
def test_bad_labels(labels, message):
    with pytest.raises(PdsError, match=message):
        cg.class_conditional(jax.tree_util.Partial(mixture_score), VESDE(), LOGITS, np.array(labels), num_classes=10)


def test_labels_must_be_as_many_as_images_and_logits_as_classes():
    x, t = jnp.zeros((2, 1, 1, 2), jnp.float32), jnp.full((2,), 0.5, jnp.float32)
    score_fn = jax.tree_util.Partial(mixture_score, VESDE())
    with pytest.raises(PdsError, match="3 labels of 3 classes"):
        cg.class_conditional(score_fn, VESDE(), LOGITS, np.array([0, 1, 2]), num_classes=3)(x, t)
    with pytest.raises(PdsError, match=r"logits \(2, 3\)"):
        cg.class_conditional(score_fn, VESDE(), LOGITS, np.array([0, 1]), num_classes=4)(x, t)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"power": np.ones((4, 4, 1), np.float32)}, r"spectrum \(4, 3, 1\), not \(4, 4, 1\)"),
        ({"power": 0.0}, "positive everywhere"),
        ({"noise_std": -1.0}, "noise_std=-1.0"),
        ({"steps": 0}, "steps=0"),
    ],
)
def test_bad_guidance(options, message):
    with pytest.raises(PdsError, match=message):
        cg.reconstruction_guidance(small_score(VESDE()), VESDE(), SMALL_CONDITIONS["inpainting"], **options)


def test_a_condition_of_other_images_is_refused_by_the_sampler():
    sampler = get_pc_sampler(VESDE(0.01, 5, N=3), (8, 8, 3))
    with pytest.raises(PdsError, match=r"holds images \(2, 6, 4, 3\), the sampler makes \(2, 8, 8, 3\)"):
        sampler.init(image_keys([0, 1]), CONDITIONS["inpainting"])
