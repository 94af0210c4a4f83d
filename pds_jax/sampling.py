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
import time
from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from pds_jax import time_grids
from pds_jax.correctors import NORMS, get_corrector
from pds_jax.ode_sampler import ODESampler, checked, fold_in, get_ode_sampler, normal
from pds_jax.preconditioner import Preconditioner, identity
from pds_jax.predictors import TRAITS, get_predictor
from pds_jax.sampler_checks import check_options, check_stability, checked_moments, image_shape
from pds_jax.sde_lib import SDE, TABLE_BLOCK
from pds_jax.solvers import Memory
from pds_jax.spectral import matched_prior
from pds_jax.types import Array, Key, PdsError, ScoreFn

__all__ = [
    "Carry",
    "ODESampler",
    "PCSampler",
    "Run",
    "SamplingDiverged",
    "check_finite",
    "check_stability",
    "get_ode_sampler",
    "get_pc_sampler",
    "get_sampling_fn",
    "image_keys",
    "replay",
    "run",
]


class SamplingDiverged(PdsError, FloatingPointError):
    """A sample stopped being finite; the message says at which step and time, and what to do."""


CHUNK = 25  # most steps of one compiled call; between two calls the host shows a sign of life
PACE = 1.0  # seconds from one sign of life to the next, where a step takes less


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
      memory: of a multistep predictor, or None.
    """

    x: Array
    x_mean: Array
    keys: Key
    step: Array
    finite: Array
    condition: Any = None
    memory: Memory | None = None


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
      denoise: whether the result is the last x_mean; without a predictor that is x, as in score_sde.
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
        return self.n_steps * (self.corrector != "none") + TRAITS[self.predictor].noise

    @property
    def nfe(self) -> Any:
        """Score evaluations per image, N (n_steps·[corrector] + [predictor]); Heun's step is two but the last is one.

        The original codes report N (n_steps + 1) even without a corrector or predictor.
        """
        per_step = self.n_steps * (self.corrector != "none") + TRAITS[self.predictor].evaluations
        saved = self.denoise and TRAITS[self.predictor].evaluations == 2
        return self.steps * np.int32(per_step) - np.int32(saved)

    def __call__(self, keys: Key, score_fn: ScoreFn, condition: Any = None) -> tuple[Array, Array]:
        """Sample one image per key, in one go; pure, so it may be jitted.

        Args:
          keys: (B,) typed keys.
          score_fn: score function, a pytree if this is jitted with it as an argument.
          condition: what is known of the images, of ``controllable_generation``.

        Returns:
          (B, H, W, C) float32 images in the model's range, and the NFE per image.
        """
        return self.result(self.run_all(self.init(keys, condition), score_fn)), self.nfe

    def init(self, keys: Key, condition: Any = None) -> Carry:
        """Draw the prior; one image per key (B,)."""
        return self.start(normal(keys, 0, 0, self.shape), keys, condition)

    def start(self, z: Array, keys: Key | None = None, condition: Any = None) -> Carry:
        """Begin from the prior made of standard normal noise z (B, H, W, C)."""
        z = z.astype(jnp.float32)
        x = self._prior(z)
        if condition is not None:
            x = condition.start(x, jnp.full(x.shape[:1], jnp.asarray(self.times)[0]), z, self.sde)
        if keys is None:
            keys = jax.random.split(jax.random.key(0), z.shape[0])
        memory = Memory.empty(x) if TRAITS[self.predictor].multistep else None
        return Carry(x, x, keys, jnp.int32(0), _finite(x) - 1, condition, memory)

    def run_all(self, carry: Carry, score_fn: ScoreFn) -> Carry:
        """Advance to the last step, chunk by chunk in one program."""

        def turn(carry: Carry, _: None) -> tuple[Carry, None]:
            return self.run_chunk(carry, CHUNK, score_fn), None

        return jax.lax.scan(turn, carry, length=-(-len(self.times) // CHUNK))[0]

    def run_chunk(self, carry: Carry, steps: int | Array, score_fn: ScoreFn) -> Carry:
        """Advance by at most min(`steps`, CHUNK) steps.

        One ``lax.scan`` of CHUNK turns; those beyond `steps`, which is traced, are skipped at no cost, so that chunks
        of any length and runs of any number of steps are one program.
        """
        stop = jnp.minimum(carry.step + steps, self.steps)

        def advance(carry: Carry) -> Carry:
            return self.step(carry, lambda d: normal(carry.keys, carry.step + 1, d, self.shape), score_fn)[0]

        def turn(carry: Carry, _: None) -> tuple[Carry, None]:
            return jax.lax.cond(carry.step < stop, advance, lambda same: same, carry), None

        return jax.lax.scan(turn, carry, length=CHUNK)[0]

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
        score_fn, times = checked(score_fn), jnp.asarray(self.times)
        t, t_next = (jnp.full(carry.x.shape[:1], times[carry.step + k]) for k in (0, 1))
        if self.corrector != "none" and TRAITS[self.predictor].evaluations == 1:
            x, x_mean, corrected, memory = self._with_one_score(carry, t, t_next, noise, score_fn)
        else:
            state = carry.x, carry.x_mean
            if self.corrector != "none":
                state = jax.lax.fori_loop(
                    0, self.n_steps, lambda d, state: self._correct(state[0], t, noise(d), score_fn), state
                )
            corrected = self._pinned(carry, state, t, noise)
            z = noise(self._predictor_draw(carry)) if TRAITS[self.predictor].noise else None
            x, x_mean, memory = self._predict(carry, corrected[0], t, t_next, z, score_fn)
        if carry.condition is not None:
            at = t if self.predictor == "none" else carry.condition.time(t, t_next)
            z = noise(self._predictor_draw(carry) + TRAITS[self.predictor].noise)
            x, x_mean = carry.condition.pin(x, x_mean, at, z, self.sde)
        done = carry.step + 1
        finite = jnp.where((carry.finite == carry.step) & (_finite(x) == 1), done, carry.finite)
        return Carry(x, x_mean, carry.keys, done, finite, carry.condition, memory), corrected

    def _with_one_score(
        self, carry: Carry, t: Array, t_next: Array, noise: Callable[[Any], Array], score_fn: ScoreFn
    ) -> tuple[Array, Array, tuple[Array, Array], Memory | None]:
        """All corrector steps and the predictor as turns of one loop, so that the network is compiled once."""

        def turn(d: Array, state: tuple[Array, Array, tuple[Array, Array]]) -> Any:
            x, x_mean, corrected = state
            predicting = d == self.n_steps
            z = noise(jnp.where(predicting, self._predictor_draw(carry), d))
            known = _known(score_fn(x, t))

            def correct() -> Any:
                pair = self._correct(x, t, z, known)
                if carry.condition is not None:
                    last, pinned = d == self.n_steps - 1, self._pinned(carry, pair, t, noise)
                    pair = jnp.where(last, pinned[0], pair[0]), jnp.where(last, pinned[1], pair[1])
                return *pair, pair

            def predict() -> Any:
                return *self._predict(carry, x, t, t_next, z, known)[:2], corrected

            return jax.lax.cond(predicting, predict, correct)

        start = carry.x, carry.x_mean, (carry.x, carry.x_mean)
        x, x_mean, corrected = jax.lax.fori_loop(0, self.n_steps + 1, turn, start)
        return x, x_mean, corrected, None

    def _correct(self, x: Array, t: Array, z: Array, score_fn: ScoreFn) -> tuple[Array, Array]:
        return get_corrector(self.corrector)(
            x,
            t,
            z,
            sde=self.sde,
            score_fn=score_fn,
            preconditioner=self.preconditioner,
            snr=self.snr,
            mean_fn=self.mean_fn,
        )

    def _predict(
        self, carry: Carry, x: Array, t: Array, t_next: Array, z: Array | None, score_fn: ScoreFn
    ) -> tuple[Array, Array, Memory | None]:
        x, x_mean, *kept = get_predictor(self.predictor)(
            x,
            t,
            z,
            sde=self.sde,
            score_fn=score_fn,
            preconditioner=self.preconditioner,
            probability_flow=self.probability_flow,
            variant=self.variant,
            t_next=t_next,
            moments=self.moments,
            memory=carry.memory,
        )
        return x, x_mean, kept[0] if kept else None

    def _pinned(
        self, carry: Carry, state: tuple[Array, Array], t: Array, noise: Callable[[Any], Array]
    ) -> tuple[Array, Array]:
        """The state after the corrector with what a condition knows put in."""
        if carry.condition is None:
            return state
        return carry.condition.pin(*state, t, noise(self._predictor_draw(carry) - 1), self.sde)

    def _predictor_draw(self, carry: Carry) -> int:
        """Number of the predictor's draw: after the corrector's, and the condition's."""
        return self.n_steps * (self.corrector != "none") + (carry.condition is not None)

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


