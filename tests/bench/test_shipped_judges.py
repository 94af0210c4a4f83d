"""The judges of `fashion` and `landscapes`: what ships is enough to score samples, and the classifiers know them."""

import dataclasses
import pathlib
from collections.abc import Callable

import numpy as np
import pytest

from pds_jax import assembly
from pds_jax.bench import judges, quality
from pds_jax.data import arrays, fashion_mnist, photographs
from pds_jax.metrics import classifier_features
from pds_jax.metrics.extractors import get_extractor
from pds_jax.types import PdsError

PHOTOGRAPHS = [pathlib.Path("/", photo.file) for photo in photographs.LANDSCAPES if photo.file[:3] == "usr"]


@dataclasses.dataclass(frozen=True)
class Data:
    """A data set with a judge."""

    shape: tuple[int, int, int]
    variable: str  # of the environment, where its files are
    package: str
    installed: bool
    labelled: Callable[[], tuple[np.ndarray, np.ndarray]]
    accuracy: float


DATA = {
    "fashion": Data(
        (32, 32, 1),
        fashion_mnist.FOLDER_VARIABLE,
        "dataset-fashion-mnist",
        pathlib.Path(fashion_mnist.DEBIAN_FOLDER).is_dir(),
        lambda: tuple(part[:1000] for part in fashion_mnist.fashion("test")),
        0.91,
    ),
    "landscapes": Data(
        (64, 64, 3),
        photographs.ROOT_VARIABLE,
        "apt install mate-backgrounds",
        all(path.is_file() for path in PHOTOGRAPHS),
        lambda: photographs.labelled_landscapes("test", 300),
        0.7,
    ),
}
INSTALLED = [
    pytest.param(name, marks=pytest.mark.skipif(not data.installed, reason=f"no {data.package}"))
    for name, data in DATA.items()
]


def noise(count, shape):
    return np.random.default_rng(0).uniform(size=(count, *shape)).astype(np.float32)


@pytest.mark.parametrize("name", DATA)
def test_samples_are_judged_without_the_data(name, monkeypatch, tmp_path):
    data = DATA[name]
    monkeypatch.setenv(data.variable, str(tmp_path))
    judge = quality.judge_for(name)
    images = noise(64, data.shape)
    scores = judge(images)
    assert set(scores) == {"spectrum_error", "frechet", "frechet_classifier", "frechet_held_out", "class_error"}
    assert scores["frechet"] > 50 and scores["frechet_classifier"] > 300 and scores["spectrum_error"] > 1
    with pytest.raises(PdsError, match="image"):
        judge(images[:, : data.shape[0] // 2, : data.shape[1] // 2])
    with pytest.raises(PdsError, match=data.package):
        judge.real(10, 0)


@pytest.mark.parametrize("name", INSTALLED)
def test_real_images_are_near_and_known(name, monkeypatch):
    data = DATA[name]
    monkeypatch.delenv(data.variable, raising=False)
    judge = quality.judge_for(name)
    real, far = judge(judge.real(256, 0)), judge(noise(256, data.shape))
    assert all(real[score] < 0.05 * far[score] for score in ("frechet", "frechet_classifier", "spectrum_error"))
    images, labels = data.labelled()
    found = classifier_features.load(name).classes(arrays.to_unit(images))
    assert np.mean(found == labels) > data.accuracy


@pytest.mark.parametrize("name", DATA)
def test_the_extractor_sees_what_the_classifier_sees(name):
    images = np.random.default_rng(1).integers(0, 256, (5, *DATA[name].shape), dtype=np.uint8)
    found = get_extractor(name).outputs(images)
    expected = classifier_features.load(name).features(arrays.to_unit(images))
    np.testing.assert_allclose(found["features"], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.exp(found["logits"]).sum(axis=1), 1.0, rtol=1e-5)
    with pytest.raises(PdsError, match=f"takes {images.shape[1]}x{images.shape[2]} pixels"):
        get_extractor(name).check_shape((8, 8, images.shape[3]), "mine")


@pytest.mark.parametrize("name", ["fashion", "fashion_small", "landscapes"])
def test_a_table_shows_components_classifier_and_spectrum(name):
    judge = judges.judge_of(assembly.load(name))
    assert list(judge.columns) == ["frechet", "frechet_classifier", "spectrum_error"]
