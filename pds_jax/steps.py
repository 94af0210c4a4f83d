"""Records of predictors and correctors, made from the signatures of their functions.

A step is a pure function

    fn(x, t, z, *, ...) -> (x, x_mean)            or (x, x_mean, memory) if it takes ``memory``

of images x (B, H, W, C) at times t (B,) and standard normal noise z like x, all float32. x_mean is x before its noise
was added. Keywords in :data:`INPUTS` are supplied by the loop; all others are options of the step, with a default. An
option that a step lacks raises an error that names it.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from pds_jax.types import Array, PdsError, Registry, did_you_mean

# Inputs a step can request: the SDE; the score at (x, t); M; the time to step to (B,), 0 for the data; (mean, power) of
# the data; the memory from its last row; the row of the table; the mean of norms over images (``correctors.NORMS``).
INPUTS = ("sde", "score_fn", "preconditioner", "t_next", "moments", "memory", "row", "mean_fn")
_WORDS = {"inf": math.inf, "true": True, "false": False}  # in text, beside Python's own True, False and None
_NEUTRAL = {"variant": "paper", "probability_flow": False}  # options of every sampler -> what asks for nothing
_ALWAYS_GIVEN = ("snr", *_NEUTRAL)  # options that a step can have without a default


@dataclasses.dataclass(frozen=True)
class Step:
    """One predictor or corrector.

    Attributes:
      kind: "predictor" or "corrector".
      name: its name in the registry.
      fn: the function.
      draws: noise draws a row, 0 or 1; z is None where it is 0.
      second: a second stage, a row of its own at t_next, left out where t_next is the data; it shares the memory. The
        decorator takes its function, or a step.
      is_single_stage: options -> whether every step omits `second`; None for never.
      coefficients: (sde, times (N,), options) -> (N, K) float64, weights computed on the host, for
        ``row.coefficients``.
      build: (sde, times, step, options) -> ``table.Table``, for a method whose rows are not one per time; else None.
      extra_rows: options -> rows of its table in addition to those of its steps; None for none.
      init_memory: x -> ``memory`` before the first row, arrays of the shapes that the step returns.
      host_options: options read on the host by `coefficients` and `build` only -> their defaults.
      min_steps: fewest steps that the method is defined for.
      has_stability_limit: whether the step diverges for a large M (``stability.check_stability``).
      validate: (options, M, shape) -> None, raises an error for options that the step cannot use.
      inputs: those of :data:`INPUTS` that it takes.
      options: its own keywords, and those of `host_options` -> their defaults.
    """

    kind: str
    name: str
    fn: Callable[..., tuple[Any, ...]]
    draws: int = 1
    second: Step | None = None
    is_single_stage: Callable[[dict[str, Any]], bool] | None = None
    coefficients: Callable[..., np.ndarray] | None = None
    build: Callable[..., Any] | None = None
    extra_rows: Callable[[dict[str, Any]], int] | None = None
    init_memory: Callable[[Array], Any] | None = None
    host_options: dict[str, Any] = dataclasses.field(default_factory=dict, hash=False, compare=False)
    min_steps: int = 2
    has_stability_limit: bool = True
    validate: Callable[..., None] | None = None
    inputs: tuple[str, ...] = ()
    options: dict[str, Any] = dataclasses.field(default_factory=dict, hash=False, compare=False)

    def __post_init__(self) -> None:
        parameters = inspect.signature(self.fn).parameters.values()
        keywords = [p for p in parameters if p.kind == inspect.Parameter.KEYWORD_ONLY]
        object.__setattr__(self, "inputs", tuple(p.name for p in keywords if p.name in INPUTS))
        own = {p.name: p.default for p in keywords if p.name not in INPUTS}
        object.__setattr__(self, "options", {**own, **self.host_options})

    def __call__(self, x: Array, t: Array, z: Array | None, **kwargs: Any) -> tuple[Any, ...]:
        """Take the step; inputs that the function does not take are dropped, unknown options raise an error.

        Raises:
          PdsError: an option, or M, that the step does not take, or results of another number.
        """
        self.check({name: value for name, value in kwargs.items() if name not in INPUTS})
        if not self.uses_M and not getattr(kwargs.get("preconditioner"), "is_identity", True):
            raise PdsError(f"{self.kind} {self.name!r} does not apply M; leave it out")
        taken = {name: value for name, value in kwargs.items() if name in self.inputs or self.takes(name)}
        if taken.get("preconditioner", self) is None:
            del taken["preconditioner"]
        found = self.fn(x, t, z, **taken)
        if not isinstance(found, tuple) or len(found) != 2 + self.multistep:
            what = f"{len(found)} results" if isinstance(found, tuple) else "one result"
            expected = "(x, x_mean, memory), since it takes memory" if self.multistep else "(x, x_mean)"
            raise PdsError(f"{self.kind} {self.name!r} returned {what}: return {expected}")
        return found

    def takes(self, name: str) -> bool:
        """Whether an option is a keyword of the function."""
        return name in self.options and name not in self.host_options

    def check(self, options: dict[str, Any]) -> None:
        """Refuse an option that this step does not take.

        Raises:
          PdsError: names it, and the options there are.
        """
        for name, value in options.items():
            if name not in self.options and not (name in _NEUTRAL and value == _NEUTRAL[name]):
                own = ", ".join(self.options) or "no options"
                raise PdsError(f"{self.kind} {self.name!r} has no {name} option; it takes {own}")

    @property
    def uses_M(self) -> bool:  # noqa: N802
        """Whether it applies M; otherwise M is refused."""
        return "preconditioner" in self.inputs

    @property
    def any_grid(self) -> bool:
        """Whether it can step between any two times, and to the data (t_next = 0)."""
        return "t_next" in self.inputs

    @property
    def multistep(self) -> bool:
        """Whether it keeps something from row to row."""
        return "memory" in self.inputs

    @property
    def needs_statistics(self) -> bool:
        """Whether it needs the data's mean and spectrum."""
        return "moments" in self.inputs

    @property
    def stages(self) -> int:
        """Rows a step; 0 for "none"."""
        if self.name == "none":
            return 0
        return 1 if self.second is None else 1 + self.second.stages


