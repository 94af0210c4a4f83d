"""From names to things that run: a checkpoint to a trained model, options to a plan, a plan to images.

    trained = load("photos")
    images = draw(trained, plan(trained, nfe=40, alpha=3.0), seeds=range(16)).images
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from pds_jax import checkpoints, denoisers, parallel, preconditioner, sampling, sde_lib, table
from pds_jax import statistics as statistics_lib
from pds_jax.alpha import alpha_auto, choose
from pds_jax.correctors import get_corrector
from pds_jax.data import datasets
from pds_jax.data.shapes import image_shape
from pds_jax.io.images import to_uint8_on_device
from pds_jax.models import create_model
from pds_jax.preconditioner import Preconditioner
from pds_jax.predictors import get_predictor
from pds_jax.score_fn import get_score_fn, model_options
from pds_jax.types import PdsError, ScoreFn

MAX_BATCH = 64
_ALPHA_OF_THE_PAPERS = 5.0


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained model, ready to be sampled.

    Attributes:
      name: where it came from.
      config: its configuration.
      sde: SDE of training.
      score_fn: its score function, a pytree.
      shape: (H, W, C) of one image.
      statistics: of its data, or None.
      digest: SHA-256 of the weights.
    """

    name: str
    config: ConfigDict
    sde: sde_lib.SDE
    score_fn: ScoreFn
    shape: tuple[int, int, int]
    statistics: statistics_lib.Statistics | None
    digest: str


def load(
    checkpoint: str, config: ConfigDict | None = None, *, use_ema: bool = True, dtype: str | None = None
) -> Trained:
    """Load a trained model.

    Args:
      checkpoint: "photos", "digits", a folder with model.safetensors and config.json, a training workdir, or an
        original file of score_sde, score_sde_pytorch or diffusers (these need ``config``).
      config: configuration; by default the one that lies with the weights.
      use_ema: the moving average of the weights rather than the raw ones, where both are there.
      dtype: in which the network computes, "float32" or "bfloat16", in place of config.model.dtype. Weights and scores
        stay float32.

    Returns:
      The model.

    Raises:
      PdsError: nothing there, damaged, or of another network; the message names the first parameter that differs.
    """
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
    return Trained(str(checkpoint), config, sde, score_fn, image_shape(config), stats, found.digest)


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
    """How images are going to be made.

    Attributes:
      sampler: the sampler, a pytree.
      config: the configuration with every override in it.
      N: iterations.
      nfe: network evaluations an image; None if the solver decides as it goes.
      alpha: strength of M, infinity for none.
      preconditioner: M.
    """

    sampler: Any
    config: ConfigDict
    N: int
    nfe: int | None
    alpha: float
    preconditioner: Preconditioner

    def describe(self) -> dict[str, Any]:
        """What decides the images besides model and seed, for a manifest."""
        sampling_options = self.config.sampling.to_dict()
        return {
            "sampling": sampling_options,
            "pds": {**self.config.pds.to_dict(), "alpha_used": self.alpha},
            "preconditioner": self.preconditioner.describe(),
            "N": self.N,
            "nfe": self.nfe,
        }


def plan(
    trained: Trained,
    *,
    nfe: int | None = None,
    speed_up: float | None = None,
    alpha: float | str | None = None,
    check: bool = True,
    **options: Any,
) -> Plan:
    """Decide how to sample; everything that can be refused is refused here.

    Args:
      trained: the model.
      nfe: network evaluations an image, rounded down to whole iterations; or
      speed_up: N = int(num_scales / speed_up). By default the configuration's.
      alpha: strength of PDS: a number > 1, "auto" (closed form in N), "tune" (by the spectrum of a few samples), or
        infinity for none. By default the configuration's.
      check: refuse a setting that must diverge.
      **options: fields of config.sampling or config.pds, e.g. predictor="reverse_diffusion", corrector="none", snr=0.1,
        variant="exact", prior="matched", filters="both".

    Returns:
      The plan.

    Raises:
      PdsError: an unknown option or value, or what the samplers refuse.
    """
    config = _with_options(trained.config, {**options, **({} if alpha is None else {"alpha": alpha})})
    if nfe is not None:
        # The small term keeps int(num_scales / speed_up) from rounding down to one iteration less.
        speed_up = max(config.model.num_scales / (_iterations(config, nfe) + 1e-6), 1.0)
    if speed_up is not None:
        config.sampling.speed_up = float(speed_up)
    stats = _statistics(trained, config)
    sampler = _sampler(trained, config, None, stats, check)
    steps = int(getattr(sampler, "steps", 0))
    strength = _alpha(trained, config, steps, stats, check)
    m = _preconditioner(trained, config, strength, stats)
    if not m.is_identity:
        sampler = _sampler(trained, config, m, stats, check)
    count = int(sampler.nfe) if hasattr(sampler, "nfe") else None
    return Plan(sampler, config, steps, count, strength, m)


