"""Making the images of a run: one PNG a seed, a grid and a manifest, in a folder that a second run goes on with."""

from __future__ import annotations

import functools
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from pds_jax import assembly, parallel
from pds_jax.io import files, images
from pds_jax.io.manifest import RunFolder
from pds_jax.score_fn import precision_effect
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
    return assembly.load(
        options["checkpoint"] or workdir, config, use_ema=not options["raw_weights"], dtype=dtype_of(options)
    )


def dtype_of(options: Mapping[str, Any]) -> str | None:
    """The network's dtype that --precision asks for; None for the configuration's."""
    return "bfloat16" if options["precision"] == "bfloat16" else None


def plan(trained: assembly.Trained, overrides: Mapping[str, Any]) -> assembly.Plan:
    """How the flags want the model to be sampled; see :func:`sample`."""
    start = time.perf_counter()
    made = assembly.plan(trained, **{path.split(".")[1]: value for path, value in overrides.items()})
    if made.config.pds.alpha == "tune":
        print(f"alpha=tune: {made.alpha:.4g}, chosen in {time.perf_counter() - start:.0f} s")
    return made


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
    together = plan.config.sampling.get("norm", "sample") == "batch"
    share = _share(options, together)
    batch_size, adapt = _batch_size(options, -(-len(seeds) // share[1]), together)
    writes = not together or parallel.is_first_process()
    folder = RunFolder(place, {**_identity(trained, plan, seeds, batch_size, options), **(identity or {})})
    done = folder.done()
    todo = _todo(seeds, done, share, batch_size if together else None)
    if done:
        print(f"{len(done.keys() & set(seeds))} of {len(seeds)} images are there already")
    _tell(trained, plan, len(todo))
    start = time.perf_counter()
    drawn, effect = None, 0.0
    if todo:
        effect = _tell_precision(trained, options["precision"])
        remembered = folder.part(share).get("batch_size") if adapt else None
        drawn = assembly.draw(
            trained,
            plan,
            todo,
            batch_size=min(int(remembered or batch_size), batch_size),
            adapt=adapt,
            save=folder.save_batch if writes else _nothing,
            tell=functools.partial(_tell_cost, plan.N),
            given=given,
        )
        if writes:
            folder.note_part(
                share,
                images=len(todo),
                batch_size=drawn.batch_size,
                devices=parallel.devices(),
                seconds=time.perf_counter() - start,
                seconds_per_image=drawn.seconds / len(todo),
                compile_seconds=drawn.compile_seconds,
            )
        done = folder.done()
    missing = len(set(seeds) - done.keys())
    if missing or not writes:
        print(f"{missing} of {len(seeds)} images are still to come from other processes: {folder.folder}")
        return folder
    path = folder.folder / "grid.png"
    if drawn is not None or not folder.complete:  # with nothing to add, the record of the run that made them stays
        path = _grid(folder.folder, seeds)
        folder.finish(
            seeds=options["seeds"],
            images=len(seeds),
            nfe=plan.nfe if drawn is None else drawn.nfe,
            devices=[str(device) for device in jax.devices()],
            precision=options["precision"],
            precision_effect=None if drawn is None else effect,
            batch_size=None if drawn is None else drawn.batch_size,
            seconds=time.perf_counter() - start,
            seconds_per_image=None if drawn is None else drawn.seconds / len(todo),
            compile_seconds=None if drawn is None else drawn.compile_seconds,
            config=plan.config.to_dict(),
            **(facts or {}),
        )
    print(f"{len(seeds)} images: {folder.folder}\nGrid: {path}\nManifest: {folder.manifest_path}")
    return folder


def _batch_size(options: Mapping[str, Any], count: int, together: bool) -> tuple[int, bool]:
    """Images at once, and whether to halve them when memory runs out."""
    batch_size, largest = options["batch_size"], options.get("max_batch") or str(assembly.MAX_BATCH)
    if batch_size is not None and batch_size < 1:
        raise PdsError(f"--batch_size={batch_size}: use at least 1")
    if largest != "auto" and not (largest.isascii() and largest.isdigit() and int(largest) > 0):
        raise PdsError(f"--max_batch={largest}: use a number of at least 1, or auto")
    if largest == "auto" and together:
        raise PdsError("--max_batch=auto would change the images of --norm=batch; give --batch_size, or --norm=sample")
    limit = assembly.MAX_BATCH if largest == "auto" else int(largest)
    return batch_size or min(limit, count), largest == "auto"


def _share(options: Mapping[str, Any], together: bool) -> tuple[int, int]:
    """Which of how many shares of the seeds this process makes: the shard's, dealt to the processes of the run."""
    shard, shards = files.parse_shard(options.get("shard"))
    if together and shards > 1:
        raise PdsError("--norm=batch makes an image depend on its batch, which --shard would cut; use --norm=sample")
    process, processes = (0, 1) if together else parallel.process_share()
    return shard * processes + process, shards * processes


def _todo(seeds: Sequence[int], done: Mapping[int, str], share: tuple[int, int], whole: int | None) -> list[int]:
    """Seeds of this share whose images are missing; whole batches of ``whole`` where one decides the others."""
    if whole is None:
        return [seed for seed in seeds[share[0] :: share[1]] if seed not in done]
    batches = [seeds[first : first + whole] for first in range(0, len(seeds), whole)]
    needed = np.array([any(seed not in done for seed in batch) for batch in batches], bool)
    needed = parallel.gather(needed)[0]  # all processes make them together: as the first sees the folder
    return [seed for batch, need in zip(batches, needed, strict=True) if need for seed in batch]


def _nothing(seeds: Sequence[int], batch: Any) -> None:
    """Another process saves them."""


def _tell_cost(steps: int, size: int, batches: int, cost: parallel.Cost) -> None:
    words = [f"compiled, or read from the cache, in {cost.compile_seconds:.3g} s"]
    words.append(f"{batches} batches of {size} images")
    if cost.device_bytes is not None:
        words.append(f"about {cost.device_bytes / 2**20:.0f} MiB on each device")
    if cost.step_seconds is not None:
        words.append(f"{cost.step_seconds:.3g} s a step, about {cost.step_seconds * steps * batches:.3g} s in all")
    tqdm.write("; ".join(words))


def _tell_precision(trained: assembly.Trained, precision: str) -> float:
    """What a precision below float32 does to the score; 0 in float32."""
    if precision == "float32":
        return 0.0
    effect = precision_effect(trained.score_fn, trained.sde, trained.shape)
    print(f"--precision={precision} changes the score by {effect:.2g} of its largest value on this device")
    return effect


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

