"""RefineNet blocks of NCSN and NCSNv2 (Song and Ermon 2019, 2020; Lin et al. 2017).

The blocks of NCSN are the same with a conditional normalisation before every convolution; they carry their own
names, because a parameter tree is named after its classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from pds_jax.models.layers import Activation, Dtype
from pds_jax.models.normalization import Normalize
from pds_jax.models.up_or_down_sampling import naive_downsample_2d
from pds_jax.types import Array, Key

# Uniform with bound 1/√(fan in), PyTorch's default, which the originals of these networks were trained with.
_kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def _bias_init(fan_in: int) -> Callable[..., Array]:
    bound = fan_in**-0.5

    def init(key: Key, shape: tuple[int, ...], dtype: Dtype = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def ncsn_conv3x3(x: Array, features: int, *, bias: bool = True, dilation: int = 1, dtype: Dtype) -> Array:
    """3x3 convolution with PyTorch's default initialisation, a submodule named ``Conv_n``.

    Args:
      x: (B, H, W, C).
      features: output channels D.
      bias: whether there is a bias.
      dilation: spacing of the taps.
      dtype: compute dtype.

    Returns:
      (B, H, W, D).
    """
    conv = nn.Conv(
        features,
        (3, 3),
        kernel_dilation=(dilation, dilation),
        padding="SAME",
        use_bias=bias,
        kernel_init=_kernel_init,
        bias_init=_bias_init(9 * x.shape[-1]),
        dtype=dtype,
    )
    return conv(x)


class ConvMeanPool(nn.Module):
    """Convolution, then the mean of 2x2 blocks."""

    features: int
    kernel_size: int = 3
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Convolve and pool.

        Args:
          x: (B, H, W, C).

        Returns:
          (B, H / 2, W / 2, features).
        """
        return naive_downsample_2d(nn.Conv(self.features, (self.kernel_size,) * 2, dtype=self.dtype)(x))


class ResidualBlock(nn.Module):
    """Pre-activated residual block; with ``down`` it halves the image, or dilates instead if dilation > 1."""

    features: int
    act: Activation
    normalize: Normalize
    down: bool = False
    dilation: int = 1
    dtype: Dtype = jnp.float32

    def _conv(self, x: Array, features: int) -> Array:
        return ncsn_conv3x3(x, features, dilation=self.dilation, dtype=self.dtype)

    @nn.compact
    def __call__(self, x: Array, y: Array | None = None) -> Array:
        """Apply the block.

        Args:
          x: (B, H, W, C); C is ``features`` unless ``down``.
          y: (B,) labels for a conditional normalisation.

        Returns:
          (B, H', W', features).
        """
        h = self._conv(self.act(self.normalize(x, y)), x.shape[-1])
        h = self.act(self.normalize(h, y))
        if not self.down:
            return self._conv(h, self.features) + x
        if self.dilation > 1:
            return self._conv(h, self.features) + self._conv(x, self.features)
        h = ConvMeanPool(self.features, dtype=self.dtype)(h)
        return h + ConvMeanPool(self.features, kernel_size=1, dtype=self.dtype)(x)


class ConditionalResidualBlock(ResidualBlock):
    """:class:`ResidualBlock` of NCSN."""


class RCUBlock(nn.Module):
    """Residual convolution unit: n_blocks residuals of n_stages activations and convolutions."""

    features: int
    n_blocks: int
    act: Activation
    n_stages: int = 2
    normalize: Normalize | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, y: Array | None = None) -> Array:
        """Apply the block.

        Args:
          x: (B, H, W, features).
          y: (B,) labels for a conditional normalisation.

        Returns:
          (B, H, W, features).
        """
        for _ in range(self.n_blocks):
            residual = x
            for _ in range(self.n_stages):
                x = x if self.normalize is None else self.normalize(x, y)
                x = ncsn_conv3x3(self.act(x), self.features, bias=False, dtype=self.dtype)
            x = x + residual
        return x


