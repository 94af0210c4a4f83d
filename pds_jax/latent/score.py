"""The network of a pipeline as a score function of latents, for a text each."""

from __future__ import annotations

from typing import Any

import flax.struct
import numpy as np

from pds_jax import adapters, guidance
from pds_jax.classes import EVERYWHERE
from pds_jax.latent.folder import Pipeline
from pds_jax.latent.schedule import TableVPSDE
from pds_jax.latent.unet2d import UNet2D
from pds_jax.types import Array, PdsError, ScoreFn


@flax.struct.dataclass
class LatentPrediction:
    """What a U-Net predicts, ε or v, of noisy latents; a pytree.

    Attributes:
      params: the network's parameters.
      context: (B, length · width) states of the text encoder, one row a latent; None for a network without text.
      model: the network.
      length: tokens of a text.
    """

    params: Any
    context: Any = None
    model: UNet2D = flax.struct.field(pytree_node=False, default=None)
    length: int = flax.struct.field(pytree_node=False, default=0)

    def __call__(self, x: Array, time: Array) -> Array:
        """The prediction (B, h, w, c) float32 at x (B, h, w, c) and the level of training, time (B,)."""
        context = None if self.context is None else self.context.reshape(len(self.context), self.length, -1)
        out: Any = self.model.apply({"params": self.params}, x, time, context)
        return out

    def with_labels(self, labels: Array | None) -> LatentPrediction:
        """The same network for other texts, rows (B, length · width); PdsError if it takes none of their width."""
        width = self.model.sizes.context_width
        if (0 if labels is None else labels.shape[-1]) != self.length * (width or 0):
            needed = "no text" if width is None else f"states of {self.length} tokens of {width} numbers each"
            got = "none" if labels is None else f"rows of {labels.shape[-1]}"
            raise PdsError(f"this network takes {needed}, not {got}")
        return self.replace(context=labels)  # type: ignore[attr-defined,no-any-return]


def get_sde(pipeline: Pipeline) -> TableVPSDE:
    """The SDE of a pipeline's noise levels, with as many as in training."""
    return TableVPSDE(pipeline.alpha_bar)


def get_score(pipeline: Pipeline) -> ScoreFn:
    """Score function of a pipeline under :func:`get_sde`; with text give it some by :func:`guided`."""
    make = adapters.from_v if pipeline.prediction == "v_prediction" else adapters.from_epsilon
    length = 0 if pipeline.text is None else pipeline.text.shape[0]
    predict = LatentPrediction(pipeline.unet_params, model=pipeline.unet, length=length)
    alpha_bar = pipeline.alpha_bar
    return make(predict, get_sde(pipeline), alpha=np.sqrt(alpha_bar), sigma=np.sqrt(1 - alpha_bar))


def guided(
    score_fn: Any,
    sde: Any,
    states: np.ndarray,
    negative: np.ndarray,
    weight: float,
    interval: tuple[float, float] = EVERYWHERE,
) -> ScoreFn:
    """Score for texts, guided away from another by s = s_n + w (s_t − s_n) in one evaluation of twice the batch.

    Args:
      score_fn: of :func:`get_score`.
      sde: its SDE.
      states: (B, length, width) of the texts, one a latent.
      negative: (length, width) of the text to guide away from, commonly of "".
      weight: w; 1 is no guidance and costs one evaluation a call, else two.
      interval: noise levels std/m_t in (low, high] that are guided.

    Raises:
      PdsError: a weight that is none, or states of another width.
    """
    rows = np.asarray(states, np.float32).reshape(len(states), -1)
    if weight == 1:
        return guidance.conditional(score_fn, rows)
    null = np.broadcast_to(np.asarray(negative, np.float32).reshape(1, -1), rows.shape)
    return guidance.classifier_free(score_fn, sde, rows, weight=weight, null=null, interval=interval)
