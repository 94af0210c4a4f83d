"""The sampler: one loop over a table of rows, each of them one evaluation of the score.

    x ← M z σ_max                                   prior (M in the variant "paper" only)
    for each row (t → t_next, kind, …):
        s = score(x, t)
        x, x_mean ← kind(x, t → t_next, s, z)       Langevin step, reverse-diffusion step, …
    return x_mean

A sampler is a pytree: the SDE with its N, the table, snr and M are traced, so another number of steps, alpha, snr or
seed does not recompile. Every image has its own key; a row draws from fold_in(fold_in(key, iteration), draw),
the prior from iteration 0, so an image does not depend on its batch (except with norm="batch").

Source: Song et al., ICLR 2021, algorithms 2 and 3; Ma et al., IJCV 2025, algorithm 2.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from pds_jax import gits, solvers, spectral_steps, time_grids  # noqa: F401  all but time_grids: to be registered
from pds_jax import table as tables
from pds_jax.correctors import CORRECTORS, NORMS, get_corrector
from pds_jax.keys import image_keys, normal, typed
from pds_jax.ode_sampler import ODESampler, get_ode_sampler
from pds_jax.preconditioner import Preconditioner, identity
from pds_jax.predictors import PREDICTORS, get_predictor
from pds_jax.replaying import replay  # noqa: F401
from pds_jax.runner import PACE, Run, SamplingDiverged, check_finite, run  # noqa: F401
from pds_jax.sampler_checks import check_options, checked_moments, image_shape, needed_moments
from pds_jax.scores import checked, finite, known
from pds_jax.sde_lib import SDE
from pds_jax.spectral import matched_prior
from pds_jax.stability import check_stability
from pds_jax.steps import Step, named_options
from pds_jax.table import CHUNK, Carry, Row, Table
from pds_jax.types import Array, Key, PdsError, ScoreFn, is_number, unknown_name

static = functools.partial(flax.struct.field, pytree_node=False)
_FIELDS = ("snr", "probability_flow", "variant", "norm", "grid", "head_start", "corrector_levels", "colours")
Noise = Callable[[Any, Any], Array]  # (iteration, draw) -> (B, H, W, C)


@flax.struct.dataclass
class PCSampler:
    """A sampler made by :func:`get_pc_sampler`; call it, or run it in chunks with :func:`run`.

    Attributes:
      sde: SDE with the sampler's N levels.
      preconditioner: M.
      rows: the table, padded with rows that are never reached.
      count: () int32, rows of the table without padding.
      first: () float32, time of the prior.
      numbers: options of the steps that are numbers, so that other values do not recompile.
      moments: (mean (H, W, C), power (H, W // 2 + 1, C), …) of the data in the model's range, if needed.
      shape: (H, W, C).
      kinds: the different steps of the table; ``rows.kind`` is an index into them.
      choices: options of the steps that are not numbers.
      draws: noise draws per iteration.
      adds_noise_before: whether rows scale x or add noise before the evaluation.
      denoise: return the last x_mean instead of x.
      variant, prior: see :func:`get_pc_sampler`.
      mean_fn: function of the norms (B,) in Langevin steps, see ``correctors``.
    """

    sde: SDE
    preconditioner: Preconditioner
    rows: Row
    count: Any
    first: Any
    numbers: dict[str, Any]
    moments: Any = None
    shape: tuple[int, int, int] = static(default=(0, 0, 0))
    kinds: tuple[Step, ...] = static(default=())
    choices: tuple[tuple[str, Any], ...] = static(default=())
    draws: int = static(default=1)
    adds_noise_before: bool = static(default=False)
    denoise: bool = static(default=True)
    variant: str = static(default="paper")
    prior: str = static(default="standard")
    mean_fn: Callable[[Array], Array] = static(default=NORMS["sample"])

    @property
    def table(self) -> Table:
        """The rows, on the host; printing it shows what the sampler does."""
        return tables.unpadded(self.rows, int(self.count), self.kinds, self.draws)

    @property
    def nfe(self) -> Any:
        """Score evaluations per image: the number of rows."""
        return self.count

    @property
    def steps(self) -> int:
        """Iterations."""
        return len(self.table.ends)

    @property
    def times(self) -> np.ndarray:
        """(N,) time of the first row of each iteration."""
        return self.table.times

    @property
    def predictor(self) -> str:
        """Name of the predictor."""
        return self.table.name_of("predictor")

    @property
    def corrector(self) -> str:
        """Name of the corrector."""
        return self.table.name_of("corrector")

    def __call__(self, keys: Key, score_fn: ScoreFn, condition: Any = None) -> tuple[Array, Array]:
        """Sample one image per key (B,), in one go; pure, so it may be jitted.

        Returns:
          (B, H, W, C) float32 images in the model's range, not clipped, and the NFE per image.
        """
        return self.result(self.run_all(self.init(keys, condition), score_fn)), self.count

    def init(self, keys: Key, condition: Any = None) -> Carry:
        """Draw the prior; one image per key (B,)."""
        keys = typed(keys)
        return self.start(normal(keys, 0, 0, self.shape), keys, condition)

    def start(self, z: Array, keys: Key | None = None, condition: Any = None) -> Carry:
        """Begin from the prior made of standard normal noise z (B, H, W, C)."""
        z = z.astype(jnp.float32)
        first = jnp.asarray(self.first)
        if self.prior == "matched":
            x = matched_prior(z, self.sde, first, self.moments)
        else:
            x = (self.preconditioner.apply(z) if self.variant == "paper" else z) * self.sde.prior_std
            # prior_std is of T, but the first of given times may be lower.
            x = x * (self.sde.std(first) / self.sde.std(jnp.float32(self.sde.T)))
        if condition is not None:
            x = condition.start(x, jnp.full(x.shape[:1], first), z, self.sde)
        memory = next((step.init_memory(x) for step in self.kinds if step.init_memory is not None), None)
        keys = image_keys(range(z.shape[0])) if keys is None else keys
        return Carry(x, x, keys, jnp.int32(0), finite(x) - 1, condition, memory)

    def run_all(self, carry: Carry, score_fn: ScoreFn) -> Carry:
        """Advance to the last row, chunk by chunk in one program."""

        def chunk(carry: Carry, start: Array) -> tuple[Carry, None]:
            advance = lambda carry: self.run_chunk(carry, CHUNK, score_fn)  # noqa: E731
            return jax.lax.cond(start < self.count, advance, lambda same: same, carry), None

        return jax.lax.scan(chunk, carry, jnp.arange(0, self.rows.t.shape[0], CHUNK))[0]

    def run_chunk(self, carry: Carry, rows: int | Array, score_fn: ScoreFn) -> Carry:
        """Advance by at most min(`rows`, CHUNK) rows.

        One ``lax.scan`` of CHUNK turns; those beyond `rows`, which is traced, are skipped at no cost, so that chunks of
        any length and tables of any number of rows are one program.
        """
        stop = jnp.minimum(carry.row + rows, self.count)

        def process(carry: Carry) -> Carry:
            return self.turn(carry, lambda step, draw: normal(carry.keys, step, draw, self.shape), score_fn)

        def process_or_skip(carry: Carry, _: None) -> tuple[Carry, None]:
            return jax.lax.cond(carry.row < stop, process, lambda same: same, carry), None

        return jax.lax.scan(process_or_skip, carry, length=CHUNK)[0]

    def turn(self, carry: Carry, noise: Noise, score_fn: ScoreFn) -> Carry:
        """Process one row: add noise if it says so, evaluate the score, take its step, pin the known part."""
        row: Row = jax.tree.map(lambda column: jnp.asarray(column)[carry.row], self.rows)
        t, t_next = (jnp.full(carry.x.shape[:1], time) for time in (row.t, row.t_next))
        condition, x = carry.condition, carry.x
        offset = 0 if condition is None else row.condition_offset
        if self.adds_noise_before:
            before = self.preconditioner.apply(noise(row.iteration, row.draw_before + offset))
            x = row.scale_before * x + row.noise_before * before
        if condition is not None:
            x = self._pinned(carry, row.pin_before, (x, x), t, noise, row)[0]
        s = checked(score_fn)(x, t)
        z = noise(row.iteration, row.draw + offset) if any(step.draws for step in self.kinds) else None
        inputs = {"sde": self.sde, "score_fn": known(s, at=(x, t)), "preconditioner": self.preconditioner,
                  "t_next": t_next, "moments": self.moments, "memory": carry.memory, "row": row,
                  "mean_fn": self.mean_fn}  # fmt: skip
        branches = [lambda step=step: self._take(step, x, t, z, inputs) for step in self.kinds]
        x, x_mean, memory = branches[0]() if len(branches) == 1 else jax.lax.switch(row.kind, branches)
        if condition is not None:
            x, x_mean = self._pinned(carry, row.pin_after, (x, x_mean), condition.time(t, t_next), noise, row)
        done = carry.row + 1
        still_finite = jnp.where((carry.finite == carry.row) & (finite(x) == 1), done, carry.finite)
        return Carry(x, x_mean, carry.keys, done, still_finite, condition, memory)

    def _take(
        self, step: Step, x: Array, t: Array, z: Array | None, inputs: dict[str, Any]
    ) -> tuple[Array, Array, Any]:
        """Take a step with its own options; x, x_mean and the memory, which stays where the step has none."""
        options = {name: value for name, value in (*self.numbers.items(), *self.choices) if name in step.options}
        x, x_mean, *memory = step(x, t, z if step.draws else None, **inputs, **options)
        return x, x_mean, memory[0] if step.multistep else inputs["memory"]

    def _pinned(self, carry: Carry, draw: Array, state: Any, t: Array, noise: Noise, row: Row) -> Any:
        """The state with its known part set by the condition, where the row says so (`draw` ≥ 0)."""
        pin = lambda: carry.condition.pin(*state, t, noise(row.iteration, draw), self.sde)  # noqa: E731
        return jax.lax.cond(draw >= 0, pin, lambda: state)

    def result(self, carry: Carry) -> Array:
        """The images of a finished run: the last x_mean, or x without noise removal."""
        x = carry.x_mean if self.denoise else carry.x
        return x if carry.condition is None else carry.condition.finish(x)


def get_pc_sampler(
    sde: SDE,
    shape: Sequence[int],
    predictor: str = "reverse_diffusion",
    corrector: str = "langevin",
    *,
    snr: float = 0.16,
    n_steps: int = 1,
    preconditioner: Preconditioner | None = None,
    probability_flow: bool = False,
    denoise: bool = True,
    eps: float | None = None,
    variant: str = "paper",
    prior: str = "standard",
    norm: str = "sample",
    mean_fn: Callable[[Array], Array] | None = None,
    grid: Any = "uniform",
    head_start: float | None = None,
    corrector_levels: tuple[float, float] | None = None,
    colours: bool = False,
    statistics: Any = None,
    check: bool = True,
    **options: Any,
) -> PCSampler:
    """The sampler of a predictor and a corrector; all options are checked here.

    Args:
      sde: SDE with N, the number of iterations (``sde.with_num_scales``, ``time_grids.speed_up``).
      shape: (H, W, C) of one image; (B, H, W, C), as in score_sde, is accepted and B ignored.
      predictor, corrector: names.
      snr: signal-to-noise ratio of the corrector, > 0.
      n_steps: corrector steps per time.
      preconditioner: M; None is the identity, which costs nothing.
      probability_flow: the predictor steps the probability-flow ODE.
      denoise: return the last x_mean instead of x.
      eps: last time; by default the SDE's.
      variant: "paper" or "exact", see ``predictors``.
      prior: "standard", N(0, prior_std² I), times M in the paper's variant; or "matched", the law of Gaussian data with
        the statistics' mean and spectrum at T, without M.
      norm: "sample" or "batch", the norms in the Langevin step, see ``correctors``.
      mean_fn: replaces norm, e.g. by a mean over all devices.
      grid: name of a grid of times, see ``time_grids``, or the times themselves.
      head_start: noise level std/m_t to start from, instead of that of T, with the matched prior.
      corrector_levels: lowest and highest noise level with corrector rows, by default all.
      colours: where prior and steps use the spectrum P, use that along the principal axes of the colours.
      statistics: ``Statistics.moments(config.data.centered)``, or its (mean, power), if needed.
      check: raise an error if the predictor is certain to diverge.
      **options: options of predictor, corrector and grid by their own names.

    Returns:
      ``sampler(keys, score_fn) -> (x, nfe)``. A predictor that can step between any times (``solvers``) makes N steps,
      the last from eps to the data; with denoise=False, N − 1.

    Raises:
      PdsError: unknown names, values out of range or of another shape, an option that predictor, corrector or SDE
        does not support, or a setting that is certain to diverge.
    """
    of_image, m = image_shape(shape), preconditioner or identity()
    m.check_shape(of_image)
    steps = get_predictor(predictor), get_corrector(corrector)
    moments = functools.partial(checked_moments, statistics, of_image)
    sde, times, own = time_grids.plan(grid, sde, eps, options, moments, head_start)
    given = {**own, "variant": variant, "probability_flow": probability_flow}
    check_options(sde, *steps, given, snr=snr, n_steps=n_steps, preconditioner=m, prior=prior, norm=norm, grid=grid,
                  shape=of_image, head_start=head_start, corrector_levels=corrector_levels)  # fmt: skip
    table = tables.build(sde, times, *steps, int(n_steps), bool(denoise), given, corrector_levels)
    numbers, choices = _step_options(table.kinds, {**given, "snr": snr})
    sampler = PCSampler(
        sde=sde,
        preconditioner=m,
        rows=table.padded(),
        count=np.int32(len(table)),
        first=np.float32(times[0]),
        numbers=numbers,
        moments=needed_moments(statistics, of_image, table.kinds, given, prior, colours),
        shape=of_image,
        kinds=table.kinds,
        choices=choices,
        draws=table.draws,
        adds_noise_before=bool(np.any(table.rows.noise_before != 0) or np.any(table.rows.scale_before != 1)),
        denoise=bool(denoise) and predictor != "none",  # without one there is no x_mean, as in score_sde
        variant=variant if steps[0].has_stability_limit else "exact",
        prior=prior,
        mean_fn=mean_fn or NORMS[norm],
    )
    if check and steps[0].draws and steps[0].uses_M and steps[0].has_stability_limit:
        check_stability(sampler, statistics)
    return sampler


def _step_options(
    kinds: Sequence[Step], given: dict[str, Any]
) -> tuple[dict[str, np.float32], tuple[tuple[str, Any], ...]]:
    """Options of the steps, given or by default: those that are numbers, to be traced, and the others."""
    numbers: dict[str, np.float32] = {}
    choices: dict[str, Any] = {}
    for step in kinds:
        for name, default in step.options.items():
            if step.takes(name):
                value = given.get(name, default)
                if is_number(value):
                    numbers[name] = np.float32(value)
                else:
                    choices[name] = value
    return numbers, tuple(sorted(choices.items()))


def option_names() -> set[str]:
    """Fields of config.sampling that :func:`get_pc_sampler` takes as they are, those of steps and grids among them."""
    steps = {name for step in (*PREDICTORS.values(), *CORRECTORS.values()) for name in step.options}
    return {*_FIELDS, *steps, *time_grids.option_names()}


def get_sampling_fn(
    config: Any,
    sde: SDE,
    shape: Sequence[int],
    preconditioner: Preconditioner | None = None,
    *,
    eps: float | None = None,
    statistics: Any = None,
    mean_fn: Callable[[Array], Array] | None = None,
    check: bool = True,
) -> PCSampler | ODESampler:
    """The sampler that a configuration describes.

    Args:
      config: with sampling.{method, predictor, corrector, snr, n_steps_each, noise_removal, probability_flow} as in
        score_sde, and sampling.{speed_up, norm, variant, prior, grid, solver_options} if present.
      sde: SDE of training; its levels are replaced by N = int(config.model.num_scales / speed_up).
      shape: (H, W, C) or (B, H, W, C).
      preconditioner, mean_fn, check: see :func:`get_pc_sampler`.
      eps: last time without speed-up, by default the SDE's.
      statistics: (mean, power) in the model's range, or a ``Statistics``.

    Returns:
      ``sampler(keys (B,), score_fn) -> (x, nfe)``, x (B, H, W, C) float32 in the model's range, not clipped.

    Raises:
      PdsError: unknown method, or what :func:`get_pc_sampler` and :func:`get_ode_sampler` refuse.
    """
    options = config.sampling
    if hasattr(statistics, "to_range"):
        statistics = getattr(statistics, "moments", statistics.to_range)(config.data.centered)
    speed_up = float(options.get("speed_up", 1.0))
    n, eps = time_grids.speed_up(config.model.num_scales, speed_up, sde.default_eps if eps is None else eps)
    prior = options.get("prior", "standard")
    if options.method == "ode":
        if preconditioner is not None and not preconditioner.is_identity:
            raise PdsError("sampling.method='ode' has no noise for M to act on; use method 'pc' or alpha=inf")
        # An adaptive solver chooses its own steps, so the last time stays that of training.
        return get_ode_sampler(
            sde, shape, eps=eps / speed_up, denoise=options.noise_removal, prior=prior, statistics=statistics
        )
    if options.method != "pc":
        raise PdsError(unknown_name("config.sampling.method", options.method, ("pc", "ode")))
    own = {name: options[name] for name in option_names() if name in options}
    given = {"preconditioner": preconditioner, "mean_fn": mean_fn, "statistics": statistics, "check": check}
    given |= _solver_options(options, own)
    renamed = {"n_steps": options.n_steps_each, "denoise": options.noise_removal, "eps": eps, "prior": prior}
    return get_pc_sampler(
        sde.with_num_scales(n), shape, options.predictor, options.corrector, **renamed, **own, **given
    )


def _solver_options(options: Any, own: dict[str, Any]) -> dict[str, Any]:
    """Options of predictor and grid from sampling.solver_options; refuses those that are fields of their own."""
    found = named_options(options.get("solver_options", ""))
    for name in found:
        if name in inspect.signature(get_pc_sampler).parameters:
            raise PdsError(f"solver_options: {name} is not an option of a predictor or a grid; pass it directly")
        if name in own:
            raise PdsError(f"{name} is given both as an option and in solver_options; remove one of them")
    return found
