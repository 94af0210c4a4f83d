import struct

import msgpack
import numpy as np
import pytest
from convert_cases import CHECKPOINT_1, assert_same_tree, flax_config, forward
from flax import serialization

from pds_jax import convert
from pds_jax.convert import score_sde
from pds_jax.convert.tree import flatten, template
from pds_jax.sde_lib import get_sde


@pytest.fixture(scope="module")
def state():
    return serialization.msgpack_restore(CHECKPOINT_1.read_bytes())


@pytest.mark.parametrize(("use_ema", "loss"), [(True, "eval_loss_step_3"), (False, "loss_step_3")])
def test_the_weights_give_the_recorded_losses(use_ema, loss):
    """½‖σ s(x₀ + σz) + z‖²: of the moving average the evaluation loss, of the raw weights the training loss."""
    step = np.load(CHECKPOINT_1.parent / "train_step.npz")
    config = flax_config()
    params, _ = convert.load_checkpoint(CHECKPOINT_1, config, use_ema=use_ema)
    sigma = np.asarray(get_sde(config)[0].std(step["t_step_3"]))
    scale, z = sigma[:, None, None, None], step["z_step_3"].transpose(0, 3, 1, 2)
    x = step["image_step_3"].transpose(0, 3, 1, 2) + scale * z
    residual = scale * forward(config, params, x, sigma) + z
    np.testing.assert_allclose(0.5 * (residual**2).sum(axis=(1, 2, 3)).mean(), step[loss], rtol=1e-5)


def write(folder, state):
    path = folder / "checkpoint_7"
    path.write_bytes(serialization.msgpack_serialize(state))
    return path


@pytest.mark.parametrize("use_ema", [True, False])
def test_the_recorded_training_state_loads_leaf_by_leaf(state, use_ema):
    params, report = convert.load_checkpoint(CHECKPOINT_1, flax_config(), use_ema=use_ema)
    expected = flatten(state["params_ema"] if use_ema else state["optimizer"]["target"])
    for path, value in flatten(params).items():
        np.testing.assert_array_equal(value, expected[path].reshape(value.shape))
    assert set(flatten(params)) == set(expected)
    assert len(report.mapped) == len(expected) == len(template(flax_config()))
    groups = [path for path in expected if "GroupNorm" in path]
    assert {path for path, _, _ in report.reshaped} == set(groups)
    assert any("optimizer/state" in line for line in report.unused)


def test_norm_leaves_of_both_layouts_load(tmp_path, state):
    tree = flatten(state["params_ema"])
    new = {path: value.reshape(-1) if "GroupNorm" in path else value for path, value in tree.items()}
    path = write(tmp_path, {"params_ema": convert.tree.nest(new), "optimizer": state["optimizer"]})
    a, _ = convert.load_checkpoint(CHECKPOINT_1, flax_config())
    b, report = convert.load_checkpoint(path, flax_config())
    assert_same_tree(a, b)
    assert not report.reshaped


def test_a_bare_parameter_tree_loads_and_says_so(tmp_path, state):
    path = write(tmp_path, state["params_ema"])
    params, report = convert.load_checkpoint(path, flax_config())
    assert_same_tree(params, convert.load_checkpoint(CHECKPOINT_1, flax_config())[0])
    assert report.weights == "raw" and "no moving average" in report.notes[0]


def test_large_arrays_in_pieces_load(tmp_path, state, monkeypatch):
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 1000)
    path = write(tmp_path, {"params_ema": state["params_ema"], "optimizer": {"target": {}}})
    assert b"__msgpack_chunked_array__" in path.read_bytes()
    assert_same_tree(
        convert.load_checkpoint(path, flax_config())[0], convert.load_checkpoint(CHECKPOINT_1, flax_config())[0]
    )


def test_harmless_values_beside_the_weights_are_passed_over(tmp_path, state):
    beside = {
        "losses": [float(n) for n in range(1000)],
        "config": "x" * 10_000,
        "args": {"lr": 1e-4, "path": "a/b", "a/b": 1, "nothing": None, "flag": True},
        "by number": {0: np.zeros(2), 1: 3},
        "scalars": [np.float64(1), np.int32(2)],
        "complex": 1 + 2j,
        "words": b"abc",
    }
    path = tmp_path / "checkpoint_1"
    path.write_bytes(serialization.msgpack_serialize({**state, **beside}))
    for use_ema in (True, False):
        expected, _ = convert.load_checkpoint(CHECKPOINT_1, flax_config(), use_ema=use_ema)
        assert_same_tree(expected, convert.load_checkpoint(path, flax_config(), use_ema=use_ema)[0])


