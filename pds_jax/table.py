"""The table of a sampler: each row is one evaluation of the score and the step that uses it.

    x ← scale_before · x + noise_before · M z₀    where noise is added before the evaluation
    s = score(x, t)
    x, x_mean ← step(x, t → t_next, s, z)

The number of network evaluations is the number of rows. ``print(sampler.table)`` shows them.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.struct
import jax.numpy as jnp
import numpy as np

from pds_jax.sde_lib import SDE
from pds_jax.steps import Step
from pds_jax.types import Array, Key, PdsError

BLOCK = 4096  # rows; tables of up to as many run the same program
CHUNK = 50  # most rows of one compiled call; between two calls the host reports progress


@flax.struct.dataclass
class Row:
    """One row; a table has the same fields with a leading axis of rows.

    Attributes:
      kind: int32, index of the row's step in ``Table.kinds``.
      iteration: int32, from 1; noise is drawn from fold_in(fold_in(key, iteration), draw).
      draw: int32, number of the row's draw within its iteration.
      draw_before: int32, index of the draw for the noise added before the evaluation.
      draws: int32, noise draws of its iteration, without a condition's.
      condition_offset: int32, offset added to `draw` when there is a condition, which draws noise of its own.
      pin_before, pin_after: int32, number of the draw with which a condition pins the state before and after the row;
        −1 where it does not.
      t: float32 time of the evaluation.
      t_next: float32 time that x is at afterwards; 0 stands for the data.
      noise_before: float32 deviation of the noise added before the evaluation.
      scale_before: float32 factor of x before that.
      coefficients: (K,) float32 weights of a step that has them (``solvers.linear.Weights``); K = 0 otherwise.
    """

    kind: Any
    iteration: Any
    draw: Any
    draw_before: Any
    draws: Any
    condition_offset: Any
    pin_before: Any
    pin_after: Any
    t: Any
    t_next: Any
    noise_before: Any
    scale_before: Any
    coefficients: Any


@flax.struct.dataclass
class Carry:
    """The state of the loop between rows.

    Attributes:
      x: (B, H, W, C) images.
      x_mean: (B, H, W, C) images before the last noise was added.
      keys: (B,) one key per image.
      row: () int32 rows done.
      finite: (B,) int32 rows after which the image was still finite.
      condition: a ``controllable_generation.Known``, or None.
      memory: of a multistep predictor, or None.
    """

    x: Array
    x_mean: Array
    keys: Key
    row: Array
    finite: Array
    condition: Any = None
    memory: Any = None


_WHOLE = ("kind", "iteration", "draw", "draw_before", "draws", "condition_offset", "pin_before", "pin_after")
FIELDS = tuple(field.name for field in dataclasses.fields(Row))


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows on the host, and the kinds of step that they name.

    Attributes:
      rows: :class:`Row` with a leading axis of R rows, NumPy.
      kinds: the different steps; ``rows.kind`` is an index into them.
      draws: most noise draws of an iteration, without a condition's.
    """

    rows: Row
    kinds: tuple[Step, ...]
    draws: int

    def __len__(self) -> int:
        """Network evaluations per image."""
        return len(self.rows.t)

    @property
    def ends(self) -> np.ndarray:
        """(N,) rows done after each iteration."""
        return np.flatnonzero(np.diff(self.rows.iteration, append=self.rows.iteration[-1] + 1)) + 1

    @property
    def times(self) -> np.ndarray:
        """(N,) time of the first row of each iteration."""
        return self.rows.t[np.concatenate([[0], self.ends[:-1]])]

    def name_of(self, kind: str) -> str:
        """Name of the first step of a kind, "predictor" or "corrector"; "none" without one."""
        return next((step.name for step in self.kinds if step.kind == kind), "none")

    def __str__(self) -> str:
        """One line a row."""
        rows = self.rows
        lines = [f"{len(self)} evaluations in {len(self.ends)} iterations"]
        lines.append("  row iteration step                 t -> t_next")
        for i in range(len(self)):
            extra = f"  noise before {rows.noise_before[i]:.4g}" if rows.noise_before[i] else ""
            name = self.kinds[int(rows.kind[i])].name
            at = f"{rows.t[i]:.6g} -> {rows.t_next[i]:.6g}"
            lines.append(f"{i + 1:5d} {rows.iteration[i]:9d} {name:20s} {at}{extra}")
        return "\n".join(lines)

    def padded(self) -> Row:
        """The rows, padded with no-op rows to a multiple of BLOCK, so that another number does not recompile."""
        missing = -len(self) % BLOCK

        def pad(column: np.ndarray) -> np.ndarray:
            return np.pad(column, [(0, missing)] + [(0, 0)] * (column.ndim - 1))

        return Row(**{name: pad(getattr(self.rows, name)) for name in FIELDS})


def unpadded(rows: Row, count: int, kinds: tuple[Step, ...], draws: int) -> Table:
    """The table of the first `count` of padded rows."""
    return Table(Row(**{name: np.asarray(getattr(rows, name))[:count] for name in FIELDS}), kinds, draws)


def from_rows(rows: list[dict[str, Any]], kinds: tuple[Step, ...], draws: int) -> Table:
    """A table from a list of rows.

    Missing fields are 0, but `scale_before` 1, the pins −1, and `draws` the argument.
    """
    blank = {**dict.fromkeys(FIELDS, 0), "scale_before": 1.0, "pin_before": -1, "pin_after": -1, "draws": draws}
    widest = max((len(row.get("coefficients", ())) for row in rows), default=0)
    columns: dict[str, np.ndarray] = {}
    for name in FIELDS:
        if name == "coefficients":
            own = [np.asarray(row.get(name, ()), np.float64) for row in rows]
            columns[name] = np.stack([np.pad(values, (0, widest - len(values))) for values in own]).astype(np.float32)
        else:
            dtype = np.int32 if name in _WHOLE else np.float32
            columns[name] = np.asarray([row.get(name, blank[name]) for row in rows], dtype)
    return Table(Row(**columns), kinds, draws)


