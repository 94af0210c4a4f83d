"""The stored reference of a judge: what its scores are, without the data set."""

import jax
import numpy as np
import pytest

from pds_jax.bench import references
from pds_jax.metrics import simple
from pds_jax.metrics.classifier_features import ClassifierJudge
from pds_jax.models.classifier import Classifier
from pds_jax.types import PdsError

SHAPE = (8, 8, 1)


@pytest.fixture(scope="module")
def classifier():
    model = Classifier(widths=(4, 8), pools=(True, True), features=6, classes=3, normalised=True)
    params = model.init(jax.random.key(0), np.zeros((1, *SHAPE), np.float32))["params"]
    return ClassifierJudge(model, params, SHAPE, {"name": "tiny"})


def images(seed, count=300, level=0.5):
    rng = np.random.default_rng(seed)
    return np.clip(level + 0.1 * rng.normal(size=(count, *SHAPE)), 0, 1).astype(np.float32)


@pytest.fixture(scope="module")
def reference(classifier):
    train = images(0)
    return references.make(train, classifier.classes(train), images(1), classifier, "noise")


@pytest.mark.slow
def test_the_images_of_the_reference_are_at_distance_zero(reference, classifier):
    found = reference.scores(images(0), classifier)
    variance = np.trace(np.asarray(reference.arrays["components_covariance"]))
    assert found["frechet"] < 1e-4 * variance and found["class_error"] < 1e-6 and found["spectrum_error"] < 1e-5
    scale = np.trace(np.asarray(reference.arrays["features_covariance"]))
    assert found["frechet_classifier"] < 1e-4 * scale < found["frechet_held_out"] + 1e-3 * scale


def test_scores_are_those_of_the_metrics_on_the_images_themselves(reference, classifier):
    train, other = images(0), images(5, 200, level=0.6)
    found = reference.scores(other, classifier)
    assert found["frechet"] == pytest.approx(simple.patch_pca_frechet(other, train), rel=1e-3)
    assert found["spectrum_error"] == pytest.approx(simple.spectrum_error(other, train), rel=1e-4)
    features = [classifier.features(some) for some in (other, train)]
    assert found["frechet_classifier"] == pytest.approx(simple.frechet_of_features(*features), rel=1e-3)
    assert found["frechet"] > reference.scores(images(6), classifier)["frechet"]


def test_a_file_comes_back_and_another_is_refused(reference, classifier, tmp_path):
    path = tmp_path / references.FILE
    reference.save(path)
    again = references.load(path)
    assert again.record["data"] == "noise" and again.record["train_images"] == 300
    some = images(7)
    assert again.scores(some, classifier) == pytest.approx(reference.scores(some, classifier), rel=1e-4, abs=1e-6)
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    with pytest.raises(PdsError, match="no reference of a judge"):
        references.load(tmp_path / "other.npz")
    with pytest.raises(PdsError, match="judges images"):
        again.scores(np.zeros((4, 16, 16, 1), np.float32), classifier)