LAYOUTS = {
    "TrainState": lambda raw, ema: {"step": 1, "params": raw, "ema_params": ema, "opt_state": {"0": {"mu": raw}}},
    "nested": lambda raw, ema: {"model": {"params": raw}, "model_ema": {"params": ema}},
    "average of the optimiser's updates": lambda raw, ema: {
        "params": raw,
        "params_ema": ema,
        "opt_state": {"0": {"count": 1, "ema": raw}, "1": {"mu": raw, "nu": raw}},
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("use_ema", [True, False])
def test_other_layouts_of_flax_are_known_by_their_names(tmp_path, state, layout, use_ema):
    path = write(tmp_path, LAYOUTS[layout](state["optimizer"]["target"], state["params_ema"]))
    expected, _ = convert.load_checkpoint(CHECKPOINT_1, flax_config(), use_ema=use_ema)
    found, report = convert.load_checkpoint(path, flax_config(), use_ema=use_ema)
    assert_same_tree(expected, found)
    assert report.weights == ("ema" if use_ema else "raw")


def test_the_optimisers_average_of_updates_is_not_taken_for_weights(tmp_path, state):
    raw = state["optimizer"]["target"]
    path = write(tmp_path, {"params": raw, "opt_state": {"0": {"ema": state["params_ema"], "mu": raw}}})
    found, report = convert.load_checkpoint(path, flax_config())
    assert_same_tree(convert.load_checkpoint(CHECKPOINT_1, flax_config(), use_ema=False)[0], found)
    assert any("no moving average" in note for note in report.notes)


def test_a_missing_leaf_is_named(tmp_path, state):
    tree = flatten(state["params_ema"])
    del tree["AttnBlockpp_1/NIN_2/W"]
    path = write(tmp_path, {"params_ema": convert.tree.nest(tree), "optimizer": {}})
    with pytest.raises(convert.ConversionError, match="'AttnBlockpp_1/NIN_2/W'.*missing"):
        convert.load_checkpoint(path, flax_config())


def test_a_left_over_leaf_is_named(tmp_path, state):
    tree = {**flatten(state["params_ema"]), "Conv_9/kernel": np.zeros((3, 3, 8, 8), np.float32)}
    path = write(tmp_path, {"params_ema": convert.tree.nest(tree), "optimizer": {}})
    with pytest.raises(convert.ConversionError, match="'Conv_9/kernel' is left over"):
        convert.load_checkpoint(path, flax_config())


def test_a_wrong_shape_is_named_with_both_shapes(tmp_path, state):
    tree = {**flatten(state["params_ema"]), "Dense_0/kernel": np.zeros((16, 31), np.float32)}
    path = write(tmp_path, {"params_ema": convert.tree.nest(tree), "optimizer": {}})
    with pytest.raises(convert.ConversionError, match=r"'Dense_0/kernel' has shape \(16, 31\).*\(16, 32\)"):
        convert.load_checkpoint(path, flax_config())


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_weights_are_refused(tmp_path, state, value):
    tree = flatten(state["params_ema"])
    tree["Dense_0/bias"] = np.where(np.arange(32) == 3, value, 0).astype(np.float32)
    path = write(tmp_path, {"params_ema": convert.tree.nest(tree), "optimizer": {}})
    with pytest.raises(convert.ConversionError, match="'Dense_0/bias' holds NaN or infinity"):
        convert.load_checkpoint(path, flax_config())


def test_integer_weights_are_refused(tmp_path, state):
    tree = {**flatten(state["params_ema"]), "Dense_0/bias": np.zeros(32, np.int32)}
    path = write(tmp_path, {"params_ema": convert.tree.nest(tree), "optimizer": {}})
    with pytest.raises(convert.ConversionError, match="'Dense_0/bias' is of int32"):
        convert.load_checkpoint(path, flax_config())


def test_running_statistics_are_refused(tmp_path, state):
    path = write(tmp_path, {**state, "model_state": {"batch_stats": {"mean": np.zeros(3, np.float32)}}})
    with pytest.raises(convert.ConversionError, match="model_state"):
        convert.load_checkpoint(path, flax_config())


def ndarray(shape, dtype, data):
    return msgpack.ExtType(1, msgpack.packb([shape, dtype, data]))


@pytest.mark.parametrize(
    "value",
    [
        ndarray([2, 2], "float32", b"\0" * 12),
        ndarray([2**40, 2**40], "float32", b""),
        ndarray([-1], "float32", b"\0" * 4),
        ndarray([True], "float32", b"\0" * 4),
        ndarray([1], "object", b"\0" * 8),
        ndarray([1], "float32", "text"),
        ndarray("x", "float32", b"\0" * 4),
        msgpack.ExtType(1, b""),
        msgpack.ExtType(77, b"abcd"),
        {"__msgpack_chunked_array__": True, "shape": {"0": 4}, "chunks": {}},
        {"__msgpack_chunked_array__": True},
        {1: 2},
        list(range(1000)),
    ],
)
def test_malformed_arrays_are_refused(tmp_path, value):
    path = tmp_path / "checkpoint_1"
    path.write_bytes(msgpack.packb({"params_ema": {"a": value}, "optimizer": {}}))
    with pytest.raises(convert.ConversionError, match="checkpoint_1"):
        convert.load_checkpoint(path, flax_config())


def test_a_name_that_occurs_twice_is_refused():
    twice = b"\x82" + 2 * (msgpack.packb("a") + msgpack.packb(1))
    with pytest.raises(convert.ConversionError, match="twice"):
        score_sde.decode(twice)


@pytest.mark.parametrize("depth", [600, 5000])
def test_deep_nesting_is_refused_not_a_crash(tmp_path, depth):
    path = tmp_path / "checkpoint_1"
    path.write_bytes(b"\x81\xa1a" * depth + b"\xc0")
    with pytest.raises(convert.ConversionError):
        convert.load_checkpoint(path, flax_config())


def test_a_length_that_lies_allocates_nothing():
    for head in (b"\xdf", b"\xdd", b"\xc6", b"\xdb"):
        with pytest.raises(convert.ConversionError):
            score_sde.decode(b"\x81\xa1a" + head + struct.pack(">I", 2**32 - 1))
