"""Kill -9 at random moments, go on, and compare with a run that nothing happened to.

    python scripts/survive.py --kills=20 --workdir=/tmp/survive

Four kinds of work, each small: sampling to PNG files, training, the statistics of a data set, and the sums that FID is
made of. A process is killed at a moment drawn between its start and the time an unbroken run takes, and started again
in the same folder until it ends, alternately with one and two devices for sampling and training; then in a new folder,
until there were enough kills. What must hold:

  sampling    runs of one device only: PNG files equal byte for byte; one and two devices in turn: every pixel within
              one level of 255 (batches of another shape round differently)
  training    one device only: parameters equal bit for bit; in turn: to 1e-3 relative, 1e-4 absolute
  statistics  the file is whole or absent, and equal
  fid         count, mean and scatter matrix equal bit for bit

The last line is JSON.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import pathlib
import random
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import app, flags

from configs import digits
from pds_jax import checkpoints, datasets, files, images, run_lib, statistics, training
from pds_jax.cache import use_compilation_cache
from pds_jax.metrics import evaluation  # noqa: F401  imported here so that the processes need not
from pds_jax.metrics.extractors import get_extractor
from pds_jax.metrics.image_sets import ArrayImages
from pds_jax.metrics.streaming import extract
from pds_jax.models import init_model

_KILLS = flags.DEFINE_integer("kills", 20, "Kills of each kind.")
_KINDS = flags.DEFINE_list("kinds", ["sampling", "training", "statistics", "fid"], "Which kinds.")
_WORKDIR = flags.DEFINE_string("workdir", "/tmp/pds_survive", "Scratch folder; a new one below it is made.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the moments.")

SEEDS, BATCH, STEPS = 48, 4, 60


def config() -> Any:
    """A network that compiles in seconds."""
    found = digits.get_config("nf=8,ch_mult=1:1")
    found.training.update(
        batch_size=8, n_iters=STEPS, log_freq=10, snapshot_freq=STEPS, snapshot_freq_for_preemption=5,
        snapshot_sampling=False,
    )
    found.optim.update(warmup=3, cosine_steps=0)
    return found


def make_model(folder: pathlib.Path) -> None:
    """Random weights as a finished model."""
    import jax

    shapes = jax.eval_shape(lambda: init_model(jax.random.key(0), config()))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: (0.05 * rng.standard_normal(leaf.shape)).astype(np.float32), shapes)
    source = datasets.get_source(config())
    found = statistics.compute_statistics(datasets.iterate(source, 256))
    checkpoints.save_model(folder, params, config(), found)


def sampling_job(folder: pathlib.Path) -> None:
    """Images of all seeds."""
    options = {
        "checkpoint": str(folder.parent / "model"), "raw_weights": False, "seeds": f"0-{SEEDS - 1}",
        "batch_size": BATCH, "eval_folder": None, "precision": "float32",
    }
    overrides = {"sampling.speed_up": 50.0, "pds.alpha": "5"}
    run_lib.run("sample", None, str(folder), overrides, options)


def training_job(folder: pathlib.Path) -> None:
    """The whole training."""
    training.train(config(), str(folder))


def statistics_job(folder: pathlib.Path) -> None:
    """Statistics of 40000 images."""
    source = np.random.default_rng(0).integers(0, 256, (40_000, 16, 16, 3), np.uint8)
    statistics.compute_statistics(source[i : i + 512] for i in range(0, len(source), 512)).save(folder / "s.npz")


def fid_job(folder: pathlib.Path) -> None:
    """Sums over 20000 images, saved many times a second."""
    pixels = np.random.default_rng(0).integers(0, 256, (20_000, 16, 16, 3), np.uint8)
    found = extract(
        ArrayImages("random", pixels, range(len(pixels))), get_extractor("pixels"), folder=folder, save_every=0.1
    ).moments
    out = folder / "moments.npz"
    files.atomic_write(out, lambda file: np.savez(file, count=found.count, mean=found.mean, scatter=found.scatter))


JOBS: dict[str, Callable[[pathlib.Path], None]] = {
    "sampling": sampling_job,
    "training": training_job,
    "statistics": statistics_job,
    "fid": fid_job,
}


def results(kind: str, folder: pathlib.Path) -> dict[str, np.ndarray]:
    """What a finished run left behind."""
    if kind == "sampling":
        assert files.read_json(folder / "samples" / "manifest.json")["state"] == "complete"
        return {str(seed): images.load_png(images.seed_path(folder / "samples", seed)) for seed in range(SEEDS)}
    if kind == "training":
        from pds_jax.convert.tree import flatten

        states = checkpoints.TrainingFolder(folder / "checkpoints-meta", create=False)
        found = flatten(states.restore_params(STEPS)) | {
            f"raw/{name}": leaf for name, leaf in flatten(states.restore_params(STEPS, use_ema=False)).items()
        }
        states.close()
        return found
    with np.load(folder / ("s.npz" if kind == "statistics" else "moments.npz")) as arrays:
        return {name: arrays[name] for name in arrays.files if name != "provenance"}


def read_results(kind: str, folder: pathlib.Path) -> dict[str, np.ndarray]:
    """The results by way of a process, since one that has used JAX can no longer be forked."""

    def read() -> None:
        np.savez(folder / "results.npz", **results(kind, folder))

    process = multiprocessing.get_context("fork").Process(target=read)
    process.start()
    process.join()
    with np.load(folder / "results.npz") as arrays:
        return dict(arrays)


def _child(kind: str, folder: pathlib.Path, devices: int) -> None:
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    with open(folder / "log.txt", "a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    use_compilation_cache(None)
    import jax

    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    JOBS[kind](folder)


def attempt(kind: str, folder: pathlib.Path, devices: int, seconds: float | None) -> bool:
    """Run a job in a process of its own; kill it after some seconds. Returns whether it was killed."""
    folder.mkdir(parents=True, exist_ok=True)
    process = multiprocessing.get_context("fork").Process(target=_child, args=(kind, folder, devices))
    process.start()
    process.join(seconds)
    killed = process.exitcode is None
    if killed:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    if not killed and process.exitcode != 0:
        raise SystemExit(f"{kind} failed by itself:\n" + (folder / "log.txt").read_text()[-3000:])
    return killed


def difference(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    """Largest difference between two results."""
    assert found.keys() == expected.keys()
    return max(float(np.abs(found[name].astype(np.float64) - expected[name]).max()) for name in expected)


def moment(starts: int, seconds: float, rng: random.Random) -> float | None:
    """When to kill; never after ten starts, since statistics begin anew and have to end some time."""
    return rng.uniform(0.2, 1.1) * seconds if starts < 10 else None


def survive(kind: str, place: pathlib.Path, kills: int, rng: random.Random) -> dict[str, Any]:
    """Kill and resume one kind of work."""
    start = time.monotonic()
    attempt(kind, place / f"{kind}-first", 1, None)  # fills the compilation cache
    if kind in ("sampling", "training"):
        attempt(kind, place / f"{kind}-first-2", 2, None)
    seconds = time.monotonic()
    attempt(kind, place / f"{kind}-unbroken", 1, None)
    seconds = time.monotonic() - seconds
    expected = read_results(kind, place / f"{kind}-unbroken")
    done, runs, worst = 0, 0, {"same": 0.0, "in turn": 0.0}
    while done < kills:
        mixed = kind in ("sampling", "training") and runs % 2 == 1
        folder, starts = place / f"{kind}-{runs}", 0
        while attempt(kind, folder, 1 + (mixed and starts % 2 == 1), moment(starts, seconds, rng)):
            done += 1
            starts += 1
            print(f"{kind}: {done} kills, run {runs}", file=sys.stderr, flush=True)
        name = "in turn" if mixed else "same"
        worst[name] = max(worst[name], difference(read_results(kind, folder), expected))
        runs += 1
    limit = {"sampling": 1.0, "training": 1e-3}.get(kind, 0.0)
    return {
        "kind": kind, "kills": done, "runs": runs, "unbroken_seconds": round(seconds, 1),
        "difference_same_devices": worst["same"], "difference_devices_in_turn": worst["in turn"],
        "passed": worst["same"] == 0.0 and worst["in turn"] <= limit,
        "seconds": round(time.monotonic() - start, 1),
    }


def main(argv: list[str]) -> None:
    """Kill everything, print a table."""
    del argv
    place = pathlib.Path(_WORKDIR.value) / time.strftime("%H%M%S")
    place.mkdir(parents=True)
    model = multiprocessing.get_context("fork").Process(target=make_model, args=(place / "model",))
    model.start()
    model.join()
    rng = random.Random(_SEED.value)
    rows = []
    for kind in _KINDS.value:
        rows.append(survive(kind, place, _KILLS.value, rng))
        print(json.dumps(rows[-1]), flush=True)
    print(json.dumps({"passed": all(row["passed"] for row in rows), "rows": rows}))
    if not all(row["passed"] for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    app.run(main)
