"""A network that compiles in a blink, and a configuration that trains it; `python tests/tiny.py WORKDIR STEPS` does."""

import os
import sys

import flax.linen as nn
import jax.numpy as jnp

from configs import digits
from pds_jax.models import MODELS, register_model

NAME = "tiny"


class Tiny(nn.Module):
    """Two convolutions that know the logarithm of their label."""

    centered: bool = False
    scale_by_sigma: bool = False

    @nn.compact
    def __call__(self, x, labels, train=True):
        level = nn.Dense(4)(jnp.log1p(labels.astype(jnp.float32))[:, None])
        h = nn.swish(nn.Conv(4, (3, 3))(x) + level[:, None, None, :])
        return nn.Conv(x.shape[-1], (3, 3))(h)


if NAME not in MODELS:
    register_model(NAME)(lambda config: Tiny())


def get_config(arg=""):
    config = digits.get_config(arg)
    config.model.name = NAME
    config.training.update(
        batch_size=8, n_iters=12, log_freq=4, snapshot_freq=8, snapshot_freq_for_preemption=4, n_jitted_steps=2
    )
    config.optim.update(warmup=3, cosine_steps=0)
    config.training.snapshot_sampling = False
    return config


if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"
    from pds_jax.training import train

    chosen = get_config()
    chosen.training.n_iters = int(sys.argv[2])
    train(chosen, sys.argv[1])
