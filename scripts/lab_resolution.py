"""Does the gain of preconditioning grow with resolution? Exact Gaussians with the spectrum of photographs.

    python scripts/lab_resolution.py --out=docs/lab

The same views of 28 photographs, sampled at 8 to 256 pixels, give a mean and a ring-averaged spectrum a resolution,
and sigma_max = the largest distance between two views. For reverse diffusion, alone and with the Langevin corrector
(PC), the law of the images is then known in closed form (pds_jax.bench.gaussian_law): nothing is sampled, nothing is
random. For each number of iterations plain sampling stands beside a flat M = c I at its best c and PDS at its best
alpha, from equally many candidates, and c M with M of PDS at the best pair of five times as many: what the shape of
the spectrum adds to a flat M. Writes resolution.json, resolution.md and two figures. The last line on stdout is
JSON.
"""

from __future__ import annotations

import json
import math
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pds_jax.bench import ablation, figures, gaussian_law, quality
from pds_jax.cli import scripts
from pds_jax.cli.failures import one_line_errors
from pds_jax.data import photographs
from pds_jax.io import files
from pds_jax.statistics import estimate_sigma_max

SIDES = (8, 16, 32, 64, 128, 256)
ALPHAS = (1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 7.0, 10.0, 14.0, 20.0, 30.0, 50.0, 100.0, math.inf)
FLATS = (1.0, 1.02, 1.04, 1.06, 1.09, 1.12, 1.16, 1.2, 1.25, 1.3, 1.36, 1.45, 1.55, 1.7)
SAMPLERS = {"reverse diffusion": None, "PC": 0.16}
BOTH = [(c, alpha) for alpha in (2.0, 3.0, 5.0, 10.0, 20.0) for c in FLATS]
METHODS = ("plain", "flat", "PDS", "both")
RATIOS = (("plain", "PDS"), ("plain", "flat"), ("flat", "PDS"), ("flat", "both"))
TARGETS = {"frechet": (0.1, 0.03, 0.01, 0.003), "spectrum_error": (0.5, 0.3, 0.1)}
SHOWN = {"frechet": "0.01", "spectrum_error": "0.3"}  # targets of the figures
AT = (20, 40, 100)  # iterations whose distance with PDS the others must reach
SIGMA_MIN = 0.01


def views(count: int, side: int) -> np.ndarray:
    """Views (n, side, side, 3) in [0, 1], a fifth to a half of a photograph's width each."""
    source = photographs.landscapes("train", side, boxes=range(1, 6), shares=(0.2, 0.5))
    return source.images(np.arange(count))


