"""The noise-conditional classifier: a NumPy derivation of the whole network, names, invariances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recorded_networks import fast_jit, random_params, shapes
from scipy.signal import correlate

from pds_jax.models.wideresnet_noise_conditional import WideResnet
from pds_jax.types import PdsError

MODULE = WideResnet(blocks_per_group=2, channel_multiplier=1, num_outputs=3)


@pytest.fixture(scope="module")
def case():
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    sigmas = jnp.asarray([0.1, 3.0])
    params = random_params(MODULE, x, sigmas, scale=0.3)
    run = fast_jit(lambda x, s: MODULE.apply({"params": params}, x, s))
    return params, np.asarray(x), np.asarray(sigmas), run


def conv(x, kernel, stride=1):
    """3x3 correlation with XLA's SAME padding: even sizes with stride 2 are padded at the end only."""
    before, after = (1, 1) if stride == 1 else (0, 1)
    x = np.pad(x, [(0, 0), (before, after), (before, after), (0, 0)])
    out = [sum(correlate(image[:, :, c], kernel[:, :, c, d], "valid") for c in range(image.shape[-1]))
           for image in x for d in range(kernel.shape[-1])]  # fmt: skip
    out = np.stack(out).reshape(x.shape[0], kernel.shape[-1], *out[0].shape).transpose(0, 2, 3, 1)
    return out[:, ::stride, ::stride]


def norm_relu(x, p):
    b, h, w, c = x.shape
    g = x.reshape(b, h * w, c // 4, 4)
    g = (g - g.mean(axis=(1, 3), keepdims=True)) / np.sqrt(g.var(axis=(1, 3), keepdims=True) + 1e-5)
    return np.maximum(g.reshape(x.shape) * p["scale"] + p["bias"], 0)


def dense(x, p):
    return x @ p["kernel"] + p["bias"]


def swish(x):
    return x / (1 + np.exp(-x))


def network(p, x, sigmas):
    """The classifier in float64, written from its description."""
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), p)
    x = x - x.mean(axis=(1, 2, 3), keepdims=True)
    x = x / x.std(axis=(1, 2, 3), keepdims=True)
    angles = np.log(sigmas)[:, None] * p["GaussianFourierProjection_0"]["W"] * 2 * np.pi
    temb = dense(np.concatenate([np.sin(angles), np.cos(angles)], axis=1), p["Dense_0"])
    temb = swish(dense(swish(temb), p["Dense_1"]))
    h = conv(x, p["init_conv"]["kernel"])
    for group, channels in enumerate((16, 32, 64)):
        for i in range(2):
            b = p[f"WideResnetGroup_{group}"][f"WideResnetBlock_{i}"]
            grows = group > 0 and i == 0
            activated = norm_relu(h, b["init_bn"])
            residual = activated if group == 0 and i == 0 else h
            h = conv(activated, b["conv1"]["kernel"], 2 if grows else 1)
            h = h + dense(temb, b["Dense_0"])[:, None, None]
            h = conv(norm_relu(h, b["bn_2"]), b["conv2"]["kernel"])
            if grows:
                n, rows, cols, c = residual.shape
                residual = residual.reshape(n, rows // 2, 2, cols // 2, 2, c).mean(axis=(2, 4))
                residual = np.pad(residual, [(0, 0)] * 3 + [(0, channels - c)])
            h = h + residual
    return dense(norm_relu(h, p["pre-pool-bn"]).mean(axis=(1, 2)), p["Dense_2"])


def test_logits_are_those_of_the_formulas(case):
    params, x, sigmas, run = case
    want = network(params, x.astype(np.float64), sigmas)
    np.testing.assert_allclose(run(x, sigmas), want, atol=2e-4 * np.abs(want).max())


def test_logits_do_not_see_brightness_or_contrast(case):
    _, x, sigmas, run = case
    logits = run(x, sigmas)
    np.testing.assert_allclose(run(np.float32(3) * x + np.float32(2), sigmas), logits, atol=1e-3 * np.abs(logits).max())
    assert np.abs(run(x, sigmas[::-1]) - logits).max() > 1e-2


def test_names_are_score_sdes(case):
    params, _, _, _ = case
    tree = shapes(params)
    assert set(params) == {
        "GaussianFourierProjection_0", "Dense_0", "Dense_1", "Dense_2", "init_conv", "pre-pool-bn",
        "WideResnetGroup_0", "WideResnetGroup_1", "WideResnetGroup_2",
    }  # fmt: skip
    assert set(params["WideResnetGroup_1"]["WideResnetBlock_0"]) == {"init_bn", "conv1", "Dense_0", "bn_2", "conv2"}
    assert tree["WideResnetGroup_1/WideResnetBlock_0/conv1/kernel"] == (3, 3, 16, 32)
    assert not any(path.endswith(("conv1/bias", "conv2/bias", "init_conv/bias")) for path in tree)


def test_initialisation():
    x = jnp.zeros((1, 8, 8, 3))

    def init(key):
        params = MODULE.init(key, x, jnp.ones(1))["params"]
        return params["WideResnetGroup_2"]["WideResnetBlock_1"]["conv2"]["kernel"], params["Dense_2"]["kernel"]

    kernel, head = fast_jit(init)(jax.random.key(0))
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (9 * 64)), rtol=0.02)
    assert 0.9 / np.sqrt(3) < np.abs(head).max() <= 1 / np.sqrt(3)


def test_a_constant_image_gives_finite_logits(case):
    _, x, sigmas, run = case
    assert np.isfinite(run(np.full_like(x, 0.5), sigmas)).all()


def test_images_that_do_not_divide_are_refused(case):
    params, x, sigmas, _ = case
    with pytest.raises(PdsError, match="multiples of 4"):
        MODULE.apply({"params": params}, x[:, :6], sigmas)
