"""The algorithm written out by hand gives the library's images for the same seeds."""

import importlib.util
import pathlib

import jax
import numpy as np

import pds_jax

PATH = pathlib.Path(__file__).parent.parent / "example.py"


def test_its_images_are_the_librarys(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec = importlib.util.spec_from_file_location("example", PATH)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    example.SEEDS, example.N = range(4), 8
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # as a user has it
        found = example.main()
    for rows, alpha in zip(found, (float("inf"), example.ALPHA), strict=True):
        plan = pds_jax.plan(example.trained, nfe=2 * example.N, alpha=alpha, predictor="reverse_diffusion")
        drawn = pds_jax.draw(example.trained, plan, seeds=range(4))
        np.testing.assert_allclose(rows, drawn.images, atol=2e-3)
    assert (tmp_path / "example.png").stat().st_size > 1000


def test_it_is_short():
    assert len(PATH.read_text().splitlines()) <= 70
