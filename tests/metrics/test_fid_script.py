import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from pds_jax.metrics.extractors import get_extractor
from pds_jax.metrics.frechet import frechet_distance_from_features

ROOT = pathlib.Path(__file__).parent.parent.parent
IMAGES = np.random.default_rng(0).integers(0, 256, (30, 4, 4, 3)).astype(np.uint8)


def fid(*words, ok=True):
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "fid.py"), *map(str, words)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
    )
    assert (done.returncode == 0) == ok, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1]) if ok else done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("fid")
    for seed, image in enumerate(IMAGES):
        target = place / "samples" / f"{seed // 10:03d}" / f"{seed:06d}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(target)
    np.savez(place / "real.npz", IMAGES[::-1] // 2)
    return place


def test_ref_then_calc_over_two_ranges(folder):
    common = ("--extractor=pixels", f"--cache={folder}/cache")
    made = fid("ref", f"--images={folder}/real.npz", f"--out={folder}/ref.npz", "--keep_features", *common)
    assert (made["n"], made["dims"], made["image_shape"]) == (30, 48, [4, 4, 3])
    got = fid(
        "calc",
        f"--images={folder}/samples",
        f"--ref={folder}/ref.npz",
        "--seeds=0-14,15-29",
        "--allow_fewer",
        "--metrics=fid,kid,pr",
        "--kid_subset_size=10",
        *common,
    )
    pixels = get_extractor("pixels")
    real = pixels(IMAGES[::-1] // 2)
    expected = [frechet_distance_from_features(pixels(part), real) for part in (IMAGES[:15], IMAGES[15:])]
    assert [run["fid"] for run in got["runs"]] == pytest.approx(expected, rel=1e-9)
    assert got["mean"]["fid"] == got["fid"] == pytest.approx(np.mean(expected), rel=1e-9)
    assert got["minimum"]["fid"] == pytest.approx(min(expected), rel=1e-9)
    assert [run["seeds"] for run in got["runs"]] == ["0-14", "15-29"] and got["n"] == 15
    assert {"kid", "precision", "recall"} <= set(got["mean"])


def test_fewer_images_need_the_flag(folder):
    np.savez(folder / "edm.npz", mu=np.zeros(48), sigma=np.eye(48))
    words = ("calc", f"--images={folder}/samples", f"--ref={folder}/edm.npz", "--extractor=pixels")
    assert "30 images are fewer than the 50000" in fid(*words, ok=False)


@pytest.mark.slow
def test_a_reference_of_another_suffix_is_refused_before_the_pass(folder):
    assert "ends in .npz" in fid("ref", f"--images={folder}/nothing", "--out=x", "--extractor=pixels", ok=False)


@pytest.mark.slow
def test_no_image_is_drawn_to_be_thrown_away():
    """A pass takes 512 images at most, and fewer than a batch are filled up to one."""
    code = """if True:
        import fid
        fid.flags.FLAGS(["fid", "--checkpoint=digits", "--seeds=0-1023", "--nfe=4", "--batch_size=1024"])
        print(fid.drawn_sets()[0].batch_size)
    """
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'scripts'}"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.stdout.splitlines()[-1:] == ["512"], done.stderr


@pytest.mark.slow
def test_a_checkpoint_is_judged_without_saving_images(folder):
    np.savez(folder / "edm16.npz", mu=np.full(768, 0.5), sigma=0.05 * np.eye(768))
    words = ("calc", "--checkpoint=photos", "--nfe=4", "--option=corrector=none", "--option=prior=matched")
    common = (f"--ref={folder}/edm16.npz", "--extractor=pixels", "--allow_fewer", f"--cache={folder}/drawn")
    alone, together = (fid(*words, *common, "--seeds=0-1,2-5", f"--batch_size={size}") for size in (1, 4))
    assert alone["nfe"] == 4 and alone["sampling"]["sampling"]["prior"] == "matched"
    for first, second in zip(alone["runs"], together["runs"], strict=True):
        assert first["fid"] == pytest.approx(second["fid"], rel=1e-4)
    assert [run["n"] for run in alone["runs"]] == [2, 4]
    assert not any((folder / "drawn").rglob("*.png"))


@pytest.mark.parametrize(
    ("verb", "words", "flag", "what"),
    [
        ("calc", ("--images=x", "--nfe=20"), "--nfe", "--checkpoint"),
        ("calc", ("--images=x", "--option=snr=0.2"), "--option", "--checkpoint"),
        ("calc", ("--checkpoint=digits", "--convert_images"), "--convert_images", "--images"),
        ("calc", ("--images=x", "--extractor=pixels", "--resize=half_pixel"), "--resize", "--extractor=inception"),
        ("calc", ("--images=x", "--kid_subset_size=10"), "--kid_subset_size", "--metrics=kid"),
        ("calc", ("--images=x", "--out=y.npz"), "--out", "fid.py ref"),
        ("ref", ("--images=x", "--metrics=kid"), "--metrics", "fid.py calc"),
    ],
)
def test_flags_without_effect_are_refused(verb, words, flag, what):
    assert f"{flag} has no effect here: it is for {what}; leave it out" in fid(verb, *words, ok=False)
