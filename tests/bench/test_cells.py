"""Cells: settings are chosen on seeds that no block has, and what is done is not done again."""

import math
import types

import numpy as np
import pytest
from ml_collections import ConfigDict

from pds_jax import assembly
from pds_jax.bench import cells
from pds_jax.parallel import OutOfMemory
from pds_jax.types import PdsError


class Judge:
    """The distance of an image is its pixel."""

    def __init__(self, **identity):
        self.identity = identity

    def __call__(self, images):
        return {"frechet": float(images[0, 0, 0, 0])}

    def real(self, count, offset):
        if offset + count > 24:
            raise PdsError("no more data")
        return np.full((count, 1, 1, 1), offset, np.float32)


@pytest.fixture
def drawn(monkeypatch):
    found = []

    def draw(trained, made, seeds, batch_size, label, labels):
        found.append((made.value, seeds[0], len(seeds)))
        if made.value == "memory":
            raise OutOfMemory("too much")
        if math.isnan(made.value):
            raise PdsError("it diverges")
        return types.SimpleNamespace(images=np.full((len(seeds), 1, 1, 1), abs(made.value - 3), np.float32))

    monkeypatch.setattr(assembly, "draw", draw)
    return found


def model(sigma_max=50.0, noise_removal=True, alpha=5.0):
    config = {"model": {"sigma_max": sigma_max}, "sampling": {"noise_removal": noise_removal}, "pds": {"alpha": alpha}}
    config = ConfigDict({**config, "data": {"centered": False}})
    return assembly.Trained("model", config, None, None, (1, 1, 1), None, "abc")


def make(folder, trained=None, **options):
    trained = trained or model()
    return cells.Cells(trained, **{"judge": Judge(), "folder": folder, "blocks": 2, "choosing": 4, **options})


def work(*settings, images=8):
    plan = lambda value: types.SimpleNamespace(value=value, nfe=10)  # noqa: E731
    return cells.Work("a", {"sampler": "a"}, settings, images, plan, lambda value, made: {"parameter": value})


def test_the_best_setting_is_reported_on_other_seeds(tmp_path, drawn):
    row = make(tmp_path).measure(work(1.0, math.nan, 4.0, 2.5))
    assert row["value"] == row["parameter"] == 2.5 and row["nfe"] == 10
    assert [block["frechet"] for block in row["blocks"]] == [0.5, 0.5]
    assert [seeds for _, *seeds in drawn] == [[2**30, 4]] * 4 + [[0, 8], [8, 8]]
    assert [one.get("frechet") for one in row["tried"]] == [2.0, None, 1.0, 0.5]


def test_a_stopped_cell_goes_on_where_it_was(tmp_path, drawn, monkeypatch):
    clock = iter([0.0, 1.0, 2.0, 100.0])
    monkeypatch.setattr(cells.time, "monotonic", lambda: next(clock, 100.0))
    some = work(1.0, 2.0, 3.0)
    row = make(tmp_path, minutes=1.0).measure(some)
    assert len(drawn) == 2 and row["blocks"] == [] and "value" not in row
    assert cells.run(make(tmp_path, minutes=0.0), [some], lambda rows: None) == []
    row = make(tmp_path).measure(some)
    assert row["value"] == 3.0 and len(row["blocks"]) == 2 and len(drawn) == 5
    assert make(tmp_path).measure(some) == row and len(drawn) == 5
    make(tmp_path, blocks=3).measure(some)
    assert len(drawn) == 6
    make(tmp_path).measure(work(1.0, 2.0, 4.0))
    assert len(drawn) == 11  # other settings are another cell


def test_what_is_refused_is_told_and_not_tried_again(tmp_path, drawn):
    row = make(tmp_path).measure(work(math.nan, math.nan))
    assert "it diverges" in row["refused"] and row["blocks"] == []
    assert make(tmp_path).measure(work(math.nan, math.nan)) == row and len(drawn) == 2
    with pytest.raises(OutOfMemory):
        make(tmp_path).measure(work("memory"))


def test_the_floor_grows_with_the_blocks(tmp_path):
    assert make(tmp_path, blocks=1).floor([8]) == {8: [{"frechet": 0.0}]}
    assert make(tmp_path).floor([8]) == {8: [{"frechet": 0.0}, {"frechet": 8.0}]}
    assert make(tmp_path).floor([16]) == {}


def test_a_score_is_its_mean_and_range():
    assert cells.spread([{"a": 1.0}, {"a": 2.0}], "a") == "1.5 (1 to 2)" and cells.spread([{"a": 1.0}], "a") == "1"


def test_another_judge_judges_anew(tmp_path, drawn):
    blocks, floors = [], []

    class Counting(Judge):
        def real(self, count, offset):
            floors.append(offset)
            return super().real(count, offset)

    for identity in ({}, {}, {"reference": "a"}, {"reference": "b"}, {"reference": "b"}, {}):
        bench = make(tmp_path, judge=Counting(**identity))
        bench.measure(work(1.0))
        bench.floor([8])
        blocks.append((len(drawn), len(floors)))
    assert blocks == [(2, 2), (2, 2), (4, 4), (6, 6), (6, 6), (8, 8)]


@pytest.mark.parametrize("change", [{"sigma_max": 4.8}, {"noise_removal": False}, {"alpha": 2.0}])
def test_the_same_weights_in_another_configuration_are_measured_anew(tmp_path, drawn, change):
    some, others = work(1.0), []
    for trained in (model(), model(), model(**change)):
        make(tmp_path, trained).measure(some)
        others.append(len(drawn))
    assert others == [2, 2, 4]
