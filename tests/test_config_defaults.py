"""A configuration as score_sde and score_sde_pytorch write it works everywhere; what it does not say is filled in."""

import json

import jax
import ml_collections
import pytest
from absl import flags as absl_flags

import pds_jax
from configs import common, default_cifar10_configs
from pds_jax import checkpoints, config_defaults, convert, training
from pds_jax.cli import flags, parse, run_lib
from pds_jax.config_defaults import complete
from pds_jax.models import init_model
from pds_jax.types import PdsError

FILE = '''
"""Fields of score_sde_pytorch alone: no section pds, no n_jitted_steps, a device."""
import ml_collections


class Device:
    """Stands for torch.device, which is no number and no text either."""


def get_config():
    config = ml_collections.ConfigDict()
    config.training = ml_collections.ConfigDict(dict(
        sde="vesde", continuous=True, batch_size=4, n_iters=2, snapshot_freq=2, log_freq=1, eval_freq=0,
        snapshot_freq_for_preemption=2, snapshot_sampling=False, likelihood_weighting=False, reduce_mean=False,
    ))
    config.sampling = ml_collections.ConfigDict(dict(
        method="pc", predictor="reverse_diffusion", corrector="langevin", n_steps_each=1, noise_removal=True,
        probability_flow=False, snr=0.2,
    ))
    config.eval = ml_collections.ConfigDict(dict(batch_size=2, num_samples=4))
    config.data = ml_collections.ConfigDict(dict(
        dataset="digits", image_size=8, num_channels=1, centered=False, random_flip=False, uniform_dequantization=False,
    ))
    config.model = ml_collections.ConfigDict(dict(
        name="ncsnpp", sigma_min=0.01, sigma_max=5.0, num_scales=12, beta_min=0.1, beta_max=20.0, dropout=0.0,
        embedding_type="fourier", fourier_scale=16, scale_by_sigma=True, ema_rate=0.99, normalization="GroupNorm",
        nonlinearity="swish", nf=8, ch_mult=(1,), num_res_blocks=1, attn_resolutions=(), resamp_with_conv=True,
        conditional=True, fir=True, fir_kernel=[1, 3, 3, 1], skip_rescale=True, resblock_type="biggan",
        progressive="none", progressive_input="none", progressive_combine="sum", attention_type="ddpm",
        init_scale=0.0, conv_size=3,
    ))
    config.optim = ml_collections.ConfigDict(dict(
        weight_decay=0, optimizer="Adam", lr=1e-3, beta1=0.9, eps=1e-8, warmup=1, grad_clip=1.0,
    ))
    config.seed = 1
    config.device = Device()
    return config
'''


def original() -> ml_collections.ConfigDict:
    names: dict = {}
    exec(compile(FILE, "original.py", "exec"), names)
    return names["get_config"]()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the configuration's file and weights of its network."""
    folder = tmp_path_factory.mktemp("original")
    (folder / "original.py").write_text(FILE)
    params = init_model(jax.random.key(0), original())
    convert.export(params, original(), folder / "m.pth", "score_sde_torch")
    return folder


def run(*words: str) -> None:
    values = absl_flags.FlagValues()
    flags.define(values)
    overrides = parse.read(["pds_jax", *words], values)
    run_lib.run(parse.run_options(values, overrides))


def test_it_is_loaded_planned_and_drawn(place):
    given = original()
    trained = pds_jax.load(str(place / "m.pth"), given)
    made = pds_jax.plan(trained, nfe=6)
    assert made.nfe <= 6 and made.config.sampling.snr == 0.2 and made.config.sampling.norm == "sample"
    assert pds_jax.draw(trained, made, seeds=range(2)).images.shape == (2, 8, 8, 1)
    assert "pds" not in given and "device" in given  # what the caller has stays as it is


def test_the_command_line_samples_with_it_and_sets_fields_that_it_lacks(place, tmp_path):
    words = [f"--config={place / 'original.py'}", f"--checkpoint={place / 'm.pth'}", f"--workdir={tmp_path}"]
    run("--mode=sample", *words, "--seeds=0-1", "--nfe=6", "--config.sampling.norm=batch")
    manifest = json.loads((tmp_path / "samples/manifest.json").read_text())
    assert manifest["state"] == "complete" and manifest["identity"]["sampling"]["norm"] == "batch"


def test_the_command_line_trains_with_it(place, tmp_path, monkeypatch):
    monkeypatch.setattr(training.Trainer, "_announce", lambda *_: None)
    run("--mode=train", f"--config={place / 'original.py'}", f"--workdir={tmp_path}")
    assert checkpoints.TrainingFolder(tmp_path / "checkpoints").steps() == [2]
    stored = checkpoints.read_config(tmp_path / "config.json")
    assert stored.training.n_jitted_steps == 5 and "device" not in stored
    pds_jax.plan(pds_jax.load(str(tmp_path)), nfe=6)


@pytest.mark.parametrize("section, field", [("training", "sde"), ("data", "centered"), ("model", "num_scales")])
def test_what_says_how_the_network_was_trained_has_no_default(section, field):
    config = original()
    del config[section][field]
    with pytest.raises(PdsError, match=f"no field {section}.{field}"):
        complete(config)


@pytest.mark.parametrize("value", [5, None, "photos"])
def test_a_section_is_a_section(value):
    config = original()
    with config.ignore_type():
        config.data = value
    with pytest.raises(PdsError, match="not a section"):
        complete(config)


@pytest.mark.parametrize("field", ["training.reduce_mean", "optim.beta1", "model.ema_rate", "data.dataset"])
def test_a_training_names_the_field_it_lacks_before_it_writes_anything(field, tmp_path):
    section, name = field.split(".")
    config = original()
    del config[section][name]
    with pytest.raises(PdsError, match=f"config.{field} is missing"):
        training.train(config, str(tmp_path / "w"))
    assert not (tmp_path / "w").exists()


def test_what_is_there_stays():
    config = default_cifar10_configs.get_default_configs()
    config.training.sde, config.model.name = "vesde", "ncsnpp"
    config.sampling.update(method="ode", predictor="none", corrector="ald")
    assert complete(config) == config


def test_the_defaults_are_those_of_the_files_in_configs():
    ours = ml_collections.ConfigDict({"sampling": {}})
    common.pds_sections(ours)
    assert ours.pds.to_dict() == dict(config_defaults.PDS)
    assert ours.sampling.to_dict().items() <= config_defaults.SAMPLING.items()
    usual = default_cifar10_configs.get_default_configs()
    assert usual.eval.to_dict() == dict(config_defaults.EVAL)
    completed = complete(original())
    assert completed.training.n_jitted_steps == usual.training.n_jitted_steps
    for name in ("resize", "convert_images", "range"):
        assert completed.data[name] == usual.data[name]


def test_an_earlier_configuration_of_this_package_gets_no_field_that_its_folders_do_not_record():
    config = complete(original())
    del config.sampling.solver_options, config.pds.gain, config.pds.solenoidal
    found = complete(config)
    assert "solver_options" not in found.sampling and "gain" not in found.pds and found.pds.solenoidal == 0
