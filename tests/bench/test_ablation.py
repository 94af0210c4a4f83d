"""The table of a shipped model: cells, choices on other seeds, resuming, and how many iterations a method needs."""

import dataclasses
import math
import types

import numpy as np
import pytest
from ml_collections import ConfigDict

from pds_jax import assembly
from pds_jax.bench import ablation, cells
from pds_jax.types import PdsError

SMALL = ablation.Plan(((20, 8),), (10, 20, 40), blocks=2, choosing=4)


def test_needed_iterations_lie_between_the_points_of_a_curve():
    n, values = [10, 20, 40, 80], [1.0, 0.25, 0.0625, 0.015625]  # 100/N²
    assert ablation.needed(n, values, 0.01 * 2) == pytest.approx(math.sqrt(100 / 0.02))
    assert ablation.needed(n, values, 2.0) == 10 and ablation.needed(n, values, 1e-3) is None
    assert ablation.needed(n, [math.inf, 0.25, 0.3, 0.01], 0.5) == 20


def test_cells_are_each_method_of_each_sampler_up_to_what_is_paid_for():
    found = list(ablation.cells(SMALL))
    assert {cell.iterations for cell in found} == {10, 20} and found[0].iterations == 10
    assert len({cell.key for cell in found}) == len(found) == 2 * (2 * len(ablation.METHODS) + 2)
    assert len(ablation.FLATS) == len(ablation.ALPHAS)


def test_plain_rows_go_further_and_methods_may_be_fewer():
    plan = dataclasses.replace(
        SMALL, counts=((40, 8),), iterations=(10,), methods=("plain", "PDS best"), plain=(10, 40, 80)
    )
    found = list(ablation.cells(plan))
    assert [cell.method for cell in found if cell.iterations == 10] == ["plain", "PDS best"] * 2 + ["plain"] * 2
    beyond = [(cell.sampler, cell.iterations, cell.method) for cell in found if cell.iterations > 10]
    assert beyond == [("PC", 40, "plain"), ("reverse diffusion", 40, "plain")]


def rows_of_curves(**curves):
    """Rows of reverse diffusion with two blocks, the second twice the first."""
    return [
        {"sampler": "reverse diffusion", "method": method.replace("_", " "), "iterations": n,
         "blocks": [{"frechet": value, "spectrum_error": 1.0}, {"frechet": 2 * value, "spectrum_error": 1.0}]}
        for method, points in curves.items() for n, value in points.items()
    ]  # fmt: skip


def test_needed_iterations_tell_bounds():
    rows = rows_of_curves(plain={10: 1.0, 40: 0.25}, flat={20: 0.4, 40: 0.1}, PDS_best={20: 0.5})
    pds = rows[-1]
    for method, text in (("plain", "20"), ("flat", "≤ 20")):
        assert [ablation.shown(count) for count in ablation.needed_by(rows, method, pds, "frechet")] == [text] * 2
    low = {**pds, "blocks": [{"frechet": 0.2, "spectrum_error": 1.0}]}
    assert ablation.shown(*ablation.needed_by(rows, "plain", low, "frechet")) == "> 40"
    assert ablation.needed_by(rows, "space 5", low, "frechet") == [None] and ablation.shown(None) == "–"
    text = ablation.needed_table(rows)
    assert "| reverse diffusion | 20 | 20, 20 | ≤ 20, ≤ 20 |" in text and "for the spectrum error" in text


class Judge:
    """Counts images; the nearer a parameter to 1.1 or 8, the smaller the distance."""

    reference_name, identity = "nothing", {}

    def __init__(self):
        self.asked = []

    def __call__(self, images):
        return {"frechet": float(images[0, 0, 0, 0])}

    def real(self, count, offset):
        raise PdsError("no data")


