"""Real processes on this machine: with a coordinator they do together what one does alone."""

import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from configs import digits
from pds_jax import checkpoints, statistics
from pds_jax.cli import evaluate as evaluation_job
from pds_jax.data import datasets
from pds_jax.io import files, images
from pds_jax.models import init_model
from pds_jax.train_state import create_train_state, get_optimizer

HERE = pathlib.Path(__file__).parent
SEVERAL = str(HERE / "several.py")


def environment(devices):
    flags = f"--xla_force_host_platform_device_count={devices}"
    return {**os.environ, "PYTHONPATH": str(HERE.parent), "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}


def address():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return f"localhost:{free.getsockname()[1]}"


def run(commands, devices=1):
    """Start all, wait for all; every one must end well."""
    started = [
        subprocess.Popen(command, env=environment(devices), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for command in commands
    ]
    for process in started:
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0, output[-3000:]


def alone_and_together(job, tmp_path):
    """The job by one process with two devices, and by two processes with one each."""
    alone, together = tmp_path / "alone", tmp_path / "together"
    alone.mkdir()
    together.mkdir()
    run([[sys.executable, SEVERAL, job, str(alone)]], devices=2)
    meet = address()
    run([[sys.executable, SEVERAL, job, str(together), meet, "2", str(index)] for index in range(2)])
    return alone, together


def test_two_processes_gather_add_and_sample_as_one(tmp_path):
    """Statistics, the moments that FID is made of, features, decisions, and norm mode "batch"."""
    alone, together = alone_and_together("share", tmp_path)
    expected = np.load(alone / "share0.npz")
    for index in range(2):
        found = np.load(together / f"share{index}.npz")
        for name in ("power", "images"):
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-6, err_msg=name)
        for name in ("mean", "scatter"):
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-12, err_msg=name)


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    """The same two slices of every batch, the same mean of gradients: 1e-6 is room for another order of two terms."""
    alone, together = alone_and_together("train", tmp_path)

    def params(folder):
        states = checkpoints.TrainingFolder(folder / "training" / "checkpoints-meta", create=False)
        found = states.restore_params(12)
        states.close()
        return found

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), params(together), params(alone))
    assert len((together / "training" / "log.jsonl").read_text().splitlines()) == 3  # one process writes


@pytest.mark.slow
def test_processes_and_shards_fill_one_folder_like_one_process(tmp_path):
    """Batches of the same size on every device are the same program: equal to the bit."""
    words = ["--mode=sample", "--checkpoint=digits", "--seeds=0-10", "--speed_up=100", "--alpha=5", "--batch_size=3"]
    command = [sys.executable, "-m", "pds_jax.main", *words]
    run([[*command, f"--workdir={tmp_path / 'one'}"]])
    meet = address()
    two = [*command, f"--workdir={tmp_path / 'two'}", f"--coordinator={meet}", "--num_processes=2"]
    run([[*two, f"--process_id={index}"] for index in range(2)])
    run([[*command, f"--workdir={tmp_path / 'three'}", f"--shard={index}/3"] for index in range(3)])
    for name in ("two", "three"):
        manifest = files.read_json(tmp_path / name / "samples" / "manifest.json")
        assert manifest["state"] == "complete" and manifest["images"] == 11
        assert len(manifest["parts"]) == {"two": 2, "three": 3}[name]
        for seed in range(11):
            one, other = (images.seed_path(tmp_path / run / "samples", seed) for run in ("one", name))
            assert one.read_bytes() == other.read_bytes()


def small_training(workdir):
    """A training of the digits with one snapshot, of random weights."""
    config = digits.get_config("nf=8,ch_mult=1:1")
    config.eval.update(begin_ckpt=1, end_ckpt=1, batch_size=4, num_samples=10, enable_loss=True, enable_bpd=True)
    config.eval.update(bpd_dataset="train", enable_sampling=True)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: init_model(jax.random.key(0), config))
    params = jax.tree.map(lambda leaf: (0.05 * rng.standard_normal(leaf.shape)).astype(np.float32), shapes)
    states = checkpoints.TrainingFolder(workdir / "checkpoints")
    states.save(8, create_train_state(params, get_optimizer(config)))
    states.close()
    files.write_json(workdir / "config.json", evaluation_job.plain(config.to_dict()))
    statistics.compute_statistics([datasets.digits("train")[0]]).save(workdir / "statistics.npz")


