"""A judge for any checkpoint: what ships, images that are given, or the training images."""

import dataclasses

import numpy as np
import pytest

from pds_jax import assembly, checkpoints
from pds_jax.bench import judges
from pds_jax.types import PdsError


@pytest.fixture(scope="module")
def digits():
    return assembly.load("digits")


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (400, 8, 8, 1), dtype=np.uint8)


def test_a_shipped_model_has_three_columns(digits):
    judge = judges.judge_of(digits)
    assert list(judge.columns.values()) == ["components", "classifier", "spectrum error"]
    assert judge.identity == {}
    real, noise = judge(judge.real(256, 0)), judge(np.random.default_rng(0).random((256, 8, 8, 1)))
    assert all(real[name] < 0.3 * noise[name] for name in judge.columns)


def test_images_that_are_given_judge_any_model(digits, images, tmp_path):
    np.save(tmp_path / "images.npy", images)
    judge = judges.judge_of(digits, str(tmp_path / "images.npy"))
    assert (
        list(judge.columns) == ["frechet", "frechet_random", "spectrum_error"] and "300 images" in judge.reference_name
    )
    same, other = judge(judge.real(100, 0)), judge(0.2 * judge.real(100, 0))
    assert all(same[name] < other[name] for name in judge.columns)
    with pytest.raises(PdsError, match="100 images of .* are kept for the floor"):
        judge.real(64, 64)
    folder = str(checkpoints.shipped_folder("digits_classifier"))
    judge = judges.judge_of(digits, str(tmp_path / "images.npy"), folder)
    assert list(judge.columns.items())[1] == ("frechet_given", "classifier") and "frechet_given" in judge(
        judge.real(9, 0)
    )
    np.save(tmp_path / "images.npy", images[::-1] // 2)
    assert judges.judge_of(digits, str(tmp_path / "images.npy")).identity["reference"] != judge.identity["reference"]
    assert set(judge.identity) == {"reference", "classifier"}


def test_a_model_without_data_asks_for_images(digits, images, tmp_path):
    config = digits.config.copy_and_resolve_references()
    config.data.dataset = "nowhere"
    unknown = dataclasses.replace(digits, config=config)
    with pytest.raises(PdsError, match="--reference"):
        judges.judge_of(unknown)
    np.save(tmp_path / "few.npy", images[:20])
    with pytest.raises(PdsError, match="at least 64"):
        judges.judge_of(unknown, str(tmp_path / "few.npy"))
    np.save(tmp_path / "large.npy", images.reshape(100, 16, 16, 1))
    with pytest.raises(PdsError, match="makes"):
        judges.judge_of(unknown, str(tmp_path / "large.npy"))
