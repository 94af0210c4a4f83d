"""Snapshots of EDM, ``network-snapshot-*.pkl``: networks and their configuration, read without running anything.

The constructors' arguments lie in the file, so it needs no configuration; one that is given must say the same. Only
``ema`` is read. Writing replaces the numbers in a copy of a snapshot, whose program text is kept.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ml_collections
import numpy as np

from pds_jax.convert.adm_names import adm_pairs
from pds_jax.convert.arguments import Arguments
from pds_jax.convert.names import FROZEN, HWIO_FROM_OIHW, TRANSPOSE
from pds_jax.convert.persistent import module_tensors, opened_pickle, with_numbers
from pds_jax.convert.pickles import PickledObject, Tensor
from pds_jax.convert.sections import configuration
from pds_jax.convert.torch_files import open_plain
from pds_jax.convert.tree import (
    ConversionError,
    Leaf,
    Pair,
    Report,
    Shape,
    assemble,
    check_params,
    template,
    to_source,
)
from pds_jax.data.shapes import image_size
from pds_jax.denoisers import iddpm_levels
from pds_jax.io import files

WRAPPERS = {"EDMPrecond": "edm", "VEPrecond": "ve", "VPPrecond": "vp", "iDDPMPrecond": "iddpm"}
# The SDE that each is sampled with unless a configuration says otherwise: its range of noise, EDM's choice in all four.
_SDES: dict[str, tuple[str, dict[str, float]]] = {
    "edm": ("vesde", {"sigma_min": 0.002, "sigma_max": 80.0}),
    "ve": ("vesde", {"sigma_min": 0.02, "sigma_max": 100.0}),
    "vp": ("vpsde", {}),
    "iddpm": ("vesde", {"sigma_min": 0.002, "sigma_max": 81.0}),
}
_SONG: dict[str, Any] = {
    "label_dim": 0,
    "augment_dim": 0,
    "model_channels": 128,
    "channel_mult": [1, 2, 2, 2],
    "channel_mult_emb": 4,
    "num_blocks": 4,
    "attn_resolutions": [16],
    "dropout": 0.1,
    "label_dropout": 0,
    "embedding_type": "positional",
    "channel_mult_noise": 1,
    "encoder_type": "standard",
    "decoder_type": "standard",
    "resample_filter": [1, 1],
}
_DHARIWAL: dict[str, Any] = {
    "label_dim": 0,
    "augment_dim": 0,
    "model_channels": 192,
    "channel_mult": [1, 2, 3, 4],
    "channel_mult_emb": 4,
    "num_blocks": 3,
    "attn_resolutions": [32, 16, 8],
    "dropout": 0.1,
    "label_dropout": 0,
}
_REQUIRED = ("img_resolution", "in_channels", "out_channels")
_ENCODERS = {"standard": "none", "skip": "input_skip", "residual": "residual"}
_DECODERS = {"standard": "none", "skip": "output_skip"}
# What a configuration may choose for itself.
_FREE = ("dropout", "label_dropout", "dtype", "remat", "sigma_min", "sigma_max", "num_scales", "fourier_scale")


@dataclasses.dataclass(frozen=True)
class _Snapshot:
    config: ml_collections.ConfigDict
    parameters: dict[str, Tensor]
    buffers: dict[str, Tensor]
    half: bool


@contextlib.contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[tuple[_Snapshot, Callable[[Tensor], Leaf]]]:
    with opened_pickle(path) as (value, leaf):
        wrapper = _wrapper(value, str(path))
        tensors = list(module_tensors(wrapper))
        parameters = {name: tensor for name, tensor, buffer in tensors if not buffer}
        buffers = {name: tensor for name, tensor, buffer in tensors if buffer}
        half = wrapper.state.get("use_fp16") is True
        yield _Snapshot(_config_of_wrapper(wrapper, str(path)), parameters, buffers, half), leaf


def _wrapper(value: Any, path: str) -> PickledObject:
    if not isinstance(value, dict) or not isinstance(value.get("ema"), PickledObject):
        found = sorted(map(str, value))[:8] if isinstance(value, dict) else type(value).__name__
        raise ConversionError(
            f"{path}: no network 'ema'; the file holds {found}. Give EDM's network-snapshot-*.pkl, no other pickle"
        )
    wrapper: PickledObject = value["ema"]
    if wrapper.name not in WRAPPERS:
        raise ConversionError(
            f"{path}: 'ema' is of class {wrapper.name!r}; known: {', '.join(WRAPPERS)} of EDM (not those of EDM2)"
        )
    return wrapper


def config_of(path: str | os.PathLike[str]) -> ml_collections.ConfigDict:
    """The configuration of a snapshot, from the constructors' arguments in it.

    Raises ConversionError if the file is damaged, or holds a class or an argument that is not known here.
    """
    with _opened(path) as (snapshot, _):
        return snapshot.config


def _config_of_wrapper(wrapper: PickledObject, path: str) -> ml_collections.ConfigDict:
    modules = wrapper.state.get("_modules")
    network = modules.get("model") if isinstance(modules, dict) else None
    if not isinstance(network, PickledObject):
        raise ConversionError(f"{path}: the wrapper {wrapper.name} holds no network 'model'")
    if network.state.get("_init_args") not in ((), []):
        raise ConversionError(f"{path}: {network.name} was made with arguments without names")
    arguments = network.state.get("_init_kwargs")
    if not isinstance(arguments, dict):
        raise ConversionError(f"{path}: {network.name} carries no constructor arguments")
    unknown = sorted(str(name) for name in arguments if name not in (*_REQUIRED, *_SONG))
    if unknown:
        raise ConversionError(f"{path}: {network.name} was made with {unknown[0]!r}, which is not known here")
    return config_from_arguments(wrapper.name, network.name, {**wrapper.state, **arguments}, where=path)


def config_from_arguments(
    wrapper: str, network: str, arguments: Mapping[str, Any], where: str = "EDM's network"
) -> ml_collections.ConfigDict:
    """Configuration of an EDM network.

    ``wrapper`` is one of EDMPrecond, VEPrecond, VPPrecond, iDDPMPrecond; ``network`` SongUNet or DhariwalUNet;
    ``arguments`` those of the network's constructor (img_resolution, in_channels, out_channels, ...) with the
    wrapper's attributes (sigma_data, beta_d, M, ...); what is absent has EDM's default.

    Raises ConversionError naming the first that is unknown, malformed or not supported.
    """
    given = Arguments(arguments, where)
    for name, known in (("wrapper", (wrapper, WRAPPERS)), ("network", (network, ("SongUNet", "DhariwalUNet")))):
        if known[0] not in known[1]:
            raise ConversionError(f"{where}: the {name} is of class {known[0]!r}; known: {', '.join(known[1])}")
    size, channels, out = (given.integer(name) for name in _REQUIRED)
    kind = WRAPPERS[wrapper]
    if out != channels * (2 if kind == "iddpm" else 1):
        raise ConversionError(f"{where}: {channels} channels in and {out} out do not belong to {wrapper}")
    model = _song(given) if network == "SongUNet" else _dhariwal(given)
    sde, scales = _SDES[kind]
    model |= {
        **scales,
        "out_channels": 0 if out == channels else out,
        "parametrisation": "denoiser",
        "preconditioning": kind,
        **_constants(kind, given),
    }
    sampling = {"predictor": "sde_dpmpp_2m", "grid": "edm"} if sde == "vesde" else {"predictor": "euler_maruyama"}
    return configuration(model, sde=sde, image_size=size, channels=channels, sampling=sampling)


def _constants(kind: str, given: Arguments) -> dict[str, Any]:
    """The wrapper's constants; those that a kind does not have stay at their defaults."""
    fields: dict[str, Any] = {"sigma_data": 0.5, "levels": 1000, "c_1": 0.001, "c_2": 0.008}
    if kind == "edm":
        fields["sigma_data"] = given.positive("sigma_data", 0.5)
    if kind in ("vp", "iddpm"):
        fields["levels"] = given.integer("M", 1000, most=100_000)
    if kind == "vp":
        fields["beta_min"] = given.positive("beta_min", 0.1)
        fields["beta_max"] = round(fields["beta_min"] + given.positive("beta_d", 19.9), 12)
    if kind == "iddpm":
        fields |= {"c_1": given.positive("C_1", 0.001), "c_2": given.positive("C_2", 0.008)}
    return fields


