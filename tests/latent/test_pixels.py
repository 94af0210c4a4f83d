"""Networks of pixels in diffusers' folders: the same numbers as diffusers, from the folder alone."""

import json
import shutil

import jax
import numpy as np
import pytest
from absl import flags as absl_flags
from latent_cases import from_torch, normal, randomise, relative, to_torch

import pds_jax
from pds_jax import checkpoints, convert
from pds_jax.cli import flags, parse, run_lib
from pds_jax.statistics import compute_statistics
from pds_jax.types import PdsError

torch = pytest.importorskip("torch", reason="PyTorch is not installed (extra: convert)")
diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed (extra: convert)")

SIZES = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
}


def save(folder, scheduler=None, pipeline=diffusers.DDPMPipeline, **fields):
    """A pipeline of a tiny random network; returns the network."""
    net = randomise(torch, diffusers.UNet2DModel(**{**SIZES, **fields}))
    pipeline(unet=net, scheduler=scheduler or diffusers.DDPMScheduler()).save_pretrained(folder)
    return net


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("ddpm")
    save(place)
    return place


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def predictions(trained, net, k, prediction):
    """(ours, theirs): ε at levels k of training, made of the score and by diffusers."""
    alpha_bar = diffusers.DDPMScheduler.from_config(trained_scheduler(trained)).alphas_cumprod.numpy()
    x = normal(1, len(k), 8, 8, 3)
    a, s = np.sqrt(alpha_bar[k]), np.sqrt(1 - alpha_bar[k])
    score = jax.jit(lambda f, x, t: f(x, t))(trained.score_fn, x, ((k + 1) / len(alpha_bar)).astype(np.float32))
    ours = -np.asarray(score) * s[:, None, None, None]
    with torch.no_grad():
        out = from_torch(net(to_torch(x), torch.from_numpy(k)).sample)
    if prediction == "v_prediction":
        out = s[:, None, None, None] * x + a[:, None, None, None] * out
    return ours, out


def trained_scheduler(trained):
    return dict(trained.config.model.scheduler)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [1000, 400])