def _with_options(config: ConfigDict, options: dict[str, Any]) -> ConfigDict:
    """A copy of the configuration with fields of its sampling and pds sections replaced."""
    changed = ConfigDict(config.to_dict())
    for name, value in options.items():
        section = next((s for s in ("sampling", "pds") if name in changed[s]), None)
        if section is None:
            known = sorted([*changed.sampling, *changed.pds])
            raise PdsError(f"unknown sampling option {name!r}; known: {', '.join(known)}")
        with changed.ignore_type():
            changed[section][name] = value
    return changed


def _iterations(config: ConfigDict, nfe: int) -> int:
    options = config.sampling
    steps = get_predictor(options.predictor), get_corrector(options.corrector)
    return table.iterations(nfe, *steps, options.n_steps_each, options.noise_removal)


def _statistics(trained: Trained, config: ConfigDict) -> statistics_lib.Statistics | None:
    path = config.pds.get("statistics", "")
    stats = statistics_lib.load(path) if path else trained.statistics
    if stats is not None:
        stats.check_shape(trained.shape)
    return stats


def _sampler(trained: Trained, config: ConfigDict, m: Any, stats: Any, check: bool) -> Any:
    return sampling.get_sampling_fn(config, trained.sde, trained.shape, m, statistics=stats, check=check)


def _alpha(trained: Trained, config: ConfigDict, steps: int, stats: Any, check: bool) -> float:
    pds = config.pds
    value = pds.alpha
    masks = pds.freq_mask_path or pds.space_mask_path
    if value in ("auto", "tune"):
        _check_chosen(config, value)
    if isinstance(value, str) and value not in ("auto", "tune"):
        try:
            value = float(value)
        except ValueError:
            raise PdsError(f"alpha={value!r}: use a number above 1, auto, tune or inf") from None
    if value == "auto":
        options = config.sampling
        return float(
            alpha_auto(
                trained.sde,
                steps,
                options.corrector != "none",
                options.snr,
                options.n_steps_each,
                stats,
                config.data.centered,
            )
        )
    if value == "tune":
        return tune_alpha(trained, config, stats)
    if math.isnan(value) or value <= 1:
        raise PdsError(f"alpha={value}: use a number above 1 (the papers use 5), auto, tune, or inf for no PDS")
    return _ALPHA_OF_THE_PAPERS if masks and math.isinf(value) else float(value)


def _check_chosen(config: ConfigDict, how: str) -> None:
    """Refuse alpha=auto and alpha=tune where there is no alpha to choose."""
    options = config.sampling
    traits = get_predictor(options.predictor)
    if options.method == "ode" or not traits.uses_M:
        solver = "method 'ode'" if options.method == "ode" else f"predictor {options.predictor!r}"
        raise PdsError(f"alpha={how}: {solver} has no noise for M to act on; use alpha=inf, or sde_dpmpp_2m")
    if config.pds.r:
        raise PdsError(f"alpha={how}: the two-number filter (radius, lam) has no alpha; leave one of the two out")
    if how == "auto" and traits.any_grid and options.predictor != "none":
        raise PdsError(
            f"alpha=auto removes the lag of predictor reverse_diffusion, which {options.predictor!r} does not have; "
            "use alpha=tune"
        )


def _preconditioner(trained: Trained, config: ConfigDict, alpha: float, stats: Any) -> Preconditioner:
    """M of the configuration, with its solenoidal term."""
    m, strength = _filters(trained, config, alpha, stats), float(config.pds.get("solenoidal", 0.0))
    return preconditioner.with_solenoidal(m, strength, trained.shape) if strength else m


def _filters(trained: Trained, config: ConfigDict, alpha: float, stats: Any) -> Preconditioner:
    pds = config.pds
    if pds.r and (pds.freq_mask_path or pds.space_mask_path):
        raise PdsError("choose either masks from files or the two-number filter (radius, lam), not both")
    if pds.r:
        return preconditioner.from_radius(trained.shape, pds.r, pds.lam)
    if pds.freq_mask_path or pds.space_mask_path:
        m = preconditioner.from_masks(pds.freq_mask_path or None, pds.space_mask_path or None, alpha)
    elif math.isinf(alpha):
        return preconditioner.identity()
    elif stats is None:
        raise PdsError(
            f"alpha={alpha:g} needs the data's statistics: pass --statistics=FILE.npz (make one with "
            "scripts/make_statistics.py), --freq_mask_path, or the two-number filter --radius and --lam"
        )
    else:
        m = preconditioner.from_statistics(stats, alpha, pds.filters, pds.recipe)
    m.check_shape(trained.shape)
    return m


