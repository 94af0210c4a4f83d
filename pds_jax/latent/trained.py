"""A pipeline's folder as a trained model that ``assembly`` plans and draws with: its images are decoded latents."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pds_jax import assembly
from pds_jax.checkpoints import digest_of
from pds_jax.classes import EVERYWHERE
from pds_jax.convert.sections import configuration
from pds_jax.latent.blocks import ATTENTION_BYTES, Dtype
from pds_jax.latent.codec import Codec
from pds_jax.latent.folder import Pipeline, load_pipeline
from pds_jax.latent.score import get_score, get_sde, guided
from pds_jax.latent.statistics import check_statistics
from pds_jax.statistics import Statistics
from pds_jax.types import PdsError

# A stochastic solver of few steps, so that M has noise to act on.
_SAMPLING = {"predictor": "sde_dpmpp_2m"}


@dataclasses.dataclass(frozen=True)
class LatentModel:
    """A latent diffusion model, ready to be sampled.

    Attributes:
      trained: network, SDE and statistics for ``assembly.plan`` and ``assembly.draw``.
      pipeline: its parts.
      codec: images to latents and back.
    """

    trained: assembly.Trained
    pipeline: Pipeline
    codec: Codec

    def latents(self, plan: assembly.Plan, seeds: Sequence[int], **kwargs: Any) -> np.ndarray:
        """Latents (n, h, w, c) that a plan makes, not decoded; kwargs as of ``assembly.draw``."""
        return assembly.draw(dataclasses.replace(self.trained, decode=None), plan, seeds, **kwargs).images

    def parameters(self) -> dict[str, int]:
        """Number of parameters of each part."""
        return {name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in self._trees().items()}

    def parameter_bytes(self) -> int:
        """Memory that all parameters take."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self._trees()))

    def _trees(self) -> dict[str, Any]:
        trees = {"the network": self.pipeline.unet_params, "the autoencoder": self.codec.params}
        return trees if self.pipeline.text is None else {**trees, "the text encoder": self.pipeline.text.params}

    def given(
        self,
        prompts: Callable[[int], str],
        *,
        guidance: float = 7.5,
        guidance_interval: tuple[float, float] = EVERYWHERE,
        negative: str = "",
        cache: str | os.PathLike[str] | None = None,
        on_note: Callable[[str], None] = print,
    ) -> assembly.Given:
        """What ``assembly.draw`` takes as ``given``: for some seeds, the score for their texts.

        Args:
          prompts: seed -> text.
          guidance: weight w of classifier-free guidance; 1 is none.
          guidance_interval: noise levels std/m_t in (low, high] that are guided.
          negative: text to guide away from.
          cache: folder where states of the text encoder are kept.
          on_note: called once with a line for each prompt that is cut.

        Raises:
          PdsError: an unconditional model, or a weight that is none.
        """
        if self.pipeline.text is None:
            raise PdsError(f"{self.pipeline.path} is a model without text: it takes no prompt and no guidance")
        encode = _Encoded(self.pipeline, cache, on_note)
        away = encode([negative])[0]

        def score_of(seeds: Sequence[int]) -> tuple[None, Any]:
            states = encode([prompts(seed) for seed in seeds])
            score_fn, sde = self.trained.score_fn, self.trained.sde
            return None, guided(score_fn, sde, states, away, guidance, guidance_interval)

        return score_of


class _Encoded:
    """States of prompts; those of the last few are kept in memory."""

    def __init__(self, pipeline: Pipeline, cache: str | os.PathLike[str] | None, on_note: Callable[[str], None]):
        self._text, self._cache, self._on_note = pipeline.text, cache, on_note
        self._kept: dict[str, np.ndarray] = {}
        self._told: set[str] = set()

    def __call__(self, prompts: Sequence[str]) -> np.ndarray:
        """(n, length, width)."""
        new = list(dict.fromkeys(prompt for prompt in prompts if prompt not in self._kept))
        assert self._text is not None
        if new:
            found = self._text.encode(new, self._cache)
            for note in found.notes:
                if note not in self._told:
                    self._told.add(note)
                    self._on_note(note)
            if len(self._kept) > _MOST_KEPT:
                self._kept = {prompt: self._kept[prompt] for prompt in prompts if prompt in self._kept}
            self._kept.update(zip(new, found.states, strict=True))
        return np.stack([self._kept[prompt] for prompt in prompts])


_MOST_KEPT = 1024


def load(
    path: str | os.PathLike[str],
    *,
    size: tuple[int, int] | None = None,
    statistics: Statistics | None = None,
    dtype: Dtype = jnp.float32,
    variant: str | None = None,
    tile: int | None = None,
    attention_bytes: int = ATTENTION_BYTES,
) -> LatentModel:
    """Load a pipeline's folder.

    Args:
      path: the folder, with ``model_index.json``.
      size: (H, W) of the images; by default those that the network was trained on.
      statistics: of latents, for M (``latent.statistics``).
      dtype: of the networks; states of the sampler stay float32.
      variant: of the weights, see ``folder.load_pipeline``.
      tile: latents along each axis to decode at once, see :class:`~pds_jax.latent.codec.Codec`.
      attention_bytes: of attention logits at once.

    Raises:
      PdsError: what ``folder.load_pipeline`` refuses, a size that the autoencoder has not, or statistics of images.
    """
    pipeline = load_pipeline(path, dtype=dtype, variant=variant, attention_bytes=attention_bytes)
    codec = Codec(pipeline.autoencoder, pipeline.autoencoder_params, tile)
    factor = codec.model.sizes.factor
    shape = (*_latent_size(pipeline, size, factor), pipeline.channels)
    if statistics is not None:
        check_statistics(statistics, "the statistics file").check_shape(shape)
    config = configuration(
        {
            "name": "latent",
            "num_scales": len(pipeline.alpha_bar),
            "dtype": jnp.dtype(dtype).name,
            "context_dim": 0 if pipeline.text is None else pipeline.text.shape[1],
        },
        sde="latent",
        image_size=shape[0],
        channels=shape[2],
        sampling={**_SAMPLING, "speed_up": max(len(pipeline.alpha_bar) / 20, 1.0)},
    )
    config.data.image_size = shape[0] if shape[0] == shape[1] else shape[:2]
    config.data.centered = False  # latents are in no range; nothing is to be scaled
    trained = assembly.Trained(
        name=str(path),
        config=config,
        sde=get_sde(pipeline),
        score_fn=get_score(pipeline),
        shape=shape,
        statistics=statistics,
        digest=_digest(pipeline),
        decode=codec.decode,
        decoded_shape=(factor * shape[0], factor * shape[1], codec.model.sizes.image_channels),
    )
    return LatentModel(trained, pipeline, codec)


def _latent_size(pipeline: Pipeline, size: tuple[int, int] | None, factor: int) -> tuple[int, int]:
    if size is None:
        if pipeline.latent_size is None:
            raise PdsError(f"{pipeline.path} does not say how large its images are; give --image_size")
        return pipeline.latent_size
    if any(side < factor or side % factor for side in size):
        raise PdsError(f"images of {size[0]}x{size[1]} pixels: height and width must be multiples of {factor}")
    return size[0] // factor, size[1] // factor


def _digest(pipeline: Pipeline) -> str:
    """SHA-256 of all weights that an image depends on."""
    parts: Mapping[str, str] = {
        "unet": digest_of(pipeline.unet_params),
        "autoencoder": digest_of(pipeline.autoencoder_params),
        "text": "" if pipeline.text is None else pipeline.text.digest,
    }
    return hashlib.sha256(" ".join(f"{name} {digest}" for name, digest in parts.items()).encode()).hexdigest()
