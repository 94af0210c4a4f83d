"""Check for given sampler options that the resulting plan does not use."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from pds_jax import assembly
from pds_jax import options as options_lib


def check(given: Mapping[str, Any], plan: assembly.Plan) -> None:
    """Refuse an option without effect in a plan; arguments and errors as ``options.check_used``."""
    options_lib.refuse(given, options_lib.without_effect(plan.config), "--")
    options_lib.refuse(given, _without_effect_in(plan, "alpha" in given), "--")


def _without_effect_in(plan: assembly.Plan, has_alpha: bool) -> Iterator[tuple[Collection[str], str]]:
    """(fields, why they do nothing) that only the plan can say."""
    if plan.config.sampling.method != "ode" and plan.sampler.moments is None:
        yield ("colours",), "neither the prior nor a step uses the data's spectrum"
    if plan.preconditioner.is_identity and not has_alpha:
        why = "PDS is off (no --alpha)"
        yield ("filters", "gain", "recipe", "variant"), "gain is 1" if plan.config.pds.filters == "flat" else why
        if not options_lib.needs_statistics(plan.config):
            yield ("statistics",), why
