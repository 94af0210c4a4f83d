"""Options of the sampler that were given and that the sampler they describe does not use."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from pds_jax import assembly
from pds_jax.alpha import CHOSEN
from pds_jax.correctors import get_corrector
from pds_jax.predictors import get_predictor
from pds_jax.types import PdsError

# Fields of the configuration whose flags are called otherwise.
_FLAGS = {"r": "radius"}
_OF_CORRECTOR = ("snr", "n_steps_each", "norm", "corrector_levels")
_OF_PC = (
    "predictor", "corrector", "grid", "variant", "solver_options", "head_start", "colours", "pilot_gain",
    "stochasticity", "spectrum", "kappa", *_OF_CORRECTOR,
)  # fmt: skip
_OF_STATISTICS = ("filters", "recipe", "statistics")


def check(given: Mapping[str, Any], plan: assembly.Plan) -> None:
    """Refuse an option without effect.

    Args:
      given: field of config.sampling or config.pds -> value.
      plan: what they led to.

    Raises:
      PdsError: names the first and says why.
    """
    for names, reason in _without_effect(given, plan):
        for name in names:
            if name in given:
                raise PdsError(f"--{_FLAGS.get(name, name)} has no effect here: {reason}; leave it out")


def _without_effect(given: Mapping[str, Any], plan: assembly.Plan) -> Iterator[tuple[Collection[str], str]]:
    """(fields, why they do nothing)."""
    options, pds = plan.config.sampling, plan.config.pds
    needs_statistics = options.get("prior") == "matched" or options.get("grid") == "spectrum"
    if options.method == "ode":
        yield _OF_PC, "method 'ode' solves the flow adaptively"
    else:
        steps = get_predictor(options.predictor), get_corrector(options.corrector)
        needs_statistics |= any(step.needs_statistics for step in steps)
        if plan.sampler.moments is None:
            yield ("colours",), "neither the prior nor a step uses the data's spectrum"
        if options.predictor != "spectral":
            yield ("pilot_gain",), "it corrects the steps of predictor 'spectral'"
        if options.corrector == "none":
            yield _OF_CORRECTOR, "there is no corrector"
        elif options.corrector != "langevin":
            yield ("norm",), f"corrector {options.corrector!r} takes no norms"
        if options.predictor == "none":
            yield ("grid", "variant"), "there is no predictor"
    masks, m = pds.freq_mask_path or pds.space_mask_path, plan.preconditioner
    needs_statistics |= pds.alpha in CHOSEN
    if (pds.r or masks or pds.filters == "flat") and not needs_statistics:
        yield ("statistics",), "M does not come from statistics"
    if m.is_identity and "alpha" not in given:
        why = "PDS is off (no --alpha)"
        yield ("filters", "gain", "recipe", "variant"), "gain is 1" if pds.filters == "flat" else why
        if not needs_statistics:
            yield ("statistics",), why