@dataclasses.dataclass(frozen=True)
class Drawn:
    """Images and what they cost.

    Attributes:
      images: (n, H, W, C) float32, in [0, 1] up to what the model overshoots; none where each batch was saved.
      nfe: network evaluations an image (the mean where an adaptive solver decided).
      seconds: of sampling, without compilation.
      compile_seconds: of compilation, or of loading the program from the cache.
      trajectory: (step, t, images so far in [0, 1]) where asked for.
      batch_size: images at once, in the end.
    """

    images: np.ndarray
    nfe: float
    seconds: float
    compile_seconds: float
    trajectory: list[tuple[int, float, np.ndarray]]
    batch_size: int


Progress = Callable[[int, int], None]
Saver = Callable[[Sequence[int], np.ndarray], None]
# Seeds -> (condition of the sampler or None, score function), for those images.
Given = Callable[[Sequence[int]], tuple[Any, ScoreFn]]
# (Images at once, batches still to make, what one costs) -> nothing.
Teller = Callable[[int, int, parallel.Cost], None]


def draw(
    trained: Trained,
    plan: Plan,
    seeds: Sequence[int],
    *,
    batch_size: int | None = None,
    adapt: bool = False,
    label: str = "sampling",
    save: Saver | None = None,
    tell: Teller | None = None,
    trajectory_every: int = 0,
    given: Given | None = None,
) -> Drawn:
    """Make one image a seed; image s depends on s alone, not on its batch (norm mode "sample").

    Args:
      trained: the model.
      plan: how.
      seeds: which images.
      batch_size: images at once, also where there are fewer seeds: with the same number, an image is the same to the
        bit, with another to float32's rounding. By default all, at most 64.
      adapt: halve the batch as often as it does not fit into memory, instead of raising.
      label: of the progress bar.
      save: called after every batch with its seeds and images (n, H, W, C) uint8, while the next is being made; the
        images leave the devices then, as bytes.
      tell: called before the first batch with what it will cost.
      trajectory_every: keep the images so far every so many steps; 0 keeps none.
      given: what is known of the images of some seeds, see ``controllable_generation``; by default nothing.

    Returns:
      The images.

    Raises:
      OutOfMemory: a batch does not fit, and ``adapt`` is off.
      PdsError: no seeds, or the samples diverged.
    """
    from tqdm import tqdm

    todo = [int(seed) for seed in seeds]
    if not todo:
        raise PdsError("no seeds were given; ask for at least one image")
    unscale = datasets.get_data_inverse_scaler(trained.config)
    given = given or (lambda seeds: (None, trained.score_fn))
    finish = None if save is None else _bytes_of(unscale)
    batches = _Batches(plan, given, batch_size or min(MAX_BATCH, len(todo)), adapt, tell, finish)
    images: list[np.ndarray] = []
    evaluations: list[float] = []
    trajectory: list[tuple[int, float, np.ndarray]] = []
    saving: concurrent.futures.Future[None] | None = None
    start = time.perf_counter()
    with (
        tqdm(desc=label, unit="step", leave=False, mininterval=0.5) as bar,
        concurrent.futures.ThreadPoolExecutor(1) as pool,
    ):
        while todo:
            batch, run = batches.next(todo, _progress(bar, bar.n), trajectory_every, bar)
            todo = todo[len(batch) :]
            evaluations.append(float(np.mean(run.nfe)))
            trajectory = [(step, t, unscale(x[: len(batch)])) for step, t, x in run.trajectory] or trajectory
            if saving is not None:
                saving.result()
            if save is None:
                images.append(np.asarray(unscale(run.x[: len(batch)]), np.float32))
            else:
                saving = pool.submit(_fetch_and_save, run.x, batch, save)
        if saving is not None:
            saving.result()
    return Drawn(
        images=np.concatenate(images) if images else np.empty((0, *trained.shape), np.float32),
        nfe=float(np.mean(evaluations)),
        seconds=time.perf_counter() - start - batches.aside_seconds,
        compile_seconds=batches.compile_seconds,
        trajectory=trajectory,
        batch_size=batches.size,
    )


@functools.cache
def _bytes_of(unscale: Callable[[Any], Any]) -> parallel.Finish:
    """Images in the model's range to bytes, and whether they are finite."""
    return lambda x: to_uint8_on_device(unscale(x))


def _fetch_and_save(images: parallel.Later, batch: Sequence[int], save: Saver) -> None:
    pixels, finite = (part[: len(batch)] for part in images.fetch())
    if not finite.all():
        raise PdsError(f"the image of seed {batch[int(np.argmin(finite))]} holds NaN or infinity and cannot be written")
    save(batch, pixels)


