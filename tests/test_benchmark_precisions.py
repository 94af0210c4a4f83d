"""The arithmetic, tables and bookkeeping of scripts/dev/benchmark_precisions.py; a slow test runs all of it."""

import importlib.util
import json
import math
import os
import pathlib
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import load_script
import numpy as np
import pytest

from pds_jax import parallel
from pds_jax.cli import run_lib
from pds_jax.cli.options import RunOptions
from pds_jax.types import PdsError

PATH = pathlib.Path(__file__).parent.parent / "scripts" / "dev" / "benchmark_precisions.py"


@pytest.fixture(scope="module")
def script():
    return load_script.load("benchmark_precisions")


# --- arithmetic ------------------------------------------------------------------------------------------------


def test_rates_are_ratios_of_operations_a_second(script):
    found = script.rates((2e12, 0.5), (1e13, 1.0), 40.0)
    assert found == pytest.approx(
        {"TFLOP_per_second": 4.0, "matmul_TFLOP_per_second": 10.0, "mfu": 0.4, "mfu_of_data_sheet": 0.1}
    )
    assert "mfu_of_data_sheet" not in script.rates((2e12, 0.5), (1e13, 1.0), None)


def test_the_difference_is_that_of_the_worst_image_that_both_have(script):
    reference = np.stack([np.full((2, 2, 1), 10.0), np.full((2, 2, 1), -1.0), np.zeros((2, 2, 1))])
    score = reference[:2].copy()
    score[0, 0, 0, 0] += 1.0  # a tenth
    score[1, 1, 1, 0] -= 0.3
    assert script.difference(score, reference) == pytest.approx(0.3)
    assert script.difference(reference[:2], score) == pytest.approx(0.3 / 1.3)


def test_operations_come_from_the_first_program_that_counts_them(script):
    def program(answer):
        def cost_analysis():
            if isinstance(answer, Exception):
                raise answer
            return answer

        return types.SimpleNamespace(cost_analysis=cost_analysis)

    none, unknown, refuses = program(None), program({"flops": -1.0}), program(NotImplementedError())
    assert script.operations(program({"flops": 3.0}), program({"flops": 4.0})) == 3.0
    assert script.operations(none, program([{"flops": 4.0}])) == 4.0
    assert script.operations(refuses, unknown, program({"flops": 5.0})) == 5.0
    assert math.isnan(script.operations(none, refuses))


