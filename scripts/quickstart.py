"""Sample a shipped model at few steps without PDS, with PDS, and with the sampler chosen for it; a figure and a table.

python scripts/quickstart.py                    fashion: about five minutes on two cores
python scripts/quickstart.py --model=photos     about one minute
python scripts/quickstart.py --model=landscapes 64x64 crops of photographs
"""

from __future__ import annotations

import json
import math
import pathlib
from typing import Any

import numpy as np
from absl import flags

from pds_jax import assembly, checkpoints
from pds_jax.alpha import parse_alpha
from pds_jax.bench import figures, quality
from pds_jax.cache import use_compilation_cache
from pds_jax.cli import scripts
from pds_jax.io import images

_MODEL = flags.DEFINE_enum("model", "fashion", checkpoints.SHIPPED, "Which shipped model.")
_NFES = flags.DEFINE_list("nfe", ["20", "40"], "Numbers of network evaluations; predictor=auto also makes 5.")
_COUNT = flags.DEFINE_integer("images", 64, "Images a cell; more makes the table's distances less noisy.", 2)
_ALPHA = flags.DEFINE_string("alpha", "tune", "Strength of PDS: a number above 1, auto or tune.")
_OUT = flags.DEFINE_string("out", "runs/quickstart", "Where results go.")
_SHOWN = 16


def rows() -> dict[str, dict[str, Any]]:
    """Label -> how it is sampled."""
    alpha = parse_alpha(_ALPHA.value)
    return {
        "without PDS": {"alpha": math.inf},
        "with PDS": {"alpha": alpha, "filters": "freq"},
        "predictor=auto": {"predictor": "auto"},
    }


def main(argv: list[str]) -> None:
    """Sample, compare, draw."""
    scripts.refuse_words(argv)
    use_compilation_cache(None)
    out, trained = pathlib.Path(_OUT.value), assembly.load(_MODEL.value)
    judge = quality.judge_for(trained.config.data.dataset)
    cells: dict[str, dict[str, np.ndarray]] = {}
    table = []
    for label, options in rows().items():
        for nfe in (*([5] if "predictor" in options else []), *map(int, _NFES.value)):
            plan = assembly.plan(trained, nfe=nfe, **options)
            drawn = assembly.draw(trained, plan, range(_COUNT.value), label=f"{plan.nfe} NFE, {label}")
            shown = images.enlarge(images.to_uint8(drawn.images[:_SHOWN]), images.visible_scale(trained.shape[0]))
            cells.setdefault(label, {})[f"{nfe} NFE"] = shown
            row = {"nfe": plan.nfe, "sampler": _name(label, plan)}
            table.append({**row, **judge(drawn.images), "seconds": drawn.seconds})
    figures.comparison(cells, out / "comparison.png", f"{_MODEL.value}: the same network, the same seeds")
    text = quality.markdown(table)
    print(f"\n{_COUNT.value} images per row, seeds 0-{_COUNT.value - 1}, reference: {judge.reference_name}\n")
    print(text)
    (out / "table.md").write_text(text)
    print(f"\nLook at {out / 'comparison.png'}; the table is in {out / 'table.md'}")
    print(json.dumps({"figure": str(out / "comparison.png"), "rows": table}))


def _name(label: str, plan: assembly.Plan) -> str:
    if label == "with PDS":
        return f"{label} (alpha {plan.alpha:g})"
    return label if label == "without PDS" else f"{label}: {plan.config.sampling.predictor}"


if __name__ == "__main__":
    scripts.run(main)
