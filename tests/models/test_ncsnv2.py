"""NCSN and NCSNv2: recorded outputs, layouts, initialisation, bad configs."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recorded_networks import (
    apply_recorded,
    check_initialisation,
    fast_jit,
    init_stats,
    layout,
    load,
    modern_shape,
    random_params,
    recorded_config,
    shapes,
    worst_relative,
)

from pds_jax import models
from pds_jax.models import refinenet
from pds_jax.models.ncsnv2 import BACKBONES, Level, NCSNv2
from pds_jax.types import PdsError


@pytest.mark.parametrize("name", ["ncsnv2", "ncsn"])
def test_output_is_the_recorded_one(name):
    recorded = load(name)
    assert layout(recorded.config) == shapes(recorded.params)
    assert worst_relative(apply_recorded(recorded), recorded.out) < 1e-5


@pytest.mark.slow  # compiles 150 random draws
@pytest.mark.parametrize("name", ["ncsnv2", "ncsn"])
def test_initialisation_is_the_recorded_one(name):
    check_initialisation(name, recorded_config(name))


def test_layout_of_ncsnv2_128_is_the_recorded_one():
    config = recorded_config("ncsnv2")
    config.model.update(name="ncsnv2_128", nf=4)
    config.data.image_size = 32
    want = {path: modern_shape(path, stats[0]) for path, stats in init_stats()["ncsnv2_128"].items()}
    assert layout(config) == want


def test_ncsnv2_256_has_one_level_more():
    config = recorded_config("ncsnv2")
    config.model.update(name="ncsnv2_256", nf=4)
    config.data.image_size = 32
    tree = layout(config)
    assert len({path.split("/")[0] for path in tree if path.startswith("ResidualBlock")}) == 12
    widths = [tree[f"RefineBlock_{i}/CRPBlock_0/Conv_0/kernel"][-1] for i in range(6)]
    assert widths == [16, 8, 8, 8, 4, 4]
    assert [level.dilation for level in BACKBONES["ncsnv2_256"]] == [1, 1, 1, 1, 2, 4]


def test_convolutions_start_as_in_pytorch():
    """Kernel and bias uniform with bound 1/√(fan in), of the first and last convolution too."""

    class Convolution(nn.Module):
        @nn.compact
        def __call__(self, x):
            return refinenet.ncsn_conv3x3(x, 64, dtype=jnp.float32)

    conv = Convolution().init(jax.random.key(0), jnp.zeros((1, 2, 2, 16)))["params"]["Conv_0"]
    bound = 1 / np.sqrt(9 * 16)
    for leaf in conv.values():
        assert 0.9 * bound < np.abs(leaf).max() <= bound * (1 + 1e-6)
        np.testing.assert_allclose(leaf.std(), bound / np.sqrt(3), rtol=0.15)


def test_ncsn_looks_its_normalisation_up_by_label():
    """Only the embeddings see the label: two labels with equal rows give equal outputs."""
    levels = (Level(1, 1), Level(1, 1, 2))
    module = NCSNv2(nf=2, levels=levels, num_classes=3, scale_by_sigma=False)
    x = jax.random.normal(jax.random.key(0), (1, 4, 6, 2))
    labels = jnp.asarray([0], jnp.int32)
    params = random_params(module, x, labels)
    params = jax.tree_util.tree_map_with_path(
        lambda path, a: a.at[1].set(a[0]) if path[-1].key == "embedding" else a, params
    )
    run = fast_jit(lambda label: module.apply({"params": params}, x, label, train=False))
    zero, one, two = (run(labels + i) for i in range(3))
    assert zero.shape == x.shape
    np.testing.assert_array_equal(zero, one)
    assert np.abs(zero - two).max() > 1e-4


def test_remat_keeps_the_tree():
    for name in ("ncsn", "ncsnv2"):
        config = recorded_config(name)
        plain = layout(config)
        config.model.remat = True
        assert models.create_model(config).remat and layout(config) == plain


def test_bad_options_are_refused():
    config = recorded_config("ncsn")
    config.model.num_classes = 9
    with pytest.raises(PdsError, match="num_classes=9 is below model.num_scales=10"):
        models.create_model(config)
    del config.model["num_classes"]
    assert models.create_model(config).num_classes == 10
    config.model.interpolation = "sinc"
    with pytest.raises(PdsError, match="bicubic"):
        models.create_model(config)
    config.model.update(interpolation="nearest", normalization="VarianceNorm")
    with pytest.raises(PdsError, match="no conditional form"):
        models.create_model(config)
    config = recorded_config("ncsnv2")
    config.data.image_size = 15
    with pytest.raises(PdsError, match="15x15"):
        models.create_model(config)
