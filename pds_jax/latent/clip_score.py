"""CLIP score: 100 times the cosine between an image's and its caption's features, at least 0, averaged.

Source: Hessel et al., "CLIPScore", EMNLP 2021, equation 1 with weight 100, as text-to-image papers report it.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from pds_jax.convert.folder_weights import TRANSFORMERS_STEMS
from pds_jax.convert.tree import ConversionError
from pds_jax.latent import layouts
from pds_jax.latent.blocks import Dense
from pds_jax.latent.clip import ClipText, ClipVision, TextSizes, VisionSizes
from pds_jax.latent.params import load_params, shapes_of
from pds_jax.latent.tokenizer import ClipTokenizer, load_tokenizer
from pds_jax.types import Array, PdsError

# Of OpenAI's CLIP, where a folder has no preprocessor_config.json.
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)


class ClipPair(nn.Module):
    """Both encoders of transformers' ``CLIPModel`` with their projections."""

    text: TextSizes
    vision: VisionSizes
    features: int

    def setup(self) -> None:
        """Name the parts."""
        self.text_model = ClipText(self.text)
        self.vision_model = ClipVision(self.vision)
        self.text_projection = Dense(self.features, use_bias=False)
        self.visual_projection = Dense(self.features, use_bias=False)
        self.logit_scale = self.param("logit_scale", nn.initializers.zeros, ())

    def __call__(self, images: Array, tokens: Array) -> Array:
        """(B,) cosines of images (B, size, size, 3), normalised, and tokens (B, L)."""
        image = self.visual_projection(self.vision_model(images))
        text = self.text_projection(self.text_model(tokens)[1])
        norms = jnp.linalg.norm(image, axis=1) * jnp.linalg.norm(text, axis=1)
        return jnp.sum(image * text, axis=1) / norms


@dataclasses.dataclass(frozen=True)
class ClipScore:
    """Scores images against captions.

    Attributes:
      model: both encoders.
      params: their parameters.
      tokenizer: of the captions.
      mean: of the pixels, per channel.
      std: of the pixels, per channel.
    """

    model: ClipPair
    params: Any
    tokenizer: ClipTokenizer
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: Sequence[np.ndarray], captions: Sequence[str]) -> np.ndarray:
        """(n,) scores of images (H, W, 3) uint8 and their captions; captions too long are cut.

        Raises:
          PdsError: numbers that differ, or images of another form.
        """
        if len(images) != len(captions):
            raise PdsError(f"{len(images)} images and {len(captions)} captions; each image needs its own")
        scores = []
        for image, ids in zip(images, self.tokenizer(captions).ids, strict=True):
            cosine = _cosine(self.model, self.params, self.pixels(image)[None], ids[None])
            scores.append(100 * max(float(cosine[0]), 0.0))
        return np.asarray(scores)

    def pixels(self, image: np.ndarray) -> np.ndarray:
        """What the image encoder takes: the shorter side resized (bicubic), the centre cut out, normalised."""
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise PdsError(f"CLIP takes images (H, W, 3) uint8, got {image.dtype} {image.shape}")
        size = self.model.vision.image
        height, width = image.shape[:2]
        short = min(height, width)
        shape = int(size * width / short), int(size * height / short)
        resized = np.asarray(Image.fromarray(image).resize(shape, Image.Resampling.BICUBIC))
        top, left = (resized.shape[0] - size) // 2, (resized.shape[1] - size) // 2
        unit = resized[top : top + size, left : left + size].astype(np.float32) / np.float32(255)
        return (unit - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)


@functools.partial(jax.jit, static_argnums=0)
def _cosine(model: ClipPair, params: Any, pixels: Array, ids: Array) -> Array:
    cosine: Any = model.apply({"params": params}, pixels, ids)
    return cosine


def load_clip_score(path: str | os.PathLike[str]) -> ClipScore:
    """Read a folder of transformers' ``CLIPModel`` with its tokenizer.

    Raises:
      ConversionError: a missing or damaged file, or another model.
    """
    folder = pathlib.Path(path)
    fields, where = layouts.read_config(folder)
    if fields.get("model_type") != "clip" or not isinstance(fields.get("vision_config"), Mapping):
        raise ConversionError(
            f"{where} is no CLIPModel with both encoders, as openai/clip-vit-base-patch16 is; a CLIP score needs one"
        )
    model = ClipPair(
        layouts.text_sizes({"architectures": None, **fields.get("text_config", {})}, where),
        layouts.vision_sizes(fields["vision_config"], where),
        fields.get("projection_dim", 512),
    )
    size = model.vision.image
    shapes = shapes_of(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, size, size, 3)), jnp.zeros((1, 2), jnp.int32))
    )
    params, _ = load_params(folder, TRANSFORMERS_STEMS, shapes)
    mean, std = _normalisation(folder, size)
    return ClipScore(model, jax.device_put(params), load_tokenizer(folder), mean, std)


def _normalisation(folder: pathlib.Path, size: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if not (folder / "preprocessor_config.json").is_file():
        return _MEAN, _STD
    fields, where = layouts.read_config(folder, "preprocessor_config.json")
    crop = fields.get("crop_size", size)
    crop = crop.get("height") if isinstance(crop, Mapping) else crop
    if crop != size or fields.get("resample", 3) != 3:
        raise ConversionError(
            f"{where}: images are cut to {crop} and resampled by {fields.get('resample')}, not bicubic"
        )
    mean, std = (tuple(fields.get(name, default)) for name, default in (("image_mean", _MEAN), ("image_std", _STD)))
    if len(mean) != 3 or len(std) != 3 or not all(value > 0 for value in std):
        raise ConversionError(f"{where}: image_mean and image_std are not three numbers each")
    return mean, std
