"""Load a trained model, plan how to sample it, draw images.

trained = load("photos")
images = draw(trained, plan(trained, nfe=40, alpha=3.0), seeds=range(16)).images
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from pds_jax import alpha as alpha_lib
from pds_jax import automatic, choose, classes, pilot, sampling, strength, time_grids
from pds_jax import options as options_lib
from pds_jax.batches import MAX_BATCH, Batches, Given, OnCost, Saver, Saving, finish_of
from pds_jax.data import arrays, datasets
from pds_jax.io.images import to_uint8
from pds_jax.io.progress import Bar
from pds_jax.keys import checked_seeds
from pds_jax.loading import Trained, digest_of, load
from pds_jax.preconditioner import Preconditioner
from pds_jax.types import PdsError, is_number

__all__ = ["Drawn", "Plan", "Trained", "draw", "labelled", "load", "plan", "tune_alpha"]

TUNE_IMAGES = 128  # for each strength that alpha="tune" tries


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
      alpha: strength of M: a number > 1, "auto" (closed form in N), "tune" (from a few samples; a flat
        M is considered too unless ``filters`` is given), or infinity, which turns PDS off, with masks too. By default
        the configuration's; 5 with masks. The flat M (``filters="flat"``) and the two-number filter have no alpha.
      guidance: weight w of classifier-free guidance, s_u + w (s_c − s_u); unless it is 1, an evaluation counts as two.
      guidance_interval: guide only at noise levels std/m_t in (low, high], in the data's units.
      check: raise an error for a setting that is certain to diverge.
      given: condition and score of the images, as in :func:`draw`, for the options that are measured on samples:
        alpha="tune", predictor="auto", head_start="auto", grid="gits". By default, random classes, guided, for a
        network with classes.
      **options: fields of config.sampling or config.pds, e.g. predictor="reverse_diffusion", corrector="none", snr=0.1,
        variant="exact", prior="matched", filters="both", and options of the predictor. predictor="auto" chooses all of
        them (``choose``), head_start="auto" the head start alone, grid="gits" the times (``teacher``).

    Returns:
      The plan; ``print(plan.sampler.table)`` shows one row per network evaluation.

    Raises:
      PdsError: an unknown option or value, options that exclude each other, an option without effect, or options that
        the sampler refuses.
    """
    config = options_lib.with_options(trained.config, {**options, **options_lib.alpha_options(alpha)})
    strength.check(config.pds, options)
    if "gain" in options and config.pds.alpha == "tune":
        raise PdsError(f"gain={options['gain']}: alpha=tune chooses the gain of a flat M; leave one of the two out")
    if alpha is not None and config.pds.r:
        raise PdsError(f"alpha={alpha}: the two-number filter (radius, lam) has no alpha; leave one of the two out")
    if nfe is not None and speed_up is not None:
        raise PdsError(f"nfe={nfe} and speed_up={speed_up:g} both say how many iterations to run; give one of the two")
    options_lib.check_count(config, nfe, speed_up)
    if config.sampling.method == "ode" and (nfe is not None or speed_up is not None):
        name = "speed_up" if nfe is None else "nfe"
        raise PdsError(f"{name}: method 'ode' chooses its steps itself; leave {name} out, or use method 'pc'")
    options_lib.check_used({**options, "alpha": alpha}, trained.config)
    each = classes.evaluations_of(guidance, guidance_interval, trained.config.model, trained.name)
    if given is None and trained.num_classes:
        given = functools.partial(_of_random_classes, trained, guidance, guidance_interval)
    reasons: tuple[str, ...] = ()
    if config.sampling.predictor == "auto":
        n = nfe // each if nfe else int(config.model.num_scales / (speed_up or config.sampling.speed_up))
        if n < 1:
            raise PdsError("predictor=auto: no evaluation is left of nfe or speed_up; use a larger nfe")
        choose.refuse_decided([*options, *([] if alpha in (None, math.inf) else ["alpha"])])
        config, reasons = automatic.chosen(trained, config, n, given)
    if nfe is not None:
        speed_up = options_lib.speed_up_of(trained, config, nfe // each)
    if speed_up is not None:
        config.sampling.speed_up = float(speed_up)
    config, measured = automatic.measured(trained, config, given)
    is_flat = config.pds.filters == "flat"
    kinds = [is_flat] if is_flat or "filters" in options else [False, True]
    made = _planned(trained, config, check, given, kinds)
    count = None if made.nfe is None else each * made.nfe
    return dataclasses.replace(
        made,
        nfe=count,
        guidance=float(guidance),
        guidance_interval=guidance_interval,
        reasons=(*reasons, *measured, *made.reasons),
    )


def _of_random_classes(trained: Trained, weight: float, interval: classes.Interval, seeds: Sequence[int]) -> Any:
    """What is measured of a network with classes, as ``given``."""
    labels = classes.labels_of("random", seeds, trained.num_classes, trained.name)
    options = (trained.num_classes, weight, interval)
    return classes.score_of(trained.score_fn, trained.sde, seeds, labels, *options)(seeds)


def _planned(
    trained: Trained,
    config: ConfigDict,
    check: bool,
    given: Given | None = None,
    kinds: Sequence[bool] = (False, True),
) -> Plan:
    """The plan that a configuration describes; ``kinds`` of M as in ``alpha.tune``."""
    stats = options_lib.statistics_of(trained, config)
    get_sampler = functools.partial(
        sampling.get_sampling_fn, config, trained.sde, trained.shape, statistics=stats, check=check
    )
    if config.sampling.get("pilot_gain") and given is not None:
        raise PdsError("pilot_gain draws its pilot without classes, prompts or conditions: leave it out with them")
    sampler = get_sampler()
    steps = 0 if sampler.nfe is None else sampler.steps
    chosen = strength.get_strength(config, trained.sde, steps, stats)
    of_m, said = config, tuple[str, ...]()
    if isinstance(chosen, str):
        tuned = tune_alpha(trained, config, stats, given=given, kinds=kinds)
        chosen, said = tuned.alpha, (tuned.said,)
        if math.isinf(chosen):
            of_m = options_lib.with_options(config, options_lib.flat_options(tuned.gain or 1.0))
    alpha = chosen
    m = strength.get_preconditioner(of_m, trained.shape, alpha, stats)
    if not m.is_identity:
        sampler = get_sampler(m)
    if config.sampling.get("pilot_gain"):
        sampler = pilot.with_gains(sampler, trained.score_fn)
    count = None if sampler.nfe is None else int(sampler.nfe)
    uses = getattr(sampler, "moments", None) is not None or config.sampling.get("grid") == "spectrum"
    digest = digest_of(stats.moments(config.data.centered)) if uses and stats is not None else ""
    return Plan(sampler, config, steps, count, alpha, m, reasons=said, statistics_sha256=digest)


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
    """The α, or the flat M, with samples nearest to those of DPM-Solver++(2M) at 40 evaluations (``alpha.search``).

    Nearest is the least ``metrics.simple.distance_from`` as many such samples, for M of the statistics and for
    M = c I with c = α/(α − 1), at the same strengths. Both are samples of the same network, so M is not made to
    correct what the network itself gets wrong; the power spectrum alone does not see structure.

    Candidates that are certain to diverge are skipped; the seeds of the samples are far from those of a run. Derived.

    Raises:
      PdsError: no statistics, every α diverges, or what :func:`plan` and :func:`draw` refuse.
    """
    from pds_jax.metrics.simple import distance_from

    if stats is None:
        raise PdsError("alpha=tune needs the data's statistics: pass --statistics=FILE.npz")
    raw, labels = dataclasses.replace(trained, decode=None), trained.default_labels if given is None else None
    config = options_lib.with_options(config, {"pilot_gain": False})  # its runs would be most of the work

    def planned(alpha: float, flat: bool, check: bool = True) -> Plan:
        return _planned(trained, options_lib.with_options(config, options_lib.strength_options(alpha, flat)), check)

    def sample(made: Plan, first: int, label: str) -> np.ndarray:
        seeds = range(first, first + images)
        found = draw(raw, made, seeds, adapt=True, label=label, given=given, labels=labels).images
        return found if trained.decode else np.clip(arrays.to_unit(found, datasets.get_range(trained.config)), 0.0, 1.0)

    planned(alphas[0], kinds[0], check=False)  # what is refused is refused before anything is drawn
    best = _planned(trained, _many_steps(trained, config), check=True)
    label = f"{best.nfe} NFE of DPM-Solver++(2M), to compare with"
    distance = distance_from(sample(best, first_seed + images, label))

    def error(alpha: float, flat: bool) -> float | None:
        label = f"trying gain={alpha_lib.largest_gain(alpha):.3g}" if flat else f"trying alpha={alpha:g}"
        try:
            return distance(sample(planned(alpha, flat), first_seed, label))
        except sampling.SamplingDiverged:
            return None

    return alpha_lib.tune(error, alphas, kinds)


def _many_steps(trained: Trained, config: ConfigDict) -> ConfigDict:
    """DPM-Solver++(2M) without M, in enough steps that more change little; other options are left out."""
    count = min(alpha_lib.TUNE_NFE, int(config.model.num_scales))
    times = time_grids.edm_rho(trained.sde, trained.sde.default_eps, count)  # to the least noise of the training
    solver = {
        "method": "pc", "predictor": "dpmpp_2m", "corrector": "none", "grid": times, "prior": "matched",
        "variant": "paper", "probability_flow": False, "noise_removal": True, "solenoidal": 0.0, "speed_up": 1.0,
    }  # fmt: skip
    found = options_lib.with_options(config, {**solver, **options_lib.strength_options(math.inf, False)})
    for name in (sampling.option_names() | {"pilot_gain", "solver_options"}) - {*solver, "snr", "norm"}:
        if name in found.sampling:
            del found.sampling[name]
    return found


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
      batch_size: images per batch, by default all, at most 64. With the same batch size, images are equal bit for
        bit; with another, up to rounding.
      adapt: halve the batch until it fits into memory, instead of raising an error.
      label: text of the progress bar.
      save: called after every batch with its seeds and images (n, H, W, C), uint8 or, with a declared data.range,
        float32, clipped; runs while the next batch is computed.
      on_cost: called before the first batch with the batch size, the number of batches, and the cost of one.
      on_step: called with (steps done, total steps) of all batches, between compiled blocks of steps.
      trajectory_every: keep the images every this many steps; 0 keeps none.
      given: what is given of the images, such as their known part: a function of the seeds of a batch that returns
        (condition, score_fn), see ``controllable_generation``; by default no condition and the score of ``labels``.
      labels: class of each seed, −1 for none; "random" (from the seed) or "none". A network with classes needs them.

    Returns:
      Images and their cost.

    Raises:
      OutOfMemory: a batch does not fit, and ``adapt`` is off.
      PdsError: no seeds or bad ones, labels that do not fit network and seeds or beside ``given``, a trajectory of an
        adaptive solver, or the samples diverged.
    """
    todo = [int(seed) for seed in checked_seeds(seeds)]
    if not todo:
        raise PdsError("no seeds were given; ask for at least one image")
    for name, value, least in (("batch_size", batch_size, 1), ("trajectory_every", trajectory_every, 0)):
        if value is not None and not (is_number(value) and int(value) == value >= least):
            raise PdsError(f"{name}={value!r}: use a whole number of at least {least}")
    if given is not None and labels is not None:
        raise PdsError("labels and given both say what the images are conditioned on: give one of the two")
    if trajectory_every and plan.nfe is None:
        raise PdsError(f"trajectory_every={trajectory_every}: method 'ode' has no steps to keep; use method 'pc', or 0")
    unscale = datasets.get_data_inverse_scaler(trained.config)
    given = given or labelled(trained, plan, todo, labels)

    def show(x: Any) -> Any:
        return trained.decode(x) if trained.decode else arrays.from_unit(unscale(x), value_range)

    value_range = datasets.get_range(trained.config)
    finish = None if save is None or trained.decode else finish_of(unscale, value_range)
    size = batch_size or min(MAX_BATCH, len(todo))
    images: list[np.ndarray] = []
    evaluations: list[float] = []
    trajectories: list[list[tuple[int, float, np.ndarray]]] = []
    start = time.perf_counter()
    with Bar(label, "step", on_step) as bar, Saving(save, trained.decode) as saving:
        make = Batches(plan.sampler, plan.N, given, size, adapt, on_cost, finish, bar, trajectory_every)
        while todo:
            batch, run = make(todo)
            todo = todo[len(batch) :]
            each = np.broadcast_to(run.nfe, np.shape(run.nfe) or (len(batch),))[: len(batch)]
            evaluations.extend(float(count) * make.evaluations for count in each)
            trajectories.append([(step, t, show(x[: len(batch)])) for step, t, x in run.trajectory])
            if save is None:
                images.append(np.asarray(show(run.x[: len(batch)]), np.float32))
            else:
                saving.add(run.x, batch)
    return Drawn(
        images=np.concatenate(images) if images else np.empty((0, *trained.shape), np.float32),
        nfe=float(np.mean(evaluations)),
        seconds=time.perf_counter() - start - make.aside_seconds,
        compile_seconds=make.compile_seconds,
        trajectory=[
            (*parts[0][:2], np.concatenate([x for _, _, x in parts])) for parts in zip(*trajectories, strict=True)
        ],
        batch_size=make.size,
    )
