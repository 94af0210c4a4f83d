"""From the files of EDM and guided-diffusion to images and their Fréchet distance, on the recorded untrained networks.

They predict noise of about unit size whatever they see, so that their images are noise: what is tested is the way.
"""

import json

import numpy as np
import pytest

from pds_jax.cli import sample as sampling_job
from pds_jax.cli.options import from_flags
from pds_jax.convert import adm
from pds_jax.data.image_files import open_images
from pds_jax.metrics.extractors import get_extractor
from pds_jax.metrics.frechet import frechet_distance_from_features
from pds_jax.types import PdsError

FIELDS = {"speed_up": "speed_up", "radius": "r", "lam": "lam"}


def run(workdir, **given):
    words = {"mode": "sample", "workdir": str(workdir), "seeds": "0-5", "speed_up": 200.0, **given}
    return sampling_job.sample(from_flags(words, FIELDS))


def check(folder, shape, nfe):
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["state"] == "complete" and manifest["nfe"] == nfe
    images = open_images(folder)
    assert (len(images), images.shape) == (6, shape)
    extractor = get_extractor("pixels")
    features = extractor(images.images(range(6)))
    other = extractor(np.random.default_rng(0).integers(0, 256, (20, *shape), np.uint8))
    distance = frechet_distance_from_features(features, other)
    assert np.isfinite(distance) and distance > 0
    return manifest


def test_a_snapshot_of_edm_with_pds(golden, tmp_path):
    path = golden / "edm" / "edm_ncsnpp_uncond.pkl"
    folder = run(tmp_path, checkpoint=str(path), radius=2.0, lam=1.2)
    manifest = check(folder, (8, 8, 3), nfe=5)
    assert manifest["config"]["model"]["name"] == "songunet" and manifest["config"]["training"]["sde"] == "vesde"


@pytest.mark.slow
def test_a_checkpoint_of_guided_diffusion_with_classes(golden, tmp_path):
    settings = json.loads((golden / "adm" / "unet64like_new_order.json").read_text())["settings"]
    config = adm.config_from_settings(settings, noise_schedule="cosine")
    given = {"checkpoint": str(golden / "adm" / "unet64like_new_order.pt.gz"), "config": config}
    with pytest.raises(PdsError, match="10 classes"):
        run(tmp_path, **given)
    with pytest.raises(PdsError, match="label 10"):
        run(tmp_path, labels="10", **given)
    manifest = check(run(tmp_path, labels="3-4", **given), (16, 16, 3), nfe=5)
    assert manifest["labels"]["1"] == 4
    with pytest.raises(PdsError, match="--config"):
        run(tmp_path, checkpoint=given["checkpoint"])
