"""Folders, zips and arrays of a user's images, and the command that makes statistics of them."""

import json
import pathlib
import subprocess
import sys
import zipfile

import ml_collections
import numpy as np
import pytest
from PIL import Image

from pds_jax import statistics
from pds_jax.data import datasets
from pds_jax.data.image_files import open_images, read_images
from pds_jax.types import PdsError

SCRIPT = pathlib.Path(__file__).parents[2] / "scripts" / "make_statistics.py"
PIXELS = np.random.default_rng(0).integers(0, 256, (7, 12, 12, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "images"
    (root / "more").mkdir(parents=True)
    for k, image in enumerate(PIXELS):
        Image.fromarray(image).save(root / ("more" if k > 4 else "") / f"{k}.png")
    (root / "notes.txt").write_text("not an image")
    (root / ".hidden.png").write_text("not an image")
    return root


def everything(path, **options):
    return np.concatenate(list(read_images(path, batch_size=3, **options)))


def test_every_form_gives_the_same_images(folder, tmp_path):
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for file in folder.rglob("*.*"):
            archive.write(file, file.relative_to(folder))
    np.save(tmp_path / "images.npy", PIXELS)
    np.savez(tmp_path / "images.npz", images=PIXELS, labels=np.arange(7))
    for path in (folder, tmp_path / "images.zip", tmp_path / "images.npy", tmp_path / "images.npz"):
        np.testing.assert_array_equal(everything(path), PIXELS)


def test_sizes_and_channels(folder):
    Image.fromarray(PIXELS[0][:6, :9]).save(folder / "9.png")
    with pytest.raises(PdsError, match=r"9\.png is 6x9 pixels .*0\.png is 12x12"):
        everything(folder)
    assert everything(folder, size=8).shape == (8, 8, 8, 3)
    assert everything(folder, size=(4, 6)).shape == (8, 4, 6, 3)
    assert everything(folder, size=8, channels=1, convert=True).shape == (8, 8, 8, 1)
    with pytest.raises(PdsError, match=r"png has 3 channels, 1 are asked for; use --convert_images"):
        everything(folder, size=8, channels=1)


LEVELS = np.arange(256).reshape(1, 16, 16, 1)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(
    ("scaled", "value_range"),
    [(LEVELS / 255, None), (LEVELS / 127.5 - 1, (-1, 1)), (LEVELS / 1.0, (0, 255))],
)
def test_bytes_stored_as_floats_come_back(tmp_path, dtype, scaled, value_range):
    array = scaled.astype(dtype)
    np.save(tmp_path / "all.npy", array)
    (tmp_path / "one").mkdir()
    np.save(tmp_path / "one" / "0.npy", array[0])
    for path in (tmp_path / "all.npy", tmp_path / "one"):
        found = open_images(path, value_range=value_range)
        np.testing.assert_array_equal(found.images([0]), LEVELS)
        assert found.stored([0]).dtype == np.float32


@pytest.mark.parametrize(("dtype", "below"), [(np.float32, 0.01), (np.float16, 0.4)])
def test_other_floats_are_floored(tmp_path, dtype, below):
    np.save(tmp_path / "a.npy", (np.maximum(LEVELS - below, 0) / 255).astype(dtype))
    np.testing.assert_array_equal(open_images(tmp_path / "a.npy").images([0]), np.maximum(LEVELS - 1, 0))


def test_a_limit_is_the_first_images_of_files_and_arrays_alike(folder, tmp_path):
    np.save(tmp_path / "a.npy", PIXELS)
    for path in (folder, tmp_path / "a.npy"):
        found = open_images(path, limit=3)
        assert len(found) == found.record["images"] == 3
        np.testing.assert_array_equal(found.images(range(3)), PIXELS[:3])
        assert len(open_images(path, limit=99)) == 7
        for limit in (0, -1):
            with pytest.raises(PdsError, match=f"limit={limit}: use at least one image"):
                open_images(path, limit=limit)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"value_range": 5}, "range=5: write two numbers"),
        ({"value_range": (1, -1)}, r"range=\(1, -1\): write two numbers"),
        ({"limit": 2.5}, "limit=2.5: use at least one image, a whole number"),
        ({"limit": "3"}, "limit=3: use at least one image"),
        ({"channels": "3"}, "channels='3': use 1"),
        ({"channels": 3.0}, "channels=3.0: use 1"),
        ({"size": "8"}, "image size 8"),
    ],
)
def test_an_option_of_another_kind_is_refused_in_words(folder, options, message):
    with pytest.raises(PdsError, match=message):
        open_images(folder, **options)


