import numpy as np
import pytest

from pds_jax.metrics.resize import resize_bilinear, sample_positions
from pds_jax.types import PdsError


@pytest.fixture(scope="module")
def inputs(archive):
    return archive("inception_inputs.npz") | archive("inception_input_331.npz")


def test_tf1_is_the_original_bit_for_bit(inputs, archive):
    recorded = archive("inception_resized.npz")
    for name, images in inputs.items():
        resized = np.asarray(resize_bilinear(images[:2]))
        np.testing.assert_array_equal(resized[:, recorded["rows"]], recorded[f"{name}_rows"])
        np.testing.assert_array_equal(resized[:, :, recorded["cols"]], recorded[f"{name}_cols"])


def test_half_pixel_is_pytorch_fids(inputs, archive):
    recorded = archive("inception_resized.npz")
    for name, images in inputs.items():
        resized = np.asarray(resize_bilinear(images[:2] / np.float32(255), rule="half_pixel"))
        expected = recorded[f"{name}_pytorch_fid"]
        np.testing.assert_allclose(resized[:, recorded["pytorch_fid_rows"]], expected, rtol=0, atol=5e-7)


def test_same_size_is_the_identity():
    images = np.random.default_rng(0).integers(0, 256, (1, 9, 7, 3)).astype(np.uint8)
    for rule in ("tf1", "half_pixel"):
        np.testing.assert_array_equal(np.asarray(resize_bilinear(images, (9, 7), rule)), images)


def test_positions_by_hand():
    low, high, weight = sample_positions(2, 4, "tf1")
    assert (low.tolist(), high.tolist(), weight.tolist()) == ([0, 0, 1, 1], [1, 1, 1, 1], [0.0, 0.5, 0.0, 0.5])
    low, high, weight = sample_positions(2, 4, "half_pixel")
    assert (low.tolist(), high.tolist(), weight.tolist()) == ([0, 0, 0, 1], [1, 1, 1, 1], [0.0, 0.25, 0.75, 0.25])


def test_bad_input_is_named():
    with pytest.raises(PdsError, match="unknown resize rule 'bicubic'; known: "):
        resize_bilinear(np.zeros((1, 2, 2, 3), np.uint8), rule="bicubic")
    with pytest.raises(PdsError, match=r"expected \(B, H, W, C\)"):
        resize_bilinear(np.zeros((2, 2, 3), np.uint8))
