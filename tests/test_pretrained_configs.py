"""Configurations of EDM's and guided-diffusion's published networks: sizes, small forms, commands."""

import functools
import importlib
import math
import pathlib
import re

import jax
import pytest

from pds_jax.convert.adm import config_from_settings
from pds_jax.denoisers import PARAMETRISATIONS
from pds_jax.models import init_model
from pds_jax.training import train
from pds_jax.types import PdsError

FOLDER = pathlib.Path(__file__).parents[1] / "configs"
# Millions of parameters; those of ADM's U-Nets are in Dhariwal and Nichol 2021 (296, 422, 554).
MILLIONS = {
    "edm.imagenet64": 296,
    "edm.ffhq64": 62,
    "edm.afhqv2": 62,
    "adm.imagenet64": 296,
    "adm.imagenet128": 422,
    "adm.imagenet256": 554,
    "adm.classifier256": 54,
}


@functools.cache
def count(name, arg=""):
    config = importlib.import_module(f"configs.{name}").get_config(arg)
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        params = jax.eval_shape(lambda rng: init_model(rng, config), jax.random.key(0))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def test_every_file_is_here():
    files = {f"{path.parent.name}.{path.stem}" for part in ("edm", "adm") for path in (FOLDER / part).glob("[!_]*.py")}
    assert files == set(MILLIONS)


@pytest.mark.parametrize("name", MILLIONS)
def test_full_size_has_the_published_parameter_count(name):
    assert round(count(name) / 1e6) == MILLIONS[name]


@pytest.mark.parametrize("name", MILLIONS)
def test_runlocal_is_small_and_the_rest_stays(name):
    full, small = (importlib.import_module(f"configs.{name}").get_config(arg) for arg in ("", "runlocal"))
    assert count(name, "runlocal") < 2_000_000
    assert set(full.model) == set(small.model)
    assert full.model.parametrisation in PARAMETRISATIONS
    assert bool(full.model.label_dim) == bool(small.model.label_dim)
    assert {"training", "sampling", "pds", "eval", "data", "model", "optim"} <= set(full)


@pytest.mark.parametrize("name", MILLIONS)
def test_a_file_says_its_command_and_what_is_published(name):
    text = (FOLDER / (name.replace(".", "/") + ".py")).read_text()
    assert f"config=configs/{name.replace('.', '/')}.py" in text and "Published: " in text


def test_the_unconditional_network_is_an_argument_away():
    assert importlib.import_module("configs.adm.imagenet256").get_config("label_dim=0").model.label_dim == 0


def test_the_classifier_of_64_pixels_is_an_argument_away():
    """It has guided-diffusion's attention at 32, 16 and 8 pixels, and the schedule of the network it guides."""
    module = importlib.import_module("configs.adm.classifier256")
    text = " ".join(module.__doc__.split())
    argument = re.search(r"64x64_classifier.pt takes :(\S+)", text)[1]
    settings = {"image_size": 64, "out_channels": 1000, "model_channels": 128, "num_res_blocks": 4,
                "channel_mult": [1, 2, 3, 4], "attention_resolutions": [2, 4, 8], "num_head_channels": 64,
                "resblock_updown": True, "use_scale_shift_norm": True, "pool": "attention"}  # fmt: skip
    expected = config_from_settings(settings, classifier=True, noise_schedule="cosine").model
    found = module.get_config(argument).model
    assert {name: found[name] for name in expected if not name.startswith("sigma")} == {
        name: value for name, value in expected.items() if not name.startswith("sigma")
    }


@pytest.mark.parametrize("name", ["edm.ffhq64", "adm.imagenet64"])
def test_training_is_refused_before_a_folder_is_made(name, tmp_path):
    config = importlib.import_module(f"configs.{name}").get_config("runlocal")
    with pytest.raises(PdsError, match="sampled here, not trained"):
        train(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
