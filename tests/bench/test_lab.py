"""The lab: problems, methods, what an NFE buys, and the toy in the plane."""

import json
import math
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from load_script import load

from pds_jax import sampling
from pds_jax.alpha import choose
from pds_jax.bench import lab
from pds_jax.types import PdsError

SCRIPT = pathlib.Path(__file__).parents[2] / "scripts" / "lab.py"


@pytest.fixture(scope="module")
def mixture():
    return lab.make_problem("mixture")


def test_every_method_spends_at_most_what_it_is_given(mixture):
    for name, method in lab.METHODS.items():
        for nfe in (10, 15, 40):
            sampler = lab.get_sampler(mixture, method, method.iterations(nfe))
            assert nfe - 1 <= int(sampler.nfe) <= nfe, name


def test_scores_are_small_for_exact_samples_and_not_for_others(mixture):
    exact = mixture.exact(256, 0)
    floor = mixture.scores(exact)
    assert set(floor) == set(lab.METRICS)
    noisy = mixture.scores(exact + 0.3 * np.random.default_rng(0).standard_normal(exact.shape))
    assert all(noisy[name] > 1.5 * floor[name] > 0 for name in floor)


def test_statistics_are_those_of_the_law(mixture):
    np.testing.assert_allclose(mixture.stats.mean, mixture.law.mean, atol=0.02)


@pytest.mark.slow
def test_a_sampler_of_the_lab_reaches_the_floor(mixture):
    method = lab.METHODS["spectral_dpmpp_2m"]
    run = sampling.run(lab.get_sampler(mixture, method, 30), sampling.image_keys(range(256)), mixture.law)
    scores, floor = mixture.scores(np.asarray(run.x)), mixture.scores(mixture.exact(256, 0))
    assert run.nfe == 30 and scores["frechet"] < 3 * floor["frechet"]


@pytest.mark.slow
def test_tuning_tries_the_candidates(mixture):
    errors = lab.tune_errors(mixture, lab.METHODS["rd"], 10, count=64)
    assert set(errors) <= set(lab.ALPHAS) and choose(errors) in errors


@pytest.mark.slow
def test_photographs_make_the_other_problems():
    gaussian, empirical = lab.make_problem("gaussian"), lab.make_problem("empirical", 40)
    assert gaussian.stats.shape == empirical.stats.shape == (16, 16, 3)
    x = jax.numpy.asarray(empirical.exact(3, 0))
    t = jax.numpy.full((3,), 0.5)
    assert all(np.isfinite(np.asarray(p.law(x, t))).all() for p in (gaussian, empirical))
    with pytest.raises(PdsError, match="known: gaussian, mixture, empirical"):
        lab.make_problem("cifar")


def test_in_the_plane_m_allows_a_step_of_one():
    """Without M the narrow axis is multiplied by 1 − 1/0.04 = −24 a step; with M both axes by 0."""
    plain, scaled = lab.toy_preconditioners().values()
    assert np.abs(lab.toy_paths(plain, 1.0, 20, 0, steps=10)[-1, :, 1]).max() > 1e9
    assert np.abs(lab.toy_paths(plain, 0.1, 20, 0, steps=60)[-1, :, 1]).max() > 1e3
    paths = lab.toy_paths(scaled, 1.0, 2000, 0, steps=5)
    np.testing.assert_allclose(paths[-1].std(axis=0), math.sqrt(2) * np.array([1.0, 0.2]), rtol=0.06)
    fine = lab.toy_paths(scaled, 0.1, 2000, 0)[-1]
    np.testing.assert_allclose(fine.std(axis=0), math.sqrt(2 / 1.9) * np.array([1.0, 0.2]), rtol=0.06)


ABOUT = {"samples": 8, "seeds": 2, "images": 5, "plugins": []}


def rows_of(*seeds, sampler="pc"):
    return [{"problem": "mixture", "sampler": sampler, "nfe": 10, "seed": seed, "frechet": 1.0} for seed in seeds]


def test_a_stopped_run_goes_on_with_the_cells_that_have_all_seeds(tmp_path):
    script = load("lab")
    book = script.Book(tmp_path, ABOUT)
    book.add(rows_of(0, 1))
    book.add(rows_of(-1, sampler="tune"))
    whole = book.path.read_text()
    assert script.Book(tmp_path, ABOUT).rows == book.rows and len(book.rows) == 3
    one = json.dumps(*rows_of(0, sampler="rd"))
    for rest in (one + "\n", one + "\n" + one[:20], one[:20]):
        book.path.write_text(whole + rest)
        again = script.Book(tmp_path, ABOUT)
        assert again.rows == book.rows and not again.cell(sampler="rd")
        again.add(rows_of(0, 1, sampler="rd"))
        assert len(script.Book(tmp_path, ABOUT).rows) == 5
    for begun in ("", whole[:10]):
        book.path.write_text(begun)
        assert script.Book(tmp_path, ABOUT).rows == []
    book.path.write_text(whole.replace("frechet", 'fre"chet', 1))
    with pytest.raises(PdsError, match="rows.jsonl, line 2 is no JSON: .*; delete that line"):
        script.Book(tmp_path, ABOUT)


def test_a_changed_plugin_is_another_run(tmp_path):
    script = load("lab")
    script.Book(tmp_path, {**ABOUT, "plugins": ["a"]})
    script.Book(tmp_path, {**ABOUT, "plugins": ["a"]})
    for plugins in ([], ["b"]):
        with pytest.raises(PdsError, match="choose another --out"):
            script.Book(tmp_path, {**ABOUT, "plugins": plugins})


@pytest.mark.slow
def test_the_command(tmp_path):
    command = [sys.executable, str(SCRIPT), "--quick", f"--out={tmp_path}", "--problems=mixture", "--nfe=10,20"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["matched_prior_gain_at_20"] > 0 and last["best_at"]["20"]["value"] > 0 and last["pc2000"] is None
    for name in ("rows.csv", "table.md", "quality_mixture.png", "spectra_mixture.png", "toy.png"):
        assert (tmp_path / name).stat().st_size > 0
    rows = (tmp_path / "rows.jsonl").read_text()
    subprocess.run(command, capture_output=True, text=True, check=True)
    assert (tmp_path / "rows.jsonl").read_text() == rows
    refused = subprocess.run([*command, "--samples=16"], capture_output=True, text=True)
    assert refused.returncode == 2 and "lab: " in refused.stderr and "choose another --out" in refused.stderr
