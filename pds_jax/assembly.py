"""Load a trained model, plan how to sample it, draw images.

trained = load("photos")
images = draw(trained, plan(trained, nfe=40, alpha=3.0), seeds=range(16)).images
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import json
import math
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from pds_jax import alpha as alpha_lib
from pds_jax import checkpoints, choose, classes, denoisers, gits, pilot, sampling, sde_lib, strength, table, teacher
from pds_jax import statistics as statistics_lib
from pds_jax.batches import MAX_BATCH, Batches, Decode, Given, OnCost, Saver, Saving, finish_of
from pds_jax.correctors import get_corrector
from pds_jax.data import arrays, datasets
from pds_jax.data.shapes import image_shape
from pds_jax.io.images import to_uint8
from pds_jax.io.manifest import plain
from pds_jax.io.progress import Bar
from pds_jax.keys import checked_seeds
from pds_jax.models import create_model
from pds_jax.preconditioner import Preconditioner
from pds_jax.predictors import get_predictor
from pds_jax.sampler_checks import is_number
from pds_jax.score_fn import get_score_fn, model_options
from pds_jax.steps import named_options
from pds_jax.types import PdsError, ScoreFn

TUNE_IMAGES = 128  # for each strength that alpha="tune" tries


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained model: its configuration, the SDE of its training and its score function.

    Attributes:
      name: where it came from.
      shape: (H, W, C) of one image.
      statistics: of its data, or None.
      digest: SHA-256 of the weights.
      notes: what a user should know about how the weights were read, for example which of two sets.
      decode: arrays (n, H, W, C) of the sampler -> images (n, H', W', C') in [0, 1], on the host, if the model does not
        make images itself; by default their range is that of config.data.
      decoded_shape: (H', W', C'), with ``decode``.
    """

    name: str
    config: ConfigDict
    sde: sde_lib.SDE
    score_fn: ScoreFn
    shape: tuple[int, int, int]
    statistics: statistics_lib.Statistics | None
    digest: str
    notes: tuple[str, ...] = ()
    decode: Decode | None = None
    decoded_shape: tuple[int, int, int] | None = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of one image that :func:`draw` gives."""
        return self.decoded_shape or self.shape

    @property
    def num_classes(self) -> int:
        """Classes that the network was trained with; 0 for a network without labels."""
        return int(self.config.model.get("label_dim", 0))

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the score, for manifests: weights, network, SDE, the data's range, statistics in the network."""
        config = self.config
        options = {name: config.training.get(name) for name in ("sde", "continuous")} if "training" in config else {}
        found = {"weights_sha256": self.digest, "model": config.model.to_dict(), **options}
        found["centered"] = config.data.centered
        if config.model.get("parametrisation") == "wiener" and self.statistics is not None:
            found["network_statistics_sha256"] = _digest(self.statistics.to_range(config.data.centered))
        return found

    @property
    def default_labels(self) -> str | None:
        """Labels where nobody chooses: random ones for a network with classes."""
        return "random" if self.num_classes else None


def load(
    checkpoint: str, config: ConfigDict | None = None, *, use_ema: bool = True, dtype: str | None = None
) -> Trained:
    """Load a trained model.

    Args:
      checkpoint: "fashion", "photos" or "digits"; a folder with model.safetensors and config.json; a training
        workdir; a snapshot of EDM; or a file of score_sde, score_sde_pytorch, diffusers or guided-diffusion, which
        need ``config``.
      config: by default the one saved with the weights.
      use_ema: read the moving average of the weights if there is one, not the raw weights.
      dtype: the network's dtype, instead of config.model.dtype; weights and scores stay float32.

    Returns:
      The model, for :func:`plan` and :func:`draw`.

    Raises:
      PdsError: there is no checkpoint, it is damaged, or it is of another network; the message names the first
        parameter that differs.
    """
    if any((pathlib.Path(checkpoint) / name).is_dir() for name in ("vae", "vqvae")):
        raise PdsError(
            f"{checkpoint} is a latent diffusion model: --mode=sample takes it, pds_jax.latent.trained.load reads it"
        )
    found = checkpoints.load_any(checkpoint, config, use_ema=use_ema)
    config, stats = found.config, found.statistics
    if "pds" in config and "solenoidal" not in config.pds:  # written before this option was
        with config.unlocked():
            config.pds.solenoidal = 0.0
    if dtype is not None:
        with config.unlocked():
            config.model.dtype = dtype
    sde, _ = sde_lib.get_sde(config)
    score_fn = _score_fn(config, sde, jax.device_put(found.params), stats)
    return Trained(str(checkpoint), config, sde, score_fn, image_shape(config), stats, found.digest, found.notes)


