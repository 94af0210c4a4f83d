import jax
import numpy as np
import pytest

from configs import digits
from pds_jax.batches import finish_of
from pds_jax.data import datasets
from pds_jax.io import files, images
from pds_jax.types import PdsError


def test_the_uint8_rule_clips_and_floors():
    x = np.array([-0.1, 0.0, 0.5, 0.999, 1.0, 1.2]).reshape(1, 6, 1)
    assert images.to_uint8(x).ravel().tolist() == [0, 0, 127, 254, 255, 255]


@pytest.mark.parametrize("centered", [False, True])
def test_devices_make_the_same_bytes(centered):
    """Also just below and at every step from one byte to the next."""
    edges = np.arange(-2, 259, dtype=np.float32) / 255
    x = np.stack([np.nextafter(edges, -9), edges, np.nextafter(edges, 9)]).reshape(1, 3, -1, 1)
    x = np.concatenate([x, np.random.default_rng(0).uniform(-0.1, 1.1, x.shape).astype(np.float32)])
    scaled = 2 * x - 1 if centered else x
    config = digits.get_config()
    config.data.centered = centered
    unscale = datasets.get_data_inverse_scaler(config)
    found, finite = jax.jit(lambda x: images.to_uint8_on_device(unscale(x)))(scaled)
    assert found.dtype == np.uint8 and finite.all()
    np.testing.assert_array_equal(found, images.to_uint8(unscale(scaled)))


def test_devices_say_which_image_is_not_finite():
    x = np.zeros((3, 2, 2, 1), np.float32)
    x[1, 1, 0, 0] = np.inf
    assert np.asarray(images.to_uint8_on_device(x)[1]).tolist() == [True, False, True]


def test_nan_is_never_written():
    with pytest.raises(PdsError, match="NaN"):
        images.to_uint8(np.full((2, 2, 1), np.nan))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_png_round_trip(tmp_path, channels):
    image = np.random.default_rng(0).integers(0, 256, (5, 7, channels), dtype=np.uint8)
    images.save_png(tmp_path / "a.png", image)
    np.testing.assert_array_equal(images.load_png(tmp_path / "a.png"), image)


def test_two_channels_are_refused(tmp_path):
    with pytest.raises(PdsError, match="npz"):
        images.save_png(tmp_path / "a.png", np.zeros((4, 4, 2)))


def test_grid_places_every_image():
    pixels = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1) * np.ones((5, 3, 4, 1), np.uint8)
    canvas = images.grid(pixels, columns=3, pad=1)
    assert canvas.shape == (2 * 4 + 1, 3 * 5 + 1, 1)
    for index in range(5):
        assert canvas[1 + 4 * (index // 3), 1 + 5 * (index % 3), 0] == index


def test_a_broken_png_is_named(tmp_path):
    (tmp_path / "b.png").write_bytes(b"\x89PNG\r\n\x1a\nrest")
    with pytest.raises(PdsError, match="b.png"):
        images.load_png(tmp_path / "b.png")


@pytest.mark.parametrize(
    ("shape", "value_range", "suffix", "dtype"),
    [
        ((6, 4, 1), None, ".png", np.uint8),
        ((6, 4, 3), None, ".png", np.uint8),
        ((6, 4, 2), None, ".npy", np.uint8),
        ((6, 4, 4), None, ".npy", np.uint8),
        ((6, 4, 3), (-1.0, 3.0), ".npy", np.float32),
    ],
)
def test_a_format_that_holds_the_images_is_chosen_beforehand(tmp_path, shape, value_range, suffix, dtype):
    made = images.ImageFormat.of(shape, value_range)
    image = np.random.default_rng(0).random(shape).astype(np.float32)
    image = image * 4 - 1 if value_range else images.to_uint8(image)
    digest = made.save(tmp_path, 1042, image)
    path = tmp_path / "001" / f"001042{suffix}"
    assert files.sha256(path) == digest and path.stat().st_size <= made.size(shape) + 1024
    found = made.load(tmp_path, 1042)
    np.testing.assert_array_equal(found, image)
    assert found.dtype == dtype and made.describe().get("range") == (None if value_range is None else [-1.0, 3.0])


def test_channels_that_cannot_be_shown_stand_side_by_side():
    x = np.arange(2 * 3 * 4 * 2, dtype=np.uint8).reshape(2, 3, 4, 2)
    shown = images.visible(x)
    assert shown.shape == (2, 3, 8, 1)
    np.testing.assert_array_equal(shown[..., :4, 0], x[..., 0])
    np.testing.assert_array_equal(shown[..., 4:, 0], x[..., 1])
    assert images.visible(x[..., :1]).shape == (2, 3, 4, 1)
    np.testing.assert_array_equal(images.visible(np.array([[[[-1.0], [3.0]]]]), (-1.0, 3.0)).ravel(), [0, 255])


def test_devices_make_floats_of_a_declared_range():
    finish = finish_of(lambda x: (x + 1) / 2, (-3.0, 5.0))
    x = np.array([-2.0, -1.0, 0.0, 1.0, np.nan], np.float32).reshape(5, 1, 1, 1)
    found, finite = jax.jit(finish)(x)
    assert np.asarray(found).ravel()[:4].tolist() == [-3.0, -3.0, 1.0, 5.0] and found.dtype == np.float32
    assert np.asarray(finite).tolist() == [True, True, True, True, False]
