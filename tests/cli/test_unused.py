"""A flag of the sampler that would change nothing is refused by name."""

import math

import pytest

from pds_jax import assembly
from pds_jax.cli import unused
from pds_jax.types import PdsError

PLAIN = {"nfe": 30, "predictor": "reverse_diffusion", "corrector": "none"}


@pytest.fixture(scope="module")
def digits():
    return assembly.load("digits")


def check(digits, given):
    unused.check(given, assembly.plan(digits, **given))


@pytest.mark.parametrize(
    "given, match",
    [
        ({"snr": 0.1}, "--snr has no effect here: there is no corrector"),
        ({"norm": "batch"}, "--norm has no effect"),
        ({"n_steps_each": 2}, "--n_steps_each has no effect"),
        ({"filters": "both"}, "--filters has no effect here: PDS is off"),
        ({"variant": "exact"}, "--variant has no effect here: PDS is off"),
        ({"recipe": "eccv2022"}, "--recipe has no effect here: PDS is off"),
        ({"lam": 1.2}, "--lam has no effect here: it belongs to --radius"),
        ({"r": 2.0}, "--radius has no effect here: with lam=1"),
        ({"r": 2.0, "lam": 1.2, "filters": "both"}, "--filters has no effect here: M comes from the radius"),
        ({"corrector": "ald", "norm": "batch"}, "--norm has no effect here: corrector 'ald' takes no norms"),
        ({"predictor": "none", "corrector": "ald", "grid": "uniform"}, "--grid has no effect here: there is no pred"),
        ({"nfe": None, "method": "ode", "corrector": None}, "--predictor has no effect here: method 'ode'"),
    ],
)
def test_an_option_without_effect_is_refused(digits, given, match):
    chosen = {name: value for name, value in {**PLAIN, **given}.items() if value is not None}
    with pytest.raises(PdsError, match=match):
        check(digits, chosen)


@pytest.mark.parametrize(
    "given",
    [
        {"corrector": "langevin", "snr": 0.1, "norm": "batch"},
        {"alpha": 8.0, "filters": "both", "variant": "exact", "recipe": "ijcv2025"},
        {"alpha": math.inf, "filters": "both"},
        {"r": 2.0, "lam": 1.2},
    ],
)
def test_options_with_effect_and_the_control_of_a_sweep_are_taken(digits, given):
    check(digits, PLAIN | given)
