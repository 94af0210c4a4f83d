"""predictor=auto: what is measured in closed form, what follows from it, and where it is kept."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pds_jax import assembly, choose
from pds_jax.io import files
from pds_jax.models.analytic import FrequencyGaussian, GaussianMixture
from pds_jax.sde_lib import VESDE, VPSDE
from pds_jax.types import PdsError

SHAPE = (4, 4, 1)
MEAN = np.full(SHAPE, 0.5, np.float32)
POWER = np.full((4, 3, 1), 0.04, np.float32)
LEVELS = tuple(np.geomspace(50, 0.02, 16))


@pytest.mark.parametrize("sde", [VESDE(), VPSDE()], ids=["ve", "vp"])
def test_gaussian_data_are_explained_at_every_level(sde):
    found = choose.measure(FrequencyGaussian.create(sde, MEAN, POWER), sde, (MEAN, POWER), SHAPE)
    assert found.unexplained < 1e-6 and found.power == pytest.approx(16 * 0.04)
    assert len(found.levels) == 16 and found.head_start(0.05) < 0.1


def test_a_rare_image_is_not():
    """One image in ten differs from the others, with the same mean and power in all."""
    sde = VESDE()
    law = GaussianMixture.create(sde, [0.1, 0.9], np.stack([MEAN + 0.6, MEAN - 0.0667]), np.float32(1e-4))
    power = np.full((4, 3, 1), 1e-6, np.float32)
    power[0, 0] = 16 * 0.04
    found = choose.measure(law, sde, (MEAN, power), SHAPE)
    assert found.unexplained > 0.28
    assert choose.choose(found, 5, True).options["predictor"] == "dpmpp_2m"
    assert choose.choose(found, 20, True).options == {
        "predictor": "sde_dpmpp_2m", "corrector": "none", "grid": "edm", "prior": "matched"
    }  # fmt: skip


def test_a_network_nearer_to_the_wiener_denoiser_uses_the_spectrum_for_longer():
    nearest, near, far = (choose.Measured((10.0, 1.0), (0.01, share), 1.0) for share in (0.1, 0.2, 0.3))
    for nfe, expected in (
        (5, ("spectral", "spectral", "dpmpp_2m")),
        (10, ("spectral", "spectral", "sde_dpmpp_2m")),
        (20, ("spectral", "sde_dpmpp_2m", "sde_dpmpp_2m")),
    ):
        found = [choose.choose(measured, nfe, True) for measured in (nearest, near, far)]
        assert tuple(choice.options["predictor"] for choice in found) == expected
        assert f"limit {28 if nfe < 16 else 15}%" in found[1].reasons[0]


def test_a_network_further_than_any_denoiser_is_sampled_with_noise():
    """For the true denoiser, the residual has at most the power of the data."""
    wrong = choose.Measured((10.0, 1.0), (7.0, 0.1), 1.0)
    assert choose.choose(wrong, 5, True).options["predictor"] == "sde_dpmpp_2m"


def test_cost_is_the_integral_of_the_residual():
    """E‖R‖² = c s² has the rate c at every level; the first half nat of it stands for what is above."""
    measured = choose.Measured(LEVELS, tuple(0.1 * np.square(LEVELS)), 1.0)
    np.testing.assert_allclose(measured.cost, 0.05 + 0.1 * np.log(50 / np.asarray(LEVELS)), rtol=1e-6)
    assert measured.head_start(0.01) is None
    start = measured.head_start(0.3)
    assert 0.05 + 0.1 * np.log(50 / start) == pytest.approx(0.3, rel=0.05)


def test_fewer_evaluations_start_lower():
    measured = choose.Measured(LEVELS, (0.5,) * 16, 16.0)
    five, ten, forty = (choose.choose(measured, nfe, False) for nfe in (5, 10, 40))
    assert five.options["head_start"] < ten.options["head_start"] < 50 and forty.options["head_start"] is None
    assert {choice.options["kappa"] for choice in (five, ten, forty)} == {0.2}
    assert all("head start" in choice.reasons[1] for choice in (five, ten, forty))


@pytest.mark.parametrize(("nfe", "stats_hold_them", "used"), [(5, True, True), (5, False, False), (8, True, False)])
def test_colours_are_for_few_evaluations(nfe, stats_hold_them, used):
    measured = choose.Measured(LEVELS, (0.5,) * 16, 16.0)
    assert choose.choose(measured, nfe, stats_hold_them).options["colours"] is used


@pytest.fixture(scope="module")
def trained():
    return assembly.load("digits")


def test_a_plan_says_what_was_chosen_and_why(trained, monkeypatch):
    monkeypatch.setattr(choose, "measure", lambda *a: choose.Measured(LEVELS, (0.01,) * 16, 100.0))
    plan = assembly.plan(trained, nfe=5, predictor="auto")
    assert plan.nfe == 5 and plan.sampler.predictor == "spectral" and plan.sampler.prior == "matched"
    assert plan.describe()["sampling"]["kappa"] == 0.2
    assert len(plan.reasons) == 2
    with pytest.raises(PdsError, match="grid: predictor=auto decides it"):
        assembly.plan(trained, nfe=5, predictor="auto", grid="edm")
    with pytest.raises(PdsError, match="statistics"):
        assembly.plan(dataclasses.replace(trained, statistics=None), nfe=5, predictor="auto")


def test_a_head_start_is_measured_for_any_solver_that_can_take_one(trained, monkeypatch):
    monkeypatch.setattr(choose, "measure", lambda *a: choose.Measured((4.8, 2.0, 0.1), (0.01,) * 3, 16.0))
    options = {"predictor": "ddim", "corrector": "none", "grid": "edm", "prior": "matched"}
    plan = assembly.plan(trained, nfe=5, head_start="auto", **options)
    start = plan.config.sampling.head_start
    assert 0.1 < start < 4.8 and f"{start:.3g}" in plan.reasons[0]
    first = plan.sampler.sde.std(np.asarray(plan.sampler.times[:1]))
    np.testing.assert_allclose(first, start, rtol=1e-5)
    assert assembly.plan(trained, nfe=40, head_start="auto", **options).config.sampling.head_start is None
    assert assembly.plan(trained, nfe=5, head_start="off", **options).config.sampling.head_start is None
    with pytest.raises(PdsError, match="head_start=auto needs method 'pc' and the data's statistics"):
        assembly.plan(dataclasses.replace(trained, statistics=None), nfe=5, head_start="auto", **options)


def test_few_corrected_levels_leave_evaluations_to_the_steps(trained):
    options = {"predictor": "spectral_ddim", "corrector": "langevin_exact", "grid": "edm", "prior": "matched"}
    all_levels, few = (
        assembly.plan(trained, nfe=20, corrector_levels=levels, **options) for levels in (None, (0.3, 1.0))
    )
    assert all_levels.nfe == 20 and all_levels.N == 10 and few.N > 13 and 19 <= few.nfe <= 20


def test_digits_have_no_natural_spectrum(trained):
    assert assembly.plan(trained, nfe=10, predictor="auto").sampler.predictor == "sde_dpmpp_2m"


def test_a_measurement_is_kept_beside_the_checkpoint(tmp_path):
    calls = []

    def compute():
        calls.append(1)
        return choose.Measured(LEVELS, (0.1,) * 16, 1.0)

    found = [choose.remembered(str(tmp_path), "weights", compute) for _ in range(2)]
    assert found[0] == found[1] and len(calls) == 1
    choose.remembered(str(tmp_path), "other weights", compute)
    assert len(calls) == 2
    (place,) = tmp_path.iterdir()
    key = f"other weights rule {choose.RULE}"
    files.write_json(place, {"key": key, "levels": [1, 2], "residual": [0, 0], "power": 1})
    assert choose.remembered(str(tmp_path), "other weights", compute) == found[0]


@pytest.mark.parametrize("bad", [{}, {"levels": [2, 1], "residual": [0, -1], "power": 1}, {"levels": 3}])
def test_damaged_measurements_are_not_used(bad):
    with pytest.raises(PdsError):
        choose.Measured.from_json(bad)


def test_a_network_that_is_not_finite_is_refused():
    with pytest.raises(PdsError, match="not finite"):
        choose.measure(jax.tree_util.Partial(lambda x, t: x * jnp.nan), VESDE(), (MEAN, POWER), SHAPE)


def test_a_prompt_or_a_class_is_measured_itself():
    trained = assembly.load("digits")
    asked = []

    def given(seeds):
        asked.append(len(seeds))
        return None, trained.score_fn

    plan = assembly.plan(trained, nfe=10, predictor="auto", given=given)
    assert asked == [choose.IMAGES] and plan.sampler.predictor == "sde_dpmpp_2m"
    with pytest.raises(PdsError, match="pilot_gain draws its pilot without classes"):
        assembly.plan(trained, nfe=10, predictor="spectral", corrector="none", pilot_gain=True, given=given)
