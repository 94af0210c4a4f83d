"""Every configuration: full size (parameter counts, recorded fields), runlocal, and the argument after the colon."""

import functools
import importlib
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags

from pds_jax import train_config
from pds_jax.models.utils import create_model, init_model
from pds_jax.types import PdsError

FOLDER = pathlib.Path(__file__).parents[1] / "configs"
NAMES = sorted(
    ".".join(path.relative_to(FOLDER).with_suffix("").parts)
    for family in ("ve", "vp", "subvp")
    for path in (FOLDER / family).rglob("*.py")
    if path.stem != "__init__"
)
COUNTS = json.loads((pathlib.Path(__file__).parent / "golden/score_sde/layouts/param_counts.json").read_text())
# Recorded with smaller sizes; every other field is score_sde's own.
RESIZED = {"image_size", "nf", "ch_mult", "num_res_blocks", "attn_resolutions"}
RECORDED = {
    "models/ncsnpp_ve_cont.config.json": "ve.cifar10_ncsnpp_continuous",
    "models/ncsnpp_ve_skip.config.json": "ve.church_ncsnpp_continuous",
    "models/ncsnpp_vp_cont.config.json": "vp.cifar10_ncsnpp_continuous",
    "models/ddpmpp_vp_cont.config.json": "vp.cifar10_ddpmpp_continuous",
    "models/ddpm_vp.config.json": "vp.ddpm.cifar10",
    "models/ncsnv2.config.json": "ve.ncsnv2.cifar10",
    "models/ncsn.config.json": "ve.ncsn.cifar10",
}


def get_config(name: str, arg: str = "") -> ml_collections.ConfigDict:
    return importlib.import_module(f"configs.{name}").get_config(arg)


@functools.cache
def count_parameters(name: str, arg: str = "") -> int:
    config = get_config(name, arg)
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        params = jax.eval_shape(lambda rng: init_model(rng, config), jax.random.key(0))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def test_the_files_of_score_sde_are_all_here():
    assert len(NAMES) == 39
    assert set(COUNTS) <= set(NAMES)


@pytest.mark.parametrize("name", sorted(COUNTS))
def test_full_size_has_the_recorded_parameter_count(name):
    assert count_parameters(name) == COUNTS[name]


# Files without a recorded count have the network of one that has.
SIBLINGS = {
    "vp.cifar10_ncsnpp": "vp.cifar10_ncsnpp_continuous",
    "vp.cifar10_ddpmpp": "vp.cifar10_ddpmpp_continuous",
    "subvp.cifar10_ddpm_continuous": "vp.ddpm.cifar10_continuous",
    "subvp.cifar10_ddpmpp_deep_continuous": "vp.cifar10_ddpmpp_deep_continuous",
    "subvp.cifar10_ncsnpp_deep_continuous": "vp.cifar10_ncsnpp_deep_continuous",
    "vp.ddpm.bedroom": "vp.ddpm.church",
    "ve.ncsn.cifar10_5": "ve.ncsn.cifar10",
    "ve.ncsn.celeba_5": "ve.ncsn.celeba",
}


@pytest.mark.parametrize("name", sorted(SIBLINGS))
def test_full_size_of_the_other_files(name):
    assert count_parameters(name) == COUNTS[SIBLINGS[name]]


@pytest.mark.slow
def test_ncsn_grows_by_one_row_of_each_embedding_per_noise_level():
    extra = {name: count_parameters(f"ve.ncsn.{name}") - COUNTS["ve.ncsn.cifar10"] for name in NCSN_SCALES}
    per_level = {name: extra[name] / (scales - 10) for name, scales in NCSN_SCALES.items()}
    assert len(set(per_level.values())) == 1 and per_level["cifar10_124"] > 0


NCSN_SCALES = {"cifar10_124": 232, "cifar10_1245": 232, "celeba_124": 500, "celeba_1245": 500}


