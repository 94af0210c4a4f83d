import numpy as np
import pytest

from pds_jax import parallel
from pds_jax.metrics.evaluation import check_request, evaluate, make_reference, summarise
from pds_jax.metrics.extractors import Extractor, get_extractor
from pds_jax.metrics.frechet import frechet_distance_from_features
from pds_jax.metrics.image_sets import ArrayImages
from pds_jax.metrics.inception_score import inception_score
from pds_jax.metrics.kid import kernel_distance
from pds_jax.metrics.precision_recall import density_coverage, precision_recall
from pds_jax.metrics.reference import Reference, load_reference, save_reference
from pds_jax.types import PdsError

RNG = np.random.default_rng(0)
REAL = RNG.integers(0, 200, (60, 2, 2, 3)).astype(np.uint8)
FAKE = RNG.integers(50, 256, (50, 2, 2, 3)).astype(np.uint8)
PIXELS = get_extractor("pixels")


def with_logits(images):
    flat = images.reshape(len(images), -1).astype(np.float32) / np.float32(255)
    return {"features": flat, "logits": flat[:, :7] * 5}


JUDGE = Extractor("judge", {"extractor": "judge"}, with_logits)


def test_every_figure_is_that_of_its_own_function(tmp_path):
    real, fake = ArrayImages("real", REAL), ArrayImages("fake", FAKE)
    save_reference(tmp_path / "r.npz", make_reference(real, JUDGE, keep_features=True))
    reference = load_reference(tmp_path / "r.npz")
    got = evaluate(
        fake,
        reference,
        JUDGE,
        metrics=("fid", "kid", "is", "pr", "dc"),
        allow_fewer=True,
        subset_size=20,
        batch_size=7,
        folder=tmp_path / "cache",
    )
    x, y = np.asarray(JUDGE(FAKE)), np.asarray(JUDGE(REAL))
    kid, scores = kernel_distance(x, y, subset_size=20), inception_score(with_logits(FAKE)["logits"])
    pr, dc = precision_recall(x, y), density_coverage(x, y)
    assert got["fid"] == pytest.approx(frechet_distance_from_features(x, y), rel=1e-10)
    assert (got["kid"], got["kid_std"]) == pytest.approx((kid.mean, kid.std), rel=1e-12)
    assert (got["is"], got["is_std"]) == pytest.approx((scores.mean, scores.std), rel=1e-12)
    assert (got["precision"], got["recall"]) == (pr.precision, pr.recall)
    assert (got["density"], got["coverage"]) == (dc.density, dc.coverage)
    assert (got["n"], got["reference_n"]) == (50, 60)
    assert got["notes"] == [
        "50 images, fewer than 50000: not comparable with published figures",
        "KID is of subsets of 20 images, published figures of 1000",
        "the Inception Score is of 10 parts of 5 images, published figures of 5000",
    ]


def test_singular_covariances_are_noted():
    reference = make_reference(ArrayImages("real", REAL), PIXELS)
    got = evaluate(ArrayImages("fake", FAKE[:10]), reference, PIXELS, allow_fewer=True)
    assert "covariance of 10 images in 12 features is singular" in got["notes"][-1]
    assert got["fid"] == pytest.approx(frechet_distance_from_features(PIXELS(FAKE[:10]), PIXELS(REAL)), rel=1e-10)


def test_what_would_fail_later_fails_first():
    plain = make_reference(ArrayImages("real", REAL), PIXELS)
    full = make_reference(ArrayImages("real", REAL), PIXELS, keep_features=True)

    def refused(match, count=100, metrics=("fid",), reference=plain, **options):
        with pytest.raises(PdsError, match=match):
            check_request(count, metrics, reference, **{"allow_fewer": True, **options})

    refused("49999 images are fewer than the 50000.*--allow_fewer", 49_999, allow_fewer=False)
    check_request(50_000, ("fid",), plain, allow_fewer=False)
    refused("1 images are too few.*at least 2", 1)
    refused(r"unknown metric 'fvd'; known: fid,", metrics=("fid", "fvd"))
    refused("need a reference", reference=None)
    check_request(100, ("is",), None, allow_fewer=True)
    refused("kid,dc need the reference's features.*--keep_features", metrics=("kid", "fid", "dc"))
    refused("subsets of 1 are too small", metrics=("kid",), reference=full, subset_size=1)
    refused("subsets of 1000 exceed the 60 images", metrics=("kid",), reference=full)
    refused("5 images are too few for 5 nearest", 5, metrics=("pr",), reference=full)
    with pytest.raises(PdsError, match="needs at least 2"):
        make_reference(ArrayImages("one", REAL[:1]), PIXELS)


