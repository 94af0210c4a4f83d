"""Names of the same parameter in three libraries: Flax, score_sde_pytorch and diffusers.

score_sde_pytorch keeps the layers of NCSN++ and DDPM in one list, ``all_modules.N``, in the order in which its
constructor makes them; flax numbers the layers of each class in the order in which they are called. The two orders are
the same, so one walk over the config, in that order, gives both names of every layer, and the place that diffusers'
``UNet2DModel`` keeps it in.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from pds_jax.convert.tree import ConversionError, Pair, Shape
from pds_jax.models.utils import image_size

HWIO_FROM_OIHW = (2, 3, 1, 0)
TRANSPOSE = (1, 0)
FROZEN = "GaussianFourierProjection_0/W"

# Order in which the constructors of score_sde_pytorch's blocks register their layers.
_BLOCK = ("GroupNorm_0", "Conv_0", "Conv2d_0", "Dense_0", "GroupNorm_1", "Conv_1", "Conv_2") + tuple(
    f"NIN_{i}" for i in range(4)
)
_RESIDUAL = {
    "conv1": "Conv_0",
    "normalize2": "InstanceNorm2dPlus_1",
    "conv2": "Conv_1",
    "conv2.conv": "ConvMeanPool_0/Conv_0",
    "shortcut": "Conv_2",
    "shortcut.conv": "ConvMeanPool_1/Conv_0",
    "normalize1": "InstanceNorm2dPlus_0",
}
_LEAVES = {
    "alpha": "alpha",
    "gamma": "gamma",
    "kernel": "weight",
    "weight": "weight",
    "scale": "weight",
    "W": "W",
    "bias": "bias",
    "b": "b",
    "beta": "beta",
}


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer of the walk: its class in flax, its place in diffusers, whether PyTorch's list holds it."""

    cls: str
    place: str = ""
    listed: bool = True


