"""NCSN++ and DDPM++: recorded outputs, parameter layouts, initialisation, options, bad configs."""

import importlib
import itertools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from recorded_networks import (
    apply_recorded,
    check_initialisation,
    fast_jit,
    flatten,
    full_layouts,
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
from pds_jax.models import patches
from pds_jax.models.ncsnpp import NCSNpp
from pds_jax.types import PdsError

TINY = {"nf": 8, "ch_mult": (1, 2), "num_res_blocks": 1, "attn_resolutions": (4,)}


@pytest.mark.parametrize("name", ["ncsnpp_ve_cont", "ncsnpp_ve_skip", "ddpmpp_vp_cont", "ncsnpp_vp_cont"])
def test_output_is_the_recorded_one(name):
    recorded = load(name)
    assert layout(recorded.config) == shapes(recorded.params)
    assert worst_relative(apply_recorded(recorded), recorded.out) < 1e-5


def variant(name: str, **model) -> ml_collections.ConfigDict:
    config = recorded_config(name)
    config.model.update(model)
    return config


def deep() -> ml_collections.ConfigDict:
    config = variant("ncsnpp_ve_cont", num_res_blocks=2, attn_resolutions=(16,))
    config.model.ch_mult = (1, 2, 2)
    config.data.image_size = 32
    return config


def discrete() -> ml_collections.ConfigDict:
    config = variant("ncsnpp_ve_cont", embedding_type="positional")
    config.training.continuous = False
    return config


VARIANTS = {
    "ncsnpp_ve_cont": lambda: recorded_config("ncsnpp_ve_cont"),
    "ncsnpp_ve_deep": deep,
    "ncsnpp_ve_skip": lambda: recorded_config("ncsnpp_ve_skip"),
    "ncsnpp_ve_skip_cat": lambda: variant("ncsnpp_ve_skip", progressive_combine="cat", ch_mult=(1, 2)),
    "ncsnpp_ve_residual_out": lambda: variant("ncsnpp_ve_cont", progressive="residual"),
    "ncsnpp_ve_discrete": discrete,
    "ddpmpp_vp_cont": lambda: recorded_config("ddpmpp_vp_cont"),
    "ddpmpp_vp_resblock_ddpm": lambda: variant("ddpmpp_vp_cont", resblock_type="ddpm"),
    "ncsnpp_vp_cont": lambda: recorded_config("ncsnpp_vp_cont"),
}


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_layout_is_the_recorded_one(name):
    want = {path: modern_shape(path, stats[0]) for path, stats in init_stats()[name].items()}
    assert layout(VARIANTS[name]()) == want


@pytest.mark.slow  # compiles 100 random draws each
@pytest.mark.parametrize("name", ["ncsnpp_ve_residual_out", "ncsnpp_ve_skip_cat", "ddpmpp_vp_resblock_ddpm"])
def test_initialisation_is_the_recorded_one(name):
    check_initialisation(name, VARIANTS[name]())


@pytest.mark.parametrize("name", sorted(full_layouts()))
def test_full_size_layout_is_the_recorded_one(name):
    want = {path: modern_shape(path, shape) for path, shape in full_layouts()[name].items()}
    assert layout(importlib.import_module(f"configs.{name}").get_config()) == want


def output_shape(module: NCSNpp, shape: tuple[int, ...]) -> tuple[tuple[int, ...], jnp.dtype]:
    x, t = jnp.zeros(shape), jnp.ones(shape[0])
    out = jax.eval_shape(lambda key: module.init_with_output({"params": key}, x, t, False)[0], jax.random.key(0))
    return out.shape, out.dtype


OPTIONS = {
    "resblock_type": ("ddpm", "biggan"),
    "progressive": ("none", "output_skip", "residual"),
    "progressive_input": ("none", "input_skip", "residual"),
    "progressive_combine": ("sum", "cat"),
    "fir": (False, True),
}


@pytest.mark.parametrize("options", list(itertools.product(*OPTIONS.values())), ids=lambda o: "-".join(map(str, o)))
def test_every_combination_of_options_builds(options):
    module = NCSNpp(**TINY, **dict(zip(OPTIONS, options, strict=True)), sigmas=(1.0,))
    assert output_shape(module, (2, 8, 8, 3)) == ((2, 8, 8, 3), jnp.float32)


@pytest.mark.parametrize("shape", [(2, 8, 4, 1), (1, 4, 12, 5)])
def test_any_shape_and_any_channels(shape):
    for progressive_input in OPTIONS["progressive_input"]:
        module = NCSNpp(**TINY, progressive_input=progressive_input, progressive="output_skip")
        assert output_shape(module, shape) == (shape, jnp.float32)


def run(module, params, x, t, train=False, dropout=None):
    rngs = None if dropout is None else {"dropout": jax.random.key(dropout)}
    return fast_jit(lambda p, x, t: module.apply({"params": p}, x, t, train=train, rngs=rngs))(params, x, t)


@pytest.fixture(scope="module")
def small():
    """A module with random parameters of every leaf, an input and noise levels."""
    module = NCSNpp(nf=8, ch_mult=(1,), num_res_blocks=1, attn_resolutions=(4,), dropout=0.5)
    x = jax.random.uniform(jax.random.key(0), (2, 4, 6, 3))
    t = jnp.asarray([0.1, 10.0])
    return module, random_params(module, x, t), x, t


def test_dropout_acts_in_training_only(small):
    module, params, x, t = small
    plain = run(module, params, x, t)
    assert np.abs(run(module, params, x, t, train=True, dropout=0) - plain).max() > 1e-3
    np.testing.assert_allclose(run(module.clone(dropout=0.0), params, x, t, train=True), plain, rtol=1e-4)


@pytest.mark.slow
def test_remat_changes_neither_tree_nor_gradient(small):
    module, params, x, t = small
    again = module.clone(remat=True)
    assert layout_of(again, x, t) == shapes(params)

    def gradient(m):
        def loss(p):
            return jnp.square(m.apply({"params": p}, x, t, train=True, rngs={"dropout": jax.random.key(3)})).mean()

        return flatten(fast_jit(jax.grad(loss))(params))

    plain, saved = gradient(module), gradient(again)
    scale = max(np.abs(g).max() for g in plain.values())
    for path in plain:
        np.testing.assert_allclose(saved[path], plain[path], atol=1e-5 * scale, err_msg=path)
    np.testing.assert_array_equal(plain["GaussianFourierProjection_0/W"], np.zeros(8))


def layout_of(module, x, t):
    return shapes(jax.eval_shape(lambda k: module.init(k, x, t, False)["params"], jax.random.key(0)))


def test_bfloat16_computes_in_bfloat16_and_returns_float32(small):
    module, params, x, t = small
    half = module.clone(dtype=jnp.bfloat16)
    assert layout_of(half, x, t) == shapes(params)
    text = str(jax.make_jaxpr(lambda p: half.apply({"params": p}, x, t, train=False))(params))
    assert "bf16[2,4,6,8] = conv_general_dilated" in text
    assert "f32[2,4,6,8] = conv_general_dilated" not in text
    got, want = run(half, params, x, t), run(module, params, x, t)
    assert got.dtype == jnp.float32
    assert 1e-5 < worst_relative(np.asarray(got), np.asarray(want)) < 0.1


def test_an_unconditional_network_sees_the_noise_level_in_its_scale_only(small):
    module, _, x, t = small
    module = module.clone(conditional=False)
    params = random_params(module, x, t)
    assert not any("Dense" in path for path in flatten(params))
    one, other = (run(module, params, x, s) for s in (t, 3 * t))
    np.testing.assert_allclose(one, 3 * other, rtol=1e-4, atol=1e-6)


def test_a_positional_label_indexes_the_noise_levels():
    config = discrete()
    module = models.create_model(config)
    np.testing.assert_allclose(module.sigmas[0], config.model.sigma_max, rtol=1e-6)
    np.testing.assert_allclose(module.sigmas[-1], config.model.sigma_min, rtol=1e-6)
    labels = jnp.asarray([0, 999, 500], jnp.int32)
    np.testing.assert_array_equal(module._sigma(labels), np.float32(module.sigmas)[[0, 999, 500]])


@pytest.mark.parametrize(
    ("option", "value", "known"),
    [
        ("embedding_type", "sinus", "fourier, positional"),
        ("resblock_type", "resnet", "ddpm, biggan"),
        ("progressive", "input_skip", "none, output_skip, residual"),
        ("progressive_input", "output_skip", "none, input_skip, residual"),
        ("progressive_combine", "mean", "sum, cat"),
        ("nonlinearity", "gelu", "elu, lrelu, relu, swish"),
        ("name", "unet", "ddpm, ncsn, ncsnpp, ncsnv2_128"),
        ("dtype", "float16", "bfloat16, float32"),
        ("ch_mult", (), "at least 1"),
        ("num_res_blocks", 0, "at least 1"),
        ("dropout", 1.0, "below 1"),
        ("fir_kernel", (1, -1), "fir_kernel"),
        ("ch_mult", (1, 1, 1, 1, 1, 1), "multiples of 32"),
        ("patch_size", 0, "patch_size=0"),
        ("patch_size", 3, "patches of 3"),
    ],
)
def test_bad_options_are_refused_with_the_known_ones(option, value, known):
    config = recorded_config("ncsnpp_ve_cont").copy_and_resolve_references()
    with config.unlocked(), config.model.unlocked():
        config.model[option] = value
    with pytest.raises(PdsError, match=known):
        models.create_model(config)


def test_a_fourier_embedding_needs_continuous_training():
    config = recorded_config("ncsnpp_ve_cont")
    config.training.continuous = False
    with pytest.raises(PdsError, match="training.continuous"):
        models.create_model(config)


def test_a_missing_field_is_named():
    config = recorded_config("ncsnpp_ve_cont")
    del config.model["skip_rescale"]
    with pytest.raises(PdsError, match="skip_rescale"):
        models.create_model(config)


def test_a_network_on_patches_is_the_network_on_their_rearranged_pixels(small):
    module, _, _, t = small
    on_patches = module.clone(patch_size=2, attn_resolutions=(2,), centered=True)
    x = jax.random.uniform(jax.random.key(1), (2, 4, 6, 3))
    params = random_params(on_patches, x, t)
    inner = on_patches.clone(patch_size=1)
    want = patches.from_patches(run(inner, params, patches.to_patches(x, 2), t), 2)
    got = run(on_patches, params, x, t)
    assert got.shape == x.shape
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_images_that_do_not_divide_are_refused(small):
    module, params, x, t = small
    with pytest.raises(PdsError, match="3x6 pixels"):
        module.clone(ch_mult=(1, 2)).apply({"params": params}, x[:, :3], t, train=False)


def test_widths_that_do_not_split_are_refused():
    config = variant("ncsnpp_ve_cont", nf=11)
    with pytest.raises(PdsError, match="11 channels"):
        layout(config)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"normalization": "InstanceNorm++"}, "model.normalization='InstanceNorm[+][+]'.*set model.normalization"),
        ({"attention_type": "none"}, "model.attention_type='none'.*set model.attention_type='ddpm'"),
        ({"embedding_type": "positional"}, "the label is σ.*set model.scale_by_sigma=False or model.embedding_type"),
    ],
)
def test_a_field_that_the_network_would_not_honour_is_refused(fields, message):
    config = importlib.import_module("configs.ve.cifar10_ncsnpp_continuous").get_config("runlocal")
    config.model.update(fields)
    with pytest.raises(PdsError, match=message):
        models.create_model(config)


def test_positional_labels_are_fine_where_they_are_indices_or_nothing_is_divided():
    config = importlib.import_module("configs.ve.cifar10_ncsnpp_continuous").get_config("runlocal")
    config.model.embedding_type = "positional"
    config.model.scale_by_sigma = False
    models.create_model(config)
    config.model.scale_by_sigma, config.training.continuous = True, False
    models.create_model(config)
