"""Inception-v3 as FID uses it: the network of 2015-12-05 with the weights ported from TensorFlow.

It is torchvision's Inception-v3 with three changes that come from the original graph: average pools divide by the
number of real pixels, the last block's pool branch is a max pool, and the classifier has 1008 outputs. Parameters keep
the names of the ported files, so a tensor ``Mixed_5b.branch1x1.conv.weight`` is ``Mixed_5b/branch1x1/kernel`` here.

The weights are the user's own file; nothing is downloaded.
"""

from __future__ import annotations

import functools
import hashlib
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from pds_jax.io import files
from pds_jax.io.npy import read_npz
from pds_jax.metrics.resize import resize_bilinear
from pds_jax.types import Array, PdsError, check_choice

LAYERS = ("64", "192", "768", "2048", "logits_unbiased", "logits")
FILE_NAME = "pt_inception-2015-12-05-6726825d.pth"
ADDRESS = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{FILE_NAME}"
ENVIRONMENT = "PDS_INCEPTION"
# What happens between uint8 pixels and the network: resize rule, then (x - offset) / scale.
PREPROCESSING = {"tf1": (128.0, 128.0), "half_pixel": (127.5, 127.5)}

_BN_EPS = 1e-3
_CLASSES = 1008
_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8})\.pth$")
_BATCH_NORM = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}


class ConvBnRelu(nn.Module):
    """y = relu(γ (w ∗ x − m)/√(v + 1e-3) + β), the only layer of the network.

    Attributes:
      features: output channels.
      kernel: (kh, kw).
      stride: the same along both axes.
      padding: zeros on each side of (rows, columns).
    """

    features: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: tuple[int, int] = (0, 0)

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map (B, H, W, C) to (B, H', W', features)."""
        weight = self.param("kernel", nn.initializers.he_normal(), (*self.kernel, x.shape[-1], self.features))
        ones, zeros = nn.initializers.ones, nn.initializers.zeros
        scale, bias = (self.param(n, i, (self.features,)) for n, i in (("scale", ones), ("bias", zeros)))
        mean, var = (self.param(n, i, (self.features,)) for n, i in (("mean", zeros), ("var", ones)))
        x = jax.lax.conv_general_dilated(
            x,
            weight,
            (self.stride, self.stride),
            [(p, p) for p in self.padding],
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=jax.lax.Precision.HIGHEST,
        )
        gain = scale / jnp.sqrt(var + _BN_EPS)
        wide = (1, 1, 1, self.features)
        return nn.relu((x - mean.reshape(wide)) * gain.reshape(wide) + bias.reshape(wide))


def _average_pool(x: Array) -> Array:
    """3x3 mean over the pixels that exist: 4 at corners, 6 at edges, 9 inside."""
    return nn.avg_pool(x, (3, 3), padding=((1, 1), (1, 1)), count_include_pad=False)


def _max_pool(x: Array) -> Array:
    return nn.max_pool(x, (3, 3), strides=(2, 2))


def _same_max_pool(x: Array) -> Array:
    return nn.max_pool(x, (3, 3), padding=((1, 1), (1, 1)))


def _join(*parts: Array) -> Array:
    return jnp.concatenate(parts, axis=-1)


_1X3: dict[str, Any] = {"kernel": (1, 3), "padding": (0, 1)}
_3X1: dict[str, Any] = {"kernel": (3, 1), "padding": (1, 0)}
_3X3: dict[str, Any] = {"kernel": (3, 3), "padding": (1, 1)}
_5X5: dict[str, Any] = {"kernel": (5, 5), "padding": (2, 2)}
_1X7: dict[str, Any] = {"kernel": (1, 7), "padding": (0, 3)}
_7X1: dict[str, Any] = {"kernel": (7, 1), "padding": (3, 0)}
_DOWN: dict[str, Any] = {"kernel": (3, 3), "stride": 2}


class BlockA(nn.Module):
    """Mixed_5b, 5c, 5d: 1x1, 5x5, double 3x3 and pooled branches, at 35x35."""

    pool_features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map (B, 35, 35, C) to (B, 35, 35, 224 + pool_features)."""
        five = ConvBnRelu(48, name="branch5x5_1")(x)
        five = ConvBnRelu(64, **_5X5, name="branch5x5_2")(five)
        double = ConvBnRelu(64, name="branch3x3dbl_1")(x)
        double = ConvBnRelu(96, **_3X3, name="branch3x3dbl_2")(double)
        double = ConvBnRelu(96, **_3X3, name="branch3x3dbl_3")(double)
        pooled = ConvBnRelu(self.pool_features, name="branch_pool")(_average_pool(x))
        return _join(ConvBnRelu(64, name="branch1x1")(x), five, double, pooled)


