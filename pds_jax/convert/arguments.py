"""Constructor arguments that came out of a file or from a user, each checked as it is asked for."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

from pds_jax.convert.tree import ConversionError


@dataclasses.dataclass(frozen=True)
class Arguments:
    """``values`` by name; ``where`` they are from, for messages. Every method raises ConversionError, naming both."""

    values: Mapping[str, Any]
    where: str

    def refuse(self, name: str, what: str) -> ConversionError:
        """The error that an argument is not ``what``."""
        return ConversionError(f"{self.where}: {name} is {self.values.get(name)!r:.80}, not {what}")

    def _get(self, name: str, default: Any) -> Any:
        if name not in self.values and default is None:
            raise ConversionError(f"{self.where}: the argument {name} is missing")
        return self.values.get(name, default)

    def integer(self, name: str, default: int | None = None, *, least: int = 1, most: int = 1 << 16) -> int:
        """A whole number in a range."""
        value = self._get(name, default)
        if type(value) is not int or not least <= value <= most:
            raise self.refuse(name, f"a whole number from {least} to {most}")
        return value

    def integers(self, name: str, default: Any = None, *, empty: bool = False) -> tuple[int, ...]:
        """A list of whole numbers above 0, at most 64."""
        value = self._get(name, default)
        if not isinstance(value, list | tuple) or not (value or empty) or len(value) > 64:
            raise self.refuse(name, "a list of whole numbers")
        if not all(type(item) is int and 0 < item <= 1 << 16 for item in value):
            raise self.refuse(name, "a list of whole numbers above 0")
        return tuple(value)

    def multiples(self, name: str, default: Any = None) -> tuple[float, ...]:
        """A list of multiples of a width, which may be halves."""
        value = self._get(name, default)
        if not isinstance(value, list | tuple) or not value or len(value) > 64:
            raise self.refuse(name, "a list of numbers")
        if not all(type(item) in (int, float) and 0 < item <= 1 << 10 for item in value):
            raise self.refuse(name, "a list of numbers above 0")
        return tuple(int(item) if item == int(item) else float(item) for item in value)

    def number(self, name: str, default: float) -> float:
        """A finite number."""
        value = self._get(name, default)
        if type(value) not in (int, float) or not math.isfinite(value):
            raise self.refuse(name, "a finite number")
        return float(value)

    def positive(self, name: str, default: float) -> float:
        """A number from 1e-6 to 1e6."""
        value = self.number(name, default)
        if not 1e-6 <= value <= 1e6:
            raise self.refuse(name, "a number from 1e-6 to 1e6")
        return value

    def rate(self, name: str, default: float) -> float:
        """A number from 0 to below 1."""
        value = self.number(name, default)
        if not 0 <= value < 1:
            raise self.refuse(name, "a rate from 0 to below 1")
        return value

    def flag(self, name: str, default: bool) -> bool:
        """True or False."""
        value = self._get(name, default)
        if type(value) is not bool:
            raise self.refuse(name, "True or False")
        return value

    def choice(self, name: str, known: Iterable[str], default: str | None = None) -> str:
        """One of some words."""
        value = self._get(name, default)
        if not isinstance(value, str) or value not in known:
            raise self.refuse(name, f"one of {', '.join(known)}")
        return value
