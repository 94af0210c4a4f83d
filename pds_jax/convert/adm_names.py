"""Names of ADM's parameters in Flax, in EDM's DhariwalUNet and in guided-diffusion's UNetModel."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from pds_jax.convert.names import HWIO_FROM_OIHW, TRANSPOSE
from pds_jax.convert.tree import ConversionError, Pair, Shape
from pds_jax.models.utils import image_size


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer: its class in flax, its names in EDM and in guided-diffusion ("" where it has none)."""

    cls: str
    edm: str
    guided: str


_EDM_BLOCK = {
    "GroupNorm_0": "norm0",
    "Conv_0": "conv0",
    "Dense_0": "affine",
    "GroupNorm_1": "norm1",
    "Conv_1": "conv1",
    "Conv_2": "skip",
}
_GUIDED_BLOCK = {
    "GroupNorm_0": "in_layers.0",
    "Conv_0": "in_layers.2",
    "Dense_0": "emb_layers.1",
    "GroupNorm_1": "out_layers.0",
    "Conv_1": "out_layers.3",
    "Conv_2": "skip_connection",
}
_EDM_ATTENTION = {"GroupNorm_0": "norm2", "Dense_0": "qkv", "Dense_1": "proj"}
_GUIDED_ATTENTION = {"GroupNorm_0": "norm", "Dense_0": "qkv", "Dense_1": "proj_out"}


def _encoder(config: Any) -> Iterator[Layer]:
    """Layers of the contracting path and the middle."""
    model, size = config.model, image_size(config)[0]
    yield Layer("Conv", f"enc.{size}x{size}_conv", "input_blocks.0.0")
    number = 1
    for level in range(len(model.ch_mult)):
        height = size >> level
        for i in range(model.num_res_blocks):
            edm = f"enc.{height}x{height}_block{i}"
            yield Layer("ADMBlock", edm, f"input_blocks.{number}.0")
            if height in tuple(model.attn_resolutions) and _attends(model, level):
                yield Layer("ADMAttention", edm, f"input_blocks.{number}.1")
            number += 1
        if level != len(model.ch_mult) - 1:
            edm = f"enc.{height // 2}x{height // 2}_down"
            if model.resblock_updown:
                yield Layer("ADMBlock", edm, f"input_blocks.{number}.0")
            elif model.conv_resample:
                yield Layer("Conv", "", f"input_blocks.{number}.0.op")
            number += 1
    last = size >> (len(model.ch_mult) - 1)
    yield Layer("ADMBlock", f"dec.{last}x{last}_in0", "middle_block.0")
    if _attends(model, -1):
        yield Layer("ADMAttention", f"dec.{last}x{last}_in0", "middle_block.1")
    yield Layer("ADMBlock", f"dec.{last}x{last}_in1", "middle_block.2")


