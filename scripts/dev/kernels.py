"""Forms of the network's parts that are not convolutions, timed in turns at the CIFAR-10 network's shapes.

    python scripts/dev/kernels.py

Says which form the network uses; then what eight equal residual blocks cost one after the other and as a scan over
their stacked weights. Times are CPU seconds of the process on a CPU, so that other work on it counts little, and
seconds of the clock elsewhere. The last line is JSON, in milliseconds.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax import lax

from pds_jax.bench import quality
from pds_jax.cli import scripts
from pds_jax.models import layers, layerspp
from pds_jax.models import up_or_down_sampling as resampling
from pds_jax.types import Array

_BATCH = flags.DEFINE_integer("batch", 4, "Images at once.")
_TURNS = flags.DEFINE_integer("turns", 9, "Turns; figures are medians over them.")
FIR = (1, 3, 3, 1)
IMAGES = ("NHWC", "HWIO", "NHWC")


def depthwise(x: Array, up: bool) -> Array:
    """FIR resampling as one depthwise convolution."""
    taps = resampling.fir_taps(FIR, 2, 2 if up else 1)
    channels = x.shape[-1]
    w = jnp.broadcast_to(jnp.asarray(np.outer(taps, taps), jnp.float32)[:, :, None, None], (4, 4, 1, channels))
    if up:
        around, dilation, stride = [(2, 2), (2, 2)], (2, 2), (1, 1)
    else:
        around, dilation, stride = [(1, 1), (1, 1)], (1, 1), (2, 2)
    return lax.conv_general_dilated(
        x, w, stride, around, lhs_dilation=dilation, dimension_numbers=IMAGES, feature_group_count=channels
    )


def dense(x: Array, matrix: np.ndarray) -> Array:
    """Separable resampling as two matrix products."""
    return jnp.einsum("nw,bmwc->bmnc", matrix, jnp.einsum("mh,bhwc->bmwc", matrix, x))


def matrix_of(size: int, up: bool) -> np.ndarray:
    """The matrix of FIR resampling along one axis."""
    taps = resampling.fir_taps(FIR, 2, 2 if up else 1)
    way: dict[str, Any] = {"up": 2, "pad": (2, 1)} if up else {"down": 2, "pad": (1, 1)}
    return np.asarray(resampling.upfirdn1d(jnp.eye(size)[None], taps, 1, **way))[0]


def dot_product_attention(q: Array, k: Array, v: Array) -> Array:
    """JAX's own attention."""
    b, h, w, c = q.shape
    return jax.nn.dot_product_attention(*(a.reshape(b, h * w, 1, c) for a in (q, k, v))).reshape(b, h, w, c)


def flax_norm(x: Array, scale: Array, bias: Array) -> Array:
    """flax's GroupNorm, then swish."""
    module = nn.GroupNorm(num_groups=layerspp.group_count(x.shape[-1]), epsilon=1e-6)
    return nn.swish(module.apply({"params": {"scale": scale, "bias": bias}}, x))


def our_norm(x: Array, scale: Array, bias: Array) -> Array:
    """The network's GroupNorm, then swish."""
    return nn.swish(layerspp.GroupNorm().apply({"params": {"scale": scale, "bias": bias}}, x))


def cases(batch: int) -> dict[str, dict[str, tuple[Callable[..., Any], tuple[Array, ...]]]]:
    """What is compared: part -> form -> (function, inputs); the first form is the one in use."""
    rng = np.random.default_rng(0)

    def array(*shape: int) -> Array:
        return jnp.asarray(rng.standard_normal(shape, np.float32))

    x, pixels, channels = array(batch, 32, 32, 128), array(3, batch, 16, 16, 256), (array(128), array(128))
    halving, doubling = matrix_of(32, False), matrix_of(32, True)
    return {
        "FIR down, 32x32x128": {
            "shifted sums": (lambda x: resampling.downsample_2d(x, FIR), (x,)),
            "matrices": (lambda x: dense(x, halving), (x,)),
            "depthwise convolution": (lambda x: depthwise(x, False), (x,)),
        },
        "FIR up, 32x32x128": {
            "shifted sums": (lambda x: resampling.upsample_2d(x, FIR), (x,)),
            "matrices": (lambda x: dense(x, doubling), (x,)),
            "depthwise convolution": (lambda x: depthwise(x, True), (x,)),
        },
        "attention, 16x16x256": {
            "einsum": (layers.attention, tuple(pixels)),
            "jax.nn.dot_product_attention": (dot_product_attention, tuple(pixels)),
        },
        "GroupNorm and swish, 32x32x128": {
            "by channel, then group": (our_norm, (x, *channels)),
            "flax": (flax_norm, (x, *channels)),
        },
    }


