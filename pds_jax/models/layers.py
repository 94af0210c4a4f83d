"""Layers that the architectures share: initialisers, convolutions, embeddings, the blocks of DDPM."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from pds_jax.types import Array, PdsError, unknown_name

Activation = Callable[[Array], Array]
Dtype = jax.typing.DTypeLike


def _leaky_relu(x: Array) -> Array:
    return nn.leaky_relu(x, negative_slope=0.2)


ACTIVATIONS: dict[str, Activation] = {
    "elu": nn.elu,
    "relu": nn.relu,
    "lrelu": _leaky_relu,
    "swish": nn.swish,
}


def get_act(name: str) -> Activation:
    """Activation by its name in score_sde's configs.

    Args:
      name: one of ``elu, relu, lrelu, swish``, in any case.

    Returns:
      The elementwise function.

    Raises:
      PdsError: for another name.
    """
    if str(name).lower() not in ACTIVATIONS:
        raise PdsError(unknown_name("model.nonlinearity", name, sorted(ACTIVATIONS)))
    return ACTIVATIONS[str(name).lower()]


@functools.cache
def default_init(scale: float = 1.0) -> nn.initializers.Initializer:
    """DDPM's initialiser: uniform with variance scale / mean(fan in, fan out); scale 0 becomes 1e-10.

    flax traces initialisers whenever a network is applied, to check shapes; as a program of its own, one shape is
    traced once.

    Args:
      scale: variance scale.

    Returns:
      A flax initialiser.
    """
    init = nn.initializers.variance_scaling(1e-10 if scale == 0 else scale, "fan_avg", "uniform")
    return jax.jit(init, static_argnums=(1, 2))


def _convolve(x: Array, kernel: Array, *arguments: Any, **options: Any) -> Array:
    """``lax.conv_general_dilated``; on CPUs XLA may not fuse its neighbours into it, which repeats their work."""
    apart = jax.lax.optimization_barrier if jax.default_backend() == "cpu" else lambda a: a
    return apart(jax.lax.conv_general_dilated(apart(x), kernel, *arguments, **options))


def conv3x3(
    features: int, *, stride: int = 1, init_scale: float = 1.0, bias: bool = True, dilation: int = 1, dtype: Dtype
) -> nn.Conv:
    """3x3 convolution with DDPM's initialisation and XLA's SAME padding, a submodule named ``Conv_n``."""
    return nn.Conv(
        features,
        (3, 3),
        strides=(stride, stride),
        kernel_dilation=(dilation, dilation),
        padding="SAME",
        use_bias=bias,
        kernel_init=default_init(init_scale),
        dtype=dtype,
        conv_general_dilated=_convolve,
    )


def conv1x1(features: int, *, init_scale: float = 1.0, bias: bool = True, dtype: Dtype) -> nn.Conv:
    """1x1 convolution with DDPM's initialisation, a submodule named ``Conv_n``."""
    return nn.Conv(features, (1, 1), use_bias=bias, kernel_init=default_init(init_scale), dtype=dtype)


def group_count(channels: int) -> int:
    """Groups of the NCSN++ normalisation: min(C // 4, 32).

    Args:
      channels: C.

    Returns:
      Number of groups.

    Raises:
      PdsError: if they do not divide C.
    """
    groups = min(channels // 4, 32)
    if groups == 0 or channels % groups:
        raise PdsError(
            f"a layer of {channels} channels cannot be split into min(C // 4, 32) = {groups} groups; "
            "choose model.nf and model.ch_mult so that every width is a multiple of 4, and of 32 above 128"
        )
    return groups


def get_timestep_embedding(timesteps: Array, embedding_dim: int, max_positions: int = 10000) -> Array:
    """Sinusoidal embedding [sin(t ω_i), cos(t ω_i)], ω_i = max_positions^(-i / (n - 1)), n = dim // 2.

    Args:
      timesteps: (B,) int or float labels.
      embedding_dim: length of the embedding; an odd one ends in a zero.
      max_positions: ratio of the longest to the shortest period.

    Returns:
      (B, embedding_dim) float32.

    Raises:
      PdsError: if embedding_dim is below 4.
    """
    half = embedding_dim // 2
    if half < 2:
        raise PdsError(f"a positional embedding needs at least 4 channels, got {embedding_dim}")
    omega = np.exp(-math.log(max_positions) / (half - 1) * np.arange(half)).astype(np.float32)
    angles = timesteps.astype(jnp.float32)[:, None] * omega[None]
    embedding = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)
    return jnp.pad(embedding, [(0, 0), (0, embedding_dim % 2)])


class Block(nn.Module):
    """A part that a network holds many of: outside training equal ones are traced once, and then only called.

    Tracing is much of what a second start waits for. A subclass has ``forward`` in place of ``__call__``; its leaves
    and numbers are the same either way.
    """

    def forward(self, x: Array, temb: Array | None = None, train: bool = False) -> Array:
        """What the block computes; the compact method of a subclass."""
        raise AssertionError(f"{type(self).__name__} has no forward")

    def __call__(self, x: Array, temb: Array | None = None, train: bool = False) -> Array:
        """Apply the block.

        Args:
          x: (B, H, W, C).
          temb: (B, D) embedding of the noise level, where the block takes one.
          train: whether dropout is on.

        Returns:
          (B, H', W', out_ch).
        """
        if train or self.is_initializing():
            return self.forward(x, temb, train)
        return _apply_block(self.clone(parent=None, name=None), self.variables["params"], x, temb)


@functools.partial(jax.jit, static_argnums=0)
def _apply_block(block: Block, params: Any, x: Array, temb: Array | None) -> Array:
    out: Array = block.apply({"params": params}, x, temb, False, method=block.forward)  # type: ignore[assignment]
    return out


class NIN(nn.Module):
    """Network in network: the same linear map at every pixel, y = x W + b."""

    num_units: int
    init_scale: float = 0.1
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map channels.

        Args:
          x: (..., C).

        Returns:
          (..., num_units).
        """
        w = self.param("W", default_init(self.init_scale), (x.shape[-1], self.num_units))
        b = self.param("b", nn.initializers.zeros, (self.num_units,))
        y = jnp.matmul(x, w.astype(self.dtype))
        return y + b.astype(self.dtype).reshape((1,) * (y.ndim - 1) + (-1,))


def attention(q: Array, k: Array, v: Array) -> Array:
    """Attention of one head over all pixels, softmax(q kᵀ / √C) v; the softmax is float32.

    Args:
      q: (B, H, W, C).
      k: (B, H, W, C).
      v: (B, H, W, C).

    Returns:
      (B, H, W, C).
    """
    b, h, w, c = q.shape
    q, k, v = (a.reshape(b, h * w, c) for a in (q, k, v))
    logits = jnp.einsum("bic,bjc->bij", q, k, preferred_element_type=jnp.float32) * c**-0.5
    weights = nn.softmax(logits, axis=-1).astype(v.dtype)
    return jnp.einsum("bij,bjc->bic", weights, v).reshape(b, h, w, c)


def add_embedding(h: Array, temb: Array | None, act: Activation, dtype: Dtype) -> Array:
    """h + Dense(act(temb)), the same at every pixel; a submodule named ``Dense_n``.

    Args:
      h: (B, H, W, C).
      temb: (B, D), or None for an unconditional network.
      act: activation.
      dtype: compute dtype.

    Returns:
      (B, H, W, C).
    """
    if temb is None:
        return h
    return h + nn.Dense(h.shape[-1], kernel_init=default_init(), dtype=dtype)(act(temb))[:, None, None, :]
