import numpy as np
import pytest

from pds_jax.metrics.extractors import as_extractor, get_extractor, register_extractor
from pds_jax.metrics.frechet import FeatureMoments
from pds_jax.metrics.reference import Reference, load_reference, save_reference
from pds_jax.types import PdsError

FEATURES = np.random.default_rng(0).standard_normal((9, 4)).astype(np.float32)
PIXELS = get_extractor("pixels")


def made(features=None):
    moments = FeatureMoments.of(FEATURES)
    provenance = {"extractor": PIXELS.identity, "image_shape": [2, 2, 1], "images_sha256": "00"}
    return Reference(moments.mean, moments.covariance, 9, provenance, features)


def test_ours_comes_back_and_others_can_read_it(tmp_path):
    for features in (None, FEATURES):
        save_reference(tmp_path / "r.npz", made(features))
        back = load_reference(tmp_path / "r.npz")
        np.testing.assert_array_equal(back.mu, made().mu)
        np.testing.assert_array_equal(back.sigma, made().sigma)
        assert back.count == 9 and not back.notes
        assert back.provenance["extractor"] == PIXELS.identity and back.provenance["pds_jax"]
        assert (back.features is None) == (features is None)
    with np.load(tmp_path / "r.npz", allow_pickle=False) as plain:
        assert plain["mu"].shape == (4,) and plain["sigma"].shape == (4, 4)
    with pytest.raises(PdsError, match="ends in .npz"):
        save_reference(tmp_path / "r.dat", made())


def test_files_of_other_programs(tmp_path):
    moments = FeatureMoments.of(FEATURES)
    np.savez(tmp_path / "edm.npz", mu=moments.mean, sigma=moments.covariance)
    np.savez(tmp_path / "score_sde.npz", pool_3=FEATURES, logits=np.zeros((9, 2)))
    for name, count in (("edm", None), ("score_sde", 9)):
        found = load_reference(tmp_path / f"{name}.npz")
        np.testing.assert_allclose(found.sigma, moments.covariance, rtol=1e-13)
        assert found.count == count and "does not say its extractor" in found.notes[0]
        found.check(PIXELS, (5, 5, 3))  # nothing is known that could be compared
    assert load_reference(tmp_path / "score_sde.npz").features is not None


def test_features_of_any_size_come_back(tmp_path, monkeypatch):
    from pds_jax.io import npy

    monkeypatch.setattr(npy, "_MAX_BYTES", 100)
    save_reference(tmp_path / "r.npz", made(FEATURES))
    np.testing.assert_array_equal(load_reference(tmp_path / "r.npz").features, FEATURES)
    np.savez_compressed(tmp_path / "bomb.npz", mu=np.zeros(99))
    with pytest.raises(PdsError, match="more than the 100 that are read"):
        load_reference(tmp_path / "bomb.npz")


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"mean": np.zeros(3)}, r"holds \['mean'\]; a reference holds mu and sigma.*scripts/fid.py ref"),
        ({"mu": np.zeros(3), "sigma": np.eye(2)}, r"expected floats \(D,\) and \(D, D\)"),
        ({"mu": np.zeros(2, int), "sigma": np.eye(2)}, "mu is int64"),
        ({"pool_3": np.zeros(3)}, r"pool_3 is float64 \(3,\)"),
        ({"pool_3": np.zeros((1, 3))}, r"pool_3 is float64 \(1, 3\)"),
        ({"mu": np.zeros(2), "sigma": np.eye(2), "provenance": "{}"}, "no whole reference file"),
        ({"mu": np.zeros(2), "sigma": np.eye(2), "provenance": "{", "n": 3}, "no whole reference file"),
        ({"mu": np.zeros(2), "sigma": np.eye(2), "provenance": '{"format": 9}', "n": 3}, "newer version"),
    ],
)
def test_other_contents_are_named(tmp_path, arrays, match):
    np.savez(tmp_path / "r.npz", **arrays)
    with pytest.raises(PdsError, match=match):
        load_reference(tmp_path / "r.npz")


def test_pickles_and_missing_files(tmp_path):
    with pytest.raises(PdsError, match="is a pickle, which is never loaded"):
        load_reference(tmp_path / "edm2.pkl")
    with pytest.raises(PdsError, match="nowhere.npz"):
        load_reference(tmp_path / "nowhere.npz")
    np.savez(tmp_path / "objects.npz", mu=np.array([{}], object), sigma=np.eye(1))
    with pytest.raises(PdsError, match="pickled Python objects"):
        load_reference(tmp_path / "objects.npz")


def test_comparisons_across_size_extractor_and_range_are_refused():
    reference = made()
    reference.check(PIXELS, (2, 2, 1))
    with pytest.raises(PdsError, match=r"of images \(H, W, C\) = \(2, 2, 1\), these are \(4, 4, 1\)"):
        reference.check(PIXELS, (4, 4, 1))
    other = as_extractor(lambda x: x, "mine")
    with pytest.raises(PdsError, match="made with extractor='pixels', this run has extractor='mine'"):
        reference.check(other, (2, 2, 1))
    ranged = as_extractor(lambda x: x, "pixels")
    ranged.identity.pop("version")
    ranged.identity["data_range"] = "float -1..1"
    with pytest.raises(PdsError, match="data_range='uint8 0..255', this run has data_range='float -1..1'"):
        reference.check(ranged, (2, 2, 1))


def test_registry_of_extractors():
    with pytest.raises(PdsError, match="unknown extractor 'vgg'; known: "):
        get_extractor("vgg")
    with pytest.raises(PdsError, match="'pixels' exists already"):
        register_extractor("pixels")(lambda: PIXELS)
    with pytest.raises(PdsError, match="no layer '4096'"):
        get_extractor("inception", layer="4096")
    images = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)
    np.testing.assert_allclose(PIXELS(images) * np.float32(255), images.reshape(2, -1), rtol=1e-6)
    assert as_extractor(lambda x: x, "a", "1").digest != as_extractor(lambda x: x, "a", "2").digest