@pytest.mark.slow
def test_two_processes_evaluate_as_one(tmp_path):
    """One process with two devices, two with one; then two that go on with half of it, and two that are refused.

    Each device has batches of the same shape, so images are equal byte for byte and features to the bit; 1e-6 and 1e-5
    are room for another order of sums.
    """
    small_training(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    words = ["--mode=eval", "--speed_up=200", "--predictor=sde_dpmpp_2m", "--corrector=none", "--grid=edm"]
    words += ["--eval_images=6", f"--cache_dir={tmp_path / 'cache'}"]
    command = [sys.executable, "-m", "pds_jax.main", *words]

    def both(*more):
        shared = [*command, f"--workdir={tmp_path / 'two'}", f"--coordinator={address()}", "--num_processes=2", *more]
        return [[*shared, f"--process_id={index}"] for index in range(2)]

    def rows(name):
        return files.read_json(tmp_path / name / "eval" / "results.json")["rows"][0]

    run([[*command, f"--workdir={tmp_path / 'one'}"]], devices=2)
    run(both())
    expected, found = rows("one"), rows("two")
    limits = {"fid": 1e-6, "kid": 1e-6, "is": 1e-6}
    for name, value in expected.items():
        same = pytest.approx(value, rel=limits.get(name, 1e-5)) if isinstance(value, float) else value
        assert found[name] == same, name
    one, two = (tmp_path / name / "eval" / "ckpt_1" for name in ("one", "two"))
    for seed in range(10):
        here, there = (images.seed_path(folder / "samples", seed) for folder in (one, two))
        assert here.read_bytes() == there.read_bytes()
    assert {path.name for path in (two / "samples" / "parts").iterdir()} == {"0-of-2.json", "1-of-2.json"}
    reference = (two.parent / "reference.npz").stat().st_mtime_ns

    for name in ("bpd.json", "figures.json", "bpd/0-4.npz"):
        (two / name).unlink()
    images.seed_path(two / "samples", 3).unlink()
    run(both())
    assert rows("two") == found
    assert (two.parent / "reference.npz").stat().st_mtime_ns == reference

    refused = [
        subprocess.Popen(each, env=environment(1), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for each in both("--metrics=fid")
    ]
    outputs = [process.communicate(timeout=300)[0] for process in refused]
    assert all(process.returncode not in (0, None) for process in refused)
    assert "figures.json is the result of another setting" in outputs[0]


@pytest.mark.slow
def test_sigterm_in_sampling_keeps_what_is_done_and_exits_0(tmp_path):
    words = ["--mode=sample", "--checkpoint=digits", "--seeds=0-4000", "--speed_up=10", "--batch_size=4"]
    command = [sys.executable, "-m", "pds_jax.main", *words, f"--workdir={tmp_path}"]
    process = subprocess.Popen(command, env=environment(1), stdout=subprocess.PIPE, text=True)
    shards = tmp_path / "samples" / "shards"
    deadline = time.monotonic() + 300
    while not (shards.is_dir() and len(list(shards.glob("*.json"))) > 1):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    start = time.monotonic()
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and time.monotonic() - start < 30
    assert "stopped by SIGTERM" in output
    assert not list(tmp_path.rglob("*.tmp"))
    run([[*command[:-1], "--seeds=0-3", f"--workdir={tmp_path}"]])
    assert files.read_json(tmp_path / "samples" / "manifest.json")["state"] == "complete"


@pytest.mark.slow
def test_what_is_killed_goes_on_as_if_nothing_had_happened(tmp_path):
    """Two kills of each kind; ``scripts/dev/survive.py --kills=20`` is the long form."""
    run([[sys.executable, str(HERE.parent / "scripts" / "dev" / "survive.py"), "--kills=2", f"--workdir={tmp_path}"]])
