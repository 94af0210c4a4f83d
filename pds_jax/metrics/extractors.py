"""Feature extractors by name, each with an identity that a reference file records and every comparison checks.

An extractor maps uint8 images (B, H, W, C) to named outputs: ``features`` (B, D), which FID, KID, precision and recall
use, and for classifiers ``logits`` (B, classes), which the Inception Score uses.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pds_jax.io.images import to_uint8
from pds_jax.metrics import inception
from pds_jax.types import PdsError, unknown_name

DATA_RANGE = "uint8 0..255"
_CROPS = 4096
Outputs = Mapping[str, Any]
# (parameters, uint8 images (B, H, W, C)) -> outputs, pure.
Network = Callable[[Any, Any], Outputs]


@dataclasses.dataclass(frozen=True)
class Extractor:
    """A named feature function.

    Attributes:
      name: as in the registry.
      identity: everything that decides the features, ready for JSON; two extractors are the same iff this is equal.
      outputs: uint8 images (B, H, W, C) -> {"features": (B, D), ...}.
      channels: how many channels it takes; None for any.
      size: (H, W) of the images that it takes; None for any.
      network: the pure function that makes the outputs, and
      params: what it takes besides the images; None where there is no such function.
    """

    name: str
    identity: dict[str, Any]
    outputs: Callable[[np.ndarray], Outputs]
    channels: int | None = None
    size: tuple[int, int] | None = None
    network: Network | None = None
    params: Any = None

    def on_devices(self, data_parallel: Callable[[Network, Any], Callable[[np.ndarray], Outputs]]) -> Extractor:
        """The same extractor on several devices, as by ``parallel.data_parallel``; itself where it has no network."""
        if self.network is None:
            return self
        return dataclasses.replace(self, outputs=data_parallel(self.network, self.params))

    def __call__(self, images: np.ndarray) -> Any:
        """Features (B, D) of uint8 images (B, H, W, C)."""
        return self.outputs(images)["features"]

    @property
    def digest(self) -> str:
        """SHA-256 of the identity."""
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()

    def check_shape(self, shape: tuple[int, int, int], name: str) -> None:
        """Raise if images have another number of channels, or another size, than the extractor takes.

        Args:
          shape: (H, W, C) of the images.
          name: of the images, for the message.

        Raises:
          PdsError: the channels or the sizes differ.
        """
        if self.channels is not None and shape[2] != self.channels:
            raise PdsError(
                f"{name} has images (H, W, C) = {shape}; the extractor {self.name!r} takes {self.channels} channels"
                + ("; --convert_images repeats gray three times" if shape[2] == 1 and self.channels == 3 else "")
                + "; --extractor=pixels takes any"
            )
        if self.size is not None and shape[:2] != self.size:
            tall, wide = self.size
            raise PdsError(
                f"{name} has images (H, W, C) = {shape}; the extractor {self.name!r} takes {tall}x{wide} pixels; "
                "--extractor=pixels takes any"
            )


EXTRACTORS: dict[str, Callable[..., Extractor]] = {}


def register_extractor(name: str) -> Callable[[Callable[..., Extractor]], Callable[..., Extractor]]:
    """Decorator: add a maker of extractors under a name.

    Args:
      name: what :func:`get_extractor` calls it.

    Returns:
      The decorator; it raises PdsError if the name is taken.
    """

    def register(make: Callable[..., Extractor]) -> Callable[..., Extractor]:
        if name in EXTRACTORS:
            raise PdsError(f"an extractor {name!r} exists already")
        EXTRACTORS[name] = make
        return make

    return register


def get_extractor(name: str, **options: Any) -> Extractor:
    """Make an extractor.

    Args:
      name: "inception", "digits", "fashion", "landscapes", "patches", "pixels", or one that was registered.
      **options: for its maker, e.g. weights and resize of "inception".

    Returns:
      The extractor.

    Raises:
      PdsError: unknown name, or as its maker.
    """
    if name not in EXTRACTORS:
        raise PdsError(unknown_name("extractor", name, sorted(EXTRACTORS)))
    return EXTRACTORS[name](**options)


def as_extractor(fn: Callable[[np.ndarray], Any], name: str, version: str = "1") -> Extractor:
    """Make an extractor from any feature function, for metrics in features of your own.

    Args:
      fn: uint8 images (B, H, W, C) -> features (B, D).
      name: its name; goes into reference files.
      version: change it when the function changes; reference files of another version then raise an error.

    Returns:
      The extractor, for images of any shape.
    """
    return Extractor(name, _identity(name, version=version), lambda images: {"features": fn(images)})


def _identity(name: str, **facts: Any) -> dict[str, Any]:
    return {"extractor": name, "data_range": DATA_RANGE, **facts}


@register_extractor("inception")
def inception_extractor(
    weights: str | os.PathLike[str] | None = None, resize: str = "tf1", layer: str = "2048"
) -> Extractor:
    """The network of the published figures.

    Args:
      weights: the user's file, see ``inception.load_weights``.
      resize: "tf1" (original FID, torch-fidelity, EDM) or "half_pixel" (pytorch-fid).
      layer: "64", "192", "768" or "2048", which is FID's.

    Returns:
      The extractor; uint8 images (B, H, W, 3) -> features (B, D) of the layer and logits (B, 1008), float32.

    Raises:
      PdsError: unknown layer or resize rule, or weights that are missing, damaged or of another network.
    """
    if layer not in inception.LAYERS[:4] or resize not in inception.PREPROCESSING:
        raise PdsError(
            f"inception has no layer {layer!r} with resize {resize!r}; layers {inception.LAYERS[:4]}, "
            f"resizes {tuple(inception.PREPROCESSING)}"
        )
    params = inception.load_weights(weights)
    layers = (layer, "logits_unbiased")

    def network(params: Any, images: Any) -> Outputs:
        found = inception.inception_features(params, images, layers, resize)
        return {"features": found[layer], "logits": found["logits_unbiased"]}

    facts = {"layer": layer, "resize": resize, "weights_sha256": inception.weights_digest(params)}
    return Extractor(
        "inception",
        _identity("inception", **facts),
        functools.partial(network, params),
        channels=3,
        network=network,
        params=params,
    )


@register_extractor("pixels")
def pixels_extractor() -> Extractor:
    """The pixels themselves, x/255 flattened to (B, H W C): no network, for small images and for tests."""

    def outputs(images: np.ndarray) -> Outputs:
        return {"features": images.reshape(len(images), -1).astype(np.float32) / np.float32(255.0)}

    return Extractor("pixels", _identity("pixels"), outputs)


def _classifier_extractor(name: str) -> Extractor:
    """The shipped classifier of a data set: its penultimate features, and its classes for the Inception Score."""
    from pds_jax.metrics import classifier_features

    judge = classifier_features.load(name)

    def outputs(images: np.ndarray) -> Outputs:
        unit = images.astype(np.float32) / np.float32(255.0)
        return {"features": judge.features(unit), "logits": np.log(np.maximum(judge.probabilities(unit), 1e-300))}

    facts = {"weights_sha256": inception.weights_digest(judge.params)}
    return Extractor(
        name,
        _identity(name, **facts),
        outputs,
        channels=judge.shape[2],
        size=judge.shape[:2],
        network=judge.features_and_logits,
        params=judge.params,
    )


for _name in ("digits", "fashion", "landscapes"):
    register_extractor(_name)(functools.partial(_classifier_extractor, _name))


@register_extractor("patches")
def patches_extractor() -> Extractor:
    """Coordinates along the first 64 principal components of 4096 training crops of the `photos` data, 16x16 RGB."""
    import jax.numpy as jnp

    from pds_jax.data import photographs
    from pds_jax.metrics.simple import PatchPCA

    source = photographs.photos("train", 16)
    crops = source.images(np.arange(_CROPS))
    pca = PatchPCA.fit(crops)
    # An eigenvector's sign is arbitrary; features of two machines must agree.
    largest = np.take_along_axis(pca.basis, np.abs(pca.basis).argmax(axis=0)[None], axis=0)
    params = {"mean": pca.mean.astype(np.float32), "basis": (np.sign(largest) * pca.basis).astype(np.float32)}

    def network(params: Any, images: Any) -> Outputs:
        unit = jnp.asarray(images).reshape(len(images), -1).astype(jnp.float32) / 255.0
        centred = unit - params["mean"][None]
        return {"features": jnp.matmul(centred, params["basis"], precision="highest")}

    facts = {"components": pca.basis.shape[1], "crops_sha256": hashlib.sha256(to_uint8(crops).tobytes()).hexdigest()}
    return Extractor(
        "patches",
        _identity("patches", **facts),
        functools.partial(network, params),
        channels=3,
        size=source.shape[:2],
        network=network,
        params=params,
    )
