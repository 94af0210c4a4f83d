"""The few-step table: every sampler gets as many settings, and what is said follows from the blocks."""

import dataclasses
import json
import math
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from load_script import load

from pds_jax import assembly, choose
from pds_jax.bench import cells, fewstep, judges, methods
from pds_jax.io import images
from pds_jax.models.analytic import FrequencyGaussian
from pds_jax.plugins import load_plugin
from pds_jax.predictors import PREDICTORS
from pds_jax.types import PdsError

ROOT = pathlib.Path(__file__).parent.parent.parent
HEADS = {"frechet": "components", "spectrum_error": "spectrum error"}


@pytest.fixture(scope="module")
def digits():
    return assembly.load("digits")


def test_every_sampler_has_as_many_settings_as_the_others(digits):
    photos = methods.Scales.of(assembly.load("photos"))
    assert photos.unit == pytest.approx(0.264 / 0.5, abs=0.01) and photos.colours
    for scales in (photos, methods.Scales.of(digits)):
        for method in methods.METHODS:
            some = [json.dumps(setting, sort_keys=True) for setting in method.settings(scales)]
            assert len(set(some)) == len(some) and len(some) in (1, methods.TRIALS), method.name
    names = [method.name for method in methods.METHODS]
    assert set(fewstep.CURVES) <= set(names)
    assert len(set(names)) == len(names) and not any("," in name for name in names)


def test_samplers_are_named_by_group_or_name():
    assert {method.group for method in methods.named(["papers"])} == {"papers"}
    assert [method.name for method in methods.named(["auto", "RD"])] == ["auto", "RD"]
    assert [method.name for method in methods.named(["euler_maruyama"])] == [
        "euler_maruyama", "euler_maruyama + flat M", "euler_maruyama + PDS"
    ]  # fmt: skip
    with pytest.raises(PdsError, match="no samplers: use some of all, "):
        methods.named([])
    with pytest.raises(PdsError, match="unknown sampler 'nothing'; known: all, "):
        methods.named(["nothing"])


@pytest.mark.slow
def test_every_sampler_can_be_planned(digits):
    """One setting each at least, with no more evaluations than were asked for."""
    plan = fewstep.Plan([m for m in methods.METHODS if "tune" not in m.name and "pilot" not in m.name], (9,), 8)
    for work in fewstep.works(digits, plan):
        setting = work.settings[-1 if "PDS" in work.key or "Restart" in work.key else 0]  # the first take more steps
        made = work.plan(setting)
        told = work.told(setting, made)
        assert 7 <= made.nfe <= 9, work.key
        assert told["fitted"] == (work.facts["group"] == "spectral" and "P=0" not in work.key), work.key


def row(sampler, group, nfe, blocks, error=0.1, **more):
    return {
        "sampler": sampler, "group": group, "asked": nfe, "nfe": nfe, "trials": 6,
        "blocks": [{"frechet": value, "spectrum_error": error} for value in blocks], **more,
    }  # fmt: skip


def test_a_verdict_is_against_the_best_baseline():
    rows = [
        row("slow", "papers", 5, (4.0, 4.2)), row("good", "baselines", 5, (2.0, 2.2)),
        row("ours", "spectral", 5, (1.0, 1.1), fitted=True), row("auto", "auto", 5, (1.9, 2.4)),
        row("good", "baselines", 20, (0.5, 0.6)), {**row("bad", "baselines", 5, ()), "refused": "it diverges"},
    ]  # fmt: skip
    text = fewstep.verdicts(rows, HEADS)
    assert "| ours | better than good | not counted |" in text
    assert "| auto | within noise of good |" in text
    assert "| ours | worse than good | not counted |" in text.split("up to 20")[1]
    shown = fewstep.table(rows, [{"frechet": 0.1, "spectrum_error": 0.05}] * 2, HEADS)
    assert "| bad | 6 |  | 5 |  | refused | refused |" in shown and "(0.1 (0.1 to 0.1))" in shown
    assert "| real images |" in shown and "### 20 evaluations" in shown


@pytest.mark.parametrize("blocks", [2, 4, 8])
def test_equal_samplers_are_told_apart_once_in_twenty(blocks):
    rng = np.random.default_rng(0)
    common = rng.normal(size=(4000, 1, blocks))  # of the same seeds
    ours, theirs = np.moveaxis(common + 0.1 * rng.normal(size=(4000, 2, blocks)), 1, 0)
    said = [fewstep.compare(a, b) for a, b in zip(ours, theirs, strict=True)]
    assert said.count("within noise") / len(said) == pytest.approx(0.95, abs=0.012)  # three standard deviations
    assert said.count("better") == pytest.approx(said.count("worse"), abs=60)
    assert fewstep.compare([1.0], [2.0]) == "within noise"
    if blocks > 2:  # a tenth of the common noise is told
        assert {fewstep.compare(b - 0.5, b) for b in theirs + 0.01 * ours} == {"better"}