def image_keys(seeds: Sequence[int] | np.ndarray, seed: int = 0) -> Key:
    """One key per image, fold_in(key(seed), s) for each s of `seeds`; (B,) typed keys."""
    return fold_in(jax.random.key(seed), jnp.asarray(np.asarray(seeds, np.uint32)))


@dataclasses.dataclass(frozen=True)
class Run:
    """What :func:`run` returns.

    Attributes:
      x: (B, H, W, C) float32 images, on a device or the host.
      nfe: score evaluations per image; (B,) where an adaptive solver decided.
      trajectory: (step, t, x_mean) every so many steps, on the host; empty unless asked for.
    """

    x: Any
    nfe: Any
    trajectory: list[tuple[int, float, np.ndarray]]


def run(
    sampler: Any,
    keys: Key,
    score_fn: ScoreFn,
    *,
    chunk: int = CHUNK,
    pace: float | None = PACE,
    progress: Callable[[int, int], None] | None = None,
    trajectory_every: int = 0,
    init_fn: Callable[..., Any] | None = None,
    chunk_fn: Callable[[Any, Any, Any, ScoreFn], Any] | None = None,
    result_fn: Callable[[Any, Any], Any] | None = None,
    condition: Any = None,
) -> Run:
    """Sample from the host, chunk by chunk, with progress, a trajectory, and an early stop when a sample diverges.

    Args:
      sampler: of :func:`get_pc_sampler`.
      keys: (B,) one key per image.
      score_fn: score function, a pytree.
      chunk: most steps between two signs of life, at most CHUNK; any value runs the same program.
      pace: seconds between two signs of life, after which a signal is heard too; the steps before the next are as many
        as the last ones say, beginning with one. None: always ``chunk`` steps.
      progress: called with (steps done, steps in all).
      trajectory_every: keep x_mean every so many steps; 0 keeps none.
      init_fn: (sampler, keys[, condition]) -> carry, compiled; one device by default.
      chunk_fn: (sampler, carry, steps, score_fn) -> carry, compiled; one device by default.
      result_fn: (sampler, carry) -> images; one device by default.
      condition: what is known of the images, of ``controllable_generation``.

    Returns:
      The images.

    Raises:
      SamplingDiverged: a sample is NaN or infinite; names the image, the step and its time.
      PdsError: the score function returns another shape.
    """
    init_fn, chunk_fn = init_fn or _init, chunk_fn or _run_chunk
    total, done, longest = int(sampler.steps), 0, min(chunk, CHUNK)
    length = longest if pace is None else 1
    trajectory: list[tuple[int, float, np.ndarray]] = []
    carry = init_fn(sampler, keys, *([] if condition is None else [condition]))
    while done < total:
        target, begun = min(done + length, total), time.perf_counter()
        if trajectory_every:
            target = min(target, (done // trajectory_every + 1) * trajectory_every)
        carry = chunk_fn(sampler, carry, jnp.int32(target - done), score_fn)
        check_finite(sampler, carry, target)
        if pace is not None:
            rate = (target - done) / max(time.perf_counter() - begun, 1e-9)
            length = max(min(int(rate * pace), longest), 1)
        done = target
        if progress is not None:
            progress(done, total)
        if trajectory_every and done % trajectory_every == 0:
            trajectory.append((done, float(sampler.times[done - 1]), np.asarray(carry.x_mean)))
    images = result_fn(sampler, carry) if result_fn is not None else sampler.result(carry)
    return Run(images, int(sampler.nfe), trajectory)


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
        f"t={float(np.asarray(sampler.times)[step]):.5g}: either the score function returned it, or the steps are too "
        "large for this M (use a larger alpha, more steps or a smaller snr)"
    )


def replay(
    sampler: Any, noise: Array, score_fn: ScoreFn, condition: Any = None
) -> tuple[Array, dict[str, Array]]:
    """Run the sampler's own steps on given noise.

    Args:
      sampler: of :func:`get_pc_sampler`.
      noise: (1 + N·draws, B, H, W, C) standard normal draws: the prior, then per step those of the corrector and that
        of the predictor. A condition has a draw after each of the two, also where corrector or predictor is none.
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
      The sampler, ``sampler(keys, score_fn) -> (x, nfe)``. A predictor that steps to the data (those of ``solvers``)
      makes N steps, the last from eps to the data, or with denoise=False N − 1.

    Raises:
      PdsError: unknown names; N < 2, snr, n_steps or eps out of range; filters or statistics of another shape; an
        option that a predictor or SDE has no form of; VP with β_i > 1; a setting that must diverge.
    """
    of_image, m = image_shape(shape), preconditioner or identity()
    m.check_shape(of_image)
    check_options(
        sde,
        predictor=predictor,
        corrector=corrector,
        snr=snr,
        n_steps=n_steps,
        preconditioner=m,
        probability_flow=probability_flow,
        variant=variant,
        prior=prior,
        norm=norm,
        grid=grid,
    )
    n, traits = int(sde.N), TRAITS[predictor]
    times = time_grids.get_grid(grid, sde, sde.default_eps if eps is None else float(eps), n)
    needs_moments = prior == "matched" or traits.spectral
    sampler = PCSampler(
        sde=sde,
        preconditioner=m,
        times=np.pad(times, (0, TABLE_BLOCK - n % TABLE_BLOCK)),
        steps=np.int32(n - (traits.any_grid and predictor != "none" and not denoise)),
        snr=np.float32(snr),
        moments=checked_moments(statistics, of_image) if needs_moments else None,
        shape=of_image,
        predictor=predictor,
        corrector=corrector,
        n_steps=int(n_steps),
        probability_flow=bool(probability_flow),
        denoise=bool(denoise),
        variant=variant,
        prior=prior,
        mean_fn=mean_fn or NORMS[norm],
    )
    if check and traits.noise and traits.preconditioned:
        check_stability(sampler, statistics)
    return sampler


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


def _known(s: Array) -> ScoreFn:
    """A score function whose only value has been computed."""
    return lambda x, t: s


def _finite(x: Array) -> Array:
    """(B,) int32, 1 for images without NaN and infinity."""
    return jnp.all(jnp.isfinite(x.reshape(x.shape[0], -1)), axis=1).astype(jnp.int32)


@jax.jit
def _init(sampler: Any, keys: Key, condition: Any = None) -> Any:
    return sampler.init(keys, condition)


@jax.jit
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
