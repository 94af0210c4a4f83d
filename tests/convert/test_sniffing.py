import gzip
import json
import pickle
import shutil
import tarfile

import pytest
from convert_cases import CHECKPOINT_1, PIPE, TORCH, random_params, torch_config

from pds_jax import convert


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        (CHECKPOINT_1, "score_sde_flax"),
        (TORCH / "ncsnpp_ve.pth", "score_sde_torch"),
        (TORCH / "ddpm_vp.pth.gz", "score_sde_torch"),
    ],
)
def test_files_are_known_by_content_not_by_name(tmp_path, source, kind):
    for name in ("x", "checkpoint_1", "model.safetensors", "a.pth"):
        shutil.copy(source, tmp_path / name)
        assert convert.sniff(tmp_path / name) == kind


@pytest.mark.parametrize("part", ["", "unet", "unet/diffusion_pytorch_model.safetensors"])
def test_diffusers_folders_are_known(part):
    assert convert.sniff(PIPE / part) == "diffusers"


def test_our_models_are_known(tmp_path):
    convert.export(random_params(torch_config()), torch_config(), tmp_path / "m")
    assert convert.sniff(tmp_path / "m") == "safetensors"
    assert convert.sniff(tmp_path / "m" / "model.safetensors") == "safetensors"
    shutil.move(tmp_path / "m" / "model.safetensors", tmp_path / "weights.pth")
    assert convert.sniff(tmp_path / "weights.pth") == "safetensors"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        b"hello",
        b"{}",
        b"\x80",
        b"\x93NUMPY\x01\0",
        b"\xff\xd8\xff",
        b"\xff" * 8 + b"{",
        b"\x1f\x8b",
        gzip.compress(b"x", mtime=0),
    ],
)
def test_other_files_are_refused_with_what_was_looked_for(tmp_path, data):
    (tmp_path / "model.pth").write_bytes(data)
    with pytest.raises(convert.ConversionError, match="looked for|cannot read") as error:
        convert.sniff(tmp_path / "model.pth")
    if "looked for" in str(error.value):
        for what in ("checkpoint_N", ".pth", "diffusers", "model.safetensors"):
            assert what in str(error.value)


def test_folders_without_a_checkpoint_are_refused(tmp_path):
    with pytest.raises(convert.ConversionError, match="looked for"):
        convert.sniff(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL"}))
    with pytest.raises(convert.ConversionError, match="looked for"):
        convert.sniff(tmp_path)
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(convert.ConversionError, match="looked for"):
        convert.sniff(tmp_path)


def test_nothing_there_is_an_error_and_nothing_is_fetched(tmp_path, monkeypatch):
    with pytest.raises(convert.ConversionError, match="does not exist"):
        convert.load_checkpoint(tmp_path / "none", torch_config())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(convert.ConversionError, match="--allow_download"):
        convert.load_checkpoint("google/ncsnpp-church-256", torch_config())


def test_a_hub_id_is_fetched_only_when_asked(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed (extra: convert)")
    asked = []
    monkeypatch.setattr(hub, "snapshot_download", lambda name, allow_patterns: asked.append(name) or str(PIPE))
    monkeypatch.chdir(tmp_path)
    assert convert.locate("google/ncsnpp-church-256", allow_download=True) == str(PIPE)
    assert asked == ["google/ncsnpp-church-256"]

    def fail(name, allow_patterns):
        raise OSError("no network")

    monkeypatch.setattr(hub, "snapshot_download", fail)
    with pytest.raises(convert.ConversionError, match="no network"):
        convert.locate("google/ncsnpp-church-256", allow_download=True)


def test_a_tar_and_a_plain_pickle_are_refused(tmp_path):
    with tarfile.open(tmp_path / "m.pth", "w") as archive:
        archive.add(CHECKPOINT_1, "storages")
    with pytest.raises(convert.ConversionError):
        convert.load_checkpoint(tmp_path / "m.pth", torch_config())
    (tmp_path / "p.pth").write_bytes(pickle.dumps({"model": 1}))
    with pytest.raises(convert.ConversionError, match="not one that torch.save wrote"):
        convert.load_checkpoint(tmp_path / "p.pth", torch_config())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer of Git LFS.*git lfs pull"),
        (b"<!DOCTYPE html><html><title>Google Drive - Virus scan warning</title>", "a web page"),
        (b"", "the file is empty"),
        (b"\x89PNG\r\n\x1a\n", "a picture"),
        (b"abcdefghij", "begins with b'abcdefgh'"),
    ],
)
def test_a_refusal_says_what_was_found(tmp_path, data, message):
    (tmp_path / "model.pth").write_bytes(data)
    with pytest.raises(convert.ConversionError, match=message):
        convert.sniff(tmp_path / "model.pth")


def test_the_checkpoints_in_a_folder_are_named(tmp_path):
    with pytest.raises(convert.ConversionError, match="the folder is empty"):
        convert.sniff(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(convert.ConversionError, match="the folder holds notes.txt"):
        convert.sniff(tmp_path)
    shutil.copy(CHECKPOINT_1, tmp_path / "checkpoint_1")
    with pytest.raises(convert.ConversionError, match="the folder holds checkpoint_1; give one of them"):
        convert.sniff(tmp_path)