def registrar(registry: Registry[Step]) -> Callable[..., Callable[[Callable[..., Any]], Step]]:
    """The decorator that registers steps."""

    def register(name: str, **traits: Any) -> Callable[[Callable[..., Any]], Step]:
        """Decorator: register a function as a step; ``traits`` are attributes of :class:`Step`.

        Raises:
          PdsError: the name is taken, or the function is not of the form of a step.
        """

        def enter(fn: Callable[..., Any]) -> Step:
            second = traits.get("second")
            if second is not None and not isinstance(second, Step):
                second = Step(registry.kind, f"{name}_second", second, draws=0)
            step = Step(registry.kind, name, fn, **{**traits, "second": second})
            if name not in registry:
                _check_form(step)
            registry.add(name, step)
            return step

        return enter

    return register


def _check_form(step: Step) -> None:
    """Refuse a function that is not fn(x, t, z, *, ...), and keywords that nothing would supply.

    Raises:
      PdsError: says what to write instead.
    """
    what, keyword = f"{step.kind} {step.name!r}", inspect.Parameter.KEYWORD_ONLY
    for fn in (step.fn, *([] if step.second is None else [step.second.fn])):
        signature = inspect.signature(fn)
        kinds = [
            p.kind for p in signature.parameters.values() if p.kind not in (keyword, inspect.Parameter.VAR_KEYWORD)
        ]
        if kinds != [inspect.Parameter.POSITIONAL_OR_KEYWORD] * 3:
            raise PdsError(f"{what}: write fn(x, t, z, *, ...), with every other argument after the *; got {signature}")
        for p in signature.parameters.values():
            if p.kind == keyword and p.default is p.empty and p.name not in (*INPUTS, *_ALWAYS_GIVEN):
                hint = did_you_mean(p.name, INPUTS) or f" (the inputs are {', '.join(INPUTS)})"
                raise PdsError(f"{what}: keyword {p.name} is no input, so it is an option and needs a default{hint}")
    if step.multistep and step.init_memory is None:
        raise PdsError(
            f"{what} takes memory: register it with init_memory=, a function of x (B, H, W, C) that makes the memory "
            "before the first row, e.g. solvers.Memory.empty or solvers.linear.keeps(2)"
        )


def named_options(given: Any) -> dict[str, Any]:
    """Options by name from a mapping, or from text like ``order=2,form=bh1,restarts=((3,2,0.06,0.3),)``.

    >>> named_options("order=2, form=bh1, tau=(1, 0.2, 0.8)")
    {'order': 2, 'form': 'bh1', 'tau': (1, 0.2, 0.8)}

    Raises:
      PdsError: text of another form, or a name given twice.
    """
    if not isinstance(given, str):
        return dict(given or {})
    try:
        call = ast.parse(f"f({given})", mode="eval").body
        assert isinstance(call, ast.Call) and not call.args and all(word.arg for word in call.keywords)
        found = {str(word.arg): _literal(word.value) for word in call.keywords}
    except (SyntaxError, ValueError, AssertionError, AttributeError) as error:
        raise PdsError(f"solver_options={given!r}: write NAME=VALUE,NAME=VALUE, e.g. order=2,form=bh1,rho=5") from error
    names = [str(word.arg) for word in call.keywords]
    for name in found:
        if names.count(name) > 1:
            raise PdsError(f"solver_options={given!r}: {name} is given {names.count(name)} times; give it once")
    return found


def number(value: Any) -> float:
    """An option as a float; NaN, which fails every range check, if it is not a number."""
    try:
        return math.nan if isinstance(value, str | bool) or np.ndim(value) else float(value)
    except (TypeError, ValueError):
        return math.nan


def numbers(value: Any, count: int) -> tuple[float, ...]:
    """An option of several numbers as floats; NaN where it is none or of another length."""
    given = value.tolist() if isinstance(value, np.ndarray) else value
    if not isinstance(given, tuple | list) or len(given) != count:
        return (math.nan,) * count
    return tuple(number(one) for one in given)


def read_value(text: str) -> Any:
    """A value as in the text of :func:`named_options`; text that is none of those, such as a path, stays as it is."""
    try:
        return _literal(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError):
        return text


def _literal(node: ast.expr) -> Any:
    """A number, a tuple of numbers, or a name as a string; inf, true, false, True, False and None are converted."""
    if isinstance(node, ast.Name):
        return _WORDS.get(node.id, node.id)
    return ast.literal_eval(node)
