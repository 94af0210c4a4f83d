"""The whole path from flags to files, on a tiny network."""

import dataclasses
import functools
import json
import math
import pathlib
import re

import jax
import numpy as np
import pytest

from configs.ve import cifar10_ncsnpp_continuous
from pds_jax import alpha, assembly, checkpoints, parallel, statistics
from pds_jax.cli import run_lib
from pds_jax.cli import sample as sampling_job
from pds_jax.cli.options import RunOptions, SamplerOptions
from pds_jax.io import files, images
from pds_jax.models import init_model
from pds_jax.types import PdsError

FEW = {"speed_up": 4.0, "corrector": "none"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny NCSN++ with random weights and the statistics of random images, saved as ours."""
    folder = tmp_path_factory.mktemp("model")
    config = cifar10_ncsnpp_continuous.get_config("runlocal,image_size=8,ch_mult=1,attn_resolutions=4")
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: init_model(jax.random.key(0), config))
    params = jax.tree.map(lambda leaf: (0.1 * rng.standard_normal(leaf.shape)).astype(np.float32), shapes)
    checkpoints.save_model(folder, params, config)
    pixels = rng.random((64, 4, 4, 3)).repeat(2, axis=1).repeat(2, axis=2).astype(np.float32)
    statistics.compute_statistics([pixels]).save(folder / "statistics.npz")
    return folder


def sample(model, workdir, sampler=None, seeds=range(3), **options):
    chosen = SamplerOptions(**FEW | (sampler or {}))
    return sampling_job.sample(
        RunOptions("sample", pathlib.Path(workdir), checkpoint=str(model), seeds=seeds, sampler=chosen, **options)
    )


def test_a_run_writes_images_grid_and_manifest(model, tmp_path):
    folder = sample(model, tmp_path, {"alpha": "5"})
    for seed in range(3):
        assert images.load_png(images.seed_path(folder, seed)).shape == (8, 8, 3)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["state"] == "complete" and manifest["nfe"] == 10 and manifest["identity"]["N"] == 10
    assert manifest["identity"]["pds"]["alpha_used"] == 5.0
    assert manifest["identity"]["preconditioner"]["recipe"] == "ijcv2025"
    assert manifest["versions"]["jax"] == jax.__version__
    assert (folder / "grid.png").is_file()


def test_a_second_run_goes_on_and_mends_what_is_broken(model, tmp_path):
    folder = sample(model, tmp_path)
    before = {seed: files.sha256(images.seed_path(folder, seed)) for seed in range(3)}
    images.seed_path(folder, 1).write_bytes(b"torn")
    images.seed_path(folder, 2).unlink()
    untouched = images.seed_path(folder, 0).stat().st_mtime_ns
    sample(model, tmp_path, seeds=range(4))
    facts = (folder / "manifest.json").read_text()
    sample(model, tmp_path, seeds=range(4))
    assert (folder / "manifest.json").read_text() == facts  # a run with nothing to do leaves the record alone
    assert {seed: files.sha256(images.seed_path(folder, seed)) for seed in range(3)} == before
    assert images.seed_path(folder, 0).stat().st_mtime_ns == untouched
    assert images.seed_path(folder, 3).is_file()


def test_manifest_and_grid_hold_the_images_of_earlier_seeds_too(model, tmp_path):
    folder = sample(model, tmp_path, seeds=range(2))
    two = images.load_png(folder / "grid.png")
    sample(model, tmp_path, seeds=range(10, 12))
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["seeds"], manifest["images"]) == ("0-1,10-11", 4)
    four = images.load_png(folder / "grid.png")
    assert four.size > two.size


def test_why_a_sampler_was_chosen_is_told_and_does_not_make_another_run(model, tmp_path):
    trained = assembly.load(str(model))
    plan = assembly.plan(trained, **FEW)
    for words in ("because of this", "in other words"):
        explained = dataclasses.replace(plan, reasons=(words,))
        folder = sampling_job.draw_to_folder(trained, explained, range(2), tmp_path / "images")
    assert files.read_json(folder.manifest_path)["chosen_because"] == ["because of this"]


def test_another_run_in_the_same_folder_is_refused(model, tmp_path):
    sample(model, tmp_path)
    with pytest.raises(PdsError, match="holds another run: .*alpha"):
        sample(model, tmp_path, {"alpha": "5"})


def test_a_folder_of_something_else_is_refused(model, tmp_path):
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "thesis.tex").write_text("precious")
    with pytest.raises(PdsError, match="not empty"):
        sample(model, tmp_path)


@pytest.mark.slow
def test_an_image_does_not_depend_on_its_batch(model):
    """Convolutions sum in another order at another batch size: equal to float32 rounding, not to the bit."""
    trained = assembly.load(str(model))
    plan = assembly.plan(trained, speed_up=4.0, alpha=5.0)
    alone, sevens, together = (assembly.draw(trained, plan, range(8), batch_size=size).images for size in (1, 7, 8))
    scale = np.abs(together).max()
    np.testing.assert_allclose(alone, together, atol=2e-5 * scale, rtol=0)
    np.testing.assert_allclose(sevens, together, atol=2e-5 * scale, rtol=0)


def test_alpha_infinity_is_bit_equal_to_no_pds(model):
    trained = assembly.load(str(model))
    plain = assembly.draw(trained, assembly.plan(trained, speed_up=4.0), range(2)).images
    infinite = assembly.draw(trained, assembly.plan(trained, speed_up=4.0, alpha=math.inf), range(2)).images
    preconditioned = assembly.draw(trained, assembly.plan(trained, speed_up=4.0, alpha=3.0), range(2)).images
    np.testing.assert_array_equal(plain, infinite)
    assert np.abs(plain - preconditioned).max() > 1e-3


def test_the_evaluations_asked_for_are_those_made(model):
    trained = assembly.load(str(model))
    scales = trained.config.model.num_scales
    for iterations in (2, 3, 7, 13, scales - 1, scales):
        assert assembly.plan(trained, nfe=2 * iterations, check=False).nfe == 2 * iterations
        assert assembly.plan(trained, nfe=iterations, corrector="none", check=False).N == iterations


def test_auto_and_tune_choose_a_strength(model):
    trained = assembly.load(str(model))
    assert assembly.plan(trained, speed_up=4.0, alpha="auto").alpha > 1
    config = assembly.plan(trained, speed_up=4.0).config
    alphas = (4.0, math.inf)
    for kinds in ((False,), (True,), (False, True)):
        found = assembly.tune_alpha(trained, config, trained.statistics, images=8, alphas=alphas, kinds=kinds)
        strength = found.alpha if found.gain is None else found.gain / (found.gain - 1)
        assert any(math.isclose(strength, value) for value in (4.0, 7.0)) or strength == math.inf
        assert found.gain is None or (True in kinds and found.alpha == math.inf)


def test_tuning_tries_the_strengths_beside_the_best():
    assert alpha.between([2.0, 5.0, math.inf], 5.0) == [3.0, 9.0]
    assert alpha.between([2.0, 5.0, 17.0], 2.0) == [3.0]
    assert alpha.between([2.0, 5.0, math.inf], math.inf) == [9.0]
    assert alpha.between([5.0], 5.0) == []


ODE_SOLVERS = ("ddim", "heun", "dpmpp_2m", "spectral_ddim", "spectral_dpmpp_2m")
LEVEL_STEPPERS = ("reverse_diffusion", "euler_maruyama", "ancestral_sampling")


@pytest.mark.parametrize("predictor", [*ODE_SOLVERS, *LEVEL_STEPPERS, "sde_dpmpp_2m", "spectral_ancestral"])
def test_every_sampler_is_an_option_and_refuses_what_it_has_no_form_of(model, predictor):
    trained = assembly.load(str(model))
    grid = "uniform" if predictor in LEVEL_STEPPERS else "edm"
    plan = functools.partial(assembly.plan, trained, nfe=12, predictor=predictor, corrector="none")
    for prior in ("standard", "matched"):
        sampler = plan(grid=grid, prior=prior).sampler
        assert (sampler.predictor, sampler.prior) == (predictor, prior)
    with_m = functools.partial(plan, grid=grid, alpha=8.0, solenoidal=0.1)
    if predictor in ODE_SOLVERS:
        for refused in (with_m, functools.partial(plan, grid=grid, alpha="tune")):
            with pytest.raises(PdsError, match="no noise for M"):
                refused()
    else:
        for variant in ("paper", "exact"):
            sampler = with_m(variant=variant).sampler
            assert sampler.variant == variant and sampler.preconditioner.skew is not None
    if predictor in LEVEL_STEPPERS:
        assert plan(alpha="auto").alpha > 1
        with pytest.raises(PdsError, match="grid 'uniform'"):
            plan(grid="edm")
    else:
        with pytest.raises(PdsError, match="no noise for M" if predictor in ODE_SOLVERS else "use alpha=tune"):
            plan(grid=grid, alpha="auto")


def test_the_adaptive_solver_is_an_option_and_takes_no_strength(model):
    trained = assembly.load(str(model))
    for prior in ("standard", "matched"):
        plan = assembly.plan(trained, method="ode", prior=prior)
        assert plan.nfe is None and plan.sampler.prior == prior
    for options in ({"alpha": 5.0}, {"alpha": "auto"}, {"alpha": "tune"}, {"solenoidal": 1.0}):
        with pytest.raises(PdsError, match="no noise for M"):
            assembly.plan(trained, method="ode", **options)
    with pytest.raises(PdsError, match="no alpha"):
        assembly.plan(trained, nfe=12, alpha="tune", r=1.0, lam=1.2)


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"alpha": "1"}, "above 1"),
        ({"solenoidal": math.inf}, "solenoidal"),
        ({"grid": "cosine"}, "known: .*edm"),
        ({"variant": "mine"}, "known: paper, exact"),
        ({"prior": "mine"}, "known: standard, matched"),
        ({"method": "mine"}, "known: pc, ode"),
        ({"alpha": "nan"}, "above 1"),
        ({"alpha": "strong"}, "number above 1"),
        ({"predictor": "leapfrog"}, "known: .*reverse_diffusion"),
        ({"corrector": "leapfrog"}, "known: .*langevin"),
        ({"speed_up": 1000.0}, "N"),
        ({"speed_up": 4.0, "snr": -1.0, "corrector": "langevin"}, "snr"),
        ({"statistics": "missing.npz", "alpha": "5"}, "missing.npz"),
        ({"freq_mask_path": "missing.npy"}, "missing.npy"),
        ({"recipe": "cvpr1999", "alpha": "5"}, "ijcv2025"),
    ],
)
def test_bad_settings_are_refused_before_the_run(model, tmp_path, overrides, message):
    with pytest.raises(PdsError, match=message):
        sample(model, tmp_path, overrides)
    assert not (tmp_path / "samples").exists()


def test_bad_options_are_refused(model, tmp_path):
    with pytest.raises(PdsError, match="--batch_size"):
        sample(model, tmp_path, batch_size=0)
    with pytest.raises(PdsError, match="no_such_model"):
        sample("no_such_model", tmp_path)
    with pytest.raises(PdsError, match="--config"):
        run_lib.run(RunOptions("train", tmp_path))


def test_masks_of_another_shape_are_refused_with_both_shapes(model, tmp_path):
    np.save(tmp_path / "mask.npy", np.ones((3, 16, 16), np.float32))
    with pytest.raises(PdsError, match=r"16.*8"):
        sample(model, tmp_path, {"freq_mask_path": str(tmp_path / "mask.npy")})


def test_a_config_of_another_network_names_the_first_parameter(model, tmp_path):
    config = cifar10_ncsnpp_continuous.get_config("runlocal,image_size=8,ch_mult=1,attn_resolutions=4,nf=16")
    with pytest.raises(PdsError, match="Conv|Dense|GroupNorm"):
        sample(model, tmp_path, config=config)


@pytest.mark.slow
def test_bfloat16_is_what_the_network_computes_in(model, tmp_path, capsys):
    """On every device, also where products of float32 arrays have one way only; weights and images are float32's."""
    exact, rounded = (sample(model, tmp_path / name, precision=name) for name in ("float32", "bfloat16"))
    found = files.read_json(rounded / "manifest.json")
    assert found["identity"]["model"]["dtype"] == "bfloat16" and 1e-4 < found["precision_effect"] < 0.1
    assert "--precision=bfloat16 changes the score by" in capsys.readouterr().out
    one, other = (images.load_png(images.seed_path(folder, 0)).astype(int) for folder in (exact, rounded))
    assert 0 < np.abs(one - other).mean() < 10
    assert files.read_json(exact / "manifest.json")["identity"]["weights_sha256"] == found["identity"]["weights_sha256"]


def test_a_run_says_beforehand_what_it_will_cost(model, tmp_path, capsys):
    sample(model, tmp_path, seeds=range(5), batch_size=2)
    cost = r"compiled.* in [\d.]+ s; 3 batches of 2 images; about \d+ MiB on each device; "
    assert re.search(cost + r"[\d.e-]+ s a step, about [\d.e-]+ s in all", capsys.readouterr().out)


@pytest.fixture
def memory(monkeypatch):
    """Devices that hold two images at once; counts the batches that did not fit."""
    place, refused = parallel._place, []

    def limited(sampler, keys, *words):
        if len(keys) > 2:
            refused.append(len(keys))
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1 bytes.")
        return place(sampler, keys, *words)

    monkeypatch.setattr(parallel, "_place", limited)
    return refused


def test_a_batch_that_does_not_fit_is_halved_and_remembered(model, tmp_path, memory):
    folder = sample(model, tmp_path, seeds=range(7), max_batch=None)
    assert memory == [7, 3]
    manifest = files.read_json(folder / "manifest.json")
    assert manifest["batch_size"] == 1 and manifest["parts"]["0-of-1"]["batch_size"] == 1
    images.seed_path(folder, 4).unlink()
    sample(model, tmp_path, seeds=range(7), max_batch=None)
    assert memory == [7, 3] and images.seed_path(folder, 4).is_file()


def test_a_batch_that_does_not_fit_says_what_to_do(model, tmp_path, memory):
    with pytest.raises(PdsError, match="3 images at once do not fit.*--max_batch=auto"):
        sample(model, tmp_path)


def test_shards_fill_one_folder(model, tmp_path, capsys):
    folder = sample(model, tmp_path / "shards", seeds=range(5), shard=(1, 2), batch_size=2)
    assert files.read_json(folder / "manifest.json")["state"] == "running"
    assert "3 of 5 images are still to come" in capsys.readouterr().out
    sample(model, tmp_path / "shards", seeds=range(5), shard=(0, 2), batch_size=2)
    manifest = files.read_json(folder / "manifest.json")
    assert manifest["state"] == "complete" and sorted(manifest["parts"]) == ["0-of-2", "1-of-2"]
    whole = sample(model, tmp_path / "whole", seeds=range(5), batch_size=2)
    for seed in range(5):
        one, other = (images.seed_path(place, seed).read_bytes() for place in (folder, whole))
        assert one == other


def test_norm_mode_batch_remakes_whole_batches_and_is_not_sharded(model, tmp_path):
    batch = {"corrector": "langevin", "norm": "batch"}
    folder = sample(model, tmp_path, batch, seeds=range(5), batch_size=2)
    before = {seed: images.seed_path(folder, seed).read_bytes() for seed in range(5)}
    for seed in (1, 4):
        images.seed_path(folder, seed).unlink()
    sample(model, tmp_path, batch, seeds=range(5), batch_size=2)
    assert {seed: images.seed_path(folder, seed).read_bytes() for seed in range(5)} == before
    with pytest.raises(PdsError, match="--shard"):
        sample(model, tmp_path, batch, seeds=range(5), batch_size=2, shard=(0, 2))
    with pytest.raises(PdsError, match="--max_batch=auto"):
        sample(model, tmp_path, batch, seeds=range(5), max_batch=None)


def test_a_last_batch_of_norm_mode_batch_is_no_larger_than_its_images(model):
    """Copies that fill a batch would enter the mean norm."""
    trained = assembly.load(str(model))
    plan = assembly.plan(trained, nfe=6, corrector="langevin", norm="batch", check=False)
    whole = assembly.draw(trained, plan, range(5), batch_size=3).images
    np.testing.assert_allclose(whole[3:], assembly.draw(trained, plan, [3, 4]).images, atol=1e-4)


@pytest.mark.skipif(not pathlib.Path("/proc/self").exists(), reason="needs a folder in which nobody may write")
def test_a_folder_that_cannot_be_written_is_reported(model):
    with pytest.raises(PdsError, match="cannot write /proc/.*choose another folder"):
        sample(model, "/proc/self")
