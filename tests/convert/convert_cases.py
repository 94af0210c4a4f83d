"""The recorded checkpoints, their configurations, and comparisons that the converter's tests share."""

import functools
import json
import pathlib

import jax
import ml_collections
import numpy as np
import pytest

from pds_jax.convert.tree import flatten, nest, template
from pds_jax.models import create_model

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
TORCH = GOLDEN / "torch" / "models"
PIPE = GOLDEN / "torch" / "diffusers" / "pipe_equal"
CHECKPOINT_1 = GOLDEN / "score_sde" / "train" / "checkpoint_1"
PTH = {"ncsnpp_ve": "ncsnpp_ve.pth", "ddpmpp_vp": "ddpmpp_vp.pth", "ddpm_vp": "ddpm_vp.pth.gz"}


def config_from(path, **model):
    config = ml_collections.ConfigDict(json.loads(path.read_text()))
    with config.unlocked():
        for name, value in model.items():
            if name in config.model:
                del config.model[name]
            config.model[name] = value
    return config


def torch_config(name="ncsnpp_ve"):
    return config_from(TORCH / f"{name}.config.json")


def flax_config():
    return config_from(GOLDEN / "score_sde" / "train" / "config.json")


def skip_config(image_size=16, **model):
    """NCSN++ with skip pyramids, of the recorded diffusers folder unless changed."""
    sizes = {"nf": 8, "ch_mult": (1, 2, 2), "attn_resolutions": (), "num_res_blocks": 1}
    config = config_from(GOLDEN / "score_sde" / "models" / "ncsnpp_ve_skip.config.json", **{**sizes, **model})
    config.data.image_size = image_size
    return config


def random_params(config, seed=0):
    """A tree for a config in which every leaf is random."""
    rng = np.random.default_rng(seed)
    return nest({path: 0.1 * rng.normal(size=shape).astype(np.float32) for path, shape in template(config).items()})


def assert_same_tree(a, b):
    a, b = flatten(a), flatten(b)
    assert list(a) == list(b)
    for path in a:
        assert b[path].dtype == np.float32
        np.testing.assert_array_equal(a[path], b[path], err_msg=path)


@functools.cache
def _compiled(config_json):
    model = create_model(ml_collections.ConfigDict(json.loads(config_json)))
    return jax.jit(functools.partial(model.apply, train=False))


def forward(config, params, x, labels):
    """Our network on images NCHW."""
    run = _compiled(json.dumps(config.to_dict(), sort_keys=True))
    return np.asarray(run({"params": params}, x.transpose(0, 2, 3, 1), labels)).transpose(0, 3, 1, 2)


def relative(a, b):
    """Largest difference of a sample over its largest value, the worst sample."""
    axes = tuple(range(1, a.ndim))
    return (np.abs(a - b).max(axis=axes) / np.abs(b).max(axis=axes)).max()


def need_torch():
    return pytest.importorskip("torch", reason="PyTorch is not installed (extra: convert)")


def need_diffusers():
    need_torch()
    return pytest.importorskip("diffusers", reason="diffusers is not installed (extra: convert)")