def _score_fn(config: ConfigDict, sde: sde_lib.SDE, params: Any, stats: Any) -> ScoreFn:
    model = create_model(config)
    if config.model.get("parametrisation") in denoisers.PARAMETRISATIONS:
        return denoisers.get_score(config, sde, model, params)
    return get_score_fn(
        sde,
        model,
        params,
        continuous=config.training.continuous,
        statistics=None if stats is None else stats.to_range(config.data.centered),
        **model_options(config),
        num_scales=config.model.num_scales,
    )


@dataclasses.dataclass(frozen=True)
class Plan:
    """How images will be sampled: a sampler and its M.

    Attributes:
      config: the configuration with all options.
      N: iterations.
      nfe: network evaluations per image; None for an adaptive solver.
      alpha: strength of M, infinity for none.
      guidance: weight of classifier-free guidance, 1 for none.
      guidance_interval: noise levels std/m_t in (low, high] are guided.
      reasons: what predictor="auto", head_start="auto" and alpha="tune" chose, and why.
      statistics_sha256: of the statistics that prior, steps or times are made of; empty for none.
    """

    sampler: Any
    config: ConfigDict
    N: int
    nfe: int | None
    alpha: float
    preconditioner: Preconditioner
    guidance: float = 1.0
    guidance_interval: classes.Interval = classes.EVERYWHERE
    reasons: tuple[str, ...] = ()
    statistics_sha256: str = ""

    def describe(self) -> dict[str, Any]:
        """What decides the images besides model and seed, for a manifest."""
        sampling_options = self.config.sampling.to_dict()
        return {
            "sampling": sampling_options,
            "pds": {**self.config.pds.to_dict(), "alpha_used": self.alpha},
            "preconditioner": self.preconditioner.describe(),
            "N": self.N,
            "nfe": self.nfe,
            **({"statistics_sha256": self.statistics_sha256} if self.statistics_sha256 else {}),
            **({"chosen_because": list(self.reasons)} if self.reasons else {}),
            **({} if self.guidance == 1 else {"guidance": self.guidance, "interval": list(self.guidance_interval)}),
        }