class BlockB(nn.Module):
    """Mixed_6a: 35x35 to 17x17."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map (B, 35, 35, 288) to (B, 17, 17, 768)."""
        double = ConvBnRelu(64, name="branch3x3dbl_1")(x)
        double = ConvBnRelu(96, **_3X3, name="branch3x3dbl_2")(double)
        double = ConvBnRelu(96, **_DOWN, name="branch3x3dbl_3")(double)
        return _join(ConvBnRelu(384, **_DOWN, name="branch3x3")(x), double, _max_pool(x))


class BlockC(nn.Module):
    """Mixed_6b … 6e: 7x7 convolutions in two factors, at 17x17."""

    width: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map (B, 17, 17, 768) to the same shape."""
        seven = ConvBnRelu(self.width, name="branch7x7_1")(x)
        seven = ConvBnRelu(self.width, **_1X7, name="branch7x7_2")(seven)
        seven = ConvBnRelu(192, **_7X1, name="branch7x7_3")(seven)
        double = ConvBnRelu(self.width, name="branch7x7dbl_1")(x)
        for number, factor in ((2, _7X1), (3, _1X7), (4, _7X1)):
            double = ConvBnRelu(self.width, **factor, name=f"branch7x7dbl_{number}")(double)
        double = ConvBnRelu(192, **_1X7, name="branch7x7dbl_5")(double)
        pooled = ConvBnRelu(192, name="branch_pool")(_average_pool(x))
        return _join(ConvBnRelu(192, name="branch1x1")(x), seven, double, pooled)


class BlockD(nn.Module):
    """Mixed_7a: 17x17 to 8x8."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map (B, 17, 17, 768) to (B, 8, 8, 1280)."""
        three = ConvBnRelu(192, name="branch3x3_1")(x)
        three = ConvBnRelu(320, **_DOWN, name="branch3x3_2")(three)
        seven = ConvBnRelu(192, name="branch7x7x3_1")(x)
        seven = ConvBnRelu(192, **_1X7, name="branch7x7x3_2")(seven)
        seven = ConvBnRelu(192, **_7X1, name="branch7x7x3_3")(seven)
        seven = ConvBnRelu(192, **_DOWN, name="branch7x7x3_4")(seven)
        return _join(three, seven, _max_pool(x))


