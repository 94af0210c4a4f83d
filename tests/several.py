"""One process of several, for the tests: ``python tests/several.py JOBS FOLDER [COORDINATOR COUNT INDEX]``."""

import os
import pathlib
import sys
import time

os.environ["JAX_PLATFORMS"] = "cpu"
sys.path.insert(0, str(pathlib.Path(__file__).parent))


import jax
import numpy as np

from pds_jax import parallel, processes, sampling, statistics
from pds_jax.types import PdsError

SHAPE = (8, 8, 1)


def share(folder):
    """What processes do together without a network: gather, add, decide, and sample with the mean over all images."""
    from pds_jax.metrics.extractors import get_extractor
    from pds_jax.metrics.image_sets import ArrayImages
    from pds_jax.metrics.streaming import extract
    from pds_jax.models.analytic import PixelGaussian
    from pds_jax.sde_lib import VESDE

    index, count = processes.process_share()
    numbers = np.random.default_rng(0).uniform(size=(41, *SHAPE)).astype(np.float32)
    found = statistics.compute_statistics([numbers], block=16, sums_fn=parallel.sums_fn)
    pixels = np.random.default_rng(1).integers(0, 256, (1300, 4, 4, 1), np.uint8)
    pixels[1290] = pixels[3]  # the cache of features knows images by their content
    random, extractor = ArrayImages("random", pixels), get_extractor("pixels")
    moments = extract(random, extractor, folder=folder).moments
    kept = extract(random, extractor, keep=("features",), folder=folder / "kept", batch_size=100)
    np.testing.assert_array_equal(kept.kept["features"], extractor(pixels))
    np.testing.assert_allclose(kept.moments.scatter, moments.scatter, rtol=1e-12)
    sampler = sampling.get_pc_sampler(VESDE(0.01, 5.0, 3), SHAPE, snr=0.1, norm="batch", check=False)
    law = PixelGaussian.create(VESDE(0.01, 5.0, 20), np.full(SHAPE, 0.5, np.float32), np.full(SHAPE, 0.1, np.float32))
    keys = sampling.image_keys(range(8))
    clock = time.perf_counter
    time.perf_counter = lambda: clock() * (1 + 1e6 * index)  # seconds are long in the last process
    assert parallel.cost(sampler, keys, law).step_seconds > 0
    time.perf_counter = clock
    images = parallel.sample(sampler, keys, law).x
    assert processes.any_process(index == count - 1) and not processes.any_process(False)
    tripled = parallel.data_parallel_everywhere(lambda factor, batch: factor * batch, np.float32(3.0))(numbers[:7])
    np.testing.assert_array_equal(tripled, np.float32(3.0) * numbers[:7])
    decide(index, count)
    arrays = {"mean": moments.mean, "scatter": moments.scatter, "power": found.power, "images": images}
    np.savez(folder / f"share{index}.npz", **arrays)
    processes.wait_for_all("shared")


def decide(index, count):
    """The first process decides for all, and an error in one is an error in all."""
    assert processes.from_process_zero(lambda: {"process": index, "words": "…" * index}) == {"process": 0, "words": ""}

    def fail(where):
        if index == where:
            raise PdsError(f"process {where} cannot")

    for where, act in ((0, processes.from_process_zero), (count - 1, processes.check_on_all_processes)):
        try:
            act(lambda where=where: fail(where))
        except PdsError as error:
            assert str(error) == f"process {where} cannot"
        else:
            raise AssertionError(f"process {index} heard nothing of the error in {where}")
    processes.check_on_all_processes(lambda: None)


def train(folder):
    """The tiny training."""
    import tiny

    from pds_jax import training

    training.train(tiny.get_config(), str(folder / "training"))


if __name__ == "__main__":
    if len(sys.argv) > 3:
        processes.initialize_distributed(sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
    if sys.argv[1] == "share":
        share(pathlib.Path(sys.argv[2]))
    else:
        jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(sys.argv[2]).parent / "cache"))
        train(pathlib.Path(sys.argv[2]))
