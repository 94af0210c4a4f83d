"""scripts/train_own.sh: a folder of images becomes a model, samples and a distance; stopped, it goes on."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from pds_jax import assembly

ROOT = pathlib.Path(__file__).parent.parent


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
