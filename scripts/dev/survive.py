"""Kill -9 at random moments, go on, and compare with a run that nothing happened to.

    python scripts/dev/survive.py --kills=20 --workdir=/tmp/survive

Four kinds of work, each small: sampling to PNG files, training, the statistics of a data set, and the sums that FID is
made of. A process is killed at a moment drawn between its start and the time an unbroken run takes, and started again
in the same folder until it ends; every second run alternates between two devices and one; then in a new folder, until
there were enough kills. What was made on one device all through must be equal to the bit to what the unbroken run made.
Where devices took turns, batches of other shapes round differently; what must hold then:

  sampling    every pixel within one level of 255
  training    parameters to 1e-3 relative, 1e-4 absolute
  statistics  the same images; sums to 1e-6 of the largest entry of each array, the power spectrum to 1e-4 of it, for at
              frequency zero it is what two numbers 770 times as large leave (the file is whole or absent: after a kill
              the work begins anew, so the devices of the last start decide)
  fid         the same count; mean and scatter matrix to 1e-6 of their largest entry

A line of JSON is printed for each run as it ends, one for each kind, and one for all at the end.
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

# What the jobs import only when they need it comes here, or every process would wait seconds for it.
import orbax.checkpoint  # noqa: F401
import sklearn.datasets  # noqa: F401
import tensorboardX  # noqa: F401
from absl import flags

from configs import digits
from pds_jax import checkpoints, parallel, statistics, training
from pds_jax.cache import use_compilation_cache
from pds_jax.cli import run_lib, scripts
from pds_jax.cli.options import RunOptions, SamplerOptions
from pds_jax.data import datasets
from pds_jax.io import files, images
from pds_jax.metrics import classifier_features, evaluation  # noqa: F401
from pds_jax.metrics.extractors import get_extractor
from pds_jax.metrics.image_sets import ArrayImages
from pds_jax.metrics.streaming import extract
from pds_jax.models import init_model

_KILLS = flags.DEFINE_integer("kills", 20, "Kills of each kind.")
_KINDS = flags.DEFINE_list("kinds", ["sampling", "training", "statistics", "fid"], "Which kinds.")
_WORKDIR = flags.DEFINE_string("workdir", "/tmp/pds_survive", "Scratch folder; a new one below it is made.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the moments.")

SEEDS, BATCH, STEPS = 96, 4, 40


def config() -> Any:
    """A network that compiles in seconds."""
    found = digits.get_config("nf=8,ch_mult=1:1")
    found.training.update(
        batch_size=8,
        n_iters=STEPS,
        log_freq=10,
        snapshot_freq=STEPS,
        snapshot_freq_for_preemption=5,
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
    sampler = SamplerOptions(speed_up=50.0, alpha=5.0)
    weights, seeds = str(folder.parent / "model"), tuple(range(SEEDS))
    run_lib.run(RunOptions("sample", folder, checkpoint=weights, seeds=seeds, batch_size=BATCH, sampler=sampler))


def training_job(folder: pathlib.Path) -> None:
    """The whole training."""
    training.train(config(), str(folder))


def statistics_job(folder: pathlib.Path) -> None:
    """Statistics of 100000 images, each block over all devices."""
    source = np.random.default_rng(0).integers(0, 256, (100_000, 16, 16, 3), np.uint8)
    batches = (source[i : i + 512] for i in range(0, len(source), 512))
    statistics.compute_statistics(batches, sums_fn=parallel.sums_fn).save(folder / "s.npz")


def fid_job(folder: pathlib.Path) -> None:
    """Sums over 40000 images, each batch over all devices, saved many times a second."""
    pixels = np.random.default_rng(0).integers(0, 256, (40_000, 8, 8, 1), np.uint8)
    extractor = get_extractor("digits").on_devices(parallel.data_parallel)
    found = extract(ArrayImages("random", pixels), extractor, folder=folder, save_every=0.1).moments
    out = folder / "moments.npz"
    files.atomic_write(out, lambda file: np.savez(file, count=found.count, mean=found.mean, scatter=found.scatter))


JOBS: dict[str, Callable[[pathlib.Path], None]] = {
    "sampling": sampling_job,
    "training": training_job,
    "statistics": statistics_job,
    "fid": fid_job,
}

# (Name of an array, what it should be) -> differences allowed where devices took turns.
ALLOWED: dict[str, Callable[[str, np.ndarray], Any]] = {
    "sampling": lambda name, expected: 1.0,
    "training": lambda name, expected: 1e-4 + 1e-3 * np.abs(expected),
    "statistics": lambda name, expected: (1e-4 if name == "power" else 1e-6) * np.abs(expected).max(),
    "fid": lambda name, expected: 1e-6 * np.abs(expected).max(),
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
    if kind == "statistics":
        found = statistics.load(folder / "s.npz")
        seen = bytes.fromhex(found.provenance["images_sha256"])
        arrays = {name: getattr(found, name) for name in ("mean", "power", "r_f", "r_a")}
        return {**arrays, "count": np.asarray(found.count), "images": np.frombuffer(seen, np.uint8)}
    with np.load(folder / "moments.npz") as stored:
        return dict(stored)


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


def difference(kind: str, found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> tuple[float, float]:
    """Largest difference between two results, and the largest share of what is allowed where devices took turns."""
    assert found.keys() == expected.keys()
    worst, share = 0.0, 0.0
    for name, wanted in expected.items():
        apart = np.abs(found[name].astype(np.float64) - wanted)
        worst = max(worst, float(apart.max()))
        share = max(share, float((apart / ALLOWED[kind](name, wanted)).max()))
    return worst, share


def moment(starts: int, seconds: float, rng: random.Random) -> float | None:
    """When to kill; never after ten starts, since statistics begin anew and have to end some time."""
    return rng.uniform(0.2, 1.1) * seconds if starts < 10 else None


def survive(kind: str, place: pathlib.Path, kills: int, rng: random.Random) -> dict[str, Any]:
    """Kill and resume one kind of work."""
    start = time.monotonic()
    for devices in (1, 2):  # fills the compilation cache
        attempt(kind, place / f"{kind}-first-{devices}", devices, None)
    seconds = time.monotonic()
    attempt(kind, place / f"{kind}-unbroken", 1, None)
    seconds = time.monotonic() - seconds
    expected = read_results(kind, place / f"{kind}-unbroken")
    runs: list[dict[str, Any]] = []
    while sum(run["kills"] for run in runs) < kills:
        runs.append(one_run(kind, place / f"{kind}-{len(runs)}", len(runs) % 2 == 1, seconds, rng, expected))
        print(json.dumps(runs[-1]), flush=True)
    return {
        "kind": kind,
        "kills": sum(run["kills"] for run in runs),
        "runs": len(runs),
        "runs_in_turn": len(runs) // 2,
        "unbroken_seconds": round(seconds, 1),
        "difference_same_devices": max(run["difference"] for run in runs[::2]),
        "difference_devices_in_turn": max((run["difference"] for run in runs[1::2]), default=None),
        "share_of_allowed_in_turn": max((run["share_of_allowed"] for run in runs[1::2]), default=None),
        "passed": all(run["passed"] for run in runs),
        "seconds": round(time.monotonic() - start, 1),
    }


def one_run(
    kind: str, folder: pathlib.Path, mixed: bool, seconds: float, rng: random.Random, expected: dict[str, np.ndarray]
) -> dict[str, Any]:
    """Kill and resume in one folder until the work ends, with one device or with two and one in turn; compare."""
    starts = 0
    while attempt(kind, folder, 1 + (mixed and starts % 2 == 0), moment(starts, seconds, rng)):
        starts += 1
        print(f"{folder.name}: {starts} kills", file=sys.stderr, flush=True)
    worst, share = difference(kind, read_results(kind, folder), expected)
    return {
        "run": folder.name,
        "devices": "in turn" if mixed else "same",
        "kills": starts,
        "difference": worst,
        "share_of_allowed": share,
        "passed": share <= 1 if mixed else worst == 0,
    }


def main(argv: list[str]) -> None:
    """Kill everything, print a table."""
    scripts.refuse_words(argv)
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
    scripts.run(main)
