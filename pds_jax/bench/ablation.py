"""Table of plain sampling, a flat M and PDS on a shipped model.

Iterations x {PC, reverse diffusion} x {plain, flat M at its best c, PDS at alpha 5, at its best alpha, at alpha auto,
with the pixel filter and with both}, beside DPM-Solver++(2M) and predictor=auto. c and alpha are chosen by the Fréchet
distance of images of other seeds than those reported, from equally many candidates each. Every cell is a file: a run
that stopped goes on, and more blocks add to what is there.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pds_jax import assembly, choose
from pds_jax.bench import cells as cells_lib
from pds_jax.bench import quality
from pds_jax.bench.cells import CHOOSING_IMAGES, CRITERION, number, score_names, spread
from pds_jax.io import files
from pds_jax.io.manifest import plain

SAMPLERS: dict[str, dict[str, Any]] = {
    "PC": {"predictor": "reverse_diffusion", "corrector": "langevin"},
    "reverse diffusion": {"predictor": "reverse_diffusion", "corrector": "none"},
    "DPM++(2M) matched": {"predictor": "dpmpp_2m", "corrector": "none", "grid": "edm", "prior": "matched"},
    "auto": {"predictor": "auto"},
}
FEW_STEP = ("DPM++(2M) matched", "auto")  # without M, for comparison
ALPHAS = (3.0, 4.0, 5.0, 8.0, 12.0, 20.0)
FLATS = (1.03, 1.06, 1.1, 1.15, 1.2, 1.3)
SCORES = (CRITERION, "spectrum_error")  # for which iterations are compared
METHODS = ("plain", "flat", "PDS 5", "PDS best", "PDS auto", "space 5", "both 5")


@dataclasses.dataclass(frozen=True)
class Plan:
    """How large a table is.

    Attributes:
      counts: (most iterations, images per block) by rising iterations; beyond the last there are no cells.
      iterations: rows.
      blocks: of seeds, each evaluated separately.
      choosing: images for each candidate.
      methods: of METHODS.
      plain: further rows of plain sampling alone, to see how many iterations PDS saves.
    """

    counts: tuple[tuple[int, int], ...]
    iterations: tuple[int, ...] = (10, 20, 40, 66, 100, 200, 400, 1000)
    blocks: int = 2
    choosing: int = CHOOSING_IMAGES
    methods: tuple[str, ...] = METHODS
    plain: tuple[int, ...] = ()

    def images(self, iterations: int) -> int:
        """Images a block at a number of iterations; 0 for no cell."""
        return next((count for most, count in self.counts if iterations <= most), 0)


PLANS = {
    "photos": Plan(((100, 5000), (1000, 1024))),
    "fashion": Plan(((40, 1024), (1000, 256))),
    "digits": Plan(((100, 1024), (1000, 256))),
    "landscapes": Plan(((40, 256),)),
    "fashion_small": Plan(((40, 1024), (1000, 256))),
}


@dataclasses.dataclass(frozen=True)
class Cell:
    """One row of the table."""

    sampler: str
    iterations: int
    method: str

    @property
    def key(self) -> str:
        """Name of its file."""
        return f"{self.sampler}-{self.iterations}-{self.method}".replace(" ", "_")


def cells(plan: Plan) -> Iterator[Cell]:
    """All cells, the cheap ones first."""
    for n in sorted(n for n in plan.iterations if plan.images(n)):
        for sampler in SAMPLERS:
            for method in METHODS if sampler not in FEW_STEP else ("plain",):
                if method in plan.methods or sampler in FEW_STEP:
                    yield Cell(sampler, n, method)
    for n in sorted(n for n in set(plan.plain) - set(plan.iterations) if plan.images(n)):
        yield from (Cell(sampler, n, "plain") for sampler in SAMPLERS if sampler not in FEW_STEP)


def candidates(cell: Cell) -> Sequence[float]:
    """What a method chooses from; one value where there is nothing to choose."""
    return {"plain": (math.inf,), "flat": FLATS, "PDS best": ALPHAS}.get(cell.method, (5.0,))


def sampler_of(trained: assembly.Trained, cell: Cell, value: float | str) -> assembly.Plan:
    """The plan of a cell with c or alpha; PdsError where it is certain to diverge."""
    options = dict(SAMPLERS[cell.sampler])
    if cell.sampler == "auto":
        return assembly.plan(trained, nfe=cell.iterations, **options)
    speed_up = trained.config.model.num_scales / (cell.iterations + 1e-6)
    if cell.method == "flat":
        return assembly.plan(trained, speed_up=speed_up, filters="flat", gain=float(value), **options)
    if cell.method in ("space 5", "both 5"):
        options["filters"] = cell.method.split()[0]
    alpha = "auto" if cell.method == "PDS auto" else value
    return assembly.plan(trained, speed_up=speed_up, alpha=alpha, **options)


def work(trained: assembly.Trained, plan: Plan, cell: Cell) -> cells_lib.Work:
    """What a cell asks for."""
    return cells_lib.Work(
        cell.key,
        dataclasses.asdict(cell),
        candidates(cell),
        plan.images(cell.iterations),
        lambda value: sampler_of(trained, cell, value),
        lambda value, made: {"parameter": value if cell.method == "flat" else made.alpha},
        {"options": SAMPLERS[cell.sampler], **({"auto_rule": choose.RULE} if cell.sampler == "auto" else {})},
    )


def run(bench: cells_lib.Cells, plan: Plan) -> list[dict[str, Any]]:
    """Measure the cells of a plan, and write table.md and table.json after each."""
    floor = bench.floor({plan.images(n) for n in (*plan.iterations, *plan.plain)} - {0})
    works = (work(bench.trained, plan, cell) for cell in cells(plan))
    return cells_lib.run(bench, works, lambda rows: write(bench, plan, rows, floor))


def write(bench: cells_lib.Cells, plan: Plan, rows: Sequence[Mapping[str, Any]], floor: Mapping[int, Any]) -> None:
    """The table so far."""
    record = {
        "model": bench.trained.name,
        "pixels": bench.trained.shape[0],
        "reference": bench.judge.reference_name,
        "rows": rows,
        "floor": floor,
    }
    files.write_json(bench.folder / "table.json", plain(record))
    head = (
        f"{bench.trained.name}: {bench.blocks} blocks of seeds per row, each evaluated separately: their mean "
        f"(lowest to highest). Distances are to {bench.judge.reference_name}. c is the best of {len(FLATS)} "
        f"and alpha the best of {len(ALPHAS)} by {CRITERION} on {bench.choosing} images of other seeds.\n\n"
    )
    text = head + table(rows, floor, plan) + "\n" + needed_table(rows)
    files.atomic_write(bench.folder / "table.md", lambda file: file.write(text.encode()))


def table(rows: Sequence[Mapping[str, Any]], floor: Mapping[int, Any], plan: Plan) -> str:
    """Markdown of the cells and of as many real images."""
    lines, names = [], score_names(rows)
    for row in rows:
        shown = {name: "refused" if "refused" in row else "" for name in names}
        if row["blocks"]:
            shown = {name: spread(row["blocks"], name) for name in names}
        lines.append({
            "iterations": row["iterations"], "sampler": row["sampler"], "method": row["method"],
            "c or alpha": number(row.get("parameter")), "NFE": row.get("nfe", ""),
            "images": plan.images(row["iterations"]), **shown,
        })  # fmt: skip
    for count, blocks in floor.items():
        real = {"iterations": "", "sampler": "real images", "method": "", "c or alpha": "", "NFE": "", "images": count}
        lines.append({**real, **{name: spread(blocks, name) for name in names}})
    return quality.markdown(lines) if lines else ""


def needed(iterations: Sequence[float], values: Sequence[float], target: float) -> float | None:
    """Iterations at which a curve first reaches a target, between its points by log-log interpolation."""
    for index, value in enumerate(values):
        if value <= target:
            if index == 0 or not np.isfinite(values[index - 1]):
                return float(iterations[index])
            n0, n1, v0, v1 = (math.log(v) for v in (*iterations[index - 1 : index + 1], values[index - 1], value))
            share = (v0 - math.log(target)) / (v0 - v1) if v0 > v1 else 1.0
            return math.exp(n0 + (n1 - n0) * share)
    return None


def needed_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """How many iterations plain sampling and a flat M need for the scores of PDS at its best alpha, by blocks."""
    text = ""
    for score in (name for name in SCORES if name in score_names(rows)):
        lines = [
            {"sampler": row["sampler"], "PDS": row["iterations"]}
            | {method: ", ".join(map(shown, needed_by(rows, method, row, score))) for method in ("plain", "flat")}
            for row in rows
            if row["method"] == "PDS best" and row["blocks"]
        ]
        if lines:
            text += f"Iterations for the {score.replace('_', ' ')} of PDS at its best alpha, each block by itself:\n\n"
            text += quality.markdown(lines) + "\n"
    return text


@dataclasses.dataclass(frozen=True)
class Needed:
    """Iterations that a curve needs for a score.

    Attributes:
      iterations: between two points of the curve by log-log interpolation, or its end.
      bound: "" or, where the curve does not cross the score, "≤" its first point or ">" its last.
    """

    iterations: float
    bound: str = ""


def shown(count: Needed | None) -> str:
    """For a table; – where there is no curve."""
    return "–" if count is None else f"{count.bound} {count.iterations:.3g}".strip()


def needed_by(
    rows: Sequence[Mapping[str, Any]], method: str, pds: Mapping[str, Any], score: str
) -> list[Needed | None]:
    """For each block of a row of PDS, the iterations that a method needs for its score with the same sampler."""
    found: list[Needed | None] = []
    for block, scores in enumerate(pds["blocks"]):
        same = [r for r in rows if (r["sampler"], r["method"]) == (pds["sampler"], method) and len(r["blocks"]) > block]
        points = sorted((r["iterations"], r["blocks"][block][score]) for r in same)
        if not points:
            found.append(None)
            continue
        numbers, values = [n for n, _ in points], [v for _, v in points]
        count = needed(numbers, values, scores[score])
        bound = ">" if count is None else "≤" if values[0] <= scores[score] else ""
        found.append(Needed(numbers[-1] if count is None else count, bound))
    return found
