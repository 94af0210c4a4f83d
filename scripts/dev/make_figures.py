"""The pictures of the documentation's concept pages.

python scripts/dev/make_figures.py                      all of them, into docs/figures
python scripts/dev/make_figures.py --only=plane,filters
"""

from __future__ import annotations

import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from pds_jax import assembly, preconditioner, sampling, statistics
from pds_jax.bench import figures, lab
from pds_jax.cache import use_compilation_cache
from pds_jax.cli import scripts
from pds_jax.io import images
from pds_jax.metrics.simple import power_spectrum
from pds_jax.models.analytic import PixelGaussian
from pds_jax.sde_lib import VESDE
from pds_jax.types import PdsError, unknown_name

_OUT = flags.DEFINE_string("out", "docs/figures", "Folder of the pictures.")
_ONLY = flags.DEFINE_list("only", None, "Names, of " + "plane, lag, filters, gains, forward, photos; default: all.")
_NFE = flags.DEFINE_integer("nfe", 40, "Network evaluations of the picture of the photos network.")
_COUNT = flags.DEFINE_integer("images", 64, "Images behind the spectra of that picture.")

ALPHA = 3.0  # near the best of docs/results/fewstep_photos.json at 40 evaluations, 4 with PC


def plane(out: pathlib.Path) -> list[pathlib.Path]:
    """Langevin dynamics on a narrow Gaussian in the plane."""
    panels = {
        f"{label}, step {step:g}": lab.toy_paths(m, step, particles=40, seed=0, steps=20, start=(2.5, 2.5))
        for label, m in lab.toy_preconditioners().items()
        for step in (0.03, 0.3)
    }
    title = "Langevin dynamics on N(0, diag(1, 0.2²)) from (2.5, 2.5)"
    figures.paths(panels, out / "plane.png", f"{title}; red: after 20 steps", reach=3.2)
    figures.path_animation(panels, out / "plane.gif", title, reach=3.2)
    return [out / "plane.png", out / "plane.gif"]


def lag(out: pathlib.Path) -> list[pathlib.Path]:
    """The noise of a direction without data against the noise level that the score is told."""
    sde = VESDE(sigma_min=0.01, sigma_max=50, N=66)
    law = PixelGaussian.create(sde, np.zeros((1, 1, 2)), np.array([[[1.0, 0.001]]]) ** 2)
    advance = jax.jit(lambda sampler, carry: sampler.run_chunk(carry, 1, law))
    lines = {}
    for gain in (1.0, 1.1, 1.25, 1.4):
        m = preconditioner.Preconditioner(space=jnp.asarray([[[1.0, gain]]], jnp.float32), shape=(1, 1, 2))
        sampler = sampling.get_pc_sampler(sde, (1, 1, 2), "reverse_diffusion", "none", preconditioner=m)
        carry = sampler.init(sampling.image_keys(range(20_000)))
        points = []
        for step in range(1, 45):
            carry = advance(sampler, carry)
            told = float(sde.std(jnp.full(1, sampler.times[step]))[0])
            points.append((step, float(jnp.std(carry.x[..., 1])) / told))
        lines[f"gain {gain:g}"] = points
    title = "A direction without data, 66 iterations of reverse diffusion"
    axes = {"xlabel": "iteration", "ylabel": "noise / noise level of the network"}
    figures.curves(lines, out / "lag.png", title=title, logx=False, logy=False, **axes)
    return [out / "lag.png"]


def photo_statistics() -> statistics.Statistics:
    """Those that ship with the photos network."""
    stats = assembly.load("photos").statistics
    assert stats is not None
    return stats


def filters(out: pathlib.Path) -> list[pathlib.Path]:
    """R and A of the photographs at the papers' alpha."""
    m = preconditioner.from_statistics(photo_statistics(), 5.0, "both")
    assert m.freq is not None and m.space is not None
    full = statistics.full_plane(np.asarray(m.freq), m.space.shape[1])
    figures.filters(full, np.asarray(m.space), out / "filters.png", "photos: the filters of M at alpha 5")
    return [out / "filters.png"]


def gains(out: pathlib.Path) -> list[pathlib.Path]:
    """R against frequency for several alphas."""
    lines = {}
    for alpha in (2.0, 3.0, 5.0, 10.0, math.inf):
        m = preconditioner.from_statistics(photo_statistics(), alpha)
        gain = np.ones((16, 9, 3)) if m.freq is None else np.asarray(m.freq)
        lines[f"alpha {alpha:g}"] = list(zip(*figures.radial_mean(gain), strict=True))
    figures.curves(
        lines,
        out / "gains.png",
        xlabel="frequency |k| (cycles per image)",
        ylabel="gain R",
        title="photos: what M does to a frequency",
        logx=False,
        logy=False,
    )
    return [out / "gains.png"]


def forward(out: pathlib.Path) -> list[pathlib.Path]:
    """A photograph's crop at rising noise."""
    from pds_jax.data.photographs import photos

    crops = photos("train", 16).images(np.array([36, 19, 25]))  # a house, petals, a tower
    rng = np.random.Generator(np.random.PCG64(0))
    z = rng.standard_normal(crops.shape)
    levels = (0.0, 0.03, 0.1, 0.3, 1.0, 3.0, 27.0)
    # Shown in the range that the noise has, so that the last is gray noise and not saturated.
    steps = [np.clip(0.5 + (crops + s * z - 0.5) / max(1.0, 6 * s), 0, 1) for s in levels]
    figures.strip(np.stack(steps), out / "forward.png", [f"σ = {s:g}" for s in levels])
    return [out / "forward.png"]


def photos(out: pathlib.Path) -> list[pathlib.Path]:
    """The photos network without and with PDS: the way of some images, and the spectra of many."""
    trained = assembly.load("photos")
    assert trained.statistics is not None
    powers = {"data": trained.statistics.power}
    written = []
    for name, label, alpha in (("plain", "without PDS", math.inf), ("pds", f"with PDS, alpha {ALPHA:g}", ALPHA)):
        plan = assembly.plan(trained, nfe=_NFE.value, alpha=alpha)
        drawn = assembly.draw(trained, plan, range(_COUNT.value), trajectory_every=1)
        samples = np.clip(drawn.images, 0, 1)
        powers[label] = power_spectrum(samples)
        kept = [drawn.trajectory[int(i)] for i in np.linspace(0, len(drawn.trajectory) - 1, 8)]
        steps = np.stack([np.clip(x[:4], 0, 1) for _, _, x in kept])
        path = out / f"trajectory_{name}.png"
        figures.strip(steps, path, [f"step {step}" for step, _, _ in kept], f"photos, {plan.nfe} NFE, {label}")
        written.append(path)
    figures.spectra(powers, out / "spectra.png", f"photos: power of {_COUNT.value} samples at {plan.nfe} NFE")
    return [*written, out / "spectra.png"]


FIGURES = {each.__name__: each for each in (plane, lag, filters, gains, forward, photos)}


def main(argv: list[str]) -> None:
    """Draw what is asked for."""
    scripts.refuse_words(argv)
    names = _ONLY.value or list(FIGURES)
    for name in names:
        if name not in FIGURES:
            raise PdsError(unknown_name("figure", name, FIGURES))
    use_compilation_cache(None)
    out = pathlib.Path(_OUT.value)
    written = [path for name in names for path in FIGURES[name](out)]
    for path in written:
        print(f"{path}: {'x'.join(map(str, images.load_png(path).shape[1::-1]))} pixels")
    print(json.dumps({"figures": [str(path) for path in written]}))


if __name__ == "__main__":
    scripts.run(main)
