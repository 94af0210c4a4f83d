import numpy as np
import pytest

from pds_jax.metrics import streaming
from pds_jax.metrics.extractors import as_extractor, get_extractor
from pds_jax.metrics.frechet import FeatureMoments
from pds_jax.metrics.image_sets import ArrayImages
from pds_jax.metrics.streaming import extract
from pds_jax.types import PdsError

IMAGES = np.random.default_rng(0).integers(0, 256, (37, 3, 2, 1)).astype(np.uint8)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(streaming, "BLOCK", 8)


class Counting:
    """The pixels, counting images, failing at one of them until told otherwise."""

    def __init__(self, fail_at=None):
        self.seen, self.fail_at = 0, fail_at

    def __call__(self, images):
        if self.fail_at is not None and (images == IMAGES[self.fail_at]).all(axis=(1, 2, 3)).any():
            raise PdsError("a broken image")
        self.seen += len(images)
        return images.reshape(len(images), -1).astype(np.float32)


def sets(count=37):
    return ArrayImages("set", IMAGES[:count])


def test_moments_do_not_depend_on_the_batch_size():
    runs = [extract(sets(), get_extractor("pixels"), batch_size=size) for size in (1, 3, 8)]
    expected = FeatureMoments.of(IMAGES.reshape(37, -1).astype(np.float32) / np.float32(255))
    np.testing.assert_allclose(runs[0].moments.covariance, expected.covariance, rtol=1e-12)
    for run in runs[1:]:
        np.testing.assert_array_equal(run.moments.scatter, runs[0].moments.scatter)
        assert run.digest == runs[0].digest


def test_kept_features_give_the_same_moments(tmp_path):
    plain = extract(sets(), get_extractor("pixels"))
    for folder in (None, tmp_path, tmp_path):
        kept = extract(sets(), get_extractor("pixels"), keep=["features"], folder=folder)
        np.testing.assert_array_equal(kept.moments.scatter, plain.moments.scatter)
        assert kept.kept["features"].shape == (37, 6) and kept.digest == plain.digest


@pytest.mark.parametrize("keep", [(), ("features",)])
def test_a_failed_pass_goes_on_where_it_was(tmp_path, keep):
    fn = Counting(fail_at=20)
    extractor = as_extractor(fn, "counting")
    with pytest.raises(PdsError, match="broken"):
        extract(sets(), extractor, keep=keep, folder=tmp_path, batch_size=4)
    assert fn.seen == 20
    fn.seen, fn.fail_at = 0, None
    done = extract(sets(), extractor, keep=keep, folder=tmp_path, batch_size=8)
    assert fn.seen == 24  # 37 - 16, the last batch padded to 8
    np.testing.assert_array_equal(done.moments.scatter, extract(sets(), extractor).moments.scatter)


