"""Measurements: adjoints, pseudo-inverses, what a merge keeps, the solver, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pds_jax import operators
from pds_jax.types import PdsError

SHAPE = (2, 6, 4, 3)
RNG = np.random.default_rng(0)
KERNEL = np.array([[0.0, 0.1, 0.0], [0.2, 0.5, 0.05], [0.0, 0.15, 0.0]])
OPERATORS = {
    "pixels": operators.pixels(RNG.random((6, 4)) < 0.5, SHAPE),
    "gray": operators.gray((1 / 3,) * 3, 2),
    "rec601": operators.gray(operators.REC601, 2),
    "block_mean": operators.block_mean(2),
    "blur": operators.blur(KERNEL, SHAPE, threshold=0.3),
}


def images(seed):
    return jax.random.normal(jax.random.key(seed), SHAPE, jnp.float32)


@pytest.mark.parametrize("name", OPERATORS)
def test_transpose_is_the_adjoint(name):
    a, x = OPERATORS[name], images(0)
    y = jax.random.normal(jax.random.key(1), a.forward(x).shape, jnp.float32)
    np.testing.assert_allclose(jnp.sum(a.forward(x) * y), jnp.sum(x * a.transpose(y)), rtol=1e-4)


@pytest.mark.parametrize("name", OPERATORS)
def test_projector_is_orthogonal_and_comes_from_the_pseudo_inverse(name):
    a, x, other = OPERATORS[name], images(0), images(1)
    projected = a.project(x)
    np.testing.assert_allclose(a.project(projected), projected, atol=1e-5)
    np.testing.assert_allclose(jnp.sum(projected * other), jnp.sum(x * a.project(other)), rtol=1e-3)
    np.testing.assert_allclose(a.pinv(a.forward(x)), projected, atol=1e-5)


@pytest.mark.parametrize("name", OPERATORS)
def test_merged_images_have_the_known_part_and_their_own_rest(name):
    a, x, known = OPERATORS[name], images(0), OPERATORS[name].project(images(1))
    merged = a.merge(x, known)
    np.testing.assert_allclose(a.project(merged), known, atol=1e-5)
    np.testing.assert_allclose(merged - a.project(merged), x - a.project(x), atol=1e-5)
    assert np.abs(merged - x).max() > 0.1


def test_known_pixels_are_merged_bit_for_bit_whatever_stands_elsewhere():
    a = OPERATORS["pixels"]
    data = jnp.where(a.mask > 0, images(1), jnp.nan)
    merged = a.merge(images(0), a.forward(data))
    np.testing.assert_array_equal(np.where(a.mask > 0, merged, 0), np.where(a.mask > 0, data, 0))
    assert np.all(np.isfinite(merged))


def test_formulas():
    x = np.asarray(images(0))
    np.testing.assert_allclose(OPERATORS["gray"].forward(x)[..., 0], x.mean(-1), atol=1e-6)
    np.testing.assert_allclose(OPERATORS["rec601"].forward(x)[..., 0], x @ np.array(operators.REC601), atol=1e-6)
    np.testing.assert_allclose(OPERATORS["block_mean"].forward(x)[:, 1, 0], x[:, 2:4, 0:2].mean((1, 2)), atol=1e-6)
    direct = sum(
        KERNEL[i, j] * np.roll(x, (i - 1, j - 1), (1, 2)) for i in range(3) for j in range(3)
    )  # fmt: skip
    np.testing.assert_allclose(OPERATORS["blur"].forward(x), direct, atol=1e-5)
    assert 0 < np.asarray(OPERATORS["blur"].passed).mean() < 1


def test_gaussian_kernel():
    kernel = operators.gaussian_kernel(1.5)
    assert kernel.shape == (11, 11)
    np.testing.assert_allclose(kernel.sum(), 1.0)
    offsets = np.arange(-5, 6)
    np.testing.assert_allclose((kernel.sum(0) * offsets**2).sum(), 1.5**2, rtol=0.05)
    with pytest.raises(PdsError, match="sigma=0"):
        operators.gaussian_kernel(0)


def test_conjugate_gradients_solve_each_sample_and_stay_at_the_solution():
    roots = np.random.default_rng(1).normal(size=(3, 5, 5)).astype(np.float32)
    matrices = jnp.asarray(roots @ roots.transpose(0, 2, 1) + 0.5 * np.eye(5, dtype=np.float32))
    b = jnp.asarray(np.random.default_rng(2).normal(size=(3, 5)).astype(np.float32)).at[1].set(0.0)
    v = operators.conjugate_gradients(lambda v: jnp.einsum("bij,bj->bi", matrices, v), b, 40)
    np.testing.assert_allclose(v, np.linalg.solve(matrices, np.asarray(b)[..., None])[..., 0], atol=1e-4)
    np.testing.assert_array_equal(v[1], 0.0)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.ones((5, 4)), r"mask \(5, 4\) does not match images .* \(2, 6, 4, 3\)"),
        (np.ones((6, 4, 2)), "does not match"),
        (np.ones((3, 6, 4, 1)), "does not match"),
        (np.ones(4), "does not match"),
        (np.full((6, 4), 0.5), "0.5"),
        (np.array([[0, 255] * 2] * 6, np.uint8), "255"),
        (np.full((6, 4), np.nan), "threshold it first"),
    ],
)
def test_bad_masks(mask, message):
    with pytest.raises(PdsError, match=message):
        operators.pixels(mask, SHAPE)


@pytest.mark.parametrize("mask_shape", [(6, 4), (6, 4, 1), (6, 4, 3), (1, 6, 4, 1), (2, 6, 4, 3)])
def test_good_masks(mask_shape):
    mask = np.zeros(mask_shape, bool)
    mask[..., 0 if len(mask_shape) == 2 else slice(None)] = True
    assert operators.pixels(mask, SHAPE).mask.shape == SHAPE


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: operators.gray((0.5, 0.4, 0.4), 1), "sum to 1"),
        (lambda: operators.block_mean(1), "factor=1"),
        (lambda: operators.block_mean(2.5), "factor=2.5"),
        (lambda: operators.blur(np.ones((2, 3)) / 6, SHAPE), "odd sides"),
        (lambda: operators.blur(np.ones((7, 7)) / 49, SHAPE), "larger than the images"),
        (lambda: operators.blur(np.ones((3, 3)), SHAPE), "sums to 9"),
        (lambda: operators.blur(np.ones((3, 3)) / 9, SHAPE, threshold=1.0), "threshold=1.0"),
    ],
)
def test_bad_options(make, message):
    with pytest.raises(PdsError, match=message):
        make()
