"""Linear multistep methods: one step function whose weights are computed on the host in float64.

With x̄ = x/m_t, σ its noise level and q the network outputs kept from earlier rows, newest first, a row computes

    x̂  = base + Σ_j c_j q_j                    where it corrects the state that it was evaluated at, else x̂ = x̄
    base = k x̂ + n z
    x̄' = base + Σ_j p_j q_j

q is the denoised image D (``prediction="data"``) or (x̄ − D)/σ, the slope dx̄/dσ of the probability flow
(``prediction="noise"``). A method is the function that gives k, n, p and c for a list of levels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax.numpy as jnp
import numpy as np

from pds_jax.ops import batch_mul
from pds_jax.sde_lib import SDE
from pds_jax.spectral import noise_level
from pds_jax.steps import number
from pds_jax.table import Row
from pds_jax.types import Array, PdsError, ScoreFn, unknown_name

PREDICTIONS = ("data", "noise")
_NODES, _GAUSS = np.polynomial.legendre.leggauss(64)


@dataclasses.dataclass
class Weights:
    """The weights of N rows that keep K answers; float64.

    Attributes:
      keep: (N,) k.
      noise: (N,) n.
      predict: (N, K) p, of the answer at the row itself first.
      correct: (N, K) c.
      corrects: (N,) whether the row corrects its state.
      seed: (N,) what x̄ is multiplied by to stand for the answer before, where that was not asked for; 0 elsewhere.
    """

    keep: np.ndarray
    noise: np.ndarray
    predict: np.ndarray
    correct: np.ndarray
    corrects: np.ndarray
    seed: np.ndarray

    @classmethod
    def blank(cls, rows: int, keeps: int) -> Weights:
        """Rows that leave x̄ as it is."""
        columns = [np.zeros(rows) for _ in range(3)]
        return cls(np.ones(rows), columns[0], np.zeros((rows, keeps)), np.zeros((rows, keeps)), *columns[1:])

    def to_data(self, last: float, prediction: str) -> Weights:
        """With one row more, from the last level to the data: x̄' = D."""
        end = Weights.blank(1, self.predict.shape[1])
        end.keep[0], end.predict[0, 0] = (0.0, 1.0) if prediction == "data" else (1.0, -last)
        pairs = ((getattr(self, f.name), getattr(end, f.name)) for f in dataclasses.fields(self))
        return Weights(*(np.concatenate(pair) for pair in pairs))

    def stacked(self) -> np.ndarray:
        """(N, 4 + 2 K), as ``row.coefficients`` has them."""
        scalars = np.stack([self.keep, self.noise, self.corrects, self.seed], axis=1)
        return np.concatenate([scalars, self.predict, self.correct], axis=1)


@flax.struct.dataclass
class History:
    """What a linear method keeps.

    Attributes:
      base: (B, H, W, C), see the top of this module; None where nothing is corrected.
      answers: (K, B, H, W, C), newest first.
    """

    base: Array | None
    answers: Array


def keeps(count: int, corrects: bool = False) -> Callable[[Array], History]:
    """The memory before the first row, of a method that keeps `count` answers."""

    def start(x: Array) -> History:
        return History(jnp.zeros_like(x) if corrects else None, jnp.zeros((count, *x.shape), x.dtype))

    return start


