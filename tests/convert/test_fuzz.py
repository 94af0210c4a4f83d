"""Damaged files: always a PdsError, or exactly the tree that the undamaged bytes hold.

A flipped bit inside the numbers themselves cannot be seen in a format without checksums. There the test asks that the
tree is whole, finite, and differs in no more numbers than bytes were touched; where a checksum exists, in none.
"""

import shutil
import time
import zipfile

import numpy as np
import pytest
from convert_cases import CHECKPOINT_1, PIPE, TORCH, flax_config, need_torch, random_params, skip_config, torch_config
from mutations import mutations
from test_diffusers import shard, weights_file
from test_weight_sets import harmless

from pds_jax import convert
from pds_jax.convert.tree import flatten, template
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


def diffusers_index(folder):
    shutil.copytree(PIPE, folder / "pipe")
    return shard(folder / "pipe"), folder / "pipe", skip_config(), True


def diffusers_half(folder):
    from safetensors.numpy import load_file, save_file

    shutil.copytree(PIPE, folder / "pipe")
    plain = weights_file(folder / "pipe")
    half = plain.with_name("diffusion_pytorch_model.fp16.safetensors")
    save_file({name: value.astype(np.float16) for name, value in load_file(plain).items()}, half)
    plain.unlink()
    return half, folder / "pipe", skip_config(), False


def bare_safetensors(folder):
    from safetensors.torch import save_file

    torch = need_torch()
    state = torch.load(TORCH / "ncsnpp_ve.pth", weights_only=False)["model"]
    save_file({"module." + name: value.contiguous() for name, value in state.items()}, folder / "weights.safetensors")
    return folder / "weights.safetensors", folder / "weights.safetensors", torch_config(), False


IMPORTERS = (
    torch_zip,
    torch_gzip,
    torch_legacy,
    flax_state,
    diffusers_weights,
    diffusers_config,
    diffusers_index,
    diffusers_half,
    bare_safetensors,
    ours,
)


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


def is_tree(params, config):
    """Whether it is whole and finite; which numbers it holds nobody can tell after such a change."""
    flat = flatten(params)
    shapes = template(config)
    return list(flat) == list(shapes) and all(
        flat[name].shape == shape and np.isfinite(flat[name]).all() for name, shape in shapes.items()
    )


@pytest.mark.parametrize("count", [20, pytest.param(500, marks=pytest.mark.slow)])
def test_damaged_pickles_with_right_checksums_are_errors_or_whole(tmp_path, count):
    """The pickle of a file with many objects beside the weights, in an archive made anew around it."""
    torch, config = need_torch(), torch_config()
    state = torch.load(TORCH / "ncsnpp_ve.pth", weights_only=False)
    torch.save({**harmless(), **state}, tmp_path / "model.pth")
    with zipfile.ZipFile(tmp_path / "model.pth") as archive:
        entries = {info.filename: archive.read(info) for info in archive.infolist()}
    name = next(name for name in entries if name.endswith("/data.pkl"))
    errors = 0
    for what, damaged, _ in mutations(entries[name], count, seed=1):
        with zipfile.ZipFile(tmp_path / "model.pth", "w") as archive:
            for entry, data in {**entries, name: damaged}.items():
                archive.writestr(entry, data)
        start = time.perf_counter()
        try:
            params, report = convert.load_checkpoint(tmp_path / "model.pth", config)
            assert is_tree(params, config) and report.weights == "ema", what
        except PdsError:
            errors += 1
        assert time.perf_counter() - start < SECONDS, what
    assert errors > count / 6


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # reads that nobody waits for
@pytest.mark.parametrize("count", [24, pytest.param(500, marks=pytest.mark.slow)])
@pytest.mark.parametrize("use_ocdbt", [True, False])
def test_damaged_folders_of_orbax_are_errors_or_whole(tmp_path, use_ocdbt, count):
    """Each mutation hits another file of the folder; orbax keeps no checksum of the numbers."""
    import orbax.checkpoint as ocp

    config = flax_config()
    params = random_params(config)
    with ocp.PyTreeCheckpointer(use_ocdbt=use_ocdbt) as writer:
        writer.save(tmp_path / "c", {"params": params})
    files = sorted(file for file in (tmp_path / "c").rglob("*") if file.is_file() and file.stat().st_size > 8)
    rng = np.random.default_rng(0)
    errors = 0
    for number in range(count):
        file = files[rng.integers(len(files))]
        data = file.read_bytes()
        ((what, damaged, _),) = mutations(data, 1, seed=number) if number % 2 else overwritten(data, number)
        file.write_bytes(damaged)
        start = time.process_time()
        try:
            found, _ = convert.load_checkpoint(tmp_path / "c", config)
            assert is_tree(found, config), what
        except PdsError:
            errors += 1
        finally:
            file.write_bytes(data)
        assert time.process_time() - start < SECONDS, what
    assert errors > 0


def overwritten(data, seed):
    rng = np.random.default_rng(seed)
    start = int(rng.integers(len(data)))
    damaged = data[:start] + rng.bytes(min(16, len(data) - start)) + data[start + 16 :]
    yield f"overwritten {seed}", damaged, 16


@pytest.mark.parametrize("count", [20, pytest.param(500, marks=pytest.mark.slow)])
@pytest.mark.parametrize("importer", [torch_zip, torch_legacy, flax_state], ids=lambda importer: importer.__name__)
def test_damaged_training_states_are_errors_or_whole(tmp_path, importer, count):
    file, path, config, _ = importer(tmp_path)
    data = file.read_bytes()
    errors = 0
    for what, damaged, _ in mutations(data, count, seed=2):
        file.write_bytes(damaged)
        try:
            state = convert.load_training_state(path, config)
            trees = (state.params, state.ema_params, state.mu, state.nu)
            assert all(is_tree(tree, config) for tree in trees), what
        except PdsError:
            errors += 1
    assert errors > count / 3


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


@pytest.mark.parametrize("count", [20, pytest.param(500, marks=pytest.mark.slow)])
def test_wrong_trees_are_errors_in_a_flax_state(tmp_path, count):
    from flax import serialization

    state = serialization.msgpack_restore(CHECKPOINT_1.read_bytes())
    rng = np.random.default_rng(0)
    for _ in range(count):
        bad = {**state, "params_ema": rearrange(state["params_ema"], rng)}
        (tmp_path / "checkpoint_1").write_bytes(serialization.msgpack_serialize(bad))
        with pytest.raises(PdsError):
            convert.load_checkpoint(tmp_path / "checkpoint_1", flax_config())


@pytest.mark.parametrize("count", [20, pytest.param(500, marks=pytest.mark.slow)])
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


@pytest.mark.parametrize("count", [20, pytest.param(500, marks=pytest.mark.slow)])
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