class BlockE(nn.Module):
    """Mixed_7b and 7c: branches that fork into 1x3 and 3x1, at 8x8."""

    max_pool: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map (B, 8, 8, C) to (B, 8, 8, 2048)."""
        three = ConvBnRelu(384, name="branch3x3_1")(x)
        double = ConvBnRelu(448, name="branch3x3dbl_1")(x)
        double = ConvBnRelu(384, **_3X3, name="branch3x3dbl_2")(double)
        return _join(
            ConvBnRelu(320, name="branch1x1")(x),
            ConvBnRelu(384, **_1X3, name="branch3x3_2a")(three),
            ConvBnRelu(384, **_3X1, name="branch3x3_2b")(three),
            ConvBnRelu(384, **_1X3, name="branch3x3dbl_3a")(double),
            ConvBnRelu(384, **_3X1, name="branch3x3dbl_3b")(double),
            ConvBnRelu(192, name="branch_pool")((_same_max_pool if self.max_pool else _average_pool)(x)),
        )


class Classifier(nn.Module):
    """The last linear layer, with and without its bias."""

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        """Map (B, 2048) to unbiased and biased logits, (B, 1008) each."""
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], _CLASSES))
        bias = self.param("bias", nn.initializers.zeros, (_CLASSES,))
        unbiased = jnp.matmul(x, kernel, precision=jax.lax.Precision.HIGHEST)
        return unbiased, unbiased + bias.reshape(1, _CLASSES)


class Inception(nn.Module):
    """The whole network; computes up to the last layer asked for.

    Attributes:
      layers: which of :data:`LAYERS` to return.
    """

    layers: tuple[str, ...] = ("2048",)

    @nn.compact
    def __call__(self, x: Array) -> dict[str, Array]:
        """Features of normalised images.

        Args:
          x: (B, 299, 299, 3) float32 in about [-1, 1].

        Returns:
          layer -> (B, D) float32; convolutional layers are averaged over the pixels.
        """
        last = max(LAYERS.index(layer) for layer in self.layers)
        out: dict[str, Array] = {}
        for index, stage in enumerate((_stem_64, _stem_192, _blocks_768, _blocks_2048)):
            x = stage(x)
            out[LAYERS[index]] = jnp.mean(x, axis=(1, 2))
            if index == last:
                break
        if last > LAYERS.index("2048"):
            out["logits_unbiased"], out["logits"] = Classifier(name="fc")(out["2048"])
        return {layer: out[layer] for layer in self.layers}


def _stem_64(x: Array) -> Array:
    x = ConvBnRelu(32, **_DOWN, name="Conv2d_1a_3x3")(x)
    x = ConvBnRelu(32, (3, 3), name="Conv2d_2a_3x3")(x)
    return _max_pool(ConvBnRelu(64, **_3X3, name="Conv2d_2b_3x3")(x))


def _stem_192(x: Array) -> Array:
    x = ConvBnRelu(80, name="Conv2d_3b_1x1")(x)
    return _max_pool(ConvBnRelu(192, (3, 3), name="Conv2d_4a_3x3")(x))


def _blocks_768(x: Array) -> Array:
    for letter, pool_features in (("b", 32), ("c", 64), ("d", 64)):
        x = BlockA(pool_features, name=f"Mixed_5{letter}")(x)
    x = BlockB(name="Mixed_6a")(x)
    for letter, width in (("b", 128), ("c", 160), ("d", 160), ("e", 192)):
        x = BlockC(width, name=f"Mixed_6{letter}")(x)
    return x


def _blocks_2048(x: Array) -> Array:
    x = BlockD(name="Mixed_7a")(x)
    x = BlockE(max_pool=False, name="Mixed_7b")(x)
    return BlockE(max_pool=True, name="Mixed_7c")(x)


def preprocess(images: Any, rule: str = "tf1") -> Array:
    """From pixels to the network's input: resize to 299x299, then (x − o)/s.

    Args:
      images: (B, H, W, C) with values 0 … 255, C = 1 (repeated) or 3.
      rule: "tf1" with o = s = 128 (the original FID, torch-fidelity), or "half_pixel" with o = s = 127.5 (pytorch-fid).

    Returns:
      (B, 299, 299, 3) float32.

    Raises:
      PdsError: unknown rule, or channels that are neither gray nor RGB.
    """
    check_choice("resize rule", rule, PREPROCESSING)
    pixels = jnp.asarray(images)
    if pixels.ndim != 4 or pixels.shape[-1] not in (1, 3):
        raise PdsError(f"Inception needs images (B, H, W, 3) or (B, H, W, 1), got {pixels.shape}")
    if pixels.shape[-1] == 1:
        pixels = jnp.repeat(pixels, 3, axis=-1)
    offset, scale = PREPROCESSING[rule]
    return (resize_bilinear(pixels, (299, 299), rule) - offset) / scale


@functools.partial(jax.jit, static_argnames=("layers", "rule"))
def inception_features(
    params: Any, images: Array, layers: tuple[str, ...] = ("2048",), rule: str = "tf1"
) -> dict[str, Array]:
    """Features of images.

    Args:
      params: the tree of :func:`load_weights`.
      images: (B, H, W, C), values 0 … 255.
      layers: which of :data:`LAYERS`.
      rule: see :func:`preprocess`.

    Returns:
      layer -> (B, D) float32.
    """
    features: Any = Inception(layers).apply({"params": params}, preprocess(images, rule))
    return features


# --- weights -----------------------------------------------------------------------------------------------------


@functools.cache
def _expected_shapes() -> dict[str, tuple[int, ...]]:
    """File name of every tensor -> its shape there."""
    network = Inception(("logits",))
    tree = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 299, 299, 3)))["params"]
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {_file_name(_keys(path)): _file_shape(leaf.shape) for path, leaf in flat}


def _keys(path: Any) -> tuple[str, ...]:
    return tuple(key.key for key in path)


def _file_name(keys: tuple[str, ...]) -> str:
    *module, leaf = keys
    if module == ["fc"]:
        return "fc.weight" if leaf == "kernel" else "fc.bias"
    if leaf == "kernel":
        return ".".join((*module, "conv", "weight"))
    return ".".join((*module, "bn", {ours: theirs for theirs, ours in _BATCH_NORM.items()}[leaf]))


def _file_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) == 4:
        return (shape[3], shape[2], shape[0], shape[1])
    return shape[::-1]


def from_state_dict(tensors: Mapping[str, Any], where: str = "the Inception weights") -> dict[str, Any]:
    """Turn the ported file's tensors into a parameter tree.

    Args:
      tensors: name -> array: convolutions (O, I, kh, kw), fc (1008, 2048).
      where: name of the source, for messages.

    Returns:
      Nested dict for :class:`Inception`: kernels (kh, kw, I, O), fc (2048, 1008), float32.

    Raises:
      PdsError: tensors missing, left over, misshapen or not finite.
    """
    expected = _expected_shapes()
    given = {name: np.asarray(value) for name, value in tensors.items() if not name.endswith("num_batches_tracked")}
    missing, extra = sorted(set(expected) - set(given)), sorted(set(given) - set(expected))
    if missing or extra:
        raise PdsError(
            f"{where}: {len(missing)} tensors are missing (first: {missing[:3]}) and {len(extra)} are unknown "
            f"(first: {extra[:3]}); this is not the TF-ported FID network. Get it from {ADDRESS}"
        )
    tree: dict[str, Any] = {}
    for name, shape in expected.items():
        value = given[name].astype(np.float32)
        if value.shape != shape:
            raise PdsError(f"{where}: {name} has shape {value.shape}, expected {shape}")
        if not np.isfinite(value).all():
            raise PdsError(f"{where}: {name} is not finite; the file is damaged")
        _place(tree, name, value)
    return tree


def _place(tree: dict[str, Any], name: str, value: np.ndarray) -> None:
    *module, kind, leaf = name.split(".")
    if name.startswith("fc."):
        module, leaf = ["fc"], "kernel" if leaf == "weight" else "bias"
    else:
        leaf = "kernel" if kind == "conv" else _BATCH_NORM[leaf]
    if value.ndim == 4:
        value = value.transpose(2, 3, 1, 0)
    elif value.ndim == 2:
        value = value.T
    for key in module:
        tree = tree.setdefault(key, {})
    tree[leaf] = np.ascontiguousarray(value)


def find_weights(path: str | os.PathLike[str] | None = None) -> pathlib.Path:
    """Where the user's weights are: the path given, $PDS_INCEPTION, or the cache that pytorch-fid keeps.

    Raises:
      PdsError: none of them exists; says where to get the file. Nothing is downloaded.
    """
    hub = os.environ.get("TORCH_HOME") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "torch"
    )
    chosen = path or os.environ.get(ENVIRONMENT) or os.path.join(hub, "hub", "checkpoints", FILE_NAME)
    found = pathlib.Path(chosen).expanduser()
    if not found.is_file():
        raise PdsError(
            f"the Inception weights are not at {found}; download {ADDRESS} (91 MB, sha256 begins with 6726825d) and "
            f"give its path with --inception_weights (scripts/fid.py: --weights) or in ${ENVIRONMENT}"
        )
    return found


def load_weights(path: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """Read the weights from the user's file, checked and without running pickled code.

    Args:
      path: pytorch-fid's or torch-fidelity's .pth, or the same tensors as .npz or .safetensors; None looks where
        :func:`find_weights` says.

    Returns:
      The parameter tree of :class:`Inception`.

    Raises:
      PdsError: no file, a wrong checksum, or another network inside.
    """
    found = find_weights(path)
    _check_name_hash(found)
    return from_state_dict(_read_tensors(found), str(found))


def _check_name_hash(path: pathlib.Path) -> None:
    """torch hub's rule: the eight digits at the end of a name are the beginning of the SHA-256."""
    match = _HASH_IN_NAME.search(path.name)
    if match is None:
        return
    digest = files.sha256(path)
    if not digest.startswith(match[1]):
        raise PdsError(
            f"{path} has SHA-256 {digest[:8]}…, its name promises {match[1]}…: the download is damaged or the file is "
            f"another one; get it again from {ADDRESS}"
        )


def _read_tensors(path: pathlib.Path) -> Mapping[str, Any]:
    if path.suffix == ".npz":
        return read_npz(path)
    if path.suffix in (".pth", ".pt"):
        return _read_torch(path)
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise PdsError(f"{path} is not a whole .safetensors file ({error})") from error
    raise PdsError(f"{path}: Inception weights come as .pth, .npz or .safetensors")


def _read_torch(path: pathlib.Path) -> Mapping[str, Any]:
    from pds_jax.convert.pickles import Tensor
    from pds_jax.convert.torch_files import opened

    with opened(path) as (value, leaf):
        if not isinstance(value, Mapping) or not all(isinstance(item, Tensor) for item in value.values()):
            raise PdsError(f"{path} holds no plain state_dict; get the file from {ADDRESS}")
        return {str(name): leaf(tensor).read() for name, tensor in value.items()}


def weights_digest(params: Any) -> str:
    """SHA-256 of the values, the same whichever kind of file they came from."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        digest.update("/".join(_keys(path)).encode())
        digest.update(np.ascontiguousarray(leaf, "<f4").tobytes())
    return digest.hexdigest()
