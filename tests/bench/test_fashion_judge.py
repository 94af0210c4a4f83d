"""The judge of `fashion`: what ships is enough to score samples, and its classifier knows clothes."""

import pathlib

import numpy as np
import pytest

from pds_jax.bench import quality
from pds_jax.data import arrays, fashion_mnist
from pds_jax.metrics import classifier_features
from pds_jax.metrics.extractors import get_extractor
from pds_jax.types import PdsError

INSTALLED = pathlib.Path(fashion_mnist.DEBIAN_FOLDER).is_dir()


def test_samples_are_judged_without_the_data_set(monkeypatch, tmp_path):
    monkeypatch.setenv(fashion_mnist.FOLDER_VARIABLE, str(tmp_path))
    judge = quality.judge_for("fashion")
    noise = np.random.default_rng(0).uniform(size=(64, 32, 32, 1)).astype(np.float32)
    scores = judge(noise)
    assert set(scores) == {"spectrum_error", "frechet", "frechet_classifier", "frechet_held_out", "class_error"}
    assert scores["frechet_classifier"] > 300 and scores["spectrum_error"] > 1
    with pytest.raises(PdsError, match="image"):
        judge(noise[:, :16, :16])
    with pytest.raises(PdsError, match="dataset-fashion-mnist"):
        judge.real(10, 0)


@pytest.mark.skipif(not INSTALLED, reason="no dataset-fashion-mnist")
def test_real_images_are_near_and_known(monkeypatch):
    monkeypatch.delenv(fashion_mnist.FOLDER_VARIABLE, raising=False)
    judge = quality.judge_for("fashion")
    real = judge(judge.real(256, 0))
    assert real["frechet_classifier"] < 8 and real["frechet"] < 2.2 and real["spectrum_error"] < 0.1
    classifier = classifier_features.load("fashion")
    images, labels = fashion_mnist.fashion("test")
    right = np.mean(classifier.classes(arrays.to_unit(images[:1000])) == labels[:1000])
    assert right > 0.91 and classifier.facts["report"]["test_accuracy"] >= 0.92


def test_the_extractor_sees_what_the_classifier_sees():
    images = np.random.default_rng(1).integers(0, 256, (5, 32, 32, 1), dtype=np.uint8)
    found = get_extractor("fashion").outputs(images)
    np.testing.assert_allclose(
        found["features"], classifier_features.load("fashion").features(arrays.to_unit(images)), rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(np.exp(found["logits"]).sum(axis=1), 1.0, rtol=1e-5)