def _unet(given: Arguments, defaults: Mapping[str, Any]) -> dict[str, Any]:
    size = given.integer("img_resolution")
    return {
        "nf": given.integer("model_channels", defaults["model_channels"]),
        "ch_mult": given.integers("channel_mult", defaults["channel_mult"]),
        "channel_mult_emb": given.integer("channel_mult_emb", defaults["channel_mult_emb"]),
        "num_res_blocks": given.integer("num_blocks", defaults["num_blocks"]),
        # Resolutions that the network does not have are left out: they mean nothing.
        "attn_resolutions": tuple(
            r for r in given.integers("attn_resolutions", defaults["attn_resolutions"], empty=True) if r <= size
        ),
        "dropout": given.rate("dropout", defaults["dropout"]),
        "label_dim": given.integer("label_dim", 0, least=0),
        "augment_dim": given.integer("augment_dim", 0, least=0),
        "label_dropout": given.rate("label_dropout", 0),
    }


def _song(given: Arguments) -> dict[str, Any]:
    filter_ = given.integers("resample_filter", _SONG["resample_filter"])
    if len(filter_) % 2 or filter_ != filter_[::-1]:
        raise ConversionError(f"{given.where}: resample_filter={filter_} is not symmetric and of even length")
    return {
        "name": "songunet",
        **_unet(given, _SONG),
        "embedding_type": given.choice("embedding_type", ("positional", "fourier"), "positional"),
        "channel_mult_noise": given.integer("channel_mult_noise", 1),
        "progressive_input": _ENCODERS[given.choice("encoder_type", _ENCODERS, "standard")],
        "progressive": _DECODERS[given.choice("decoder_type", _DECODERS, "standard")],
        "fir_kernel": filter_,
    }


