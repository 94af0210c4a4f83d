"""The measuring and exporting scripts, on laws whose answer is known."""

import importlib.util
import json
import pathlib
import sys
import types

import jax
import numpy as np
import pytest
import tiny

from pds_jax import checkpoints, statistics, train_state
from pds_jax.data import datasets
from pds_jax.models import analytic, init_model
from pds_jax.sde_lib import VESDE, VPSDE
from pds_jax.types import PdsError

SCRIPTS = pathlib.Path(__file__).parent.parent / "scripts"


def script(name):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("sde, centered", [(VESDE(0.01, 5.0), False), (VPSDE(), True)], ids=["ve", "vp"])
def test_the_exact_score_of_gaussian_data_draws_the_wiener_curve(sde, centered):
    """RMSE² = mean_k P σ² / (P + σ²) on data drawn from N(μ, P); 64 x 64 values a level, so 5 %."""
    stats = statistics.compute_statistics([datasets.digits("train")[0]])
    law = analytic.from_statistics(sde, stats, centered)
    x0 = np.asarray(law.sample(jax.random.key(0), 64))
    images = (x0 + 1) / 2 if centered else x0
    config = types.SimpleNamespace(data=types.SimpleNamespace(centered=centered))
    trained = types.SimpleNamespace(sde=sde, score_fn=law, statistics=stats, config=config)
    rows = script("plot_denoiser").curve(trained, images, levels=4, repeats=1)
    for row in rows:
        assert row["network"] == pytest.approx(row["wiener"], rel=2e-3)
        full = statistics.full_plane(stats.power.astype(np.float64), 8)
        exact = np.sqrt(np.mean(full * row["sigma"] ** 2 / (full + row["sigma"] ** 2)))
        assert row["wiener"] == pytest.approx(exact, rel=0.05)


def test_a_workdir_becomes_a_model(tmp_path, monkeypatch, capsys):
    config = tiny.get_config()
    state = train_state.create_train_state(init_model(jax.random.key(0), config), train_state.get_optimizer(config))
    workdir = tmp_path / "run"
    for name in ("checkpoints-meta", "checkpoints"):
        folder = checkpoints.TrainingFolder(workdir / name)
        folder.save(3, state)
        folder.close()
    (workdir / "config.json").write_text(json.dumps(config.to_dict()))
    log = [(1, 2.0), (2, 1.5), (2, 1.4), (3, 1.0)]
    rows = [json.dumps({"step": step, "loss": loss, "steps_per_second": 0.5}) for step, loss in log]
    (workdir / "log.jsonl").write_text("\n".join(rows))
    arguments = ["export_model", f"--workdir={workdir}", f"--out={tmp_path / 'model'}", "--step=3"]
    monkeypatch.setattr(sys, "argv", arguments)
    script("export_model").main()
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    found = checkpoints.load_any(tmp_path / "model")
    assert report["sha256_of_parameters"] == found.digest == checkpoints.digest_of(state.ema_params)
    assert report["last_loss"] == 1.0 and report["seconds_of_training"] == 4.0
    assert (tmp_path / "model" / "loss.png").stat().st_size > 1000

    (workdir / "log.jsonl").write_text("\n".join(rows) + '\n{"step": 4, "lo')  # killed while it was written
    assert [row["step"] for row in script("export_model").read_log(workdir)] == [1, 2, 3]
    (workdir / "log.jsonl").unlink()
    monkeypatch.setattr(sys, "argv", [*arguments[:2], f"--out={tmp_path / 'other'}", "--step=3"])
    script("export_model").main()
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["last_loss"] is None
    assert checkpoints.load_any(tmp_path / "other").digest == found.digest

    (tmp_path / "other" / "statistics.npz").write_bytes(b"")
    with pytest.raises(PdsError, match=r"holds one, of another model; move it away"):
        script("export_model").main()
    monkeypatch.setattr(sys, "argv", [*arguments[:2], f"--out={workdir}", "--step=3"])
    with pytest.raises(PdsError, match="is the workdir"):
        script("export_model").main()
