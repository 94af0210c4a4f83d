"""Sample a shipped model at few steps without and with PDS from the same seeds; a figure and a table."""

from __future__ import annotations

import json
import math
import pathlib

import numpy as np
from absl import app, flags

from pds_jax import assembly
from pds_jax.bench import figures, quality
from pds_jax.cache import use_compilation_cache
from pds_jax.cli.failures import one_line_errors
from pds_jax.io import images

_MODEL = flags.DEFINE_enum("model", "photos", ["fashion", "photos", "digits"], "Which shipped model.")
_NFES = flags.DEFINE_list("nfe", ["20", "40", "80"], "Numbers of network evaluations.")
_COUNT = flags.DEFINE_integer("images", 128, "Images a cell; more makes the table's distances less noisy.")
_ALPHA = flags.DEFINE_float("alpha", None, "Strength of PDS; default: the model's recommended value.")
_OUT = flags.DEFINE_string("out", "runs/quickstart", "Where results go.")


def main(argv: list[str]) -> None:
    """Sample, compare, draw."""
    del argv
    use_compilation_cache(None)
    out = pathlib.Path(_OUT.value)
    trained = assembly.load(_MODEL.value)
    recommended = trained.config.pds.get("recommended_alpha", 5.0)
    alpha = float(recommended if _ALPHA.value is None else _ALPHA.value)
    judge = quality.judge_for(_MODEL.value)
    rows = {"without PDS": math.inf, f"with PDS (alpha {alpha:g})": alpha}
    cells: dict[str, dict[str, np.ndarray]] = {label: {} for label in rows}
    table = []
    for nfe in map(int, _NFES.value):
        for label, strength in rows.items():
            plan = assembly.plan(trained, nfe=nfe, alpha=strength)
            drawn = assembly.draw(trained, plan, range(_COUNT.value), label=f"{plan.nfe} NFE, {label}")
            scores = judge(drawn.images)
            cells[label][f"{plan.nfe} NFE"] = images.enlarge(
                images.to_uint8(drawn.images[:16]), images.visible_scale(drawn.images.shape[1])
            )
            table.append({"nfe": plan.nfe, "sampler": label, **scores, "seconds": drawn.seconds})
    figures.comparison(cells, out / "comparison.png", f"{_MODEL.value}: the same network, the same seeds")
    text = quality.markdown(table)
    print(f"\n{_COUNT.value} images a row, seeds 0-{_COUNT.value - 1}, reference: {judge.reference_name}\n")
    print(text)
    (out / "table.md").write_text(text)
    print(f"\nLook at {out / 'comparison.png'}; the table is in {out / 'table.md'}")
    print(json.dumps({"figure": str(out / "comparison.png"), "rows": table}))


if __name__ == "__main__":
    with one_line_errors():
        app.run(main)