def test_a_score_that_no_sampler_has_yet_gets_no_panel(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(fewstep.figures, "bands", lambda panels, path, **options: drawn.update(options, panels=panels))
    floor = [{"frechet": 0.1, "spectrum_error": 0.05}] * 2
    fewstep.draw([row("auto", "auto", 5, (1.0, 1.1), fitted=True)], floor, HEADS, tmp_path / "f.png", "")
    assert list(drawn["panels"]) == ["Fréchet, components"] and drawn["floors"] == [[0.1, 0.1]]


def test_settings_are_described_by_what_differs():
    setting = {"predictor": "restart", "corrector": "none", "grid": "edm", "restarts": ((3, 2, 0.03, 0.15),)}
    assert methods.described(setting) == "restarts ((3, 2, 0.03, 0.15))"
    assert methods.described({"grid": "edm", "kappa": 0.4, "colours": False, "head_start": None}) == "kappa 0.4"


@pytest.mark.slow
def test_a_small_table_from_end_to_end(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(choose, "measure", lambda *a: choose.Measured((4.0, 1.0), (9.0, 9.0), 10.0))
    mean, power = digits.statistics.to_range(False)
    digits = dataclasses.replace(digits, score_fn=FrequencyGaussian.create(digits.sde, mean, power), digest="gaussian")
    plan = fewstep.Plan(methods.named(["RD", "DPM++(2M)", "auto"]), (5,), 16, 2)
    bench = cells.Cells(digits, judges.judge_of(digits), tmp_path, 2, 16, 16)
    rows = fewstep.run(bench, plan)
    assert [row["sampler"] for row in rows] == ["auto", "RD", "DPM++(2M)"]
    assert all(len(row["blocks"]) == 2 and math.isfinite(row["blocks"][0]["frechet"]) for row in rows)
    assert rows[0]["pilot"] == 384 and rows[0]["trials"] == 1 and len(rows[2]["tried"]) == 2
    text = (tmp_path / "table.md").read_text()
    assert "| auto | 1 | dpmpp_2m | 5 | 384 |" in text and "against the best baseline" in text
    assert images.load_png(tmp_path / "figure.png").std() > 0
    before = (tmp_path / "table.json").read_text()
    assert fewstep.run(bench, plan) == rows and (tmp_path / "table.json").read_text() == before


@pytest.mark.parametrize("text", ["0", "five", "10.5", "1"])
def test_the_script_refuses_evaluations_that_are_none(text):
    script = load("fewstep_table")
    assert script.numbers(["10", "5", "10"], "nfe") == [5, 10]
    with pytest.raises(PdsError, match="--nfe"):
        script.numbers([text], "nfe")


def test_quick_takes_the_flags_that_are_given():
    words = [sys.executable, "scripts/fewstep_table.py", "--quick", "--list", "--samplers=RD,DPM++(2M)", "--nfe=3"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    # 2 blocks of 32 images; of the solver's settings 2 are tried with 32 images each.
    assert done.stdout.endswith(f"2 cells, {3 * (64 + 64 + 64)} network evaluations without those of pilots\n"), done


def test_a_changed_plugin_is_another_cell(digits, tmp_path):
    keys = []
    for amount in ("0.5", "0.25"):
        name = f"mine_{amount[2:]}"
        text = f"""from pds_jax.predictors import PREDICTORS, register_predictor
@register_predictor("{name}")
def step(x, t, z, *, sde, score_fn):
    return x, {amount} * x
"""
        (tmp_path / "mine.py").write_text(text)
        load_plugin(tmp_path / "mine.py")
        work = next(fewstep.works(digits, fewstep.Plan(methods.named([name]), (5,))))
        keys.append(work.decides["plugins"])
        PREDICTORS.pop(name)
    assert keys[0] != keys[1]
    assert "plugins" not in next(fewstep.works(digits, fewstep.Plan(methods.named(["RD"]), (5,)))).decides


def test_another_rule_of_auto_is_another_cell(digits, monkeypatch):
    decided = []
    for rule in (1, 2):
        monkeypatch.setattr(choose, "RULE", rule)
        decided.append(next(fewstep.works(digits, fewstep.Plan(methods.named(["auto"]), (5,)))).decides)
    assert decided[0] != decided[1]
