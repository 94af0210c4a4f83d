"""DDPM: recorded outputs, layout, initialisation, options."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recorded_networks import (
    apply_recorded,
    check_initialisation,
    fast_jit,
    flatten,
    init_stats,
    layout,
    load,
    modern_shape,
    random_params,
    shapes,
    worst_relative,
)

from pds_jax import models
from pds_jax.models.ddpm import DDPM
from pds_jax.types import PdsError


def test_output_is_the_recorded_one():
    recorded = load("ddpm_vp")
    assert layout(recorded.config) == shapes(recorded.params)
    assert worst_relative(apply_recorded(recorded), recorded.out) < 1e-5


def test_initialisation_is_the_recorded_one():
    check_initialisation("ddpm_vp", load("ddpm_vp").config)


def test_layout_of_the_ve_network_is_the_recorded_one():
    config = load("ddpm_vp").config.copy_and_resolve_references()
    config.model.scale_by_sigma = True
    config.data.centered = False
    want = {path: modern_shape(path, stats[0]) for path, stats in init_stats()["ddpm_ve"].items()}
    assert layout(config) == want
    module = models.create_model(config)
    np.testing.assert_allclose(module.sigmas[0], config.model.sigma_max, rtol=1e-6)


def test_scaling_by_sigma_divides_the_output():
    options = {"nf": 32, "ch_mult": (1,), "num_res_blocks": 1, "attn_resolutions": ()}
    plain = DDPM(**options)
    scaled = DDPM(**options, scale_by_sigma=True, sigmas=(50.0, 0.5))
    x, labels = jax.random.normal(jax.random.key(0), (2, 4, 6, 1)), jnp.asarray([0, 1], jnp.int32)
    params = random_params(plain, x, labels)
    one, other = (
        fast_jit(lambda p, m=m: m.apply({"params": p}, x, labels, train=False))(params) for m in (plain, scaled)
    )
    assert one.shape == x.shape
    np.testing.assert_allclose(one / np.reshape([50, 0.5], (2, 1, 1, 1)), other, rtol=1e-4)


@pytest.mark.parametrize(
    "options",
    [{"conditional": False}, {"resamp_with_conv": False}, {"normalization": "InstanceNorm++"}, {"remat": True}],
)
def test_options_build(options):
    module = DDPM(nf=32, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(4,), **options)
    x = jnp.zeros((1, 8, 4, 2))
    tree = jax.eval_shape(lambda k: module.init_with_output(k, x, jnp.ones(1), False), jax.random.key(0))
    assert tree[0].shape == x.shape
    paths = list(flatten(tree[1]["params"]))
    assert any("Dense" in path for path in paths) == options.get("conditional", True)
    assert any("sample" in path for path in paths) == options.get("resamp_with_conv", True)
    assert any("InstanceNorm2dPlus" in path for path in paths) == ("normalization" in options)


def test_bad_options_are_refused():
    options = {"nf": 32, "ch_mult": (1,), "num_res_blocks": 1, "attn_resolutions": ()}
    with pytest.raises(PdsError, match="VarianceNorm"):
        DDPM(**options, normalization="LayerNorm")
    with pytest.raises(PdsError, match="elu, lrelu"):
        DDPM(**options, nonlinearity="tanh")
    with pytest.raises(PdsError, match="at least 1"):
        DDPM(**(options | {"nf": 0}))


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"attention_type": "none"}, "model.attention_type='none'"),
        ({"scale_by_sigma": True}, "the label is σ.*set model.scale_by_sigma=False or training.continuous=False"),
    ],
)
def test_a_field_that_the_network_would_not_honour_is_refused(fields, message):
    config = importlib.import_module("configs.vp.ddpm.cifar10_continuous").get_config("runlocal")
    config.training.sde = "vesde"
    models.create_model(config)
    config.model.update(fields)
    with pytest.raises(PdsError, match=message):
        models.create_model(config)