class _Batches:
    """Batch after batch, each of a size that fits into memory."""

    def __init__(
        self, plan: Plan, given: Given, size: int, adapt: bool, tell: Teller | None, finish: parallel.Finish | None
    ):
        self.plan, self.given, self.size, self.adapt, self.tell = plan, given, size, adapt, tell
        self.finish = finish
        self.compile_seconds = self.aside_seconds = 0.0
        self._warm = 0

    def next(
        self, todo: list[int], progress: Progress, trajectory_every: int, bar: Any
    ) -> tuple[list[int], sampling.Run]:
        """Make the next images of those to do; their seeds and the run."""
        while True:
            batch = todo[: self.size]
            filled = batch + [batch[-1]] * (self.size - len(batch))  # one program serves the last batch too
            keys = sampling.image_keys(filled)
            try:
                condition, score_fn = self.given(filled)
                if self._warm != self.size:
                    self._prepare(keys, score_fn, condition, -(-len(todo) // self.size), bar)
                return batch, parallel.sample(
                    self.plan.sampler,
                    keys,
                    score_fn,
                    progress=progress,
                    trajectory_every=trajectory_every,
                    condition=condition,
                    finish=self.finish,
                )
            except parallel.OutOfMemory:
                if not self.adapt or self.size == 1:
                    raise
                self.size //= 2
                logging.warning("out of memory; going on with %d images at once", self.size)

    def _prepare(self, keys: Any, score_fn: ScoreFn, condition: Any, count: int, bar: Any) -> None:
        """Compile ahead of the clock, and say what the run will cost."""
        start = time.perf_counter()
        parallel.warm_up(self.plan.sampler, keys, score_fn, condition)
        compiling = time.perf_counter() - start
        self.compile_seconds += compiling
        if self.tell is not None:
            cost = parallel.cost(self.plan.sampler, keys, score_fn, condition)
            self.tell(self.size, count, dataclasses.replace(cost, compile_seconds=compiling))
        self.aside_seconds += time.perf_counter() - start
        self._warm = self.size
        bar.total = bar.n + max(self.plan.N, 1) * count


def _progress(bar: Any, offset: int) -> Progress:
    return lambda done, _: bar.update(offset + done - bar.n)


# --- choosing alpha by a few samples ---------------------------------------------------------------------------

TUNE_ALPHAS = (2.5, 4.0, 7.0, 15.0, math.inf)


def tune_alpha(
    trained: Trained,
    config: ConfigDict,
    stats: Any,
    *,
    images: int = 128,
    alphas: Sequence[float] = TUNE_ALPHAS,
    first_seed: int = 2**31,
) -> float:
    """The α whose samples have the power spectrum closest to the data's.

    E(α) = √mean_k (log P_samples(k) − log P_data(k))² over the radii k. Candidates first, then the two that lie
    between the best of them and its neighbours; of those that are as good, the middle one (``alpha.choose``).

    Args:
      trained: the model.
      config: its configuration with the options of the run.
      stats: statistics of the data.
      images: samples per α.
      alphas: candidates; those that must diverge are passed over.
      first_seed: seeds of the samples, far from those of a run.

    Returns:
      The best α.

    Raises:
      PdsError: no statistics.
    """
    from pds_jax.metrics.simple import spectrum_error

    if stats is None:
        raise PdsError("alpha=tune compares spectra and needs the data's statistics: pass --statistics=FILE.npz")
    errors: dict[float, float] = {}

    def attempt(alpha: float) -> None:
        try:
            candidate = plan(trained, **_options_of(config), alpha=alpha)
            found = draw(trained, candidate, range(first_seed, first_seed + images), label=f"trying alpha={alpha:g}")
        except PdsError:
            return  # diverges: not a candidate
        errors[alpha] = spectrum_error(np.clip(found.images, 0.0, 1.0), stats.power)

    for alpha in alphas:
        attempt(alpha)
    if not errors:
        raise PdsError("alpha=tune: every alpha diverges at this number of steps; use more steps")
    for alpha in between(errors, choose(errors)):
        attempt(alpha)
    return choose(errors)


def between(tried: Collection[float], best: float) -> list[float]:
    """The strengths half way, in log(α − 1), from the best of those tried to its neighbours; none beyond the ends."""
    ordered = sorted(tried)
    at = ordered.index(best)
    middle = []
    for low, high in zip(ordered[max(at - 1, 0) :], ordered[max(at - 1, 0) + 1 : at + 2], strict=False):
        step = 2.0 if math.isinf(high) else math.sqrt((high - 1) / (low - 1))
        middle.append(1 + (low - 1) * step)
    return middle


def _options_of(config: ConfigDict) -> dict[str, Any]:
    options = {**config.sampling.to_dict(), **config.pds.to_dict()}
    del options["alpha"]
    return options
