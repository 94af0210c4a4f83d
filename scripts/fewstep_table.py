"""Few-step quality of the shipped models: NFE x sampler x strength of PDS, as a table, a figure and JSON.

    python scripts/fewstep_table.py --model=photos --images=128
    python scripts/fewstep_table.py --quick
    python scripts/fewstep_table.py --model=photos --plugin=my_steps.py --samplers=RD,my_step

Every cell uses the same seeds. A cell that is done is not done again: results are kept in --out by model.
"""

from __future__ import annotations

import json
import math
import pathlib
from typing import Any

from absl import app, flags

from pds_jax import assembly
from pds_jax.bench import figures, quality
from pds_jax.cache import use_compilation_cache
from pds_jax.cli.failures import one_line_errors
from pds_jax.io import files
from pds_jax.plugins import load_plugin
from pds_jax.predictors import PREDICTORS
from pds_jax.types import PdsError

_MODEL = flags.DEFINE_enum("model", "all", ["photos", "digits", "all"], "Which shipped model.")
_IMAGES = flags.DEFINE_integer("images", 128, "Images a cell, seeds 0 to images - 1.")
_BATCH = flags.DEFINE_integer("batch_size", 128, "Images at once.")
_NFES = flags.DEFINE_list("nfe", ["20", "40", "80", "132", "200", "1000", "2000"], "Network evaluations an image.")
_ALPHAS = flags.DEFINE_list("alphas", ["3", "5", "8", "12", "20"], "Strengths of PDS.")
_SAMPLERS = flags.DEFINE_list("samplers", ["PC", "RD"], "Which samplers; see SAMPLERS in the source.")
_MOST = flags.DEFINE_integer("sweep_up_to", 200, "Sweep alpha up to this NFE; above it only 20.")
_PLUGIN = flags.DEFINE_list("plugin", [], "Python files that register predictors, which are samplers then.")
_OUT = flags.DEFINE_string("out", "runs/fewstep", "Folder of tables and JSON; docs/results has those of the docs.")
_FIGURES = flags.DEFINE_string("figures", None, "Folder of figures; by default that of the tables.")
_RENDER = flags.DEFINE_bool("render_only", False, "Measure nothing: table and figures of what is in --out.")
_QUICK = flags.DEFINE_bool("quick", False, "A smoke run: 32 images, NFE 20 and 40, into runs/fewstep_quick.")

# Name -> options of the plan, and whether M acts on it.
SAMPLERS: dict[str, tuple[dict[str, Any], bool]] = {
    "PC": ({"predictor": "reverse_diffusion", "corrector": "langevin"}, True),
    "RD": ({"predictor": "reverse_diffusion", "corrector": "none"}, True),
    "PC batch norm": ({"predictor": "reverse_diffusion", "corrector": "langevin", "norm": "batch"}, True),
    "RD exact": ({"predictor": "reverse_diffusion", "corrector": "none", "variant": "exact"}, True),
    "SDE-DPM++(2M)": ({"predictor": "sde_dpmpp_2m", "corrector": "none", "grid": "edm"}, True),
    "SDE-DPM++(2M) matched": (
        {"predictor": "sde_dpmpp_2m", "corrector": "none", "grid": "edm", "prior": "matched"},
        True,
    ),
    "SDE-DPM++(2M) exact": (
        {"predictor": "sde_dpmpp_2m", "corrector": "none", "grid": "edm", "variant": "exact"},
        True,
    ),
    "SDE-DPM++(2M) exact matched": (
        {"predictor": "sde_dpmpp_2m", "corrector": "none", "grid": "edm", "variant": "exact", "prior": "matched"},
        True,
    ),
    "spectral ancestral": (
        {"predictor": "spectral_ancestral", "corrector": "none", "grid": "edm", "prior": "matched"},
        True,
    ),
    "DDIM": ({"predictor": "ddim", "corrector": "none", "grid": "edm"}, False),
    "Heun": ({"predictor": "heun", "corrector": "none", "grid": "edm"}, False),
    "DPM++(2M)": ({"predictor": "dpmpp_2m", "corrector": "none", "grid": "edm"}, False),
    "DPM++(2M) matched": ({"predictor": "dpmpp_2m", "corrector": "none", "grid": "edm", "prior": "matched"}, False),
    "spectral DDIM": ({"predictor": "spectral_ddim", "corrector": "none", "grid": "edm", "prior": "matched"}, False),
    "spectral": (
        {"predictor": "spectral", "corrector": "none", "grid": "edm", "prior": "matched", "kappa": 0.4},
        False,
    ),
    "spectral SDE": (
        {
            "predictor": "spectral",
            "corrector": "none",
            "grid": "edm",
            "prior": "matched",
            "kappa": 0.4,
            "stochasticity": 1.0,
        },
        False,
    ),
    "auto": ({"predictor": "auto"}, False),
    "spectral DPM++(2M)": (
        {"predictor": "spectral_dpmpp_2m", "corrector": "none", "grid": "edm", "prior": "matched"},
        False,
    ),
}
# What the figures show: a sampler, and whether without M.
_CURVES = (
    ("PC", True),
    ("PC", False),
    ("RD", True),
    ("RD", False),
    ("DDIM", True),
    ("Heun", True),
    ("DPM++(2M)", True),
    ("SDE-DPM++(2M)", True),
    ("SDE-DPM++(2M) exact matched", False),
)