@pytest.mark.parametrize("place", ["keys", "merge"])
def test_an_interrupt_between_sums_and_keys_counts_no_block_twice(tmp_path, monkeypatch, place):
    owner, name = {"keys": (ArrayImages, "keys"), "merge": (FeatureMoments, "merge")}[place]
    usual, calls = getattr(owner, name), []

    def interrupted(self, *args):
        calls.append(0)
        if place == "merge":
            usual(self, *args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return usual(self, *args) if place == "keys" else None

    expected = extract(sets(), get_extractor("pixels"))
    monkeypatch.setattr(owner, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        extract(sets(), get_extractor("pixels"), folder=tmp_path)
    monkeypatch.setattr(owner, name, usual)
    done = extract(sets(), get_extractor("pixels"), folder=tmp_path)
    assert done.moments.count == 37 and done.digest == expected.digest
    np.testing.assert_array_equal(done.moments.scatter, expected.moments.scatter)


def test_partial_sums_of_another_number_of_images_are_computed_again(tmp_path):
    fn = Counting(fail_at=20)
    with pytest.raises(PdsError, match="broken"):
        extract(sets(), as_extractor(fn, "counting"), folder=tmp_path)
    (file,) = tmp_path.glob("partial-*")
    with np.load(file) as stored:
        np.savez(file, **{**stored, "count": 24})
    fn.seen, fn.fail_at = 0, None
    assert extract(sets(), as_extractor(fn, "counting"), folder=tmp_path, batch_size=1).moments.count == 37
    assert fn.seen == 37


def test_partial_sums_are_removed_when_done_and_saved_on_time(tmp_path):
    kept = []
    extract(
        sets(),
        get_extractor("pixels"),
        folder=tmp_path,
        save_every=0.0,
        progress=lambda done, total: kept.append((done, total, len(list(tmp_path.glob("partial-*"))))),
    )
    assert kept == [(8, 37, 1), (16, 37, 1), (24, 37, 1), (32, 37, 1), (37, 37, 1)]
    assert not list(tmp_path.iterdir())


def test_partial_sums_of_other_images_are_not_used(tmp_path):
    fn = Counting(fail_at=20)
    extractor = as_extractor(fn, "counting")
    with pytest.raises(PdsError, match="broken"):
        extract(sets(), extractor, folder=tmp_path)
    fn.seen, fn.fail_at = 0, None
    changed = IMAGES.copy()
    changed[3] ^= 1
    done = extract(ArrayImages("set", changed), extractor, folder=tmp_path, batch_size=1)
    assert fn.seen == 37
    np.testing.assert_array_equal(done.moments.scatter, extract(ArrayImages("set", changed), extractor).moments.scatter)


def test_removing_the_broken_image_keeps_the_sums_before_it(tmp_path):
    fn = Counting(fail_at=20)
    extractor = as_extractor(fn, "counting")
    with pytest.raises(PdsError, match="broken"):
        extract(sets(), extractor, folder=tmp_path)
    fn.seen = 0
    rest = ArrayImages("set", np.delete(IMAGES, 20, axis=0))
    done = extract(rest, extractor, folder=tmp_path, batch_size=1)
    assert fn.seen == 20
    np.testing.assert_array_equal(done.moments.scatter, extract(rest, extractor).moments.scatter)


def test_torn_files_are_computed_again(tmp_path):
    fn = Counting(fail_at=20)
    extractor = as_extractor(fn, "counting")
    for keep in ((), ("features",)):
        with pytest.raises(PdsError, match="broken"):
            extract(sets(), extractor, keep=keep, folder=tmp_path)
    fn.fail_at = None
    for file in tmp_path.rglob("*.npz"):
        file.write_bytes(file.read_bytes()[:-30])
    for keep in ((), ("features",)):
        fn.seen = 0
        done = extract(sets(), extractor, keep=keep, folder=tmp_path, batch_size=1)
        assert fn.seen == 37
        np.testing.assert_array_equal(done.moments.scatter, extract(sets(), extractor).moments.scatter)


def test_features_are_found_by_content(tmp_path):
    fn = Counting()
    extractor = as_extractor(fn, "counting")
    extract(sets(), extractor, keep=["features"], folder=tmp_path, batch_size=1)
    fn.seen = 0
    mixed = np.concatenate([IMAGES[::-1], IMAGES[:1] ^ 255])
    found = extract(ArrayImages("other", mixed), extractor, keep=["features"], folder=tmp_path, batch_size=1)
    assert fn.seen == 1
    np.testing.assert_array_equal(found.kept["features"], mixed.reshape(38, -1).astype(np.float32))
    again = extract(sets(), as_extractor(fn, "counting", "2"), keep=["features"], folder=tmp_path, batch_size=1)
    assert fn.seen == 38 and len(again.kept["features"]) == 37  # another version shares nothing


def test_bad_input_is_named():
    pixels = get_extractor("pixels")
    with pytest.raises(PdsError, match="batch_size=0"):
        extract(sets(), pixels, batch_size=0)
    with pytest.raises(PdsError, match="gives .'features'., not 'logits'"):
        extract(sets(), pixels, keep=["logits"])
    with pytest.raises(PdsError, match="reference has 7 features, the extractor 'pixels' gives 6"):
        extract(sets(), pixels, dims=7)
    with pytest.raises(PdsError, match=r"image 5 \(seed 5\) has features that are not finite"):
        ill = as_extractor(lambda x: np.where((x == IMAGES[5]).all(), np.nan, x.reshape(len(x), -1)), "ill")
        extract(sets(), ill, batch_size=1)
    with pytest.raises(PdsError, match=r"gave features \(1, 2\) for 8 images"):
        extract(sets(), as_extractor(lambda x: np.zeros((1, 2)), "ill"), batch_size=8)
    with pytest.raises(PdsError, match="holds no images"):
        extract(sets().take([]), pixels)