def test_unconditional_ddpm_lacks_exactly_the_time_embedding():
    outputs = 2 * 128 + 6 * 256 + 2 * 256 + 9 * 256 + 3 * 128  # of the residual blocks: down, middle, up
    embedding = (128 + 1) * 512 + (512 + 1) * 512
    expected = COUNTS["vp.ddpm.cifar10"] - embedding - (512 + 1) * outputs
    assert count_parameters("vp.ddpm.cifar10_unconditional") == expected


def plain(config: ml_collections.ConfigDict) -> dict:
    """As JSON would give it: tuples become lists."""
    return json.loads(json.dumps(config.to_dict()))


@pytest.mark.parametrize("recorded", sorted(RECORDED))
def test_fields_equal_the_recorded_ones(golden, recorded):
    ours = plain(get_config(RECORDED[recorded]))
    theirs = json.loads((golden / "score_sde" / recorded).read_text())
    theirs.pop("_fixture")
    for section, fields in theirs.items():
        if section == "seed":
            assert ours["seed"] == fields
            continue
        for field, value in fields.items():
            if field not in RESIZED:
                assert ours[section][field] == value, f"{section}.{field}"


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("ve.ffhq_ncsnpp_continuous", "model.ch_mult", (1, 2, 4, 8, 16, 32, 32, 32)),
        ("ve.ffhq_ncsnpp_continuous", "training.reduce_mean", True),
        ("ve.celebahq_ncsnpp_continuous", "training.reduce_mean", False),
        ("ve.ffhq_ncsnpp_continuous", "training.n_jitted_steps", 5),
        ("ve.ffhq_ncsnpp_continuous", "sampling.snr", 0.15),
        ("ve.bedroom_ncsnpp_continuous", "model.sigma_max", 378),
        ("ve.ffhq_256_ncsnpp_continuous", "model.sigma_max", 348),
        ("ve.celeba_ncsnpp", "model.sigma_max", 90),
        ("ve.cifar10_ncsnpp_deep_continuous", "training.n_iters", 950001),
        ("vp.ddpm.church", "optim.lr", 2e-5),
        ("vp.ddpm.church", "model.num_scales", 1000),
        ("ve.ncsnv2.bedroom", "training.continuous", False),
        ("ve.ncsn.celeba", "training.sde", "vesde"),
        ("ve.ncsn.celeba_124", "model.num_classes", 500),
        ("subvp.cifar10_ncsnpp_continuous", "training.sde", "subvpsde"),
    ],
)
def test_fields_of_the_originals_that_are_not_recorded(name, field, value):
    section, key = field.split(".")
    assert get_config(name)[section][key] == value


@pytest.mark.parametrize("name", NAMES)
def test_runlocal_keeps_the_structure_and_is_small(name):
    full, small = get_config(name), get_config(name, "runlocal")
    assert {s: set(full[s]) for s in full if s != "seed"} == {s: set(small[s]) for s in small if s != "seed"}
    for field in ("name", "embedding_type", "fir", "progressive", "progressive_input", "normalization", "conditional"):
        assert small.model.get(field) == full.model.get(field)
    assert small.training.log_freq % small.training.n_jitted_steps == 0
    assert small.training.sde == "vesde" or small.model.num_scales > small.model.beta_max  # else beta reaches 1
    assert count_parameters(name, "runlocal") < 700_000


@pytest.mark.parametrize(("name", "size"), [("digits", 8), ("photos", 16)])
def test_runlocal_keeps_own_data_that_need_no_download(name, size):
    config = get_config(name, "runlocal")
    assert (config.data.dataset, config.data.image_size) == (name, size)
    assert count_parameters(name, "runlocal") < 700_000


@pytest.mark.parametrize("name", [*NAMES, "digits", "fashion", "fashion_small", "landscapes", "own", "photos"])
@pytest.mark.parametrize("arg", ["", "runlocal"])
def test_training_accepts_their_fields(name, arg):
    train_config.check_fields(get_config(name, arg))


