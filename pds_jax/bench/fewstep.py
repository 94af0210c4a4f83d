"""Few-step quality of a checkpoint: samplers x network evaluations, every sampler at the best of its settings."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from pds_jax import assembly, choose
from pds_jax.alpha import TUNE_RULE
from pds_jax.bench import cells as cells_lib
from pds_jax.bench import figures, quality
from pds_jax.bench import methods as methods_lib
from pds_jax.bench.cells import CRITERION, score_names, spread
from pds_jax.bench.methods import PUBLISHED, Method, Scales
from pds_jax.io import files
from pds_jax.io.manifest import plain
from pds_jax.predictors import get_predictor

NFES = (5, 8, 10, 15, 20, 40, 80, 200)
SPECTRUM = "spectrum_error"
_TIE = "within noise"
_CONFIDENCE = 0.95
CURVES = (
    "RD", "RD + flat M", "RD + PDS", "DPM++(2M)", "UniPC", "SDE-DPM++(2M)", "ER-SDE", "spectral + head start", "auto",
)  # fmt: skip
Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Plan:
    """How large a table is.

    Attributes:
      methods: its samplers.
      nfes: network evaluations per image.
      images: a block.
      trials: most settings of a sampler.
    """

    methods: Sequence[Method]
    nfes: Sequence[int] = NFES
    images: int = 1024
    trials: int = methods_lib.TRIALS


def works(trained: assembly.Trained, plan: Plan) -> Iterator[cells_lib.Work]:
    """All cells, those of few evaluations first."""
    scales = Scales.of(trained)
    statistics = _digest(trained)
    for nfe in sorted(plan.nfes):
        for method in plan.methods:
            settings = methods_lib.trials(method, scales, plan.trials)
            facts = {"sampler": method.name, "group": method.group, "asked": nfe, "trials": len(settings)}
            key = f"{nfe}-{method.name}".translate(str.maketrans(" /", "__"))
            yield cells_lib.Work(
                key,
                facts,
                settings,
                plan.images,
                functools.partial(_plan, trained, nfe),
                _told,
                {"statistics": statistics, **_code(settings)},
            )


def _code(settings: Sequence[methods_lib.Setting]) -> dict[str, Any]:
    """The files of a user's predictors, whose module is called after their SHA-256, and the rules of tune and auto."""
    names = {str(setting["predictor"]) for setting in settings}
    chosen = "auto" in names
    names.discard("auto")
    modules = sorted({get_predictor(name).fn.__module__ for name in names})
    own = [name for name in modules if not name.startswith("pds_jax.")]
    tuned = any(setting.get("alpha") == "tune" for setting in settings)
    rules = {**({"tune_rule": TUNE_RULE} if tuned else {}), **({"auto_rule": choose.RULE} if chosen else {})}
    return {**({"plugins": own} if own else {}), **rules}


def _plan(trained: assembly.Trained, nfe: int, setting: methods_lib.Setting) -> assembly.Plan:
    return assembly.plan(trained, nfe=nfe, **setting)


def _digest(trained: assembly.Trained) -> str:
    moments = trained.statistics.to_range(trained.config.data.centered) if trained.statistics else ()
    return hashlib.sha256(b"".join(np.asarray(value, "<f4").tobytes() for value in moments)).hexdigest()


def _told(setting: methods_lib.Setting, made: assembly.Plan) -> dict[str, Any]:
    options = made.config.sampling
    chosen = methods_lib.described(setting)
    if setting.get("predictor") == "auto":
        own = {name: options.get(name) for name in ("kappa", "head_start", "colours")}
        chosen = f"{options.predictor} {methods_lib.described(own)}".strip()
    return {
        "pilot": methods_lib.pilot_evaluations(setting, made),
        "fitted": methods_lib.is_fitted(made),
        "chosen": made.reasons[-1] if setting.get("alpha") == "tune" else chosen,
        "reasons": made.reasons,
    }


def run(bench: cells_lib.Cells, plan: Plan) -> list[dict[str, Any]]:
    """Measure the cells, and write table.md, table.json and figure.png after each."""
    floor = bench.floor([plan.images])
    return cells_lib.run(bench, works(bench.trained, plan), lambda rows: write(bench, plan, rows, floor))


def write(bench: cells_lib.Cells, plan: Plan, rows: Sequence[Row], floor: Mapping[int, Any]) -> None:
    """The table so far."""
    judge = bench.judge
    record = {"model": bench.trained.name, "reference": judge.reference, "images": plan.images, "rows": rows}
    files.write_json(bench.folder / "table.json", plain({**record, "floor": floor}))
    heads = judge.columns or {name: name for name in score_names(rows)}
    text = head(bench, plan) + table(rows, floor.get(plan.images, ()), heads) + "\n" + verdicts(rows, heads)
    files.atomic_write(bench.folder / "table.md", lambda file: file.write(text.encode()))
    title = f"{bench.trained.name}, {bench.blocks} x {plan.images} images"
    draw(rows, floor.get(plan.images, ()), heads, bench.folder / "figure.png", title)


def head(bench: cells_lib.Cells, plan: Plan) -> str:
    """What the columns mean."""
    return (
        f"{bench.trained.name}: {bench.blocks} blocks of {plan.images} images per row, each evaluated separately: "
        f"their mean (lowest to highest). Distances are to {bench.judge.reference}.\n\nSettings: how many were tried, "
        f"on {bench.choosing} images of seeds that no block has; the one with the least {CRITERION} is reported. "
        "Pilot: evaluations before the first image, once a checkpoint or a run, not in NFE. A spectrum error in "
        "brackets is not counted: that sampler is made to have the data's spectrum. Better and worse: by Student's t "
        f"of the paired differences of blocks, which have the same seeds, at {_CONFIDENCE:.0%}; else within noise.\n\n"
    )


