"""Memory and time of one evaluation of Stable Diffusion 1's network with guidance, or of its decoder; random weights.

python scripts/dev/latent_memory.py --part=network
python scripts/dev/latent_memory.py --part=decoder --tile=32
"""

from __future__ import annotations

import functools
import json
import resource
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from pds_jax.cache import set_cpu_flags
from pds_jax.cli import scripts
from pds_jax.convert.tree import nest
from pds_jax.latent import cost, layouts
from pds_jax.latent.autoencoder import Autoencoder
from pds_jax.latent.folder import init_autoencoder, init_unet
from pds_jax.latent.params import shapes_of
from pds_jax.latent.unet2d import UNet2D

_PART = flags.DEFINE_enum("part", "network", ["network", "decoder"], "What to run.")
_SIZE = flags.DEFINE_integer("latents", 64, "Latents of a side; 64 are 512 pixels.")
_TILE = flags.DEFINE_integer("tile", None, "Latents of a side that are decoded at once.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of network and parameters.")
_MIB = flags.DEFINE_integer("attention_mib", 128, "Attention logits at once.")
_RUN = flags.DEFINE_bool("run", True, "Run it too, after compiling.")


def program() -> tuple[Any, dict[str, tuple[int, ...]], tuple[Any, ...]]:
    """Function of (params, *inputs), shapes of the parameters, inputs."""
    dtype, limit, side = jnp.dtype(_DTYPE.value), _MIB.value << 20, _SIZE.value
    if _PART.value == "network":
        unet = UNet2D(layouts.unet_sizes(cost.UNET, "Stable Diffusion 1"), limit, dtype)
        inputs = jnp.zeros((2, side, side, 4)), jnp.full((2,), 500.0), jnp.zeros((2, 77, 768))
        return unet.apply, shapes_of(functools.partial(init_unet, unet)), inputs
    side = min(side, _TILE.value or side)
    decoder = Autoencoder(layouts.autoencoder_sizes(cost.AUTOENCODER, "Stable Diffusion 1"), limit, dtype)
    shapes = shapes_of(functools.partial(init_autoencoder, decoder))
    return functools.partial(decoder.apply, method="decode"), shapes, (jnp.zeros((1, side, side, 4)),)


def main(_: list[str]) -> None:
    """Compile, say what memory it takes, run once."""
    set_cpu_flags()
    apply, shapes, inputs = program()
    rng, dtype = np.random.default_rng(0), jnp.dtype(_DTYPE.value)
    draw = {path: jnp.asarray(0.02 * rng.standard_normal(shape, np.float32), dtype) for path, shape in shapes.items()}
    variables = {"params": nest(draw)}
    start = time.perf_counter()
    compiled = jax.jit(apply).lower(variables, *inputs).compile()
    found: Any = compiled.memory_analysis()
    result = {
        "part": _PART.value,
        "parameters": sum(int(np.prod(shape)) for shape in shapes.values()),
        "parameter_mib": found.argument_size_in_bytes / 2**20,
        "temporary_mib": found.temp_size_in_bytes / 2**20,
        "compile_seconds": time.perf_counter() - start,
    }
    if _RUN.value:
        start = time.perf_counter()
        jax.block_until_ready(compiled(variables, *inputs))
        result["run_seconds"] = time.perf_counter() - start
        result["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(result))


if __name__ == "__main__":
    scripts.run(main)
