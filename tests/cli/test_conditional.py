"""The conditional modes on the shipped digits and a tiny colour network."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from pds_jax import assembly, checkpoints, operators, statistics
from pds_jax.cli import conditional as conditional_job
from pds_jax.cli import flags, run_lib
from pds_jax.cli.options import RunOptions, SamplerOptions
from pds_jax.io import images
from pds_jax.models import init_model
from pds_jax.types import PdsError
from tests import tiny

FEW = {"speed_up": 250.0, "corrector": "none"}
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (3, 8, 8, 3)).astype(np.uint8)
MASK = (RNG.random((8, 8)) < 0.5).astype(np.uint8) * 255


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tiny network of 8x8 colour images with random weights, three images and a mask."""
    place = tmp_path_factory.mktemp("conditional")
    config = tiny.get_config()
    config.data.num_channels = 3
    config.data.dataset = str(place / "given")
    config.training.loss_weighting = "sigma"
    shapes = jax.eval_shape(lambda: init_model(jax.random.key(0), config))
    params = jax.tree.map(lambda leaf: (0.1 * RNG.standard_normal(leaf.shape)).astype(np.float32), shapes)
    smooth = RNG.random((64, 4, 4, 3)).repeat(2, axis=1).repeat(2, axis=2).astype(np.float32)
    checkpoints.save_model(place / "model", params, config, statistics.compute_statistics([smooth]))
    for number, image in enumerate(PIXELS):
        write(place / "given" / f"{number}.png", image)
    write(place / "mask.png", MASK)
    return place


def write(path, array, mode=None):
    path.parent.mkdir(exist_ok=True)
    image = Image.fromarray(array)
    image.convert(mode or image.mode).save(path)


def run(place, workdir, mode, sampler=None, **options):
    words = {"checkpoint": str(place / "model"), "images": str(place / "given"), "guidance": 0.0, **options}
    chosen = SamplerOptions(**FEW | (sampler or {}))
    run_lib.run(RunOptions(mode, workdir, batch_size=4, sampler=chosen, **words))
    folder = workdir / (options.get("eval_folder") or mode)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["state"] == "complete" and manifest["identity"]["mode"] == mode
    count = manifest["images"]
    return folder, np.stack([images.load_png(images.seed_path(folder, seed)) for seed in range(count)])


def test_every_mode_but_that_of_classes_has_its_task():
    assert {*conditional_job._TASKS, "class_conditional"} == set(flags.CONDITIONAL)


