"""The largest configuration, FFHQ at 1024x1024, on one machine: memory and seconds with random weights.

    python scripts/dev/ffhq_memory.py

One evaluation of the full-size network of configs/ve/ffhq_ncsnpp_continuous.py and a run of PC sampling with PDS of two
iterations (four evaluations). The weights are random, so the picture is noise; memory and time are those of trained
ones. The last line is JSON; ``peak_bytes`` is the largest resident set of the process so far, compilation included.
"""

from __future__ import annotations

import json
import resource
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from configs.ve import ffhq_ncsnpp_continuous
from pds_jax import parallel, preconditioner, sampling, sde_lib
from pds_jax.cache import use_compilation_cache
from pds_jax.cli import scripts
from pds_jax.models import create_model, init_model
from pds_jax.score_fn import get_score_fn
from pds_jax.types import ScoreFn

_SIZE = flags.DEFINE_integer("image_size", 1024, "Smaller ones are for trying out; the network stays.")
_STEPS = flags.DEFINE_integer("steps", 2, "Iterations of the sampler.")
_BATCH = flags.DEFINE_integer("batch", 1, "Images at once.")


def peak_bytes() -> int:
    """Largest resident set of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def random_score_fn(config: Any) -> ScoreFn:
    """The configuration's score function with random weights."""
    shapes = jax.eval_shape(lambda: init_model(jax.random.key(0), config))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: jnp.asarray(0.02 * rng.standard_normal(leaf.shape, np.float32)), shapes)
    print(f"{sum(leaf.size for leaf in jax.tree.leaves(params)) / 1e6:.1f} million parameters", flush=True)
    sde, _ = sde_lib.get_sde(config)
    return get_score_fn(sde, create_model(config), params, continuous=True)


def main(argv: list[str]) -> None:
    """Measure and print."""
    scripts.refuse_words(argv)
    use_compilation_cache(None)
    config = ffhq_ncsnpp_continuous.get_config()
    config.data.image_size = _SIZE.value
    shape = (_SIZE.value, _SIZE.value, config.data.num_channels)
    facts: dict[str, Any] = {"shape": shape, "batch": _BATCH.value, "devices": parallel.devices()}
    score_fn = random_score_fn(config)
    facts["parameters_peak_bytes"] = peak_bytes()

    x = jax.random.normal(jax.random.key(1), (_BATCH.value, *shape), jnp.float32)
    t = jnp.full((_BATCH.value,), 0.5, jnp.float32)
    evaluate = jax.jit(lambda score_fn, x, t: score_fn(x, t))
    start = time.perf_counter()
    compiled = evaluate.lower(score_fn, x, t).compile()
    facts["evaluation_compile_seconds"] = time.perf_counter() - start
    memory = compiled.memory_analysis()
    facts["evaluation_temporary_bytes"] = None if memory is None else int(memory.temp_size_in_bytes)
    start = time.perf_counter()
    score = np.asarray(compiled(score_fn, x, t))
    facts["evaluation_seconds"] = time.perf_counter() - start
    facts["evaluation_finite"] = bool(np.isfinite(score).all())
    facts["evaluation_peak_bytes"] = peak_bytes()
    print(json.dumps(facts), flush=True)
    del score, x, compiled

    sde, eps = sde_lib.get_sde(config)
    m = preconditioner.from_radius(shape, 0.1 * _SIZE.value, 1.6)
    sampler = sampling.get_pc_sampler(
        sde.with_num_scales(_STEPS.value), shape, snr=0.15, eps=eps, preconditioner=m, check=False
    )
    keys = sampling.image_keys(range(_BATCH.value))
    start = time.perf_counter()
    parallel.warm_up(sampler, keys, score_fn)
    facts["sampler_compile_seconds"] = time.perf_counter() - start
    start = time.perf_counter()
    drawn = parallel.sample(sampler, keys, score_fn)
    facts["sampler_seconds"] = time.perf_counter() - start
    facts["sampler_nfe"] = int(drawn.nfe)
    facts["sampler_finite"] = bool(np.isfinite(drawn.x).all())
    facts["peak_bytes"] = peak_bytes()
    print(f"peak resident set {facts['peak_bytes'] / 2**30:.2f} GiB")
    print(json.dumps(facts))


if __name__ == "__main__":
    scripts.run(main)
