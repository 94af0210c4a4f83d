"""NCSN (Song and Ermon 2019) and NCSNv2 (2020): a dilated residual network whose levels RefineNet blocks fuse."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from pds_jax.models import refinenet
from pds_jax.models.layers import Dtype, get_act
from pds_jax.models.normalization import get_normalization
from pds_jax.models.utils import (
    check_divisible,
    divide_by_sigma,
    get_dtype,
    get_sigmas,
    image_size,
    register_model,
    remat_keeping_name,
)
from pds_jax.types import Array, PdsError, check_choice

INTERPOLATIONS = ("nearest", "linear", "bilinear", "trilinear", "triangle", "cubic", "bicubic", "tricubic",
                  "lanczos3", "lanczos5")  # fmt: skip


class Level(NamedTuple):
    """One level: width of its residual blocks and of the refine block that leaves it, in units of nf."""

    width: int
    refined: int
    dilation: int = 1


BACKBONES: dict[str, tuple[Level, ...]] = {
    "ncsnv2_64": (Level(1, 1), Level(2, 2), Level(2, 2, 2), Level(2, 2, 4)),
    "ncsnv2_128": (Level(1, 1), Level(2, 1), Level(2, 2), Level(4, 2, 2), Level(4, 4, 4)),
    "ncsnv2_256": (Level(1, 1), Level(2, 1), Level(2, 2), Level(2, 2), Level(4, 2, 2), Level(4, 4, 4)),
}


class NCSNv2(nn.Module):
    """NCSNv2, or NCSN if ``num_classes`` is given: then every normalisation is conditional on the label.

    ``sigmas`` are the noise levels that a label indexes, needed only with ``scale_by_sigma``.
    """

    nf: int
    levels: tuple[Level, ...] = BACKBONES["ncsnv2_64"]
    nonlinearity: str = "elu"
    normalization: str = "InstanceNorm++"
    interpolation: str = "bilinear"
    num_classes: int | None = None
    scale_by_sigma: bool = True
    centered: bool = False
    sigmas: tuple[float, ...] = ()
    dtype: Dtype = jnp.float32
    remat: bool = False

    def __post_init__(self) -> None:
        """Refuse unknown options before any work."""
        check_choice("model.interpolation", self.interpolation, INTERPOLATIONS)
        get_act(self.nonlinearity)
        get_normalization(self.normalization, self.dtype, self.num_classes)
        super().__post_init__()

    @property
    def halvings(self) -> int:
        """How often images are halved: at every level but the first that does not dilate instead."""
        return sum(level.dilation == 1 for level in self.levels[1:])

    @nn.compact
    def __call__(self, x: Array, labels: Array, train: bool = True) -> Array:
        """Evaluate the network.

        Args:
          x: (B, H, W, C) images in the data's range ([0, 1], or [-1, 1] if centered).
          labels: (B,) index of the noise level, 0 is the largest.
          train: ignored, there is no dropout; accepted so that all networks are called alike.

        Returns:
          (B, H, W, C) float32.

        Raises:
          PdsError: if H or W cannot be halved often enough.
        """
        check_divisible(x.shape[1:3], self.halvings + 1)
        labels = labels.astype(jnp.int32)
        y = None if self.num_classes is None else labels
        normalize = get_normalization(self.normalization, self.dtype, self.num_classes)
        act = get_act(self.nonlinearity)

        h = (x if self.centered else 2 * x - 1).astype(self.dtype)
        h = refinenet.ncsn_conv3x3(h, self.nf, dtype=self.dtype)
        h = self._refine(self._encode(h, y), y)
        h = refinenet.ncsn_conv3x3(act(normalize(h, y)), x.shape[-1], dtype=self.dtype)
        if self.scale_by_sigma:
            return divide_by_sigma(h, jnp.asarray(self.sigmas, jnp.float32)[labels])
        return h.astype(jnp.float32)

    def _encode(self, h: Array, y: Array | None) -> list[Array]:
        """Backbone: two residual blocks per level."""
        cls = refinenet.ResidualBlock if self.num_classes is None else refinenet.ConditionalResidualBlock
        normalize = get_normalization(self.normalization, self.dtype, self.num_classes)
        cls = remat_keeping_name(cls, self.remat)
        block = partial(cls, act=get_act(self.nonlinearity), normalize=normalize, dtype=self.dtype)
        layers = []
        for i, level in enumerate(self.levels):
            h = block(level.width * self.nf, down=i > 0, dilation=level.dilation)(h, y)
            h = block(level.width * self.nf, dilation=level.dilation)(h, y)
            layers.append(h)
        return layers

    def _refine(self, layers: list[Array], y: Array | None) -> Array:
        """RefineNet: from the last level to the first, fuse the level with what was refined so far."""
        shared: dict[str, Any] = {
            "act": get_act(self.nonlinearity),
            "interpolation": self.interpolation,
            "dtype": self.dtype,
        }
        cls: type[refinenet.RefineBlock] = refinenet.RefineBlock
        if self.num_classes is not None:
            cls = refinenet.CondRefineBlock
            shared["normalize"] = get_normalization(self.normalization, self.dtype, self.num_classes)
        cls = remat_keeping_name(cls, self.remat, static_argnums=(2,))
        h: Array | None = None
        for i, level in reversed(list(enumerate(self.levels))):
            layer = layers[i]
            block = cls(level.refined * self.nf, start=h is None, end=i == 0, **shared)
            h = block([layer] if h is None else [layer, h], (layer.shape[1], layer.shape[2]), y)
        assert h is not None
        return h


def _build(config: Any, levels: tuple[Level, ...], num_classes: int | None) -> NCSNv2:
    model = config.model
    module = NCSNv2(
        nf=model.nf,
        levels=levels,
        nonlinearity=model.nonlinearity,
        normalization=model.normalization,
        interpolation=model.interpolation,
        num_classes=num_classes,
        scale_by_sigma=model.scale_by_sigma,
        centered=config.data.centered,
        sigmas=tuple(get_sigmas(config).tolist()) if model.scale_by_sigma else (),
        dtype=get_dtype(config),
        remat=bool(model.get("remat", False)),
    )
    check_divisible(image_size(config), module.halvings + 1)
    return module


@register_model("ncsnv2_64")
def ncsnv2_64(config: Any) -> NCSNv2:
    """NCSNv2 for images of 32 to 64 pixels, from a score_sde config."""
    return _build(config, BACKBONES["ncsnv2_64"], None)


@register_model("ncsnv2_128")
def ncsnv2_128(config: Any) -> NCSNv2:
    """NCSNv2 for images of 128 pixels, from a score_sde config."""
    return _build(config, BACKBONES["ncsnv2_128"], None)


@register_model("ncsnv2_256")
def ncsnv2_256(config: Any) -> NCSNv2:
    """NCSNv2 for images of 256 pixels, from a score_sde config."""
    return _build(config, BACKBONES["ncsnv2_256"], None)


@register_model("ncsn")
def ncsn(config: Any) -> NCSNv2:
    """NCSN from a score_sde config.

    Its labels are noise levels, so ``model.num_classes``, which no config of score_sde sets, is ``num_scales``.

    Args:
      config: sections data, model and training.

    Returns:
      The module.

    Raises:
      PdsError: for an unknown option, or fewer classes than noise levels.
    """
    num_classes = config.model.get("num_classes") or config.model.num_scales
    if num_classes < config.model.num_scales:
        raise PdsError(f"model.num_classes={num_classes} is below model.num_scales={config.model.num_scales}")
    return _build(config, BACKBONES["ncsnv2_64"], int(num_classes))
