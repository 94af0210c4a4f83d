"""Array operations against numpy, and transforms in parts."""

import jax.numpy as jnp
import numpy as np
import pytest

from pds_jax import ops


@pytest.fixture(params=[(8, 8), (6, 10), (5, 7)])
def images(request) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((5, *request.param, 3)).astype(np.float32)


def test_batch_mul_and_norms(images):
    a = np.arange(5, dtype=np.float32)
    np.testing.assert_array_equal(ops.batch_mul(jnp.asarray(a), jnp.asarray(images)), a[:, None, None, None] * images)
    expected = np.linalg.norm(images.reshape(5, -1).astype(np.float64), axis=1)
    np.testing.assert_allclose(ops.norms(jnp.asarray(images)), expected, rtol=1e-6)


def test_transforms_are_numpys(images):
    spectrum = ops.rfft2(jnp.asarray(images))
    assert spectrum.dtype == jnp.complex64
    np.testing.assert_allclose(spectrum, np.fft.rfft2(images.astype(np.float64), axes=(1, 2)), atol=2e-5)
    back = ops.irfft2(spectrum, images.shape[1:3])
    assert back.dtype == jnp.float32
    np.testing.assert_allclose(back, images, atol=2e-6)


def test_a_batch_too_large_for_one_plan_is_transformed_in_parts(images, monkeypatch):
    whole = ops.rfft2(jnp.asarray(images))
    back = ops.irfft2(whole, images.shape[1:3])
    monkeypatch.setattr(ops, "FFT_BYTES", 2 * 8 * images[0].size)  # two images at once, the last alone
    # Equal to rounding: since JAX 0.12 the last bits of a transform depend on how many it is made with.
    np.testing.assert_allclose(ops.rfft2(jnp.asarray(images)), whole, atol=5e-6)
    np.testing.assert_allclose(ops.irfft2(whole, images.shape[1:3]), back, atol=1e-6)
    monkeypatch.setattr(ops, "FFT_BYTES", 1)  # never less than one
    np.testing.assert_allclose(ops.rfft2(jnp.asarray(images)), whole, atol=5e-6)