def cells(nfes: list[int], alphas: list[float], samplers: list[str]) -> list[tuple[str, int, float]]:
    """Every (sampler, NFE, alpha) of the table."""
    found = []
    for nfe in nfes:
        for name in samplers:
            found.append((name, nfe, math.inf))
            if SAMPLERS[name][1]:
                swept = [a for a in alphas if nfe <= _MOST.value or a == 20.0]
                found += [(name, nfe, alpha) for alpha in swept]
    return found


def measure(
    trained: assembly.Trained, judge: quality.Judge, cell: tuple[str, int, float], count: int
) -> dict[str, Any]:
    """One row: the scores, or why there are none."""
    name, nfe, alpha = cell
    row: dict[str, Any] = {"sampler": name, "nfe": nfe, "alpha": "inf" if math.isinf(alpha) else alpha}
    try:
        plan = assembly.plan(trained, nfe=nfe, alpha=alpha, **SAMPLERS[name][0])
        label = f"{trained.name} {name} {nfe} NFE alpha {alpha:g}"
        drawn = assembly.draw(trained, plan, range(count), batch_size=_BATCH.value, label=label)
    except PdsError as error:
        return {**row, "refused": str(error)}
    return {**row, "nfe": drawn.nfe, **judge(drawn.images), "seconds": drawn.seconds}


def run(model: str, nfes: list[int], alphas: list[float], samplers: list[str], count: int, out: pathlib.Path) -> Any:
    """All cells of one model; returns its record."""
    trained, judge = assembly.load(model), quality.judge_for(model)
    path = out / f"fewstep_{model}.json"
    record = {"weights_sha256": trained.digest, "images": count, "reference": judge.reference_name}
    rows: dict[str, Any] = {}
    if path.exists():
        old = files.read_json(path)
        if all(old.get(key) == value for key, value in record.items()):
            rows = old["rows"]
    floor = judge.floor(count)
    for cell in cells(nfes, alphas, samplers):
        key = f"{cell[0]} | {cell[1]} | {cell[2]:g}"
        if key not in rows and not _RENDER.value:
            rows[key] = measure(trained, judge, cell, count)
            files.write_json(path, {**record, "floor": floor, "rows": rows})
    record = {**record, "floor": floor, "rows": rows}
    files.write_json(path, record)
    return record


def best(rows: dict[str, Any], name: str, nfe: int, plain: bool, by: str = "frechet") -> dict[str, Any] | None:
    """The row of a sampler at an NFE with the least of a score, without PDS or over the strengths of PDS."""
    found = [
        row
        for key, row in rows.items()
        if key.split(" | ")[:2] == [name, str(nfe)] and (row["alpha"] == "inf") == plain and by in row
    ]
    return min(found, key=lambda row: row[by]) if found else None


