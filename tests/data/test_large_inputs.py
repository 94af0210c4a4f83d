"""Arrays larger than memory and folders of many files: what is held is what was asked for."""

import subprocess
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image

from pds_jax import statistics
from pds_jax.data import datasets, image_files
from pds_jax.data.image_files import open_images
from pds_jax.io import npy
from pds_jax.types import PdsError

PIXELS = np.random.default_rng(0).integers(2, 256, (9, 4, 6, 2), dtype=np.uint8)


def forms(folder):
    np.save(folder / "c.npy", PIXELS)
    np.save(folder / "fortran.npy", np.asfortranarray(PIXELS))
    np.savez(folder / "stored.npz", labels=np.arange(9), images=PIXELS)
    np.savez_compressed(folder / "packed.npz", images=PIXELS)
    return [folder / name for name in ("c.npy", "fortran.npy", "stored.npz", "packed.npz")]


@pytest.mark.parametrize("in_memory", [1 << 20, 0])
def test_rows_of_an_array_on_disk_are_those_in_memory(tmp_path, monkeypatch, in_memory):
    monkeypatch.setattr(npy, "_IN_MEMORY", in_memory)
    for path in forms(tmp_path):
        found = open_images(path)
        for rows in ([0], [8, 0, 3, 4, 5, 5], list(range(9))):
            np.testing.assert_array_equal(found.stored(rows), PIXELS[rows], err_msg=path.name)
        np.testing.assert_array_equal(found.take([7, 2]).images([1, 0]), PIXELS[[2, 7]])
        source = datasets.from_path(path)
        np.testing.assert_allclose(source.images(np.array([6, 1])), PIXELS[[6, 1]] / 255, rtol=1e-6)
    assert open_images(tmp_path / "stored.npz").record["passed_over"] == {"other arrays": ["labels (9,)"]}


def test_a_stored_array_is_checked_against_its_checksum(tmp_path):
    forms(tmp_path)
    data = bytearray((tmp_path / "stored.npz").read_bytes())
    data[data.index(PIXELS[4].tobytes())] ^= 1
    (tmp_path / "stored.npz").write_bytes(data)
    with pytest.raises(PdsError, match="stored.npz is not a whole .npz file"):
        open_images(tmp_path / "stored.npz")


def test_a_file_cut_short_while_it_is_read_is_named(tmp_path):
    np.save(tmp_path / "a.npy", PIXELS)
    found = open_images(tmp_path / "a.npy")
    with open(tmp_path / "a.npy", "r+b") as file:
        file.truncate(200)
    with pytest.raises(PdsError, match="a.npy was cut short"):
        found.stored([8])


def test_unpacking_that_would_fill_the_disk_is_refused(tmp_path, monkeypatch):
    forms(tmp_path)
    monkeypatch.setattr(npy, "_IN_MEMORY", 0)
    monkeypatch.setattr(npy, "_SPARE", 1 << 60)
    with pytest.raises(PdsError, match="has no room to unpack it; set TMPDIR"):
        open_images(tmp_path / "packed.npz")


SCRIPT = """
import resource
import sys
import numpy as np
from pds_jax import statistics
from pds_jax.data import datasets, image_files
path = sys.argv[1]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
source = datasets.from_path(path)
assert source.size == 50_000 and source.images(np.array([0, 25_000, 49_999])).max() == 1.0
for start in range(0, 50_000, 5000):
    source.found.stored(range(start, start + 256))
statistics.checked_images(image_files.read_images(path))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_fifty_thousand_images_of_256_pixels_take_little_memory(tmp_path):
    """A sparse file of 9.8 GB; the memory that reading it takes, in MiB."""
    array = np.lib.format.open_memmap(tmp_path / "a.npy", "w+", np.uint8, (50_000, 256, 256, 3))
    array[[0, 25_000, 49_999]] = 255
    del array
    done = subprocess.run([sys.executable, "-c", SCRIPT, tmp_path / "a.npy"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 400


def test_of_many_files_as_many_are_opened_as_are_wanted(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for number in range(3000):
            archive.writestr(f"{number:04d}.png", b"no image")
        Image.fromarray(PIXELS[0, ..., 0]).save(tmp_path / "0.png")
        archive.write(tmp_path / "0.png", "0.png")
    found = open_images(tmp_path / "a.zip", limit=1)
    assert found.files == ["0.png"] and found.record["found"] == 3001 and "1 images (of 3001)" in found.summary()
    with pytest.raises(PdsError, match="0000.png is not a readable image"):
        open_images(tmp_path / "a.zip")


def test_files_beyond_the_limit_of_memory_are_decoded_when_they_are_asked_for(tmp_path, monkeypatch):
    for number, image in enumerate(PIXELS):
        Image.fromarray(image[..., 0]).save(tmp_path / f"{number}.png")
    kept = datasets.from_path(tmp_path)
    monkeypatch.setattr(datasets, "_KEPT_BYTES", 10)
    read = datasets.from_path(tmp_path)
    assert kept.kept is not None and read.kept is None
    np.testing.assert_array_equal(kept.images(np.array([8, 3])), read.images(np.array([8, 3])))
    assert read.record == kept.record and read.size == 9
    sums = statistics.compute_statistics(image_files.read_images(tmp_path), source=read.record)
    assert sums.provenance["source"]["images"] == 9
