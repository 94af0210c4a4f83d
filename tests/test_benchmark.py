"""The benchmark's arithmetic and tables, on made-up seconds; the measuring itself is a run of minutes."""

import json
import pathlib
import subprocess
import sys
import types

import load_script
import numpy as np
import pytest

PATH = pathlib.Path(__file__).parent.parent / "scripts" / "dev" / "benchmark.py"


@pytest.fixture(scope="module")
def benchmark():
    return load_script.load("benchmark")


FOUND = {
    "hardware": {"devices": "2 CPU cores", "architecture": "x", "jax": "1", "python": "3"},
    "quick": False,
    "turns": 3,
    "sampler": [
        {"network": "photos", "NFE": 10, "network_ms": 2.0, "sampler_over_network": 1.01, "pds_over_plain_of_runs": 1.1}
    ],
    "operator": [
        {"network": "photos", "network_ms": 2.0, "pds_over_plain": 1.02},
        {"network": "1024", "network_ms": 9e3, "pds_over_plain": 1.001, "peak_bytes": 3 << 30},
    ],
    "flops": {"GFLOP_per_second": {"network": 80.0, "conv 3x3": 100.0}, "over_convolution": 0.8},
    "devices": {"scaling": {1: 1.0, 2: 0.95}},
    "start": [{"network": "photos", "cold_seconds": 10.0, "warm_seconds": 2.0, "warm_over_cold": 5.0}],
    "peak": {"photos": 1 << 30},
    "compiles_on_second_call": 0,
}


def test_the_last_line_has_every_key_and_the_table_every_figure(benchmark, tmp_path):
    last = benchmark.summary(FOUND)
    assert last["pds_over_plain"] == {"photos": 1.02, "1024": 1.001}
    assert last["peak_bytes"] == {"1024 pixels": 3 << 30, "photos": 1 << 30}
    assert last["network_over_diffusers"] is None and last["flops_over_peak"] == 0.8
    assert last["warm_over_cold"] == {"photos": 5.0} and json.loads(json.dumps(last))
    text = benchmark.table(FOUND)
    assert "| network_over_diffusers | at least 10 on a CPU | not measured |" in text
    assert "1024 pixels: 3.00 GiB, photos: 1.00 GiB" in text and "2 CPU cores" in text
    benchmark.draw_figure(FOUND, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_parts_that_were_not_measured_say_so(benchmark):
    text = benchmark.table({"hardware": FOUND["hardware"], "quick": True, "turns": 1})
    assert text.count("not measured") == 8 and "Quick run" in text


@pytest.mark.slow
def test_the_peak_is_that_of_the_process_alone(benchmark):
    here = benchmark.peak_bytes()
    code = f"import runpy; print(runpy.run_path({str(PATH)!r})['peak_bytes']())"
    ballast = np.ones(here // 8)  # a parent twice as large as it was
    there = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert 2**20 < there < here and ballast[-1] == 1


def test_a_broken_diffusers_is_told_and_passed_over(benchmark, monkeypatch, capsys):
    """diffusers raises RuntimeError when a package that it uses cannot be imported."""

    def broken(name):
        raise RuntimeError(f"Failed to import {name}:\noperator torchvision::nms does not exist")

    fake = types.ModuleType("diffusers")
    fake.__getattr__ = broken
    monkeypatch.setitem(sys.modules, "torch", types.ModuleType("torch"))
    monkeypatch.setitem(sys.modules, "diffusers", fake)
    assert benchmark.measure_diffusers(1, 1, True) is None
    assert "operator torchvision::nms does not exist" in capsys.readouterr().err


@pytest.mark.slow
def test_the_forms_of_a_part_agree_and_are_all_timed():
    """The script itself refuses forms that give other numbers."""
    words = [sys.executable, str(PATH.parent / "kernels.py"), "--batch=1", "--turns=1"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 5 and all(len(forms) > 1 and min(forms.values()) > 0 for forms in found.values())
