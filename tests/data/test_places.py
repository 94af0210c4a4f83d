"""Folders and archives with everything that is found in them: links, odd names, damage, other programs' leavings."""

import os
import tarfile
import warnings
import zipfile

import kinds
import numpy as np
import pytest
from PIL import Image

from pds_jax.data.image_files import open_images
from pds_jax.data.places import open_place
from pds_jax.types import PdsError

PICTURE = kinds.saved(kinds.RGB, "PNG")()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(PICTURE)
    return tmp_path / "images"


def passed(place):
    return {reason: list(names) for reason, names in open_place(place).listing.passed_over.items()}


def test_links_that_lead_back_are_followed_once(folder):
    os.symlink(folder, folder / "me")
    os.symlink(".", folder / "dot")
    assert open_images(folder).files == ["a.png"]
    assert passed(folder) == {"a link to what is read already": ["dot/", "me/"]}


def test_links_to_other_places_are_read_each_file_once(folder, tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "b.png").write_bytes(PICTURE)
    os.symlink(tmp_path / "store", folder / "linked")
    os.symlink(tmp_path / "store" / "b.png", folder / "c.png")
    os.symlink(folder, tmp_path / "whole")
    assert open_images(folder).files == ["a.png", "linked/b.png"]
    assert passed(folder) == {"a link to what is read already": ["c.png"]}
    assert open_images(tmp_path / "whole").files == ["a.png", "linked/b.png"]


def test_a_pipe_is_no_image(folder):
    os.mkfifo(folder / "b.png")
    assert passed(folder) == {"not a regular file": ["b.png"]}
    with pytest.raises(PdsError, match="b.png is not a regular file"):
        open_images(folder / "b.png")


def test_names_that_are_no_text_are_read_and_shown(folder):
    place = os.fsencode(folder)
    for name, data in ((b"/\xff.png", PICTURE), (b"/\xfe.txt", b"text")):
        with open(place + name, "wb") as file:
            file.write(data)
    found = open_images(folder)
    assert found.stored([0, 1]).shape == (2, 6, 4, 3)
    assert "\\udcfe.txt" in found.summary().encode().decode()


def test_a_hidden_folder_may_be_named_itself(tmp_path):
    (tmp_path / ".cache" / "data").mkdir(parents=True)
    (tmp_path / ".cache" / "data" / "a.png").write_bytes(PICTURE)
    assert len(open_images(tmp_path / ".cache")) == 1


def test_a_tar_is_told_by_its_beginning(folder, tmp_path):
    with zipfile.ZipFile(folder / "z.zip", "w") as archive:
        archive.writestr("inner.png", PICTURE)
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(folder, "images")
    assert open_images(tmp_path / "x.tar").files == ["images/a.png"]


def test_entries_of_one_name_and_hard_links(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
            archive.writestr("a.png", b"older")
            archive.writestr("a.png", PICTURE)
    assert passed(tmp_path / "x.zip") == {"an older entry of the same name": ["a.png"]}
    np.testing.assert_array_equal(open_images(tmp_path / "x.zip").stored([0])[0], kinds.RGB)
    (tmp_path / "a.png").write_bytes(PICTURE)
    with tarfile.open(tmp_path / "x.tgz", "w:gz") as archive:
        archive.add(tmp_path / "a.png", "./a.png")
        link = tarfile.TarInfo("b.png")
        link.type, link.linkname = tarfile.LNKTYPE, "./a.png"
        archive.addfile(link)
    np.testing.assert_array_equal(open_images(tmp_path / "x.tgz").stored([0, 1]), [kinds.RGB, kinds.RGB])


def test_links_in_an_archive_to_files_that_are_not_read_by_their_own_name(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(".store/3fa9", PICTURE)
        for name, target in (("a.png", "b.png"), ("b.png", ".store/3fa9"), ("c.png", "../nowhere.png")):
            info = zipfile.ZipInfo(name)
            info.create_system, info.external_attr = 3, 0o120777 << 16
            archive.writestr(info, target)
    found = open_images(tmp_path / "x.zip")
    assert found.files == ["a.png", "b.png"] and found.stored([0, 1]).shape == (2, 6, 4, 3)
    assert passed(tmp_path / "x.zip") == {"a link to nothing": ["c.png"], "hidden": [".store/3fa9"]}


@pytest.mark.parametrize("blocks", [2, 3, 4])
def test_a_tar_that_is_cut_off_between_blocks_is_refused(tmp_path, blocks):
    """Python's reader takes the end of the file for the end of the archive."""
    (tmp_path / "a.png").write_bytes(PICTURE)
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(tmp_path / "a.png", "a.png")
        archive.add(tmp_path / "a.png", "b.png")
    data = (tmp_path / "x.tar").read_bytes()
    (tmp_path / "x.tar").write_bytes(data[: blocks * 512])
    with pytest.raises(PdsError, match="x.tar"):
        open_images(tmp_path / "x.tar")


def test_an_archive_that_unpacks_without_end_is_refused(tmp_path, monkeypatch):
    from pds_jax.data import places

    monkeypatch.setattr(places, "MAX_BYTES", 1 << 20)
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(2 << 20))
    with pytest.raises(PdsError, match="a.png holds more than 1048576 bytes"):
        open_images(tmp_path / "x.zip")


@pytest.mark.parametrize("name", ["x.7z", "x.rar", "x.mp4", "x.heic", "x.txt"])
def test_files_that_are_no_images_and_no_archives_are_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"something else" * 100)
    with pytest.raises(PdsError, match=f"{name} is neither a folder, an image"):
        open_images(tmp_path / name)


def test_a_folder_of_arrays_is_a_set_of_images(tmp_path):
    for number in range(3):
        np.save(tmp_path / f"{number}.npy", np.full((4, 6, 2), number / 2, np.float32))
    found = open_images(tmp_path)
    assert found.shape == (4, 6, 2) and found.stored([1])[0, 0, 0, 0] == 0.5
    np.save(tmp_path / "3.npy", np.zeros((4, 5, 2), np.float32))
    with pytest.raises(PdsError, match="3.npy is 4x5 pixels .* 0.npy is 4x6"):
        open_images(tmp_path)
    np.save(tmp_path / "3.npy", np.full((4, 6, 2), 200, np.uint8))
    with pytest.raises(PdsError, match="3.npy holds uint8, 0.npy other numbers"):
        open_images(tmp_path)
    Image.fromarray(kinds.RGB).save(tmp_path / "a.png")
    assert open_images(tmp_path).files == ["a.png"]
    assert passed(tmp_path) == {"an array beside image files": ["0.npy", "1.npy", "2.npy", "3.npy"]}
