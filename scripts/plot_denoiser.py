"""Draw how well a network denoises, beside the linear (Wiener) denoiser of the data's mean and spectrum.

    python scripts/plot_denoiser.py --checkpoint=photos --out=denoiser.png

For each noise level σ both denoisers get the same noisy images; the figure shows the root mean square error a pixel
of D = x̄ + σ² s(x) and of D_W = μ + F⁻¹[P / (P + σ²) F(x̄ − μ)], for images of the training law and held-out ones.
The network's curve should be at or below the Wiener curve at every σ. The last line on stdout is JSON.
"""

from __future__ import annotations

import json
import time

import jax
import jax.numpy as jnp
import numpy as np

from pds_jax import assembly
from pds_jax.bench import figures
from pds_jax.cache import use_compilation_cache
from pds_jax.cli import scripts
from pds_jax.cli.failures import one_line_errors
from pds_jax.data import datasets
from pds_jax.spectral import wiener_step
from pds_jax.types import Array, PdsError


def level_times(sde: object, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Times at equal steps in t, and the noise level σ̄ = std / m of each."""
    t = np.linspace(1e-5, 1.0, count).astype(np.float32)
    return t, np.asarray(sde.std(jnp.asarray(t)) / sde.mean_scale(jnp.asarray(t)))


@jax.jit
def squared_errors(trained_score: object, sde: object, moments: tuple, x0: Array, z: Array, t: Array) -> Array:
    """Mean squared errors a pixel of the network's and of the Wiener denoiser, (2,)."""
    scale, std = sde.mean_scale(t), sde.std(t)
    wide = (slice(None), None, None, None)
    x_bar = x0 + (std / scale)[wide] * z
    score = trained_score(scale[wide] * x_bar, t)
    network = x_bar + (jnp.square(std) / scale)[wide] * score
    level = std / scale
    wiener = x_bar + wiener_step(x_bar, level, moments)
    return jnp.stack([jnp.mean(jnp.square(network - x0)), jnp.mean(jnp.square(wiener - x0))])


def curve(trained: assembly.Trained, images: np.ndarray, levels: int, repeats: int) -> list[dict[str, float]]:
    """Root mean square errors at each noise level.

    Args:
      trained: the model.
      images: (n, H, W, C) in [0, 1].
      levels: how many noise levels.
      repeats: noise draws an image.

    Returns:
      One row a level: sigma, network, wiener, in units of one pixel's range [0, 1].
    """
    moments = tuple(jnp.asarray(a) for a in trained.statistics.to_range(trained.config.data.centered))
    x0 = jnp.asarray(datasets.get_data_scaler(trained.config)(images), jnp.float32)
    unit = 2.0 if trained.config.data.centered else 1.0
    rows = []
    for number, (t, sigma) in enumerate(zip(*level_times(trained.sde, levels), strict=True)):
        total = np.zeros(2)
        for repeat in range(repeats):
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), number), repeat)
            z = jax.random.normal(key, x0.shape)
            times = jnp.full(len(x0), t)
            total += np.asarray(squared_errors(trained.score_fn, trained.sde, moments, x0, z, times), np.float64)
        network, wiener = np.sqrt(total / repeats) / unit
        rows.append({"sigma": float(sigma) / unit, "network": float(network), "wiener": float(wiener)})
    return rows


def main() -> None:
    """Measure, draw, print."""
    parser = scripts.Arguments(__doc__)
    parser.add_argument("--checkpoint", required=True, help="a shipped model, a model's folder or a training workdir")
    parser.add_argument("--out", default="denoiser.png", help="the figure")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--levels", type=int, default=25)
    parser.add_argument("--repeats", type=int, default=1, help="noise draws an image")
    parser.add_argument("--raw_weights", action="store_true", help="not their moving average")
    args = parser.read()
    for name, least in (("images", 2), ("levels", 2), ("repeats", 1)):
        if getattr(args, name) < least:
            raise PdsError(f"--{name}={getattr(args, name)}: use at least {least}")
    use_compilation_cache(None)
    started = time.monotonic()
    trained = assembly.load(args.checkpoint, use_ema=not args.raw_weights)
    if trained.statistics is None:
        raise PdsError(f"{args.checkpoint} has no statistics.npz, which the Wiener denoiser needs")
    curves, lines = {}, {}
    for split in ("train", "test"):
        source = datasets.get_source(trained.config, split)
        # Of an endless source, crops that training has not asked for.
        indices = np.arange(min(args.images, source.size or args.images)) + (0 if source.size else 10_000_000)
        curves[split] = curve(trained, source.images(indices), args.levels, args.repeats)
        what = {"train": "training law", "test": "held out"}[split]
        for name in ("network", "wiener"):
            lines[f"{name}, {what}"] = [(float(f"{row['sigma']:.3g}"), row[name]) for row in curves[split]]
    figures.curves(
        lines,
        args.out,
        xlabel="noise level σ",
        ylabel="denoiser's RMSE a pixel",
        title=f"{trained.config.data.dataset}: network and Wiener denoiser",
    )
    for row in curves["train"]:
        print(f"sigma {row['sigma']:9.4f}  network {row['network']:.5f}  wiener {row['wiener']:.5f}")
    ratios = {split: [row["network"] / row["wiener"] for row in rows] for split, rows in curves.items()}
    print(
        json.dumps(
            {
                "checkpoint": args.checkpoint,
                "figure": args.out,
                "worst_ratio": max(ratios["train"]),
                "worst_ratio_held_out": max(ratios["test"]),
                "mean_ratio": float(np.mean(ratios["train"])),
                "curves": curves,
                "seconds": round(time.monotonic() - started, 1),
            }
        )
    )


if __name__ == "__main__":
    with one_line_errors():
        main()
