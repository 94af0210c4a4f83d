import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from pds_jax.metrics.image_sets import DrawnImages, open_images, select
from pds_jax.types import PdsError


def random_images(count, shape=(6, 5, 3), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape)).astype(np.uint8)


def write(folder, images, start=0):
    folder.mkdir(parents=True, exist_ok=True)
    for seed, image in enumerate(images, start):
        Image.fromarray(image.squeeze()).save(folder / f"{seed:06d}.png")
    return folder


def test_folder_zip_and_array_hold_the_same_images(tmp_path):
    images = random_images(7)
    write(tmp_path / "f" / "000", images[:4])
    write(tmp_path / "f" / "001", images[4:], 4)
    (tmp_path / "f" / "manifest.json").write_text("{}")
    (tmp_path / "f" / "000" / "._000000.png").write_bytes(b"left by another system")
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        for file in sorted((tmp_path / "f").rglob("*.png")):
            archive.write(file, file.relative_to(tmp_path / "f"))
    np.savez(tmp_path / "a.npz", samples=images, labels=np.arange(7))
    np.save(tmp_path / "a.npy", (images / 255.0).astype(np.float32))
    for name in ("f", "z.zip", "a.npz", "a.npy"):
        found = open_images(tmp_path / name)
        assert (len(found), found.shape, list(found.seeds)) == (7, (6, 5, 3), list(range(7)))
        np.testing.assert_allclose(found.images([5, 2]).astype(int), images[[5, 2]].astype(int), atol=1)
        assert len(set(found.keys(range(7)))) == 7
        part = select(found, [6, 1])
        np.testing.assert_array_equal(part.images([0, 1]), found.images([6, 1]))
        assert part.keys([1]) == found.keys([1]) and list(part.seeds) == [6, 1]
        with pytest.raises(PdsError, match="no image of seed 7.*seeds 0 to 6"):
            select(found, [3, 7, 8])


def test_names_without_numbers_are_counted(tmp_path):
    write(tmp_path, random_images(2))
    (tmp_path / "000000.png").rename(tmp_path / "cat.png")
    assert list(open_images(tmp_path).seeds) == [0, 1]


def refused(folder, match, **options):
    with pytest.raises(PdsError, match=match):
        open_images(folder, **options)


def test_modes_are_never_converted_silently(tmp_path):
    good = random_images(1)[0]
    extra = {
        "alpha.png": Image.fromarray(random_images(1, (6, 5, 4))[0]),
        "palette.png": Image.fromarray(good).quantize(8),
        "cmyk.jpg": Image.fromarray(good).convert("CMYK"),
    }
    for name, image in extra.items():
        folder = write(tmp_path / name, [good])
        image.save(folder / name)
        refused(folder, rf"{name} has .*colour mode .*--convert_images")
        assert open_images(folder, convert=True).images([0, 1]).shape == (2, 6, 5, 3)
    folder = write(tmp_path / "gray", [good])
    Image.fromarray(good[..., 0]).save(folder / "z.png")
    refused(folder, "z.png has 1 channels, 000000.png has 3.*--convert_images")
    assert open_images(folder, convert=True).shape == (6, 5, 3)
    only_gray = write(tmp_path / "only_gray", random_images(3, (6, 5, 1)))
    assert open_images(only_gray).images([0]).shape == (1, 6, 5, 1)


def png_16_bit_rgb():
    """Pillow reads such a file as 8-bit RGB; write one by hand."""
    import struct
    import zlib

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + bytes(2 * 3 * 5) for _ in range(6))
    header = struct.pack(">IIBBBBB", 5, 6, 16, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def test_sixteen_bits_are_refused(tmp_path):
    for name, data in (("gray16.png", None), ("rgb16.png", png_16_bit_rgb())):
        folder = write(tmp_path / name, random_images(1))
        if data is None:
            Image.fromarray(np.zeros((6, 5), np.uint16)).save(folder / name)
        else:
            (folder / name).write_bytes(data)
        refused(folder, f"{name} has more than 8 bits")
        np.testing.assert_array_equal(open_images(folder, convert=True).images([1]), 0)


def test_mixed_sizes_name_both_files(tmp_path):
    folder = write(tmp_path / "f", random_images(2))
    write(folder, random_images(1, (5, 6, 3)), 2)
    refused(folder, "000002.png is 5x6 pixels .*000000.png is 6x5")


def test_broken_files_are_named(tmp_path):
    folder = write(tmp_path / "f", random_images(2))
    (folder / "z.png").write_bytes(b"not an image")
    refused(folder, "z.png is not a readable image")
    (folder / "z.png").write_bytes(b"")
    refused(folder, "z.png is not a readable image")
    buffer = io.BytesIO()
    Image.fromarray(random_images(1)[0]).save(buffer, "PNG")
    (folder / "z.png").write_bytes(buffer.getvalue()[:-40])
    found = open_images(folder)  # its header is whole
    with pytest.raises(PdsError, match="z.png is not a readable image"):
        found.images([2])


def test_empty_and_missing_places(tmp_path):
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "empty holds no image files")
    refused(tmp_path / "nowhere", "nowhere does not exist")
    (tmp_path / "x.zip").write_bytes(b"PK")
    refused(tmp_path / "x.zip", "x.zip is neither a folder")