def halved(images: np.ndarray, times: int) -> np.ndarray:
    """Means over boxes of 2^times pixels."""
    box, (n, side, _, channels) = 2**times, images.shape
    return images.reshape(n, side // box, box, side // box, box, channels).mean(axis=(2, 4), dtype=np.float32)


def modes_of(images: np.ndarray) -> tuple[gaussian_law.Modes, float]:
    """Isotropic modes of images, and the largest distance between two of them."""
    mean = images.mean(axis=0, dtype=np.float64)
    power = np.zeros((images.shape[1], images.shape[2] // 2 + 1, images.shape[3]))
    for start in range(0, len(images), 64):
        block = images[start : start + 64].astype(np.float64) - mean
        power += np.square(np.abs(np.fft.rfft2(block, axes=(1, 2)))).sum(axis=0)
    # An image's mean colour varies from view to view; what is left of the mean image besides it is noise of few views.
    flat = np.broadcast_to(mean.mean(axis=(0, 1)), mean.shape)
    power /= len(images) * images.shape[1] * images.shape[2]
    return gaussian_law.isotropic_modes(flat, power), estimate_sigma_max(images)


def curves(modes: gaussian_law.Modes, sigma_max: float, snr: float | None, iterations: Sequence[int]) -> dict[str, Any]:
    """metric -> method -> best value, and the parameter that gives it, for each number of iterations."""
    gains = np.concatenate([
        np.stack([np.full_like(modes.power, c) for c in FLATS]),
        np.stack([gaussian_law.pds_gain(modes, alpha) for alpha in ALPHAS]),
        np.stack([c * gaussian_law.pds_gain(modes, alpha) for c, alpha in BOTH]),
    ])  # fmt: skip
    found: dict[str, Any] = {
        metric: {method: {"value": [], "parameter": []} for method in METHODS} for metric in TARGETS
    }
    for n in iterations:
        with np.errstate(all="ignore"):  # some settings diverge
            law = gaussian_law.final_law(modes, gains, n, (SIGMA_MIN, sigma_max), snr=snr)
            values = {
                "frechet": gaussian_law.frechet(modes, law) / modes.variance,
                "spectrum_error": gaussian_law.spectrum_error(modes, law),
            }
        for metric, row in values.items():
            row = np.where(np.isfinite(row), row, np.inf)
            flat, pds, both = np.split(row, [len(FLATS), len(FLATS) + len(ALPHAS)])
            for method, some, parameters in (
                ("plain", flat[:1], (1.0,)), ("flat", flat, FLATS), ("PDS", pds, ALPHAS), ("both", both, BOTH)
            ):  # fmt: skip
                best = int(np.argmin(some))
                found[metric][method]["value"].append(float(some[best]))
                found[metric][method]["parameter"].append(parameters[best])
    return found


def rows_of(side: int, sampler: str, iterations: Sequence[int], found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row a metric and target: iterations of each method, and their ratios."""
    rows = []
    for metric, by_method in found.items():
        values = {method: by_method[method]["value"] for method in METHODS}
        wanted = {f"{target:g}": target for target in TARGETS[metric]}
        wanted |= {f"PDS at {n}": values["PDS"][int(np.argmin(np.abs(np.asarray(iterations) - n)))] for n in AT}
        for label, target in wanted.items():
            counts = {method: ablation.needed(iterations, values[method], target) for method in METHODS}
            row: dict[str, Any] = {"side": side, "sampler": sampler, "metric": metric, "target": label, "value": target}
            row |= {method: counts[method] for method in METHODS}
            for above, below in RATIOS:
                a, b = counts[above], counts[below]
                row[f"{above}/{below}"] = a / b if a is not None and b is not None else None
            rows.append(row)
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown."""
    columns = ["side", "sampler", "metric", "target", "value", *METHODS, *(f"{a}/{b}" for a, b in RATIOS)]
    return quality.markdown([{name: "–" if row[name] is None else row[name] for name in columns} for row in rows])


def reading(rows: Sequence[Mapping[str, Any]]) -> str:
    """The range of every ratio over the resolutions at the targets that the figures show."""
    lines = []
    for metric, target in SHOWN.items():
        for sampler in SAMPLERS:
            some = [row for row in rows if (row["metric"], row["target"], row["sampler"]) == (metric, target, sampler)]
            parts = []
            for above, below in RATIOS:
                values = [row[f"{above}/{below}"] for row in some if row[f"{above}/{below}"] is not None]
                if values:
                    ends = f"{values[0]:.2f} at {some[0]['side']} pixels, {values[-1]:.2f} at {some[-1]['side']}"
                    parts.append(f"{above} / {below} {ends} ({min(values):.2f} to {max(values):.2f})")
            lines.append(f"* {sampler}, {metric} {target}: iterations {'; '.join(parts)}.")
    return "\n".join(lines) + "\n\n"


def draw(rows: Sequence[Mapping[str, Any]], metric: str, target: str, path: pathlib.Path) -> None:
    """Ratios of iterations against resolution."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row["metric"] == metric and row["target"] == target:
            for ratio in ("plain/PDS", "plain/flat", "flat/both"):
                if row[ratio] is not None:
                    label = f"{row['sampler']}: {ratio.replace('/', ' / ')}"
                    lines.setdefault(label, []).append((row["side"], row[ratio]))
    what = {"frechet": "squared Fréchet distance / variance", "spectrum_error": "spectrum error"}[metric]
    title = f"Exact Gaussians, {what} = {target}"
    figures.curves(lines, path, xlabel="pixels a side", ylabel="ratio of iterations", title=title, logy=False)


def main() -> None:
    """Compute, draw, print."""
    parser = scripts.Arguments(__doc__)
    parser.add_argument("--out", default="runs/lab_resolution")
    parser.add_argument("--views", type=int, default=600)
    parser.add_argument("--largest", type=int, default=SIDES[-1], help="pixels a side")
    parser.add_argument("--iterations", type=int, default=1000, help="at most")
    args = parser.read()
    started, out = time.monotonic(), pathlib.Path(args.out)
    sides = [side for side in SIDES if side <= args.largest]
    counts = {round(n) for n in np.geomspace(5, args.iterations, 50)} | {n for n in AT if n <= args.iterations}
    iterations = sorted(counts)
    images = views(args.views, SIDES[-1])
    record: dict[str, Any] = {"views": args.views, "iterations": iterations, "alphas": ALPHAS, "flats": FLATS}
    record["sides"] = {}
    rows: list[dict[str, Any]] = []
    for side in sides:
        modes, sigma_max = modes_of(halved(images, int(math.log2(SIDES[-1] // side))))
        facts: dict[str, Any] = {"sigma_max": sigma_max, "variance_per_pixel": modes.variance / (3 * modes.pixels)}
        for sampler, snr in SAMPLERS.items():
            facts[sampler] = curves(modes, sigma_max, snr, iterations)
            rows += rows_of(side, sampler, iterations, facts[sampler])
        record["sides"][str(side)] = facts
        print(f"{side} pixels: sigma_max {sigma_max:.4g}, {time.monotonic() - started:.0f} s", flush=True)
    record["rows"] = rows
    files.write_json(out / "resolution.json", record)
    shown = [row for row in rows if row["metric"] == "frechet"] + [row for row in rows if row["metric"] != "frechet"]
    head = (
        "# Resolution\n\nExact Gaussians with the ring-averaged spectrum of photographs, by `python "
        f"scripts/lab_resolution.py --out=docs/lab`: {args.views} views at each resolution. Iterations for a target of "
        f"plain sampling, a flat M at its best c of {len(FLATS)}, PDS at its best alpha of {len(ALPHAS)} and c times "
        f"PDS at the best of {len(BOTH)} pairs (both). `frechet` is the squared Fréchet distance over the data's "
        "variance. – is not reached.\n\n"
    )
    files.atomic_write(out / "resolution.md", lambda file: file.write((head + reading(rows) + table(shown)).encode()))
    for metric, target in SHOWN.items():
        draw(rows, metric, target, out / f"resolution_{metric}.png")
    print(json.dumps({"out": str(out), "sides": sides, "seconds": round(time.monotonic() - started, 1)}))


if __name__ == "__main__":
    with one_line_errors():
        main()
