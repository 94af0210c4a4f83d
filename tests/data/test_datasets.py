import ml_collections
import numpy as np
import pytest
from PIL import Image

from configs import digits as digits_config
from pds_jax.data import datasets, photographs
from pds_jax.io.images import save_png
from pds_jax.types import PdsError


def test_digits_split_is_fixed_and_disjoint():
    train, train_labels = datasets.digits("train")
    test, test_labels = datasets.digits("test")
    assert train.shape == (1500, 8, 8, 1) and test.shape == (297, 8, 8, 1) and train.dtype == np.float32
    assert train.min() == 0.0 and train.max() == 1.0
    assert np.bincount(train_labels).min() > 100 and len(test_labels) == 297
    np.testing.assert_array_equal(train, datasets.digits("train")[0])
    with pytest.raises(PdsError, match="split"):
        datasets.digits("validation")


def source(n=10):
    levels = np.arange(n, dtype=np.float32) / n
    return datasets.ArraySource("counted", np.tile(levels[:, None, None, None], (1, 2, 2, 1)))


def test_every_epoch_shows_every_image_once_in_another_order():
    stream = datasets.Stream(source(), batch_size=4, seed=3)
    seen = np.concatenate([stream.batch(step)[:, 0, 0, 0] for step in range(5)])
    first, second = seen[:10], seen[10:]
    np.testing.assert_allclose(np.sort(first), np.arange(10) / 10)
    np.testing.assert_allclose(np.sort(second), np.arange(10) / 10)
    assert not np.array_equal(first, second)


def test_a_batch_is_a_function_of_the_step():
    make = lambda: datasets.Stream(source(), 4, 3, random_flip=True, uniform_dequantization=True)  # noqa: E731
    stream = make()
    late = [stream.batch(step) for step in range(8)][7]
    np.testing.assert_array_equal(make().batch(7), late)


def test_flips_and_dequantisation():
    data = np.zeros((1, 2, 2, 1), np.uint8)
    data[0, :, 1] = 255
    one = datasets.ArraySource("one", data)
    flipped = datasets.Stream(one, 400, 0, random_flip=True).batch(0)
    share = np.mean(flipped[:, 0, 0, 0] == 1.0)
    assert 0.4 < share < 0.6
    noisy = datasets.Stream(one, 400, 0, uniform_dequantization=True).batch(0)
    dark, bright = noisy[:, :, 0], noisy[:, :, 1]
    assert 0 <= dark.min() and dark.max() < 1 / 256 and 255 / 256 <= bright.min() and bright.max() < 1
    assert abs(dark.mean() - 0.5 / 256) < 0.05 / 256
    np.testing.assert_array_equal(np.floor(noisy * 256), np.broadcast_to(data, noisy.shape))


def test_iterate_gives_a_ragged_last_batch():
    assert [len(batch) for batch in datasets.iterate(source(), 4)] == [4, 4, 2]
    assert [len(batch) for batch in datasets.iterate(source(), 4, 6)] == [4, 2]


def test_endless_sources_need_a_count():
    with pytest.raises(PdsError, match="endless"):
        next(datasets.iterate(photographs.photos("train", 16), 4))


def config(**data):
    return ml_collections.ConfigDict({"data": {"image_size": 8, "num_channels": 1, "centered": False, **data}})


def test_named_sources():
    assert datasets.get_source(config(dataset="digits"), "test").size == 297
    with pytest.raises(PdsError, match="unknown data.dataset 'imagnet'; known: .*digits"):
        datasets.get_source(config(dataset="imagnet"))
    with pytest.raises(PdsError, match=r"\(8, 8, 1\).*\(16, 16, 1\)"):
        datasets.get_source(config(dataset="digits", image_size=16))


def test_a_folder_is_a_source(tmp_path):
    for index in range(5):
        Image.fromarray(np.full((8, 8), 50 * index, np.uint8)).save(tmp_path / f"{index}.png")
    found = datasets.get_source(config(dataset=str(tmp_path)))
    np.testing.assert_allclose(found.images(np.array([3, 1]))[:, 0, 0, 0], [150 / 255, 50 / 255], rtol=1e-6)
    assert found.size == 5


def test_an_array_is_a_source_without_being_copied(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(6, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 1), np.uint8))
    found = datasets.get_source(config(dataset=str(tmp_path / "a.npy")))
    np.testing.assert_allclose(found.images(np.array([5]))[0, 0, 0, 0], 5 / 255)


def test_scalers_are_inverse():
    x = np.linspace(0, 1, 5)
    for centered in (False, True):
        c = config(centered=centered)
        y = datasets.get_data_scaler(c)(x)
        assert y.min() == (-1 if centered else 0) and y.max() == 1
        np.testing.assert_allclose(datasets.get_data_inverse_scaler(c)(y), x)


def test_a_data_set_without_a_name_is_not_the_current_folder(tmp_path, monkeypatch):
    save_png(tmp_path / "one.png", np.zeros((8, 8, 3), np.uint8))
    monkeypatch.chdir(tmp_path)
    config = digits_config.get_config()
    config.data.dataset = ""
    with pytest.raises(PdsError, match="unknown data.dataset ''"):
        datasets.get_source(config, "train")


def test_no_more_images_are_read_than_there_are():
    source = datasets.get_source(digits_config.get_config(), "test")
    assert sum(len(batch) for batch in datasets.iterate(source, 128, 10_000)) == source.size
