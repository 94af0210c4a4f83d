"""The simple metrics against closed forms: known spectra, shifted and scaled Gaussians, themselves."""

import numpy as np
import pytest

from pds_jax.metrics import simple
from pds_jax.types import PdsError


def noise(count, shape=(8, 6, 3), seed=0, scale=1.0):
    return scale * np.random.default_rng(seed).standard_normal((count, *shape))


def test_power_of_white_noise_is_its_variance():
    power = simple.power_spectrum(noise(3000, scale=0.5))
    assert power.shape == (8, 4, 3)
    np.testing.assert_allclose(power, 0.25, rtol=0.15)
    np.testing.assert_allclose(simple.radial_spectrum(power, 6), 0.25, rtol=0.05)


def test_power_ignores_the_mean_and_uses_the_dft():
    x = noise(50)
    np.testing.assert_allclose(simple.power_spectrum(x + 7), simple.power_spectrum(x), rtol=1e-9)
    full = np.mean(np.abs(np.fft.fft2(x - x.mean(0), axes=(1, 2))) ** 2, axis=0) / 48
    np.testing.assert_allclose(simple.power_spectrum(x), full[:, :4], rtol=1e-9)


@pytest.mark.parametrize("width", [6, 7])
def test_rings_weigh_the_full_plane(width):
    power = np.random.default_rng(0).random((8, width, 1))
    power = (power + np.roll(power[::-1, ::-1], (1, 1), (0, 1))) / 2
    k = np.hypot(np.fft.fftfreq(8)[:, None], np.fft.fftfreq(width)[None])
    rings = np.round(k * min(8, width)).astype(int)
    expected = [power[..., 0][rings == j].mean() for j in np.unique(rings)]
    np.testing.assert_allclose(simple.radial_spectrum(power[:, : width // 2 + 1], width), expected, rtol=1e-12)


def test_spectrum_error_of_scaled_images_is_the_log_of_the_factor():
    x = noise(20)
    assert simple.spectrum_error(x, x) == 0
    assert simple.spectrum_error(x * np.exp(0.15), x) == pytest.approx(0.3, rel=1e-9)
    assert simple.spectrum_error(x * np.exp(0.15), simple.power_spectrum(x)) == pytest.approx(0.3, rel=1e-9)
    assert simple.spectrum_error(x * 0, x) > 10


@pytest.mark.parametrize(("n", "m"), [(30, 20), (19, 30), (7, 1), (12, 4)])
def test_sliced_wasserstein_of_sets_of_two_sizes_is_that_of_their_repetitions(n, m):
    """Repeating every image changes no law, and makes the sizes equal."""
    rng = np.random.default_rng(0)
    x, y = rng.random((n, 4, 3, 1)), rng.random((m, 4, 3, 1)) * 1.2
    expected = simple.sliced_wasserstein(np.repeat(x, m, axis=0), np.repeat(y, n, axis=0))
    assert simple.sliced_wasserstein(x, y) == pytest.approx(expected, rel=1e-12)


def test_sliced_wasserstein_of_a_shift():
    x = noise(400)
    assert simple.sliced_wasserstein(x, x[::-1]) == pytest.approx(0, abs=1e-12)
    shift = simple.sliced_wasserstein(x + 3, x, projections=2000)
    assert shift == pytest.approx(3, rel=0.05)  # mean (θ·1)² is 1 for unit θ
    doubled = simple.sliced_wasserstein(np.concatenate([x, x]), x)
    assert doubled == pytest.approx(0, abs=1e-12)
    few, many = (simple.sliced_wasserstein(noise(n), noise(n, seed=1)) for n in (400, 4000))
    assert few > many > 0


def test_patch_pca_frechet():
    x = noise(3000, (4, 4, 1))
    assert simple.patch_pca_frechet(x, x) == pytest.approx(0, abs=1e-9)
    assert simple.patch_pca_frechet(x + 0.5, x) == pytest.approx(16 * 0.25, rel=1e-6)
    assert simple.patch_pca_frechet(2 * x - x.mean(0), x) == pytest.approx(16, rel=0.1)
    line = np.linspace(0, 1, 500)[:, None, None, None] * np.ones((1, 4, 4, 1))
    assert simple.patch_pca_frechet(line + 0.1, line, dims=1) == pytest.approx(16 * 0.01, rel=1e-6)


def test_components_of_fewer_images_than_pixels_are_those_of_their_covariance():
    """Images at the mean add nothing to the covariance, but make the images outnumber the pixels."""
    x = noise(12, (4, 4, 1))
    centred = x - x.mean(0)
    many = np.concatenate([centred, np.zeros((8, 4, 4, 1))])
    few, covariance = simple.PatchPCA.fit(centred, 5).basis, simple.PatchPCA.fit(many, 5).basis
    assert few.shape == covariance.shape == (16, 5)
    np.testing.assert_allclose(few.T @ few, np.eye(5), atol=1e-9)
    np.testing.assert_allclose(few @ few.T, covariance @ covariance.T, atol=1e-9)


@pytest.mark.parametrize("different", [1, 3])
def test_equal_images_span_as_many_components_as_differ(different):
    x = np.repeat(noise(different, (8, 8, 1)), 6, axis=0)
    pca = simple.PatchPCA.fit(x, 5)
    coordinates = pca.features(x)
    assert np.linalg.matrix_rank(pca.basis) == different - 1 and coordinates.shape == (6 * different, 5)
    assert simple.patch_pca_frechet(x, x, 5) == pytest.approx(0, abs=1e-9)


def test_random_features_are_fixed_and_independent_of_the_batch():
    x = np.random.default_rng(0).random((300, 8, 8, 3))
    features = simple.random_conv_features(x)
    assert features.shape == (300, 64) and (features >= 0).all() and features.std() > 0.01
    np.testing.assert_allclose(simple.random_conv_features(x[250:]), features[250:], rtol=1e-5)
    assert simple.random_conv_frechet(x, x) == pytest.approx(0, abs=1e-9)
    large = np.tile(x[:5], (1, 160, 160, 1))  # in several blocks
    np.testing.assert_allclose(
        simple.random_conv_features(large)[3:], simple.random_conv_features(large[3:]), rtol=1e-5
    )
    near, far = (simple.random_conv_frechet(np.clip(x + a, 0, 1), x) for a in (0.02, 0.2))
    assert 0 < near < far
    assert simple.frechet_of_features(features, features) == pytest.approx(0, abs=1e-9)


def test_bad_input():
    x = noise(10)
    for metric in (simple.spectrum_error, simple.sliced_wasserstein, simple.patch_pca_frechet):
        with pytest.raises(PdsError, match="cannot be compared"):
            metric(x, noise(10, (8, 8, 3)))
        with pytest.raises(PdsError, match="image 4 holds NaN"):
            metric(np.where(np.arange(10)[:, None, None, None] == 4, np.nan, x), x)
        with pytest.raises(PdsError, match="expected"):
            metric(x[0], x)
    with pytest.raises(PdsError, match="cannot be compared"):
        simple.spectrum_error(noise(10, (8, 7, 3)), x)


@pytest.mark.parametrize("size", [8, 100])
def test_distance_from_sees_layout_texture_and_spectrum(size):
    generator = np.random.default_rng(0)
    x = generator.uniform(0.3, 0.7, size=(80, size, size, 1)).astype(np.float32)
    bright = x + generator.uniform(-0.2, 0.2, size=(80, 1, 1, 1)).astype(np.float32)  # the same texture
    checks = np.indices((size, size)).sum(axis=0)[:, :, None] % 2 - 0.5  # the same mean of every two pixels
    distance = simple.distance_from(x[:40])
    near = distance(x[40:])
    assert distance(x[:40]) == pytest.approx(0, abs=1e-8)
    for strength in (0.5, 1.0):
        weak, strong = (distance(x[40:] + part * strength * 0.4 * checks) for part in (0.5, 1.0))
        assert near < weak < strong
    assert distance(bright[40:]) > 2 * near
    with pytest.raises(PdsError, match="cannot be compared"):
        distance(x[:, :4])
    with pytest.raises(PdsError, match="NaN"):
        simple.distance_from(x * np.nan)
