"""``predictor=auto``: choose a sampler from the score of a checkpoint, the statistics of its data, and the NFE.

**Measurement**, once per checkpoint. 24 images are drawn from N(μ, P + σ_max²) and denoised over 16 levels, even in
log σ, by DDIM steps of the network: 384 evaluations of the denoiser D, and no data. With the Wiener denoiser
D_W = μ + J y (the best linear one), the residual R = D − D_W and E the mean over images of the sum over pixels:

cost(σ) = ∫ E‖R‖²/s² d log s over s > σ, in nats, is the Kullback–Leibler divergence of p_σ from N(μ, P + σ²);
unexplained = max E‖R‖² / Σ P over the levels is the largest share of the data's power that D_W does not account for.

**Choice**, for an NFE n. If unexplained < 0.15, or < 0.28 and n < 16, the step uses P: the error of a ``spectral`` step
is proportional to R, which it holds constant. Otherwise the spectrum does not explain the network, and the sampler is
a DPM-Solver++(2M) without the options below: that of the flow below 8 evaluations, from there on that of the reverse
SDE. If unexplained > 1 it is that of the reverse SDE at any n: for the true D, E‖R‖² ≤ Σ P, so this network is wrong at
some level, and the noise of later steps can make up for it.

The head start is at the least level whose cost is below 0.1 (5/n)⁴ nats: leaving out the noisier levels changes the
law of the results by at most that much. It is weighed against the squared error of the steps, which falls as n⁻⁴ for a
second-order solver.

The colours are used below 8 evaluations if the statistics hold them; λ = 0 and κ = 0.2.

The grid is EDM's, and the prior is matched. M and the gains of a pilot run are not considered: M changes little here,
and the pilot costs 512 n evaluations. Derived, see docs/theory.md. The numbers 0.1 and 0.2, ``spectral`` between 0.15
and 0.28, the power 4 and the limit for the colours were chosen on ``photos``, ``fashion`` and ``landscapes`` with seeds
from 2²⁹ on, which no table reports; 0.15, 0.28, 8 and 16 earlier, on these and ``digits``; the last case on
``fashion_small``, likewise.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pds_jax import cache
from pds_jax.io import files
from pds_jax.keys import image_keys, normal
from pds_jax.ops import batch_mul
from pds_jax.scores import as_pytree
from pds_jax.sde_lib import SDE
from pds_jax.spectral import Moments, matched_prior, noise_level, plane_mean, wiener_denoiser
from pds_jax.types import Array, PdsError, ScoreFn

IMAGES, LEVELS = 24, 16
RULE = 2  # version of measurement and choice; increase it when they change, so that nothing stored is used
_LOWEST = 0.02  # of the levels, in units of the data's deviation
_FIRST_SEED = 2**31 + 2**21  # far from those of a run
_UNEXPLAINED, _FAR, _POSSIBLE = 0.15, 0.28, 1.0
_COST, _COST_NFE, _COST_POWER = 0.1, 5, 4
_KAPPA = 0.2
_FEW, _SOME = 8, 16
_DECIDED = (
    "corrector", "grid", "prior", "alpha", "stochasticity", "spectrum", "kappa", "colours", "head_start",
    "corrector_levels", "filters", "recipe", "gain", "freq_mask_path", "space_mask_path", "r", "lam",
)  # fmt: skip
_FILE = "predictor_auto.json"


@dataclasses.dataclass(frozen=True)
class Measured:
    """What the rule needs to know about a checkpoint; see the top of this module.

    Attributes:
      levels: (16,) noise levels, falling.
      residual: (16,) E‖R‖² there.
      power: Σ P over pixels and channels.
    """

    levels: tuple[float, ...]
    residual: tuple[float, ...]
    power: float

    @property
    def unexplained(self) -> float:
        """The largest share of the data's power that the Wiener denoiser does not account for."""
        return max(self.residual) / self.power

    @property
    def cost(self) -> np.ndarray:
        """(16,) nats; above the first level E‖R‖² is taken as constant."""
        levels, rate = np.asarray(self.levels), np.asarray(self.residual) / np.square(self.levels)
        steps = np.log(levels[:-1] / levels[1:])
        return rate[0] / 2 + np.concatenate([[0.0], np.cumsum(steps * (rate[1:] + rate[:-1]) / 2)])

    def head_start(self, nats: float) -> float | None:
        """The least level of at most so many nats, between two measured ones; None where that is none but the first."""
        cost = np.maximum.accumulate(self.cost)
        if cost[0] >= nats:
            return None
        found = float(np.exp(np.interp(np.log(nats), np.log(cost), np.log(self.levels))))
        return found if found < 0.95 * self.levels[0] else None

    def to_json(self) -> dict[str, Any]:
        """For a file."""
        return {"levels": list(self.levels), "residual": list(self.residual), "power": self.power}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Measured:
        """Of a file.

        Raises:
          PdsError: the file does not hold a measurement.
        """
        try:
            levels, residual = (tuple(float(v) for v in value[name]) for name in ("levels", "residual"))
            made = cls(levels, residual, float(value["power"]))
        except (KeyError, TypeError, ValueError) as error:
            raise PdsError("not a measurement of predictor=auto") from error
        good = np.isfinite([*levels, *residual, made.power]).all() and len(levels) == len(residual) > 1
        if not good or not np.all(np.diff(levels) < 0) or levels[-1] <= 0 or min(residual) < 0 or made.power <= 0:
            raise PdsError("not a measurement of predictor=auto")
        return made


@dataclasses.dataclass(frozen=True)
class Choice:
    """Options of a plan, and why."""

    options: dict[str, Any]
    reasons: tuple[str, ...]


