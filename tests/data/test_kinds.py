"""The right value of every kind of file, and docs/files.md, which says so."""

import tarfile
import zipfile

import kinds
import numpy as np
import pytest

from pds_jax.data.image_files import open_images, read_images
from pds_jax.metrics import image_sets
from pds_jax.types import PdsError


def check(found, expected, within=0):
    if isinstance(expected, str):
        assert isinstance(found, str) and expected in found, found
        return
    assert not isinstance(found, str), found
    assert found.shape == expected.shape and found.dtype == np.uint8
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= within


@pytest.mark.parametrize("kind", kinds.KINDS, ids=lambda kind: kind.label)
def test_an_image_file_has_the_right_pixels_or_is_refused(kind, tmp_path):
    check(kinds.read(kind, tmp_path), kind.plain, kind.within)
    check(kinds.read(kind, tmp_path, convert=True), kind.converted, kind.within)
    gray = kinds.read(kind, tmp_path, convert=True, channels=1)
    assert isinstance(gray, str) == isinstance(kind.converted, str)
    if not isinstance(gray, str):
        assert gray.shape == (*kind.converted.shape[:2], 1)


@pytest.mark.parametrize("kind", kinds.KINDS, ids=lambda kind: kind.label)
def test_training_statistics_and_metrics_say_the_same(kind, tmp_path):
    """Also of a file inside an archive, beside others of its kind."""
    data = kind.make()
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for number in range(2):
            archive.writestr(f"{number}{kind.suffix}", data)
    for options in ({}, {"convert": True}):
        expected = kind.converted if options else kind.plain
        for reader in (
            lambda path, **words: next(read_images(path, **words)),
            lambda path, **words: image_sets.open_images(path, **words).images([0, 1]),
        ):
            if isinstance(expected, str):
                with pytest.raises(PdsError, match=f"a.zip/0{kind.suffix}"):
                    reader(tmp_path / "a.zip", **options)
            else:
                assert reader(tmp_path / "a.zip", **options).shape == (2, *expected.shape)


@pytest.mark.parametrize("kind", kinds.ARRAYS, ids=lambda kind: kind.label)
def test_an_array_has_the_right_values_or_is_refused(kind, tmp_path):
    found, expected = kinds.read_array(kind, tmp_path), kind.expected
    if isinstance(expected, str) and expected != "same":
        assert isinstance(found, str) and expected in found, found
    else:
        np.testing.assert_allclose(found, kind.array if isinstance(expected, str) else expected, atol=1e-6)
        assert found.dtype == (np.uint8 if kind.array.dtype == np.uint8 else np.float32)


@pytest.mark.parametrize("kind", kinds.MASKS, ids=lambda kind: kind.label)
def test_a_mask_in_any_lossless_form_is_a_mask(kind, tmp_path):
    found = kinds.mask_of(kind, tmp_path)
    if kind.refusal:
        assert isinstance(found, str) and kind.refusal in found
    else:
        np.testing.assert_array_equal(found, kinds.KNOWN)


def pack(folder, path, form):
    if form == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for file in sorted(folder.rglob("*")):
                name = str(file.relative_to(folder))
                if file.is_symlink():
                    info = zipfile.ZipInfo(name)
                    info.create_system, info.external_attr = 3, 0o120777 << 16
                    archive.writestr(info, str(file.readlink()))
                elif file.is_file():
                    archive.write(file, name)
    else:
        with tarfile.open(path, f"w:{form}") as archive:
            archive.add(folder, arcname=".")
    return path


def test_everything_in_a_folder_is_read_or_passed_over_with_its_reason(tmp_path):
    expected = kinds.entries(tmp_path / "entries")
    found = open_images(tmp_path / "entries")
    reasons = {name: reason for reason, names in found.place.listing.passed_over.items() for name in names}
    assert {**dict.fromkeys(found.files, ""), **reasons} == expected
    assert found.record["images"] == 3
    assert sum(passed["count"] for passed in found.record["passed_over"].values()) == len(expected) - 3
    assert "skipped 11: " in found.summary() and "\n" not in found.summary()


@pytest.mark.parametrize("form", ["zip", "", "gz", "bz2", "xz"])
def test_an_archive_is_like_its_folder(form, tmp_path):
    """Of a hidden or a system folder, which a folder does not enter, an archive lists the files."""
    kinds.entries(tmp_path / "entries")
    folder = open_images(tmp_path / "entries")
    archive = open_images(pack(tmp_path / "entries", tmp_path / f"archive.{form or 'tar'}", form))
    assert archive.files == folder.files
    np.testing.assert_array_equal(archive.stored(range(3)), folder.stored(range(3)))
    assert archive.keys(range(3)) == folder.keys(range(3))

    def plain(found):
        rename = {".thumbnails/0.png": ".thumbnails/", "__MACOSX/._0.png": "__MACOSX/", "b": "b/"}
        passed = found.place.listing.passed_over
        return {reason: {rename.get(name, name) for name in names} for reason, names in passed.items()}

    assert plain(archive) == plain(folder)


@pytest.mark.skipif(kinds.KINDS != kinds.ALL_KINDS, reason="this build of Pillow lacks a format")
def test_the_page_says_what_the_reader_does():
    assert kinds.page_with(kinds.tables()) == kinds.PAGE.read_text()