def _dhariwal(given: Arguments) -> dict[str, Any]:
    return {
        "name": "adm",
        **_unet(given, _DHARIWAL),
        "heads": 0,
        "head_channels": 64,
        "heads_up": 0,
        "attention_order": "interleaved",
        "resblock_updown": True,
        "conv_resample": True,
        "scale_shift": True,
        "groups": 0,
    }


# --- weights ---------------------------------------------------------------------------------------------------


def load(path: str | os.PathLike[str], config: Any, shapes: Mapping[str, Shape]) -> tuple[dict[str, Any], Report]:
    """Parameters of a snapshot's ``ema``.

    ``config`` must describe the network that the file describes; ``shapes`` are those of its parameters.
    Raises ConversionError if the file is damaged, or of another network; the first difference is named.
    """
    report = Report("edm", str(path), "ema")
    with _opened(path) as (snapshot, leaf):
        _compare(snapshot.config, config, report.path)
        pairs = edm_pairs(config, shapes)
        names = {pair.source for pair in pairs}
        sources = {name: leaf(tensor) for name, tensor in snapshot.parameters.items()}
        sources |= {name: leaf(tensor) for name, tensor in snapshot.buffers.items() if name in names}
        others = [name for name in snapshot.buffers if name not in names]
        if "u" in others:
            _check_levels(leaf(snapshot.buffers["u"]), config, report.path)
        if snapshot.half:
            report.notes.append("EDM evaluates this network in float16 on GPUs; here model.dtype decides")
        report.unused += [f"{len(others)} buffers, which follow from the arguments"] if others else []
        return assemble(pairs, sources, shapes, report), report