def table(rows: Sequence[Row], floor: Sequence[Mapping[str, float]], heads: Mapping[str, str]) -> str:
    """Markdown: a table for each number of evaluations."""
    parts = []
    for nfe in sorted({row["asked"] for row in rows}):
        lines = [_line(row, heads) for row in rows if row["asked"] == nfe]
        if floor:
            real = {name: spread(floor, name) for name in heads}
            lines.append({**dict.fromkeys(lines[0], ""), "sampler": "real images", **_headed(real, heads)})
        parts.append(f"### {nfe} evaluations\n\n{quality.markdown(lines)}")
    return "\n".join(parts)


def _headed(scores: Mapping[str, str], heads: Mapping[str, str]) -> dict[str, str]:
    return {head: scores[name] for name, head in heads.items()}


def _line(row: Row, heads: Mapping[str, str]) -> dict[str, Any]:
    found = dict.fromkeys(heads, "refused" if "refused" in row else "")
    if row["blocks"]:
        found = {name: spread(row["blocks"], name) for name in heads}
        if row.get("fitted") and SPECTRUM in found:
            found[SPECTRUM] = f"({found[SPECTRUM]})"
    return {
        "sampler": row["sampler"],
        "settings": row["trials"],
        "setting": row.get("chosen", ""),
        "NFE": row.get("nfe", ""),
        "pilot": row.get("pilot") or "",
        **_headed(found, heads),
    }


# --- whether a sampler is better than every baseline ------------------------------------------------------------------


def compare(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """ "better" or "worse" by Student's t of the paired differences of blocks at 95 %, else "within noise".

    Blocks of the same index have the same seeds, whose common noise the differences do not have. Two blocks, of one
    degree of freedom, tell large differences only.

    >>> compare([1.0, 1.5, 1.2], [1.2, 1.7, 1.41]), compare([1.0, 1.5, 1.2], [1.2, 1.4, 1.3])
    ('better', 'within noise')

    Args:
      ours: a score of each block, lower is better.
      theirs: of the other sampler; blocks that one of them lacks are left out.
    """
    count = min(len(ours), len(theirs))
    if count < 2:
        return _TIE
    differences = np.subtract(ours[:count], theirs[:count])
    mean, error = float(np.mean(differences)), float(np.std(differences, ddof=1)) / math.sqrt(count)
    if abs(mean) <= error * float(stats.t.ppf(0.5 + _CONFIDENCE / 2, count - 1)):
        return _TIE
    return "better" if mean < 0 else "worse"


def best_baseline(rows: Sequence[Row], nfe: int, name: str) -> Row | None:
    """The row of a published sampler with at most so many evaluations that has the least mean of a score."""
    some = [row for row in rows if row["group"] in PUBLISHED and row["asked"] <= nfe and _counted(row, name)]
    return min(some, key=lambda row: float(np.mean(_values(row, name))), default=None)


def verdicts(rows: Sequence[Row], heads: Mapping[str, str]) -> str:
    """The samplers with M or the spectrum against the best baseline of each score; empty where there are none."""
    parts = []
    for nfe in sorted({row["asked"] for row in rows}):
        lines = []
        for row in rows:
            if row["asked"] == nfe and row["group"] not in PUBLISHED and row["blocks"]:
                found = {head: _verdict(rows, row, nfe, name) for name, head in heads.items()}
                lines.append({"sampler": row["sampler"], **found})
        if lines:
            parts.append(f"### {nfe} evaluations against the best baseline\n\n{quality.markdown(lines)}")
    for nfe, most in ((5, 20), (10, 40)):
        lines = [
            {"sampler": row["sampler"], **{head: _verdict(rows, row, most, name) for name, head in heads.items()}}
            for row in rows
            if row["asked"] == nfe and row["group"] in ("auto", "spectral") and row["blocks"]
        ]
        if lines and max(row["asked"] for row in rows) >= most:
            words = f"### {nfe} evaluations against the best baseline of up to {most}\n\n"
            parts.append(words + quality.markdown(lines))
    return "\n".join(parts)


def _verdict(rows: Sequence[Row], row: Row, nfe: int, name: str) -> str:
    other = best_baseline(rows, nfe, name)
    if not _counted(row, name):
        return "not counted"
    if other is None:
        return ""
    return f"{compare(_values(row, name), _values(other, name))} than {other['sampler']}".replace(
        "noise than", "noise of"
    )


def _counted(row: Row, name: str) -> bool:
    """Whether a row has a score that says something."""
    return bool(row["blocks"]) and not (name == SPECTRUM and row.get("fitted"))


def _values(row: Row, name: str) -> list[float]:
    return [block[name] for block in row["blocks"]]


# --- the figure -------------------------------------------------------------------------------------------------------


def draw(
    rows: Sequence[Row], floor: Sequence[Mapping[str, float]], heads: Mapping[str, str], path: Any, title: str
) -> None:
    """Scores against evaluations, a panel each, with bands from the least to the largest block; what counts."""
    names = {row["sampler"] for row in rows}
    shown = [name for name in CURVES if name in names] or sorted(names)
    panels, floors = {}, []
    for score, label in heads.items():
        lines: dict[str, list[tuple[float, float, float, float]]] = {}
        for name in shown:
            some = [row for row in rows if row["sampler"] == name and _counted(row, score)]
            points = [(row["nfe"], *(f(_values(row, score)) for f in (np.mean, min, max))) for row in some]
            if points:
                lines[name] = points
        if lines:
            panels[label if score == SPECTRUM else f"Fréchet, {label}"] = lines
            floors.append([block[score] for block in floor])
    if panels:
        figures.bands(panels, path, xlabel="NFE", floors=floors, title=title)