@pytest.mark.parametrize("shape", [(5, 8, 32, 32), (2, 16, 64, 64), (5, 3, 8, 8), (5, 4, 3, 3)])
def test_channels_first_are_asked_about_whatever_their_number(tmp_path, shape):
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(PdsError, match=rf"looks like \(n, C, H, W\).* or say channels={shape[-1]}"):
        open_images(tmp_path / "a.npy")
    assert open_images(tmp_path / "a.npy", channels=shape[-1]).shape == shape[1:]
    (tmp_path / "one").mkdir()
    np.save(tmp_path / "one" / "0.npy", array[0])
    with pytest.raises(PdsError, match=r"0\.npy .*looks like \(n, C, H, W\)"):
        open_images(tmp_path / "one")


@pytest.mark.parametrize("shape", [(5, 32, 32, 8), (5, 32, 8, 8), (5, 32, 32, 32), (5, 8, 16, 3)])
def test_channels_last_are_taken(tmp_path, shape):
    np.save(tmp_path / "a.npy", np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    assert open_images(tmp_path / "a.npy").shape == shape[1:]


def test_a_range_is_not_for_image_files(folder, tmp_path):
    """It would change nothing, and stand in the provenance."""
    with pytest.raises(
        PdsError,
        match=r"black 0 and white 255, but the range \(-1.0, 1.0\) .* is that of arrays",
    ):
        open_images(folder, value_range=(-1, 1))
    with pytest.raises(PdsError, match="image files, black 0 and white 255"):
        open_images(folder / "0.png", value_range=(-1, 1))
    np.testing.assert_array_equal(open_images(folder, value_range=(0, 255)).stored(range(7)), PIXELS)
    config = ml_collections.ConfigDict({"data": {"dataset": str(folder), "image_size": 12, "num_channels": 3}})
    assert datasets.get_source(config).size == 7
    config.data.range = (-1.0, 1.0)
    with pytest.raises(PdsError, match="image files, black 0 and white 255, but the range .* leave the range out"):
        datasets.get_source(config)


def test_black_frames_of_a_folder_are_read_and_white_is_looked_for_in_all(tmp_path):
    """A frame of 0 and 1 is almost black; a whole set of such is bool stored as bytes."""
    frames = [np.zeros((6, 4, 2), np.uint8), np.eye(6, 4, dtype=np.uint8)[..., None].repeat(2, axis=2)]
    for number, frame in enumerate(frames):
        np.save(tmp_path / f"{number}.npy", frame)
    with pytest.raises(PdsError, match="holds uint8 of 0 and 1 only, and white is 255; store it as bool"):
        open_images(tmp_path)
    np.save(tmp_path / "2.npy", np.full((6, 4, 2), 200, np.uint8))
    found = open_images(tmp_path)
    np.testing.assert_array_equal(found.stored(range(3))[:2], frames)
    assert len(found.keys([1])) == 1 and len(found.take([1])) == 1


def test_central_square(tmp_path):
    (tmp_path / "a").mkdir()
    Image.fromarray(PIXELS[0][:, 1:9]).save(tmp_path / "a" / "wide.png")
    np.testing.assert_array_equal(everything(tmp_path / "a", size=8)[0], PIXELS[0][2:10, 1:9])


def test_gray_stays_gray_and_is_not_mixed_with_colour(tmp_path):
    Image.fromarray(PIXELS[0, ..., 0]).save(tmp_path / "0.png")
    np.testing.assert_array_equal(everything(tmp_path)[0, ..., 0], PIXELS[0, ..., 0])
    Image.fromarray(PIXELS[1]).save(tmp_path / "1.png")
    with pytest.raises(PdsError, match=r"1\.png has 3 channels, 0\.png has 1.*--convert_images"):
        everything(tmp_path)
    colour = everything(tmp_path, convert=True)
    np.testing.assert_array_equal(colour[0], np.repeat(PIXELS[0, ..., :1], 3, axis=-1))
    np.testing.assert_array_equal(colour[1], PIXELS[1])


def test_bad_input(folder, tmp_path):
    (tmp_path / "nothing").mkdir()
    with pytest.raises(PdsError, match="holds no image files"):
        everything(tmp_path / "nothing")
    with pytest.raises(PdsError, match="absent does not exist"):
        everything(tmp_path / "absent")
    (tmp_path / "text.zip").write_text("hello")
    with pytest.raises(PdsError, match=r"text\.zip is neither a folder"):
        everything(tmp_path / "text.zip")
    (folder / "5.png").write_bytes((folder / "0.png").read_bytes()[:60])
    with pytest.raises(PdsError, match=r"5\.png is not a readable image"):
        everything(folder)
    np.save(tmp_path / "flat.npy", np.zeros((3, 4)))
    with pytest.raises(PdsError, match=r"shape \(3, 4\)"):
        everything(tmp_path / "flat.npy")
    np.savez(tmp_path / "two.npz", a=PIXELS, b=PIXELS)
    with pytest.raises(PdsError, match="exactly one"):
        everything(tmp_path / "two.npz")
    np.save(tmp_path / "square.npy", PIXELS)
    with pytest.raises(PdsError, match="leave image size"):
        everything(tmp_path / "square.npy", size=8)
    np.savez(tmp_path / "objects.npz", images=PIXELS, names=np.array([None, "a"]))
    np.testing.assert_array_equal(everything(tmp_path / "objects.npz"), PIXELS)
    for size in (8.0, (8,), 0):
        with pytest.raises(PdsError, match="image size"):
            everything(folder, size=size)
    with pytest.raises(PdsError, match="3 channels, 2 are asked for"):
        everything(folder, channels=2)
    Image.fromarray(np.full((4, 4), 70000, np.int32)).save(tmp_path / "nothing" / "deep.tif")
    with pytest.raises(PdsError, match=r"deep\.tif has 32 bits a channel"):
        everything(tmp_path / "nothing")


def test_the_command(folder, tmp_path):
    out, masks = tmp_path / "statistics.npz", tmp_path / "masks"
    command = [sys.executable, str(SCRIPT), f"--images={folder}", f"--out={out}", f"--masks_dir={masks}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    last = json.loads(done.stdout.splitlines()[-1])
    expected = statistics.compute_statistics([PIXELS])
    made = statistics.load(out)
    np.testing.assert_array_equal(made.power, expected.power)
    assert last["count"] == 7 and last["shape"] == [12, 12, 3] and last["statistics"] == str(out)
    assert last["estimate_sigma_max"] == pytest.approx(statistics.estimate_sigma_max(PIXELS))
    np.testing.assert_array_equal(np.load(masks / "freq_mask.npy"), expected.r_f.transpose(2, 0, 1))
    failed = subprocess.run([*command, "--dataset=photos"], capture_output=True, text=True)
    assert failed.returncode == 2 and "make_statistics: say where the images are: either" in failed.stderr
    assert "Traceback" not in failed.stderr
    failed = subprocess.run([*command, "--sigma_max_images=0"], capture_output=True, text=True)
    assert failed.returncode == 2 and "sigma_max_images=0: a distance is between" in failed.stderr
    assert "statistics of 7 images are rough; give about 200" in done.stderr
    once = [*command[:3], "--limit=1", f"--out={tmp_path / 'one.npz'}"]
    failed = subprocess.run(once, capture_output=True, text=True)
    assert failed.returncode == 2 and "images: statistics of one image say nothing; give about 200" in failed.stderr
    assert not (tmp_path / "one.npz").exists()


@pytest.mark.parametrize("channels", [2, 4])
def test_alpha_is_a_channel_where_so_many_are_asked_for(tmp_path, channels):
    pixels = np.random.default_rng(1).integers(0, 256, (12, 12, channels), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "0.png")
    for options in ({}, {"convert": True}):
        np.testing.assert_array_equal(everything(tmp_path, channels=channels, **options)[0], pixels)
    with pytest.raises(PdsError, match="has transparency"):
        everything(tmp_path)
    # Bands are resized by themselves: colours under alpha 0 count as much as others.
    small = everything(tmp_path, channels=channels, size=6)[0]
    band = Image.fromarray(pixels[..., 0]).resize((6, 6), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(small[..., 0], np.asarray(band))