def _compare(theirs: Any, config: Any, path: str) -> None:
    """Refuse a configuration that computes something else than the file's network."""
    for section, fields in (("data", ("image_size", "num_channels", "centered")), ("model", theirs.model)):
        for name in fields:
            if name in _FREE or (name in ("beta_min", "beta_max") and theirs.model.preconditioning != "vp"):
                continue
            found, ours = theirs[section][name], config[section].get(name)
            if isinstance(found, tuple):
                ours = tuple(ours) if ours is not None else None
            same = math.isclose(found, ours, rel_tol=1e-6) if _both_numbers(found, ours) else found == ours
            if not same:
                raise ConversionError(
                    f"{path}: {section}.{name} of the file is {found!r}, of the configuration {ours!r}; leave the "
                    "configuration out (the file carries its own), or correct it"
                )


def _both_numbers(a: Any, b: Any) -> bool:
    return all(type(value) in (int, float) for value in (a, b))


def _check_levels(leaf: Leaf, config: Any, path: str) -> None:
    model = config.model
    expected = iddpm_levels(model.levels, model.c_1, model.c_2)
    if leaf.shape != expected.shape or not np.allclose(leaf.read(), expected, rtol=1e-4, atol=1e-7):
        raise ConversionError(f"{path}: the noise levels 'u' are not those of M={model.levels}, C_1, C_2 in the file")


def rewrite(
    params: Mapping[str, Any], config: Any, original: str | os.PathLike[str], path: str | os.PathLike[str]
) -> None:
    """Write a copy of a snapshot whose ``ema`` has other weights; EDM's own programs load it.

    ``original`` is a snapshot of the same network, possibly compressed by gzip; ``path`` is written uncompressed.
    Raises PdsError if networks differ, or a place cannot be read or written.
    """
    flat = check_params(params, config)
    with _opened(original) as (snapshot, _):
        _compare(snapshot.config, config, str(original))
        tensors = {**snapshot.buffers, **snapshot.parameters}
        arrays = to_source(flat, edm_pairs(config, template(config)))
        with open_plain(original) as file:
            data = with_numbers(file.read(), [(tensors[name], arrays[name]) for name in tensors if name in arrays])
    files.atomic_write(path, lambda file: file.write(data))


def edm_pairs(config: Any, shapes: Mapping[str, Shape]) -> list[Pair]:
    """Which leaf of a wrapper's state dict is which parameter, for SongUNet and DhariwalUNet.

    Raises ConversionError if a parameter has no counterpart.
    """
    if config.model.name == "songunet":
        pairs = list(_song_pairs(config, shapes))
    elif config.model.name == "adm":
        pairs = adm_pairs(config, shapes, "edm")
    else:
        raise ConversionError(f"EDM has no network model.name={config.model.name!r}; known: songunet, adm")
    missing = set(shapes) - {pair.target for pair in pairs}
    if missing:
        raise ConversionError(f"parameter {sorted(missing)[0]!r} has no counterpart in EDM")
    return pairs


_SONG_BLOCK = {
    "GroupNorm_0": "norm0",
    "Conv_0": "conv0",
    "Dense_0": "affine",
    "GroupNorm_1": "norm1",
    "Conv_1": "conv1",
    "Conv_2": "skip",
}


