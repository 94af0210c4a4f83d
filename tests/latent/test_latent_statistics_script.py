import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from pds_jax.io.images import save_png
from pds_jax.latent.statistics import check_statistics
from pds_jax.statistics import load

SCRIPT = pathlib.Path(__file__).parents[2] / "scripts" / "latent_statistics.py"


def run(*words, fails=False):
    done = subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True)
    assert (done.returncode != 0) == fails, done.stderr
    return done.stderr if fails else done.stdout


@pytest.mark.slow
def test_of_images_and_of_samples(pipelines, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder, out = pipelines("sd1")[0], tmp_path / "latents.npz"
    for i in range(3):
        save_png(tmp_path / "images" / f"{i}.png", np.random.default_rng(i).integers(0, 256, (20, 24, 3), np.uint8))
    said = run(f"--checkpoint={folder}", f"--images={tmp_path / 'images'}", f"--out={out}")
    assert json.loads(said.splitlines()[-1])["count"] == 3
    assert check_statistics(load(out), "x").provenance["source"]["images"]
    (tmp_path / "prompts.txt").write_text("a red cat\nthe hats\n")
    words = (f"--prompts={tmp_path / 'prompts.txt'}", "--nfe=8", "--limit=3", "--batch_size=2", f"--out={out}")
    run(f"--checkpoint={folder}", *words)
    assert load(out).count == 3 and load(out).provenance["source"]["samples"]["nfe"] == 8
    assert "give --images=FOLDER, or --prompts=FILE" in run(f"--checkpoint={folder}", f"--out={out}", fails=True)


def test_a_model_of_images_is_refused_by_name(tmp_path):
    said = run("--checkpoint=photos", "--images=x", f"--out={tmp_path / 'x.npz'}", fails=True)
    assert "latent_statistics: --checkpoint=photos is no latent model, no folder of diffusers with model_index" in said
    assert "scripts/make_statistics.py is for models of images" in said and "Traceback" not in said
