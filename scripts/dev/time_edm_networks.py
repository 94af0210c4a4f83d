"""Seconds of one evaluation of EDM's published networks in JAX and, beside it in turns, of the original in PyTorch.

    python scripts/dev/time_edm_networks.py --network=ffhq64
    python scripts/dev/time_edm_networks.py --network=imagenet64 --edm=CHECKOUT

CHECKOUT is a copy of github.com/NVlabs/edm. The weights are random; with --edm both networks have the same, and the
largest difference of their outputs is printed, relative to the largest output. Everything is float32.
"""

from __future__ import annotations

import functools
import importlib
import json
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from pds_jax.bench.timing import clock, in_turns
from pds_jax.cache import set_cpu_flags
from pds_jax.cli import scripts
from pds_jax.convert.edm import config_from_arguments, edm_pairs
from pds_jax.convert.tree import Pair, nest, source_shape, template, to_source
from pds_jax.models import create_model

_NETWORK = flags.DEFINE_enum("network", "ffhq64", ["ffhq64", "imagenet64"], "Of configs/edm.")
_EDM = flags.DEFINE_string("edm", None, "Checkout of NVlabs/edm; without it only our network is timed.")
_BATCH = flags.DEFINE_integer("batch", 1, "Images at once.")
_TURNS = flags.DEFINE_integer("turns", 5, "Evaluations that are timed.")


def draw(rng: np.random.Generator, pair: Pair, shape: tuple[int, ...]) -> np.ndarray:
    """Random weights of the size that keeps activations at about 1; scales near 1."""
    full = source_shape(shape, pair)
    if pair.target.endswith("/scale"):
        return 1 + 0.1 * rng.standard_normal(shape, np.float32)
    fan_in = np.prod(full[1:]) if len(full) > 1 else 100
    return rng.standard_normal(shape, np.float32) / np.float32(np.sqrt(fan_in))


def ours(config: Any, flat: dict[str, np.ndarray], x: np.ndarray, noise: np.ndarray, labels: Any) -> Callable[[], Any]:
    """One evaluation of our network."""
    model, params = create_model(config), jax.tree.map(jnp.asarray, nest(flat))
    apply = jax.jit(lambda params, *inputs: model.apply({"params": params}, *inputs[:2], train=False, labels=inputs[2]))
    inputs = jax.tree.map(jnp.asarray, (x, noise, labels))
    return functools.partial(apply, params, *inputs)


def theirs(name: str, arguments: Any, state: dict[str, np.ndarray], *inputs: Any) -> Callable[[], Any]:
    """One evaluation of the original."""
    import torch

    sys.path.insert(0, str(_EDM.value))
    network = getattr(importlib.import_module("training.networks"), name)(**arguments).eval()
    named = {key.removeprefix("model."): torch.from_numpy(value) for key, value in state.items()}
    missing, unexpected = network.load_state_dict(named, strict=False)
    assert not unexpected and all("resample_filter" in key or "map_augment" in key for key in missing), missing
    noise, labels = (None if value is None else torch.from_numpy(value) for value in inputs[1:])
    images = torch.from_numpy(inputs[0]).permute(0, 3, 1, 2).contiguous()

    def run() -> Any:
        with torch.no_grad():
            return network(images, noise, labels)

    return run


def main(_: list[str]) -> None:
    """Time and print."""
    set_cpu_flags()
    name, arguments = importlib.import_module(f"configs.edm.{_NETWORK.value}").NETWORK
    config = config_from_arguments("EDMPrecond", name, arguments)
    shapes = dict(template(config))
    pairs, rng = edm_pairs(config, shapes), np.random.default_rng(0)
    flat = {pair.target: draw(rng, pair, shapes[pair.target]) for pair in pairs}
    size, classes = config.data.image_size, config.model.label_dim
    x = rng.standard_normal((_BATCH.value, size, size, 3), np.float32)
    noise = np.linspace(-1, 1, _BATCH.value).astype(np.float32)
    labels = np.eye(classes, dtype=np.float32)[: _BATCH.value] if classes else None
    runs = {"jax": ours(config, flat, x, noise, labels)}
    result: dict[str, Any] = {"network": _NETWORK.value, "batch": _BATCH.value}
    if _EDM.value:
        runs["torch"] = theirs(name, arguments, to_source(flat, pairs), x, noise, labels)
        a, b = np.asarray(runs["jax"]()), runs["torch"]().permute(0, 2, 3, 1).numpy()
        result["relative_difference"] = float(np.abs(a - b).max() / np.abs(b).max())
    seconds = in_turns({key: clock(run) for key, run in runs.items()}, _TURNS.value)
    for key, values in seconds.items():
        result |= {f"{key}_seconds_least": float(values.min()), f"{key}_seconds_median": float(np.median(values))}
    print(json.dumps(result))


if __name__ == "__main__":
    scripts.run(main)
