"""``--mode=sample``: draw the images of a run into a folder: one file per seed, a grid and a manifest; resumable."""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from pds_jax import assembly, classes, parallel, processes
from pds_jax import options as options_lib
from pds_jax.cli import classifier, unused
from pds_jax.cli.options import RunOptions
from pds_jax.data import datasets
from pds_jax.io import files, images
from pds_jax.io.manifest import RunFolder
from pds_jax.keys import GENERATOR
from pds_jax.plugins import Plugin
from pds_jax.score_fn import precision_effect
from pds_jax.types import PdsError, ScoreFn

_LARGE = 64 << 20  # bytes of weights


def sample(options: RunOptions) -> pathlib.Path:
    """``--mode=sample``: one image a seed; resumes an interrupted run with the same settings.

    Returns:
      The folder with the images.

    Raises:
      PdsError: bad settings, a folder of another run, or samples that diverge.
    """
    place, batching = options.workdir / (options.eval_folder or "samples"), batching_of(options)
    if _is_latent(options):
        from pds_jax.cli import latent

        job = latent.job(options)
        trained = job.model.trained
        batching = dataclasses.replace(batching, batch_size=latent.at_once(options))
        made = plan(trained, options, given=job.given, **job.guided)
        return draw_to_folder(
            trained, made, options.seeds, place, batching, given=job.given, identity=job.identity
        ).folder
    trained = load(options)
    labels = in_turn(options.labels, options.seeds)
    guide = classifier.read(options, trained, labels)
    if guide is None or trained.num_classes:
        classes.labels_of(labels, options.seeds, trained.num_classes, trained.name)  # refused before a plan is made
    interval = classes.EVERYWHERE if options.guidance_interval is None else options.guidance_interval
    made = plan(
        trained,
        options,
        conditional=guide is not None,
        guidance=options.guidance_weight,
        guidance_interval=interval,
    )
    chosen: dict[str, Any] = {} if labels is None else {"labels": options.labels}
    if isinstance(options.labels, tuple):
        chosen["first_seed"] = options.seeds[0]
    more: dict[str, Any] = {}
    if guide is not None:
        more["given"] = guide.given(trained, made, options.seeds)
        chosen |= guide.identity()
        more["facts"] = guide.facts(made, more["given"](options.seeds[:1])[1])
    return draw_to_folder(trained, made, options.seeds, place, batching, labels=labels, identity=chosen, **more).folder


def _is_latent(options: RunOptions) -> bool:
    """Whether the weights are a latent diffusion model, without importing one where nothing hints at it."""
    names = ("prompt", "prompts", "negative_prompt", "image_size", "decode_tile")
    flag = next((name for name in names if getattr(options, name) is not None), None)
    if flag is None and not (pathlib.Path(options.weights) / "model_index.json").is_file():
        return False
    from pds_jax.cli import latent

    return latent.names_pipeline(options, flag)


def in_turn(labels: Sequence[int] | str | None, seeds: Sequence[int]) -> Sequence[int] | str | None:
    """The class of each seed, see :func:`dealt`; a word stays."""
    return labels if labels is None or isinstance(labels, str) else dealt(labels, seeds)


def dealt(labels: Sequence[int], seeds: Sequence[int]) -> list[int]:
    """A list of classes, repeated from the first seed on: that of a seed does not depend on which others are listed."""
    return [labels[(seed - seeds[0]) % len(labels)] for seed in seeds]


def load(options: RunOptions) -> assembly.Trained:
    """The model that the options name."""
    use_ema = not options.raw_weights
    return assembly.load(options.weights, options.configuration(), use_ema=use_ema, dtype=options.dtype)


def plan(trained: assembly.Trained, options: RunOptions, *, conditional: bool = False, **more: Any) -> assembly.Plan:
    """How the options want the model to be sampled; ``conditional`` with a condition that ``more`` does not hold.

    Raises:
      PdsError: what ``assembly.plan`` refuses, or an option that this sampler does not use.
    """
    pilot_gain = options.sampler.pilot_gain
    if pilot_gain is None:
        pilot_gain = trained.config.sampling.get("pilot_gain")
    if pilot_gain and (conditional or trained.num_classes or more.get("given") is not None):
        raise PdsError(
            "--pilot_gain measures its gains on images without classes, prompts or conditions, which these images "
            "have: leave it out (--nopilot_gain where the configuration sets it)"
        )
    start, chosen = time.perf_counter(), options.sampler.given()
    options_lib.check_used(chosen, trained.config, "--")
    made = assembly.plan(trained, **chosen, **more)
    unused.check(chosen, made)
    if made.config.pds.alpha == "tune":
        print(f"alpha=tune: {made.reasons[-1]}; chosen in {time.perf_counter() - start:.0f} s")
    elif made.preconditioner.is_identity:
        print("PDS is off (no --alpha)" if "alpha" not in chosen else "PDS is off (alpha is infinite)")
    return made