@pytest.mark.parametrize("error", [parallel.OutOfMemory("8 images"), jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED")])
def test_the_batch_is_halved_until_it_fits(script, error):
    tried = []

    def attempt(batch):
        tried.append(batch)
        if batch > 3:
            raise error
        return f"fits {batch}"

    assert script.halving(attempt, 12) == "fits 3" and tried == [12, 6, 3]


def test_halving_ends_at_one_image_and_hides_no_other_error(script):
    tried = []

    def fail(error):
        def attempt(batch):
            tried.append(batch)
            raise error

        return attempt

    with pytest.raises(parallel.OutOfMemory):
        script.halving(fail(parallel.OutOfMemory("no")), 4)
    assert tried == [4, 2, 1]
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        script.halving(fail(jax.errors.JaxRuntimeError("INTERNAL: no")), 4)
    assert tried == [4, 2, 1, 4]


# --- precisions ------------------------------------------------------------------------------------------------


def test_precisions_are_those_of_the_command_line(script):
    assert {name: matrix for name, (matrix, _) in script.PRECISIONS.items()} == run_lib._PRECISIONS
    for name, (_, dtype) in script.PRECISIONS.items():
        assert (RunOptions("sample", PATH, precision=name).dtype or "float32") == dtype
    assert next(iter(script.PRECISIONS)) == "float32"
    assert all(set(peaks) == set(script.PRECISIONS) for peaks in script.PEAKS.values())


def test_programs_are_compiled_in_their_precision(script):
    seen = []

    def square(x):
        seen.append(jax.config.jax_default_matmul_precision)
        return x @ x

    run, count = script.compiled("tf32", square, 2 * jnp.eye(8))
    np.testing.assert_array_equal(run(), 4 * np.eye(8))
    assert seen == ["tensorfloat32"] and count == pytest.approx(2 * 8**3, rel=0.2)
    assert script.matmul("bfloat16", 8)().dtype == jnp.bfloat16
    assert script.matmul("tf32", 8)().dtype == jnp.float32


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_network_and_sampler_are_of_the_precision_and_the_batch(script, monkeypatch, name):
    seen = []

    def compiled(precision, function, score_fn, x, t):
        seen.append((precision, jnp.dtype(score_fn.model.dtype).name, x.shape[0]))
        return (lambda: np.asarray(x)), 7.0

    def sample(sampler, keys, score_fn):
        dtype = jnp.dtype(score_fn.model.dtype).name
        seen.append((jax.config.jax_default_matmul_precision, dtype, len(keys), int(sampler.steps)))
        assert not np.allclose(sampler.preconditioner.freq, 1)
        return types.SimpleNamespace(x=0)

    monkeypatch.setattr(script, "compiled", compiled)
    monkeypatch.setattr(script.parallel, "warm_up", sample)
    monkeypatch.setattr(script.parallel, "sample", sample)
    small, large = (script.prepare(script.tiny_configuration(), {}, name, 4, batch) for batch in (2, 5))
    large.draw()
    matrices, dtype = script.PRECISIONS[name]
    every = jax.local_device_count()
    assert seen[0] == (name, dtype, 2) and seen[-2:] == [(matrices, dtype, 5 * every, 4)] * 2
    assert large.nfe == 8 and large.operations == 7.0
    np.testing.assert_array_equal(small.score, large.score[:2])  # so that differences compare like with like


def settings(monkeypatch, script, **values):
    for name in ("_STEPS", "_BATCH", "_MAX_BATCH"):
        monkeypatch.setattr(script, name, types.SimpleNamespace(value=values.get(name)))
    monkeypatch.setattr(script, "random_params", lambda config: {})
    monkeypatch.setattr(script, "matmul", lambda precision, size: lambda: np.zeros(1))

    def prepare(config, params, precision, steps, batch):
        if batch > 2:
            raise parallel.OutOfMemory(f"{batch} images")
        score = np.full((batch, 1, 1, 1), 2.0 if precision == "float32" else 2.5)
        return script.Ready(batch, 2 * steps, 1e9 * batch, score, lambda: score, lambda: score)

    monkeypatch.setattr(script, "prepare", prepare)


def test_a_row_a_precision_with_the_batch_that_fits(script, monkeypatch, capsys):
    settings(monkeypatch, script)
    rows, left_out = script.measure_network("tiny", ["float32", "tf32"], 1, math.inf)
    assert [row["precision"] for row in rows] == ["float32", "tf32"] and left_out == {}
    assert {row["batch"] for row in rows} == {2} and "out of memory, now with 2" in capsys.readouterr().out
    assert [row["difference"] for row in rows] == [0.0, 0.25]
    row = rows[1]
    assert row["NFE"] == 8 and row["GFLOP_an_image"] == 1.0 and row["images_per_second"] > 0
    assert row["TFLOP_per_second"] == pytest.approx(1 / row["ms_an_image"])
    assert row["mfu"] == pytest.approx(row["TFLOP_per_second"] / row["matmul_TFLOP_per_second"])


def test_a_batch_that_is_given_is_not_halved(script, monkeypatch):
    settings(monkeypatch, script, _BATCH=4)
    with pytest.raises(parallel.OutOfMemory):
        script.measure_network("tiny", ["float32"], 1, math.inf)


def test_what_time_is_too_short_for_is_named(script, monkeypatch):
    settings(monkeypatch, script)
    rows, left_out = script.measure_network("tiny", ["float32", "tf32"], 1, -math.inf)
    assert rows == [] and left_out == {f"tiny {name}": "no time was left" for name in ("float32", "tf32")}


# --- diffusers -------------------------------------------------------------------------------------------------


def test_a_broken_installation_is_one_line(script, monkeypatch, tmp_path, capsys):
    (tmp_path / "diffusers").mkdir()
    (tmp_path / "diffusers" / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms\\nis missing')")
    (tmp_path / "job.json").write_text('{"device": "cpu", "calls": 1}')
    torch = types.ModuleType("torch")
    torch.backends = types.SimpleNamespace(cudnn=types.SimpleNamespace())
    monkeypatch.setitem(sys.modules, "torch", torch)
    for name in [name for name in sys.modules if name.partition(".")[0] == "diffusers"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    script.torch_job(str(tmp_path))
    assert json.loads(capsys.readouterr().out) == {"missing": "RuntimeError: operator torchvision::nms"}


CHILD = """
import sys
print("a library's greeting", flush=True)
print('{"torch": "9"}', flush=True)
for line in sys.stdin:
    if line == "end\\n":
        break
    print('{"missing": "no memory"}' if line == "tf32\\n" else '{"seconds": 0.5}', flush=True)
"""


def test_questions_to_the_other_process(script, monkeypatch, tmp_path):
    (tmp_path / "child.py").write_text(CHILD)
    monkeypatch.setattr(script, "__file__", str(tmp_path / "child.py"))
    with script.torch_process("folder") as ask:
        assert ask("") == {"torch": "9"}
        assert ask("float32") == {"seconds": 0.5}
        with pytest.raises(PdsError, match="no memory"):
            ask("tf32")
        with pytest.raises(PdsError, match="ended early"):
            ask("end")


def test_no_comparison_where_pytorch_does_not_run(script, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    with pytest.raises(PdsError, match="tpu"):
        script.measure_diffusers(["float32"], 1, True, math.inf)


# --- what is written -------------------------------------------------------------------------------------------


def test_the_last_line_and_the_table(script):
    rows = [
        {"network": "ffhq1024", "precision": name, "images_per_second": speed, "mfu": 0.5, "batch": 8}
        for name, speed in (("float32", 2.0), ("tf32", 8.0))
    ]
    found = {
        "hardware": {"devices": "1 NVIDIA H200", "architecture": "x", "jax": "1", "python": "3"},
        "quick": False,
        "turns": 3,
        "networks": rows,
        "diffusers": [{"precision": "tf32", "network_over_diffusers": 1.7}],
        "left_out": {"ffhq1024 bfloat16": "no time was left"},
    }
    last = script.summary(found)
    assert list(last) == ["images_per_second", "mfu", "network_over_diffusers", "hardware"]
    assert last["images_per_second"] == {"ffhq1024": {"float32": 2.0, "tf32": 8.0}}
    assert last["mfu"] == {"ffhq1024": {"float32": 0.5, "tf32": 0.5}} and last["hardware"] == found["hardware"]
    assert last["network_over_diffusers"] == {"tf32": 1.7}
    text = script.table(found)
    assert text.startswith("# Precisions on 1 NVIDIA H200\n") and "Quick run" not in text
    assert "| ffhq1024 | tf32 | 8 | 0.5 | 8 |" in text and "| tf32 | 1.7 |" in text
    assert "- ffhq1024 bfloat16: no time was left" in text
    bare = script.table({**found, "quick": True, "networks": [], "diffusers": [], "left_out": {}})
    assert "Quick run" in bare and "|" not in bare and "Not measured" not in bare


@pytest.mark.slow
def test_a_quick_run_from_end_to_end(script, tmp_path):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    command = [sys.executable, str(PATH), "--quick", f"--out={tmp_path}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    assert set(last) == {"images_per_second", "mfu", "network_over_diffusers", "hardware"}
    for key in ("images_per_second", "mfu"):
        assert set(last[key]["tiny"]) == set(script.PRECISIONS)
        assert all(0 < value < math.inf for value in last[key]["tiny"].values())
    name = last["hardware"]["devices"].lower().replace(" ", "_") + "_precisions_quick"
    found = json.loads((tmp_path / f"{name}.json").read_text())
    assert found["summary"] == last and (tmp_path / f"{name}.md").read_text() in done.stdout
    rows = {row["precision"]: row for row in found["networks"]}
    # A CPU has one way to multiply float32; bfloat16 has 8 bits.
    assert rows["float32"]["difference"] == 0 and rows["tf32"]["difference"] < 1e-5
    assert 1e-4 < rows["bfloat16"]["difference"] < 0.3
    assert rows["float32"]["NFE"] == 8 and rows["float32"]["GFLOP_an_image"] > 1e-4
    assert "diffusers bfloat16 not measured: a CPU has float32 only" in done.stdout
    if importlib.util.find_spec("diffusers") and importlib.util.find_spec("torch"):
        assert 0 < last["network_over_diffusers"]["float32"] < math.inf
        assert found["diffusers"][0]["difference"] < 1e-4


@pytest.mark.slow
def test_forms_of_pytorch_give_the_network_of_their_precision(script, tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    from pds_jax.convert import diffusers

    config = script.skip_configuration(True)
    params = script.random_params(config)
    x = np.random.default_rng(0).standard_normal((2, 32, 32, 3), np.float32)
    sigma = np.float32([1.0, 50.0])
    diffusers.export(params, config, tmp_path)
    np.save(tmp_path / "x.npy", np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
    np.save(tmp_path / "sigma.npy", sigma)
    (tmp_path / "job.json").write_text('{"device": "cpu", "calls": 1}')
    with script.torch_process(str(tmp_path)) as ask:
        assert set(ask("")) == {"torch"}
        forms = {name: ask(name)["form"] for name in ("float32", "bfloat16")}
        assert forms["float32"].endswith("float32") and forms["bfloat16"].split(", ")[1] in ("autocast", "converted")
        assert ask("bfloat16")["form"] == forms["bfloat16"] and ask("bfloat16")["seconds"] > 0
    reference = np.load(tmp_path / "float32.npy")
    for name, least, most in (("float32", 0, 1e-4), ("bfloat16", 1e-4, 0.1)):
        ours = np.asarray(script.our_form(config, params, name, x, sigma)())
        assert least <= script.difference(ours, reference) < most
        # Converted weights round the embedding of the noise level too.
        assert script.difference(np.load(tmp_path / f"{name}.npy"), reference) < 3 * most