class CondRCUBlock(RCUBlock):
    """:class:`RCUBlock` of NCSN."""


class MSFBlock(nn.Module):
    """Multi-resolution fusion: every input is convolved, resized and summed."""

    features: int
    interpolation: str = "bilinear"
    normalize: Normalize | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, xs: Sequence[Array], shape: tuple[int, int], y: Array | None = None) -> Array:
        """Fuse.

        Args:
          xs: images (B, H_i, W_i, C_i).
          shape: (H, W) of the result.
          y: (B,) labels for a conditional normalisation.

        Returns:
          (B, H, W, features).
        """
        total = jnp.zeros((xs[0].shape[0], *shape, self.features), self.dtype)
        for x in xs:
            h = x if self.normalize is None else self.normalize(x, y)
            h = ncsn_conv3x3(h, self.features, dtype=self.dtype)
            if h.shape[1:3] != shape:
                h = jax.image.resize(h, total.shape, self.interpolation)
            total = total + h
        return total


class CondMSFBlock(MSFBlock):
    """:class:`MSFBlock` of NCSN."""


def _avg_pool5(x: Array) -> Array:
    """Mean over 5x5 windows, zeros outside the image counted."""
    return nn.pool(x, 0.0, jax.lax.add, (5, 5), (1, 1), "SAME") * (1 / 25)


class CRPBlock(nn.Module):
    """Chained residual pooling: 5x5 poolings and convolutions in a chain, every link added to the output.

    NCSNv2 pools the maximum; NCSN, which has a normalisation, the average.
    """

    features: int
    act: Activation
    n_stages: int = 2
    normalize: Normalize | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, y: Array | None = None) -> Array:
        """Apply the block.

        Args:
          x: (B, H, W, features).
          y: (B,) labels for a conditional normalisation.

        Returns:
          (B, H, W, features).
        """
        path = x = self.act(x)
        for _ in range(self.n_stages):
            if self.normalize is None:
                path = nn.max_pool(path, (5, 5), padding="SAME")
            else:
                path = _avg_pool5(self.normalize(path, y))
            path = ncsn_conv3x3(path, self.features, bias=False, dtype=self.dtype)
            x = x + path
        return x


class CondCRPBlock(CRPBlock):
    """:class:`CRPBlock` of NCSN."""


class RefineBlock(nn.Module):
    """One RefineNet block: adapt every input (RCU), fuse (MSF), pool in a chain (CRP), and a last RCU."""

    features: int
    act: Activation
    interpolation: str = "bilinear"
    start: bool = False
    end: bool = False
    normalize: Normalize | None = None
    dtype: Dtype = jnp.float32

    rcu: ClassVar[type[RCUBlock]] = RCUBlock
    msf: ClassVar[type[MSFBlock]] = MSFBlock
    crp: ClassVar[type[CRPBlock]] = CRPBlock

    @nn.compact
    def __call__(self, xs: Sequence[Array], shape: tuple[int, int], y: Array | None = None) -> Array:
        """Apply the block.

        Args:
          xs: images (B, H_i, W_i, C_i); one if ``start``.
          shape: (H, W) of the result.
          y: (B,) labels for a conditional normalisation.

        Returns:
          (B, H, W, features).
        """
        shared: dict[str, Any] = {"normalize": self.normalize, "dtype": self.dtype}
        hs = [self.rcu(x.shape[-1], 2, self.act, **shared)(x, y) for x in xs]
        h = hs[0] if self.start else self.msf(self.features, self.interpolation, **shared)(hs, shape, y)
        h = self.crp(self.features, self.act, **shared)(h, y)
        return self.rcu(self.features, 3 if self.end else 1, self.act, **shared)(h, y)


class CondRefineBlock(RefineBlock):
    """:class:`RefineBlock` of NCSN."""

    rcu = CondRCUBlock
    msf = CondMSFBlock
    crp = CondCRPBlock
