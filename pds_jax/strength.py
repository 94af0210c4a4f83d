"""Build the M that a configuration's section ``pds`` describes.

M is made from the data's statistics and a strength α, from the masks of the released PDS code and α, or from a radius
and a gain, without data and α.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from typing import Any

from pds_jax import preconditioner, solenoidal
from pds_jax.alpha import alpha_auto, parse_alpha
from pds_jax.filters import RECIPES
from pds_jax.preconditioner import Preconditioner
from pds_jax.predictors import get_predictor
from pds_jax.sde_lib import SDE
from pds_jax.types import PdsError, check_choice

_ALPHA_OF_THE_PAPERS = 5.0


def check(pds: Any, given: Collection[str]) -> None:
    """Check the section ``pds``: unknown names, a radius or gain without effect, and fields that M does not use.

    Args:
      pds: the section of a configuration.
      given: the fields of it that were given.

    Raises:
      PdsError: names the field and says why.
    """
    check_choice("filters", pds.filters, (*preconditioner.FILTERS, "flat"))
    check_choice("recipe", pds.recipe, RECIPES)
    if not pds.r and (pds.lam != 1 or "lam" in given or "r" in given):
        raise PdsError(
            f"r={pds.r} and lam={pds.lam}: the two-number filter needs a radius r > 0 (--radius) and a gain; for "
            "one gain at all frequencies use filters=flat and gain"
        )
    if "r" in given and "lam" not in given and pds.lam == 1:
        raise PdsError(f"r={pds.r}: with lam=1 M is the identity; give lam too, e.g. lam=1.6")
    for names, reason in _not_of(pds):
        for name in names:
            if name in given:
                raise PdsError(f"{name}={pds[name]} has no effect here: {reason}; leave it out")


def _not_of(pds: Any) -> Iterator[tuple[Collection[str], str]]:
    """(fields that M is not made of, why)."""
    if pds.filters == "flat":
        yield ("recipe",), "a flat M has none"
        return
    yield ("gain",), "it belongs to filters=flat"
    if pds.r:
        yield ("filters", "recipe"), "M comes from the radius and lam"
    elif pds.freq_mask_path or pds.space_mask_path:
        yield ("filters",), "M comes from the masks"


def get_strength(config: Any, sde: SDE, steps: int, statistics: Any) -> float | str:
    """α of a configuration with "auto" resolved for N = `steps`; infinity for no PDS, or "tune".

    Raises:
      PdsError: not a number above 1, or there is no α to choose.
    """
    pds, options = config.pds, config.sampling
    value = parse_alpha(pds.alpha)
    if isinstance(value, str):
        _check_chosen(config, value)
    if value == "auto":
        corrector = options.corrector != "none"
        n_steps, centered = options.n_steps_each, config.data.centered
        return float(alpha_auto(sde, steps, corrector, options.snr, n_steps, statistics, centered))
    if value == math.inf and (pds.freq_mask_path or pds.space_mask_path):
        return _ALPHA_OF_THE_PAPERS
    return value


def _check_chosen(config: Any, how: str) -> None:
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


def get_preconditioner(config: Any, shape: tuple[int, int, int], alpha: float, statistics: Any) -> Preconditioner:
    """M of a configuration for images of a shape (H, W, C), its solenoidal term included.

    Raises:
      PdsError: fields that exclude each other, filters of another shape, or statistics needed and missing.
    """
    m, strength = _filters(config, shape, alpha, statistics), float(config.pds.get("solenoidal", 0.0))
    return solenoidal.with_solenoidal(m, strength, shape) if strength else m


def _filters(config: Any, shape: tuple[int, int, int], alpha: float, statistics: Any) -> Preconditioner:
    pds = config.pds
    masks = pds.freq_mask_path or pds.space_mask_path
    if pds.filters == "flat":
        if pds.r or masks or not math.isinf(alpha):
            raise PdsError("filters=flat is M = gain I: it takes gain, not alpha, masks or the two-number filter")
        return preconditioner.flat(float(pds.get("gain", 1.0)))
    if pds.r and masks:
        raise PdsError("choose either masks from files or the two-number filter (radius, lam), not both")
    if pds.r:
        if not math.isinf(alpha):
            raise PdsError(f"alpha={alpha:g}: the two-number filter (radius, lam) has no alpha; leave one of them out")
        return preconditioner.from_radius(shape, pds.r, pds.lam)
    if masks:
        paths = (pds.freq_mask_path or None, pds.space_mask_path or None)
        m = preconditioner.from_masks(*paths, alpha, pds.recipe)
    elif math.isinf(alpha):
        return preconditioner.identity()
    elif statistics is None:
        raise PdsError(
            f"alpha={alpha:g} needs the data's statistics: pass --statistics=FILE.npz (make one with "
            "scripts/make_statistics.py), --freq_mask_path, or the two-number filter --radius and --lam"
        )
    else:
        m = preconditioner.from_statistics(statistics, alpha, pds.filters, pds.recipe)
    m.check_shape(shape)
    return m
