"""Making the images of a run: one PNG a seed, a grid and a manifest, in a folder that a second run goes on with."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from pds_jax import assembly, files, images
from pds_jax.manifest import RunFolder
from pds_jax.types import PdsError


def sample(
    config: ConfigDict | None, workdir: str, overrides: Mapping[str, Any], options: Mapping[str, Any]
) -> pathlib.Path:
    """``--mode=sample``: goes on where an earlier run with the same settings stopped.

    Args:
      config: configuration, or None where a checkpoint brings its own.
      workdir: folder of the run; if no checkpoint is named, the training there is sampled.
      overrides: configuration fields such as "sampling.snr" set by flags.
      options: the other flags.

    Returns:
      The folder with the images.

    Raises:
      PdsError: bad settings, a folder of another run, or samples that diverge.
    """
    seeds = files.parse_seeds(options["seeds"])
    trained = load(config, workdir, options)
    place = pathlib.Path(workdir) / (options["eval_folder"] or "samples")
    return make(trained, plan(trained, overrides), seeds, place, options).folder


def load(config: ConfigDict | None, workdir: str, options: Mapping[str, Any]) -> assembly.Trained:
    """The model that the flags name; see :func:`sample`."""
    return assembly.load(options["checkpoint"] or workdir, config, use_ema=not options["raw_weights"])


def plan(trained: assembly.Trained, overrides: Mapping[str, Any]) -> assembly.Plan:
    """How the flags want the model to be sampled; see :func:`sample`."""
    return assembly.plan(trained, **{path.split(".")[1]: value for path, value in overrides.items()})


def make(
    trained: assembly.Trained,
    plan: assembly.Plan,
    seeds: Sequence[int],
    place: pathlib.Path,
    options: Mapping[str, Any],
    *,
    given: assembly.Given | None = None,
    identity: Mapping[str, Any] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> RunFolder:
    """Make the images of some seeds that are not in a folder yet, a grid and the manifest.

    Args:
      trained: the model.
      plan: how.
      seeds: which images.
      place: the folder.
      options: the other flags: seeds, batch_size, precision.
      given: what is known of the images, see ``assembly.draw``.
      identity: what else decides the images.
      facts: what else the manifest is to say.

    Returns:
      The folder, complete.

    Raises:
      PdsError: a folder of another run, or samples that diverge.
    """
    batch_size = options["batch_size"]
    if batch_size is not None and batch_size < 1:
        raise PdsError(f"--batch_size={batch_size}: use at least 1")
    folder = RunFolder(place, {**_identity(trained, plan, seeds, batch_size, options), **(identity or {})})
    done = folder.done()
    todo = [seed for seed in seeds if seed not in done]
    if len(todo) < len(seeds):
        print(f"{len(seeds) - len(todo)} of {len(seeds)} images are there already")
    _tell(trained, plan, len(todo))
    if not todo and folder.complete:  # nothing to add: the manifest keeps the seconds of the run that made them
        print(f"{len(seeds)} images: {folder.folder}\nManifest: {folder.manifest_path}")
        return folder
    start = time.perf_counter()
    drawn = None
    if todo:
        drawn = assembly.draw(trained, plan, todo, batch_size=batch_size, save=folder.save_batch, given=given)
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
        **(facts or {}),
    )
    print(f"{len(seeds)} images: {folder.folder}\nGrid: {path}\nManifest: {folder.manifest_path}")
    return folder


def _identity(
    trained: assembly.Trained,
    plan: assembly.Plan,
    seeds: Sequence[int],
    batch_size: int | None,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """What decides an image besides its seed; in norm mode "batch" that includes its batch."""
    identity = {
        "weights_sha256": trained.digest,
        "model": trained.config.model.to_dict(),
        "precision": options["precision"],
        **plan.describe(),
    }
    if plan.config.sampling.get("norm", "sample") == "batch":
        identity["batches"] = {"size": batch_size, "seeds": list(seeds)}
    return identity


def _tell(trained: assembly.Trained, plan: assembly.Plan, count: int) -> None:
    strength = "no PDS" if plan.preconditioner.is_identity else f"PDS, alpha {plan.alpha:.4g}"
    evaluations = "adaptive" if plan.nfe is None else f"{plan.nfe} network evaluations each"
    print(f"{trained.name}: {count} images of {trained.shape}, N={plan.N} iterations, {evaluations}, {strength}")


def _grid(folder: pathlib.Path, seeds: Sequence[int], most: int = 64) -> pathlib.Path:
    """Draw the first images as one picture."""
    shown = [images.load_png(images.seed_path(folder, seed)) for seed in seeds[:most]]
    path = folder / "grid.png"
    images.save_png(path, images.grid(images.enlarge(np.stack(shown), images.visible_scale(shown[0].shape[0]))))
    return path

