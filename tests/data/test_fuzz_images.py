"""Damaged image files: always a PdsError that names the file, or an image of a right shape.

A PNG, and what lies in a .zip or .npz, has checksums: there an image that is read is the undamaged one. In the other
formats damage to the pixels cannot be seen; then what is read is what Pillow itself reads.
"""

import io
import pathlib
import sys
import tarfile
import zipfile

import kinds
import numpy as np
import pytest
from PIL import Image, ImageOps

from pds_jax.data.image_files import open_images
from pds_jax.data.masks import read_mask
from pds_jax.types import PdsError

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "convert"))
from mutations import mutations  # noqa: E402

COUNT = 500
PICTURE = np.random.default_rng(1).integers(0, 256, (24, 20, 3), dtype=np.uint8)
FORMATS = {
    "png": {}, "jpg": {"format": "JPEG"}, "webp": {"lossless": True}, "bmp": {}, "gif": {}, "tif": {"format": "TIFF"},
    "tiff": {"format": "TIFF", "compression": "tiff_lzw"}, "ppm": {}, "jp2": {}, "avif": {}, "tga": {}, "ico": {},
    "qoi": {}, "sgi": {}, "pcx": {}, "dds": {}, "mpo": {"format": "MPO"}, "im": {}, "xbm": {},
}  # fmt: skip


def encoded(suffix):
    buffer = io.BytesIO()
    picture = Image.fromarray(PICTURE)
    picture = picture.convert("1") if suffix == "xbm" else picture
    options = {"format": suffix.upper().replace("JP2", "JPEG2000"), **FORMATS[suffix]}
    exif = {"exif": kinds.exif(6)} if suffix in ("png", "jpg", "webp", "mpo") else {}
    picture.save(buffer, **options, **exif)
    return buffer.getvalue()


def as_pillow_reads(data):
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def written(suffix):
    Image.init()
    return Image.registered_extensions().get(f".{suffix}") in Image.SAVE


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", [suffix for suffix in FORMATS if written(suffix)])
def test_a_damaged_image_file_is_refused_by_name_or_read_right(suffix, tmp_path):
    data, path = encoded(suffix), tmp_path / f"x.{suffix}"
    path.write_bytes(data)
    right, read = open_images(path, convert=True).stored([0])[0], 0
    for _, damaged, _ in mutations(data, COUNT, seed=0):
        path.write_bytes(damaged)
        try:
            found = open_images(path, convert=True).stored([0])[0]
        except PdsError as error:
            assert path.name in str(error) and len(str(error)) < 600
            continue
        read += 1
        if suffix == "png":
            np.testing.assert_array_equal(found, right)
        else:
            np.testing.assert_array_equal(found, as_pillow_reads(damaged))
    assert read < COUNT


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in kinds.MASKS if not kind.refusal], ids=lambda kind: kind.label)
def test_a_damaged_mask_is_refused_by_name_or_is_black_and_white(kind, tmp_path):
    data, path = kind.make(), tmp_path / f"x{kind.suffix}"
    for _, damaged, _ in mutations(data, COUNT, seed=0):
        path.write_bytes(damaged)
        try:
            found = read_mask(path)
        except PdsError as error:
            assert path.name in str(error)
            continue
        assert set(np.unique(found)) == {0.0, 1.0}
        if kind.suffix == ".png":
            np.testing.assert_array_equal(found, kinds.KNOWN)


def pack(form, path):
    files = {f"{k}.png": encoded("png") for k in range(3)}
    if form == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    elif form.startswith("tar"):
        with tarfile.open(path, "w:gz" if form == "tar.gz" else "w") as archive:
            for name, data in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    elif form == "npz":
        np.savez(path, images=np.stack([PICTURE] * 3))
    elif form == "npz compressed":
        np.savez_compressed(path, images=np.stack([PICTURE] * 3))
    else:
        np.save(path, np.stack([PICTURE] * 3))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["zip", "tar", "tar.gz", "npz", "npz compressed", "npy"])
def test_a_damaged_archive_is_refused_by_name_or_read_right(form, tmp_path):
    path = tmp_path / f"x.{form.split()[0]}"
    pack(form, path)
    whole = open_images(path)
    right = whole.stored(range(3))
    data = path.read_bytes()
    for _, damaged, _ in mutations(data, COUNT, seed=0):
        path = tmp_path / f"y.{form.split()[0]}"
        path.unlink(missing_ok=True)  # the old one may be mapped
        path.write_bytes(damaged)
        try:
            found = open_images(path)
            images = found.stored(range(len(found)))
        except PdsError as error:
            assert path.name in str(error)
            continue
        if form == "npy":  # without checksums: what is read differs at most where bytes were touched
            assert images.dtype == np.uint8 and images.ndim == 4
        else:
            named = [file.count(".png") for file in getattr(found, "files", ["0.png"])]
            assert len(found) == 3 or "skipped" in found.summary() or form.startswith("tar"), named
            assert all((image == right[0]).all() for image in images)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", [suffix for suffix in FORMATS if written(suffix)])
def test_a_file_that_is_cut_off_is_named_wherever_it_is_cut(suffix, tmp_path):
    data, path = encoded(suffix), tmp_path / f"x.{suffix}"
    path.write_bytes(data)
    right = open_images(path, convert=True).stored([0])
    for share in (0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 0.97):
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(PdsError, match=path.name):
            np.testing.assert_array_equal(open_images(path, convert=True).stored([0]), right)
