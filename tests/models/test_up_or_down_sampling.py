"""FIR resampling against its definition and against recorded numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pds_jax.models import up_or_down_sampling as r
from pds_jax.types import PdsError

KERNELS = {"k1331": (1, 3, 3, 1), "kNone": None, "k124": (1, 2, 4)}


def upfirdn_definition(x, taps, up, down, pad):
    """Zero insertion, padding (or cropping), convolution, decimation of a 1-D signal, in float64."""
    stuffed = np.zeros(len(x) * up)
    stuffed[::up] = x
    before, after = pad
    padded = np.pad(stuffed, (max(before, 0), max(after, 0)))
    padded = padded[max(-before, 0) : len(padded) - max(-after, 0)]
    return np.convolve(padded, taps, mode="valid")[::down]


@pytest.mark.parametrize(
    ("up", "down", "pad", "taps"),
    [
        (1, 1, (1, 1), [1.0, 2.0, 4.0]),
        (2, 1, (2, 1), [1.0, 3.0, 3.0, 1.0]),
        (1, 2, (1, 1), [1.0, 3.0, 3.0, 1.0]),
        (3, 1, (2, 0), [1.0, -2.0, 0.5]),
        (1, 3, (0, 4), [2.0, 1.0]),
        (3, 2, (3, 2), [1.0, 2.0, 3.0, 4.0, 5.0]),
        (2, 1, (-1, 2), [1.0, 2.0]),
        (4, 1, (0, 3), [1.0]),
    ],
)
def test_upfirdn1d_is_its_definition(rng, up, down, pad, taps):
    x = rng.standard_normal((2, 7))
    got = r.upfirdn1d(jnp.asarray(x, jnp.float32), np.array(taps), 1, up, down, pad)
    want = np.stack([upfirdn_definition(row, taps, up, down, pad) for row in x])
    np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("k", sorted(KERNELS))
@pytest.mark.parametrize("name", ["upsample_2d", "downsample_2d"])
def test_resampling_is_score_sdes(golden, name, k):
    with np.load(golden / "score_sde/units.npz") as z:
        got = getattr(r, name)(jnp.asarray(z["x"]), KERNELS[k])
        np.testing.assert_allclose(got, z[f"{name}.{k}"], atol=1e-6)


@pytest.mark.parametrize("k", ["k1331", "kNone"])
@pytest.mark.parametrize("name", ["upsample_conv_2d", "conv_downsample_2d"])
def test_resampling_convolution_is_score_sdes(golden, name, k):
    with np.load(golden / "score_sde/units.npz") as z:
        got = getattr(r, name)(jnp.asarray(z["x"]), jnp.asarray(z["w"]), KERNELS[k])
        np.testing.assert_allclose(got, z[f"{name}.{k}"], atol=2e-6 * np.abs(got).max())


@pytest.mark.parametrize("name", ["naive_upsample_2d", "naive_downsample_2d"])
def test_naive_resampling_is_score_sdes(golden, name):
    with np.load(golden / "score_sde/units.npz") as z:
        np.testing.assert_allclose(getattr(r, name)(jnp.asarray(z["x"])), z[name], atol=1e-6)


@pytest.mark.parametrize("name", ["upsample_2d", "downsample_2d"])
@pytest.mark.parametrize("rect", ["", "_rect"])
def test_resampling_is_the_torch_codes(golden, name, rect):
    with np.load(golden / "torch/models/layers.npz") as z:
        got = getattr(r, name)(jnp.asarray(z[f"x{rect}"].transpose(0, 2, 3, 1)), (1, 3, 3, 1))
        np.testing.assert_allclose(got, z[f"{name}{rect}"].transpose(0, 2, 3, 1), atol=1e-6)


def test_resampling_convolution_is_the_torch_codes(golden):
    with np.load(golden / "torch/models/layers.npz") as z:
        x, w = jnp.asarray(z["x"].transpose(0, 2, 3, 1)), jnp.asarray(z["w"].transpose(2, 3, 1, 0))
        got = r.conv_downsample_2d(x, w, (1, 3, 3, 1))
        np.testing.assert_allclose(got, z["conv_downsample_2d"].transpose(0, 2, 3, 1), atol=1e-6)


def test_upsampling_is_four_times_the_transpose_of_downsampling(rng):
    x = jnp.asarray(rng.standard_normal((1, 4, 6, 2)), jnp.float32)
    g = jnp.asarray(rng.standard_normal((1, 8, 12, 2)), jnp.float32)
    up, down = r.upsample_2d(x, (1, 3, 3, 1)), r.downsample_2d(g, (1, 3, 3, 1))
    np.testing.assert_allclose(jnp.vdot(up, g), 4 * jnp.vdot(x, down), rtol=1e-5)


def test_the_compute_dtype_is_kept():
    x = jnp.ones((1, 4, 4, 1), jnp.bfloat16)
    assert r.upsample_2d(x, (1, 3, 3, 1)).dtype == r.downsample_2d(x, (1, 3, 3, 1)).dtype == jnp.bfloat16


def test_no_zero_is_stored_when_upsampling():
    """The polyphase form: no intermediate array of the zero-stuffed, padded size."""
    hlo = jax.jit(lambda x: r.upsample_2d(x, (1, 3, 3, 1))).lower(jnp.ones((1, 8, 8, 1))).as_text()
    assert "interior" not in hlo or "interior = [0, 0, 0, 0]" in hlo


@pytest.mark.parametrize("kernel", [(), (1, -1), (1, float("nan")), ((1, 2), (2, 1))])
def test_bad_kernels_are_refused(kernel):
    with pytest.raises(PdsError, match="fir_kernel"):
        r.upsample_2d(jnp.ones((1, 4, 4, 1)), kernel)