def pc(
    times: np.ndarray,
    predictor: Step,
    corrector: Step,
    n_steps: int,
    to_data: bool = True,
    coefficients: np.ndarray | None = None,
    corrected: np.ndarray | None = None,
) -> Table:
    """N iterations of corrector, n_steps times, then predictor.

    Source: Song et al., ICLR 2021, algorithms 2 and 3.

    Args:
      times: (N,) decreasing.
      predictor: see ``steps``.
      corrector: likewise.
      n_steps: corrector rows an iteration.
      to_data: whether a predictor that takes ``t_next`` steps from the last time to the data; if not, it makes N − 1
        steps. One that does not take it steps through the SDE's N levels.
      coefficients: (N, K) of the predictor's rows.
      corrected: (N,) bool, which iterations have the corrector's rows; all by default.

    Returns:
      The table.
    """
    stages = [predictor] if predictor.stages else []
    if predictor.second is not None:
        stages.append(predictor.second)
    corrections = n_steps if corrector.stages else 0
    kinds = (*([corrector] if corrections else []), *stages)
    count = len(times) - (predictor.any_grid and not to_data)
    rows: list[dict[str, Any]] = []
    for i in range(count):
        t, t_next = times[i], times[i + 1] if i + 1 < len(times) else np.float32(0)
        here = corrections if corrected is None or corrected[i] else 0
        own: list[dict[str, Any]] = [{"kind": 0, "t": t, "t_next": t, "draw": d} for d in range(here)]
        for number, stage in enumerate(stages):
            if number and t_next == 0:
                continue
            at = {"t": t if number == 0 else t_next, "t_next": t_next}
            own.append({"kind": kinds.index(stage), "draw": corrections, "condition_offset": 1, **at})
            if coefficients is not None:
                own[-1]["coefficients"] = coefficients[i]
        # A condition has a draw after the corrector's, or before all, and one after the predictor's.
        if stages and here:
            own[here - 1]["pin_after"] = corrections
        elif stages:
            own[0]["pin_before"] = 0
        if own:
            own[-1]["pin_after"] = corrections + 1 + (predictor.draws if stages else 0)
        rows += [{"iteration": i + 1, **row} for row in own]
    return from_rows(rows, kinds, corrections + (predictor.draws if stages else 0))


def build(
    sde: SDE,
    times: np.ndarray,
    predictor: Step,
    corrector: Step,
    n_steps: int,
    to_data: bool,
    options: dict[str, Any],
    levels: tuple[float, float] | None = None,
) -> Table:
    """The table of a predictor and a corrector; a predictor can define its own table or weights.

    They get its options, where not given at their defaults, and `to_data` as ``denoise``.

    Args:
      levels: the corrector's rows are at noise levels std/m_t between these two; by default at all.

    Raises:
      PdsError: no time has such a level.
    """
    options = {**predictor.options, **options, "denoise": to_data}
    if predictor.build is not None:
        return predictor.build(sde, times, predictor, options)
    weights = None if predictor.coefficients is None else predictor.coefficients(sde, times, options)
    steps = len(times) - (not to_data)
    if weights is not None and (np.ndim(weights) != 2 or len(weights) < steps):
        raise PdsError(
            f"predictor {predictor.name!r}: its coefficients are {np.shape(weights)} for {steps} steps; return (N, K), "
            "one row for each step"
        )
    corrected = None if levels is None else _between(sde, times, levels)
    return pc(times, predictor, corrector, n_steps, to_data, weights, corrected)


def _between(sde: SDE, times: np.ndarray, levels: tuple[float, float]) -> np.ndarray:
    """(N,) which times have a noise level between two."""
    level = np.asarray(sde.std(jnp.asarray(times)) / sde.mean_scale(jnp.asarray(times)))
    found = (level >= levels[0]) & (level <= levels[1])
    if not found.any():
        raise PdsError(f"corrector_levels={tuple(levels)}: no time has a level between; they are {level[[-1, 0]]}")
    return found


def iterations(
    nfe: int,
    predictor: Step,
    corrector: Step,
    n_steps: int = 1,
    to_data: bool = True,
    options: dict[str, Any] | None = None,
) -> int:
    """The largest N whose table has at most `nfe` rows, with the predictor's `options` where it has any.

    Raises:
      PdsError: too few for one iteration of the two, or for the predictor's order.
    """
    options = {**predictor.options, **(options or {})}
    stages = 1 if predictor.is_single_stage is not None and predictor.is_single_stage(options) else predictor.stages
    each = stages + (n_steps if corrector.stages else 0)
    saved = stages - 1 if predictor.second is not None and to_data else 0
    saved -= 0 if predictor.extra_rows is None else predictor.extra_rows(options)
    n = (int(nfe) + saved) // max(each, 1) + (predictor.any_grid and not to_data)
    least = max(predictor.min_steps, 2)
    if n < least:
        raise PdsError(
            f"nfe={nfe}: predictor {predictor.name!r} with corrector {corrector.name!r} needs at least "
            f"{least * each - saved} network evaluations ({least} iterations)"
        )
    return n
