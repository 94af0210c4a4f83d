"""Linear multistep methods: one step function whose weights are computed on the host in float64.

With x̄ = x/m_t, σ its noise level and q the network outputs kept from earlier rows, newest first, a row computes

    x̂  = base + Σ_j c_j q_j                    where it corrects the state that it was evaluated at, else x̂ = x̄
    base = k x̂ + n z
    x̄' = base + Σ_j p_j q_j

q is the denoised image D (``prediction="data"``) or (x̄ − D)/σ, the slope dx̄/dσ of the probability flow
(``prediction="noise"``). A method is a function that fills :class:`Weights` for a list of levels; Euler's is

    def euler(sde, times, options):
        sigma = np.append(levels(sde, times)[1], 0.0)
        weights = Weights.blank(rows=len(times), keeps=1)
        weights.predict[:, 0] = np.diff(sigma)
        return weights.stacked()

    register_predictor("euler", draws=0, coefficients=euler, init_memory=keeps(1))(on_noise)
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
from pds_jax.table import Row
from pds_jax.types import Array, PdsError, ScoreFn

PREDICTIONS = ("data", "noise")
COLUMNS = ("keep", "noise", "corrects", "seed")  # of a row's coefficients, before its predict and correct
_NODES, _GAUSS = np.polynomial.legendre.leggauss(64)


@dataclasses.dataclass
class Weights:
    """The weights of N rows that keep K outputs; float64.

    Attributes:
      keep: (N,) k.
      noise: (N,) n.
      predict: (N, K) p; column 0 is for the output of the row itself, column 1 for that of the row before.
      correct: (N, K) c, likewise.
      corrects: (N,) 1 where the row corrects its state, else 0.
      seed: (N,) where the row before was not evaluated, its output is taken to be `seed` times x̄; 0 elsewhere.
    """

    keep: np.ndarray
    noise: np.ndarray
    predict: np.ndarray
    correct: np.ndarray
    corrects: np.ndarray
    seed: np.ndarray

    @classmethod
    def blank(cls, rows: int, keeps: int) -> Weights:
        """N rows that leave x̄ as it is, of a method that keeps K outputs."""
        columns = [np.zeros(rows) for _ in range(3)]
        return cls(np.ones(rows), columns[0], np.zeros((rows, keeps)), np.zeros((rows, keeps)), *columns[1:])

    def to_data(self, last: float, prediction: str) -> Weights:
        """With one row more, from the last level to the data: x̄' = D."""
        end = Weights.blank(1, self.predict.shape[1])
        end.keep[0], end.predict[0, 0] = (0.0, 1.0) if prediction == "data" else (1.0, -last)
        pairs = ((getattr(self, f.name), getattr(end, f.name)) for f in dataclasses.fields(self))
        return Weights(*(np.concatenate(pair) for pair in pairs))

    def stacked(self) -> np.ndarray:
        """(N, 4 + 2 K), as ``row.coefficients`` has them: :data:`COLUMNS`, predict, correct."""
        scalars = np.stack([getattr(self, name) for name in COLUMNS], axis=1)
        return np.concatenate([scalars, self.predict, self.correct], axis=1)


@flax.struct.dataclass
class History:
    """The memory of a linear multistep method.

    Attributes:
      base: (B, H, W, C), see the top of this module; None for a method that corrects nothing.
      outputs: (K, B, H, W, C), newest first.
    """

    base: Array | None
    outputs: Array


def keeps(count: int, corrects: bool = False) -> Callable[[Array], History]:
    """``init_memory`` of a method that keeps K = `count` outputs, and ``corrects`` states or not."""

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
    """One row of a linear multistep method, by the equations at the top of this module.

    Args:
      x: (B, H, W, C) float32 images at t.
      t: (B,) times.
      z: (B, H, W, C) standard normal noise, or None for none.
      sde: SDE.
      score_fn: score function.
      t_next: (B,) times to step to; 0 is the data.
      memory: base and outputs.
      row: its coefficients are those of :meth:`Weights.stacked`.
      prediction: "data" or "noise", see above.

    Returns:
      x at t_next, the same without the noise, and the memory.

    Raises:
      PdsError: weights for another number of outputs than the memory keeps.
    """
    (m, level), (m_next, _) = noise_level(sde, t), noise_level(sde, t_next)
    count = memory.outputs.shape[0]
    _check_weights(row, count)
    keep, noise, corrects, seed = (row.coefficients[i] for i in range(len(COLUMNS)))
    predict, correct = row.coefficients[len(COLUMNS) :].reshape(2, count)
    x_bar, s = batch_mul(1 / m, x), score_fn(x, t)
    output = batch_mul(-m * level, s) if prediction == "noise" else x_bar + batch_mul(m * jnp.square(level), s)
    before = jnp.where(seed != 0, seed * x_bar, memory.outputs[0])
    outputs = jnp.concatenate([output[None], before[None], memory.outputs[1:-1]])[:count]
    if memory.base is not None:
        corrected = memory.base + _combined(correct, outputs)
        x_bar = jnp.where(corrects != 0, corrected, x_bar)
    base_mean = keep * x_bar
    base = base_mean + (0.0 if z is None else noise * z)
    change = _combined(predict, outputs)
    x, x_mean = (batch_mul(m_next, start + change) for start in (base, base_mean))
    return x, x_mean, History(None if memory.base is None else base, outputs)


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


def _check_weights(row: Row, count: int) -> None:
    """Refuse a row without weights, or with those of a method that keeps another number of outputs."""
    found = row.coefficients.shape[-1]
    if found != len(COLUMNS) + 2 * count:
        of = "no weights" if found == 0 else f"weights for {(found - len(COLUMNS)) / 2:g} outputs"
        raise PdsError(
            f"init_memory keeps {count} outputs, but the rows have {of}: coefficients= must return "
            f"Weights.blank(rows, {count}), filled and stacked()"
        )


def _combined(weights: Array, outputs: Array) -> Array:
    """Σ_j w_j q_j; written out, since a matrix product may have fewer digits."""
    total = weights[0] * outputs[0]
    for j in range(1, outputs.shape[0]):
        total = total + weights[j] * outputs[j]
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
