"""The registry of networks, and building one from a config."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from pds_jax.data.shapes import image_size
from pds_jax.models.layers import Dtype
from pds_jax.types import Array, Key, PdsError, check_choice

Builder = Callable[[Any], nn.Module]
MODELS: dict[str, Builder] = {}
_WITH_PATCHES: set[str] = set()
_DTYPES: dict[str, Dtype] = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def register_model(name: str, *, patches: bool = False) -> Callable[[Builder], Builder]:
    """Decorator that enters a builder, config -> module, into ``MODELS``.

    Args:
      name: value of ``config.model.name``.
      patches: whether the network reads ``config.model.patch_size``; of the others, a size but 1 is refused.

    Returns:
      The decorator.

    Raises:
      PdsError: if the name is taken.
    """

    def register(builder: Builder) -> Builder:
        if name in MODELS:
            raise PdsError(f"a model named {name!r} is registered already")
        MODELS[name] = builder
        if patches:
            _WITH_PATCHES.add(name)
        return builder

    return register


def get_model(name: str) -> Builder:
    """Builder of a network by name.

    Args:
      name: ``config.model.name``.

    Returns:
      A function config -> flax module.

    Raises:
      PdsError: for an unknown name.
    """
    return MODELS[check_choice("model.name", name, sorted(MODELS))]


def create_model(config: Any) -> nn.Module:
    """Build the network that a config describes.

    Args:
      config: a score_sde config (ml_collections or alike): sections data, model, training.

    Returns:
      A flax module, called as ``module.apply({'params': params}, x, time_cond, train=False)``.

    Raises:
      PdsError: for a field that is missing, or an option that the network does not know; then the message lists
        the known ones.
    """
    builder, size = get_model(config.model.name), config.model.get("patch_size", 1)
    if size != 1 and config.model.name not in _WITH_PATCHES:
        able = ", ".join(sorted(_WITH_PATCHES))
        raise PdsError(f"model.patch_size={size}: {config.model.name!r} computes on pixels; with patches: {able}")
    try:
        return builder(config)
    except AttributeError as e:
        raise PdsError(f"the config of model {config.model.name!r} lacks a field: {e}") from e


def init_model(rng: Key, config: Any) -> dict[str, Any]:
    """Initial parameters of the network that a config describes.

    Args:
      rng: a key.
      config: see :func:`create_model`.

    Returns:
      The parameter tree, nested dicts of float32 with score_sde's names.
    """
    model = create_model(config)
    x = jnp.zeros((1, *image_size(config), config.data.num_channels), jnp.float32)

    def init(rng: Key) -> dict[str, Any]:
        return model.init({"params": rng}, x, jnp.ones((1,), jnp.float32), train=False)["params"]

    if isinstance(rng, jax.core.Tracer):
        return init(rng)
    # Hundreds of random draws, run once: unoptimised, the program compiles several times faster.
    return jax.jit(init, compiler_options={"xla_backend_optimization_level": 0})(rng)


def get_sigmas(config: Any) -> np.ndarray:
    """Noise levels of SMLD, a geometric sequence from σ_max down to σ_min.

    Args:
      config: with model.sigma_max, model.sigma_min, model.num_scales.

    Returns:
      (num_scales,) float32.
    """
    model = config.model
    ends = np.log(np.float64(model.sigma_max)), np.log(np.float64(model.sigma_min))
    return np.exp(np.linspace(*ends, model.num_scales)).astype(np.float32)


def get_dtype(config: Any) -> Dtype:
    """Compute dtype, ``model.dtype``: float32 (default) or bfloat16; parameters and output stay float32."""
    return _DTYPES[check_choice("model.dtype", config.model.get("dtype", "float32"), sorted(_DTYPES))]


def check_sizes(nf: int, ch_mult: Sequence[int], num_res_blocks: int, dropout: float) -> None:
    """Check the sizes of a U-Net.

    Args:
      nf: base width.
      ch_mult: multiples of nf, one per resolution.
      num_res_blocks: blocks per resolution.
      dropout: rate.

    Raises:
      PdsError: for a size below 1, or a rate outside [0, 1).
    """
    if nf < 1 or num_res_blocks < 1 or not ch_mult or min(ch_mult) < 1:
        raise PdsError(
            "model.nf, model.num_res_blocks and every entry of model.ch_mult must be at least 1, "
            f"got {nf}, {num_res_blocks} and {tuple(ch_mult)}"
        )
    if not 0 <= dropout < 1:
        raise PdsError(f"model.dropout={dropout} must be at least 0 and below 1")


def check_divisible(shape: Sequence[int], levels: int, patch_size: int = 1) -> None:
    """Check that images can be cut into patches and halved ``levels - 1`` times.

    Args:
      shape: (H, W).
      levels: number of resolutions.
      patch_size: side of the patches that the network computes on.

    Raises:
      PdsError: if H or W is not a multiple of patch_size 2^(levels - 1).
    """
    factor = patch_size * 2 ** (levels - 1)
    if any(size % factor or size == 0 for size in shape):
        raise PdsError(
            f"images of {shape[0]}x{shape[1]} pixels do not fit a network of {levels} resolutions"
            f"{f' on patches of {patch_size}' if patch_size > 1 else ''}: height and width must be multiples of "
            f"{factor}"
        )


def remat_keeping_name(module: type[nn.Module], enabled: bool, static_argnums: tuple[int, ...] = ()) -> Any:
    """The module class, with its activations recomputed in the backward pass if ``enabled``.

    flax names submodules after their class; keeping the class name keeps the parameter tree.

    Args:
      module: the class.
      enabled: whether to recompute.
      static_argnums: positions of arguments of ``__call__`` that are not arrays; self is 0.

    Returns:
      A class with the same fields.
    """
    if not enabled:
        return module
    wrapped = nn.remat(module, static_argnums=static_argnums)
    wrapped.__name__ = module.__name__
    return wrapped


def divide_by_sigma(h: Array, sigma: Array) -> Array:
    """h_b / σ_b in float32, the output scaling of the networks of SMLD."""
    return h.astype(jnp.float32) / sigma.astype(jnp.float32)[:, None, None, None]
