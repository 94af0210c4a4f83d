import os
import resource
import signal
import stat
import types

import pytest

from pds_jax.io import files
from pds_jax.types import PdsError


def test_seed_ranges_are_inclusive_and_ordered():
    assert files.parse_seeds("0-3,9,5-6") == [0, 1, 2, 3, 9, 5, 6]


@pytest.mark.parametrize("text", ["", "a", "3-", "-3", "5-2", "1,,2", "1.5", "0-3,2", f"{2**32}", "0-99999999"])
def test_bad_seeds_are_refused(text):
    with pytest.raises(PdsError, match="--seeds="):
        files.parse_seeds(text)


@pytest.mark.parametrize("text, found", [(None, (0, 1)), ("0/1", (0, 1)), (" 2/3 ", (2, 3))])
def test_shards_are_read(text, found):
    assert files.parse_shard(text) == found


@pytest.mark.parametrize("text", ["", "1", "1/1", "3/2", "-1/2", "0/0", "a/b", "1/2/3", "٠/٢x"])
def test_bad_shards_are_refused(text):
    with pytest.raises(PdsError, match="--shard="):
        files.parse_shard(text)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_the_block_and_the_handler_returns(tmp_path, number):
    before = signal.getsignal(number)

    def stopped_while_writing(file):
        file.write(b"half")
        os.kill(os.getpid(), number)

    with pytest.raises(files.Stopped, match=number.name), files.stoppable():
        files.atomic_write(tmp_path / "a", stopped_while_writing)
    assert not os.listdir(tmp_path) and signal.getsignal(number) is before


def test_a_full_disk_is_reported_and_leaves_nothing(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(PdsError, match="File too large; free some space"):
            files.atomic_write(tmp_path / "a", lambda file: file.write(bytes(5000)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not os.listdir(tmp_path)


def test_a_failed_write_keeps_the_old_file_and_leaves_no_litter(tmp_path):
    path = tmp_path / "a.txt"
    files.atomic_write(path, lambda file: file.write(b"old"))

    def fail(file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(PdsError, match="No space left"):
        files.atomic_write(path, fail)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_file_where_a_folder_should_be_is_reported(tmp_path):
    (tmp_path / "x").write_text("file")
    with pytest.raises(PdsError, match="cannot write"):
        files.write_json(tmp_path / "x" / "y.json", {})


def test_written_files_are_readable_by_others(tmp_path):
    files.write_json(tmp_path / "a.json", {"b": 1})
    assert stat.S_IMODE(os.stat(tmp_path / "a.json").st_mode) == 0o644
    assert files.read_json(tmp_path / "a.json") == {"b": 1}


def test_broken_json_is_named(tmp_path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(PdsError, match="a.json"):
        files.read_json(tmp_path / "a.json")


def test_what_cannot_be_written_is_found_out_beforehand(tmp_path, monkeypatch):
    files.check_writable(tmp_path / "new" / "a.npz", 1000)
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "file").write_text("")
    for place, match in ((tmp_path / "file" / "a.npz", "cannot write .*a.npz"), (tmp_path, "is a folder")):
        with pytest.raises(PdsError, match=match):
            files.check_writable(place)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=3 << 20))
    with pytest.raises(PdsError, match="has 3 MiB free, about 5 MiB are needed"):
        files.check_writable(tmp_path / "a.npz", 5 << 20)
