"""The table of docs/checkpoints.md: every row is made here, read both ways, and is what the page says."""

import os
import pathlib
import pickle
import re
import shutil
import zipfile

import flax.serialization
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import test_weight_sets as layouts
from convert_cases import CHECKPOINT_1, PIPE, assert_same_tree, flax_config, need_torch, random_params, skip_config
from test_diffusers import changed_weights, shard, weights_file

from pds_jax import convert
from pds_jax.types import PdsError

config, averaged, raw = layouts.config, layouts.averaged, layouts.raw  # fixtures
PAGE = pathlib.Path(__file__).parents[2] / "docs" / "checkpoints.md"
ROW = re.compile(r"^\| (.+) \| (moving average|raw weights|as it is|refused) \| (.+) \|$", re.M)
ROWS = {name: (default, raw) for name, default, raw in ROW.findall(PAGE.read_text())}


def pth(build):
    def make(folder, config, averaged, raw):
        torch = need_torch()
        named = layouts.tensors(raw, config), layouts.tensors(averaged, config), layouts.sigmas(config)
        torch.save(build(*named), folder / "model.pth")
        return folder / "model.pth", config

    return make


def hostile(folder, config, averaged, raw):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {folder}/ran",)

    with zipfile.ZipFile(folder / "model.pth", "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps({"model": {}, "args": Evil()}, protocol=2))
    return folder / "model.pth", config


def whole_module(folder, config, averaged, raw):
    layouts.save_module(layouts.tensors(averaged, config), folder / "model.pth")
    return folder / "model.pth", config


def bare_tree(folder, config, averaged, raw):
    (folder / "checkpoint_1").write_bytes(flax.serialization.msgpack_serialize(random_params(flax_config())))
    return folder / "checkpoint_1", flax_config()


def by_orbax(folder, config, averaged, raw):
    tree = random_params(flax_config())
    with ocp.PyTreeCheckpointer() as writer:
        writer.save(folder / "c", {"params": jax.tree.map(lambda leaf: leaf / 2, tree), "ema_params": tree})
    return folder / "c", flax_config()


def pipe(change):
    def make(folder, *_):
        shutil.copytree(PIPE, folder / "pipe")
        change(folder / "pipe")
        return folder / "pipe", skip_config()

    return make


def average_beside(place):
    shutil.copytree(place / "unet", place / "unet_ema")
    changed_weights(place, lambda value: value / 2)


def variant_alone(place):
    weights_file(place).rename(place / "unet" / "diffusion_pytorch_model.fp16.safetensors")


def variant_beside(place):
    plain = weights_file(place).read_bytes()
    changed_weights(place, lambda value: value / 2)
    weights_file(place).rename(place / "unet" / "diffusion_pytorch_model.non_ema.safetensors")
    weights_file(place).write_bytes(plain)


def no_index(place):
    shard(place).unlink()


def other_file(folder, config, averaged, raw):
    (folder / "model.pth").write_text("version https://git-lfs.github.com/spec/v1\n")
    return folder / "model.pth", config


BOTH, ALONE, REFUSED = layouts.WITH_BOTH, layouts.ALONE, layouts.REFUSED
MAKE = {
    "`.pth`: `model`, and the moving average as the list `ema/shadow_params`": pth(BOTH["score_sde_pytorch"]),
    "`.pth`: the same list with frozen parameters and buffers": pth(BOTH["a list of the whole state"]),
    "`.pth`: `model` and `ema`, `model_ema`, `ema_state_dict`, `ema_model` by name": pth(BOTH["ema"]),
    "`.pth`: one `state_dict` with prefixes for both, as Lightning writes": pth(BOTH["lightning"]),
    "`.pth`: `state_dict` with `model_ema.` and names without dots, as latent-diffusion codes write": pth(
        BOTH["latent diffusion"]
    ),
    "`.pth`: the list [model, optimizer, ..., average] of DDIM and NCSNv2 codes": pth(BOTH["a list of states"]),
    "`.pth`: compiled or wrapped weights (`module._orig_mod.`)": pth(BOTH["wrapped again and again"]),
    "`.pth`: a bare state dict": pth(lambda r, e, s: ALONE["bare"](e, s)),
    "`.pth`: a whole pickled module": whole_module,
    "`.pth`: only a moving average": pth(lambda r, e, s: {"ema": e}),
    "`.pth`: two different moving averages": pth(lambda r, e, s: REFUSED["two averages"][0](r, e)),
    "`.pth`: two different sets of raw weights": pth(lambda r, e, s: REFUSED["two sets of weights"][0](r, e)),
    "`.pth`: an average that lacks names of the network": pth(
        lambda r, e, s: REFUSED["an average of another network"][0](r, e)
    ),
    "`.pth`: `argparse.Namespace`, `datetime`, NumPy arrays, objects of any class beside the weights": pth(
        lambda r, e, s: {**layouts.harmless(), "model": e}
    ),
    "`.pth`: a name that runs something (`os.system`)": hostile,
    "`checkpoint_N`: `optimizer/target` and `params_ema`": lambda *_: (CHECKPOINT_1, flax_config()),
    "`checkpoint_N`: a bare parameter tree": bare_tree,
    "orbax: `params` and `ema_params`": by_orbax,
    "diffusers: `unet` and `unet_ema`": pipe(average_beside),
    "diffusers: `unet` alone": pipe(lambda place: None),
    "diffusers: a variant alone (`.fp16.safetensors`)": pipe(variant_alone),
    "diffusers: plain weights and the variant `non_ema`": pipe(variant_beside),
    "diffusers: shards with their index": pipe(shard),
    "diffusers: shards without an index, or one of them missing": pipe(no_index),
    "a Git LFS pointer, a web page, an image": other_file,
}


def outcome(path, config, use_ema):
    try:
        params, report = convert.load_checkpoint(path, config, use_ema=use_ema)
    except PdsError:
        return "refused", None
    return report.weights, params


def told(use_ema_result, raw_result, result):
    """A row's word for a result; two results that are the same weights are 'as it is'."""
    if result[0] == "refused":
        return "refused"
    if use_ema_result[0] != "refused" and raw_result[0] != "refused":
        same = all(
            np.array_equal(a, b)
            for a, b in zip(jax.tree.leaves(use_ema_result[1]), jax.tree.leaves(raw_result[1]), strict=True)
        )
        if same:
            return "as it is"
    return {"ema": "moving average", "raw": "raw weights"}[result[0]]


def test_every_row_is_made_here():
    assert set(ROWS) == set(MAKE)


@pytest.mark.parametrize("name", MAKE)
def test_a_row_says_what_happens(tmp_path, config, averaged, raw, name):
    path, network = MAKE[name](tmp_path, config, averaged, raw)
    results = [outcome(path, network, use_ema) for use_ema in (True, False)]
    assert tuple(told(*results, result) for result in results) == ROWS[name]
    if name.startswith("`.pth`") and results[0][0] == "ema":
        assert_same_tree(averaged, results[0][1])
    assert not (tmp_path / "ran").exists()
