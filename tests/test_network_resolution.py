"""Iterations against resolution: one table and one figure from the tables of several networks."""

import json

import load_script
import pytest

from pds_jax.bench import resolution
from pds_jax.types import PdsError

script = load_script.load("network_resolution")


def record(pixels, plain):
    """PDS has the distance 1 at 20 iterations, a flat M everywhere less."""
    curves = {"plain": plain, "flat": {10: 0.9, 20: 0.5}, "PDS best": {20: 1.0}}
    rows = [
        {"sampler": "PC", "method": method, "iterations": n, "blocks": [{"frechet": d, "spectrum_error": d}] * 2}
        for method, points in curves.items()
        for n, d in points.items()
    ]
    return {"model": f"of_{pixels}", "pixels": pixels, "rows": rows}


def test_networks_stand_by_rising_pixels_with_their_bounds():
    rows = resolution.rows_of([record(16, {20: 4.0, 80: 0.25}), record(8, {20: 4.0, 80: 2.0})], 20)
    assert [(row["pixels"], row["score"]) for row in rows] == [
        (8, "frechet"), (8, "spectrum_error"), (16, "frechet"), (16, "spectrum_error")
    ]  # fmt: skip
    text = resolution.markdown(rows)
    assert "| 16 | of_16 | PC | Fréchet distance | 40, 40 | ≤ 10, ≤ 10 |" in text
    assert "| 8 | of_8 | PC | spectrum error | > 80, > 80 | ≤ 10, ≤ 10 |" in text


def test_the_script(tmp_path, monkeypatch, capsys):
    paths = []
    for pixels in (8, 16):
        paths.append(tmp_path / f"{pixels}.json")
        paths[-1].write_text(json.dumps(record(pixels, {20: 4.0, 80: 0.25})))
    monkeypatch.setattr("sys.argv", ["network_resolution", "--tables", *map(str, paths), f"--out={tmp_path / 'out'}"])
    script.main()
    assert json.loads(capsys.readouterr().out)["networks"] == ["of_8", "of_16"]
    assert "20 iterations" in (tmp_path / "out" / "networks.md").read_text()
    assert (tmp_path / "out" / "networks.png").stat().st_size > 1000


def test_what_is_no_such_table_is_refused(tmp_path, monkeypatch):
    with pytest.raises(PdsError, match="of of_8 has no row of PDS at its best alpha with 30"):
        resolution.rows_of([record(8, {20: 4.0})], 30)
    (tmp_path / "x.json").write_text("{}")
    monkeypatch.setattr("sys.argv", ["network_resolution", "--tables", str(tmp_path / "x.json")])
    with pytest.raises(PdsError, match="no table of a shipped model"):
        script.main()
