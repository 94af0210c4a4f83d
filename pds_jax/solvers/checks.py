"""Checks of the options of solvers, on the host, before any long work."""

from __future__ import annotations

from typing import Any

import numpy as np

from pds_jax.steps import number
from pds_jax.types import PdsError, unknown_name


def whole_number(options: dict[str, Any], name: str, low: int, high: int, method: str) -> int:
    """An option that is a whole number in a range.

    Raises:
      PdsError: it is not.
    """
    value = number(options[name])
    if not low <= value <= high or int(value) != value:
        raise PdsError(f"{method}: {name}={options[name]}; use a whole number from {low} to {high}")
    return int(value)


def true_or_false(options: dict[str, Any], name: str, method: str) -> bool:
    """An option that is true or false, or 1 or 0.

    Raises:
      PdsError: it is not.
    """
    value = options[name]
    if not isinstance(value, int | float | np.number | np.bool_) or value not in (0, 1):
        raise PdsError(f"{method}: {name}={value}; use true or false")
    return bool(value)


def one_of(options: dict[str, Any], name: str, known: tuple[str, ...], method: str) -> str:
    """An option that is one of some words.

    Raises:
      PdsError: it is not.
    """
    if options[name] not in known:
        raise PdsError(f"{method}: {unknown_name(name, options[name], known)}")
    return str(options[name])


def check_steps(steps: int, order: int, method: str) -> None:
    """Refuse fewer steps than the order.

    Raises:
      PdsError: names the least number.
    """
    if steps < order:
        raise PdsError(f"{method}: order {order} needs at least {order} steps, got {steps}; use more, or a lower order")