def test_a_bad_reference_is_refused_before_the_pass():
    def never(images):
        raise AssertionError("the pass began")

    judge = Extractor("judge", {"extractor": "judge"}, never)
    bad = Reference(np.zeros(12), np.diag([-1.0] + [1.0] * 11), None, {}, None, "bad.npz")
    with pytest.raises(PdsError, match="bad.npz: sigma has the eigenvalue -1"):
        evaluate(ArrayImages("fake", FAKE), bad, judge, allow_fewer=True)
    other = Reference(np.zeros(3), np.eye(3), None, {}, None, "other.npz")
    with pytest.raises(PdsError, match="reference has 3 features, the extractor 'pixels' gives 12"):
        evaluate(ArrayImages("fake", FAKE), other, PIXELS, allow_fewer=True)


def test_gray_images_and_a_colour_extractor():
    colour = Extractor("colour", {"extractor": "colour"}, with_logits, channels=3)
    with pytest.raises(PdsError, match="takes 3 channels; --convert_images"):
        make_reference(ArrayImages("gray", REAL[..., :1]), colour)


def test_summary_over_ranges():
    runs = [{"fid": 3.0, "n": 10}, {"fid": 2.0, "n": 10}, {"fid": 2.5, "n": 10}]
    assert summarise(runs) == {"mean": {"fid": 2.5}, "minimum": {"fid": 2.0}}


def test_digits_judge_digits():
    """Real digits against real digits are near, noise is far; the classifier knows ten classes."""
    from sklearn.datasets import load_digits

    pixels = np.round(load_digits().images * (255.0 / 16.0)).astype(np.uint8)[..., None]
    noise = RNG.integers(0, 256, (400, 8, 8, 1)).astype(np.uint8)
    judge = get_extractor("digits")
    reference = make_reference(ArrayImages("digits", pixels[::2]), judge)
    near, far = (
        evaluate(ArrayImages("x", x), reference, judge, metrics=("fid", "is"), allow_fewer=True)
        for x in (pixels[1::2], noise)
    )
    assert near["fid"] < 0.1 * far["fid"]
    assert 8.0 < near["is"] <= 10.0 and far["is"] < near["is"]
    with pytest.raises(PdsError, match="takes 1 channels"):
        make_reference(ArrayImages("colour", REAL), judge)


@pytest.mark.parametrize("name, shape", [("digits", (8, 8, 1)), ("patches", (16, 16, 3))])
def test_four_devices_give_the_statistics_of_one(name, shape):
    """37 images in batches of 10: ragged batches, which do not divide by four either."""
    images = RNG.integers(0, 256, (37, *shape)).astype(np.uint8)
    one = get_extractor(name)
    four = one.on_devices(parallel.data_parallel)
    assert four.identity == one.identity
    plain, spread = (
        make_reference(ArrayImages("x", images), judge, keep_features=True, batch_size=10) for judge in (one, four)
    )
    scale = np.abs(plain.features).max()
    np.testing.assert_allclose(spread.features, plain.features, atol=2e-6 * scale, rtol=0)
    np.testing.assert_allclose(spread.mu, plain.mu, atol=2e-6 * scale, rtol=0)
    np.testing.assert_allclose(spread.sigma, plain.sigma, atol=1e-5 * np.abs(plain.sigma).max(), rtol=0)
    assert PIXELS.on_devices(parallel.data_parallel) is PIXELS  # nothing to compute


def test_patches_are_near_to_crops_of_the_same_photographs():
    from pds_jax.data import photographs
    from pds_jax.io.images import to_uint8

    crops = photographs.photos("train", 16)
    near, law = (to_uint8(crops.images(np.arange(start, start + 500))) for start in (0, 5000))
    judge = get_extractor("patches")
    reference = make_reference(ArrayImages("crops", law), judge)
    got, noise = (
        evaluate(ArrayImages("x", x), reference, judge, allow_fewer=True)["fid"]
        for x in (near, RNG.integers(0, 256, near.shape).astype(np.uint8))
    )
    assert got < 0.1 * noise
    with pytest.raises(PdsError, match=r"= \(2, 2, 3\); the extractor 'patches' takes 16x16 pixels"):
        make_reference(ArrayImages("small", REAL), judge)