def walk(config: Any) -> Iterator[Layer]:
    """Layers of NCSN++, DDPM++ or DDPM in the order of construction.

    Args:
      config: a score_sde config with model.name ncsnpp or ddpm.

    Yields:
      Every layer, those without parameters too, because they count.
    """
    model = config.model
    plus = model.name == "ncsnpp"
    block = f"ResnetBlock{_block_type(config)}"
    attention = "AttnBlockpp" if plus else "AttnBlock"
    levels = len(model.ch_mult)
    attend = [image_size(config)[0] // 2**level in tuple(model.attn_resolutions) for level in range(levels)]
    progressive = model.progressive.lower() if plus else "none"
    progressive_input = model.progressive_input.lower() if plus else "none"

    if plus and model.embedding_type.lower() == "fourier":
        yield Layer("GaussianFourierProjection", "time_proj")
    if model.conditional:
        yield Layer("Dense", "time_embedding.linear_1")
        yield Layer("Dense", "time_embedding.linear_2")
    yield Layer("Conv", "conv_in")
    for level in range(levels):
        place = f"down_blocks.{level}"
        for i in range(model.num_res_blocks):
            yield Layer(block, f"{place}.resnets.{i}")
            if attend[level]:
                yield Layer(attention, f"{place}.attentions.{i}")
        if level != levels - 1:
            yield Layer(block if block.endswith("BigGANpp") else "Downsample", f"{place}.resnet_down")
            yield from _input_pyramid(progressive_input, place)
    yield Layer(block, "mid_block.resnets.0")
    yield Layer(attention, "mid_block.attentions.0")
    yield Layer(block, "mid_block.resnets.1")
    for level in reversed(range(levels)):
        place = f"up_blocks.{levels - 1 - level}"
        for i in range(model.num_res_blocks + 1):
            yield Layer(block, f"{place}.resnets.{i}")
        if attend[level]:
            yield Layer(attention, f"{place}.attentions.0")
        yield from _output_pyramid(progressive, place, first=level == levels - 1, last=level == 0)
        if level != 0:
            yield Layer(block if block.endswith("BigGANpp") else "Upsample", f"{place}.resnet_up")
    if progressive != "output_skip":
        yield Layer("GroupNorm", "conv_norm_out")
        yield Layer("Conv", "conv_out")


def _block_type(config: Any) -> str:
    if config.model.name == "ddpm":
        return "DDPM"
    return {"biggan": "BigGANpp", "ddpm": "DDPMpp"}[config.model.resblock_type.lower()]


def _input_pyramid(progressive_input: str, place: str) -> Iterator[Layer]:
    if progressive_input == "input_skip":
        yield Layer("Downsample", listed=False)
        yield Layer("Combine", f"{place}.skip_conv")
    elif progressive_input == "residual":
        yield Layer("Downsample")


def _output_pyramid(progressive: str, place: str, first: bool, last: bool) -> Iterator[Layer]:
    if progressive == "residual" and not first:
        yield Layer("Upsample")
    elif progressive != "none":
        if not first:
            yield Layer("Upsample", listed=False)
        yield Layer("GroupNorm", "conv_norm_out" if last else f"{place}.skip_norm")
        yield Layer("Conv", "conv_out" if last else f"{place}.skip_conv")


def _leaf_pairs(target: str, source: str, shapes: Mapping[str, Shape]) -> Iterator[Pair]:
    """Pairs of the leaves of one flax module, in the order in which PyTorch registers them."""
    for leaf, name in _LEAVES.items():
        path = f"{target}/{leaf}"
        if path in shapes:
            yield Pair(path, f"{source}.{name}", _axes(leaf, shapes[path]))


def _axes(leaf: str, shape: Shape) -> tuple[int, ...] | None:
    if leaf in ("kernel", "weight"):
        return HWIO_FROM_OIHW if len(shape) == 4 else TRANSPOSE
    return None


def _listed_pairs(config: Any, shapes: Mapping[str, Shape]) -> Iterator[Pair]:
    """Pairs of NCSN++, DDPM++ and DDPM."""
    numbers: collections.Counter[str] = collections.Counter()
    index = 0
    for layer in walk(config):
        target, source = f"{layer.cls}_{numbers[layer.cls]}", f"all_modules.{index}"
        numbers[layer.cls] += 1
        index += layer.listed
        yield from _leaf_pairs(target, source, shapes)
        for inner in _BLOCK:
            yield from _leaf_pairs(f"{target}/{inner}", f"{source}.{inner}", shapes)


# NCSNv2's stages in PyTorch: residual ones; refining ones as called; the same as constructed.
_STAGES = {
    "ncsnv2_128": (("1", "2", "3", "4", "5"),) * 3,
    "ncsnv2_256": (
        ("1", "2", "3", "31", "4", "5"),
        ("1", "2", "31", "3", "4", "5"),
        ("1", "2", "3", "31", "4", "5"),
    ),
}


def _ncsnv2_pairs(config: Any, shapes: Mapping[str, Shape]) -> Iterator[Pair]:
    """Pairs of NCSNv2, whose PyTorch layers have names of their own."""

    def rcu(target: str, source: str) -> Iterator[Pair]:
        number = 0
        while f"{target}/Conv_{number}/kernel" in shapes:
            name = f"{number // 2 + 1}_{number % 2 + 1}_conv"
            yield from _leaf_pairs(f"{target}/Conv_{number}", f"{source}.{name}", shapes)
            number += 1

    residual, called, constructed = _STAGES[config.model.name]
    yield from _leaf_pairs("Conv_0", "begin_conv", shapes)
    yield from _leaf_pairs("InstanceNorm2dPlus_0", "normalizer", shapes)
    yield from _leaf_pairs("Conv_1", "end_conv", shapes)
    for number in range(2 * len(residual)):
        for name, inner in _RESIDUAL.items():
            source = f"res{residual[number // 2]}.{number % 2}.{name}"
            yield from _leaf_pairs(f"ResidualBlock_{number}/{inner}", source, shapes)
    for stage in constructed:
        number = called.index(stage)
        target, source = f"RefineBlock_{number}", f"refine{stage}"
        inputs = 1 if number == 0 else 2
        for i in range(inputs):
            yield from rcu(f"{target}/RCUBlock_{i}", f"{source}.adapt_convs.{i}")
        yield from rcu(f"{target}/RCUBlock_{inputs}", f"{source}.output_convs")
        for block, name in (("MSFBlock_0", "msf"), ("CRPBlock_0", "crp")):
            for i in range(2):
                yield from _leaf_pairs(f"{target}/{block}/Conv_{i}", f"{source}.{name}.convs.{i}", shapes)


def torch_pairs(config: Any, shapes: Mapping[str, Shape]) -> list[Pair]:
    """Which leaf of a score_sde_pytorch model (without ``module.``) is which parameter.

    Args:
      config: a score_sde config.
      shapes: path and shape of every parameter of its network.

    Returns:
      A pair for every parameter, in the order of PyTorch's ``model.parameters()``.

    Raises:
      ConversionError: score_sde_pytorch has no such network.
    """
    name = config.model.name
    if name in ("ncsnpp", "ddpm"):
        pairs = list(_listed_pairs(config, shapes))
    elif name in _STAGES:
        pairs = list(_ncsnv2_pairs(config, shapes))
    elif name in ("ncsn", "ncsnv2_64"):
        raise ConversionError(
            f"score_sde_pytorch's {name} is another network than score_sde's: its third refine block is half as wide, "
            "so their weights cannot be exchanged"
        )
    else:
        raise ConversionError(f"model.name={name!r} has no counterpart in score_sde_pytorch")
    return _complete(pairs, shapes, "score_sde_pytorch")


def _complete(pairs: list[Pair], shapes: Mapping[str, Shape], library: str) -> list[Pair]:
    missing = set(shapes) - {pair.target for pair in pairs}
    if missing:
        raise ConversionError(f"parameter {sorted(missing)[0]!r} has no counterpart in {library}")
    return pairs


_DIFFUSERS_BLOCK = {
    "GroupNorm_0": "norm1",
    "Conv_0": "conv1",
    "Dense_0": "time_emb_proj",
    "GroupNorm_1": "norm2",
    "Conv_1": "conv2",
    "Conv_2": "conv_shortcut",
}
# The second name is the one of diffusers before 0.13, which the published folders still use.
_DIFFUSERS_ATTENTION = {
    "GroupNorm_0": ("group_norm", "group_norm"),
    "NIN_0": ("to_q", "query"),
    "NIN_1": ("to_k", "key"),
    "NIN_2": ("to_v", "value"),
    "NIN_3": ("to_out.0", "proj_attn"),
}


def diffusers_pairs(config: Any, shapes: Mapping[str, Shape]) -> list[Pair]:
    """Which leaf of a diffusers ``UNet2DModel`` of skip blocks is which parameter of NCSN++.

    Args:
      config: a score_sde config with output_skip and input_skip.
      shapes: path and shape of every parameter of its network.

    Returns:
      A pair for every parameter.

    Raises:
      ConversionError: a layer has no place there.
    """
    numbers: collections.Counter[str] = collections.Counter()
    pairs: list[Pair] = []
    for layer in walk(config):
        target = f"{layer.cls}_{numbers[layer.cls]}"
        numbers[layer.cls] += 1
        if layer.cls == "GaussianFourierProjection":
            pairs.append(Pair(f"{target}/W", f"{layer.place}.weight", aliases=(f"{layer.place}.W",)))
        elif layer.cls == "Combine":
            pairs += _leaf_pairs(f"{target}/Conv_0", layer.place, shapes)
        elif layer.cls == "AttnBlockpp":
            for inner, (new, old) in _DIFFUSERS_ATTENTION.items():
                pairs += _attention_pairs(f"{target}/{inner}", layer.place, new, old, shapes)
        elif layer.cls == "ResnetBlockBigGANpp":
            for inner, name in _DIFFUSERS_BLOCK.items():
                pairs += _leaf_pairs(f"{target}/{inner}", f"{layer.place}.{name}", shapes)
        elif layer.place:
            pairs += _leaf_pairs(target, layer.place, shapes)
    return _complete(pairs, shapes, "diffusers")


def _attention_pairs(target: str, place: str, new: str, old: str, shapes: Mapping[str, Shape]) -> Iterator[Pair]:
    """An attention layer's pairs; diffusers has Linear (out, in) where we have NIN (in, out)."""
    for leaf, name in (("scale", "weight"), ("bias", "bias"), ("W", "weight"), ("b", "bias")):
        if f"{target}/{leaf}" in shapes:
            axes = TRANSPOSE if leaf == "W" else None
            yield Pair(f"{target}/{leaf}", f"{place}.{new}.{name}", axes, (f"{place}.{old}.{name}",))
