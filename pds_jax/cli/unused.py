"""Options of the sampler that were given and that the sampler they describe does not use."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from pds_jax import assembly
from pds_jax import options as options_lib
from pds_jax.alpha import CHOSEN
from pds_jax.correctors import get_corrector
from pds_jax.predictors import get_predictor
from pds_jax.types import PdsError

_OF_CORRECTOR = ("snr", "n_steps_each", "norm", "corrector_levels")
_OF_PC = (
    "predictor", "corrector", "grid", "variant", "solver_options", "head_start", "colours", "pilot_gain",
    "stochasticity", "spectrum", "kappa", *_OF_CORRECTOR,
)  # fmt: skip


def check_options(given: Mapping[str, Any], config: ConfigDict) -> None:
    """Refuse an option without effect, as far as that can be said before a plan is made, which may measure for long.

    Args:
      given: field of config.sampling or config.pds -> value.
      config: of the model.

    Raises:
      PdsError: names the first and says why.
    """
    alpha = options_lib.of_alpha(given.get("alpha"))
    own = {name: value for name, value in given.items() if name not in ("nfe", "speed_up", "alpha")}
    config = options_lib.with_options(config, {**own, **alpha})
    if config.sampling.predictor != "auto":
        _refuse(given, _without_effect(config))


def check(given: Mapping[str, Any], plan: assembly.Plan) -> None:
    """Refuse an option without effect in the plan that was made; arguments and errors as :func:`check_options`."""
    _refuse(given, _without_effect(plan.config))
    _refuse(given, _without_effect_in(plan, "alpha" in given))


def _refuse(given: Mapping[str, Any], without_effect: Iterator[tuple[Collection[str], str]]) -> None:
    for names, reason in without_effect:
        for name in names:
            if name in given:
                raise PdsError(f"--{name} has no effect here: {reason}; leave it out")


def _without_effect(config: ConfigDict) -> Iterator[tuple[Collection[str], str]]:
    """(fields, why they do nothing)."""
    options, pds = config.sampling, config.pds
    if options.method == "ode":
        yield _OF_PC, "method 'ode' solves the flow adaptively"
    else:
        if options.predictor != "spectral":
            yield ("pilot_gain",), "it corrects the steps of predictor 'spectral'"
        if options.corrector == "none":
            yield _OF_CORRECTOR, "there is no corrector"
        elif options.corrector != "langevin":
            yield ("norm",), f"corrector {options.corrector!r} takes no norms"
        if options.predictor == "none":
            yield ("grid", "variant"), "there is no predictor"
    of_two_numbers_or_masks = pds.r or pds.freq_mask_path or pds.space_mask_path
    if (of_two_numbers_or_masks or pds.filters == "flat") and not _needs_statistics(config):
        yield ("statistics",), "M does not come from statistics"


def _without_effect_in(plan: assembly.Plan, has_alpha: bool) -> Iterator[tuple[Collection[str], str]]:
    """(fields, why they do nothing) that only the plan can say."""
    if plan.config.sampling.method != "ode" and plan.sampler.moments is None:
        yield ("colours",), "neither the prior nor a step uses the data's spectrum"
    if plan.preconditioner.is_identity and not has_alpha:
        why = "PDS is off (no --alpha)"
        yield ("filters", "gain", "recipe", "variant"), "gain is 1" if plan.config.pds.filters == "flat" else why
        if not _needs_statistics(plan.config):
            yield ("statistics",), why


def _needs_statistics(config: ConfigDict) -> bool:
    """Whether anything but M is made of statistics."""
    options = config.sampling
    if options.get("prior") == "matched" or options.get("grid") == "spectrum" or config.pds.alpha in CHOSEN:
        return True
    steps = () if options.method == "ode" else (get_predictor(options.predictor), get_corrector(options.corrector))
    return any(step.needs_statistics for step in steps)
