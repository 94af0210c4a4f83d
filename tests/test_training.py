import json
import math
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import tiny

from configs import own
from pds_jax import checkpoints, losses, parallel, train_config, train_log, training
from pds_jax.io import files
from pds_jax.types import PdsError

TINY = pathlib.Path(tiny.__file__)


def final_params(workdir, step):
    folder = checkpoints.TrainingFolder(pathlib.Path(workdir) / "checkpoints-meta", create=False)
    params = folder.restore_params(step), folder.restore_params(step, use_ema=False)
    folder.close()
    return params


def assert_same(a, b, **tolerance):
    compare = np.testing.assert_allclose if tolerance else np.testing.assert_array_equal
    jax.tree.map(lambda x, y: compare(x, y, **tolerance), a, b)


@pytest.fixture(scope="module", autouse=True)
def compile_once(tmp_path_factory):
    """Every Trainer compiles its own step: let the same program come from a cache."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = [getattr(jax.config, name) for name in names]
    for name, value in zip(names, (str(tmp_path_factory.mktemp("cache")), 0.0), strict=True):
        jax.config.update(name, value)
    yield
    for name, value in zip(names, before, strict=True):
        jax.config.update(name, value)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A training of 12 steps in one go, which notes what on_log is told."""
    workdir = tmp_path_factory.mktemp("whole")
    told = []
    training.train(tiny.get_config(), str(workdir), on_log=lambda step, values: told.append({"step": step, **values}))
    (workdir / "told.json").write_text(json.dumps(told))
    return workdir


def test_training_leaves_what_it_promises(whole):
    rows = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] <= 12 and all(np.isfinite(row["loss"]) for row in rows)
    assert (whole / "config.json").is_file() and (whole / "statistics.npz").is_file()
    assert list((whole / "tensorboard").glob("events*"))
    assert checkpoints.TrainingFolder(whole / "checkpoints", create=False).steps() == [8, 12]


def test_on_log_is_told_what_the_log_says(whole):
    """That it changes nothing, the interrupted training shows, which has none."""
    rows = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    told = json.loads((whole / "told.json").read_text())
    assert len(told) == len(rows) >= 2
    for row, values in zip(rows, told, strict=True):
        assert values == pytest.approx(row, rel=1e-3) and values["step"] == row["step"]


def test_the_rate_is_that_of_the_steps_without_what_was_compiled_before(tmp_path, monkeypatch):
    now, told = [0.0], []
    monkeypatch.setattr(train_log.time, "monotonic", lambda: now[0])
    log = train_log.Log(tmp_path, 0, 10, lambda step, values: told.append(values["steps_per_second"]))
    now[0] = 100.0
    log.restart()
    now[0] = 101.0
    log.add(0, np.ones((1, 5)))
    log.write()
    log.close()
    assert told == [5.0]


def eval_losses(workdir):
    rows = [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]
    return {row["step"]: row["eval_loss"] for row in rows if "eval_loss" in row}


def with_eval_freq(every):
    config = tiny.get_config()
    config.training.eval_freq = every
    return config


def test_the_evaluation_loss_is_of_the_averaged_weights_on_test_images(whole, tmp_path):
    training.train(with_eval_freq(12), str(tmp_path))
    assert_same(final_params(tmp_path, 12), final_params(whole, 12))  # evaluating changes nothing
    config, trainer = tiny.get_config(), training.Trainer(with_eval_freq(12), str(tmp_path))
    assert trainer.eval_stream.source.name == "digits-test"
    loss_fn = train_config.get_loss_fn(config, trainer.sde, trainer.model, trainer.statistics, train=False)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), 2), 12)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, np.arange(8))
    expected = loss_fn(keys, trainer.state.ema_params, trainer.eval_stream.batch(1))
    assert eval_losses(tmp_path) == {12: pytest.approx(float(expected), rel=1e-5)}


def test_the_evaluation_loss_is_measured_every_eval_freq_steps(tmp_path):
    training.train(with_eval_freq(4), str(tmp_path))
    assert sorted(eval_losses(tmp_path)) == [4, 8, 12]


def test_data_without_test_images_cannot_be_evaluated(tmp_path, monkeypatch):
    get_source = training.datasets.get_source

    def only_train(config, split="train"):
        if split == "test":
            raise PdsError("digits has no test images")
        return get_source(config, split)

    monkeypatch.setattr(training.datasets, "get_source", only_train)
    with pytest.raises(PdsError, match="digits has no test images; set config.training.eval_freq=0"):
        training.Trainer(with_eval_freq(4), str(tmp_path))
    training.Trainer(with_eval_freq(0), str(tmp_path))


def test_the_step_is_traced_once(tmp_path):
    """A program that took its first state from the host would be made again for the state that it gives."""
    trainer = training.Trainer(tiny.get_config(), str(tmp_path))
    loss_fn, traces = trainer.loss_fn, []
    trainer.loss_fn = lambda *arguments: traces.append(1) or loss_fn(*arguments)
    trainer.config.training.n_jitted_steps = 1
    trainer.run()
    assert len(traces) == 1