def compare(forms: dict[str, tuple[Callable[..., Any], tuple[Array, ...]]], turns: int) -> dict[str, float]:
    """Milliseconds of each form; all must give the same."""
    compiled = {name: jax.jit(function) for name, (function, _) in forms.items()}
    outputs = [np.asarray(compiled[name](*inputs)) for name, (_, inputs) in forms.items()]
    for name, output in zip(forms, outputs, strict=True):
        np.testing.assert_allclose(output, outputs[0], rtol=1e-4, atol=1e-4, err_msg=name)
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(turns):
        for name, (_, inputs) in forms.items():
            start = now()
            for _ in range(3):
                compiled[name](*inputs).block_until_ready()
            seconds[name].append((now() - start) / 3)
    return {name: 1e3 * statistics.median(values) for name, values in seconds.items()}


def now() -> float:
    """Seconds, of the CPU on a CPU."""
    return time.process_time() if jax.default_backend() == "cpu" else time.perf_counter()


def repeated_blocks(batch: int, turns: int, count: int = 8) -> list[dict[str, Any]]:
    """Equal residual blocks at 16x16x256, as they stand and as a scan over weights stacked before or inside."""
    block = layerspp.ResnetBlockBigGANpp(act=nn.swish, dropout=0.0, fir=True, init_scale=0.1)
    x = jax.random.normal(jax.random.key(0), (batch, 16, 16, 256))
    temb = jax.random.normal(jax.random.key(1), (batch, 512))
    params = block.init(jax.random.key(2), x, temb, False)
    each = [jax.tree.map(lambda leaf, n=n: leaf + 0.01 * n, params) for n in range(count)]

    def stack(each: list[Any]) -> Any:
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)

    def one_by_one(each: list[Any], x: Array, temb: Array) -> Array:
        for params in each:
            x = block.apply(params, x, temb, False)
        return x

    def scanned(stacked: Any, x: Array, temb: Array) -> Array:
        return jax.lax.scan(lambda x, params: (block.apply(params, x, temb, False), None), x, stacked)[0]

    forms: dict[str, tuple[Callable[..., Array], Any]] = {
        "one after the other (in use)": (one_by_one, each),
        "scan, weights stacked before": (scanned, stack(each)),
        "scan, weights stacked inside": (lambda each, x, temb: scanned(stack(each), x, temb), each),
    }
    seconds = {}
    for name, (function, weights) in forms.items():
        start = now()
        jax.jit(function).lower(weights, x, temb).compile()
        seconds[name] = now() - start
    ran = compare({name: (function, (weights, x, temb)) for name, (function, weights) in forms.items()}, turns)
    return [{"form": name, "compile s": seconds[name], "run ms": ran[name]} for name in forms]


def main(argv: list[str]) -> None:
    """Compare and print."""
    scripts.refuse_words(argv)
    found = {part: compare(forms, _TURNS.value) for part, forms in cases(_BATCH.value).items()}
    rows = [
        {"part": part, "form": name, "ms": value, "": "in use" if number == 0 else ""}
        for part, times in found.items()
        for number, (name, value) in enumerate(times.items())
    ]
    blocks = repeated_blocks(_BATCH.value, _TURNS.value)
    print(f"{quality.markdown(rows)}\n{quality.markdown(blocks)}")
    print(json.dumps({**found, "eight equal blocks": {row["form"]: row["run ms"] for row in blocks}}))


if __name__ == "__main__":
    scripts.run(main)
