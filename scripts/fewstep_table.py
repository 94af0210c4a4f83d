"""Few-step quality of a trained model: samplers x network evaluations, each sampler at the best of its settings.

    python scripts/fewstep_table.py --checkpoint=photos
    python scripts/fewstep_table.py --checkpoint=fashion --nfe=5,10,20 --samplers=baselines,auto --minutes=120
    python scripts/fewstep_table.py --checkpoint=my.pth --config=mine.py --statistics=mine.npz --reference=my_images
    python scripts/fewstep_table.py --checkpoint=photos --plugin=my_steps.py --samplers=RD,my_step
    python scripts/fewstep_table.py --quick

A sampler's settings (kappa, head start, lambda, alpha, c, grid, churn, restart intervals, ...) are tried on seeds that
are not reported. Finished cells are kept: every cell is a file in --out/NAME/cells, and the current tables are
beside it. Judges are included for fashion, landscapes, photos and digits; for other models, pass --reference, or the
training images are used if available.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib

from absl import flags

from pds_jax import assembly, statistics
from pds_jax.bench import cells, fewstep, judges, methods
from pds_jax.cache import use_compilation_cache
from pds_jax.cli import scripts
from pds_jax.io import files
from pds_jax.plugins import load_plugin
from pds_jax.types import PdsError

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Trained model, as for pds_jax --checkpoint; photos by default.")
_CONFIG = scripts.define_config("config", "Its configuration; by default the one that lies with it.")
_STATISTICS = flags.DEFINE_string("statistics", None, "Statistics of its data; by default the checkpoint's own.")
_REFERENCE = flags.DEFINE_string("reference", None, "Images of its data to compare with: a folder, archive or array.")
_CLASSIFIER = flags.DEFINE_string("classifier", None, "Folder of scripts/train_classifier.py, for its features.")
_NFES = flags.DEFINE_list("nfe", [str(n) for n in fewstep.NFES], "Network evaluations per image.")
_SAMPLERS = flags.DEFINE_list(
    "samplers", ["all"], f"Names of samplers, or groups: all, {', '.join(methods.GROUPS)}. --list names them."
)
_IMAGES = flags.DEFINE_integer("images", 1024, "Images a block.", lower_bound=2)
_BLOCKS = flags.DEFINE_integer("blocks", 4, "Blocks of seeds, to estimate the noise.", lower_bound=1)
_CHOOSING = flags.DEFINE_integer("choosing", cells.CHOOSING_IMAGES, "Images for each setting.", lower_bound=2)
_TRIALS = flags.DEFINE_integer("trials", methods.TRIALS, "Most settings of a sampler.", lower_bound=1)
_BATCH = flags.DEFINE_integer("batch_size", 256, "Most images at once; never more than --choosing.", lower_bound=1)
_MINUTES = flags.DEFINE_float(
    "minutes", None, "Start no new cell after this many minutes; rerun to resume.", lower_bound=0
)
_PLUGIN = flags.DEFINE_list("plugin", [], "Python files that register predictors, which are samplers then.")
_OUT = flags.DEFINE_string("out", "runs/fewstep", "Folder; a model has a folder in it.")
_LIST = flags.DEFINE_bool("list", False, "Print what would be measured and its cost.")
_QUICK = flags.DEFINE_bool("quick", False, "A smoke run: digits, few images and samplers, into runs/fewstep_quick.")
_QUICK_VALUES = {  # of flags that are not given
    "checkpoint": "digits", "samplers": ["RD", "RD + PDS", "DPM++(2M)", "spectral + head start", "auto"],
    "nfe": ["5", "10"], "images": 32, "blocks": 2, "trials": 2, "choosing": 32, "out": "runs/fewstep_quick",
}  # fmt: skip


def numbers(texts: list[str], flag: str) -> list[int]:
    """Whole numbers above 1.

    Raises:
      PdsError: something else.
    """
    if not texts or not all(text.strip().isdigit() and int(text) > 1 for text in texts):
        raise PdsError(f"--{flag}={','.join(texts)}: use whole numbers above 1, for example 5,10,20")
    return sorted({int(text) for text in texts})


def listed(trained: assembly.Trained, plan: fewstep.Plan) -> str:
    """What would be measured and how many evaluations that takes."""
    evaluations = lines = 0
    for work in fewstep.works(trained, plan):
        tried = _CHOOSING.value * len(work.settings) if len(work.settings) > 1 else 0
        evaluations += work.facts["asked"] * (tried + _BLOCKS.value * work.images)
        lines += 1
    scales = methods.Scales.of(trained)
    text = "".join(f"{m.group:9s}{len(methods.trials(m, scales, plan.trials))} x {m.name}\n" for m in plan.methods)
    return f"{text}{lines} cells, {evaluations:,} network evaluations without those of pilots"


def loaded() -> assembly.Trained:
    """The model, with the statistics that were given."""
    trained = assembly.load(_CHECKPOINT.value or "photos", _CONFIG.value)
    if _STATISTICS.value is None:
        return trained
    found = statistics.load(_STATISTICS.value)
    found.check_shape(trained.shape)
    return dataclasses.replace(trained, statistics=found)


def main(argv: list[str]) -> None:
    """Measure, tabulate, draw."""
    scripts.refuse_words(argv)
    use_compilation_cache(None)
    for path in _PLUGIN.value:
        load_plugin(path)
    if _QUICK.value:
        for name, value in _QUICK_VALUES.items():
            if not flags.FLAGS[name].present:
                flags.FLAGS[name].value = value
    plan = fewstep.Plan(methods.named(_SAMPLERS.value), numbers(_NFES.value, "nfe"), _IMAGES.value, _TRIALS.value)
    out, blocks, choosing = pathlib.Path(_OUT.value), _BLOCKS.value, _CHOOSING.value
    trained = loaded()
    if _LIST.value:
        print(listed(trained, plan))
        return
    files.check_writable(out / "table.json")
    judge = judges.judge_of(trained, _REFERENCE.value, _CLASSIFIER.value)
    folder = out / (pathlib.Path(trained.name).name or "model")
    bench = cells.Cells(trained, judge, folder, blocks, choosing, _BATCH.value, _MINUTES.value)
    rows = fewstep.run(bench, plan)
    if rows:
        print(f"\n{(folder / 'table.md').read_text()}")
    whole = sum(1 for _ in fewstep.works(trained, plan))
    left = whole - sum("refused" in row or len(row["blocks"]) >= blocks for row in rows)
    print(json.dumps({"table": str(folder / "table.md"), "cells": len(rows), "of": whole, "unfinished": left}))


if __name__ == "__main__":
    scripts.run(main)