def advance(
    x: Array,
    t: Array,
    z: Array | None,
    *,
    sde: SDE,
    score_fn: ScoreFn,
    t_next: Array,
    memory: History,
    row: Row,
    prediction: str = "data",
) -> tuple[Array, Array, History]:
    """One row; x (B, H, W, C) at t (B,), z its noise or None.

    Returns:
      x at t_next, the same without the noise, and the memory.
    """
    (m, level), (m_next, _) = noise_level(sde, t), noise_level(sde, t_next)
    count = memory.answers.shape[0]
    keep, noise, corrects, seed = (row.coefficients[i] for i in range(4))
    x_bar, s = batch_mul(1 / m, x), score_fn(x, t)
    answer = batch_mul(-m * level, s) if prediction == "noise" else x_bar + batch_mul(m * jnp.square(level), s)
    before = jnp.where(seed != 0, seed * x_bar, memory.answers[0])
    answers = jnp.concatenate([answer[None], before[None], memory.answers[1:-1]])[:count]
    if memory.base is not None:
        corrected = memory.base + _combined(row.coefficients[4 + count : 4 + 2 * count], answers)
        x_bar = jnp.where(corrects != 0, corrected, x_bar)
    quiet, added = keep * x_bar, 0.0 if z is None else noise * z
    base = quiet + added
    change = _combined(row.coefficients[4 : 4 + count], answers)
    x, x_mean = (batch_mul(m_next, start + change) for start in (base, quiet))
    return x, x_mean, History(None if memory.base is None else base, answers)


def on_noise(
    x: Array, t: Array, z: Array | None, *, sde: SDE, score_fn: ScoreFn, t_next: Array, memory: History, row: Row
) -> tuple[Array, Array, History]:
    """:func:`advance` on the slopes of the probability flow."""
    inputs: Any = {"sde": sde, "score_fn": score_fn, "t_next": t_next, "memory": memory, "row": row}
    return advance(x, t, z, prediction="noise", **inputs)


def on_data(
    x: Array, t: Array, z: Array | None, *, sde: SDE, score_fn: ScoreFn, t_next: Array, memory: History, row: Row
) -> tuple[Array, Array, History]:
    """:func:`advance` on the denoised images."""
    inputs: Any = {"sde": sde, "score_fn": score_fn, "t_next": t_next, "memory": memory, "row": row}
    return advance(x, t, z, prediction="data", **inputs)


def _combined(weights: Array, answers: Array) -> Array:
    """Σ_j w_j q_j; written out, since a matrix product may have fewer digits."""
    total = weights[0] * answers[0]
    for j in range(1, answers.shape[0]):
        total = total + weights[j] * answers[j]
    return total


def lagrange(at: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(J, Q) the J basis polynomials that are 1 at one of `at` (J,) and 0 at the others, at points (Q,)."""
    at = np.asarray(at, np.float64)
    columns = []
    for j, node in enumerate(at):
        others = np.delete(at, j)
        columns.append(np.prod((points[None] - others[:, None]) / (node - others)[:, None], axis=0))
    return np.stack(columns)


def quadrature(start: float, end: float) -> tuple[np.ndarray, np.ndarray]:
    """Gauss–Legendre points and weights for an integral from start to end, exact to degree 127."""
    half = (end - start) / 2
    return start + half * (_NODES + 1), half * _GAUSS


def whole(options: dict[str, Any], name: str, low: int, high: int, method: str) -> int:
    """An option that is a whole number in a range.

    Raises:
      PdsError: it is not.
    """
    value = number(options[name])
    if not low <= value <= high or int(value) != value:
        raise PdsError(f"{method}: {name}={options[name]}; use a whole number from {low} to {high}")
    return int(value)


def flag(options: dict[str, Any], name: str, method: str) -> bool:
    """An option that is true or false, or 1 or 0.

    Raises:
      PdsError: it is not.
    """
    value = options[name]
    if not isinstance(value, int | float | np.number | np.bool_) or value not in (0, 1):
        raise PdsError(f"{method}: {name}={value}; use true or false")
    return bool(value)


def chosen(options: dict[str, Any], name: str, known: tuple[str, ...], method: str) -> str:
    """An option that is one of some words.

    Raises:
      PdsError: it is not.
    """
    if options[name] not in known:
        raise PdsError(f"{method}: {unknown_name(name, options[name], known)}")
    return str(options[name])


def enough(steps: int, order: int, method: str) -> None:
    """Refuse fewer steps than the order.

    Raises:
      PdsError: names the least number.
    """
    if steps < order:
        raise PdsError(f"{method}: order {order} needs at least {order} steps, got {steps}; use more, or a lower order")