def _attends(model: Any, level: int) -> bool:
    return bool(model.heads or int(model.nf * model.ch_mult[level]) // model.head_channels)


def _decoder(config: Any) -> Iterator[Layer]:
    """Layers of the expanding path and the head."""
    model, size = config.model, image_size(config)[0]
    number = 0
    for level in reversed(range(len(model.ch_mult))):
        height = size >> level
        for i in range(model.num_res_blocks + 1):
            edm = f"dec.{height}x{height}_block{i}"
            yield Layer("ADMBlock", edm, f"output_blocks.{number}.0")
            attends = height in tuple(model.attn_resolutions) and _attends(model, level)
            if attends:
                yield Layer("ADMAttention", edm, f"output_blocks.{number}.1")
            if level and i == model.num_res_blocks:
                guided = f"output_blocks.{number}.{1 + attends}"
                if model.resblock_updown:
                    yield Layer("ADMBlock", f"dec.{height * 2}x{height * 2}_up", guided)
                elif model.conv_resample:
                    yield Layer("Conv", "", f"{guided}.conv")
            number += 1
    yield Layer("GroupNorm", "out_norm", "out.0")
    yield Layer("Conv", "out_conv", "out.2")


def adm_pairs(config: Any, shapes: Mapping[str, Shape], library: str) -> list[Pair]:
    """Which leaf of a state dict is which parameter of ADM or its classifier.

    ``library`` is "edm" (names as in the wrapper's state dict) or "guided". Raises ConversionError if a parameter has
    no counterpart there.
    """
    edm = library == "edm"
    pairs = list(_embedding(shapes, edm))
    layers = [*_encoder(config)]
    if config.model.name == "adm":
        layers += _decoder(config)
    numbers: collections.Counter[str] = collections.Counter()
    for layer in layers:
        target, name = f"{layer.cls}_{numbers[layer.cls]}", layer.edm if edm else layer.guided
        numbers[layer.cls] += 1
        source = f"model.{name}" if edm else name
        if layer.cls == "ADMBlock":
            pairs += _inner(target, source, _EDM_BLOCK if edm else _GUIDED_BLOCK, shapes, 0)
        elif layer.cls == "ADMAttention":
            # One-by-one convolutions there: of two axes in EDM, of one in guided-diffusion.
            inner = _EDM_ATTENTION if edm else _GUIDED_ATTENTION
            pairs += _inner(target, source, inner, shapes, 2 if edm else 1)
        else:
            pairs += _leaves(target, source, shapes, 0)
    if config.model.name == "adm_classifier":
        pairs += _pooling(config, shapes)
    missing = set(shapes) - {pair.target for pair in pairs}
    if missing:
        raise ConversionError(f"parameter {sorted(missing)[0]!r} has no counterpart in {library}")
    return pairs


def _embedding(shapes: Mapping[str, Shape], edm: bool) -> Iterator[Pair]:
    for ours, theirs in (("Dense_0", "map_layer0"), ("Dense_1", "map_layer1"), ("map_augment", "map_augment")):
        guided = {"map_layer0": "time_embed.0", "map_layer1": "time_embed.2"}.get(theirs, theirs)
        yield from _leaves(ours, f"model.{theirs}" if edm else guided, shapes, 0)
    if "map_label/kernel" in shapes:
        # A table of rows there, a dense layer in EDM.
        name, axes = ("model.map_label.weight", TRANSPOSE) if edm else ("label_emb.weight", None)
        yield Pair("map_label/kernel", name, axes)


def _pooling(config: Any, shapes: Mapping[str, Shape]) -> Iterator[Pair]:
    if config.model.pool == "spatial":
        yield from _leaves("Dense_2", "out.0", shapes, 0)
        yield from _leaves("Dense_3", "out.2", shapes, 0)
        return
    yield from _leaves("GroupNorm_0", "out.0", shapes, 0)
    if config.model.pool == "adaptive":
        yield from _leaves("Dense_2", "out.3", shapes, 2)
        return
    yield Pair("AttentionPool_0/positional_embedding", "out.2.positional_embedding")
    yield from _leaves("AttentionPool_0/Dense_0", "out.2.qkv_proj", shapes, 1)
    yield from _leaves("AttentionPool_0/Dense_1", "out.2.c_proj", shapes, 1)


def _inner(target: str, source: str, names: Mapping[str, str], shapes: Mapping[str, Shape], ones: int) -> list[Pair]:
    found = [_leaves(f"{target}/{ours}", f"{source}.{theirs}", shapes, ones) for ours, theirs in names.items()]
    return [pair for pairs in found for pair in pairs]


def _leaves(target: str, source: str, shapes: Mapping[str, Shape], ones: int) -> Iterator[Pair]:
    """Pairs of one layer; ``ones`` trailing axes of a dense layer's matrix are 1 in the source."""
    kernel = f"{target}/kernel"
    if kernel in shapes:
        dense = len(shapes[kernel]) == 2
        yield Pair(kernel, f"{source}.weight", TRANSPOSE if dense else HWIO_FROM_OIHW, ones=ones if dense else 0)
    if f"{target}/scale" in shapes:
        yield Pair(f"{target}/scale", f"{source}.weight")
    if f"{target}/bias" in shapes:
        yield Pair(f"{target}/bias", f"{source}.bias")