@pytest.mark.parametrize(
    ("array", "match"),
    [
        (np.zeros((2, 4, 4, 3), np.float32) + np.float32(200), "values from 200 to 200; float images go from 0"),
        (np.full((2, 4, 4, 3), -1.0), "values from -1 to -1"),
        (np.full((2, 4, 4, 3), np.nan), "NaN"),
        (np.zeros((2, 4, 4, 3), np.int64), "holds int64"),
        (np.zeros((2, 3, 4, 4), np.uint8), r"holds an array \(2, 3, 4, 4\), which looks like \(n, C, H, W\)"),
        (np.zeros((2, 4, 4), np.uint8), r"holds 0 arrays \(n, H, W, C\)"),
        (np.zeros((0, 4, 4, 3), np.uint8), "holds no images"),
    ],
)
def test_arrays_of_another_range_or_shape(tmp_path, array, match):
    np.savez(tmp_path / "a.npz", array)
    refused(tmp_path / "a.npz", match)


def test_two_arrays_in_one_file_are_ambiguous(tmp_path):
    np.savez(tmp_path / "a.npz", a=random_images(1), b=random_images(1))
    refused(tmp_path / "a.npz", "holds 2 arrays")


def test_drawn_images_are_drawn_in_full_batches_when_asked_for():
    calls = []

    def draw(seeds):
        calls.append(list(seeds))
        return np.stack([np.full((2, 2, 1), seed / 255.0, np.float32) for seed in seeds])

    drawn = DrawnImages("samples", (2, 2, 1), [7, 8, 9, 10], {"alpha": 5.0}, draw, 3)
    keys = drawn.keys(range(4))
    assert len(set(keys)) == 4 and not calls
    assert drawn.images([1, 3])[:, 0, 0, 0].tolist() == [8, 10] and calls == [[8, 10, 10]]
    assert drawn.take([3]).keys([0]) == keys[3:]
    other = DrawnImages("samples", (2, 2, 1), [7], {"alpha": 4.0}, draw, 3)
    assert other.keys([0]) != keys[:1]


def test_of_a_sampling_run_only_the_images_count(tmp_path):
    for name, size in {"000/000003.png": 4, "000/000001.png": 4, "grid.png": 20, "trajectory/step_01.png": 9}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.zeros((size, size, 3), np.uint8)).save(tmp_path / name)
    with pytest.raises(PdsError, match="must have one size"):
        open_images(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    found = open_images(tmp_path)
    assert list(found.seeds) == [1, 3] and found.shape == (4, 4, 3)


def test_an_encrypted_archive_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("0.png", b"secret")
    data = bytearray((tmp_path / "x.zip").read_bytes())
    data[6] |= 1  # the flag of an encrypted entry, before the entry and in the directory
    data[data.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "x.zip").write_bytes(data)
    refused(tmp_path / "x.zip", "0.png.* is encrypted")


def test_the_range_of_a_sampling_run_is_that_of_its_manifest(tmp_path):
    (tmp_path / "000").mkdir()
    values = np.linspace(-3, 5, 2 * 3 * 2, dtype=np.float32).reshape(2, 3, 2)
    np.save(tmp_path / "000" / "000007.npy", values)
    refused(tmp_path, "values from -3 to 5")
    (tmp_path / "manifest.json").write_text('{"identity": {"files": {"suffix": ".npy", "range": [-3, 5]}}}')
    found = open_images(tmp_path)
    assert list(found.seeds) == [7]
    np.testing.assert_array_equal(found.images([0])[0], np.floor((values + 3) / 8 * 255 + 1e-4).astype(np.uint8))


def test_a_manifest_of_another_program_does_not_matter(tmp_path):
    write(tmp_path, random_images(2))
    (tmp_path / "manifest.json").write_text("{")
    assert len(open_images(tmp_path)) == 2
