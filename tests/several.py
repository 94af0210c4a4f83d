"""One process of several, for the tests: ``python tests/several.py JOBS FOLDER [COORDINATOR COUNT INDEX]``."""

import os
import pathlib
import sys

os.environ["JAX_PLATFORMS"] = "cpu"
sys.path.insert(0, str(pathlib.Path(__file__).parent))

import jax
import numpy as np

from pds_jax import parallel, sampling, statistics

SHAPE = (8, 8, 1)


def share(folder):
    """What processes do together without a network: gather, add, and sample with the mean over all images."""
    from pds_jax.metrics.extractors import get_extractor
    from pds_jax.metrics.image_sets import ArrayImages
    from pds_jax.metrics.streaming import extract
    from pds_jax.models.analytic import PixelGaussian
    from pds_jax.sde_lib import VESDE

    index, count = parallel.process_share()
    numbers = np.random.default_rng(0).uniform(size=(41, *SHAPE)).astype(np.float32)
    found = statistics.compute_statistics([numbers], block=16, sums_fn=parallel.sums_fn)
    pixels = np.random.default_rng(1).integers(0, 256, (1300, 4, 4, 1), np.uint8)
    moments = extract(ArrayImages("random", pixels), get_extractor("pixels"), folder=folder).moments
    sampler = sampling.get_pc_sampler(VESDE(0.01, 5.0, 3), SHAPE, snr=0.1, norm="batch", check=False)
    law = PixelGaussian.create(VESDE(0.01, 5.0, 20), np.full(SHAPE, 0.5, np.float32), np.full(SHAPE, 0.1, np.float32))
    images = parallel.sample(sampler, sampling.image_keys(range(8)), law).x
    assert parallel.any_process(index == count - 1) and not parallel.any_process(False)
    arrays = {"mean": moments.mean, "scatter": moments.scatter, "power": found.power, "images": images}
    np.savez(folder / f"share{index}.npz", **arrays)
    parallel.wait_for_all("shared")


def train(folder):
    """The tiny training."""
    import tiny

    from pds_jax import training

    training.train(tiny.get_config(), str(folder / "training"))


if __name__ == "__main__":
    if len(sys.argv) > 3:
        parallel.initialize_distributed(sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
    if sys.argv[1] == "share":
        share(pathlib.Path(sys.argv[2]))
    else:
        jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(sys.argv[2]).parent / "cache"))
        train(pathlib.Path(sys.argv[2]))
