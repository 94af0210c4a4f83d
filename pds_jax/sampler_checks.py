"""Checks of a sampler's options, before any long work."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from pds_jax.correctors import NORMS
from pds_jax.filters import check_even
from pds_jax.preconditioner import Preconditioner
from pds_jax.predictors import VARIANTS
from pds_jax.sde_lib import SDE
from pds_jax.spectral import in_colours
from pds_jax.steps import Step
from pds_jax.types import PdsError, is_number, unknown_name

PRIORS = ("standard", "matched")


def check_options(
    sde: SDE,
    predictor: Step,
    corrector: Step,
    options: dict[str, Any],
    *,
    snr: float,
    n_steps: int,
    preconditioner: Preconditioner,
    prior: str,
    norm: str,
    grid: Any,
    shape: tuple[int, int, int],
    head_start: Any = None,
    corrector_levels: Any = None,
) -> None:
    """Refuse options of ``sampling.get_pc_sampler`` that do not exist or exclude each other.

    Raises:
      PdsError: says which, and what would do.
    """
    variant = options["variant"]
    check_names(variant=(variant, VARIANTS), prior=(prior, PRIORS), norm=(norm, tuple(NORMS)))
    if predictor.name == corrector.name == "none":
        raise PdsError("predictor and corrector are both 'none': nothing would be sampled")
    if corrector.name != "none":
        if not (is_number(snr) and 0 < float(snr) < math.inf):
            raise PdsError(f"snr={snr}: the corrector needs a finite number > 0 (0.16 is usual)")
        if not is_number(n_steps) or int(n_steps) != n_steps or n_steps < 1:
            raise PdsError(f"n_steps={n_steps}: use an integer >= 1, or corrector 'none'")
    _check_steps(predictor, corrector, options, grid)
    _check_preconditioner(preconditioner, predictor, options)
    _check_levels(predictor, corrector, prior, head_start, corrector_levels)
    for step in (predictor, corrector):
        if step.validate is not None:
            step.validate({**step.options, **options}, preconditioner, shape)
    if int(sde.N) < predictor.min_steps:
        raise PdsError(f"predictor {predictor.name!r} needs N >= {predictor.min_steps} iterations, got N={sde.N}")
    sde.check(predictor.name, corrector.name)


def check_names(**options: tuple[str, tuple[str, ...]]) -> None:
    """Refuse unknown names; each option is (value, known values).

    Raises:
      PdsError: lists the known ones.
    """
    for name, (value, known) in options.items():
        if value not in known:
            raise PdsError(unknown_name(name, value, known))


def image_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    """(H, W, C) from (H, W, C) or (B, H, W, C).

    Raises:
      PdsError: neither.
    """
    if len(shape) not in (3, 4) or any(int(s) != s or s < 1 for s in shape):
        raise PdsError(f"shape={tuple(shape)}: give (H, W, C) of one image, or (B, H, W, C)")
    height, width, channels = (int(s) for s in shape[-3:])
    return height, width, channels


def needed_moments(
    statistics: Any,
    shape: tuple[int, int, int],
    kinds: Sequence[Step],
    options: dict[str, Any],
    prior: str,
    colours: bool,
) -> tuple[np.ndarray, ...] | None:
    """What prior and steps need of the statistics: mean, power and, with colours, their basis; None if nothing.

    Raises:
      PdsError: see :func:`checked_moments`; colours where nothing has a use for them, or where there are none.
    """
    users = [step for step in kinds if step.needs_statistics]
    if not users and prior != "matched":
        if colours:
            raise PdsError("colours=True: neither the prior nor a step uses the data's spectrum; use prior 'matched'")
        return None
    if statistics is None and prior != "matched" and _is_zero(options.get("spectrum")):
        height, width, channels = shape  # all that is asked of the data is multiplied by 0
        return np.zeros(shape, np.float32), np.zeros((height, width // 2 + 1, channels), np.float32)
    mean, power = checked_moments(statistics, shape)
    if not colours:
        return mean, power
    if shape[2] == 1:
        raise PdsError("colours=True: images of one channel have none")
    if len(statistics) < 3:
        raise PdsError(
            "colours=True needs the cross-spectra of the channels, which these statistics do not hold; make them again "
            "with scripts/make_statistics.py, or use colours=False"
        )
    cross = np.asarray(statistics[2])
    if cross.shape != (*power.shape[:2], shape[2] * (shape[2] - 1) // 2) or not np.isfinite(cross).all():
        raise PdsError(f"the cross-spectra are {cross.shape} or not finite; make the statistics again")
    return mean, *in_colours(power, cross, shape[1])


def _is_zero(value: Any) -> bool:
    return value is not None and np.ndim(value) == 0 and float(value) == 0


def checked_moments(statistics: Any, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(mean, power) as float32 on the host, fit for images of a shape.

    Args:
      statistics: (mean, power) in the model's range, ``Statistics.to_range(config.data.centered)``, or three with the
        cross-spectra, ``Statistics.moments(config.data.centered)``.
      shape: (H, W, C).

    Returns:
      mean (H, W, C) and power (H, W // 2 + 1, C).

    Raises:
      PdsError: missing, of another shape, not finite, or a power that is not positive.
    """
    if statistics is None:
        raise PdsError("this sampler needs the data's statistics: pass --statistics (scripts/make_statistics.py)")
    if hasattr(statistics, "to_range"):
        raise PdsError("pass statistics in the model's range: statistics.to_range(config.data.centered)")
    mean, power = (np.asarray(v, np.float32) for v in statistics[:2])
    height, width, channels = shape
    if mean.shape != shape or power.shape != (height, width // 2 + 1, channels):
        raise PdsError(f"the statistics are of images {mean.shape} with power {power.shape}, the sampler makes {shape}")
    if not (np.isfinite(mean).all() and np.isfinite(power).all() and power.min() > 0):
        raise PdsError("statistics: mean and power must be finite, power > 0; run scripts/make_statistics.py again")
    check_even(power, width, "statistics: the power")
    return mean, power


def _check_steps(predictor: Step, corrector: Step, options: dict[str, Any], grid: Any) -> None:
    if not predictor.any_grid and predictor.name != "none" and not (isinstance(grid, str) and grid == "uniform"):
        raise PdsError(
            f"predictor {predictor.name!r} steps through the SDE's own levels: use grid 'uniform', not {grid!r}"
        )
    if predictor.build is not None and corrector.name != "none":
        raise PdsError(
            f"predictor {predictor.name!r} defines its own evaluations and takes no corrector, not {corrector.name!r}: "
            "use corrector 'none', or a predictor of one step (ddim, heun, spectral_ddim)"
        )
    remembers = predictor.multistep and options.get("kappa") != 0
    if remembers and corrector.name != "none" and predictor.second is None:
        raise PdsError(
            f"predictor {predictor.name!r} compares two steps, between which corrector {corrector.name!r} would put "
            "its noise: use corrector 'none', or a predictor of one step (ddim, heun, spectral_ddim)"
        )
    for name, value in options.items():
        # Without a predictor the variant still says whether the prior is multiplied by M.
        if name not in corrector.options and not (name == "variant" and predictor.name == "none"):
            predictor.check({name: value})


def _check_levels(predictor: Step, corrector: Step, prior: str, head_start: Any, corrector_levels: Any) -> None:
    if head_start is not None:
        if not predictor.any_grid:
            raise PdsError(
                f"head_start={head_start}: predictor {predictor.name!r} steps through the SDE's own levels; use one of "
                "any grid (spectral, sde_dpmpp_2m, dpmpp_2m)"
            )
        if prior != "matched":
            raise PdsError(f"head_start={head_start} begins from the data's own law there: use prior 'matched'")
    if corrector_levels is not None:
        if corrector.name == "none":
            raise PdsError(f"corrector_levels={corrector_levels}: there is no corrector")
        try:
            low, high = (float(v) for v in corrector_levels)
        except (TypeError, ValueError):
            low = high = math.nan
        if not 0 <= low <= high:
            raise PdsError(f"corrector_levels={corrector_levels}: give the lowest and the highest noise level")


def _check_preconditioner(m: Preconditioner, predictor: Step, options: dict[str, Any]) -> None:
    if m.is_identity or predictor.name == "none":
        return
    if not predictor.uses_M and (predictor.draws or "churn" in predictor.options):
        raise PdsError(
            f"predictor {predictor.name!r} adds white noise, as its source defines it, and has no form with M: use "
            "alpha=inf, or sde_dpmpp_2m, spectral_ancestral, reverse_diffusion"
        )
    if not predictor.uses_M:
        raise PdsError(
            f"predictor {predictor.name!r} solves an ordinary differential equation, which has no noise for M to act "
            "on: use alpha=inf, or a predictor with noise (sde_dpmpp_2m, spectral_ancestral, reverse_diffusion)"
        )
    if options["probability_flow"] and options["variant"] == "exact":
        raise PdsError("the exact probability flow has no noise for M to act on; use variant 'paper' or alpha=inf")
