import numpy as np
import pytest
from PIL import Image

from pds_jax.bench import figures
from pds_jax.io import images
from pds_jax.types import PdsError


def test_radial_mean_of_white_noise_is_flat_and_counts_every_frequency():
    radius, mean = figures.radial_mean(np.ones((8, 5, 3)))
    np.testing.assert_allclose(mean, 1.0)
    assert radius[0] == 0 and radius[-1] == 6  # the corner (4, 4) lies 5.66 bins out


def test_every_picture_is_written(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.random((4, 8, 8, 3))
    figures.comparison({"plain": {"20": pixels}, "PDS": {"20": pixels}}, tmp_path / "a.png", "title")
    figures.curves({"a": [(20, 1.0), (40, 0.5)]}, tmp_path / "b.png", xlabel="NFE", ylabel="d", floors=[0.1, 0.12])
    figures.spectra({"data": rng.random((8, 5, 3))}, tmp_path / "c.png")
    figures.filters(rng.random((8, 8, 3)), None, tmp_path / "d.png")
    figures.strip(rng.random((3, 2, 8, 8, 3)), tmp_path / "e.png", ["1", "2", "3"])
    for name in "abcde":
        assert images.load_png(tmp_path / f"{name}.png").std() > 0


def test_ticks_do_not_lie_on_each_other(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "save", lambda figure, path: drawn.append(figure))
    lines = {"a": [(x, 1.0) for x in (9, 10, 13, 15, 19, 20, 29, 30, 40, 80, 132, 200, 1000, 2000)]}
    figures.curves(lines, tmp_path / "a.png", xlabel="NFE", ylabel="d")
    drawn[0].draw_without_rendering()
    labels = [each for each in drawn[0].axes[0].get_xticklabels() if each.get_text()]
    assert [each.get_text() for each in labels][:3] == ["2000", "1000", "200"]
    places = [each.get_window_extent().x1 for each in labels]
    assert max(np.diff(places)) < -0.2 * drawn[0].dpi


def test_animations_have_a_frame_a_step(tmp_path):
    positions = np.random.default_rng(0).normal(size=(4, 3, 2))
    figures.path_animation({"without M": positions, "with M": positions}, tmp_path / "a.gif", "title")
    figures.image_animation([np.full((2, 8, 8, 1), value) for value in (0.0, 0.5, 2.0)], tmp_path / "b.gif")
    for name, frames in (("a.gif", 4), ("b.gif", 3)):
        with Image.open(tmp_path / name) as animation:
            assert animation.n_frames == frames and animation.info["loop"] == 0


def test_an_animation_of_different_sizes_is_refused(tmp_path):
    with pytest.raises(PdsError, match="one size"):
        images.save_gif(tmp_path / "a.gif", [np.zeros((4, 4, 1)), np.zeros((4, 5, 1))])


def test_a_cell_that_was_not_sampled_says_so(monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "save", lambda figure, path: drawn.append(figure))
    pixels = np.zeros((4, 8, 8, 1), np.uint8)
    figures.comparison({"plain": {"20": pixels}, "auto": {"5": pixels, "20": pixels}}, "unused.png")
    assert [text.get_text() for axis in drawn[0].axes for text in axis.texts] == ["not sampled"]
