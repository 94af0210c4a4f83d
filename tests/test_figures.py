import numpy as np

from pds_jax import figures, images


def test_radial_mean_of_white_noise_is_flat_and_counts_every_frequency():
    radius, mean = figures.radial_mean(np.ones((8, 5, 3)))
    np.testing.assert_allclose(mean, 1.0)
    assert radius[0] == 0 and radius[-1] == 6  # the corner (4, 4) lies 5.66 bins out


def test_every_picture_is_written(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.random((4, 8, 8, 3))
    figures.comparison({"plain": {"20": pixels}, "PDS": {"20": pixels}}, tmp_path / "a.png", "title")
    figures.curves({"a": [(20, 1.0), (40, 0.5)]}, tmp_path / "b.png", xlabel="NFE", ylabel="d", floor=0.1)
    figures.spectra({"data": rng.random((8, 5, 3))}, tmp_path / "c.png")
    figures.filters(rng.random((8, 8, 3)), None, tmp_path / "d.png")
    figures.strip(rng.random((3, 2, 8, 8, 3)), tmp_path / "e.png", ["1", "2", "3"])
    for name in "abcde":
        assert images.load_png(tmp_path / f"{name}.png").std() > 0
