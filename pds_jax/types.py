"""Types shared by the whole package: array aliases, the registry, the score-function protocol and the error class."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
import numpy as np

_Entry = TypeVar("_Entry")
Array = jax.Array
Key = jax.Array


class PdsError(ValueError):
    """Bad input, found before any long work starts; the message says what, where and what to do."""


def unknown_name(what: str, name: Any, known: Iterable[str]) -> str:
    """The text of an error on a name that is not one of the known ones; it suggests the nearest.

    >>> unknown_name("corrector", "langevine", ["ald", "langevin"])
    "unknown corrector 'langevine'; known: ald, langevin; did you mean langevin?"

    Args:
      what: kind of the name, or the field that holds it.
      name: what was given.
      known: what could be given.
    """
    names = [str(one) for one in known]
    return f"unknown {what} {name!r}; known: {', '.join(names)}{did_you_mean(name, names)}"


def did_you_mean(name: Any, known: Iterable[str]) -> str:
    """The end of an error that suggests the nearest known name; empty if none is near."""
    near = difflib.get_close_matches(str(name), list(known), 1)
    return f"; did you mean {near[0]}?" if near else ""


def check_choice(what: str, value: Any, known: Iterable[str]) -> str:
    """The value of an option that is one of some names.

    Args:
      what: the option, for the message.
      value: what was given.
      known: all names.

    Raises:
      PdsError: the value is none of them; the nearest is named.
    """
    names = tuple(known)
    if not isinstance(value, str) or value not in names:
        raise PdsError(unknown_name(what, value, names))
    return value


class Registry(dict[str, _Entry]):
    """Objects of one kind by name: predictors, correctors, SDEs, grids."""

    def __init__(self, kind: str, entries: Mapping[str, _Entry] | None = None):
        """Start with some entries.

        Args:
          kind: what they are, for messages.
          entries: name -> entry.
        """
        super().__init__(entries or {})
        self.kind = kind

    def find(self, name: str) -> _Entry:
        """The entry called `name`.

        Raises:
          PdsError: unknown name; the message lists the known ones and the nearest.
        """
        if name in self:
            return self[name]
        raise PdsError(unknown_name(self.kind, name, sorted(self)))

    def register(self, name: str) -> Callable[[_Entry], _Entry]:
        """Decorator that registers an object under a name.

        Raises:
          PdsError: the name is taken.
        """

        def enter(entry: _Entry) -> _Entry:
            self.add(name, entry)
            return entry

        return enter

    def add(self, name: str, entry: _Entry) -> None:
        """Register an object under a name.

        Raises:
          PdsError: the name is taken.
        """
        if name in self:
            raise PdsError(f"a {self.kind} named {name!r} is registered already")
        self[name] = entry


@runtime_checkable
class ScoreFn(Protocol):
    """A score function s(x, t) = ∇ₓ log p_t(x).

    To be an argument of a function under ``jax.jit`` it should be a pytree, for instance
    ``jax.tree_util.Partial(fn, params)``.
    """

    def __call__(self, x: Array, t: Array) -> Array:
        """Return the score, float32 (B, H, W, C), of images x (B, H, W, C) at times t (B,)."""
        ...


def is_number(value: Any) -> bool:
    """Whether a value is a number or an array of numbers; options that are get traced."""
    return isinstance(value, int | float | np.number | np.ndarray | jax.Array) and not isinstance(value, bool)