@pytest.mark.parametrize("name", ["ve.church_ncsnpp_continuous", "vp.ddpm.cifar10", "ve.ncsnv2.cifar10"])
def test_runlocal_network_runs(name):
    config = get_config(name, "runlocal")
    size = config.data.image_size
    model, rng = create_model(config), np.random.default_rng(0)
    shapes = jax.eval_shape(lambda key: init_model(key, config), jax.random.key(0))
    params = jax.tree.map(lambda leaf: (0.1 * rng.normal(size=leaf.shape)).astype(np.float32), shapes)
    x = jax.random.normal(jax.random.key(1), (2, size, size, 3), jnp.float32)
    labels = jnp.array([1.0, 7.0], jnp.float32) if config.training.continuous else jnp.array([1, 7], jnp.int32)
    forward = jax.jit(
        lambda p, x, t: model.apply({"params": p}, x, t, train=False),
        compiler_options={"xla_backend_optimization_level": 0},  # compiling takes the time here
    )
    out = forward(params, x, labels)
    assert out.shape == x.shape and out.dtype == jnp.float32
    assert bool(jnp.all(jnp.isfinite(out)))


def test_our_own_fields_are_all_off():
    config = get_config("ve.cifar10_ncsnpp_continuous")
    assert config.sampling.speed_up == 1.0 and config.pds.alpha == float("inf")
    assert (config.sampling.norm, config.sampling.variant, config.sampling.prior, config.sampling.grid) == (
        "sample", "paper", "standard", "uniform",
    )  # fmt: skip
    assert (config.pds.recipe, config.pds.filters, config.pds.r, config.pds.lam) == ("ijcv2025", "freq", 0.0, 1.0)
    assert config.pds.solenoidal == 0.0
    assert config.pds.statistics == config.pds.freq_mask_path == config.pds.space_mask_path == ""


def test_arguments_reach_their_fields_with_the_fields_types():
    config = get_config(
        "ve.cifar10_ncsnpp_continuous",
        "speed_up=20, alpha=5,training.batch_size=8,ch_mult=1:2,noise_removal=false,predictor=none,seed=7",
    )
    assert config.sampling.speed_up == 20.0 and config.pds.alpha == 5.0
    assert config.training.batch_size == 8 and config.eval.batch_size == 1024
    assert config.model.ch_mult == (1, 2)
    assert config.sampling.noise_removal is False and config.sampling.predictor == "none" and config.seed == 7
    assert get_config("ve.cifar10_ncsnpp_continuous", "alpha=auto").pds.alpha == "auto"
    assert get_config("ve.cifar10_ncsnpp_continuous", "runlocal,nf=16").model.nf == 16


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        ("speedup=20", "near: speed_up"),
        ("batch_size=8", "training.batch_size, eval.batch_size"),
        ("training.batch_size=many", "training.batch_size=many"),
        ("noise_removal=maybe", "noise_removal=maybe"),
        ("alpha=strong", "pds.alpha=strong"),
        ("ch_mult=a:b", "ch_mult=a:b"),
        ("run_local", "runlocal or key=value"),
    ],
)
def test_bad_arguments_are_named(arg, message):
    with pytest.raises(ValueError, match=message):
        get_config("ve.cifar10_ncsnpp_continuous", arg)


@pytest.mark.parametrize("name", NAMES)
def test_files_load_by_path_and_tell_their_command(name):
    path = FOLDER / (name.replace(".", "/") + ".py")
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    values(["program", f"--config={path}:runlocal"])
    assert values.config.data.dataset == "photos"
    assert f"--config=configs/{path.relative_to(FOLDER).as_posix()}" in path.read_text()
    assert "Published: " in path.read_text()


def test_training_refuses_what_the_network_refuses():
    config = get_config("ve.cifar10_ncsnpp_continuous", "runlocal")
    config.model.attention_type = "none"
    with pytest.raises(PdsError, match="model.attention_type='none'"):
        train_config.check_fields(config)