def plan(
    trained: Trained,
    *,
    nfe: int | None = None,
    speed_up: float | None = None,
    alpha: float | str | None = None,
    guidance: float = 1.0,
    guidance_interval: classes.Interval = classes.EVERYWHERE,
    check: bool = True,
    given: Given | None = None,
    **options: Any,
) -> Plan:
    """Choose the sampler and its options; every option is checked here, before any long work.

    Args:
      trained: the model.
      nfe: network evaluations per image, rounded down to whole iterations. Give nfe or speed_up.
      speed_up: N = int(num_scales / speed_up); by default the configuration's.
      alpha: strength of M: a number > 1, "auto" (closed form in N), "tune" (from the spectrum of a few samples; a flat
        M is considered too unless ``filters`` says what M has), or infinity, which turns PDS off. By default the
        configuration's.
      guidance: weight w of classifier-free guidance, s_u + w (s_c − s_u); unless it is 1, an evaluation counts as two.
      guidance_interval: guide only at noise levels std/m_t in (low, high], in the data's units.
      check: raise an error for a setting that must diverge.
      given: as in :func:`draw`, for alpha="tune".
      **options: fields of config.sampling or config.pds, e.g. predictor="reverse_diffusion", corrector="none", snr=0.1,
        variant="exact", prior="matched", filters="both", and options of the predictor. predictor="auto" chooses all of
        them (``choose``), head_start="auto" the head start alone, grid="gits" the times (``teacher``).

    Returns:
      The plan; ``print(plan.sampler.table)`` shows one row per network evaluation.

    Raises:
      PdsError: an unknown option or value, options that exclude each other, or options that the sampler refuses.
    """
    config = _with_options(trained.config, {**options, **({} if alpha is None else {"alpha": alpha})})
    if alpha is not None and config.pds.r:
        raise PdsError(f"alpha={alpha}: the two-number filter (radius, lam) has no alpha; leave one of the two out")
    if nfe is not None and speed_up is not None:
        raise PdsError(f"nfe={nfe} and speed_up={speed_up:g} both say how many iterations to run; give one of the two")
    _check_count(config, nfe, speed_up)
    if config.sampling.method == "ode" and not nfe is speed_up is None:
        name = "speed_up" if nfe is None else "nfe"
        raise PdsError(f"{name}: method 'ode' chooses its steps itself; leave {name} out, or use method 'pc'")
    each = classes.evaluations_of(guidance, guidance_interval, trained.config.model, trained.name)
    reasons: tuple[str, ...] = ()
    if config.sampling.predictor == "auto":
        n = nfe // each if nfe else int(config.model.num_scales / (speed_up or config.sampling.speed_up))
        choose.refuse_decided([*options, *([] if alpha in (None, math.inf) else ["alpha"])])
        config, reasons = _chosen(trained, config, n, given)
    if nfe is not None:
        speed_up = _speed_up(trained, config, nfe // each)
    if speed_up is not None:
        config.sampling.speed_up = float(speed_up)
    if config.sampling.get("head_start") == "auto":
        config, reasons = _with_head_start(trained, config, given)
    if config.sampling.get("grid") == "gits" and config.sampling.method == "pc" and "teacher" not in config.sampling:
        config, said = _with_gits(trained, config, given)
        reasons = (*reasons, said)
    kinds = [config.pds.filters == "flat"] if "filters" in options else [False, True]
    made = _planned(trained, config, check, given, kinds)
    count = None if made.nfe is None else each * made.nfe
    words: dict[str, Any] = {"guidance": float(guidance), "guidance_interval": guidance_interval}
    words["reasons"] = (*reasons, *made.reasons)
    return dataclasses.replace(made, nfe=count, **words)


def _check_count(config: ConfigDict, nfe: Any, speed_up: Any) -> None:
    """Refuse a number of steps that is no number, or that stands beside times that have one of their own."""
    for name, value in (("nfe", nfe), ("speed_up", speed_up)):
        if value is None:
            continue
        if not is_number(value) or not math.isfinite(value):
            raise PdsError(f"{name}={value!r}: use a number, such as {name}=20")
        if not isinstance(config.sampling.get("grid", ""), str):
            raise PdsError(f"{name}={value:g}: a list of times says how many steps there are; leave one of the two out")


def _chosen(trained: Trained, config: ConfigDict, nfe: int, given: Given | None) -> tuple[ConfigDict, tuple[str, ...]]:
    """The configuration that predictor="auto" stands for, and why."""
    measured, stats = _measured(trained, config, "predictor=auto", given)
    choice = choose.choose(measured, nfe, stats.cross is not None)
    for reason in choice.reasons:
        logging.info("predictor=auto, %d evaluations: %s", nfe, reason)
    return _with_options(config, {"alpha": math.inf, **choice.options}), choice.reasons


def _with_head_start(trained: Trained, config: ConfigDict, given: Given | None) -> tuple[ConfigDict, tuple[str, ...]]:
    """The configuration that head_start="auto" stands for, and why."""
    measured, _ = _measured(trained, config, "head_start=auto", given)
    # The level of T is no head start, but refused where none can be.
    probe = _with_options(config, {"head_start": measured.levels[0]})
    nfe = _evaluations(trained, probe)
    start, reason = choose.head_start(measured, nfe)
    logging.info("head_start=auto, %d evaluations: %s", nfe, reason)
    return _with_options(config, {"head_start": start}), (reason,)


def _with_gits(trained: Trained, config: ConfigDict, given: Given | None) -> tuple[ConfigDict, str]:
    """The configuration with the times that grid="gits" stands for, and how they were found."""
    name = config.sampling.predictor
    if not get_predictor(name).any_grid:
        raise PdsError(f"predictor {name!r} steps through the SDE's own levels: use grid 'uniform', not 'gits'")
    own = named_options(config.sampling.get("solver_options", ""))
    coeff = own.pop("coeff", config.sampling.get("coeff", 1.15))
    text = ",".join(f"{option}={value}" for option, value in own.items())
    edm = _with_options(config, {"grid": "edm", "solver_options": text})
    if "coeff" in edm.sampling:
        del edm.sampling["coeff"]
    stats = _statistics(trained, config)
    get_sampler = functools.partial(sampling.get_sampling_fn, sde=trained.sde, shape=trained.shape, statistics=stats)
    made: Any = get_sampler(edm, check=False)
    count, eps = len(made.times), float(made.times[-1])
    # The same without the network: what is refused is refused before the teacher's run.
    n = teacher.STEPS
    blank = {"cost": np.zeros((n, n)), "teacher": np.linspace(made.times[0], eps, n)}
    get_sampler(_with_options(config, blank), check=False)
    key = "" if given else _decided_by(trained)
    costs = teacher.costs(trained.sde, trained.shape, eps, _measured_score(trained, given, teacher.IMAGES), key)
    times = gits.gits(trained.sde, eps, count, coeff=coeff, **costs)
    said = f"grid=gits: {count} of {teacher.STEPS} times of DDIM, from {teacher.EVALUATIONS} evaluations"
    return _with_options(edm, {"grid": [float(t) for t in times]}), said


def _measured_score(trained: Trained, given: Given | None, images: int) -> ScoreFn:
    """The score to measure with so many images: what is given, else of random classes, else the network's own."""
    if given is None and trained.num_classes:
        seeds = range(images)
        labels = classes.labels_of(trained.default_labels, seeds, trained.num_classes, trained.name)
        given = classes.score_of(trained.score_fn, trained.sde, seeds, labels, trained.num_classes)
    return trained.score_fn if given is None else given(range(images))[1]


def _decided_by(trained: Trained, *more: str) -> str:
    """A key for what is remembered of a checkpoint's score."""
    return hashlib.sha256(json.dumps([plain(trained.identity), *more], sort_keys=True).encode()).hexdigest()


def _measured(
    trained: Trained, config: ConfigDict, what: str, given: Given | None
) -> tuple[choose.Measured, statistics_lib.Statistics]:
    """What ``choose`` measures of the checkpoint, and the statistics."""
    stats = _statistics(trained, config)
    if stats is None or config.sampling.method != "pc":
        raise PdsError(f"{what} needs method 'pc' and the data's statistics: pass --statistics=FILE.npz")
    moments = stats.to_range(config.data.centered)
    score_fn = _measured_score(trained, given, choose.IMAGES)
    measure = functools.partial(choose.measure, score_fn, trained.sde, moments, trained.shape)
    # What a prompt or a class measures is not the checkpoint's.
    key = _decided_by(trained, _digest(moments))
    return measure() if given else choose.remembered(trained.name, key, measure), stats


def _planned(
    trained: Trained,
    config: ConfigDict,
    check: bool,
    given: Given | None = None,
    kinds: Sequence[bool] = (False, True),
) -> Plan:
    """The plan that a configuration describes; ``kinds`` of M as in ``alpha.tune``."""
    stats = _statistics(trained, config)
    get_sampler = functools.partial(
        sampling.get_sampling_fn, config, trained.sde, trained.shape, statistics=stats, check=check
    )
    sampler = get_sampler()
    steps = 0 if sampler.nfe is None else sampler.steps
    chosen = strength.get_strength(config, trained.sde, steps, stats)
    of_m, said = config, tuple[str, ...]()
    if isinstance(chosen, str):
        tuned = tune_alpha(trained, config, stats, given=given, kinds=kinds)
        chosen, said = tuned.alpha, (tuned.said,)
        of_m = config if tuned.gain is None else _with_options(config, _flat(tuned.gain))
    alpha = chosen
    m = strength.get_preconditioner(of_m, trained.shape, alpha, stats)
    if not m.is_identity:
        sampler = get_sampler(m)
    if config.sampling.get("pilot_gain"):
        if given is not None:
            raise PdsError("pilot_gain draws its pilot without classes, prompts or conditions: leave it out with them")
        sampler = pilot.with_gains(sampler, trained.score_fn)
    count = None if sampler.nfe is None else int(sampler.nfe)
    uses = getattr(sampler, "moments", None) is not None or config.sampling.get("grid") == "spectrum"
    digest = _digest(stats.moments(config.data.centered)) if uses and stats is not None else ""
    return Plan(sampler, config, steps, count, alpha, m, reasons=said, statistics_sha256=digest)


def _digest(arrays: Sequence[Any]) -> str:
    return hashlib.sha256(b"".join(np.asarray(value, "<f4").tobytes() for value in arrays)).hexdigest()


def _with_options(config: ConfigDict, options: dict[str, Any]) -> ConfigDict:
    """A copy of the configuration with fields of its sampling and pds sections replaced."""
    changed = ConfigDict(config.to_dict())
    for name, value in options.items():
        value = value.tolist() if isinstance(value, np.ndarray) else value
        value = None if (name, value) == ("head_start", "off") else value
        own = sampling.option_names() | {"pilot_gain", "solver_options"}
        missing = "sampling" if name in own else "pds" if name in ("gain", "solenoidal") else None
        section = next((s for s in ("sampling", "pds") if name in changed[s]), missing)
        if section is None:
            known = sorted({*changed.sampling, *changed.pds, *own})
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise PdsError(f"unknown sampling option {name!r}; known: {', '.join(known)}{hint}")
        with changed.ignore_type():
            changed[section][name] = value
    return changed


def _speed_up(trained: Trained, config: ConfigDict, nfe: int) -> float:
    """The speed-up that leaves the iterations of an NFE."""
    options, scales = config.sampling, int(config.model.num_scales)
    steps = get_predictor(options.predictor), get_corrector(options.corrector)
    own = {name: options[name] for name in steps[0].options if name in options}
    own |= named_options(options.get("solver_options", ""))
    n = table.iterations(nfe, *steps, options.n_steps_each, options.noise_removal, own)
    if n > scales:
        raise PdsError(f"nfe={nfe} makes N={n} iterations, more than the model's num_scales={scales}; ask for fewer")
    if options.corrector != "none" and options.get("corrector_levels") is not None:
        n = _most_iterations(trained, config, n, nfe)
    return _speed_up_of(scales, n)


def _speed_up_of(scales: int, n: int) -> float:
    # The small term keeps int(num_scales / speed_up) from rounding down to one iteration less.
    return max(scales / (n + 1e-6), 1.0)


def _most_iterations(trained: Trained, config: ConfigDict, n: int, nfe: int) -> int:
    """The most iterations, n or more, of an NFE where few of them have a corrector."""
    scales = int(config.model.num_scales)
    low, high = n, min(int(nfe), scales) + 1
    while high - low > 1:
        middle = (low + high) // 2
        tried = {"speed_up": _speed_up_of(scales, middle), "head_start": None}
        fits = _evaluations(trained, _with_options(config, tried)) <= nfe
        low, high = (middle, high) if fits else (low, middle)
    return low


def _evaluations(trained: Trained, config: ConfigDict) -> int:
    """Those of the sampler that a configuration describes, without M."""
    stats = _statistics(trained, config)
    made: Any = sampling.get_sampling_fn(config, trained.sde, trained.shape, statistics=stats, check=False)
    return int(made.nfe)


def _statistics(trained: Trained, config: ConfigDict) -> statistics_lib.Statistics | None:
    path = config.pds.get("statistics", "")
    stats = statistics_lib.load(path) if path else trained.statistics
    if stats is not None:
        stats.check_shape(trained.shape)
    return stats


def _flat(gain: float) -> dict[str, Any]:
    """Options of M = c I."""
    return {"filters": "flat", "gain": gain, "alpha": math.inf, "freq_mask_path": "", "space_mask_path": ""}


def tune_alpha(
    trained: Trained,
    config: ConfigDict,
    stats: Any,
    *,
    images: int = TUNE_IMAGES,
    alphas: Sequence[float] = alpha_lib.CANDIDATES,
    first_seed: int = 2**31,
    given: Given | None = None,
    kinds: Sequence[bool] = (False, True),
) -> alpha_lib.Tuned:
    """The α, or the flat M, whose samples have the power spectrum closest to the data's (``alpha.search``).

    E = √mean_k (log P_samples(k) − log P_data(k))² over the radii k, for M of the statistics and for M = c I with
    c = α/(α − 1), the same strengths of both.

    Candidates that must diverge are passed over; the seeds of the samples are far from those of a run.

    Raises:
      PdsError: no statistics, or every α diverges.
    """
    from pds_jax.metrics.simple import spectrum_error

    if stats is None:
        raise PdsError("alpha=tune compares spectra and needs the data's statistics: pass --statistics=FILE.npz")

    def error(alpha: float, flat: bool) -> float | None:
        try:
            options = _flat(alpha_lib.largest_gain(alpha)) if flat else {"alpha": alpha}
            candidate = _planned(trained, _with_options(config, options), check=True)
            raw, seeds = dataclasses.replace(trained, decode=None), range(first_seed, first_seed + images)
            label = f"trying gain={options['gain']:.3g}" if flat else f"trying alpha={alpha:g}"
            words: dict[str, Any] = {"label": label, "labels": trained.default_labels}
            found = draw(raw, candidate, seeds, given=given, **words)
        except PdsError:
            return None  # diverges
        made = found.images if trained.decode else arrays.to_unit(found.images, datasets.get_range(trained.config))
        return spectrum_error(made if trained.decode else np.clip(made, 0.0, 1.0), stats.power)

    return alpha_lib.tune(error, alphas, kinds)


def labelled(trained: Trained, plan: Plan, seeds: Sequence[int], labels: classes.Labels) -> Given:
    """What :func:`draw` takes as ``given``: the score of some of the seeds for their classes, guided as planned.

    Raises PdsError as ``classes.labels_of``.
    """
    found = classes.labels_of(labels, seeds, trained.num_classes, trained.name)
    options = (plan.guidance, plan.guidance_interval)
    return classes.score_of(trained.score_fn, trained.sde, seeds, found, trained.num_classes, *options)


@dataclasses.dataclass(frozen=True)
class Drawn:
    """Images and their cost.

    Attributes:
      images: (n, H, W, C) float32, 1.0 is white; not clipped, so values can lie slightly outside [0, 1]. None if
        ``save`` was given.
      nfe: network evaluations per image (for an adaptive solver, their mean).
      seconds: of sampling, without compilation.
      compile_seconds: of compilation, or of loading the program from the cache.
      trajectory: (step, t, images so far, 1.0 is white), if asked for.
      batch_size: images per batch, at the end of the run.
    """

    images: np.ndarray
    nfe: float
    seconds: float
    compile_seconds: float
    trajectory: list[tuple[int, float, np.ndarray]]
    batch_size: int

    @property
    def pixels(self) -> np.ndarray:
        """The images as bytes, clipped, as the command line writes them: (n, H, W, C) uint8."""
        return to_uint8(self.images)


def draw(
    trained: Trained,
    plan: Plan,
    seeds: Sequence[int],
    *,
    batch_size: int | None = None,
    adapt: bool = False,
    label: str = "sampling",
    save: Saver | None = None,
    on_cost: OnCost | None = None,
    on_step: Callable[[int, int], None] | None = None,
    trajectory_every: int = 0,
    given: Given | None = None,
    labels: classes.Labels = None,
) -> Drawn:
    """Sample one image per seed; the image of a seed does not depend on its batch (with norm="sample").

    Args:
      trained: the model.
      plan: how to sample.
      seeds: one image is made for each.
      batch_size: images per batch, by default all, at most 64. With the same batch size, images are equal to the bit;
        with another, up to rounding.
      adapt: halve the batch until it fits into memory, instead of raising an error.
      label: text of the progress bar.
      save: called after every batch with its seeds and images (n, H, W, C), uint8 or, with a declared data.range,
        float32, clipped; runs while the next batch is computed.
      on_cost: called before the first batch with the batch size, the number of batches, and the cost of one.
      on_step: called with (steps done, total steps) of all batches, between compiled blocks of steps.
      trajectory_every: keep the images every this many steps; 0 keeps none.
      given: seeds -> (condition, score function), see ``controllable_generation``; by default no condition.
      labels: class of each seed, −1 for none; "random" (from the seed) or "none". A network with classes needs them.

    Returns:
      Images and their cost.

    Raises:
      OutOfMemory: a batch does not fit, and ``adapt`` is off.
      PdsError: no seeds or bad ones, labels that do not fit network and seeds, or the samples diverged.
    """
    todo = [int(seed) for seed in checked_seeds(seeds)]
    if not todo:
        raise PdsError("no seeds were given; ask for at least one image")
    for name, value, least in (("batch_size", batch_size, 1), ("trajectory_every", trajectory_every, 0)):
        if value is not None and not (is_number(value) and int(value) == value >= least):
            raise PdsError(f"{name}={value!r}: use a whole number of at least {least}")
    unscale = datasets.get_data_inverse_scaler(trained.config)
    given = given or labelled(trained, plan, todo, labels)

    def show(x: Any) -> Any:
        return trained.decode(x) if trained.decode else arrays.from_unit(unscale(x), value_range)

    value_range = datasets.get_range(trained.config)
    finish = None if save is None or trained.decode else finish_of(unscale, value_range)
    size = batch_size or min(MAX_BATCH, len(todo))
    images: list[np.ndarray] = []
    evaluations: list[float] = []
    trajectory: list[tuple[int, float, np.ndarray]] = []
    start = time.perf_counter()
    with Bar(label, "step", on_step) as bar, Saving(save, trained.decode) as saving:
        make = Batches(plan.sampler, plan.N, given, size, adapt, on_cost, finish, bar, trajectory_every)
        while todo:
            batch, run = make(todo)
            todo = todo[len(batch) :]
            evaluations.append(float(np.mean(run.nfe)) * make.evaluations)
            trajectory = [(step, t, show(x[: len(batch)])) for step, t, x in run.trajectory] or trajectory
            if save is None:
                images.append(np.asarray(show(run.x[: len(batch)]), np.float32))
            else:
                saving.add(run.x, batch)
    return Drawn(
        images=np.concatenate(images) if images else np.empty((0, *trained.shape), np.float32),
        nfe=float(np.mean(evaluations)),
        seconds=time.perf_counter() - start - make.aside_seconds,
        compile_seconds=make.compile_seconds,
        trajectory=trajectory,
        batch_size=make.size,
    )
