"""What a file from elsewhere must not be able to do: run code, leave its folder, fill the memory."""

import ast
import json
import pathlib
import pickle
import zipfile

import numpy as np
import pytest

from pds_jax import checkpoints, statistics
from pds_jax.data import image_files, pictures, places
from pds_jax.io import files, images, manifest
from pds_jax.io.npy import read_npy
from pds_jax.types import PdsError

PACKAGE = pathlib.Path(__file__).parent.parent / "pds_jax"


def test_nothing_unpickles_or_evaluates():
    """pickle is read by a parser of our own that executes nothing; np.load never allows objects.

    A plugin is a program that its user names, so plugins.py alone runs one.
    """
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                assert not names & {"pickle", "dill", "joblib", "marshal", "shelve"}, f"{path.name} imports {names}"
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and path.name != "plugins.py":
                assert node.func.id not in ("eval", "exec", "compile", "__import__"), path.name
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "load":
                if isinstance(node.func.value, ast.Name) and node.func.value.id == "np":
                    allowed = {word.arg: getattr(word.value, "value", None) for word in node.keywords}
                    assert allowed.get("allow_pickle", False) is False, path.name
                assert not (isinstance(node.func.value, ast.Name) and node.func.value.id == "torch"), path.name


def test_pickled_objects_in_arrays_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(PdsError, match="pickled"):
        read_npy(tmp_path / "a.npy")
    (tmp_path / "b.npy").write_bytes(pickle.dumps(1))
    with pytest.raises(PdsError, match="b.npy"):
        read_npy(tmp_path / "b.npy")


def run_folder(tmp_path):
    folder = manifest.RunFolder(tmp_path / "run", {"a": 1})
    folder.save_batch([0, 1], np.zeros((2, 4, 4, 1), np.float32))
    return folder


def test_names_in_a_shard_cannot_lead_out_of_the_folder(tmp_path):
    folder = run_folder(tmp_path)
    (tmp_path / "secret.png").write_bytes(b"x")
    digest = files.sha256(tmp_path / "secret.png")
    shard = folder.folder / "shards" / "evil.json"
    for names in ("../../secret", "/etc/passwd", "-1", "1e3", "٣", ""):
        shard.write_text(json.dumps({names: digest}))
        assert sorted(folder.done()) == [0, 1]
    for content in ("[1, 2]", "null", '{"0": 5}', '{"0": {"a": 1}}', "[" * 100_000):
        shard.write_text(content)
        assert sorted(folder.done()) == [0, 1]


def test_a_manifest_that_is_no_dictionary_is_another_run(tmp_path):
    folder = run_folder(tmp_path)
    folder.manifest_path.write_text("[]")
    with pytest.raises(PdsError, match="another run"):
        manifest.RunFolder(folder.folder, {"a": 1})


def test_gigantic_json_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_MAX_JSON", 1000)
    (tmp_path / "a.json").write_text('"' + 2000 * "a" + '"')
    with pytest.raises(PdsError, match="larger than"):
        files.read_json(tmp_path / "a.json")


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(places, "MAX_BYTES", 1 << 20)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(1 << 23))
    assert (tmp_path / "a.zip").stat().st_size < 1 << 15
    with pytest.raises(PdsError, match="no image file of that size"):
        list(image_files.read_images(tmp_path / "a.zip"))


def test_an_image_of_too_many_pixels_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "MAX_PIXELS", 100)
    images.save_png(tmp_path / "a.png", np.zeros((32, 32, 1), np.uint8))
    with pytest.raises(PdsError, match="a.png"):
        list(image_files.read_images(tmp_path))


def test_a_header_that_promises_more_than_there_is_is_refused(tmp_path):
    path = tmp_path / "a.npy"
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (10**6, 10**6)})
    with pytest.raises(PdsError, match="truncated or damaged"):
        read_npy(path)


def test_a_safetensors_header_of_many_gigabytes_is_refused(tmp_path):
    (tmp_path / "model.safetensors").write_bytes((1 << 60).to_bytes(8, "little") + b"{}")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(PdsError, match="model.safetensors"):
        checkpoints.load_parameters(tmp_path)


def test_an_archive_of_statistics_with_pickles_is_refused(tmp_path):
    np.savez(tmp_path / "s.npz", mean=np.array([print], object))
    with pytest.raises(PdsError, match="pickled"):
        statistics.load(tmp_path / "s.npz")
