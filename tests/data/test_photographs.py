"""Crops of photographs: what decides them, which part they may see, what is said when a package is missing."""

import hashlib

import numpy as np
import pytest
from PIL import Image

from pds_jax.data import photographs
from pds_jax.types import PdsError


@pytest.fixture(scope="module")
def pictures():
    return photographs.read(photographs.PHOTOS, "photos")


def test_crops_depend_on_seed_and_index_alone(pictures):
    crops = photographs.PhotoCrops(pictures, 16)
    whole = crops.images(np.arange(40))
    np.testing.assert_array_equal(whole[[31, 7]], crops.images(np.array([31, 7])))
    again = photographs.PhotoCrops(pictures, 16)
    np.testing.assert_array_equal(whole, again.images(np.arange(40)))
    assert not np.array_equal(whole, photographs.PhotoCrops(pictures, 16, seed=7).images(np.arange(40)))
    assert whole.shape == (40, 16, 16, 3) and whole.dtype == np.float32 and 0 <= whole.min() and whole.max() <= 1


def test_training_crops_never_see_the_right_quarter(pictures):
    marked = [photo.copy() for photo in pictures]
    for photo in marked:
        photo[:, int(0.75 * photo.shape[1]) :] = 255 - photo[:, int(0.75 * photo.shape[1]) :]
    train = [photographs.PhotoCrops(p, 16).images(np.arange(64)) for p in (pictures, marked)]
    test = [photographs.PhotoCrops(p, 16, "test").images(np.arange(64)) for p in (pictures, marked)]
    np.testing.assert_array_equal(train[0], train[1])
    assert np.mean(test[0] != test[1]) > 0.9


def test_a_crop_is_the_mean_of_boxes():
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 256, (70, 100, 3), dtype=np.uint8)
    crops = photographs.PhotoCrops([photo], 16).images(np.arange(6))
    found = 0
    for crop in crops:
        for box in (2, 3, 4):
            for candidate in (crop, crop[:, ::-1]):
                found += _occurs(photo[:, :75], candidate, box)
    assert found >= 6


def _occurs(photo, crop, box):
    height, width = photo.shape[:2]
    first = np.array([[photo[y : y + box, x : x + box, 0].mean() / 255 for x in range(width - 16 * box + 1)]
                      for y in range(height - 16 * box + 1)])  # fmt: skip
    for y, x in np.argwhere(np.abs(first - crop[0, 0, 0]) < 1e-6):
        tile = photo[y : y + 16 * box, x : x + 16 * box].reshape(16, box, 16, box, 3).mean(axis=(1, 3)) / 255
        if np.abs(tile - crop).max() < 1e-6:
            return True
    return False


def test_photographs_too_small_are_refused():
    with pytest.raises(PdsError, match="pixels"):
        photographs.PhotoCrops([np.zeros((20, 60, 3), np.uint8)], 16)


def test_crops_of_photos_are_those_that_the_shipped_model_was_trained_on():
    digests = {
        split: hashlib.sha256(photographs.photos(split, 16).images(np.arange(3000)).tobytes()).hexdigest()[:16]
        for split in ("train", "test")
    }
    assert digests == {"train": "1798100ed7e7b566", "test": "a93476672831e229"}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with a gray picture for each file of the two Debian packages, wide as the narrowest of them."""
    folder = tmp_path_factory.mktemp("root")
    for level, photo in enumerate(p for p in photographs.LANDSCAPES if p.file.startswith("usr/")):
        path = folder / photo.file
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (1280, 800), (5 * level,) * 3).save(path)
    return folder


def test_landscapes_come_from_every_photograph_and_say_from_which(root, monkeypatch):
    monkeypatch.setenv(photographs.ROOT_VARIABLE, str(root))
    crops = photographs.landscapes("train", 64)
    indices = np.arange(400)
    images, which = crops.images(indices), crops.photograph(indices)
    assert crops.shape == (64, 64, 3) and crops.name == "landscapes-train"
    assert set(which) == set(range(len(photographs.LANDSCAPES)))
    gray = which < 23
    levels = 5 * which[gray] / 255
    np.testing.assert_allclose(np.ptp(images[gray] - levels[:, None, None, None]), 0, atol=4 / 255)


def test_labelled_landscapes_are_the_crops_in_bytes(root, monkeypatch):
    monkeypatch.setenv(photographs.ROOT_VARIABLE, str(root))
    images, labels = photographs.labelled_landscapes("test", 300)
    crops = photographs.landscapes("test", 64)
    np.testing.assert_array_equal(labels, crops.photograph(np.arange(300)))
    assert images.dtype == np.uint8
    np.testing.assert_allclose(images[299] / 255, crops.images(np.array([299]))[0], atol=0.51 / 255)


def test_a_landscape_shows_a_tenth_to_a_quarter_of_its_photograph(monkeypatch):
    """Pictures of their own horizontal position: the span within a crop is the share of the width that it shows."""
    ramps = [np.tile(np.linspace(0, 255, w).astype(np.uint8)[None, :, None], (w // 2, 1, 3)) for w in (640, 1280, 2560)]
    monkeypatch.setattr(photographs, "read", lambda *_: ramps)
    for split in ("train", "test"):
        crops = photographs.landscapes(split, 64).images(np.arange(200))
        spans = np.ptp(crops[..., 0], axis=2).max(axis=1)
        assert 0.09 < spans.min() < 0.13 and 0.2 < spans.max() < 0.26


def test_missing_packages_are_named_with_the_way_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setenv(photographs.ROOT_VARIABLE, str(tmp_path))
    with pytest.raises(PdsError, match=r"Aqua.jpg.*apt install mate-backgrounds plasma-workspace-wallpapers"):
        photographs.landscapes("train", 64)
    absent = photographs.Photograph("no_such_package", "a.png", "nobody", "CC0")
    with pytest.raises(PdsError, match="no_such_package.*pip install"):
        photographs.read([absent], "photos")


def test_landscapes_refuse_a_size_that_no_photograph_has(root, monkeypatch):
    monkeypatch.setenv(photographs.ROOT_VARIABLE, str(root))
    with pytest.raises(PdsError, match="image_size=64"):
        photographs.landscapes("train", 256)
