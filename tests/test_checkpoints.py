import json
import pathlib
import resource

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from pds_jax import checkpoints, statistics, train_state
from pds_jax.data import datasets
from pds_jax.models import init_model
from pds_jax.types import PdsError


@pytest.fixture(scope="module")
def config():
    return tiny.get_config()


@pytest.fixture(scope="module")
def params(config):
    return init_model(jax.random.key(0), config)


@pytest.fixture(scope="module")
def stats():
    return statistics.compute_statistics([datasets.digits("test")[0]])


@pytest.fixture
def model(tmp_path, config, params, stats):
    checkpoints.save_model(tmp_path / "model", params, config, stats)
    return tmp_path / "model"


def test_a_model_comes_back_bit_by_bit(model, config, params, stats):
    found = checkpoints.load_model(model)
    jax.tree.map(np.testing.assert_array_equal, found.params, jax.tree.map(np.asarray, params))
    assert json.dumps(found.config.to_dict()) == json.dumps(config.to_dict())  # JSON makes tuples lists
    np.testing.assert_array_equal(found.statistics.power, stats.power)
    assert found.digest == checkpoints.digest_of(params) == checkpoints.load_any(model).digest
    changed = jax.tree.map(lambda leaf: leaf.at[(0,) * leaf.ndim].add(1e-3), params)
    assert checkpoints.digest_of(changed) != found.digest


def test_saving_over_a_model_leaves_no_statistics_of_the_old_one(model, config, params):
    checkpoints.save_model(model, params, config)
    assert checkpoints.load_any(model).statistics is None


@pytest.mark.parametrize("name", ["model.safetensors", "statistics.npz", "config.json"])
def test_an_interrupted_overwrite_is_no_readable_model(model, config, params, stats, monkeypatch, name):
    """At no moment do new weights stand beside an old configuration or old statistics."""
    from pds_jax.io import files

    usual = files.os.replace

    def killed(source, target):
        if pathlib.Path(target).name == name:
            raise KeyboardInterrupt
        usual(source, target)

    monkeypatch.setattr(files.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save_model(model, params, config, stats)
    monkeypatch.undo()
    with pytest.raises(PdsError, match="carries no configuration"):
        checkpoints.load_any(model)


def test_a_truncated_or_altered_file_is_refused(model):
    file = model / "model.safetensors"
    data = file.read_bytes()
    for damaged in (data[:-10], data[:4], data[:-1] + bytes([data[-1] ^ 1])):
        file.write_bytes(damaged)
        with pytest.raises(PdsError, match="model"):
            checkpoints.load_any(model)


def test_a_parameter_of_another_shape_is_named_with_both_shapes(model, config, params):
    other = jax.tree.map(np.asarray, params)
    other["Conv_0"]["kernel"] = np.zeros((3, 3, 1, 5), np.float32)
    checkpoints.save_parameters(model, other, config.to_dict())
    with pytest.raises(PdsError, match=r"Conv_0/kernel.*\(3, 3, 1, 5\).*\(3, 3, 1, 4\)"):
        checkpoints.load_any(model)


def test_missing_pieces_are_named(model, tmp_path):
    with pytest.raises(PdsError, match="nowhere"):
        checkpoints.load_any(tmp_path / "nowhere")
    with pytest.raises(PdsError, match="model.safetensors"):
        checkpoints.load_model(tmp_path)
    (model / "config.json").unlink()
    with pytest.raises(PdsError, match="config"):
        checkpoints.load_any(model)


def test_strict_json_infinities_come_back_as_numbers(model):
    fields = json.loads((model / "config.json").read_text())
    fields["pds"]["alpha"] = "inf"
    (model / "config.json").write_text(json.dumps(fields))
    assert checkpoints.load_model(model).config.pds.alpha == float("inf")


@pytest.mark.parametrize("name", ["photos", "digits"])
def test_shipped_models_load_by_name(name):
    found = checkpoints.load_any(name)
    assert found.config.data.dataset == name and found.statistics is not None
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found.params))


@pytest.fixture
def state(config, params):
    return train_state.create_train_state(params, train_state.get_optimizer(config))


def test_training_states_are_kept_and_pruned(tmp_path, state):
    folder = checkpoints.TrainingFolder(tmp_path / "states", keep=2)
    assert folder.latest() is None
    for step in (1, 2, 3):
        folder.save(step, state.replace(step=jnp.int32(step)))
    folder.save(3, state)  # already there: left as it is
    assert folder.steps() == [2, 3]
    back = folder.restore(3, state)
    assert int(back.step) == 3
    jax.tree.map(np.testing.assert_array_equal, back.replace(step=state.step), state)
    folder.close()


