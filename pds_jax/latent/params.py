"""Parameters of the latent networks, read from files: names follow from those of Flax, every leaf is checked."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pds_jax.convert.folder_weights import find_weights, opened_weights
from pds_jax.convert.tree import ConversionError, Leaf, Pair, Report, Shape, assemble, flatten
from pds_jax.latent.blocks import Dtype

_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}
# Before diffusers 0.17 an autoencoder's attention had these names.
_OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
_POSITIONS = re.compile(r"(.*\.)?embeddings\.position_ids$")


def shapes_of(init: Callable[[], Any]) -> dict[str, Shape]:
    """Path and shape of every parameter that ``init()`` makes; nothing is computed."""
    return {path: tuple(leaf.shape) for path, leaf in flatten(jax.eval_shape(init)["params"]).items()}


def torch_name(path: str) -> str:
    """Name in PyTorch's layout of one of our parameters.

    >>> torch_name("down_blocks.0/resnets.1/conv1/kernel")
    'down_blocks.0.resnets.1.conv1.weight'
    """
    *parents, leaf = path.split("/")
    return ".".join([*parents, _LEAVES.get(leaf, leaf)])


def pairs_of(shapes: Mapping[str, Shape], prefix: str = "") -> list[Pair]:
    """Every parameter with its source.

    Args:
      shapes: path and shape of the parameters.
      prefix: that some versions of the other program put before every name, "text_model." for instance.
    """
    pairs = []
    for path, shape in shapes.items():
        name = torch_name(path)
        is_kernel = path.endswith("/kernel")
        axes = {4: (2, 3, 1, 0), 2: (1, 0)}[len(shape)] if is_kernel else None
        aliases = [f"{prefix}{name}"] if prefix else []
        for new, old in _OLD_ATTENTION.items():
            if re.search(rf"\.attentions\.\d+\.{re.escape(new)}\.", name):
                aliases.append(name.replace(f".{new}.", f".{old}."))
        pairs.append(Pair(path, name, axes, tuple(aliases)))
    return pairs


def load_params(
    folder: str | os.PathLike[str],
    stems: Sequence[str],
    shapes: Mapping[str, Shape],
    *,
    prefix: str = "",
    variant: str | None = None,
    dtype: Dtype = jnp.float32,
) -> tuple[dict[str, Any], Report]:
    """Parameters of one component.

    Args:
      folder: the component's folder.
      stems: see :func:`~pds_jax.convert.folder_weights.find_weights`.
      shapes: path and shape of every parameter of the network.
      prefix: see :func:`pairs_of`.
      variant: of the file; by default float32 where it is there.
      dtype: the parameters are kept in.

    Returns:
      (parameter tree on the host, report).

    Raises:
      ConversionError: a file is missing or damaged, or a leaf is missing, left over or of another shape.
    """
    path = find_weights(folder, stems, variant)
    report = Report("diffusers", str(path), "as saved")
    with opened_weights(path) as sources:
        params = assemble(pairs_of(shapes, prefix), _without_positions(sources, report), shapes, report)
    return (params if dtype == jnp.float32 else _cast(params, dtype)), report


def _without_positions(sources: dict[str, Leaf], report: Report) -> dict[str, Leaf]:
    """Leave out the constant 0, 1, 2, ... that older versions of transformers save beside the weights."""
    kept = {}
    for name, leaf in sources.items():
        if not _POSITIONS.match(name):
            kept[name] = leaf
            continue
        positions = np.asarray(leaf.read()).reshape(-1)
        if not np.array_equal(positions, np.arange(positions.size)):
            raise ConversionError(f"{report.path}: {name!r} should be 0, 1, 2, ... and is not; the file is damaged")
        report.unused.append(f"{name}: the numbers from 0, a constant")
    return kept


def to_device(tree: dict[str, Any]) -> dict[str, Any]:
    """The parameters on the default device; leaf by leaf in place, so that two copies of the whole never exist."""
    for name, value in tree.items():
        tree[name] = to_device(value) if isinstance(value, dict) else jax.device_put(value).block_until_ready()
    return tree


def _cast(tree: dict[str, Any], dtype: Dtype) -> dict[str, Any]:
    """Leaf by leaf in place, so that two copies of the whole never exist."""
    for name, value in tree.items():
        tree[name] = _cast(value, dtype) if isinstance(value, dict) else value.astype(dtype)
    return tree
