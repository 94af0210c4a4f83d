"""scripts/train_own.sh: a folder of images becomes a model, samples and a distance; stopped, it goes on."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from configs import own
from pds_jax import assembly

ROOT = pathlib.Path(__file__).parent.parent


PYTHON = """#!/bin/bash
case "$1" in
  -c) exec "$REAL" "$@" ;;
  *make_statistics.py) echo '{"estimate_sigma_max": 30.0, "pixel_moments": [0.4, 0.25]}' ;;
esac
echo "$@" >>"$CALLS"
"""  # notes what the script starts, and starts nothing


@pytest.mark.parametrize(
    ("options", "measured", "trained"),
    [
        ("", "--image_size=32x32 --channels=3", dict(sigma_max=30.0, data_mean=0.4, sigma_data=0.25)),
        (
            "image_size=16:24,sigma_max=12,num_channels=1",
            "--image_size=16x24 --channels=1",
            dict(sigma_max=12.0, data_mean=0.4, sigma_data=0.25),
        ),
        ("runlocal,centered=true", "--image_size=16x16", dict(sigma_max=60.0, data_mean=-0.2, sigma_data=0.5)),
    ],
)
def test_what_is_measured_gives_way_to_the_options_and_is_in_the_networks_range(tmp_path, options, measured, trained):
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)
    words = [str(ROOT / "scripts" / "train_own.sh"), "cats, dogs", str(tmp_path / "run"), options]
    calls = {"REAL": sys.executable, "CALLS": str(tmp_path / "calls"), "PYTHON": str(tmp_path / "python")}
    done = subprocess.run(words, cwd=ROOT, env={**os.environ, **calls}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    statistics, training, *_ = (tmp_path / "calls").read_text().splitlines()
    assert measured in statistics
    assert training.endswith(" --config.data.dataset=cats, dogs")
    config = own.get_config(training.partition("own.py:")[2].partition(" --config.")[0])
    assert {field: config.model[field] for field in trained} == pytest.approx(trained)


def test_an_option_that_there_is_not_is_said_before_anything_is_measured(tmp_path):
    words = [str(ROOT / "scripts" / "train_own.sh"), "my_images", str(tmp_path / "run"), "sigma=3"]
    done = subprocess.run(words, cwd=ROOT, env={**os.environ, "PYTHON": sys.executable}, capture_output=True, text=True)
    assert done.returncode == 1 and "near: sigma_min, sigma_max" in done.stderr
    assert len(done.stderr.splitlines()) == 1 and not list((tmp_path / "run").iterdir())


@pytest.mark.parametrize(
    ("count", "message"), [(1, "statistics of one image say nothing"), (2, "all images are the same")]
)
def test_images_that_nothing_can_be_learned_from_are_refused_in_one_sentence(tmp_path, count, message):
    images = tmp_path / "cats, dogs"
    images.mkdir()
    for number in range(count):
        Image.fromarray(np.full((8, 8, 3), 90, np.uint8)).save(images / f"{number}.png")
    words = [str(ROOT / "scripts" / "train_own.sh"), str(images), str(tmp_path / "run"), "image_size=8"]
    env = {**os.environ, "PYTHON": sys.executable, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode != 0 and message in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "facts").exists()


@pytest.mark.slow
def test_own_images_become_a_model_samples_and_a_distance(tmp_path):
    rng, images = np.random.default_rng(0), tmp_path / "images"
    images.mkdir()
    for number in range(40):
        pixels = rng.integers(0, 255, (4, 4, 3), dtype=np.uint8).repeat(6, axis=0).repeat(6, axis=1)
        Image.fromarray(pixels).save(images / f"{number}.png")
    small = "image_size=16,runlocal,n_iters=10,snapshot_freq=10,begin_ckpt=1,end_ckpt=1"
    words = [str(ROOT / "scripts" / "train_own.sh"), str(images), str(tmp_path / "run"), small]
    env = {**os.environ, "PYTHON": sys.executable, "JAX_PLATFORMS": "cpu", "SEEDS": "0-3", "NFE": "6"}
    for _ in range(2):  # the second time all is there
        done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "4 of 4 images are there already" in done.stdout
    model = assembly.load(str(tmp_path / "run" / "model"))
    assert model.shape == (16, 16, 3) and model.config.model.parametrisation == "edm"
    assert 0.2 < model.config.model.sigma_data < 0.4 and model.config.model.sigma_max > 1
    assert len(list((tmp_path / "run" / "samples").glob("**/*.png"))) >= 4
    assert (tmp_path / "run" / "model" / "denoiser.png").is_file()
    (row,) = json.loads((tmp_path / "run" / "eval" / "results.json").read_text())["rows"]
    assert row["extractor"] == "pixels" and row["fid"] > 0 and row["nfe"] == 6
