"""The two jobs of the command line: sample and train. Wiring only."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from pds_jax import assembly, files, images, training
from pds_jax.manifest import RunFolder
from pds_jax.types import PdsError

_PRECISIONS = {"float32": "highest", "tf32": "tensorfloat32", "bfloat16": "bfloat16"}


def run(
    mode: str,
    config: ConfigDict | None,
    workdir: str,
    overrides: Mapping[str, Any],
    options: Mapping[str, Any],
) -> None:
    """Do what ``--mode`` says.

    Args:
      mode: "sample" or "train".
      config: configuration, or None where a checkpoint brings its own.
      workdir: folder of the run.
      overrides: configuration fields such as "sampling.snr" set by flags.
      options: the other flags: checkpoint, raw_weights, seeds, batch_size, eval_folder, precision.

    Raises:
      PdsError: anything that cannot be done, before long work starts.
    """
    jax.config.update("jax_default_matmul_precision", _PRECISIONS[options["precision"]])
    if mode == "train":
        if config is None:
            raise PdsError("--mode=train needs --config=configs/….py")
        training.train(_overridden(config, overrides), workdir)
        print(f"Training states, samples and logs are in {workdir}")
    else:
        sample(config, workdir, overrides, options)


def _overridden(config: ConfigDict, overrides: Mapping[str, Any]) -> ConfigDict:
    config = ConfigDict(config.to_dict())
    for path, value in overrides.items():
        section, field = path.split(".")
        with config.ignore_type():
            config[section][field] = value
    return config


def sample(
    config: ConfigDict | None, workdir: str, overrides: Mapping[str, Any], options: Mapping[str, Any]
) -> pathlib.Path:
    """Make one PNG a seed, a grid and a manifest; goes on where an earlier run with the same settings stopped.

    Args:
      config: see :func:`run`.
      workdir: see :func:`run`; if no checkpoint is named, the training there is sampled.
      overrides: see :func:`run`.
      options: see :func:`run`.

    Returns:
      The folder with the images.

    Raises:
      PdsError: bad settings, a folder of another run, or samples that diverge.
    """
    seeds = files.parse_seeds(options["seeds"])
    batch_size = options["batch_size"]
    if batch_size is not None and batch_size < 1:
        raise PdsError(f"--batch_size={batch_size}: use at least 1")
    checkpoint = options["checkpoint"] or workdir
    trained = assembly.load(checkpoint, config, use_ema=not options["raw_weights"])
    plan = assembly.plan(trained, **{path.split(".")[1]: value for path, value in overrides.items()})
    folder = RunFolder(
        pathlib.Path(workdir) / (options["eval_folder"] or "samples"),
        _identity(trained, plan, seeds, batch_size, options),
    )
    done = folder.done()
    todo = [seed for seed in seeds if seed not in done]
    if len(todo) < len(seeds):
        print(f"{len(seeds) - len(todo)} of {len(seeds)} images are there already")
    _tell(trained, plan, len(todo))
    if not todo and folder.complete:  # nothing to add: the manifest keeps the seconds of the run that made them
        print(f"{len(seeds)} images: {folder.folder}\nManifest: {folder.manifest_path}")
        return folder.folder
    start = time.perf_counter()
    drawn = assembly.draw(trained, plan, todo, batch_size=batch_size, save=folder.save_batch) if todo else None
    path = _grid(folder.folder, seeds)
    folder.finish(
        seeds=options["seeds"],
        images=len(seeds),
        nfe=plan.nfe if drawn is None else drawn.nfe,
        devices=[str(device) for device in jax.devices()],
        precision=options["precision"],
        seconds=time.perf_counter() - start,
        seconds_per_image=None if drawn is None else drawn.seconds / len(todo),
        compile_seconds=None if drawn is None else drawn.compile_seconds,
        config=plan.config.to_dict(),
    )
    print(f"{len(seeds)} images: {folder.folder}\nGrid: {path}\nManifest: {folder.manifest_path}")
    return folder.folder


def _identity(
    trained: assembly.Trained, plan: assembly.Plan, seeds: list[int], batch_size: int | None, options: Mapping[str, Any]
) -> dict[str, Any]:
    """What decides an image besides its seed; in norm mode "batch" that includes its batch."""
    identity = {
        "weights_sha256": trained.digest,
        "model": trained.config.model.to_dict(),
        "precision": options["precision"],
        **plan.describe(),
    }
    if plan.config.sampling.get("norm", "sample") == "batch":
        identity["batches"] = {"size": batch_size, "seeds": seeds}
    return identity


def _tell(trained: assembly.Trained, plan: assembly.Plan, count: int) -> None:
    strength = "no PDS" if plan.preconditioner.is_identity else f"PDS, alpha {plan.alpha:.4g}"
    evaluations = "adaptive" if plan.nfe is None else f"{plan.nfe} network evaluations each"
    print(f"{trained.name}: {count} images of {trained.shape}, N={plan.N} iterations, {evaluations}, {strength}")


def _grid(folder: pathlib.Path, seeds: list[int], most: int = 64) -> pathlib.Path:
    """Draw the first images as one picture."""
    shown = [images.load_png(images.seed_path(folder, seed)) for seed in seeds[:most]]
    path = folder / "grid.png"
    images.save_png(path, images.grid(images.enlarge(np.stack(shown), images.visible_scale(shown[0].shape[0]))))
    return path

