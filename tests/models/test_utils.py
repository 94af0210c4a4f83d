"""The registry and building from a config."""

import jax
import ml_collections
import numpy as np
import pytest
from recorded_networks import layout, recorded_config

from pds_jax import models
from pds_jax.models import utils
from pds_jax.types import PdsError


def test_noise_levels_are_score_sdes(golden):
    with np.load(golden / "score_sde/sde/tables.npz") as z:
        names = [name for name in z.files if "sigmas" in name]
        assert names
        for name in names:
            assert z[name][0] > z[name][-1]
            ends = {"sigma_max": float(z[name][0]), "sigma_min": float(z[name][-1]), "num_scales": len(z[name])}
            got = models.get_sigmas(ml_collections.ConfigDict({"model": ends}))
            np.testing.assert_allclose(got, z[name], rtol=1e-5)


def test_known_models():
    assert set(models.MODELS) >= {"ncsnpp", "ddpm", "ncsn", "ncsnv2_64", "ncsnv2_128", "ncsnv2_256"}


def test_a_name_is_registered_once():
    with pytest.raises(PdsError, match="registered already"):
        models.register_model("ncsnpp")(models.get_model("ncsnpp"))


def test_networks_on_pixels_refuse_patches():
    for name in ("adm", "adm_classifier", "ddpm", "ncsn", "ncsnv2_64", "ncsnv2_128", "ncsnv2_256", "songunet"):
        config = ml_collections.ConfigDict({"model": {"name": name, "patch_size": 2}})
        with pytest.raises(PdsError, match=f"patch_size=2: '{name}' computes on pixels; with patches: ncsnpp"):
            models.create_model(config)


def test_image_size_may_be_a_pair():
    config = recorded_config("ncsnpp_ve_cont")
    config.model.attn_resolutions = ()
    square = layout(config)
    with config.data.ignore_type():
        config.data.image_size = (8, 16)
    assert utils.image_size(config) == (8, 16)
    assert layout(config) == square
    with config.data.ignore_type():
        config.data.image_size = (8, 15)
    with pytest.raises(PdsError, match="8x15"):
        models.create_model(config)


def test_modules_of_equal_configs_are_equal_and_hashable():
    """So that a module may be a static argument of jit without recompiling."""
    one, other = (models.create_model(recorded_config("ncsnpp_ve_cont")) for _ in range(2))
    assert one == other and hash(one) == hash(other)


def test_initial_parameters_depend_on_the_key_only():
    config = recorded_config("ncsnpp_ve_cont")
    config.model.update(ch_mult=(1,), attn_resolutions=(), nf=4)
    trees = [models.init_model(jax.random.key(seed), config) for seed in (0, 0, 1)]
    kernels = [tree["Conv_0"]["kernel"] for tree in trees]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert np.abs(kernels[0] - kernels[2]).max() > 0.01
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(trees[0]))
