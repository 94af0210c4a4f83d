import pathlib

import numpy as np
import pytest
from latent_cases import normal

from pds_jax.cli import run_lib
from pds_jax.cli.options import RunOptions, SamplerOptions
from pds_jax.io import files, images
from pds_jax.latent.statistics import latent_statistics
from pds_jax.types import PdsError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The user's cache folder is not touched."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def run(folder, workdir, nfe=4, **words):
    sampler = SamplerOptions(nfe=nfe, **words.pop("sampler", {}))
    options = RunOptions("sample", workdir, checkpoint=str(folder), sampler=sampler, **{"seeds": (0, 1), **words})
    run_lib.run(options)
    return {seed: images.load_png(images.seed_path(workdir / "samples", seed)) for seed in options.seeds}


@pytest.mark.slow
def test_a_prompt_a_seed_resumed(pipelines, tmp_path, capsys, cache):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red cat\nthe hats\n" + "red " * 20 + "\n")
    words = {"prompts": str(prompts), "guidance": 3.0, "batch_size": 2}
    first = run(pipelines("sd1")[0], tmp_path / "run", **words)
    assert first[0].shape == (16, 16, 3)
    assert len(list(cache.rglob("*.npy"))) == 3  # two prompts and the empty one
    capsys.readouterr()
    again = run(pipelines("sd1")[0], tmp_path / "run", **words, seeds=(0, 1, 2))
    said = capsys.readouterr().out
    assert "2 of 3 images are there already" in said and "left out: 'red red" in said and "; decoding " in said
    np.testing.assert_array_equal(again[1], first[1])
    manifest = files.read_json(tmp_path / "run" / "samples" / "manifest.json")
    assert manifest["identity"]["guidance"] == 3.0 and manifest["nfe"] == 4
    with pytest.raises(PdsError, match="holds another run: guidance"):
        run(pipelines("sd1")[0], tmp_path / "run", **{**words, "guidance": 4.0})


@pytest.mark.slow
def test_pds_by_statistics_of_latents(pipelines, tmp_path):
    latent_statistics([normal(0, 64, 8, 8, 4)], {}).save(tmp_path / "latents.npz")
    words = {"prompt": "a red cat", "image_size": (16, 16), "decode_tile": 8}
    plain = run(pipelines("sd1")[0], tmp_path / "plain", 8, **words)
    sampler = {"alpha": 5.0, "statistics": str(tmp_path / "latents.npz")}
    pds = run(pipelines("sd1")[0], tmp_path / "pds", 8, **words, sampler=sampler)
    assert np.abs(pds[0].astype(int) - plain[0]).max() > 3
    run(pipelines("ldm")[0], tmp_path / "ldm", 4)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({}, "give one of --prompt"),
        ({"prompt": "a", "prompts": "b"}, "give one of --prompt"),
        ({"prompts": "two.txt", "seeds": (0, 5)}, "holds 2 prompts.*--seeds=0-1"),
        ({"prompt": "a", "raw_weights": True}, "--raw_weights has no effect"),
        ({"prompt": "a", "overrides": (("model.num_scales", "50"),)}, "--config.model.num_scales has no effect"),
        ({"prompt": "a", "image_size": (15, 15)}, "multiples of 2"),
        ({"prompt": "a", "guidance": -1.0}, "guidance weight"),
        ({"prompt": "a", "sampler": {"alpha": 5.0}}, "needs the data's statistics"),
    ],
)
def test_bad_input_is_named(pipelines, tmp_path, monkeypatch, words, message):
    (tmp_path / "two.txt").write_text("a\nb\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PdsError, match=message):
        run(pipelines("sd1")[0], tmp_path / "run", **words)


def test_a_prompt_for_another_model_is_refused(tmp_path):
    with pytest.raises(PdsError, match="--prompt belongs to latent diffusion models"):
        run("photos", tmp_path, prompt="a red cat")
    assert not pathlib.Path(tmp_path / "samples").exists()
