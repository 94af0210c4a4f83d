"""Damaged files: always a PdsError, or exactly the tree that the undamaged bytes hold.

A flipped bit inside the numbers themselves cannot be seen in a format without checksums. There the test asks that the
tree is whole, finite, and differs in no more numbers than bytes were touched; where a checksum exists, in none.
"""

import shutil
import time

import numpy as np
import pytest
from convert_cases import CHECKPOINT_1, PIPE, TORCH, flax_config, need_torch, skip_config, torch_config
from mutations import mutations

from pds_jax import convert
from pds_jax.convert.tree import flatten
from pds_jax.types import PdsError

SECONDS = 20.0


def torch_zip(folder):
    shutil.copy(TORCH / "ncsnpp_ve.pth", folder / "model.pth")
    return folder / "model.pth", folder / "model.pth", torch_config(), True


def torch_gzip(folder):
    shutil.copy(TORCH / "ddpm_vp.pth.gz", folder / "model.pth.gz")
    return folder / "model.pth.gz", folder / "model.pth.gz", torch_config("ddpm_vp"), True


def torch_legacy(folder):
    torch = need_torch()
    state = torch.load(TORCH / "ncsnpp_ve.pth", weights_only=False)
    torch.save(state, folder / "model.pth", _use_new_zipfile_serialization=False)
    return folder / "model.pth", folder / "model.pth", torch_config(), False


def flax_state(folder):
    shutil.copy(CHECKPOINT_1, folder / "checkpoint_1")
    return folder / "checkpoint_1", folder / "checkpoint_1", flax_config(), False


def diffusers_weights(folder):
    shutil.copytree(PIPE, folder / "pipe")
    return folder / "pipe" / "unet" / "diffusion_pytorch_model.safetensors", folder / "pipe", skip_config(), False


def diffusers_config(folder):
    shutil.copytree(PIPE, folder / "pipe")
    return folder / "pipe" / "unet" / "config.json", folder / "pipe", skip_config(), True


def ours(folder):
    params, _ = convert.load_checkpoint(TORCH / "ncsnpp_ve.pth", torch_config())
    convert.export(params, torch_config(), folder / "model")
    return folder / "model" / "model.safetensors", folder / "model", torch_config(), True


IMPORTERS = (torch_zip, torch_gzip, torch_legacy, flax_state, diffusers_weights, diffusers_config, ours)


def fuzz(importer, folder, count):
    file, path, config, has_checksum = importer(folder)
    data = file.read_bytes()
    reference = flatten(convert.load_checkpoint(path, config)[0])
    errors = 0
    for what, damaged, touched in mutations(data, count, seed=len(data)):
        file.write_bytes(damaged)
        start = time.perf_counter()
        try:
            found = flatten(convert.load_checkpoint(path, config)[0])
        except PdsError:
            errors += 1
        else:
            assert list(found) == list(reference), what
            changed = 0
            for name, value in found.items():
                assert value.shape == reference[name].shape and value.dtype == np.float32, what
                assert np.isfinite(value).all(), what
                changed += int((value != reference[name]).sum())
            assert changed <= (0 if has_checksum else touched), f"{what} changed {changed} numbers silently"
        assert time.perf_counter() - start < SECONDS, what
    assert errors > count / 3


@pytest.mark.parametrize("importer", IMPORTERS, ids=lambda importer: importer.__name__)
def test_damaged_files_are_errors(importer, tmp_path):
    fuzz(importer, tmp_path, 60)


@pytest.mark.slow
@pytest.mark.parametrize("importer", IMPORTERS, ids=lambda importer: importer.__name__)
def test_five_hundred_damaged_files_are_errors(importer, tmp_path):
    fuzz(importer, tmp_path, 500)


def stray_values(rng):
    """What does not belong where a leaf is."""
    pool = [None, 1, "x", b"", [], {}, {"a": {}}, np.zeros((1,) * 12, np.float32), np.zeros(0, np.float32)]
    return pool[rng.integers(len(pool))]


def rearrange(tree, rng):
    """A tree with one leaf removed, renamed, of another shape or type, doubled, or not a leaf at all."""
    flat = dict(flatten(tree))
    names = list(flat)
    name = names[rng.integers(len(names))]
    kind = int(rng.integers(6))
    if kind == 0:
        del flat[name]
    elif kind == 1:
        flat[name + "x"] = flat.pop(name)
    elif kind == 2:
        flat[name] = np.concatenate([flat[name], flat[name]], axis=-1)
    elif kind == 3:
        flat[name] = flat[name].astype(np.int32)
    elif kind == 4:
        flat["extra/" + name] = flat[name]
    else:
        flat[name] = stray_values(rng)
    return convert.tree.nest(flat)


@pytest.mark.parametrize("count", [60, pytest.param(500, marks=pytest.mark.slow)])
def test_wrong_trees_are_errors_in_a_flax_state(tmp_path, count):
    from flax import serialization

    state = serialization.msgpack_restore(CHECKPOINT_1.read_bytes())
    rng = np.random.default_rng(0)
    for _ in range(count):
        bad = {**state, "params_ema": rearrange(state["params_ema"], rng)}
        (tmp_path / "checkpoint_1").write_bytes(serialization.msgpack_serialize(bad))
        with pytest.raises(PdsError):
            convert.load_checkpoint(tmp_path / "checkpoint_1", flax_config())


@pytest.mark.parametrize("count", [60, pytest.param(500, marks=pytest.mark.slow)])
def test_wrong_trees_are_errors_in_safetensors(tmp_path, count):
    from safetensors.numpy import load_file, save_file

    file, path, config, _ = diffusers_weights(tmp_path)
    arrays = load_file(file)
    rng = np.random.default_rng(0)
    for _ in range(count):
        bad = flatten(rearrange(arrays, rng))
        bad = {name: value for name, value in bad.items() if isinstance(value, np.ndarray)}
        save_file(bad, file)
        with pytest.raises(PdsError):
            convert.load_checkpoint(path, config)


@pytest.mark.parametrize("count", [60, pytest.param(500, marks=pytest.mark.slow)])
def test_wrong_trees_are_errors_in_a_pth(tmp_path, count):
    torch = need_torch()
    path = tmp_path / "model.pth"
    rng = np.random.default_rng(0)
    original = torch.load(TORCH / "ncsnpp_ve.pth", weights_only=False)["model"]
    weights = {name: value.numpy() for name, value in original.items() if name != "module.sigmas"}
    for _ in range(count):
        bad = flatten(rearrange(weights, rng))
        torch.save(
            {"model": {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in bad.items()}}, path
        )
        with pytest.raises(PdsError):
            convert.load_checkpoint(path, torch_config(), use_ema=False)
