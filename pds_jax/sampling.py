"""The predictor–corrector loop, and the adaptive ODE sampler.

    x ← M z σ_max                                   prior (no M but in the paper's variant)
    for t_i = T, …, eps:                            N times
        x, x_mean ← corrector(x, t_i)               n_steps times
        x, x_mean ← predictor(x, t_i)
    return x_mean

A sampler is a pytree: the SDE with its N, the times, snr and M are traced, so that another number of steps, alpha, snr
or seed runs the compiled program. Every image has its own key; step i of it draws from fold_in(key, i + 1), the prior
from fold_in(key, 0), so an image does not depend on the batch that it is made in (but see the norm mode "batch").

Source: Song et al., ICLR 2021, algorithms 2 and 3; Ma et al., IJCV 2025, algorithm 2.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from pds_jax import time_grids
from pds_jax.correctors import NORMS, get_corrector
from pds_jax.predictors import VARIANTS, get_predictor
from pds_jax.preconditioner import Preconditioner, identity, lambda_max
from pds_jax.sde_lib import SDE, TABLE_BLOCK, VESDE, VPSDE
from pds_jax.solvers import adaptive
from pds_jax.spectral import Moments, matched_prior
from pds_jax.types import Array, Key, PdsError, ScoreFn

PRIORS = ("standard", "matched")
_DISCRETISED = ("reverse_diffusion", "euler_maruyama", "ancestral_sampling")


class SamplingDiverged(PdsError, FloatingPointError):
    """A sample stopped being finite; the message says at which step and time, and what to do."""


@flax.struct.dataclass
class Carry:
    """What the loop carries from step to step.

    Attributes:
      x: (B, H, W, C) images.
      x_mean: (B, H, W, C) images before the last noise was added.
      keys: (B,) one key per image.
      step: () int32 number of steps done.
      finite: (B,) int32 number of steps after which the image was still finite.
      condition: what is known of the images, of ``controllable_generation``, or None.
    """

    x: Array
    x_mean: Array
    keys: Key
    step: Array
    finite: Array
    condition: Any = None


@flax.struct.dataclass
class PCSampler:
    """Predictor–corrector sampler made by :func:`get_pc_sampler`; call it, or run it in chunks with :func:`run`.

    Attributes:
      sde: SDE with the sampler's N levels.
      preconditioner: M.
      times: the N times, padded by 0 (which stands for the data) to a multiple of a block.
      steps: () int32, N.
      snr: () float32.
      moments: (mean (H, W, C), power (H, W // 2 + 1, C)) of the data in the model's range, or None.
      shape: (H, W, C) of one image.
      predictor: name.
      corrector: name.
      n_steps: corrector steps per time.
      probability_flow: whether the predictor steps the ODE.
      denoise: whether the result is the last x_mean.
      variant: "paper" or "exact".
      prior: "standard" or "matched".
      mean_fn: norm mode of the Langevin corrector.
    """

    sde: SDE
    preconditioner: Preconditioner
    times: Any
    steps: Any
    snr: Any
    moments: Any = None
    shape: tuple[int, int, int] = flax.struct.field(pytree_node=False, default=(0, 0, 0))
    predictor: str = flax.struct.field(pytree_node=False, default="reverse_diffusion")
    corrector: str = flax.struct.field(pytree_node=False, default="langevin")
    n_steps: int = flax.struct.field(pytree_node=False, default=1)
    probability_flow: bool = flax.struct.field(pytree_node=False, default=False)
    denoise: bool = flax.struct.field(pytree_node=False, default=True)
    variant: str = flax.struct.field(pytree_node=False, default="paper")
    prior: str = flax.struct.field(pytree_node=False, default="standard")
    mean_fn: Callable[[Array], Array] = flax.struct.field(pytree_node=False, default=NORMS["sample"])

    @property
    def draws(self) -> int:
        """Noise draws per step."""
        return self.n_steps * (self.corrector != "none") + (self.predictor != "none")

    @property
    def nfe(self) -> Any:
        """Score evaluations per image: N (n_steps·[corrector] + [predictor]).

        The original codes report N (n_steps + 1) even without a corrector or predictor.
        """
        return self.steps * np.int32(self.n_steps * (self.corrector != "none") + (self.predictor != "none"))

    def __call__(self, keys: Key, score_fn: ScoreFn, condition: Any = None) -> tuple[Array, Array]:
        """Sample one image per key, in one go; pure, so it may be jitted.

        Args:
          keys: (B,) typed keys.
          score_fn: score function, a pytree if this is jitted with it as an argument.
          condition: what is known of the images, of ``controllable_generation``.

        Returns:
          (B, H, W, C) float32 images in the model's range, and the NFE per image.
        """
        return self.result(self.run_chunk(self.init(keys, condition), self.steps, score_fn)), self.nfe

    def init(self, keys: Key, condition: Any = None) -> Carry:
        """Draw the prior; one image per key (B,)."""
        return self.start(_normal(keys, 0, 0, self.shape), keys, condition)

    def start(self, z: Array, keys: Key | None = None, condition: Any = None) -> Carry:
        """Begin from the prior made of standard normal noise z (B, H, W, C)."""
        z = z.astype(jnp.float32)
        x = self._prior(z)
        if condition is not None:
            x = condition.start(x, jnp.full(x.shape[:1], jnp.asarray(self.times)[0]), z, self.sde)
        if keys is None:
            keys = jax.random.split(jax.random.key(0), z.shape[0])
        return Carry(x, x, keys, jnp.int32(0), _finite(x) - 1, condition)

    def run_chunk(self, carry: Carry, steps: int | Array, score_fn: ScoreFn) -> Carry:
        """Advance by at most `steps` steps; steps is traced, so chunks of any length are one program."""

        def advance(_: Array, carry: Carry) -> Carry:
            return self.step(carry, lambda d: _normal(carry.keys, carry.step + 1, d, self.shape), score_fn)[0]

        stop = jnp.minimum(carry.step + steps, self.steps)
        return jax.lax.fori_loop(carry.step, stop, advance, carry)

    def step(
        self, carry: Carry, noise: Callable[[Any], Array], score_fn: ScoreFn
    ) -> tuple[Carry, tuple[Array, Array]]:
        """One step: corrector, then predictor.

        Args:
          carry: state before.
          noise: d -> (B, H, W, C), the d-th standard normal draw of this step.
          score_fn: score function.

        Returns:
          The state after, and (x, x_mean) between corrector and predictor.
        """
        score_fn = checked(score_fn)
        times = jnp.asarray(self.times)
        t, t_next = (jnp.full(carry.x.shape[:1], times[carry.step + k]) for k in (0, 1))
        common = {"sde": self.sde, "score_fn": score_fn, "preconditioner": self.preconditioner}
        x, x_mean, draws = carry.x, carry.x_mean, 0
        if self.corrector != "none":
            corrector, draws = get_corrector(self.corrector), self.n_steps
            correct = functools.partial(corrector, snr=self.snr, mean_fn=self.mean_fn, **common)
            x, x_mean = jax.lax.fori_loop(
                0, self.n_steps, lambda d, pair: correct(pair[0], t, noise(d)), (x, x_mean)
            )
        condition = carry.condition
        if condition is not None:
            x, x_mean = condition.pin(x, x_mean, t, noise(draws), self.sde)
            draws += 1
        corrected = x, x_mean
        if self.predictor != "none":
            x, x_mean = get_predictor(self.predictor)(
                x,
                t,
                noise(draws),
                probability_flow=self.probability_flow,
                variant=self.variant,
                t_next=t_next,
                moments=self.moments,
                **common,
            )
            draws, t = draws + 1, t_next if condition is None else condition.time(t, t_next)
        if condition is not None:
            x, x_mean = condition.pin(x, x_mean, t, noise(draws), self.sde)
        done = carry.step + 1
        finite = jnp.where((carry.finite == carry.step) & (_finite(x) == 1), done, carry.finite)
        return carry.replace(x=x, x_mean=x_mean, step=done, finite=finite), corrected  # type: ignore[attr-defined]

    def result(self, carry: Carry) -> Array:
        """The images of a finished run: the last x_mean, or x without noise removal."""
        x = carry.x_mean if self.denoise else carry.x
        return x if carry.condition is None else carry.condition.finish(x)

    def _prior(self, z: Array) -> Array:
        if self.prior == "matched":
            return matched_prior(z, self.sde, jnp.asarray(self.times)[0], self.moments)
        if self.variant == "paper":
            z = self.preconditioner.apply(z)
        return z * self.sde.prior_std


def checked(score_fn: ScoreFn) -> ScoreFn:
    """The score function, refusing at trace time an answer that is not a float image batch of the input's shape."""

    def score(x: Array, t: Array) -> Array:
        s = score_fn(x, t)
        if getattr(s, "shape", None) != x.shape or not jnp.issubdtype(s.dtype, jnp.floating):
            got = f"{getattr(s, 'dtype', type(s).__name__)} {getattr(s, 'shape', '')}"
            raise PdsError(f"the score function returned {got} for images {x.dtype} {x.shape}; it must return their shape")
        return s.astype(jnp.float32)

    return score


def image_keys(seeds: Sequence[int] | np.ndarray, seed: int = 0) -> Key:
    """One key per image, fold_in(key(seed), s) for each s of `seeds`; (B,) typed keys."""
    return _fold_in(jax.random.key(seed), jnp.asarray(np.asarray(seeds, np.uint32)))


@dataclasses.dataclass(frozen=True)
class Run:
    """What :func:`run` returns.

    Attributes:
      x: (B, H, W, C) float32 images.
      nfe: score evaluations per image.
      trajectory: (step, t, x_mean) every so many steps, on the host; empty unless asked for.
    """

    x: Array
    nfe: int
    trajectory: list[tuple[int, float, np.ndarray]]


def run(
    sampler: Any,
    keys: Key,
    score_fn: ScoreFn,
    *,
    chunk: int = 25,
    progress: Callable[[int, int], None] | None = None,
    trajectory_every: int = 0,
    init_fn: Callable[..., Any] | None = None,
    chunk_fn: Callable[[Any, Any, Any, ScoreFn], Any] | None = None,
    condition: Any = None,
) -> Run:
    """Sample from the host, chunk by chunk, with progress, a trajectory, and an early stop when a sample diverges.

    Args:
      sampler: of :func:`get_pc_sampler`.
      keys: (B,) one key per image.
      score_fn: score function, a pytree.
      chunk: steps between two signs of life; any value runs the same program.
      progress: called with (steps done, steps in all).
      trajectory_every: keep x_mean every so many steps; 0 keeps none.
      init_fn: (sampler, keys[, condition]) -> carry, compiled; one device by default.
      chunk_fn: (sampler, carry, steps, score_fn) -> carry, compiled; one device by default.
      condition: what is known of the images, of ``controllable_generation``.

    Returns:
      The images.

    Raises:
      SamplingDiverged: a sample is NaN or infinite; names the image, the step and its time.
      PdsError: the score function returns another shape.
    """
    init_fn, chunk_fn = init_fn or _init, chunk_fn or _run_chunk
    total, done = int(sampler.steps), 0
    trajectory: list[tuple[int, float, np.ndarray]] = []
    # Copied, for the chunks donate their carry.
    carry = init_fn(sampler, keys, *([] if condition is None else [jax.tree.map(jnp.copy, condition)]))
    while done < total:
        target = min(done + chunk, total)
        if trajectory_every:
            target = min(target, (done // trajectory_every + 1) * trajectory_every)
        carry = chunk_fn(sampler, carry, jnp.int32(target - done), score_fn)
        done = target
        check_finite(sampler, carry, done)
        if progress is not None:
            progress(done, total)
        if trajectory_every and done % trajectory_every == 0:
            trajectory.append((done, float(sampler.times[done - 1]), np.asarray(carry.x_mean)))
    return Run(sampler.result(carry), int(sampler.nfe), trajectory)


def check_finite(sampler: Any, carry: Any, done: int) -> None:
    """Stop a run in which an image is no longer finite after `done` steps.

    Raises:
      SamplingDiverged: names the image, the step and its time.
    """
    finite = np.asarray(carry.finite).reshape(-1)
    if np.all(finite >= done):
        return
    image = int(np.argmin(finite))
    step = max(int(finite[image]), 0)
    raise SamplingDiverged(
        f"image {image} of {finite.size} became NaN or infinite at step {step} of {int(sampler.steps)}, "
        f"t={float(np.asarray(sampler.times)[step]):.5g}: the score function returned it, or the steps are too large for "
        "this M (use a larger alpha, more steps or a smaller snr)"
    )


def replay(
    sampler: Any, noise: Array, score_fn: ScoreFn, condition: Any = None
) -> tuple[Array, dict[str, Array]]:
    """Run the sampler's own steps on given noise.

    Args:
      sampler: of :func:`get_pc_sampler`.
      noise: (1 + N·draws, B, H, W, C) standard normal draws: the prior, then per step those of the corrector and that of
        the predictor. A condition has a draw after each of the two, also where corrector or predictor is none.
      score_fn: score function.
      condition: what is known of the images, of ``controllable_generation``.

    Returns:
      The images, and the trajectory: x_corr, x_corr_mean after each corrector and x_pred, x_pred_mean after each
      predictor, (N, B, H, W, C).

    Raises:
      PdsError: another number of draws.
    """
    total, draws = int(sampler.steps), sampler.draws + (0 if condition is None else 2)
    if len(noise) != 1 + total * draws:
        raise PdsError(f"replay needs 1 + {total} x {draws} draws, got {len(noise)}")
    return _replay(sampler, noise[0], noise[1:].reshape(total, draws, *noise.shape[1:]), score_fn, condition)


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
    grid: str = "uniform",
    statistics: Any = None,
    check: bool = True,
) -> PCSampler:
    """Predictor–corrector sampler; everything that can be refused is refused here.

    Args:
      sde: SDE with N, the number of iterations (``sde.with_num_scales``, ``time_grids.speed_up``).
      shape: (H, W, C) of one image; of (B, H, W, C), as score_sde has it, the batch is dropped.
      predictor: name of a predictor.
      corrector: name of a corrector.
      snr: signal-to-noise ratio of the corrector, > 0.
      n_steps: corrector steps per time.
      preconditioner: M, None for the identity, which costs nothing.
      probability_flow: step the ODE in the predictor.
      denoise: return the last x_mean instead of x.
      eps: last time; by default 1e-5 for VE and 1e-3 for VP and subVP.
      variant: "paper" or "exact", see ``predictors``.
      prior: "standard", N(0, prior_std² I), times M in the paper's variant; or "matched", the law of Gaussian data with
        the statistics' mean and spectrum at T, without M.
      norm: "sample" or "batch", the norms in the Langevin step.
      mean_fn: in place of norm, for a mean over devices too.
      grid: times, "uniform" or "edm".
      statistics: (mean, power) in the model's range, ``Statistics.to_range(config.data.centered)``, where needed.
      check: refuse a setting whose predictor must diverge.

    Returns:
      The sampler, ``sampler(keys, score_fn) -> (x, nfe)``.

    Raises:
      PdsError: unknown names; N < 2, snr, n_steps or eps out of range; filters or statistics of another shape; an
        option that a predictor or SDE has no form of; VP with β_i > 1; a setting that must diverge.
    """
    image_shape = _image_shape(shape)
    m = preconditioner or identity()
    m.check_shape(image_shape)
    n, eps = int(sde.N), sde.default_eps if eps is None else float(eps)
    _check_options(sde, predictor, corrector, snr, n_steps, m, probability_flow, variant, prior, norm, grid)
    times = time_grids.get_grid(grid, sde, eps, n)
    sampler = PCSampler(
        sde=sde,
        preconditioner=m,
        times=np.pad(times, (0, TABLE_BLOCK - n % TABLE_BLOCK)),
        steps=np.int32(n),
        snr=np.float32(snr),
        moments=_moments(statistics, image_shape) if prior == "matched" else None,
        shape=image_shape,
        predictor=predictor,
        corrector=corrector,
        n_steps=int(n_steps),
        probability_flow=bool(probability_flow),
        denoise=bool(denoise),
        variant=variant,
        prior=prior,
        mean_fn=mean_fn or NORMS[norm],
    )
    if check and predictor in _DISCRETISED:
        check_stability(sampler, statistics)
    return sampler


@flax.struct.dataclass
class ODESampler:
    """Adaptive probability-flow sampler made by :func:`get_ode_sampler`.

    Attributes:
      sde: SDE.
      eps: () last time.
      rtol: () relative tolerance.
      atol: () absolute tolerance.
      moments: (mean, power) of the data in the model's range, or None.
      shape: (H, W, C).
      denoise: whether one noiseless reverse-diffusion step from eps is added.
      prior: "standard" or "matched".
    """

    sde: SDE
    eps: Any
    rtol: Any
    atol: Any
    moments: Any = None
    shape: tuple[int, int, int] = flax.struct.field(pytree_node=False, default=(0, 0, 0))
    denoise: bool = flax.struct.field(pytree_node=False, default=False)
    prior: str = flax.struct.field(pytree_node=False, default="standard")

    def __call__(self, keys: Key, score_fn: ScoreFn) -> tuple[Array, Array]:
        """Sample one image per key; returns (B, H, W, C) images and the NFE of each, (B,) int32."""
        return self.solve(_normal(keys, 0, 0, self.shape), score_fn)

    def solve(self, z: Array, score_fn: ScoreFn) -> tuple[Array, Array]:
        """Sample from the prior made of standard normal noise z (B, H, W, C); returns as a call does."""
        if self.prior == "matched":
            x = matched_prior(z, self.sde, jnp.float32(self.sde.T), self.moments)
        else:
            x = z * self.sde.prior_std
        score_fn = checked(score_fn)
        x, nfe = adaptive(x, sde=self.sde, score_fn=score_fn, eps=self.eps, rtol=self.rtol, atol=self.atol)
        if self.denoise:
            t = jnp.full(x.shape[:1], self.eps)
            x, nfe = get_predictor("reverse_diffusion")(x, t, x, sde=self.sde, score_fn=score_fn)[1], nfe + 1
        return x, nfe


def get_ode_sampler(
    sde: SDE,
    shape: Sequence[int],
    *,
    eps: float | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    denoise: bool = False,
    prior: str = "standard",
    statistics: Any = None,
) -> ODESampler:
    """Probability-flow ODE from T to eps by an adaptive Runge–Kutta method of order 5 (diffrax).

    Each image has its own steps, so it does not depend on the batch; the cost is that of the slowest. score_sde's
    sampler shares the steps of SciPy's RK45 over the batch. denoise adds one reverse-diffusion step without noise, as
    score_sde does, which counts as one evaluation.

    Args:
      sde: SDE; its N matters to denoise only.
      shape: (H, W, C) or (B, H, W, C).
      eps: last time, by default the SDE's.
      rtol: relative tolerance.
      atol: absolute tolerance, in the data's units.
      denoise: see above.
      prior: "standard" or "matched", see :func:`get_pc_sampler`.
      statistics: (mean, power) in the model's range, for the matched prior.

    Returns:
      The sampler, ``sampler(keys, score_fn) -> (x, nfe (B,))``.

    Raises:
      PdsError: bad eps, tolerances, prior or statistics.
    """
    image_shape, last = _image_shape(shape), sde.default_eps if eps is None else float(eps)
    if not 0 < last < sde.T:
        raise PdsError(f"eps={eps}: use a time between 0 and {sde.T:g}")
    if not (0 < rtol < 1 and 0 < atol < math.inf):
        raise PdsError(f"tolerances rtol={rtol}, atol={atol}: use 0 < rtol < 1 and atol > 0 (1e-5 is usual)")
    if prior not in PRIORS:
        raise PdsError(f"unknown prior {prior!r}; known: {', '.join(PRIORS)}")
    return ODESampler(
        sde=sde,
        eps=np.float32(last),
        rtol=np.float32(rtol),
        atol=np.float32(atol),
        moments=_moments(statistics, image_shape) if prior == "matched" else None,
        shape=image_shape,
        denoise=bool(denoise),
        prior=prior,
    )


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
        score_sde, and sampling.{speed_up, norm, variant, prior, grid} (defaults where absent).
      sde: SDE of training; its levels are replaced by N = int(config.model.num_scales / speed_up).
      shape: (H, W, C) or (B, H, W, C).
      preconditioner: M.
      eps: last time without speed-up, by default the SDE's.
      statistics: (mean, power) in the model's range, or a ``Statistics``.
      mean_fn: see :func:`get_pc_sampler`.
      check: see :func:`get_pc_sampler`.

    Returns:
      The sampler.

    Raises:
      PdsError: unknown method, or what :func:`get_pc_sampler` and :func:`get_ode_sampler` refuse.
    """
    options = config.sampling
    if hasattr(statistics, "to_range"):
        statistics = statistics.to_range(config.data.centered)
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
        raise PdsError(f"unknown config.sampling.method {options.method!r}; known: pc, ode")
    return get_pc_sampler(
        sde.with_num_scales(n),
        shape,
        options.predictor,
        options.corrector,
        snr=options.snr,
        n_steps=options.n_steps_each,
        preconditioner=preconditioner,
        probability_flow=options.probability_flow,
        denoise=options.noise_removal,
        eps=eps,
        variant=options.get("variant", "paper"),
        prior=prior,
        norm=options.get("norm", "sample"),
        mean_fn=mean_fn,
        grid=options.get("grid", "uniform"),
        statistics=statistics,
        check=check,
    )


def check_stability(sampler: PCSampler, statistics: Any = None) -> float:
    """Refuse a sampler whose predictor must diverge.

    A step multiplies the error of a mode by 1 − q; for reverse diffusion of VE, variant "paper",
    q = λ_max(M Mᵀ) G²/(σ² + v) with v the mode's data variance. |1 − q| > 1 iff q > 2. The predictor itself is asked
    for its q at every time on Gaussian data of the least variance (0 without statistics); the number is what a quarter
    of the steps but the last exceed, since a few such steps are made good by the others.
    Derived, see docs/theory.md.

    Args:
      sampler: the sampler.
      statistics: (mean, power) in the model's range, or None.

    Returns:
      The number.

    Raises:
      PdsError: it exceeds 2.
    """
    m = sampler.preconditioner
    largest = float(lambda_max(m))
    variance = 0.0 if statistics is None else float(np.min(statistics[1]))
    names = sampler.predictor, sampler.variant, sampler.probability_flow
    q = 1 - np.asarray(_amplification(sampler.sde, sampler.times, jnp.float32(largest), jnp.float32(variance), *names))
    number = float(np.quantile(q[: int(sampler.steps) - 1], 0.75))
    if number > 2:
        raise PdsError(
            f"this setting diverges: lambda_max(M M^T) G^2 / (sigma^2 + v) = {number:.3g} exceeds 2 (lambda_max = "
            f"{largest:.3g}, N = {int(sampler.steps)}, predictor {sampler.predictor}); use a larger alpha or more steps"
        )
    return number


@flax.struct.dataclass
class _Gain:
    """M that multiplies by √λ."""

    lam: Array

    is_identity = True  # so that a probability flow may be asked too

    def apply(self, z: Array) -> Array:
        return jnp.sqrt(self.lam) * z

    def drift(self, g: Array) -> Array:
        return self.lam * g


@functools.partial(jax.jit, static_argnums=(4, 5, 6))
def _amplification(
    sde: SDE, times: Array, lam: Array, variance: Array, predictor: str, variant: str, probability_flow: bool
) -> Array:
    """What one step multiplies a mode by, at each time."""

    def score(x: Array, t: Array) -> Array:
        return -x / (jnp.square(sde.std(t)) + jnp.square(sde.mean_scale(t)) * variance)[:, None, None, None]

    ones = jnp.ones((times.shape[0], 1, 1, 1), jnp.float32)
    step = get_predictor(predictor)
    _, x_mean = step(
        ones,
        times,
        0 * ones,
        sde=sde,
        score_fn=score,
        preconditioner=_Gain(lam),
        probability_flow=probability_flow,
        variant=variant,
    )
    return x_mean[:, 0, 0, 0]


def _check_options(
    sde: SDE,
    predictor: str,
    corrector: str,
    snr: float,
    n_steps: int,
    m: Preconditioner,
    probability_flow: bool,
    variant: str,
    prior: str,
    norm: str,
    grid: str,
) -> None:
    """Refuse what no run could do."""
    get_predictor(predictor), get_corrector(corrector)
    for name, value, known in (("variant", variant, VARIANTS), ("prior", prior, PRIORS), ("norm", norm, tuple(NORMS))):
        if value not in known:
            raise PdsError(f"unknown {name} {value!r}; known: {', '.join(known)}")
    if predictor == corrector == "none":
        raise PdsError("predictor and corrector are both 'none': nothing would be sampled")
    if corrector != "none":
        if not 0 < float(snr) < math.inf:
            raise PdsError(f"snr={snr}: the corrector needs a finite number > 0 (0.16 is usual)")
        if int(n_steps) != n_steps or n_steps < 1:
            raise PdsError(f"n_steps={n_steps}: use an integer >= 1, or corrector 'none'")
    if predictor in _DISCRETISED and grid != "uniform":
        raise PdsError(f"predictor {predictor} steps through the SDE's own levels: it needs grid 'uniform', not {grid!r}")
    if predictor == "ancestral_sampling" and (probability_flow or not isinstance(sde, VESDE | VPSDE)):
        what = "no probability flow" if probability_flow else f"no form for {type(sde).__name__}"
        raise PdsError(f"ancestral_sampling has {what}; use reverse_diffusion or euler_maruyama")
    if probability_flow and variant == "exact" and predictor != "none" and not m.is_identity:
        raise PdsError("the exact probability flow has no noise for M to act on; use variant 'paper' or alpha=inf")
    _check_betas(sde, predictor, corrector)


def _check_betas(sde: SDE, predictor: str, corrector: str) -> None:
    """Refuse β_i > 1 where 1 − β_i is used; at β_i = 1 ancestral sampling alone divides by zero."""
    if isinstance(sde, VESDE):
        return
    uses_alpha = corrector != "none" or (predictor == "reverse_diffusion" and isinstance(sde, VPSDE))
    largest = float(np.asarray(sde.discrete_betas).max())  # type: ignore[attr-defined]
    if (uses_alpha and largest > 1) or (predictor == "ancestral_sampling" and largest >= 1):
        raise PdsError(
            f"{type(sde).__name__} with N={int(sde.N)} levels has beta_max/N = {largest:.3g}, and 1 - beta_i is needed by "
            f"predictor {predictor!r} or corrector {corrector!r}: use more steps (a smaller speed_up, N > "
            f"{float(sde.beta_1):g}) or predictor euler_maruyama with corrector none"  # type: ignore[attr-defined]
        )


def _image_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    if len(shape) not in (3, 4) or any(int(s) != s or s < 1 for s in shape):
        raise PdsError(f"shape={tuple(shape)}: give (H, W, C) of one image, or (B, H, W, C)")
    height, width, channels = (int(s) for s in shape[-3:])
    return height, width, channels


def _moments(statistics: Any, shape: tuple[int, int, int]) -> Moments:
    """(mean, power) as traced leaves, checked against the shape of the images."""
    if statistics is None:
        raise PdsError("this sampler needs the data's statistics: pass --statistics (scripts/make_statistics.py)")
    mean, power = (np.asarray(v, np.float32) for v in statistics)
    height, width, channels = shape
    if mean.shape != shape or power.shape != (height, width // 2 + 1, channels):
        raise PdsError(f"the statistics are of images {mean.shape} with power {power.shape}, the sampler makes {shape}")
    if not (np.isfinite(mean).all() and np.isfinite(power).all() and power.min() > 0):
        raise PdsError("the statistics must be finite, and the power positive")
    return mean, power


def _fold_in(keys: Key, data: Any) -> Key:
    """fold_in for a batch of data, keys, or both."""
    axes = (0 if keys.ndim else None, 0 if jnp.ndim(data) else None)
    return jax.vmap(jax.random.fold_in, axes)(keys, data)


def _normal(keys: Key, step: Any, draw: Any, shape: tuple[int, int, int]) -> Array:
    """Draw number `draw` of a step for each image: (B, H, W, C) from keys (B,)."""
    drawn = _fold_in(_fold_in(keys, step), draw)
    return jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(drawn)


def _finite(x: Array) -> Array:
    """(B,) int32, 1 for images without NaN and infinity."""
    return jnp.all(jnp.isfinite(x.reshape(x.shape[0], -1)), axis=1).astype(jnp.int32)


@jax.jit
def _init(sampler: Any, keys: Key, condition: Any = None) -> Any:
    return sampler.init(keys, condition)


@functools.partial(jax.jit, donate_argnums=1)
def _run_chunk(sampler: Any, carry: Any, steps: Array, score_fn: ScoreFn) -> Any:
    return sampler.run_chunk(carry, steps, score_fn)


@jax.jit
def _replay(
    sampler: Any, prior: Array, noise: Array, score_fn: ScoreFn, condition: Any
) -> tuple[Array, dict[str, Array]]:
    def advance(carry: Any, z: Array) -> tuple[Any, dict[str, Array]]:
        carry, corrected = sampler.step(carry, lambda d: z[d], score_fn)
        return carry, {
            "x_corr": corrected[0],
            "x_corr_mean": corrected[1],
            "x_pred": carry.x,
            "x_pred_mean": carry.x_mean,
        }

    carry, trajectory = jax.lax.scan(advance, sampler.start(prior, condition=condition), noise)
    return sampler.result(carry), trajectory
