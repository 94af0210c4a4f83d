"""Iterations for equal scores against image size, from the tables of networks of several sizes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pds_jax.bench import ablation, figures, quality
from pds_jax.types import PdsError

Rows = list[dict[str, Any]]
_WORDS = {"frechet": "Fréchet distance", "spectrum_error": "spectrum error"}


def rows_of(tables: Sequence[Mapping[str, Any]], at: int) -> Rows:
    """Iterations that plain sampling and a flat M need for the scores of PDS at its best alpha.

    Args:
      tables: records of ``pds_jax.bench.ablation``, one a network.
      at: iterations of PDS.

    Returns:
      A row for each network, sampler and score, by rising pixels; "plain" and "flat" have an ``ablation.Needed`` a
      block.

    Raises:
      PdsError: a table without PDS at so many iterations.
    """
    found = []
    for table in sorted(tables, key=lambda table: table["pixels"]):
        rows = table["rows"]
        best = [row for row in rows if (row["method"], row["iterations"]) == ("PDS best", at) and row["blocks"]]
        if not best:
            raise PdsError(f"the table of {table['model']} has no row of PDS at its best alpha with {at} iterations")
        for score in ablation.SCORES:
            for row in best:
                counts = {name: ablation.needed_by(rows, name, row, score) for name in ("plain", "flat")}
                facts = {"pixels": table["pixels"], "network": table["model"], "sampler": row["sampler"]}
                found.append({**facts, "score": score, **counts})
    return found


def markdown(rows: Rows) -> str:
    """The rows as a table."""
    return quality.markdown([
        row | {"score": _WORDS[row["score"]]}
        | {name: ", ".join(map(ablation.shown, row[name])) for name in ("plain", "flat")}
        for row in rows
    ])  # fmt: skip


def draw(rows: Rows, at: int, path: str | os.PathLike[str]) -> None:
    """Iterations over those of PDS against pixels; bounds are left out, since only the table can show them."""
    panels: dict[str, dict[str, list[tuple[float, float, float, float]]]] = {}
    for row in rows:
        for name in ("plain", "flat"):
            counts = [count for count in row[name] if count is not None]
            if counts and not any(count.bound for count in counts):
                ratios = [count.iterations / at for count in counts]
                point = (row["pixels"], float(np.mean(ratios)), min(ratios), max(ratios))
                lines = panels.setdefault(f"equal {_WORDS[row['score']]}", {})
                lines.setdefault(f"{row['sampler']}: {name} / PDS", []).append(point)
    if panels:
        figures.bands(
            panels,
            path,
            xlabel="pixels a side",
            title=f"Iterations for the score of PDS at {at} iterations, as a multiple of {at}",
        )
