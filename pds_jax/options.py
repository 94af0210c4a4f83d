"""A sampler's options in a configuration: setting them, and the number of steps of a number of evaluations."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from pds_jax import sampling, strength, table
from pds_jax import statistics as statistics_lib
from pds_jax.alpha import CHOSEN, largest_gain, parse_alpha
from pds_jax.correctors import get_corrector
from pds_jax.loading import Trained
from pds_jax.preconditioner import Preconditioner
from pds_jax.predictors import get_predictor
from pds_jax.steps import named_options
from pds_jax.types import PdsError, is_number, unknown_name

_OF_CORRECTOR = ("snr", "n_steps_each", "norm", "corrector_levels")
_OF_PC = ("predictor", "corrector", "grid", "variant", "solver_options", "pilot_gain", *_OF_CORRECTOR)


def with_options(config: ConfigDict, options: dict[str, Any]) -> ConfigDict:
    """A copy of the configuration with fields of its sampling and pds sections replaced.

    Args:
      config: of a model.
      options: field -> value; ``head_start="off"`` stands for None.

    Returns:
      The copy.

    Raises:
      PdsError: a field that neither section has and no sampler takes.
    """
    changed = ConfigDict(config.to_dict())
    for name, value in options.items():
        value = value.tolist() if isinstance(value, np.ndarray) else value
        value = None if (name, value) == ("head_start", "off") else value
        own = sampling.option_names() | {"pilot_gain", "solver_options"}
        missing = "sampling" if name in own else "pds" if name in ("gain", "solenoidal") else None
        section = next((s for s in ("sampling", "pds") if name in changed[s]), missing)
        if section is None:
            known = sorted({*changed.sampling, *changed.pds, *own})
            raise PdsError(unknown_name("sampling option", name, known))
        with changed.ignore_type():
            changed[section][name] = value
    return changed


def check_count(config: ConfigDict, nfe: Any, speed_up: Any) -> None:
    """Raise if nfe or speed_up is not a number, or is given together with an explicit list of times.

    Args:
      config: with sampling.grid.
      nfe, speed_up: what was given, or None.

    Raises:
      PdsError: one of the two is not a finite number, or the grid is a list of times.
    """
    for name, value in (("nfe", nfe), ("speed_up", speed_up)):
        if value is None:
            continue
        if not is_number(value) or not math.isfinite(value):
            raise PdsError(f"{name}={value!r}: use a number, such as {name}=20")
        if name == "nfe" and int(value) != value:
            raise PdsError(f"nfe={value}: use a whole number, such as nfe={round(value)}")
        if not isinstance(config.sampling.get("grid", ""), str):
            raise PdsError(f"{name}={value:g}: a list of times says how many steps there are; leave one of the two out")


def speed_up_of(trained: Trained, config: ConfigDict, nfe: int) -> float:
    """The speed-up with which a sampler makes as many iterations as a number of evaluations allows.

    Args:
      trained: the model.
      config: with the sampler's options.
      nfe: network evaluations per image, an upper bound.

    Returns:
      The speed-up, ≥ 1.

    Raises:
      PdsError: too few evaluations for one iteration, more iterations than the model's num_scales, or
        ``corrector_levels`` together with the grid "gits".
    """
    options, scales = config.sampling, int(config.model.num_scales)
    steps = get_predictor(options.predictor), get_corrector(options.corrector)
    own = {name: options[name] for name in steps[0].options if name in options}
    own |= named_options(options.get("solver_options", ""))
    n = table.iterations(nfe, *steps, options.n_steps_each, options.noise_removal, own)
    if n > scales:
        raise PdsError(f"nfe={nfe} makes N={n} iterations, more than the model's num_scales={scales}; ask for fewer")
    if options.corrector != "none" and options.get("corrector_levels") is not None:
        if options.get("grid") == "gits":
            raise PdsError(
                f"nfe={nfe}: with corrector_levels it depends on the times, which grid='gits' finds for a number of "
                "steps: give speed_up, or another grid"
            )
        n = _most_iterations(trained, config, n, nfe)
    return _speed_up_to(scales, n)


def _speed_up_to(scales: int, n: int) -> float:
    # The small term keeps int(num_scales / speed_up) from rounding down to one iteration less.
    return max(scales / (n + 1e-6), 1.0)


def _most_iterations(trained: Trained, config: ConfigDict, n: int, nfe: int) -> int:
    """The most iterations, n or more, of an NFE where few of them have a corrector."""
    scales = int(config.model.num_scales)
    low, high = n, min(int(nfe), scales) + 1
    while high - low > 1:
        middle = (low + high) // 2
        tried = {"speed_up": _speed_up_to(scales, middle), "head_start": None}
        fits = evaluations(trained, with_options(config, tried)) <= nfe
        low, high = (middle, high) if fits else (low, middle)
    return low


def evaluations(trained: Trained, config: ConfigDict) -> int:
    """Network evaluations per image of the sampler that a configuration describes, without M.

    Args:
      trained: the model.
      config: with the sampler's options.

    Returns:
      The NFE.

    Raises:
      PdsError: as ``sampling.get_sampling_fn``.
    """
    return int(_sampler(trained, config).nfe)


def checked_evaluations(trained: Trained, config: ConfigDict) -> int:
    """As :func:`evaluations`, and raise if the sampler does not take the configured M.

    Args:
      trained: the model.
      config: with the sampler's options.

    Returns:
      The NFE.

    Raises:
      PdsError: as ``sampling.get_sampling_fn`` and ``strength.get_preconditioner``.
    """
    stats, made = statistics_of(trained, config), _sampler(trained, config)
    alpha = strength.get_strength(config, trained.sde, made.steps, stats)
    if not isinstance(alpha, str):  # "tune"
        _sampler(trained, config, strength.get_preconditioner(config, trained.shape, alpha, stats))
    return int(made.nfe)


def _sampler(trained: Trained, config: ConfigDict, m: Preconditioner | None = None) -> Any:
    stats = statistics_of(trained, config)
    return sampling.get_sampling_fn(config, trained.sde, trained.shape, m, statistics=stats, check=False)


def statistics_of(trained: Trained, config: ConfigDict) -> statistics_lib.Statistics | None:
    """The statistics that a configuration names, else the model's.

    Args:
      trained: the model.
      config: with pds.statistics, a path or "".

    Returns:
      The statistics, or None.

    Raises:
      PdsError: a file that cannot be read, or statistics of images of another shape.
    """
    path = config.pds.get("statistics", "")
    stats = statistics_lib.load(path) if path else trained.statistics
    if stats is not None:
        stats.check_shape(trained.shape)
    return stats


def alpha_options(alpha: float | str | None) -> dict[str, Any]:
    """Options that set α; infinity also turns off masks, which otherwise default to α = 5."""
    if alpha is None:
        return {}
    masks = {"freq_mask_path": "", "space_mask_path": ""} if parse_alpha(alpha) == math.inf else {}
    return {"alpha": alpha, **masks}


def flat_options(gain: float) -> dict[str, Any]:
    """Options of M = c I."""
    return {"filters": "flat", "gain": gain, **alpha_options(math.inf)}


def strength_options(alpha: float, is_flat: bool) -> dict[str, Any]:
    """Options of the M of strength α, or of the flat M with the same largest gain; infinity turns M off."""
    return flat_options(largest_gain(alpha)) if is_flat or math.isinf(alpha) else alpha_options(alpha)


def check_used(given: Mapping[str, Any], config: ConfigDict, mark: str = "") -> None:
    """Raise if an option has no effect, as far as that is known before a plan is made, which may measure for long.

    Args:
      given: field of config.sampling or config.pds -> value.
      config: of the model.
      mark: what stands before a name in the error.

    Raises:
      PdsError: an option has no effect; names the first and the reason.
    """
    own = {name: value for name, value in given.items() if name not in ("nfe", "speed_up", "alpha")}
    refuse(given, without_effect(with_options(config, {**own, **alpha_options(given.get("alpha"))})), mark)


def refuse(given: Mapping[str, Any], unused: Iterable[tuple[Collection[str], str]], mark: str = "") -> None:
    """Raise if an option was given that has no effect.

    Args:
      given: option -> value, None where it was not given.
      unused: (options, why they have no effect).
      mark: what stands before a name in the error.

    Raises:
      PdsError: names the first such option and the reason.
    """
    for names, reason in unused:
        for name in names:
            if given.get(name) is not None:
                raise PdsError(f"{mark}{name} has no effect here: {reason}; leave it out")


def without_effect(config: ConfigDict) -> Iterator[tuple[Collection[str], str]]:
    """Yield (fields, why they have no effect) for the sampler of a configuration."""
    options, pds = config.sampling, config.pds
    if options.method == "ode":
        yield (*_OF_PC, *sorted(sampling.option_names())), "method 'ode' solves the flow adaptively"
    elif options.predictor == "auto":
        yield ("snr", "n_steps_each", "norm"), "predictor=auto takes no corrector"
        return
    else:
        if options.predictor != "spectral":
            yield ("pilot_gain",), "it corrects the steps of predictor 'spectral'"
        if options.corrector == "none":
            yield _OF_CORRECTOR, "there is no corrector"
        elif options.corrector != "langevin":
            yield ("norm",), f"corrector {options.corrector!r} takes no norms"
    of_two_numbers_or_masks = pds.r or pds.freq_mask_path or pds.space_mask_path
    if (of_two_numbers_or_masks or pds.filters == "flat") and not needs_statistics(config):
        yield ("statistics",), "M does not come from statistics"


def needs_statistics(config: ConfigDict) -> bool:
    """Whether anything but M is made of statistics."""
    options = config.sampling
    if options.get("prior") == "matched" or options.get("grid") == "spectrum" or config.pds.alpha in CHOSEN:
        return True
    steps = () if options.method == "ode" else (get_predictor(options.predictor), get_corrector(options.corrector))
    return any(step.needs_statistics for step in steps)
