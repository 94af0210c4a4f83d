"""Flax checkpoints that orbax wrote: one tree, named trees, steps; with and without a moving average."""

import shutil

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from convert_cases import assert_same_tree, flax_config, random_params

from pds_jax import checkpoints, convert
from pds_jax.convert.tree import flatten, nest


@pytest.fixture(scope="module")
def config():
    return flax_config()


@pytest.fixture(scope="module")
def averaged(config):
    return random_params(config)


@pytest.fixture(scope="module")
def raw(averaged):
    return jax.tree.map(lambda leaf: leaf / 2, averaged)


@pytest.fixture(scope="module")
def train_state(averaged, raw):
    moments = optax.adam(1e-3).init(raw)
    return {"step": np.int32(7), "params": raw, "ema_params": averaged, "opt_state": moments}


def save(path, tree, use_ocdbt=True):
    with ocp.PyTreeCheckpointer(use_ocdbt=use_ocdbt) as writer:
        writer.save(path, tree)
    return path


@pytest.mark.parametrize("use_ocdbt", [True, False])
@pytest.mark.parametrize("use_ema", [True, False])
def test_a_training_state_gives_its_average_or_its_raw_weights(
    tmp_path, config, train_state, averaged, raw, use_ocdbt, use_ema
):
    path = save(tmp_path / "checkpoint_7", train_state, use_ocdbt)
    assert convert.sniff(path) == "orbax"
    found, report = convert.load_checkpoint(path, config, use_ema=use_ema)
    assert_same_tree(averaged if use_ema else raw, found)
    assert report.weights == ("ema" if use_ema else "raw")
    assert checkpoints.load_any(path, config, use_ema=use_ema).digest == checkpoints.digest_of(found)


@pytest.mark.parametrize("item", [None, "state"])
def test_the_newest_of_several_steps_is_read(tmp_path, config, averaged, raw, item):
    with ocp.CheckpointManager(tmp_path / "steps") as manager:
        for step, tree in ((90, raw), (1000, averaged)):
            saved = ocp.args.StandardSave(tree)
            manager.save(step, args=saved if item is None else ocp.args.Composite(**{item: saved}))
    found, report = convert.load_checkpoint(tmp_path / "steps", config)
    assert_same_tree(averaged, found)
    assert any(note.startswith("read 1000/") for note in report.notes)
    assert_same_tree(raw, convert.load_checkpoint(tmp_path / "steps" / "90", config)[0])


def test_trees_by_name_are_told_apart(tmp_path, config, averaged, raw):
    with ocp.CheckpointManager(tmp_path / "steps") as manager:
        named = {"params": ocp.args.StandardSave(raw), "ema": ocp.args.StandardSave(averaged)}
        manager.save(3, args=ocp.args.Composite(**named, meta=ocp.args.JsonSave({"a": 1})))
    assert_same_tree(averaged, convert.load_checkpoint(tmp_path / "steps", config)[0])
    assert_same_tree(raw, convert.load_checkpoint(tmp_path / "steps", config, use_ema=False)[0])


def test_half_precision_is_cast(tmp_path, config, averaged):
    import ml_dtypes

    half = jax.tree.map(lambda leaf: leaf.astype(ml_dtypes.bfloat16), averaged)
    found, report = convert.load_checkpoint(save(tmp_path / "c", {"params": half}), config)
    assert_same_tree(jax.tree.map(lambda leaf: leaf.astype(np.float32), half), found)
    assert any("bfloat16; they became float32" in note for note in report.notes)


def test_another_network_is_refused_by_its_first_leaf(tmp_path, config, averaged):
    flat = dict(flatten(averaged))
    del flat["Conv_0/bias"]
    with pytest.raises(convert.ConversionError, match="'Conv_0/bias'.*missing"):
        convert.load_checkpoint(save(tmp_path / "c", nest(flat)), config)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # reads that nobody waits for
@pytest.mark.parametrize("use_ocdbt", [True, False])
def test_a_lost_file_is_an_error(tmp_path, config, averaged, use_ocdbt):
    path = save(tmp_path / "c", averaged, use_ocdbt)
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.name != "commit_success.txt")
    lost = 0
    for file in files[:: max(len(files) // 12, 1)]:
        data = file.read_bytes()
        file.unlink()
        try:
            assert_same_tree(averaged, convert.load_checkpoint(path, config)[0])  # it was not needed
        except convert.ConversionError:
            lost += 1
        file.write_bytes(data)
    assert lost > 0
    shutil.rmtree(path)
    with pytest.raises(convert.ConversionError, match="does not exist"):
        convert.load_checkpoint(path, config)
