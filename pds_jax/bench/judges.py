"""Three scores for samples of any checkpoint: Fréchet distances in components and in features, and the spectrum.

The judge of the data set is asked where one ships, else images of the data are compared with.
"""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable

import numpy as np

from pds_jax import assembly
from pds_jax.bench import quality
from pds_jax.data import datasets
from pds_jax.io import files
from pds_jax.metrics import classifier_features, simple
from pds_jax.types import PdsError

_OF_JUDGE = ("frechet", "frechet_classifier")
_OF_IMAGES = ("frechet", "frechet_random")
# Shape and the distances in components and in features, of the judges that ship.
_SHIPPED: dict[str, tuple[tuple[int, int, int], tuple[str, str]]] = {
    "fashion": ((32, 32, 1), _OF_JUDGE),
    "landscapes": ((64, 64, 3), _OF_JUDGE),
    "photos": ((16, 16, 3), _OF_IMAGES),
    "digits": ((8, 8, 1), ("frechet_components", "frechet")),
}
_HEADS = {"frechet_random": "random features", "frechet_given": "classifier"}
_MOST = 8192  # reference images
_HELD_OUT = 0.25  # of the images, for the floor
_DIMS = 64
Score = Callable[[np.ndarray], float]


def judge_of(trained: assembly.Trained, reference: str | None = None, classifier: str | None = None) -> quality.Judge:
    """The judge of a checkpoint, with ``columns``.

    Args:
      trained: the checkpoint.
      reference: images of its data, as ``datasets.from_path`` reads them; by default the judge of the data set, or its
        training images where they are there.
      classifier: folder of a classifier, for a Fréchet distance in its features; without one, and where no judge
        ships one, the features are those of a random convolutional network.

    Raises:
      PdsError: nothing to compare with, or images of another shape.
    """
    name = str(trained.config.data.dataset)
    shape, names = _SHIPPED.get(name, (None, _OF_IMAGES))
    shipped = reference is None and shape == trained.image_shape
    names = names if shipped else _OF_IMAGES
    if classifier is not None:
        names = (names[0], "frechet_given")
    judge = quality.judge_for(name) if shipped else None
    if judge is not None and names == _OF_JUDGE:
        return _shown(judge, names)
    source = _source(trained) if reference is None else datasets.from_path(reference, channels=trained.image_shape[2])
    if tuple(source.shape) != trained.image_shape:
        raise PdsError(f"{source.name} holds images {source.shape}, {trained.name} makes {trained.image_shape}")
    judge = judge or of_source(source)
    images = source.images(_split(source)[0])
    every = _scores(images, classifier)
    extra = {name: score for name, score in every.items() if name in names}
    scores = lambda images: {**judge.scores(images), **{name: score(images) for name, score in extra.items()}}  # noqa: E731
    identity = {} if shipped else {"reference": hashlib.sha256(np.ascontiguousarray(images).data).hexdigest()}
    if classifier is not None:
        identity["classifier"] = files.sha256(pathlib.Path(classifier) / "model.safetensors")
    return _shown(dataclasses.replace(judge, scores=scores, identity=identity), names)


def _shown(judge: quality.Judge, names: tuple[str, str]) -> quality.Judge:
    heads = {names[0]: "components", names[1]: _HEADS.get(names[1], "classifier"), "spectrum_error": "spectrum error"}
    return dataclasses.replace(judge, columns=heads)


def _source(trained: assembly.Trained) -> datasets.Source:
    """The training images."""
    try:
        if trained.decode is not None:
            raise PdsError("a latent model comes with no reference images")
        return datasets.get_source(trained.config, "train")
    except PdsError as error:
        raise PdsError(
            f"no judge for {trained.name}: {error}. Give images of its data, --reference=FOLDER|FILE.npz"
        ) from error


def of_source(source: datasets.Source) -> quality.Judge:
    """A judge by images alone: the spectrum and, in ``columns`` of :func:`judge_of`, distances to them.

    Raises:
      PdsError: fewer than 64 images.
    """
    reference, real = _split(source)
    images = source.images(reference)
    power, distance = simple.power_spectrum(images), _scores(images)["frechet_components"]

    def draw(count: int, offset: int) -> np.ndarray:
        if len(real) < offset + count:
            raise PdsError(f"{len(real)} images of {source.name} are kept for the floor, {offset + count} are needed")
        return source.images(real[offset : offset + count])

    return quality.Judge(
        f"{len(reference)} images of {source.name}",
        lambda made: {"spectrum_error": simple.spectrum_error(made, power), "frechet": distance(made)},
        draw,
    )


def _scores(images: np.ndarray, classifier: str | None = None) -> dict[str, Score]:
    """Fréchet distances to images, in components, in random features, and in those of a classifier."""
    pca = simple.PatchPCA.fit(images, _DIMS)
    features = {"frechet_components": pca.features, "frechet_random": simple.random_conv_features}
    if classifier is not None:
        features["frechet_given"] = classifier_features.from_folder(pathlib.Path(classifier)).features

    def score(of: Callable[[np.ndarray], np.ndarray]) -> Score:
        reference = of(images)
        return lambda made: simple.frechet_of_features(of(made), reference)

    return {name: score(of) for name, of in features.items()}


def _split(source: datasets.Source) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the reference images, and of those for the floor."""
    if source.size is None:
        return np.arange(_MOST // 2), np.arange(_MOST, 64 * _MOST)
    if source.size < _DIMS:
        raise PdsError(f"{source.name} holds {source.size} images; a Fréchet distance needs at least {_DIMS}")
    order = np.random.Generator(np.random.PCG64(0)).permutation(source.size)
    kept = int(_HELD_OUT * source.size)
    return np.sort(order[kept:][:_MOST]), order[:kept]
