"""The estimate of memory: by hand on small programs, and against XLA on a network."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from configs.adm import imagenet64
from pds_jax.bench.memory import peak_bytes
from pds_jax.models import create_model, init_model

X = jax.ShapeDtypeStruct((100,), jnp.float32)


def test_a_chain_holds_two_values_at_once():
    assert peak_bytes(lambda x: jnp.sin(jnp.cos(jnp.sin(x))), X) == 2 * 400


def test_a_value_that_is_needed_later_stays():
    def skip(x):
        kept = jnp.sin(x)
        return jnp.sin(jnp.cos(kept)) + kept  # kept, cos and sin

    assert peak_bytes(skip, X) == 3 * 400


def test_a_jitted_part_frees_what_it_is_done_with():
    inner = jax.jit(lambda x: jnp.sin(jnp.concatenate([x, x]))[:100])
    assert peak_bytes(lambda x: inner(inner(x)), X) == peak_bytes(inner, X) + 400


def test_the_estimate_is_near_to_what_a_compiler_needs():
    config = imagenet64.get_config("runlocal")
    model = create_model(config)
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        params = jax.eval_shape(lambda: init_model(jax.random.key(0), config))
    x, t = jax.ShapeDtypeStruct((16, 16, 16, 3), jnp.float32), jax.ShapeDtypeStruct((16,), jnp.float32)

    def apply(params, x, t):
        return model.apply({"params": params}, x, t, train=False)

    found = jax.jit(apply).lower(params, x, t).compile().memory_analysis().temp_size_in_bytes
    estimate = peak_bytes(apply, params, x, t)
    assert 0.5 * found < estimate < 3 * found
    assert math.isfinite(estimate) and isinstance(estimate, int | np.integer)