def test_what_is_trained_and_how_long_it_takes_is_said_before_the_first_step(tmp_path, capsys):
    trainer = training.Trainer(tiny.get_config(), str(tmp_path))
    batches, drawn = trainer._batches, []
    trainer._batches = lambda step, count: drawn.append((step, capsys.readouterr().out)) or batches(step, count)
    trainer.run()
    assert [step for step, _ in drawn[:4]] == [0, 0, 0, 2]  # two trials, then every step once
    said = "".join(text for _, text in drawn[:3])
    assert "Network" in drawn[0][1]  # before anything is compiled
    parameters = sum(leaf.size for leaf in jax.tree.leaves(trainer.state.params))
    for words in (
        "digits-train, 1,500 images (8, 8, 1)", f"{parameters:,} parameters", "parametrisation wiener",
        "0 of 12 are done, 8 images each: 96 images in all, 0.1 epochs", "images per second", "expected end in",
        "every 4 steps",
    ):  # fmt: skip
        assert words in said
    assert not any(text for _, text in drawn[3:])


def test_an_interrupted_training_ends_with_the_same_bits(whole, tmp_path):
    config = tiny.get_config()
    config.training.n_iters = 8
    training.train(config, str(tmp_path))
    training.train(tiny.get_config(), str(tmp_path))
    assert_same(final_params(tmp_path, 12), final_params(whole, 12))


def test_another_configuration_does_not_go_on_in_the_same_folder(whole):
    config = tiny.get_config()
    config.optim.lr = 0.5
    with pytest.raises(PdsError, match="optim.lr.*workdir"):
        training.train(config, str(whole))
    config = tiny.get_config()
    config.seed = 7
    with pytest.raises(PdsError, match="a training with seed=42, now it is 7"):
        training.train(config, str(whole))


def test_a_training_that_never_began_binds_nothing(tmp_path):
    """Refused by its network, or stopped before its first state."""
    config = own.get_config("dataset=digits,image_size=15,num_channels=1")
    with pytest.raises(PdsError, match="15x15 pixels do not fit a network of"):
        training.train(config, str(tmp_path))
    assert not (tmp_path / "config.json").exists()
    training.Trainer(with_eval_freq(0), str(tmp_path)).meta.close()  # as if killed while it compiled
    config = tiny.get_config()
    config.optim.lr = 0.5
    training.train(config, str(tmp_path))
    assert json.loads((tmp_path / "config.json").read_text())["optim"]["lr"] == 0.5


def test_a_negative_seed_is_refused(tmp_path):
    config = tiny.get_config()
    config.seed = -1
    with pytest.raises(PdsError, match="config.seed=-1"):
        training.Trainer(config, str(tmp_path))


def test_a_vp_network_is_trained_from_the_first_time_of_score_sde(tmp_path, monkeypatch):
    """From 1e-5, not from 1e-3, where sampling ends."""
    seen = []
    perturb = losses.perturb
    monkeypatch.setattr(losses, "perturb", lambda sde, x, t, z: seen.append(t) or perturb(sde, x, t, z))
    config = tiny.get_config()
    config.training.sde = "vpsde"
    trainer = training.Trainer(config, str(tmp_path))
    keys = jax.random.split(jax.random.key(0), 4096)
    with jax.disable_jit():
        trainer.loss_fn(keys, trainer.state.params, np.zeros((4096, 8, 8, 1), np.float32))
    assert 1e-5 <= float(seen[0].min()) < 9e-4


def test_snapshots_that_do_not_fit_do_not_stop_a_training(tmp_path, monkeypatch):
    config = tiny.get_config()
    config.training.snapshot_sampling = True
    sizes = []

    def sample(sampler, keys, score_fn):
        sizes.append(len(keys))
        raise parallel.OutOfMemory("64 images do not fit")

    monkeypatch.setattr(training.parallel, "sample", sample)
    training.train(config, str(tmp_path))
    assert set(sizes) == {config.training.batch_size}
    assert checkpoints.TrainingFolder(tmp_path / "checkpoints", create=False).steps() == [8, 12]


