"""A flag of the sampler that would change nothing is refused by name."""

import math
import pathlib

import numpy as np
import pytest

from pds_jax import assembly
from pds_jax.cli import sample, unused
from pds_jax.cli.options import RunOptions, SamplerOptions
from pds_jax.types import PdsError

STATISTICS = "checkpoints/digits/statistics.npz"
PLAIN = {"nfe": 30, "predictor": "reverse_diffusion", "corrector": "none"}


@pytest.fixture(scope="module")
def digits():
    return assembly.load("digits")


def check(digits, given):
    unused.check(given, assembly.plan(digits, **given))


@pytest.mark.parametrize(
    "given, match",
    [
        ({"snr": 0.1}, "snr has no effect here: there is no corrector"),
        ({"norm": "batch"}, "norm has no effect"),
        ({"n_steps_each": 2}, "n_steps_each has no effect"),
        ({"filters": "both"}, "--filters has no effect here: PDS is off"),
        ({"variant": "exact"}, "--variant has no effect here: PDS is off"),
        ({"recipe": "eccv2022"}, "--recipe has no effect here: PDS is off"),
        ({"lam": 1.2}, "lam=1.2: the two-number filter needs a radius"),
        ({"r": 2.0}, "r=2.0: with lam=1 M is the identity"),
        ({"r": 2.0, "lam": 1.2, "filters": "both"}, "filters=both has no effect here: M comes from the radius"),
        ({"corrector": "ald", "norm": "batch"}, "norm has no effect here: corrector 'ald' takes no norms"),
        ({"stochasticity": 0.0}, "'reverse_diffusion' has no stochasticity option"),
        ({"kappa": 0.4}, "has no kappa option"),
        ({"spectrum": 0.0}, "'reverse_diffusion' has no spectrum option"),
        ({"colours": False}, "--colours has no effect here: neither the prior nor a step"),
        ({"pilot_gain": False}, "pilot_gain has no effect here: it corrects the steps of predictor 'spectral'"),
        ({"gain": 1.2}, "gain=1.2 has no effect here: it belongs to filters=flat"),
        ({"filters": "flat", "gain": 1.2, "recipe": "eccv2022"}, "recipe=eccv2022 has no effect here: a flat M"),
        ({"filters": "flat", "gain": 1.2, "statistics": STATISTICS}, "statistics has no effect here"),
        ({"corrector_levels": (0.0, 1.0)}, "there is no corrector"),
        ({"head_start": 2.0}, "steps through the SDE's own levels"),
        ({"head_start": "auto"}, "steps through the SDE's own levels"),
        ({"predictor": "ddim", "grid": "edm", "head_start": "auto"}, "use prior 'matched'"),
        ({"predictor": "auto", "corrector": None, "kappa": 0.4}, "predictor=auto decides it"),
        ({"predictor": "auto", "corrector": None, "head_start": "auto"}, "predictor=auto decides it"),
        ({"nfe": None, "method": "ode", "corrector": None}, "predictor has no effect here: method 'ode'"),
    ],
)
def test_an_option_without_effect_is_refused(digits, given, match):
    chosen = {name: value for name, value in {**PLAIN, **given}.items() if value is not None}
    with pytest.raises(PdsError, match=match):
        check(digits, chosen)


@pytest.mark.parametrize(
    "given, match",
    [
        ({"alpha": "tune", "snr": 0.1}, "--snr has no effect here: there is no corrector"),
        ({"predictor": "ddim", "grid": "gits", "pilot_gain": True}, "--pilot_gain has no effect here"),
    ],
)
def test_it_is_refused_before_anything_is_measured(digits, monkeypatch, given, match):
    monkeypatch.setattr(assembly, "plan", lambda *_, **__: pytest.fail("a plan was made"))
    options = RunOptions("sample", pathlib.Path("unused"), sampler=SamplerOptions(**PLAIN | given))
    with pytest.raises(PdsError, match=match):
        sample.plan(digits, options)


@pytest.mark.parametrize(
    "given",
    [
        {"corrector": "langevin", "snr": 0.1, "norm": "batch"},
        {"alpha": 8.0, "filters": "both", "variant": "exact", "recipe": "ijcv2025"},
        {"alpha": math.inf, "filters": "both"},
        {"alpha": "auto", "freq_mask_path": "MASK", "statistics": STATISTICS},
        {"r": 2.0, "lam": 1.2},
        {"predictor": "spectral", "prior": "matched", "stochasticity": 0.3, "kappa": 0.4, "spectrum": 1.0},
        {"predictor": "spectral", "prior": "matched", "head_start": 2.0, "grid": "edm"},
        {"predictor": "spectral", "prior": "matched", "head_start": "off", "pilot_gain": False},
        {"predictor": "ddim", "grid": "spectrum", "statistics": STATISTICS},
        {"predictor": "spectral_ddim", "corrector": "langevin_exact", "corrector_levels": (0.0, 1.0), "spectrum": 0.5},
    ],
)
def test_options_with_effect_and_the_control_of_a_sweep_are_taken(digits, given, tmp_path):
    np.save(tmp_path / "mask.npy", np.transpose(digits.statistics.r_f, (2, 0, 1)).astype(np.float32))
    given = {name: str(tmp_path / "mask.npy") if value == "MASK" else value for name, value in given.items()}
    check(digits, PLAIN | given)