def _song_layers(config: Any) -> Iterator[tuple[str, str]]:
    """(class of the flax layer, EDM's name) of SongUNet's layers, in the order in which both make them."""
    model, size = config.model, image_size(config)[0]
    block, attention = "ResnetBlockBigGANpp", "AttnBlockpp"
    levels = range(len(model.ch_mult))
    place = [f"{size >> level}x{size >> level}" for level in levels]
    attend = [(size >> level) in tuple(model.attn_resolutions) for level in levels]
    for level in levels:
        if level == 0:
            yield "Conv", f"enc.{place[level]}_conv"
        else:
            yield block, f"enc.{place[level]}_down"
            if model.progressive_input == "input_skip":
                yield "Combine", f"enc.{place[level]}_aux_skip"
            elif model.progressive_input == "residual":
                yield "Downsample", f"enc.{place[level]}_aux_residual"
        for i in range(model.num_res_blocks):
            yield block, f"enc.{place[level]}_block{i}"
            if attend[level]:
                yield attention, f"enc.{place[level]}_block{i}"
    for level in reversed(levels):
        if level == levels[-1]:
            yield block, f"dec.{place[level]}_in0"
            yield attention, f"dec.{place[level]}_in0"
            yield block, f"dec.{place[level]}_in1"
        else:
            yield block, f"dec.{place[level]}_up"
        for i in range(model.num_res_blocks + 1):
            yield block, f"dec.{place[level]}_block{i}"
        if attend[level]:
            yield attention, f"dec.{place[level]}_block{model.num_res_blocks}"
        if level == 0 or model.progressive == "output_skip":
            yield "GroupNorm", f"dec.{place[level]}_aux_norm"
            yield "Conv", f"dec.{place[level]}_aux_conv"


def _song_pairs(config: Any, shapes: Mapping[str, Shape]) -> Iterator[Pair]:
    if FROZEN in shapes:
        yield Pair(FROZEN, "model.map_noise.freqs")
    for ours, theirs in (
        ("map_label", "map_label"),
        ("map_augment", "map_augment"),
        ("Dense_0", "map_layer0"),
        ("Dense_1", "map_layer1"),
    ):
        yield from layer_pairs(ours, f"model.{theirs}", shapes)
    numbers: collections.Counter[str] = collections.Counter()
    for cls, name in _song_layers(config):
        target, source = f"{cls}_{numbers[cls]}", f"model.{name}"
        numbers[cls] += 1
        if cls == "ResnetBlockBigGANpp":
            for inner, theirs in _SONG_BLOCK.items():
                yield from layer_pairs(f"{target}/{inner}", f"{source}.{theirs}", shapes)
        elif cls == "AttnBlockpp":
            yield from _attention_pairs(target, source, shapes)
        elif cls == "Combine":
            yield from layer_pairs(f"{target}/Conv_0", source, shapes)
        elif cls == "Downsample":
            yield from layer_pairs(f"{target}/Conv2d_0", source, shapes)
        else:
            yield from layer_pairs(target, source, shapes)


def layer_pairs(target: str, source: str, shapes: Mapping[str, Shape]) -> Iterator[Pair]:
    """Pairs of one convolution, dense layer or normalisation."""
    for leaf in ("kernel", "weight", "scale", "bias"):
        path = f"{target}/{leaf}"
        if path in shapes:
            axes = None
            if leaf in ("kernel", "weight"):
                axes = HWIO_FROM_OIHW if len(shapes[path]) == 4 else TRANSPOSE
            yield Pair(path, f"{source}.{'bias' if leaf == 'bias' else 'weight'}", axes)


def _attention_pairs(target: str, source: str, shapes: Mapping[str, Shape]) -> Iterator[Pair]:
    """Rows 3 c, 3 c + 1 and 3 c + 2 of the one matrix are q, k and v of channel c."""
    yield from layer_pairs(f"{target}/GroupNorm_0", f"{source}.norm2", shapes)
    for i in range(3):
        yield Pair(f"{target}/NIN_{i}/W", f"{source}.qkv.weight", TRANSPOSE, part=(i, 3), ones=2)
        yield Pair(f"{target}/NIN_{i}/b", f"{source}.qkv.bias", part=(i, 3))
    yield Pair(f"{target}/NIN_3/W", f"{source}.proj.weight", TRANSPOSE, ones=2)
    yield Pair(f"{target}/NIN_3/b", f"{source}.proj.bias")
