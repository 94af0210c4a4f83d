"""Prompts to the states of a text encoder, each computed once and kept on disk."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pds_jax.checkpoints import digest_of
from pds_jax.convert.folder_weights import TRANSFORMERS_STEMS
from pds_jax.convert.tree import ConversionError, Report
from pds_jax.io import files, npy
from pds_jax.latent import layouts
from pds_jax.latent.blocks import Dtype
from pds_jax.latent.clip import ClipText
from pds_jax.latent.params import load_params, shapes_of, to_device
from pds_jax.latent.tokenizer import ClipTokenizer, load_tokenizer
from pds_jax.types import PdsError

_BATCH = 16


@dataclasses.dataclass(frozen=True)
class Prompts:
    """Prompts as a network takes them.

    Attributes:
      states: (n, length, width) float32.
      notes: one line for each prompt that was cut.
    """

    states: np.ndarray
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class TextEncoder:
    """Tokenizer and text encoder of a folder.

    Attributes:
      tokenizer: texts to numbers.
      model: the encoder.
      params: its parameters.
      digest: SHA-256 of the parameters.
      report: where they came from.
    """

    tokenizer: ClipTokenizer
    model: ClipText
    params: Any
    digest: str
    report: Report

    @property
    def shape(self) -> tuple[int, int]:
        """(length, width) of one prompt's states."""
        return self.tokenizer.length, self.model.sizes.width

    def encode(self, prompts: Sequence[str], cache: str | os.PathLike[str] | None = None) -> Prompts:
        """States of all tokens of each prompt.

        Args:
          prompts: the texts.
          cache: folder where states are kept, one file a prompt; None keeps nothing.

        Raises:
          PdsError: the cache cannot be written.
        """
        tokens = self.tokenizer(prompts)
        notes = tuple(
            f"prompt {prompt[:60]!r} is longer than {self.tokenizer.length - 2} tokens; left out: {cut!r}"
            for prompt, cut in zip(prompts, tokens.cut, strict=True)
            if cut
        )
        places = [self._place(row, cache) for row in tokens.ids]
        states = [_kept(place, self.shape) for place in places]
        missing = [i for i, found in enumerate(states) if found is None]
        for start in range(0, len(missing), _BATCH):
            rows = missing[start : start + _BATCH]
            for i, found in zip(rows, self._run(tokens.ids[rows]), strict=True):
                states[i] = found
                if (place := places[i]) is not None:
                    files.atomic_write(place, functools.partial(np.save, arr=found))
        return Prompts(np.stack([state for state in states if state is not None]), notes)

    def _run(self, ids: np.ndarray) -> np.ndarray:
        padded = np.concatenate([ids, np.repeat(ids[-1:], -len(ids) % _BATCH, axis=0)]) if len(ids) > 1 else ids
        return np.asarray(_apply(self.model, self.params, padded))[: len(ids)]

    def _place(self, row: np.ndarray, cache: str | os.PathLike[str] | None) -> pathlib.Path | None:
        if cache is None:
            return None
        key = f"{self.digest} {np.dtype(self.model.dtype).name} {row.tolist()}"
        name = hashlib.sha256(key.encode()).hexdigest()
        return pathlib.Path(cache) / name[:2] / f"{name}.npy"


@functools.partial(jax.jit, static_argnums=0)
def _apply(model: ClipText, params: Any, ids: Any) -> jax.Array:
    states: jax.Array = model.apply({"params": params}, ids)[0]
    return states


def _kept(place: pathlib.Path | None, shape: tuple[int, int]) -> np.ndarray | None:
    """What the cache holds; a damaged file is not used."""
    if place is None or not place.is_file():
        return None
    try:
        found = npy.read_npy(place)
    except PdsError:
        return None
    return found if found.shape == shape and found.dtype == np.float32 and np.isfinite(found).all() else None


def load_text(
    encoder: str | os.PathLike[str],
    tokenizer: str | os.PathLike[str],
    *,
    dtype: Dtype = jnp.float32,
    variant: str | None = None,
) -> TextEncoder:
    """The text encoder of a diffusers folder.

    Args:
      encoder: its folder, with ``config.json`` and weights.
      tokenizer: the tokenizer's folder.
      dtype: of the computation, and that parameters are kept in.
      variant: of the weights.

    Raises:
      ConversionError: a file is missing or damaged, or of a layout that is not supported.
    """
    words = load_tokenizer(tokenizer)
    sizes = layouts.text_sizes(*layouts.read_config(encoder))
    largest = words.backend.get_vocab_size(with_added_tokens=True)
    if largest > sizes.vocabulary or words.length > sizes.positions:
        raise ConversionError(
            f"{tokenizer} has {largest} tokens and texts of {words.length}, but the encoder in {encoder} takes "
            f"{sizes.vocabulary} and {sizes.positions}; they are of different models"
        )
    model = ClipText(sizes, dtype)
    shapes = shapes_of(lambda: model.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32)))
    params, report = load_params(
        encoder, TRANSFORMERS_STEMS, shapes, prefix="text_model.", variant=variant, dtype=dtype
    )
    return TextEncoder(words, model, to_device(params), digest_of(params), report)
