"""The judge of `landscapes`: what ships is enough to score samples, and its classifier knows the photographs."""

import pathlib

import numpy as np
import pytest

from pds_jax.bench import judges, quality
from pds_jax.data import photographs
from pds_jax.metrics import classifier_features
from pds_jax.types import PdsError

INSTALLED = all(pathlib.Path("/", photo.file).is_file() for photo in photographs.LANDSCAPES if photo.file[:3] == "usr")
NEEDS_PHOTOGRAPHS = pytest.mark.skipif(not INSTALLED, reason="no mate-backgrounds or plasma-workspace-wallpapers")


def test_samples_are_judged_without_the_photographs(monkeypatch, tmp_path):
    monkeypatch.setenv(photographs.ROOT_VARIABLE, str(tmp_path))
    judge = quality.judge_for("landscapes")
    noise = np.random.default_rng(0).uniform(size=(64, 64, 64, 3)).astype(np.float32)
    scores = judge(noise)
    assert set(scores) == {"spectrum_error", "frechet", "frechet_classifier", "frechet_held_out", "class_error"}
    assert scores["frechet"] > 100 and scores["spectrum_error"] > 1 and scores["class_error"] > 0.5
    with pytest.raises(PdsError, match="image"):
        judge(noise[:, :32, :32])
    with pytest.raises(PdsError, match="apt install mate-backgrounds"):
        judge.real(10, 0)


@NEEDS_PHOTOGRAPHS
def test_real_crops_are_near_and_known(monkeypatch):
    monkeypatch.delenv(photographs.ROOT_VARIABLE, raising=False)
    judge = quality.judge_for("landscapes")
    real = judge.real(256, 0)
    scores = judge(real)
    noise = judge(np.random.default_rng(0).uniform(size=real.shape).astype(np.float32))
    assert all(scores[name] < 0.2 * noise[name] for name in ("frechet", "frechet_classifier", "spectrum_error"))
    images, labels = photographs.labelled_landscapes("test", 300)
    classes = classifier_features.load("landscapes").classes(images.astype(np.float32) / 255)
    assert np.mean(classes == labels) > 0.7


def test_a_table_shows_components_classifier_and_spectrum():
    from pds_jax import assembly

    judge = judges.judge_of(assembly.load("landscapes"))
    assert list(judge.columns) == ["frechet", "frechet_classifier", "spectrum_error"]