def test_a_damaged_state_gives_way_to_the_one_before(tmp_path, state):
    folder = checkpoints.TrainingFolder(tmp_path)
    for step in (1, 2):
        folder.save(step, state.replace(step=jnp.int32(step)))
    for file in (tmp_path / "2").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    damaged = {file.name: file.stat().st_size for file in (tmp_path / "2").rglob("*") if file.is_file()}
    assert int(folder.restore_newest(state).step) == 1
    kept = {file.name: file.stat().st_size for file in (tmp_path / "damaged-2").rglob("*") if file.is_file()}
    assert kept == damaged and folder.steps() == [1]
    folder.save(2, state.replace(step=jnp.int32(2)))  # the damaged one is out of the way
    assert int(folder.restore_newest(state).step) == 2
    folder.close()


@pytest.mark.parametrize("reason", ["PERMISSION_DENIED: no", "RESOURCE_EXHAUSTED: Too many open files"])
def test_a_state_that_cannot_be_read_for_another_reason_is_not_called_damaged(tmp_path, state, monkeypatch, reason):
    folder = checkpoints.TrainingFolder(tmp_path)
    folder.save(1, state)

    def fail(*_, **__):
        raise ValueError(reason)

    with monkeypatch.context() as patch:
        patch.setattr(folder._manager, "restore", fail)
        with pytest.raises(PdsError, match=f"cannot read step 1.*{reason[:10]}"):
            folder.restore_newest(state)
    assert int(folder.restore_newest(state).step) == 0 and folder.steps() == [1]
    folder.close()


def test_a_training_workdir_is_a_checkpoint(tmp_path, state, config, stats):
    folder = checkpoints.TrainingFolder(tmp_path / "checkpoints-meta")
    averaged = jax.tree.map(lambda leaf: leaf + 1.0, state.params)
    folder.save(5, state.replace(ema_params=averaged))
    folder.close()
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    stats.save(tmp_path / "statistics.npz")
    ema, raw = (checkpoints.load_any(tmp_path, use_ema=use_ema) for use_ema in (True, False))
    assert ema.digest == checkpoints.digest_of(averaged) and raw.digest == checkpoints.digest_of(state.params)
    assert checkpoints.load_any(tmp_path / "checkpoints-meta" / "5").digest == ema.digest
    assert ema.statistics is not None


def test_a_state_of_another_network_is_refused(tmp_path, state):
    folder = checkpoints.TrainingFolder(tmp_path / "states")
    folder.save(1, state)
    wider = jax.tree.map(lambda leaf: jnp.zeros((*leaf.shape, 2)), state.params)
    with pytest.raises(PdsError, match=r"params/Conv_0/bias is \(4,\) there.*\(4, 2\)"):
        folder.restore(1, state.replace(params=wider))
    with pytest.raises(PdsError, match="step 9"):
        folder.restore(9, state)
    folder.close()


def test_other_parameters_come_back(tmp_path):
    tree = {"a": {"b": np.arange(3, dtype=np.float32)}}
    checkpoints.save_parameters(tmp_path, tree, {"name": "x"})
    found, facts = checkpoints.load_parameters(tmp_path)
    np.testing.assert_array_equal(found["a"]["b"], tree["a"]["b"])
    assert facts == {"name": "x"}


def test_the_shipped_classifier_knows_digits():
    from pds_jax.metrics import classifier_features

    judge = classifier_features.load("digits")
    images, labels = datasets.digits("test")
    assert np.mean(judge.classes(images) == labels) > 0.97
    assert judge.features(images).shape == (297, 64)
    np.testing.assert_allclose(judge.probabilities(images).sum(axis=1), 1.0, rtol=1e-6)
    assert np.mean(judge.classes(images) == labels) == pytest.approx(judge.facts["report"]["test_accuracy"])


@pytest.mark.slow
def test_the_noisy_classifier_guides_toward_a_class():
    """At σ = 0.3 it is right 9 times in 10, and its gradient raises the probability of the class asked for."""
    from pds_jax.metrics import classifier_features

    logit_fn = classifier_features.noisy_logit_fn()
    images, labels = datasets.digits("test")
    sigma = jnp.full(len(images), 0.3)
    noise = np.random.default_rng(0).standard_normal(images.shape, dtype=np.float32)
    x = jnp.asarray(images + np.float32(0.3) * noise)
    logits = np.asarray(logit_fn(x, sigma))
    assert np.mean(logits.argmax(axis=1) == labels) > 0.88

    def chance_of_three(x):
        return jax.nn.log_softmax(logit_fn(x, sigma))[:, 3]

    up = x + 0.01 * jax.grad(lambda x: jnp.sum(chance_of_three(x)))(x)
    assert np.mean(np.asarray(chance_of_three(up) > chance_of_three(x))) > 0.95


