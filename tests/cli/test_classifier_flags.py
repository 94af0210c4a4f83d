"""--classifier: guidance of a network by guided-diffusion's classifier, on the recorded tiny ones."""

import json

import jax
import numpy as np
import pytest

from pds_jax import checkpoints, denoisers
from pds_jax.cli import sample as sampling_job
from pds_jax.cli.options import from_flags
from pds_jax.convert import adm
from pds_jax.io import images
from pds_jax.models import create_model, init_model
from pds_jax.types import PdsError

NETWORK, WITH_CLASSES = "unet_legacy_order_uncond_conv_resample", "unet64like_new_order"
CLASSIFIER = "classifier_attention_pool"


@pytest.fixture(scope="module")
def recorded(golden):
    """Name -> (file, configuration) of a recorded network of guided-diffusion."""

    def get(name, **changes):
        settings = json.loads((golden / "adm" / f"{name}.json").read_text())["settings"] | changes
        config = adm.config_from_settings(settings, noise_schedule="cosine", classifier=name == CLASSIFIER)
        return str(golden / "adm" / f"{name}.pt.gz"), config

    return get


def sample(recorded, workdir, name=NETWORK, **given):
    checkpoint, config = recorded(name)
    words = {"mode": "sample", "workdir": str(workdir), "checkpoint": checkpoint, "config": config, "seeds": "0-3"}
    return sampling_job.sample(from_flags({**words, "speed_up": 200.0, **given}, {"speed_up": "speed_up"}))


def log_probability(recorded, folder, label):
    """Mean log p(label) of finished images, by the classifier at a low noise level."""
    path, config = recorded(CLASSIFIER)
    found = checkpoints.load_any(path, config)
    logits = denoisers.get_logits(config, create_model(config), found.params)
    pixels = np.stack([images.load_png(images.seed_path(folder, seed)) for seed in range(4)])
    log_p = jax.nn.log_softmax(logits(pixels.astype(np.float32) / 127.5 - 1, np.full(4, 0.01, np.float32)))
    return float(log_p[:, label].mean())


@pytest.mark.slow
def test_images_go_to_the_class_at_equal_network_evaluations(recorded, tmp_path):
    path, config = recorded(CLASSIFIER)
    plain = sample(recorded, tmp_path, eval_folder="plain")
    words = {"classifier": path, "classifier_config": config, "labels": "7", "classifier_scale": 3000.0}
    guided = sample(recorded, tmp_path, **words, eval_folder="guided")
    assert log_probability(recorded, guided, 7) > log_probability(recorded, plain, 7) + 0.5
    manifest = json.loads((guided / "manifest.json").read_text())
    assert manifest["nfe"] == manifest["classifier_gradients"] == 5
    assert manifest["labels"] == {str(seed): 7 for seed in range(4)}
    assert manifest["identity"]["classifier_scale"] == 3000.0
    with pytest.raises(PdsError, match="another run: classifier_scale"):
        sample(recorded, tmp_path, **{**words, "classifier_scale": 1.0}, eval_folder="guided")


@pytest.mark.slow
def test_beside_labels_of_the_network_and_their_guidance(recorded, tmp_path):
    path, config = recorded(CLASSIFIER)
    words = {"labels": "random", "classifier": path, "classifier_config": config, "guidance": 2.0}
    manifest = json.loads((sample(recorded, tmp_path, WITH_CLASSES, **words) / "manifest.json").read_text())
    assert (manifest["nfe"], manifest["classifier_gradients"], manifest["labels"]) == (10, 5, "random")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"classifier": None}, "--classifier_config has no effect here: there is no --classifier"),
        ({"classifier": None, "classifier_config": None, "classifier_scale": 2.0}, "--classifier_scale has no effect"),
        ({"classifier_config": None}, "carries no configuration; add --classifier_config="),
        ({"classifier": "nowhere.pt"}, "neither a path that exists"),
        (
            {"classifier": "photos", "classifier_config": None},
            "is no classifier of noisy images; known: adm_classifier",
        ),
        ({"labels": None}, "give --labels=LIST"),
        ({"labels": "none"}, "give --labels=LIST"),
        ({"labels": "3,10"}, "label 10 of image 1 is not one of the classes 0 to 9"),
        ({"classifier_scale": -1.0}, "--classifier_scale=-1: use a number above 0"),
        ({"name": WITH_CLASSES, "classifier": "network"}, "is a U-Net, the configuration describes a classifier"),
    ],
)
def test_bad_input_is_named(recorded, tmp_path, given, message):
    path, config = recorded(CLASSIFIER)
    words = {"classifier": path, "classifier_config": config, "labels": "7", **given}
    if words["classifier"] == "network":
        words["classifier"] = recorded(NETWORK)[0]
    with pytest.raises(PdsError, match=message):
        sample(recorded, tmp_path, **{name: value for name, value in words.items() if value is not None})
    assert not (tmp_path / "samples").exists()


@pytest.mark.parametrize(
    ("size", "count", "message"),
    [
        (8, 10, r"is of images \(8, 8, 3\), .* makes \(16, 16, 3\)"),
        (16, 5, "knows 5 classes, .* 10; they are of different"),
    ],
)
def test_a_classifier_of_other_images_or_classes(recorded, tmp_path, size, count, message):
    settings = {"image_size": size, "model_channels": 32, "out_channels": count, "num_res_blocks": 1}
    settings |= {"attention_resolutions": [], "channel_mult": [1], "num_head_channels": 32}
    config = adm.config_from_settings(settings, classifier=True)
    shapes = jax.eval_shape(lambda: init_model(jax.random.key(0), config))
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    checkpoints.save_model(tmp_path / "classifier", params, config)
    with pytest.raises(PdsError, match=message):
        sample(recorded, tmp_path, WITH_CLASSES, classifier=str(tmp_path / "classifier"), labels="4")