@pytest.fixture
def bench(tmp_path, monkeypatch):
    drawn = []

    def draw(trained, made, seeds, batch_size, label, labels):
        drawn.append((label, made.value, seeds[0], len(seeds)))
        if made.value == 1.3 or made.value == 20.0:
            raise PdsError("it diverges")
        distance = abs(math.log(made.value / (8 if made.value > 2 else 1.1))) if math.isfinite(made.value) else 9.0
        return types.SimpleNamespace(images=np.full((len(seeds), 1, 1, 1), distance, np.float32))

    monkeypatch.setattr(assembly, "draw", draw)
    plan = lambda trained, cell, value: types.SimpleNamespace(value=value, alpha=value, nfe=cell.iterations)  # noqa: E731
    monkeypatch.setattr(ablation, "sampler_of", plan)
    config = ConfigDict({"model": {}, "sampling": {}, "pds": {}, "data": {"centered": False}})
    trained = assembly.Trained("model", config, None, None, (1, 1, 1), None, "abc")
    return cells.Cells(trained, Judge(), tmp_path, SMALL.blocks, SMALL.choosing), drawn


def measure(bench, cell, plan=SMALL):
    return bench.measure(ablation.work(bench.trained, plan, cell))


def test_c_and_alpha_are_chosen_on_seeds_that_no_block_has(bench):
    made, drawn = bench
    for method, best in (("flat", 1.1), ("PDS best", 8.0)):
        row = measure(made, ablation.Cell("PC", 10, method))
        assert row["value"] == best and len(row["blocks"]) == 2
    choosing = [(value, count) for _, value, first, count in drawn if first >= 2**30]
    reported = [(first, count) for _, _, first, count in drawn if first < 2**30]
    assert len(choosing) == 12 and {count for _, count in choosing} == {4}
    assert reported == [(0, 8), (8, 8)] * 2


def test_a_second_run_measures_only_what_is_missing(bench, tmp_path):
    made, drawn = bench
    rows = ablation.run(made, SMALL)
    count = len(drawn)
    assert len(rows) == len(list(ablation.cells(SMALL)))
    assert ablation.run(made, SMALL) == rows and len(drawn) == count
    (tmp_path / "cells" / "PC-10-plain.json").unlink()
    ablation.run(made, SMALL)
    assert len(drawn) == count + 2
    measure(dataclasses.replace(made, blocks=3), ablation.Cell("PC", 10, "plain"))
    assert len(drawn) == count + 3
    text = (tmp_path / "table.md").read_text()
    assert "PDS best" in text and "Iterations for the frechet" in text


def test_a_run_out_of_time_begins_nothing(bench):
    made, drawn = bench
    assert ablation.run(dataclasses.replace(made, minutes=0.0), SMALL) == [] and drawn == []


def test_what_diverges_is_told(bench, monkeypatch):
    made, _ = bench
    row = measure(made, ablation.Cell("PC", 10, "PDS 5"))
    assert row["value"] == 5.0 and "refused" not in row
    monkeypatch.setattr(ablation, "ALPHAS", (20.0, 20.0))
    row = measure(made, ablation.Cell("PC", 20, "PDS best"))
    assert "it diverges" in row["refused"] and row["blocks"] == []
    assert "refused" in ablation.table([row, measure(made, ablation.Cell("PC", 10, "plain"))], {}, SMALL)


def test_flat_and_pds_plans_have_their_m():
    trained = assembly.load("digits")
    flat = ablation.sampler_of(trained, ablation.Cell("reverse diffusion", 10, "flat"), 1.2)
    assert float(flat.sampler.preconditioner.space.ravel()[0]) == pytest.approx(1.2) and flat.N == 10
    both = ablation.sampler_of(trained, ablation.Cell("PC", 10, "both 5"), 20.0)
    assert both.preconditioner.freq is not None and both.preconditioner.space is not None and both.nfe == 20
    plain = ablation.sampler_of(trained, ablation.Cell("PC", 10, "plain"), math.inf)
    assert plain.preconditioner.is_identity
    auto = ablation.sampler_of(trained, ablation.Cell("auto", 10, "plain"), math.inf)
    assert auto.nfe == 10 and auto.sampler.predictor == "sde_dpmpp_2m"
