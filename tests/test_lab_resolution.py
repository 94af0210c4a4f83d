"""The resolution axis of the lab: interpolation of needed iterations, and a small run."""

import json

import load_script
import numpy as np

from pds_jax.data import photographs

script = load_script.load("lab_resolution")


def test_a_halved_image_is_the_mean_of_boxes():
    images = np.random.default_rng(0).uniform(size=(3, 8, 8, 3)).astype(np.float32)
    np.testing.assert_allclose(script.halved(images, 2)[:, 1, 0], images[:, 4:, :4].mean(axis=(1, 2)), rtol=1e-6)
    np.testing.assert_array_equal(script.halved(images, 0), images)


def test_a_small_run_writes_its_rows_and_figures(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    smooth = np.cumsum(np.cumsum(rng.normal(size=(40, 32, 32, 3)), axis=1), axis=2)
    low, high = smooth.min(axis=(1, 2, 3), keepdims=True), smooth.max(axis=(1, 2, 3), keepdims=True)
    monkeypatch.setattr(script, "SIDES", (8, 16, 32))
    monkeypatch.setattr(script, "views", lambda count, side: ((smooth - low) / (high - low))[:count].astype(np.float32))
    monkeypatch.setattr("sys.argv", ["lab_resolution", f"--out={tmp_path}", "--largest=16", "--iterations=100"])
    script.main()
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["sides"] == [8, 16]
    record = json.loads((tmp_path / "resolution.json").read_text())
    for row in record["rows"]:
        if row["target"].startswith("PDS at"):
            assert row["PDS"] <= int(row["target"].split()[-1]) * 1.05
        if row["plain"] is not None and row["flat"] is not None:
            assert row["flat"] <= row["plain"] * 1.001  # c = 1 is among the candidates
    assert (tmp_path / "resolution_frechet.png").stat().st_size > 1000
    assert "reverse diffusion, frechet 0.01" in (tmp_path / "resolution.md").read_text()


def test_views_show_a_fifth_to_a_half_of_a_photograph(monkeypatch):
    ramps = [np.tile(np.linspace(0, 255, w).astype(np.uint8)[None, :, None], (w // 2, 1, 3)) for w in (640, 1280, 2560)]
    monkeypatch.setattr(photographs, "read", lambda *_: ramps)
    spans = np.ptp(script.views(60, 256)[..., 0], axis=2).max(axis=1)
    assert 0.18 < spans.min() < spans.max() < 0.52
