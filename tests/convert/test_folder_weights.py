import json

import ml_dtypes
import numpy as np
import pytest
from convert_cases import need_torch
from safetensors.numpy import save_file

from pds_jax.convert.folder_weights import find_weights, opened_weights
from pds_jax.convert.tree import ConversionError

ARRAYS = {name: np.random.default_rng(i).normal(size=(3, i + 1)).astype(np.float32) for i, name in enumerate("abc")}


def read(folder, variant=None):
    path = find_weights(folder, ["stem"], variant)
    with opened_weights(path) as leaves:
        return path.name, {name: np.asarray(leaf.read(), np.float32) for name, leaf in leaves.items()}


def write_shards(folder, variant=""):
    dotted = f".{variant}" if variant else ""
    shards = {f"stem{dotted}-0000{i + 1}-of-00002.safetensors": names for i, names in enumerate(("ac", "b"))}
    for file, names in shards.items():
        save_file({name: ARRAYS[name] for name in names}, folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file, names in shards.items() for name in names}}
    (folder / f"stem.safetensors.index{dotted}.json").write_text(json.dumps(index))


@pytest.mark.parametrize("variant", ["", "fp16"])
def test_shards_are_read(tmp_path, variant):
    write_shards(tmp_path, variant)
    _, arrays = read(tmp_path)
    assert arrays.keys() == ARRAYS.keys() and all(np.array_equal(arrays[name], ARRAYS[name]) for name in arrays)


@pytest.mark.parametrize(("variant", "dtype"), [("fp16", np.float16), ("bf16", ml_dtypes.bfloat16)])
def test_variants_are_read_where_nothing_better_is_there(tmp_path, variant, dtype):
    save_file({name: array.astype(dtype) for name, array in ARRAYS.items()}, tmp_path / f"stem.{variant}.safetensors")
    name, arrays = read(tmp_path)
    assert name == f"stem.{variant}.safetensors"
    np.testing.assert_array_equal(arrays["b"], ARRAYS["b"].astype(dtype).astype(np.float32))
    save_file(ARRAYS, tmp_path / "stem.safetensors")
    assert read(tmp_path)[0] == "stem.safetensors"
    assert read(tmp_path, variant)[0] == name


def test_bin_files_are_read(tmp_path):
    torch = need_torch()
    torch.save({name: torch.from_numpy(array) for name, array in ARRAYS.items()}, tmp_path / "stem.bin")
    np.testing.assert_array_equal(read(tmp_path)[1]["c"], ARRAYS["c"])


def test_what_is_there_is_listed_where_nothing_fits(tmp_path):
    (tmp_path / "stem.ckpt").write_text("")
    with pytest.raises(ConversionError, match="holds no stem.safetensors; it has: stem.ckpt"):
        read(tmp_path)
    with pytest.raises(ConversionError, match="variant 'fp16'"):
        read(tmp_path, "fp16")


def test_index_and_shards_must_agree(tmp_path):
    write_shards(tmp_path)
    index = tmp_path / "stem.safetensors.index.json"
    fields = json.loads(index.read_text())
    where = fields["weight_map"]

    def refused(weight_map, message):
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(ConversionError, match=message):
            read(tmp_path)

    refused({**where, "d": where["a"]}, "shards lack 'd'")
    refused({name: where[name] for name in "ab"}, "beyond it 'c'")
    refused({**where, "a": "../other.safetensors"}, "not a plain file name")
    refused({**where, "a": "stem-3.safetensors"}, "'stem-3.safetensors', which is not there")
    refused([], "weight_map")