def measure(score_fn: ScoreFn, sde: SDE, moments: Any, shape: tuple[int, int, int]) -> Measured:
    """Measure a checkpoint.

    Args:
      score_fn: its score function.
      sde: SDE.
      moments: mean (H, W, C) and power (H, W // 2 + 1, C) of its data in the model's range.
      shape: (H, W, C).

    Raises:
      PdsError: the denoised images are not finite.
    """
    score_fn, moments = as_pytree(score_fn), tuple(jnp.asarray(v, jnp.float32) for v in moments[:2])
    first, last = (float(noise_level(sde, jnp.full((1,), t, jnp.float32))[1][0]) for t in (sde.T, sde.default_eps))
    deviation = float(np.sqrt(plane_mean(moments[1], shape[1])))
    levels = np.geomspace(first, max(last * 1.01, _LOWEST * deviation), LEVELS)
    times = np.clip(sde.t_of_level(levels), sde.default_eps, sde.T).astype(np.float32)
    z = normal(image_keys(range(_FIRST_SEED, _FIRST_SEED + IMAGES)), 0, 0, shape)
    x = matched_prior(z, sde, times[0], moments) / sde.mean_scale(times[:1])[0]
    found = []
    for i, t in enumerate(times):
        denoised, wiener, level = (np.asarray(v, np.float64) for v in _denoised(score_fn, sde, moments, x, t))
        if not np.isfinite(denoised).all():
            raise PdsError(f"predictor=auto: the network's denoised images are not finite at t={t:.5g}")
        found.append(float(np.sum((denoised - wiener) ** 2) / IMAGES))
        if i + 1 < LEVELS:
            ratio = levels[i + 1] / float(level)
            x = jnp.asarray(ratio * np.asarray(x) + (1 - ratio) * denoised, jnp.float32)
    power = math.prod(shape) * float(plane_mean(moments[1], shape[1]))
    return Measured(tuple(map(float, levels)), tuple(found), power)


def choose(measured: Measured, nfe: int, colours: bool) -> Choice:
    """The sampler for an NFE; `colours` says whether the statistics hold them."""
    options: dict[str, Any] = {"corrector": "none", "grid": "edm", "prior": "matched"}
    limit = _FAR if nfe < _SOME else _UNEXPLAINED
    if measured.unexplained < limit:
        colours = colours and nfe < _FEW
        options |= {"predictor": "spectral", "stochasticity": 0.0, "spectrum": 1.0, "kappa": _KAPPA, "colours": colours}
        why = "predictor spectral, whose steps use that spectrum"
    else:
        wrong = measured.unexplained > _POSSIBLE
        options["predictor"] = "dpmpp_2m" if nfe < _FEW and not wrong else "sde_dpmpp_2m"
        why = f"predictor {options['predictor']}, which does not use it, and no head start"
    share = f"network and Wiener denoiser, which is made of the data's spectrum, differ by {measured.unexplained:.0%}"
    reasons = [f"{share} of the data's power (limit {limit:.0%}): {why}"]
    if options["predictor"] != "spectral":
        return Choice(options, tuple(reasons))
    options["head_start"], why = head_start(measured, nfe)
    return Choice(options, (*reasons, why))


def head_start(measured: Measured, nfe: int) -> tuple[float | None, str]:
    """The noise level to start from with so many evaluations, None for T's, and why."""
    nats = _COST * (_COST_NFE / nfe) ** _COST_POWER
    start = measured.head_start(nats)
    if start is None:
        return None, f"no head start: each changes the samples' distribution by more than {nats:.2g} nats"
    where = f"head start at noise level {start:.3g} instead of {measured.levels[0]:.3g}"
    return start, f"{where}: it changes the samples' distribution by at most {nats:.2g} nats"


def remembered(name: str, key: str, compute: Callable[[], Measured]) -> Measured:
    """A measurement cached in a file beside the checkpoint, or in the cache folder if that is not writable.

    Args:
      name: the checkpoint's file or folder; another name (a shipped model) has the cache folder alone.
      key: what decides the measurement: weights and statistics.
      compute: measures.
    """
    key, place = f"{key} rule {RULE}", pathlib.Path(name)
    beside = place / _FILE if place.is_dir() else place.with_name(f"{place.name}.{_FILE}") if place.is_file() else None
    if beside is not None:
        with contextlib.suppress(PdsError):
            entry = files.read_json(beside)
            if isinstance(entry, dict) and entry.get("key") == key:
                return Measured.from_json(entry)
    value = cache.remembered("predictor_auto", key, lambda: compute().to_json(), _is_measurement)
    if beside is not None:
        with contextlib.suppress(PdsError):
            files.write_json(beside, {"key": key, **value})
    return Measured.from_json(value)


def _is_measurement(value: Any) -> bool:
    try:
        return bool(Measured.from_json(value))
    except PdsError:
        return False


def refuse_decided(given: Sequence[str]) -> None:
    """Refuse options that predictor=auto decides.

    Raises:
      PdsError: names the first.
    """
    for name in given:
        if name in _DECIDED:
            raise PdsError(f"{name}: predictor=auto decides it; leave {name} out, or name a predictor")


@jax.jit
def _denoised(score_fn: ScoreFn, sde: SDE, moments: Moments, x: Array, t: Array) -> tuple[Array, Array, Array]:
    """D and D_W of x̄ (B, H, W, C), and the level ()."""
    t = jnp.full(x.shape[:1], t)
    m, level = noise_level(sde, t)
    denoised = x + batch_mul(m * jnp.square(level), score_fn(batch_mul(m, x), t))
    return denoised, wiener_denoiser(x, level, moments), level[0]
