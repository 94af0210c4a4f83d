"""--labels and --guidance: from flags to files, on a tiny SongUNet with four classes."""

import json

import jax
import numpy as np
import pytest

import pds_jax
from pds_jax import assembly, checkpoints
from pds_jax.cli import sample as sampling_job
from pds_jax.cli.options import from_flags
from pds_jax.convert import edm
from pds_jax.io import images
from pds_jax.models import init_model
from pds_jax.types import PdsError

SIZES = {"img_resolution": 8, "in_channels": 3, "out_channels": 3, "model_channels": 8, "channel_mult": [1]}


def folder_of(tmp_path_factory, label_dim):
    arguments = {**SIZES, "num_blocks": 1, "attn_resolutions": [], "label_dim": label_dim, "label_dropout": 0.1}
    config = edm.config_from_arguments("EDMPrecond", "SongUNet", arguments)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: init_model(jax.random.key(0), config))
    params = jax.tree.map(lambda leaf: (0.3 * rng.standard_normal(leaf.shape)).astype(np.float32), shapes)
    folder = tmp_path_factory.mktemp(f"model{label_dim}")
    checkpoints.save_model(folder, params, config)
    return str(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return folder_of(tmp_path_factory, 4)


@pytest.fixture(scope="module")
def without_classes(tmp_path_factory):
    return folder_of(tmp_path_factory, 0)


def sample(model, workdir, **options):
    given = {"mode": "sample", "workdir": str(workdir), "checkpoint": model, "speed_up": 200.0, "seeds": "0-3"}
    return sampling_job.sample(from_flags({**given, **options}, {"speed_up": "speed_up"}))


def image(folder, seed):
    return images.load_png(images.seed_path(folder, seed)).astype(int)


@pytest.mark.slow
def test_the_label_of_a_seed_is_the_next_of_the_list(model, tmp_path):
    folder = sample(model, tmp_path, labels="1-2")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["labels"] == {"0": 1, "1": 2, "2": 1, "3": 2}
    sample(model, tmp_path, labels="1-2", seeds="0-5")  # the same run, with more images
    alone = sample(model, tmp_path, labels="2", seeds="1", eval_folder="alone")
    assert np.abs(image(alone, 1) - image(folder, 1)).max() <= 1
    other = sample(model, tmp_path, labels="3", seeds="1", eval_folder="other")
    assert np.abs(image(other, 1) - image(folder, 1)).max() > 3


@pytest.mark.slow
def test_random_labels_belong_to_their_seeds(model, tmp_path):
    folder = sample(model, tmp_path, labels="random")
    more = sample(model, tmp_path, labels="random", seeds="2-5", eval_folder="more")
    assert json.loads((more / "manifest.json").read_text())["labels"] == "random"
    assert np.abs(image(folder, 3) - image(more, 3)).max() <= 1


def test_guidance_counts_as_two_and_is_in_the_manifest(model, tmp_path):
    plain = json.loads((sample(model, tmp_path, labels="1", eval_folder="plain") / "manifest.json").read_text())
    guided = sample(model, tmp_path, labels="1", guidance=2.0, guidance_interval="0.1,20", eval_folder="guided")
    manifest = json.loads((guided / "manifest.json").read_text())
    assert (manifest["nfe"], plain["nfe"]) == (10, 5)
    assert manifest["identity"]["guidance"] == 2.0 and manifest["identity"]["interval"] == [0.1, 20.0]
    with pytest.raises(PdsError, match="another run"):
        sample(model, tmp_path, labels="1", guidance=3.0, guidance_interval="0.1,20", eval_folder="guided")


@pytest.mark.slow
def test_from_python(model):
    trained = pds_jax.load(model)
    assert trained.num_classes == 4
    plan = pds_jax.plan(trained, nfe=11, guidance=1.5)
    assert (plan.N, plan.nfe) == (5, 10)
    drawn = pds_jax.draw(trained, plan, range(3), labels=[0, 1, -1])
    unguided = pds_jax.draw(trained, pds_jax.plan(trained, nfe=5), range(3), labels=[0, 1, -1])
    assert (drawn.nfe, unguided.nfe) == (10, 5)
    np.testing.assert_allclose(drawn.images[2], unguided.images[2], atol=1e-3)  # no class: nothing to guide to
    assert np.abs(drawn.images[:2] - unguided.images[:2]).max() > 1e-2


def test_the_adaptive_solver_gives_every_image_its_label(model):
    trained = pds_jax.load(model)
    plan = pds_jax.plan(trained, method="ode")
    together = pds_jax.draw(trained, plan, range(3), labels=[0, 1, 3])
    alone = pds_jax.draw(trained, plan, [1], labels=[1])
    other = pds_jax.draw(trained, plan, [1], labels=[2])
    np.testing.assert_allclose(together.images[1:2], alone.images, atol=1e-3)
    assert np.abs(other.images - alone.images).max() > 1e-2


def test_another_image_size_in_the_same_folder_is_refused(without_classes, tmp_path):
    sample(without_classes, tmp_path)
    config = pds_jax.load(without_classes).config
    config.data.image_size = 16
    with pytest.raises(PdsError, match=r"holds images .* = \(8, 8, 3\), now they are \(16, 16, 3\)"):
        sample(without_classes, tmp_path, config=config)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "4 classes and needs labels"),
        ({"labels": "4"}, "label 4 of image 0 is not one of the classes 0 to 3"),
        ({"labels": "x"}, "--labels="),
        ({"labels": "1", "guidance": -1.0}, "weight -1"),
        ({"labels": "1", "guidance": 2.0, "guidance_interval": "3"}, "LOW,HIGH"),
        ({"labels": "1", "guidance": 2.0, "guidance_interval": "3,1"}, "low < high"),
        ({"labels": "1", "guidance_interval": "1,3"}, "no effect without guidance"),
    ],
)
def test_bad_labels_and_guidance_are_named(model, tmp_path, options, message):
    with pytest.raises(PdsError, match=message):
        sample(model, tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_a_network_without_classes_takes_neither(without_classes, tmp_path):
    with pytest.raises(PdsError, match="without classes"):
        sample(without_classes, tmp_path, labels="1")
    with pytest.raises(PdsError, match="without classes"):
        sample(without_classes, tmp_path, guidance=2.0)


def test_labels_that_do_not_fit_the_seeds_are_named(model, without_classes):
    trained = pds_jax.load(model)
    plan = pds_jax.plan(trained, nfe=5)
    for labels, message in [
        (None, "needs labels"),
        ([1], "1 labels were given for 2 seeds"),
        ([1, 9], "label 9 of image 1"),
        ("all", "'none'"),
    ]:
        with pytest.raises(PdsError, match=message):
            assembly.draw(trained, plan, range(2), labels=labels)
    other = pds_jax.load(without_classes)
    with pytest.raises(PdsError, match="without classes"):
        assembly.draw(other, pds_jax.plan(other, nfe=5), range(1), labels=[0])
