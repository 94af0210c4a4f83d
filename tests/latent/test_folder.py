import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from latent_cases import relative

from pds_jax.convert.tree import flatten
from pds_jax.latent.folder import is_pipeline, load_pipeline
from pds_jax.types import PdsError


def change(path, **fields):
    values = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not ...}))


def test_every_leaf_is_accounted_for(pipelines):
    path, theirs = pipelines("sd1")
    ours = load_pipeline(path)
    assert is_pipeline(path) and not is_pipeline(path / "unet")
    for role, module in (("unet", theirs.unet), ("vae", theirs.vae), ("text_encoder", theirs.text_encoder)):
        assert sorted(name for name, _ in ours.reports[role].mapped) == sorted(module.state_dict())
    assert ours.channels == 4 and ours.latent_size == (8, 8) and ours.prediction == "epsilon"
    assert ours.notes == ()


def test_safety_checker_is_ignored_and_told(folder):
    change(folder / "model_index.json", safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])
    assert ["safety checker" in note for note in load_pipeline(folder).notes] == [True]


@pytest.mark.parametrize("role", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_missing_component_is_named(folder, role):
    shutil.rmtree(folder / role)
    with pytest.raises(PdsError, match=f"lacks its component '{role}'"):
        load_pipeline(folder)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (
            {"_class_name": "StableDiffusionXLPipeline", "text_encoder_2": ["a", "b"]},
            "two text encoders.*supported are",
        ),
        ({"_class_name": "StableDiffusion3Pipeline"}, "StableDiffusion3Pipeline is not supported; supported are"),
        ({"controlnet": ["diffusers", "ControlNetModel"]}, "'controlnet' is not supported"),
    ],
)
def test_other_pipelines_are_refused_by_name(folder, index, message):
    change(folder / "model_index.json", **index)
    with pytest.raises(PdsError, match=message):
        load_pipeline(folder)


@pytest.mark.parametrize(
    ("file", "fields", "message"),
    [
        ("unet/config.json", {"in_channels": 9}, "inpainting"),
        ("unet/config.json", {"out_channels": 8}, "out_channels is 8"),
        ("unet/config.json", {"cross_attention_dim": 16}, "text encoder's states have 12"),
        ("unet/config.json", {"layers_per_block": 2}, "is missing"),
        ("text_encoder/config.json", {"vocab_size": 20}, "different models"),
        ("scheduler/scheduler_config.json", {"prediction_type": "sample"}, "prediction_type='sample'"),
        ("scheduler/scheduler_config.json", {"_class_name": "FlowMatchEulerDiscreteScheduler"}, "flow-matching"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "mine"}, "beta_schedule='mine'"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(folder, file, fields, message):
    change(folder / file, **fields)
    with pytest.raises(PdsError, match=message):
        load_pipeline(folder)


def test_weights_in_bfloat16_stay_in_it(pipelines):
    whole, half = load_pipeline(pipelines("sd1")[0]), load_pipeline(pipelines("sd1")[0], dtype=jnp.bfloat16)
    a, b = flatten(whole.unet_params), flatten(half.unet_params)
    assert all(value.dtype == jnp.bfloat16 for value in b.values())
    assert relative(np.asarray(b["conv_in/kernel"], np.float32), np.asarray(a["conv_in/kernel"])) < 0.01


@pytest.mark.parametrize("kind", ["sd2", "ldm"])
@pytest.mark.slow
def test_other_layouts_load(pipelines, kind):
    ours = load_pipeline(pipelines(kind)[0])
    assert ours.prediction == {"sd2": "v_prediction", "ldm": "epsilon"}[kind]
    assert (ours.text is None) == (kind == "ldm")
