import gzip
import io
import pickle
import struct
import zipfile

import pytest
from convert_cases import TORCH, torch_config

from pds_jax import convert
from pds_jax.convert import torch_files

SOURCE = TORCH / "ncsnpp_ve.pth"


def entries():
    with zipfile.ZipFile(SOURCE) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def write_zip(path, files, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def refused(path, message):
    with pytest.raises(convert.ConversionError, match=message):
        convert.load_checkpoint(path, torch_config())


def test_a_repacked_archive_loads(tmp_path):
    files = {name.replace("ncsnpp_ve/", "archive/"): data for name, data in entries().items()}
    params, _ = convert.load_checkpoint(write_zip(tmp_path / "m", files), torch_config())
    assert params["Dense_0"]["kernel"].shape == (16, 32)


def test_a_compressed_archive_is_refused(tmp_path):
    refused(write_zip(tmp_path / "m", entries(), zipfile.ZIP_DEFLATED), "compressed")


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path):
    path = write_zip(tmp_path / "m", {"a/data.pkl": b"\0" * (1 << 26)}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 17
    refused(path, "compressed")


def test_overlapping_entries_are_refused(tmp_path):
    """Two names for the same bytes: sizes in the directory add up to more than the file."""
    path = write_zip(tmp_path / "m", {"a/data.pkl": b"x" * 5000, "a/data/0": b"x" * 5000})
    data = bytearray(path.read_bytes())
    second = data.rindex(b"PK\x01\x02")
    struct.pack_into("<II", data, second + 20, 10**7, 10**7)
    path.write_bytes(data)
    refused(path, "larger than the archive")


@pytest.mark.parametrize("name", ["../../escape", "/etc/passwd", "a/../../b", "a\\..\\b"])
def test_paths_out_of_the_archive_are_refused(tmp_path, name):
    files = entries()
    path = tmp_path / "m"
    with zipfile.ZipFile(path, "w") as archive:
        for entry, data in files.items():
            archive.writestr(entry, data)
        archive.writestr(zipfile.ZipInfo(name), b"x")
    refused(path, "points outside")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_entry_twice_is_refused(tmp_path):
    path = write_zip(tmp_path / "m", entries())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(next(iter(entries())), b"other")
    refused(path, "twice")


def test_a_missing_storage_is_refused(tmp_path):
    files = entries()
    del files[max((name for name in files if "/data/" in name), key=lambda name: len(files[name]))]
    refused(write_zip(tmp_path / "m", files), "has None bytes")


def test_a_storage_of_another_length_is_refused(tmp_path):
    files = {name: data[:-4] if "/data/" in name else data for name, data in entries().items()}
    refused(write_zip(tmp_path / "m", files), "bytes, not")


def test_one_flipped_bit_of_a_weight_is_noticed(tmp_path):
    data = bytearray(SOURCE.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "m").write_bytes(data)
    refused(tmp_path / "m", "checksum|damaged")


def test_an_archive_of_a_program_is_refused(tmp_path):
    refused(write_zip(tmp_path / "m", {"word/document.xml": b"<x/>"}), "0 data.pkl")


def test_big_endian_files_are_refused(tmp_path):
    files = {name: b"big" if name.endswith("/byteorder") else data for name, data in entries().items()}
    refused(write_zip(tmp_path / "m", files), "big-endian")


def test_gzip_is_undone(tmp_path):
    (tmp_path / "m").write_bytes(gzip.compress(SOURCE.read_bytes()))
    _, report = convert.load_checkpoint(tmp_path / "m", torch_config())
    assert report.kind == "score_sde_torch"


def test_a_gzip_bomb_is_refused(tmp_path):
    packed = gzip.compress(SOURCE.read_bytes()[:64] + b"\0" * (1 << 26))
    assert len(packed) < 1 << 17
    (tmp_path / "m").write_bytes(packed)
    refused(tmp_path / "m", "unpacks to more than")


def test_a_pickle_of_another_program_is_refused(tmp_path):
    (tmp_path / "m").write_bytes(pickle.dumps({"model": {}, "ema": {}}))
    refused(tmp_path / "m", "not one that torch.save wrote")


def test_a_legacy_file_is_checked_for_what_its_head_says(tmp_path):
    head = [torch_files.LEGACY_MAGIC, torch_files.LEGACY_PROTOCOL, {"little_endian": True}, {"model": {}}, []]
    for number, (wrong, message) in enumerate(
        [(7, "not one that torch.save"), (1002, "unknown version"), ({"little_endian": False}, "big-endian")]
    ):
        values = head[:number] + [wrong] + head[number + 1 :]
        (tmp_path / "m").write_bytes(b"".join(pickle.dumps(value, protocol=2) for value in values))
        refused(tmp_path / "m", message)
    (tmp_path / "m").write_bytes(b"".join(pickle.dumps(value, protocol=2) for value in head) + b"more")
    refused(tmp_path / "m", "4 bytes follow")


def test_leaves_are_read_late():
    with torch_files.opened(SOURCE) as (state, leaf):
        tensor = state["model"]["module.all_modules.4.Conv_0.weight"]
        found = leaf(tensor)
        assert (found.shape, found.dtype) == ((8, 8, 3, 3), "float32")
        assert found.read().shape == (8, 8, 3, 3)
        assert state["step"] == 2 and isinstance(state["optimizer"]["param_groups"][0]["lr"], float)


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(convert.ConversionError, match="cannot read"), torch_files.opened(tmp_path / "none"):
        pass


def test_plain_files_are_handed_over_as_they_are(tmp_path):
    (tmp_path / "m").write_bytes(b"abc")
    with torch_files.open_plain(tmp_path / "m") as file:
        assert not isinstance(file, io.BytesIO) and file.read() == b"abc"
