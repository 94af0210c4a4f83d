"""scripts/convert_checkpoint.py as users run it."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest
from convert_cases import PIPE, TORCH, assert_same_tree, skip_config, torch_config

from pds_jax import convert

ROOT = pathlib.Path(__file__).parent.parent.parent


def run(*arguments):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(ROOT / "scripts" / "convert_checkpoint.py"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def config_file(folder, config):
    path = folder / "the_config.py"
    fields = json.dumps(json.dumps(config.to_dict()))
    path.write_text(
        f"import json, ml_collections\ndef get_config():\n  return ml_collections.ConfigDict(json.loads({fields}))\n"
    )
    return path


def test_a_pth_becomes_ours(tmp_path):
    config = torch_config()
    done = run(
        f"--src={TORCH / 'ncsnpp_ve.pth'}",
        f"--config={config_file(tmp_path, config)}",
        f"--out={tmp_path / 'm'}",
        "--raw",
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    result = json.loads(lines[-1])
    assert result["kind"] == "score_sde_torch" and result["weights"] == "raw" and result["mapped"] == 157
    assert result["parity"] is None and any(line.startswith("parity: not run") for line in lines)
    assert any(line.startswith("  mapped   ") for line in lines)
    raw, _ = convert.load_checkpoint(TORCH / "ncsnpp_ve.pth", config, use_ema=False)
    assert_same_tree(convert.load_checkpoint(tmp_path / "m", config)[0], raw)


@pytest.mark.slow
def test_a_diffusers_folder_prints_its_parity_and_goes_back(tmp_path):
    config = config_file(tmp_path, skip_config())
    done = run(f"--src={PIPE}", f"--config={config}", f"--out={tmp_path / 'pipe'}", "--kind=diffusers")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    if importlib.util.find_spec("diffusers") and importlib.util.find_spec("torch"):
        assert 0 < result["parity"] < 1e-4
    else:
        assert result["parity"] is None and "parity: not run" in done.stdout
    ours, _ = convert.load_checkpoint(tmp_path / "pipe", skip_config())
    assert_same_tree(ours, convert.load_checkpoint(PIPE, skip_config())[0])


@pytest.mark.parametrize("config", [pytest.param(True, marks=pytest.mark.slow), False])
def test_a_mistake_is_one_line_and_exit_2(tmp_path, config):
    """Another network's configuration, or none."""
    flags = [f"--config={config_file(tmp_path, skip_config())}"] if config else []
    done = run(f"--src={TORCH / 'ncsnpp_ve.pth'}", f"--out={tmp_path / 'm'}", *flags)
    assert done.returncode == 2
    message = [line for line in done.stderr.splitlines() if line.startswith("convert_checkpoint: ")]
    assert len(message) == 1 and ("leaf" if config else "carries no configuration") in message[0]
    assert "Traceback" not in done.stderr and not (tmp_path / "m").exists()


@pytest.mark.parametrize("kind", ["score_sde_torch", pytest.param("diffusers", marks=pytest.mark.slow)])
def test_what_a_kind_cannot_hold_is_one_sentence_before_any_work(tmp_path, kind):
    """The shipped models' output is not the score by itself."""
    done = run("--src=checkpoints/digits", f"--out={tmp_path / 'm'}", f"--kind={kind}")
    assert done.returncode == 2 and not done.stdout
    lines = [line for line in done.stderr.splitlines() if line.startswith("convert_checkpoint: ")]
    assert len(lines) == 1 and "'wiener'" in lines[0] and "use kind 'safetensors'" in lines[0]
    assert not (tmp_path / "m").exists()


@pytest.mark.slow
def test_a_network_that_diffusers_lacks_is_refused_before_its_weights_are_read(tmp_path):
    config = torch_config()
    convert.export(convert.load_checkpoint(TORCH / "ncsnpp_ve.pth", config)[0], config, tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").write_bytes(b"damaged")
    done = run(f"--src={tmp_path / 'm'}", f"--out={tmp_path / 'pipe'}", "--kind=diffusers")
    assert done.returncode == 2 and not done.stdout
    assert "diffusers has only NCSN++ with model.progressive='output_skip'" in done.stderr


def test_a_place_that_cannot_be_written_is_found_before_the_weights_are_read(tmp_path):
    (tmp_path / "file").write_text("")
    done = run("--src=checkpoints/digits", f"--out={tmp_path / 'file' / 'm'}")
    assert done.returncode == 2 and not done.stdout and "cannot write" in done.stderr


def test_a_missing_snapshot_is_refused_before_the_weights_are_read(tmp_path):
    done = run("--src=checkpoints/digits", f"--out={tmp_path / 'm'}", "--like=none.pkl")
    assert done.returncode == 2 and "--like=none.pkl: there is no such file" in done.stderr and not done.stdout


def test_a_kind_beside_like_is_refused(tmp_path):
    done = run("--src=checkpoints/digits", f"--out={tmp_path / 'm'}", "--like=edm.pkl", "--kind=diffusers")
    assert done.returncode == 2 and not done.stdout
    assert "convert_checkpoint: --like=edm.pkl writes an EDM snapshot; leave --kind=diffusers out" in done.stderr


@pytest.mark.parametrize("parametrisation", ["wiener", "edm", "denoiser"])
@pytest.mark.parametrize("kind", ["score_sde_torch", "diffusers"])
def test_a_score_that_is_not_the_networks_output_is_not_exported(tmp_path, kind, parametrisation):
    config = skip_config(parametrisation=parametrisation)
    with pytest.raises(convert.ConversionError, match=f"parametrisation '{parametrisation}'"):
        convert.export({}, config, tmp_path / "m", kind)


@pytest.mark.parametrize("kind", ["score_sde_torch", "diffusers"])
def test_a_network_on_patches_is_not_exported(tmp_path, kind):
    with pytest.raises(convert.ConversionError, match="model.patch_size is 2.*kind 'safetensors'"):
        convert.export({}, skip_config(patch_size=2), tmp_path / "m", kind)
