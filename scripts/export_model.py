"""Export a training workdir as a model folder: weights, configuration, statistics and the loss curve.

    python scripts/export_model.py --workdir=runs/photos --out=checkpoints/photos

Takes the moving average of the newest state (or of --step); the result is a folder for --checkpoint. The last line on
stdout is JSON.
"""

from __future__ import annotations

import contextlib
import json
import pathlib

import numpy as np

from pds_jax import checkpoints
from pds_jax.bench import figures
from pds_jax.cli import scripts
from pds_jax.cli.failures import one_line_errors
from pds_jax.convert.tree import flatten
from pds_jax.types import PdsError


def read_log(workdir: pathlib.Path) -> list[dict[str, float]]:
    """The rows of log.jsonl, each step once: a resumed run writes steps again that were lost; [] without the file."""
    rows = {}
    path = workdir / "log.jsonl"
    for line in path.read_text().splitlines() if path.is_file() else ():
        with contextlib.suppress(json.JSONDecodeError):  # a line that a killed run did not finish
            row = json.loads(line)
            rows[row["step"]] = row
    return [rows[step] for step in sorted(rows)]


def main() -> None:
    """Export."""
    parser = scripts.Arguments(__doc__)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--out", required=True, help="folder of the model")
    parser.add_argument("--step", type=int, help="which snapshot of workdir/checkpoints; by default the newest state")
    parser.add_argument("--raw_weights", action="store_true", help="not their moving average")
    args = parser.read()
    workdir, out = pathlib.Path(args.workdir), pathlib.Path(args.out)
    if out.resolve() == workdir.resolve():
        raise PdsError(f"--out={out} is the workdir, which the training needs as it is; choose another folder")
    state = workdir if args.step is None else workdir / "checkpoints" / str(args.step)
    found = checkpoints.load_any(state, use_ema=not args.raw_weights)
    if found.statistics is None and (out / checkpoints.STATISTICS).exists():
        raise PdsError(
            f"{workdir} has no {checkpoints.STATISTICS}, and --out={out} holds one, of another model; move it away, or "
            "choose another folder"
        )
    checkpoints.save_model(out, found.params, found.config, found.statistics)
    log = read_log(workdir)
    if log:
        figures.curves(
            {
                "training loss": [(row["step"], row["loss"]) for row in log],
                "evaluation loss": [(row["step"], row["eval_loss"]) for row in log if "eval_loss" in row],
            },
            out / "loss.png",
            xlabel="step",
            ylabel="loss",
            title=f"{found.config.data.dataset}: mean loss of the steps since the last point",
            logx=False,
        )
    print(
        json.dumps(
            {
                "from": found.path,
                "out": str(out),
                "parameters": int(sum(np.size(value) for value in flatten(found.params).values())),
                "bytes": (out / "model.safetensors").stat().st_size,
                "sha256_of_parameters": found.digest,
                "steps": log[-1]["step"] if log else None,
                "last_loss": log[-1]["loss"] if log else None,
                "seconds_of_training": round(
                    sum((b["step"] - a["step"]) / b["steps_per_second"] for a, b in zip(log, log[1:], strict=False)), 1
                ),
            }
        )
    )


if __name__ == "__main__":
    with one_line_errors():
        main()