def test_the_score_is_that_of_diffusers(tmp_path, prediction, steps):
    net = save(tmp_path, diffusers.DDPMScheduler(num_train_timesteps=steps, prediction_type=prediction))
    trained = pds_jax.load(str(tmp_path))
    assert trained.shape == trained.image_shape == (8, 8, 3) and trained.config.data.centered
    assert int(trained.sde.N) == steps
    ours, theirs = predictions(trained, net, np.asarray([0, 1, 57, steps // 2, steps - 1]), prediction)
    assert max(relative(a, b) for a, b in zip(ours, theirs, strict=True)) < 1e-4


def test_the_network_of_cifar10_s_layout_is_that_of_diffusers(tmp_path):
    net = save(tmp_path, block_out_channels=(8, 16, 16), layers_per_block=2, act_fn="swish",
               down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
               up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"))  # fmt: skip
    ours, theirs = predictions(pds_jax.load(str(tmp_path)), net, np.asarray([3, 400, 999]), "epsilon")
    assert max(relative(a, b) for a, b in zip(ours, theirs, strict=True)) < 1e-4


def test_a_deterministic_trajectory_ends_where_that_of_diffusers_does(folder):
    """DDIM over the levels 999, 799, 599, …; the last step is that to no noise."""
    net = diffusers.UNet2DModel.from_pretrained(folder / "unet").eval()
    trained = pds_jax.load(str(folder))
    scheduler = diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=True, timestep_spacing="trailing")
    scheduler.set_timesteps(5)
    x = normal(3, 2, 8, 8, 3)
    theirs = to_torch(x)
    with torch.no_grad():
        for k in scheduler.timesteps:
            theirs = scheduler.step(net(theirs, k).sample, k, theirs).prev_sample
    score = jax.jit(lambda f, x, t: f(x, t))
    for k in scheduler.timesteps.numpy():
        t, last = (np.full(2, (step + 1) / 1000, np.float32) for step in (k, k - 200))
        m, s, m0, s0 = (float(f(u)[0]) for u in (t, last) for f in (trained.sde.mean_scale, trained.sde.std))
        eps = -s * np.asarray(score(trained.score_fn, x.astype(np.float32), t))
        x = m0 * (x - s * eps) / m + s0 * eps
    assert relative(x, from_torch(theirs)) < 1e-4


def test_pictures_come_from_the_folder_alone(folder, tmp_path):
    words = ["pds_jax", "--mode=sample", f"--checkpoint={folder}", f"--workdir={tmp_path}", "--seeds=0-1", "--nfe=4"]
    values = absl_flags.FlagValues()
    flags.define(values)
    run_lib.run(parse.run_options(values, parse.read(words, values)))
    manifest = json.loads((tmp_path / "samples/manifest.json").read_text())
    assert manifest["state"] == "complete"
    assert manifest["identity"]["model"]["scheduler"]["beta_schedule"] == "linear"


@pytest.mark.parametrize("layout", ["beside the index", "unet alone", "weights file"])
def test_other_layouts_are_the_same_model(folder, tmp_path, layout):
    expected = pds_jax.load(str(folder))
    path = tmp_path / "m"
    if layout == "beside the index":  # google/ddpm-cifar10-32
        shutil.copytree(folder / "unet", path)
        shutil.copy(folder / "model_index.json", path)
        shutil.copy(folder / "scheduler/scheduler_config.json", path)
    else:
        shutil.copytree(folder, path)
        (path / "model_index.json").unlink()
        path = path / "unet"
    if layout == "weights file":
        path = path / "diffusion_pytorch_model.safetensors"
    found = pds_jax.load(str(path))
    assert found.digest == expected.digest and found.identity == expected.identity


def test_the_moving_average_of_a_training_is_read_and_the_raw_weights_if_asked_for(folder, tmp_path):
    place = tmp_path / "m"
    shutil.copytree(folder, place)
    net = randomise(torch, diffusers.UNet2DModel(**SIZES), seed=1)
    net.save_pretrained(place / "unet_ema")
    averaged, raw = (pds_jax.load(str(place), use_ema=use_ema) for use_ema in (True, False))
    assert raw.digest == pds_jax.load(str(folder)).digest != averaged.digest
    assert "moving average" in " ".join(averaged.notes) and "raw weights" in " ".join(raw.notes)


def test_statistics_beside_it_are_taken(folder, tmp_path):
    place = tmp_path / "m"
    shutil.copytree(folder, place)
    compute_statistics([np.random.default_rng(0).random((64, 8, 8, 3)).astype(np.float32)]).save(
        place / checkpoints.STATISTICS
    )
    trained = pds_jax.load(str(place))
    assert trained.statistics is not None
    pds_jax.plan(trained, nfe=100, predictor="sde_dpmpp_2m", alpha=5.0)


@pytest.mark.parametrize(
    "part, changes, message",
    [
        ("unet", {"sample_size": None}, "sample_size=None"),
        ("unet", {"num_class_embeds": 10}, "num_class_embeds=10"),
        ("unet", {"out_channels": 6}, "out_channels is 6"),
        ("unet", {"time_embedding_type": "fourier"}, "time_embedding_type='fourier'"),
        ("unet", {"down_block_types": ["ResnetDownsampleBlock2D", "DownBlock2D"]}, "ResnetDownsampleBlock2D"),
        ("scheduler", {"prediction_type": "sample"}, "prediction_type='sample'"),
        ("scheduler", {"_class_name": "ScoreSdeVeScheduler"}, "noise levels of a ScoreSdeVeScheduler"),
        ("scheduler", {"beta_schedule": "laplace"}, "beta_schedule='laplace'"),
        ("", {"_class_name": "AudioDiffusionPipeline"}, "a AudioDiffusionPipeline.*DDPMPipeline"),
    ],
)
def test_what_is_not_such_a_model_is_refused(folder, tmp_path, part, changes, message):
    place = tmp_path / "m"
    shutil.copytree(folder, place)
    names = {"unet": "unet/config.json", "scheduler": "scheduler/scheduler_config.json", "": "model_index.json"}
    edit(place / names[part], **changes)
    with pytest.raises(PdsError, match=message):
        pds_jax.load(str(place))


def test_a_network_without_its_scheduler_and_the_network_of_a_latent_model_are_refused(folder, tmp_path):
    place = tmp_path / "m"
    shutil.copytree(folder, place)
    (place / "vae").mkdir()
    with pytest.raises(PdsError, match="latent diffusion model: give the whole folder"):
        pds_jax.load(str(place / "unet"))
    (place / "vae").rmdir()
    shutil.rmtree(place / "scheduler")
    with pytest.raises(PdsError, match="without scheduler_config.json.*put the folder 'scheduler'"):
        pds_jax.load(str(place))


def test_a_configuration_has_no_place_beside_it(folder):
    from configs.vp.ddpm import cifar10

    with pytest.raises(PdsError, match="leave the configuration"):
        pds_jax.load(str(folder), cifar10.get_config())
    with pytest.raises(PdsError, match="without a configuration"):
        convert.load_checkpoint(folder, cifar10.get_config())