@pytest.mark.parametrize("limit", [100, 1000])
def test_a_full_disk_is_reported_and_the_states_before_are_unharmed(tmp_path, config, params, limit):
    """A limit on the size of files stands for a full disk; orbax and tensorstore meet it in different places."""
    state = train_state.create_train_state(params, train_state.get_optimizer(config))
    folder = checkpoints.TrainingFolder(tmp_path / "states")
    folder.save(1, state)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(PdsError, match="cannot save step 2 .*free some space"):
            folder.save(2, state)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        folder.close()
    again = checkpoints.TrainingFolder(tmp_path / "states")
    assert again.steps() == [1]
    jax.tree.map(np.testing.assert_array_equal, again.restore(1, state).params, params)
    again.save(2, state)
    assert again.steps() == [1, 2]
    again.close()


def test_a_model_without_its_statistics_says_what_is_missing_and_reads_them_beside_it(tmp_path, config, params, stats):
    """The network of the wiener parametrisation is no score without them, whatever file its weights lie in."""
    import pds_jax

    with config.unlocked():
        wiener = type(config)(config.to_dict())
        wiener.model.parametrisation = "wiener"
    checkpoints.save_model(tmp_path / "model", params, wiener, None)
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "model" / "weights.safetensors")
    with pytest.raises(PdsError, match="statistics.npz of its training beside the checkpoint"):
        pds_jax.load(str(tmp_path / "model" / "weights.safetensors"), wiener)
    stats.save(tmp_path / "model" / "statistics.npz")
    assert pds_jax.load(str(tmp_path / "model" / "weights.safetensors"), wiener).statistics is not None


def test_which_weights_were_read_is_said(tmp_path, config, params):
    import flax.serialization

    halved = jax.tree.map(lambda leaf: np.asarray(leaf, np.float16) / 2, params)
    state = {"params": jax.tree.map(np.asarray, params), "params_ema": halved}
    (tmp_path / "checkpoint_1").write_bytes(flax.serialization.msgpack_serialize(state))
    found = checkpoints.load_any(tmp_path / "checkpoint_1", config)
    assert found.digest == checkpoints.digest_of(jax.tree.map(lambda leaf: leaf.astype(np.float32), halved))
    assert found.notes[0] == "read the moving average 'params_ema', not the raw weights 'params'"
    assert "are float16; they became float32" in found.notes[1]
    assert checkpoints.load_any(tmp_path / "checkpoint_1", config, use_ema=False).digest == checkpoints.digest_of(
        params
    )


def test_statistics_beside_another_programs_file_are_read_only_if_they_are_of_its_images(
    tmp_path, config, params, stats
):
    import flax.serialization

    path = tmp_path / "checkpoint_1"
    path.write_bytes(flax.serialization.msgpack_serialize(jax.tree.map(np.asarray, params)))
    stats.save(tmp_path / "statistics.npz")
    assert checkpoints.load_any(path, config).statistics is not None
    other = statistics.compute_statistics([np.random.default_rng(0).uniform(size=(9, 4, 4, 1)).astype(np.float32)])
    other.save(tmp_path / "statistics.npz")
    found = checkpoints.load_any(path, config)
    assert found.statistics is None and any("skipped: the statistics are of images" in note for note in found.notes)
    np.savez(tmp_path / "statistics.npz", mu=np.zeros(3), sigma=np.eye(3))  # of an FID, for example
    assert checkpoints.load_any(path, config).statistics is None


def test_a_file_without_configuration_is_called_by_its_kind(tmp_path):
    import flax.serialization

    path = tmp_path / "checkpoint_1"
    path.write_bytes(flax.serialization.msgpack_serialize({"a": np.zeros(2)}))
    with pytest.raises(PdsError, match=r"\(score_sde_flax\) carries no configuration"):
        checkpoints.load_any(path)
    path.write_text("<html>")
    with pytest.raises(PdsError, match="a web page"):
        checkpoints.load_any(path)
    with pytest.raises(PdsError, match="Hugging Face Hub is fetched by scripts/convert_checkpoint.py"):
        checkpoints.load_any("google/ncsnpp-church-256")


def test_no_file_that_is_included_names_a_folder_of_the_machine_that_made_it():
    folder = pathlib.Path(__file__).parent.parent / "checkpoints"
    for path in folder.rglob("*"):
        data = path.read_bytes() if path.is_file() else b""
        assert b"/root/" not in data and b"/home/" not in data, path
