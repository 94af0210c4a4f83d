"""The recorded networks of score_sde: config, parameters, inputs and outputs."""

import dataclasses
import functools
import json
import pathlib
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from pds_jax import models

FOLDER = pathlib.Path(__file__).parents[1] / "golden/score_sde/models"


def modern_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """flax wrote group normalisation as (1, 1, 1, C) once, and writes (C,) today."""
    return tuple(shape[-1:]) if path.split("/")[-2:-1][0].startswith("GroupNorm") else tuple(shape)


def flatten(params: Any) -> dict[str, Any]:
    return flax.traverse_util.flatten_dict(params, sep="/")


def shapes(params: Any) -> dict[str, tuple[int, ...]]:
    return {path: tuple(leaf.shape) for path, leaf in flatten(params).items()}


def layout(config: ml_collections.ConfigDict) -> dict[str, tuple[int, ...]]:
    return shapes(jax.eval_shape(lambda rng: models.init_model(rng, config), jax.random.key(0)))


def random_params(module: nn.Module, x: jax.Array, t: jax.Array, scale: float = 0.2) -> Any:
    """Normal parameters in every leaf, drawn on the host: no leaf is zero, and nothing is compiled."""
    tree = jax.eval_shape(lambda key: module.init(key, x, t, train=False)["params"], jax.random.key(0))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(scale * rng.standard_normal(leaf.shape), jnp.float32), tree)


def recorded_config(name: str) -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(json.loads((FOLDER / f"{name}.config.json").read_text()))


def fast_jit(f):
    """jax.jit without LLVM's optimisations: the functions here run once."""
    return jax.jit(f, compiler_options={"xla_backend_optimization_level": 0})


@dataclasses.dataclass(frozen=True)
class Recorded:
    """One recorded network."""

    config: ml_collections.ConfigDict
    params: Any
    x: np.ndarray
    time_cond: np.ndarray
    out: np.ndarray


@functools.cache
def load(name: str) -> Recorded:
    tree = flax.serialization.msgpack_restore((FOLDER / f"{name}.params.msgpack").read_bytes())
    leaves = {path: leaf.reshape(modern_shape(path, leaf.shape)) for path, leaf in flatten(tree).items()}
    with np.load(FOLDER / f"{name}.npz") as z:
        arrays = {key: z[key] for key in ("x", "time_cond", "out")}
    return Recorded(recorded_config(name), flax.traverse_util.unflatten_dict(leaves, sep="/"), **arrays)


def apply_recorded(recorded: Recorded) -> np.ndarray:
    module = models.create_model(recorded.config)
    run = fast_jit(lambda params, x, t: module.apply({"params": params}, x, t, train=False))
    return np.asarray(run(recorded.params, recorded.x, recorded.time_cond))


def worst_relative(got: np.ndarray, want: np.ndarray) -> float:
    """Largest over the samples of max |got - want| / max |want|: samples differ in scale by orders of magnitude."""
    assert got.shape == want.shape
    axes = tuple(range(1, want.ndim))
    return float((np.abs(got - want).max(axis=axes) / np.abs(want).max(axis=axes)).max())


def full_layouts() -> dict[str, dict[str, list[int]]]:
    """Per config and leaf: shape of score_sde's full-size tree."""
    return json.loads((FOLDER.parent / "layouts/full_layouts.json").read_text())


@functools.cache
def init_stats() -> dict[str, dict[str, list]]:
    """Per network and leaf: shape, mean, standard deviation and largest magnitude of score_sde's initialisation."""
    return json.loads((FOLDER / "init_stats.json").read_text())


def check_initialisation(name: str, config: ml_collections.ConfigDict) -> None:
    """Constants are the recorded ones, and random leaves have the recorded spread to sampling error."""
    params = flatten(models.init_model(jax.random.key(1), config))
    recorded = init_stats()[name]
    assert set(params) == set(recorded)
    for path, (shape, mean, std, absmax) in recorded.items():
        leaf = np.asarray(params[path])
        assert leaf.shape == modern_shape(path, shape), path
        if std == 0:
            np.testing.assert_array_equal(leaf, mean, err_msg=path)
            continue
        # Five standard errors of the difference of two draws; a draw's spread has at most the error of its mean.
        error = 5 * std * np.sqrt(2 / leaf.size)
        assert abs(leaf.mean() - mean) < error, path
        assert leaf.size == 1 or abs(leaf.std() - std) < error, path
        if leaf.size > 100:
            assert 0.8 < np.abs(leaf).max() / absmax < 1.25, path