@dataclasses.dataclass(frozen=True)
class Batching:
    """Options of a run that do not change its images.

    Attributes:
      batch_size: images at once, where it is given; else
      max_batch: the most at once; None halves them when memory runs out.
      shard: (index, count): the share of the seeds to make.
      plugin: files that the sampler may come from.
    """

    batch_size: int | None = None
    max_batch: int | None = assembly.MAX_BATCH
    shard: tuple[int, int] = (0, 1)
    precision: str = "float32"
    plugin: tuple[Plugin, ...] = ()


def batching_of(options: RunOptions) -> Batching:
    """The part of the options that says how images are made."""
    return Batching(**{field.name: getattr(options, field.name) for field in dataclasses.fields(Batching)})


def draw_to_folder(
    trained: assembly.Trained,
    plan: assembly.Plan,
    seeds: Sequence[int],
    place: pathlib.Path,
    batching: Batching = Batching(),
    *,
    given: assembly.Given | None = None,
    labels: classes.Labels = None,
    identity: Mapping[str, Any] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> RunFolder:
    """Draw the images of the seeds that are not in a folder yet, and write a grid and the manifest.

    Args:
      trained: the model.
      plan: the sampler.
      seeds: which images.
      place: the folder.
      batching: batches and shares.
      given: condition and score function of the seeds, see ``assembly.draw``; by default those of `labels`.
      labels: class of each seed, see there.
      identity: what else decides the images.
      facts: additional entries of the manifest.

    Raises:
      PdsError: a folder of another run, or samples that diverge.
    """
    together = is_together(plan)
    share = _share(batching.shard, together)
    batch_size, adapt = _batch_size(batching, -(-len(seeds) // share[1]), together)
    if together:
        parallel.check_last_batch(len(seeds), batch_size)
    given = given or assembly.labelled(trained, plan, seeds, labels)
    facts = {**_labels_record(seeds, labels), **(facts or {})}
    facts |= {"chosen_because": list(plan.reasons)} if plan.reasons else {}
    identity = {**_identity(trained, plan, seeds, batch_size, batching), **(identity or {})}
    folder, done = _opened(place, identity, trained, facts)
    todo = _todo(seeds, done, share, batch_size if together else None)
    folder.check_room(len(todo), trained.image_shape)
    if done:
        print(f"{len(done.keys() & set(seeds))} of {len(seeds)} images are there already")
    print(_description(trained, plan, len(todo)))
    start = time.perf_counter()
    drawn = _draw_missing(trained, plan, todo, folder, batching, share, batch_size, adapt, given) if todo else None
    done = folder.done()
    missing = len(set(seeds) - done.keys())
    if missing or (together and not processes.is_first_process()):
        print(f"{missing} of {len(seeds)} images are still to come from other processes: {folder.folder}")
        return folder
    if drawn is not None or not folder.complete:  # with nothing to add, the record of the run that made them stays
        facts |= {"precision": batching.precision, "seconds": time.perf_counter() - start, **_cost(plan, drawn, todo)}
        _finish(folder, done, {**facts, "config": plan.config.to_dict()})
    images_of = "1 image" if len(seeds) == 1 else f"{len(seeds)} images"
    grid = folder.folder / "grid.png"
    print(f"Grid: {grid}\nManifest: {folder.manifest_path}\n{images_of}: {folder.folder}")
    return folder


def is_together(plan: assembly.Plan) -> bool:
    """Whether an image depends on the others of its batch, so that all processes draw every batch together."""
    return bool(plan.config.sampling.get("norm", "sample") == "batch")


def _opened(
    place: pathlib.Path, identity: dict[str, Any], trained: assembly.Trained, facts: Mapping[str, Any]
) -> tuple[RunFolder, dict[int, str]]:
    """The folder and the images in it; refuses one whose images have another size or other labels."""
    image_format = images.ImageFormat.of(trained.image_shape, datasets.get_range(trained.config))
    folder = RunFolder(place, identity, image_format)
    done = folder.done()
    _check_size(folder, done, trained.image_shape)
    _check_labels(folder, done, facts.get("labels"))
    return folder, done


def _draw_missing(
    trained: assembly.Trained,
    plan: assembly.Plan,
    todo: Sequence[int],
    folder: RunFolder,
    batching: Batching,
    share: tuple[int, int],
    batch_size: int,
    adapt: bool,
    given: assembly.Given,
) -> tuple[assembly.Drawn, float]:
    """Draw and save images; returns their cost and the measured effect of the precision."""
    start, writes = time.perf_counter(), not is_together(plan) or processes.is_first_process()
    effect = _report_precision(trained, batching.precision)
    _report_memory(trained, given(todo[:1])[1], batch_size)
    remembered = folder.part(share).get("batch_size") if adapt else None
    drawn = assembly.draw(
        trained,
        plan,
        todo,
        batch_size=min(int(remembered or batch_size), batch_size),
        adapt=adapt,
        save=folder.save_batch if writes else _nothing,
        on_cost=functools.partial(_report_cost, plan.N),
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
    return drawn, effect


def _cost(plan: assembly.Plan, made: tuple[assembly.Drawn, float] | None, todo: Sequence[int]) -> dict[str, Any]:
    """Entries of the manifest; None for those of a run that had nothing left to draw."""
    names = ("precision_effect", "batch_size", "seconds_per_image", "compile_seconds")
    if made is None:
        return {"nfe": plan.nfe, **dict.fromkeys(names)}
    drawn, effect = made
    values = (effect, drawn.batch_size, drawn.seconds / len(todo), drawn.compile_seconds)
    return {"nfe": drawn.nfe, **dict(zip(names, values, strict=True))}


def _finish(folder: RunFolder, done: Collection[int], facts: dict[str, Any]) -> None:
    """Write the grid and the manifest of all images of the folder, those of earlier seeds too."""
    seeds, before = sorted(done), files.read_json(folder.manifest_path).get("labels")
    _grid(folder, seeds)
    if isinstance(before, dict) and isinstance(facts.get("labels"), dict):
        facts = {**facts, "labels": {**before, **facts["labels"]}}
    devices = [str(device) for device in parallel.devices()]
    folder.finish(seeds=files.format_seeds(seeds), images=len(seeds), devices=devices, generator=GENERATOR, **facts)


def _labels_record(seeds: Sequence[int], labels: classes.Labels) -> dict[str, Any]:
    """What the manifest says of the classes: each image's, or how they are chosen."""
    if labels is None or isinstance(labels, str):
        return {} if labels is None else {"labels": labels}
    return {"labels": {str(seed): int(label) for seed, label in zip(seeds, labels, strict=True)}}


def _check_size(folder: RunFolder, done: Collection[int], shape: tuple[int, int, int]) -> None:
    """Refuse to go on in a folder with images of another size, which the manifest does not hold."""
    there = tuple(folder.load(min(done)).shape) if done else shape
    if there != shape:
        raise PdsError(
            f"{folder.folder} holds images (H, W, C) = {there}, now they are {shape}; choose another --workdir or "
            "--eval_folder"
        )


def _check_labels(folder: RunFolder, done: Collection[int], labels: Any) -> None:
    """Refuse to go on where an image that is done has another label than it would get now."""
    recorded = files.read_json(folder.manifest_path).get("labels")
    if not (isinstance(recorded, dict) and isinstance(labels, dict)):
        return
    for seed in sorted(done):
        old, new = (record.get(str(seed)) for record in (recorded, labels))
        if None not in (old, new) and old != new:
            raise PdsError(
                f"{folder.folder} holds the image of seed {seed} with label {old}; here its label would be {new}. "
                "Choose another folder (--eval_folder), or the --labels and --seeds of that run"
            )


def _batch_size(batching: Batching, count: int, together: bool) -> tuple[int, bool]:
    """Images at once, and whether to halve them when memory runs out."""
    if batching.batch_size is not None and batching.batch_size < 1:
        raise PdsError(f"--batch_size={batching.batch_size}: use at least 1")
    if batching.batch_size is not None and batching.max_batch != assembly.MAX_BATCH:
        raise PdsError("--batch_size and --max_batch both say how many images to make at once; leave one of them out")
    if batching.max_batch is None and together:
        raise PdsError("--max_batch=auto would change the images of --norm=batch; give --batch_size, or --norm=sample")
    limit = assembly.MAX_BATCH if batching.max_batch is None else batching.max_batch
    return batching.batch_size or min(limit, count), batching.max_batch is None


def _share(shard: tuple[int, int], together: bool) -> tuple[int, int]:
    """Which of how many shares of the seeds this process makes: the shard's, dealt to the processes of the run."""
    if together and shard[1] > 1:
        raise PdsError("--norm=batch makes an image depend on its batch, which --shard would cut; use --norm=sample")
    index, count = (0, 1) if together else processes.process_share()
    return shard[0] * count + index, shard[1] * count


def _todo(seeds: Sequence[int], done: Mapping[int, str], share: tuple[int, int], whole: int | None) -> list[int]:
    """Seeds of this share whose images are missing; whole batches of ``whole`` where one decides the others."""
    if whole is None:
        return [seed for seed in seeds[share[0] :: share[1]] if seed not in done]
    batches = [seeds[first : first + whole] for first in range(0, len(seeds), whole)]
    needed = np.array([any(seed not in done for seed in batch) for batch in batches], bool)
    needed = processes.gather(needed)[0]  # all processes make them together: as the first sees the folder
    return [seed for batch, need in zip(batches, needed, strict=True) if need for seed in batch]


def _nothing(seeds: Sequence[int], batch: Any) -> None:
    """Another process saves them."""


def _report_cost(steps: int, size: int, batches: int, cost: parallel.Cost) -> None:
    words = [f"compiled, or read from the cache, in {cost.compile_seconds:.3g} s"]
    words.append(f"{batches} {'batch' if batches == 1 else 'batches'} of {size} {'image' if size == 1 else 'images'}")
    if cost.device_bytes is not None:
        words.append(f"about {cost.device_bytes / 2**20:.0f} MiB on each device")
    if cost.step_seconds is not None:
        words.append(f"{cost.step_seconds:.3g} s a step, about {cost.step_seconds * steps * batches:.3g} s in all")
    print("; ".join(words))


def _report_memory(trained: assembly.Trained, score_fn: ScoreFn, batch_size: int) -> None:
    """What a large network needs, before it is compiled."""
    from pds_jax.bench.memory import peak_bytes

    weights = sum(getattr(leaf, "nbytes", 0) for leaf in jax.tree.leaves(score_fn))
    if weights < _LARGE:
        return
    x, t = (jax.ShapeDtypeStruct(shape, np.float32) for shape in ((1, *trained.shape), (1,)))
    image = peak_bytes(lambda score_fn, x, t: score_fn(x, t), score_fn, x, t)
    total = weights + image * -(-batch_size // len(parallel.devices()))
    print(
        f"memory, estimated: {weights / 2**20:.0f} MiB of weights and at most {image / 2**20:.0f} MiB an image, "
        f"{total / 2**30:.1f} GiB on each device for {batch_size} at once; --batch_size, --precision=bfloat16 need less"
    )


def _report_precision(trained: assembly.Trained, precision: str) -> float:
    """What a precision below float32 does to the score; 0 in float32, and not measured for latents."""
    if precision == "float32" or trained.decode is not None:
        return 0.0
    effect = precision_effect(trained.score_fn, trained.sde, trained.shape)
    print(f"--precision={precision} changes the score by {effect:.2g} of its largest value on this device")
    return effect


def _identity(
    trained: assembly.Trained, plan: assembly.Plan, seeds: Sequence[int], batch_size: int, batching: Batching
) -> dict[str, Any]:
    """What decides an image besides its seed; in norm mode "batch" that includes its batch."""
    identity = {
        **trained.identity,
        "precision": batching.precision,
        "generator": GENERATOR,
        **plan.describe(),
    }
    if batching.plugin:
        identity["plugin"] = [dataclasses.asdict(plugin) for plugin in batching.plugin]
    if plan.config.sampling.get("norm", "sample") == "batch":
        identity["batches"] = {"size": batch_size, "seeds": list(seeds)}
    return identity


def _description(trained: assembly.Trained, plan: assembly.Plan, count: int) -> str:
    """What is about to be made."""
    parts = [f"{trained.name}: {count} {'image' if count == 1 else 'images'} of {trained.image_shape}"]
    parts += ["an adaptive solver"] if plan.nfe is None else [f"N={plan.N}", f"{plan.nfe} network evaluations each"]
    if not plan.preconditioner.is_identity:
        parts += [f"PDS, alpha {plan.alpha:.4g}" if math.isfinite(plan.alpha) else "PDS"]
    return ", ".join(parts)


def _grid(folder: RunFolder, seeds: Sequence[int], most: int = 64) -> pathlib.Path:
    """Draw the first images as one picture."""
    shown, path = folder.visible(seeds[:most]), folder.folder / "grid.png"
    images.save_png(path, images.grid(images.enlarge(shown, images.visible_scale(shown.shape[1]))))
    return path
