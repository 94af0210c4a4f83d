"""Plans: what is asked for is what runs, or is refused."""

import numpy as np
import pytest

import pds_jax
from pds_jax import assembly, teacher
from pds_jax.types import PdsError

FEW = {"predictor": "reverse_diffusion", "corrector": "none"}


@pytest.fixture(scope="module")
def digits():
    return assembly.load("digits")


@pytest.mark.parametrize("nfe", [19, 20, 21])
def test_a_plan_of_heun_has_the_evaluations_asked_for_or_one_fewer(digits, nfe):
    plan = assembly.plan(digits, nfe=nfe, predictor="heun", corrector="none", grid="edm")
    assert plan.nfe == nfe - (nfe % 2 == 0) and plan.nfe == int(plan.sampler.nfe)


@pytest.mark.parametrize(
    "options, match",
    [
        ({"nfe": 40, "speed_up": 20}, "nfe=40 and speed_up=20 both"),
        ({"nfe": 1}, "nfe=1: predictor .* needs at least 2"),
        ({"nfe": 100_000}, "more than the model's num_scales"),
        ({"nfe": 40, "method": "ode"}, "nfe: method 'ode' chooses its steps"),
        ({"speed_up": 20.0, "method": "ode"}, "speed_up: method 'ode' chooses its steps"),
        ({"nfe": 40, "predictr": "ddim"}, "unknown sampling option 'predictr'.*did you mean predictor"),
        ({"nfe": 40, "alpha": 5.0, "r": 2.0, "lam": 1.2}, "has no alpha"),
        ({"nfe": 40, "alpha": float("inf"), "r": 2.0, "lam": 1.2}, "has no alpha"),
        ({"nfe": 40, "kappa": 0.5}, "has no kappa option"),
        ({"nfe": 40, "grid": "gits"}, "reverse_diffusion' steps through the SDE's own levels.*not 'gits'"),
        ({"nfe": 40, "alpha": "five"}, "alpha=five: use a number above 1"),
    ],
)
def test_options_that_exclude_each_other_or_do_not_exist_are_refused(digits, options, match):
    with pytest.raises(PdsError, match=match):
        assembly.plan(digits, **{**FEW, **options})


def test_a_plan_takes_a_predictors_own_options(digits):
    words = {"grid": "edm", "prior": "matched", "kappa": 0.4, "stochasticity": 0.5, "head_start": 2.0}
    plan = assembly.plan(digits, nfe=6, predictor="spectral", corrector="none", **words)
    assert float(plan.sampler.numbers["kappa"]) == pytest.approx(0.4) and plan.describe()["sampling"]["head_start"] == 2
    assert float(digits.sde.std(plan.sampler.times[:1])[0]) == pytest.approx(2.0, rel=1e-4)


def test_steps_are_reported_in_order_up_to_all_of_them_over_batches(digits):
    seen = []
    plan = assembly.plan(digits, nfe=30, **FEW)
    drawn = assembly.draw(digits, plan, range(3), batch_size=2, on_step=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (60, 60) and [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert drawn.pixels.dtype == "uint8" and drawn.pixels.shape == (3, 8, 8, 1)
    without = assembly.draw(digits, plan, range(3), batch_size=2)
    np.testing.assert_array_equal(drawn.images, without.images)


def test_a_flat_m_has_a_gain_and_no_alpha():
    trained = pds_jax.load("digits")
    plan = pds_jax.plan(trained, nfe=20, filters="flat", gain=1.1)
    assert plan.preconditioner.describe()["recipe"] == "flat(1.1)"
    assert float(plan.preconditioner.describe()["lambda_max"]) == pytest.approx(1.21)
    for options in ({"alpha": 5.0}, {"r": 1.0, "lam": 1.2}):
        with pytest.raises(PdsError, match="filters=flat is M = gain I"):
            pds_jax.plan(trained, nfe=20, filters="flat", gain=1.1, **options)
    with pytest.raises(PdsError, match="flat gain c=-1"):
        pds_jax.plan(trained, nfe=20, filters="flat", gain=-1.0)


def test_the_grid_gits_takes_times_of_the_networks_own_path(digits, monkeypatch):
    monkeypatch.setattr(teacher, "STEPS", 21)
    monkeypatch.setattr(teacher, "IMAGES", 4)
    words = {"nfe": 6, "predictor": "dpmpp_2m", "corrector": "none", "prior": "matched"}
    plan = assembly.plan(digits, grid="gits", solver_options="coeff=1.1", **words)
    edm = assembly.plan(digits, grid="edm", **words)
    of = teacher.costs(digits.sde, digits.shape, float(edm.sampler.times[-1]), digits.score_fn)
    assert plan.nfe == 6 and plan.reasons[0].startswith("grid=gits: 6 of 21 times of DDIM")
    times = np.asarray(plan.sampler.times)
    chosen = [int(np.abs(of["teacher"] - t).argmin()) for t in times]
    np.testing.assert_allclose(of["teacher"][chosen], times, rtol=1e-6)

    def paid(path):
        steps = zip(path[:-1], path[1:], strict=True)
        return sum(of["cost"][i, j] * 1.1**place for place, (i, j) in enumerate(steps))

    assert chosen[0] == 0 and chosen[-1] == 20 and paid(chosen) < paid([0, 4, 8, 12, 16, 20])
    assert plan.describe()["sampling"]["grid"] == pytest.approx(times.tolist())
