"""Memory that a network's evaluation needs, estimated from its traced program: nothing is compiled or run."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.extend.core
import numpy as np


def peak_bytes(fn: Callable[..., Any], *arguments: Any) -> int:
    """Most bytes that are live at once between the operations of ``fn``, its arguments not counted.

    ``arguments`` may be ``jax.ShapeDtypeStruct``. A value lives from the operation that makes it to the last that takes
    it, so fused operations need less and an operation's own work space comes on top.
    """
    return _peak(jax.make_jaxpr(fn)(*arguments).jaxpr)


def _peak(jaxpr: Any) -> int:
    last = {var: number for number, equation in enumerate(jaxpr.eqns) for var in _variables(equation.invars)}
    last |= {var: len(jaxpr.eqns) for var in _variables(jaxpr.outvars)}
    live, peak, alive = 0, 0, set()
    for number, equation in enumerate(jaxpr.eqns):
        made = sum(_bytes(var) for var in equation.outvars)
        inside = max((_peak(part) for part in _parts(equation.params)), default=0)
        peak = max(peak, live + max(made, inside))
        for var in equation.outvars:
            if last.get(var, -1) > number:
                alive.add(var)
                live += _bytes(var)
        for var in set(_variables(equation.invars)) & alive:
            if last[var] == number:
                alive.remove(var)
                live -= _bytes(var)
    return peak


def _variables(atoms: Any) -> list[Any]:
    return [atom for atom in atoms if isinstance(atom, jax.extend.core.Var)]


def _parts(params: dict[str, Any]) -> list[Any]:
    """The programs inside an operation, such as those of a jitted block."""
    found = []
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            jaxpr = getattr(item, "jaxpr", item)
            if hasattr(jaxpr, "eqns"):
                found.append(jaxpr)
    return found


def _bytes(var: Any) -> int:
    return math.prod(var.aval.shape) * np.dtype(var.aval.dtype).itemsize if hasattr(var.aval, "shape") else 0