def table(record: Any, nfes: list[int], samplers: list[str]) -> str:
    """Markdown: for each sampler and NFE the row without PDS, and the best two with it."""
    shown = []
    scores = [name for name in record["floor"]]
    for name in samplers:
        for nfe in nfes:
            wanted = best(record["rows"], name, nfe, True), best(record["rows"], name, nfe, False)
            tuned = best(record["rows"], name, nfe, False, by="spectrum_error")
            for row in [*wanted, *([] if tuned is wanted[1] else [tuned])]:
                if row is not None:
                    plain = row["alpha"] == "inf"
                    strength = "without" if plain else f"PDS, alpha {row['alpha']:g}"
                    label = strength if SAMPLERS[name][1] else "does not apply"
                    shown.append({"sampler": name, "NFE": int(row["nfe"]), "M": label, **{s: row[s] for s in scores}})
    shown.append({"sampler": "real images", "NFE": "", "M": "", **record["floor"]})
    return quality.markdown(shown)


def draw_curves(model: str, record: Any, nfes: list[int], samplers: list[str], folder: pathlib.Path) -> list[str]:
    """Fréchet distance and spectrum error against NFE, PDS at its least spectrum error; returns the paths."""
    paths = []
    for score, label in (("frechet", "Fréchet distance"), ("spectrum_error", "spectrum error")):
        lines: dict[str, list[tuple[float, float]]] = {}
        for name, plain in [curve for curve in _CURVES if curve[0] in samplers]:
            rows = [best(record["rows"], name, nfe, plain, by="spectrum_error") for nfe in nfes]
            points = [(row["nfe"], row[score]) for row in rows if row is not None]
            if points:
                lines[name if plain else f"{name} + PDS"] = points
        path = folder / f"fewstep_{model}_{score}.png"
        title = f"{model}, {record['images']} images"
        figures.curves(lines, path, xlabel="NFE", ylabel=label, floor=record["floor"][score], title=title)
        paths.append(str(path))
    return paths


def main(argv: list[str]) -> None:
    """Measure, tabulate, draw."""
    if len(argv) > 1:
        raise PdsError(f"unexpected words {argv[1:]}; every option starts with --")
    use_compilation_cache(None)
    for path in _PLUGIN.value:
        load_plugin(path)
    for name in _SAMPLERS.value:
        if name not in SAMPLERS and name in PREDICTORS:
            SAMPLERS[name] = ({"predictor": name, "corrector": "none"}, PREDICTORS[name].uses_M)
    unknown = [name for name in _SAMPLERS.value if name not in SAMPLERS]
    if unknown:
        raise PdsError(f"--samplers: unknown {unknown}; known: {', '.join(SAMPLERS)}")
    nfes, alphas = [int(n) for n in _NFES.value], [float(a) for a in _ALPHAS.value]
    count, out, pictures = _IMAGES.value, pathlib.Path(_OUT.value), pathlib.Path(_FIGURES.value or _OUT.value)
    if _QUICK.value:
        nfes, alphas, count = [40, 20], [5.0, 20.0], 32
        out = pictures = pathlib.Path("runs/fewstep_quick")
    summary: dict[str, Any] = {}
    for model in ["digits", "photos"] if _MODEL.value == "all" else [_MODEL.value]:
        record = run(model, nfes, alphas, _SAMPLERS.value, count, out)
        text = table(record, nfes, _SAMPLERS.value)
        head = f"{model}: {count} images a row, seeds 0-{count - 1}, distances to {record['reference']}\n\n"
        files.atomic_write(out / f"fewstep_{model}.md", lambda file, text=head + text: file.write(text.encode()))
        paths = draw_curves(model, record, nfes, _SAMPLERS.value, pictures)
        print(f"\n{head}{text}\nTable: {out / f'fewstep_{model}.md'}\nFigures: {', '.join(paths)}")
        summary[model] = {"table": str(out / f"fewstep_{model}.md"), "figures": paths, "cells": len(record["rows"])}
    print(json.dumps(summary))


if __name__ == "__main__":
    with one_line_errors():
        app.run(main)