def test_a_folder_in_which_another_process_trains_is_refused(tmp_path):
    hold = """
import pathlib, sys
from pds_jax.io import files
with files.hold(pathlib.Path(sys.argv[1])):
    print(1, flush=True)
    input()
"""
    with subprocess.Popen(
        [sys.executable, "-c", hold, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        other.stdout.read(1)
        with pytest.raises(PdsError, match=re.escape(f"{tmp_path}: another process writes there")):
            training.train(tiny.get_config(), str(tmp_path))
        before = (tmp_path / "config.json").read_text()
        config = tiny.get_config()
        config.training.n_iters += 8
        with pytest.raises(PdsError, match="another process writes there"):
            training.train(config, str(tmp_path))
        assert (tmp_path / "config.json").read_text() == before
        other.communicate(b"\n")
    files.hold(tmp_path).close()


def test_one_device_and_four_give_the_same_training(whole, tmp_path, monkeypatch):
    """The mean of gradients is summed in another order: 1e-4 after 12 steps of Adam."""
    one, pmap = jax.local_devices()[:1], jax.pmap
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr(jax, "local_devices", lambda: one)

    def on_one(f, *axis, **options):
        return pmap(f, *axis, **{**options, "devices": one})

    monkeypatch.setattr(jax, "pmap", on_one)
    training.train(tiny.get_config(), str(tmp_path))
    assert_same(final_params(tmp_path, 12), final_params(whole, 12), rtol=1e-3, atol=1e-4)


def test_a_loss_that_is_no_number_stops_the_run_with_its_step(tmp_path):
    config = tiny.get_config()
    config.optim.update(lr=1e30, warmup=0, grad_clip=-1.0)
    with pytest.raises(FloatingPointError, match="at step [1-9]"):
        training.train(config, str(tmp_path))


def test_a_batch_that_does_not_split_is_refused(tmp_path):
    config = tiny.get_config()
    config.training.batch_size = 6
    with pytest.raises(PdsError, match="batch_size=6"):
        training.train(config, str(tmp_path))


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("training", "batch_size", 0),
        ("training", "batch_size", -4),
        ("training", "n_iters", 0),
        ("training", "n_jitted_steps", 0),
        ("optim", "lr", math.inf),
        ("optim", "beta1", 1.5),
        ("optim", "eps", -1.0),
        ("optim", "weight_decay", math.nan),
        ("optim", "warmup", -5),
        ("optim", "cosine_steps", -1),
        ("optim", "grad_clip", math.nan),
        ("optim", "grad_clip", 0.0),
        ("optim", "amsgrad", True),
        ("model", "ema_rate", 1.5),
        ("model", "conv_size", 5),
        ("model", "sigma_begin", 50),
    ],
)
def test_fields_that_no_training_can_have_are_refused_before_anything_is_written(tmp_path, section, field, value):
    config = tiny.get_config()
    config[section][field] = value
    with pytest.raises(PdsError, match=f"config.{section}.{field}={value!r} must be"):
        training.Trainer(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        ("loss_weighting=sigma", "model.parametrisation='wiener' needs continuous"),
        ("parametrisation=score_sde", "training.loss_weighting='unit' needs continuous"),
        ("loss_weighting=sigma,parametrisation=score_sde,likelihood_weighting=true", "likelihood_weighting=True needs"),
        ("continuous=true,likelihood_weighting=true", "two weightings"),
        ("continuous=true,loss_weighting=snr", "known: sigma, unit"),
    ],
)
def test_a_loss_that_there_is_not_is_refused(tmp_path, arg, message):
    config = tiny.get_config(f"continuous=false,embedding_type=positional,{arg}")
    with pytest.raises(PdsError, match=message):
        training.Trainer(config, str(tmp_path / "run"))
    with pytest.raises(PdsError, match=message):
        train_config.get_loss_fn(config, None, None, None)
    assert not (tmp_path / "run").exists()


def test_snapshots_are_sampled(whole, tmp_path):
    config = tiny.get_config()
    trainer = training.Trainer(config, str(whole))
    drawn = trainer.samples(trainer.state.ema_params, count=5, steps=4)
    assert drawn.shape == (5, 8, 8, 1) and np.isfinite(drawn).all()


def start(workdir, steps):
    environment = {**os.environ, "PYTHONPATH": str(TINY.parent.parent), "XLA_FLAGS": ""}
    return subprocess.Popen(
        [sys.executable, str(TINY), str(workdir), str(steps)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def wait_for(condition, process, seconds=300):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the training ended by itself"
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.05)


def states(workdir):
    folder = workdir / "checkpoints-meta"
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit()) if folder.is_dir() else []


@pytest.mark.slow
def test_kill_9_loses_nothing_but_time(tmp_path):
    broken, unbroken = tmp_path / "broken", tmp_path / "unbroken"
    process = start(broken, 400)
    wait_for(lambda: len(states(broken)) >= 2, process)
    process.kill()
    process.wait()
    assert states(broken) and max(states(broken)) < 400
    assert start(broken, 400).wait() == 0
    assert start(unbroken, 400).wait() == 0
    assert_same(final_params(broken, 400), final_params(unbroken, 400))


@pytest.mark.slow
def test_sigterm_saves_and_exits_0(tmp_path):
    process = start(tmp_path, 100_000)
    wait_for(lambda: states(tmp_path), process)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0 and time.monotonic() - began < 30
    folder = checkpoints.TrainingFolder(tmp_path / "checkpoints-meta", create=False)
    assert folder.latest() is not None
    folder.close()
