"""Images of any size, channels and range, from a configuration to files: training, sampling, conditions, evaluation."""

import json

import numpy as np
import pytest
from PIL import Image

from pds_jax import statistics
from pds_jax.cli import conditional, evaluate, train
from pds_jax.cli import sample as sampling_job
from pds_jax.cli.options import RunOptions, SamplerOptions
from pds_jax.data import image_files
from pds_jax.io import images
from pds_jax.metrics import image_sets
from pds_jax.types import PdsError
from tests import tiny

FEW = SamplerOptions(speed_up=4.0, corrector="none")
SMOOTH = np.random.default_rng(0).random((12, 4, 8, 5)).repeat(2, axis=1).repeat(2, axis=2).astype(np.float32)


def configuration(place, size, channels, **data):
    config = tiny.get_config()
    config.model.num_scales = 40
    config.training.update(n_iters=2, snapshot_freq=2, batch_size=4, snapshot_sampling=True)
    config.eval.update(begin_ckpt=1, end_ckpt=1, num_samples=4, batch_size=4, enable_bpd=True)
    with config.ignore_type():
        config.data.update(dataset=str(place), image_size=size, num_channels=channels, **data)
    return config


def two_channels(folder):
    np.save(folder / "data.npy", (SMOOTH[..., :2] * 255).astype(np.uint8))
    return configuration(folder / "data.npy", (8, 16), 2), {}


def five_channels_in_a_range(folder):
    np.savez_compressed(folder / "data.npz", images=SMOOTH * 8 - 3, labels=np.arange(12))
    return configuration(folder / "data.npz", (8, 16), 5, range=(-3.0, 5.0)), {}


def photographs_of_every_kind(folder):
    (folder / "data").mkdir()
    rng = np.random.default_rng(0)
    for number in range(8):
        pixels = rng.integers(0, 256, (20 + number, 30, 3 + number % 2), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "data" / f"{number}.png")
    Image.fromarray(rng.integers(0, 256, (20, 20), dtype=np.uint8)).save(folder / "data" / "gray.bmp")
    (folder / "data" / "notes.txt").write_text("text")
    return configuration(folder / "data", [8, 16], 3), {"resize_images": True, "convert_images": True}


KINDS = [two_channels, five_channels_in_a_range, photographs_of_every_kind]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_any_images_go_through_every_job(kind, tmp_path):
    config, words = kind(tmp_path)
    height, width, channels = 8, 16, config.data.num_channels
    value_range = tuple(config.data.range) or None
    workdir = tmp_path / "run"
    if words:
        with pytest.raises(PdsError, match="pixels .height x width|has transparency"):
            train.train(RunOptions("train", workdir, config=config.copy_and_resolve_references()))
    train.train(RunOptions("train", workdir, config=config, **words))
    made = statistics.load(workdir / "statistics.npz")
    assert made.shape == (height, width, channels)
    assert made.provenance["source"]["path"] == config.data.dataset
    (snapshot,) = workdir.rglob("step_*.png")
    assert images.load_png(snapshot).ndim == 3

    folder = sampling_job.sample(RunOptions("sample", workdir, eval_folder="made", seeds=range(4), sampler=FEW))
    manifest = json.loads((folder / "manifest.json").read_text())
    suffix = ".npy" if channels not in (1, 3) or value_range else ".png"
    assert manifest["files"]["suffix"] == suffix and manifest["files"].get("range") == (
        list(value_range) if value_range else None
    )
    assert sorted(path.suffix for path in (folder / "000").iterdir()) == [suffix] * 4
    found = image_sets.open_images(folder)
    assert found.shape == (height, width, channels) and list(found.seeds) == [0, 1, 2, 3]
    if value_range:
        values = np.load(images.seed_path(folder, 0, ".npy"))
        assert values.dtype == np.float32 and values.min() >= -3 and values.max() <= 5 and values.max() > 1

    given = found.stored(range(2))
    given = given * 8 - 3 if value_range else given
    np.save(tmp_path / "given.npy", given)
    mask = np.zeros((height, width), bool)
    mask[:, :7] = True
    np.save(tmp_path / "mask.npy", mask)
    common = {"images": str(tmp_path / "given.npy"), "sampler": FEW, "guidance": 0.0, "originals": True}
    for mode in ("inpaint", "super_resolution"):
        extra = {"mask": str(tmp_path / "mask.npy")} if mode == "inpaint" else {}
        place = conditional.restore(RunOptions(mode, workdir, **common, **extra))
        manifest = json.loads((place / "manifest.json").read_text())
        assert manifest["given"]["images"]["images"] == 2
        results = image_files.open_images(place, value_range=value_range).stored(range(2))
        if mode == "inpaint":
            assert "43.8% of the pixels are known" in manifest["given"]["mask"]
            kept = image_files.open_images(tmp_path / "given.npy", value_range=value_range).stored(range(2))
            np.testing.assert_allclose(results[:, mask], kept[:, mask], atol=1e-6)

    rows = evaluate.evaluate(
        RunOptions("eval", workdir, extractor="pixels", metrics=("fid",), allow_fewer=True, sampler=FEW)
    )
    assert all(np.isfinite(rows[0][name]) for name in ("loss", "bpd", "fid"))


def test_a_size_is_two_numbers_on_the_command_line_too():
    assert tiny.get_config("image_size=8:16").data.image_size == (8, 16)
    assert tiny.get_config("range=-1:1").data.range == (-1, 1)
    assert tiny.get_config("resize=True,convert_images=true").data.to_dict()["convert_images"] is True