@pytest.mark.parametrize("guidance, alpha", [(0.0, math.inf), pytest.param(1.0, 5.0, marks=pytest.mark.slow)])
def test_inpainting_keeps_known_pixels_to_the_byte_and_draws_several_results(place, tmp_path, guidance, alpha):
    """3 images, 2 results each, in batches of 4 on four devices."""
    options = {"mask": str(place / "mask.png"), "per_image": 2, "originals": True, "guidance": guidance}
    folder, found = run(place, tmp_path, "inpaint", {"alpha": alpha}, **options)
    for number, result in enumerate(found):
        np.testing.assert_array_equal(result[MASK > 0], PIXELS[number // 2][MASK > 0])
    assert np.abs(found[0].astype(int) - found[1].astype(int))[MASK == 0].max() > 0
    picture = images.load_png(folder / "comparison.png")
    assert picture.shape == (3 * (8 * 8 + 2) + 2, 4 * (8 * 8 + 2) + 2, 3)
    before = (folder / "manifest.json").read_text()
    run(place, tmp_path, "inpaint", {"alpha": alpha}, **options)
    assert (folder / "manifest.json").read_text() == before
    with pytest.raises(PdsError, match=f"holds another run: guidance was {guidance}"):
        run(place, tmp_path, "inpaint", {"alpha": alpha}, **{**options, "guidance": 0.5})


@pytest.mark.slow
def test_colours_have_the_gray_values_given(place, tmp_path):
    gray = np.round(PIXELS.mean(-1)).astype(np.uint8)
    gray = (64 + gray // 2).astype(np.uint8)  # far from black and white, where bytes clip
    for number, image in enumerate(gray):
        write(tmp_path / "gray" / f"{number}.png", image)
    _, found = run(place, tmp_path, "colorize", images=str(tmp_path / "gray"))
    clipped = (found == 0) | (found == 255)
    error = np.abs(found.astype(float).mean(-1) - gray)[~clipped.any(-1)]
    assert found.shape == (3, 8, 8, 3) and error.size > 20 and error.max() <= 1.01


def test_enlarged_images_have_the_block_means_given(place, tmp_path):
    small = PIXELS.reshape(3, 4, 2, 4, 2, 3).mean((2, 4))
    small = (64 + small // 2).astype(np.uint8)
    np.savez(tmp_path / "small.npz", small)
    _, found = run(place, tmp_path, "super_resolution", images=str(tmp_path / "small.npz"))
    means = found.astype(float).reshape(3, 4, 2, 4, 2, 3).mean((2, 4))
    clipped = ((found == 0) | (found == 255)).reshape(3, 4, 2, 4, 2, 3).any((2, 4))
    assert (~clipped).sum() > 20 and np.abs(means - small)[~clipped].max() <= 1.01


@pytest.mark.slow
def test_deblurred_images_blur_to_the_given_ones(place, tmp_path):
    """As far as bytes tell: the parts that the blur leaves more than a fifth of."""
    options = {"originals": True, "blur_sigma": 0.6}
    _, found = run(place, tmp_path, "deblur", images=str(place / "given" / "1.png"), **options)
    operator = operators.blur(operators.gaussian_kernel(0.6), (1, 8, 8, 3), 0.2)
    assert found.shape == (1, 8, 8, 3)
    if not ((found == 0) | (found == 255)).any():
        both = [operator.project(jnp.asarray(x, jnp.float32)) for x in (found, PIXELS[1:2])]
        assert np.abs(both[0] - both[1]).max() < 3


def test_test_images_of_the_models_data_may_be_given(place, tmp_path):
    words = {"images": "test:2", "mask": str(place / "mask.png"), "originals": True}
    assert len(run(place, tmp_path, "inpaint", **words)[1]) == 2


def test_photographs_of_any_size_are_cropped_when_asked(place, tmp_path):
    write(tmp_path / "photo.png", RNG.integers(0, 256, (20, 30, 3)).astype(np.uint8))
    words = {"images": str(tmp_path / "photo.png"), "mask": str(place / "mask.png")}
    with pytest.raises(PdsError, match="20x30 pixels.*needs 8x8.*--resize_images"):
        run(place, tmp_path, "inpaint", **words)
    assert run(place, tmp_path, "inpaint", **words, resize_images=True)[1].shape == (1, 8, 8, 3)


@pytest.mark.parametrize(
    "mode, options, match",
    [
        ("inpaint", {"images": None}, "--mode=inpaint needs --images"),
        ("inpaint", {}, "needs --mask"),
        ("inpaint", {"mask": "missing.png"}, "missing.png does not exist"),
        ("inpaint", {"mask": "small.png"}, r"mask \(4, 4, 1\) does not match images"),
        ("inpaint", {"mask": "soft.png"}, "threshold it first"),
        ("inpaint", {"mask": "alpha.png"}, "has colours"),
        ("inpaint", {"mask": "given"}, "holds 3 images; give one file"),
        ("inpaint", {"mask": "mask.png", "images": "broken"}, "broken/b.png is not a readable image"),
        ("inpaint", {"mask": "mask.png", "images": "empty"}, "holds no image files"),
        ("inpaint", {"mask": "mask.png", "images": "gray.png"}, "1 channels, .* needs 3 here"),
        ("inpaint", {"mask": "mask.png", "images": "deep.png"}, "more than 8 bits"),
        ("inpaint", {"mask": "mask.png", "per_image": 0}, "--per_image=0"),
        ("inpaint", {"mask": "mask.png", "guidance": -1.0}, "--guidance=-1.0"),
        ("inpaint", {"mask": "mask.png", "images": "test:many"}, "write test:COUNT"),
        ("colorize", {"images": "gray.png", "originals": True}, "gray already"),
        ("super_resolution", {"factor": 0}, "--factor=0 must be"),
        ("super_resolution", {"factor": 3}, "--factor=3 must be at least 2 and divide"),
        ("super_resolution", {}, "8x8 pixels .* needs 4x4 here"),
        ("super_resolution", {"images": "test:2"}, "add --originals"),
        ("deblur", {"blur_sigma": 0.0}, "must be positive"),
        ("deblur", {"blur_sigma": 9.0}, "larger than the images"),
        ("class_conditional", {}, "needs --labels"),
        ("class_conditional", {"labels": (3,)}, "no classifier of noised images"),
    ],
)
def test_bad_input_is_refused_before_the_run(place, tmp_path, mode, options, match):
    write(place / "small.png", MASK[:4, :4])
    write(place / "soft.png", np.full((8, 8), 128, np.uint8))
    write(place / "gray.png", MASK)
    write(place / "alpha.png", PIXELS[0], "RGBA")
    write(place / "broken" / "b.png", MASK)
    (place / "broken" / "b.png").write_bytes(b"no image")
    (place / "empty").mkdir(exist_ok=True)
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(place / "deep.png")
    named = {
        key: str(place / value) if key in ("mask", "images") and value and not value.startswith("test:") else value
        for key, value in options.items()
    }
    with pytest.raises(PdsError, match=match):
        run(place, tmp_path, mode, **named)
    assert not list(tmp_path.iterdir())


def test_image_files_are_refused_where_the_model_declares_a_range_of_arrays(place, tmp_path):
    words = {"mask": str(place / "mask.png"), "overrides": (("data.range", "-1,1"),)}
    with pytest.raises(PdsError, match="white 255, but the range .* .data.range of the model, .* give .npy or .npz"):
        run(place, tmp_path, "inpaint", **words)


def test_an_adaptive_solver_is_refused(place, tmp_path):
    with pytest.raises(PdsError, match="sampling.method=ode takes no condition"):
        run(place, tmp_path, "inpaint", {"method": "ode"}, mask=str(place / "mask.png"))


@pytest.mark.slow
def test_the_label_of_each_digit_is_in_the_manifest_and_mostly_in_the_picture(tmp_path, capsys):
    words = {"checkpoint": "digits", "seeds": range(20), "labels": range(10), "batch_size": 4}
    run_lib.run(RunOptions("class_conditional", tmp_path, sampler=SamplerOptions(speed_up=20.0), **words))
    manifest = json.loads((tmp_path / "class_conditional" / "manifest.json").read_text())
    assert manifest["labels"] == {str(seed): seed % 10 for seed in range(20)}
    agreed = int(capsys.readouterr().out.split("agrees with the label of ")[1].split()[0])
    assert agreed >= 15


def test_labels_that_no_class_has_are_refused(tmp_path):
    words = {"checkpoint": "digits", "labels": tuple(range(7, 13)), "sampler": SamplerOptions(**FEW)}
    with pytest.raises(PdsError, match="label 10 of image 3 is not one of the classes 0 to 9"):
        run_lib.run(RunOptions("class_conditional", tmp_path, **words))
    assert not list(tmp_path.iterdir())


DIGITS = {"checkpoint": "digits", "labels": (0, 1, 2, 3), "sampler": SamplerOptions(**FEW)}


def digit_labels(workdir, seeds, **options):
    run_lib.run(RunOptions("class_conditional", workdir, seeds=seeds, **DIGITS, **options))
    return json.loads((workdir / "class_conditional" / "manifest.json").read_text())["labels"]


def black(trained, plan, seeds, *, save, **words):
    """In the place of ``assembly.draw``."""
    save(seeds, np.zeros((len(seeds), *trained.shape), np.uint8))
    return assembly.Drawn(None, plan.nfe, 1.0, 1.0, [], len(seeds))


def test_the_label_of_a_seed_is_the_same_whichever_other_seeds_are_listed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(assembly, "draw", black)
    assert digit_labels(tmp_path, (0, 1, 2)) == {"0": 0, "1": 1, "2": 2}
    assert digit_labels(tmp_path, (0, 2, 3)) == {"0": 0, "1": 1, "2": 2, "3": 3}
    capsys.readouterr()
    digit_labels(tmp_path, tuple(range(8)), shard=(0, 2))  # half of them are still to come: no report of agreement
    assert "agrees" not in capsys.readouterr().out
    path = tmp_path / "class_conditional" / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"labels": {"0": 0, "2": 1}}))  # as a folder of an earlier version
    with pytest.raises(PdsError, match="holds the image of seed 2 with label 1; here its label would be 2"):
        digit_labels(tmp_path, (0, 1, 2))


@pytest.mark.parametrize(
    "mode, options",
    [("deblur", {"images": "test:2", "originals": True}), ("class_conditional", {"labels": (1,), "seeds": (0, 1)})],
)
def test_a_pilot_without_the_condition_is_refused(tmp_path, mode, options):
    sampler = SamplerOptions(predictor="spectral", corrector="none", nfe=4, prior="matched", pilot_gain=True)
    with pytest.raises(PdsError, match="--pilot_gain measures its gains on images without classes"):
        run_lib.run(RunOptions(mode, tmp_path, checkpoint="digits", sampler=sampler, **options))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "options, match",
    [
        ({"images": "test:298"}, "test:298: digits-test holds 297 images; use test:297 at most"),
        ({"images": "test:2", "resize_images": True}, "--resize_images has no effect here"),
        ({"images": "test:2", "convert_images": True}, "--convert_images has no effect here"),
    ],
)
def test_more_test_images_than_there_are_and_flags_without_effect_are_refused(tmp_path, options, match):
    words = {"checkpoint": "digits", "originals": True, "sampler": SamplerOptions(**FEW)}
    with pytest.raises(PdsError, match=match):
        run_lib.run(RunOptions("deblur", tmp_path, **words, **options))
    assert not list(tmp_path.iterdir())


def test_guidance_takes_the_statistics_that_were_given(place, tmp_path):
    stats = statistics.compute_statistics([RNG.random((64, 8, 8, 3)).astype(np.float32)])
    stats.save(tmp_path / "other.npz")
    options = RunOptions("deblur", tmp_path, checkpoint=str(place / "model"), sampler=SamplerOptions(**FEW))
    trained = conditional_job.sampling_job.load(options)
    given = SamplerOptions(**FEW, prior="matched", statistics=str(tmp_path / "other.npz"))
    plan = conditional_job._plan(trained, dataclasses.replace(options, sampler=given))
    expected = np.maximum(stats.to_range(trained.config.data.centered)[1], 1e-8)
    np.testing.assert_array_equal(conditional_job._power(trained, plan), expected)
