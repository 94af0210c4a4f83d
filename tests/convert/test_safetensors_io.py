import json
import os
import struct

import ml_dtypes
import numpy as np
import pytest
from convert_cases import assert_same_tree, random_params, torch_config
from safetensors.numpy import save_file

from pds_jax import convert
from pds_jax.convert.tree import flatten
from pds_jax.types import PdsError


@pytest.fixture
def model(tmp_path):
    convert.export(random_params(torch_config()), torch_config(), tmp_path / "m")
    return tmp_path / "m"


def test_there_and_back_is_bit_equal_and_the_config_comes_along(model):
    config = convert.config_of(model)
    params, report = convert.load_checkpoint(model, config)
    assert_same_tree(params, random_params(torch_config()))
    assert len(report.mapped) == 157
    assert config.model.nf == torch_config().model.nf


def test_a_folder_with_statistics_of_another_model_is_refused(model):
    (model / "statistics.npz").write_bytes(b"")
    with pytest.raises(convert.ConversionError, match=r"holds statistics.npz.*move it away"):
        convert.export(random_params(torch_config()), torch_config(), model)


def test_infinities_in_the_config_come_back(tmp_path):
    config = torch_config()
    config.pds = {"alpha": float("inf")}
    convert.export(random_params(config), config, tmp_path / "m")
    assert convert.config_of(tmp_path / "m").pds.alpha == float("inf")


def test_one_flipped_bit_of_a_weight_is_noticed(model):
    data = bytearray((model / "model.safetensors").read_bytes())
    data[len(data) // 2] ^= 1
    (model / "model.safetensors").write_bytes(data)
    with pytest.raises(convert.ConversionError, match="checksum is wrong"):
        convert.load_checkpoint(model, torch_config())


def test_a_configuration_that_is_none_is_an_error(model):
    (model / "config.json").write_text("[]")
    with pytest.raises(convert.ConversionError, match="not a configuration"):
        convert.config_of(model)
    os.unlink(model / "config.json")
    with pytest.raises(convert.ConversionError, match="carries no configuration"):
        convert.config_of(model)


def test_half_precision_becomes_float32(model):
    flat = flatten(random_params(torch_config()))
    half = {path: value.astype(ml_dtypes.bfloat16) for path, value in flat.items()}
    save_file(half, model / "model.safetensors")
    params, _ = convert.load_checkpoint(model, torch_config())
    for path, value in flatten(params).items():
        np.testing.assert_array_equal(value, half[path].astype(np.float32))


@pytest.mark.parametrize(
    "damage",
    [
        lambda flat: flat.pop("Conv_0/bias"),
        lambda flat: flat.update({"Conv_7/bias": np.zeros(3, np.float32)}),
        lambda flat: flat.update({"Conv_0/bias": np.zeros(9, np.float32)}),
        lambda flat: flat.update({"Conv_0/bias": np.zeros(8, np.int32)}),
        lambda flat: flat.update({"Conv_0/bias": np.full(8, np.nan, np.float32)}),
    ],
)
def test_the_damaged_leaf_is_named(model, damage):
    flat = flatten(random_params(torch_config()))
    damage(flat)
    save_file(flat, model / "model.safetensors")
    with pytest.raises(convert.ConversionError, match="'Conv_[07]/bias'"):
        convert.load_checkpoint(model, torch_config())


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 2**62) + b"{}",
        struct.pack("<Q", 100_000_001) + b"{" + b" " * 10,
        struct.pack("<Q", 40) + json.dumps({"a": {"dtype": "F32"}}).encode().ljust(40),
        struct.pack("<Q", 6000) + b'{"a":' + b"[" * 5995,
    ],
)
def test_malformed_headers_are_refused(model, data):
    (model / "model.safetensors").write_bytes(data)
    with pytest.raises(convert.ConversionError):
        convert.load_checkpoint(model, torch_config())


def test_unknown_kinds_and_bad_places_are_errors(model, tmp_path):
    with pytest.raises(convert.ConversionError, match="known: safetensors"):
        convert.export(random_params(torch_config()), torch_config(), tmp_path / "x", "onnx")
    with pytest.raises(PdsError, match="cannot write"):
        convert.export(random_params(torch_config()), torch_config(), model / "config.json" / "x")
