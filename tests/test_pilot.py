"""Gains of a pilot run: 1 on Gaussian data, and what mends a score of another spectrum."""

import functools

import jax
import numpy as np
import pytest

from pds_jax import pilot, sampling
from pds_jax.models.analytic import FrequencyGaussian
from pds_jax.sde_lib import VESDE, VPSDE
from pds_jax.types import PdsError

SHAPE = (8, 8, 2)
K = np.hypot(np.fft.fftfreq(8)[:, None], np.fft.rfftfreq(8)[None])[..., None]
POWER = np.repeat(0.5 / (1 + 30 * K**2), 2, axis=2).astype(np.float32)
MEAN = np.full(SHAPE, 0.4, np.float32)


def make(sde, name="spectral", **options):
    given = {"statistics": (MEAN, POWER), "prior": "matched", "grid": "edm", **options}
    return sampling.get_pc_sampler(sde.with_num_scales(4), SHAPE, name, "none", **given)


@functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 1})
def draw(sampler, keys, law):
    return sampler(keys, law)[0]


@pytest.mark.parametrize("lam", [0.0, 1.0])
@pytest.mark.parametrize("sde", [VESDE(0.01, 20), VPSDE()], ids=["ve", "vp"])
def test_gains_are_one_on_gaussian_data(sde, lam):
    sampler = pilot.with_gains(make(sde, stochasticity=lam), FrequencyGaussian.create(sde, MEAN, POWER))
    gains = np.asarray(sampler.rows.coefficients)[:4]
    assert gains.shape[1] == 7 and np.abs(gains - 1).max() < 0.07


def test_gains_mend_the_spectrum_of_a_wrong_score():
    """A score that knows less power at high frequencies; the images of other seeds have the right one."""
    sde = VESDE(0.01, 20)
    law = FrequencyGaussian.create(sde, MEAN, (POWER * (1 - 0.4 * K)).astype(np.float32))
    plain = make(sde, stochasticity=1.0)
    keys = sampling.image_keys(range(500))
    errors = []
    for sampler in (plain, pilot.with_gains(plain, law)):
        modes = np.fft.rfft2(np.asarray(draw(sampler, keys, law)) - MEAN, axes=(1, 2)) / 8
        power = np.mean(np.abs(modes) ** 2, axis=0)
        errors.append(float(np.sqrt(np.mean(np.log(power / POWER)[K[..., 0] > 0.2] ** 2))))
    assert errors[1] < errors[0] / 2


def test_other_steps_are_refused():
    with pytest.raises(PdsError, match="'spectral' alone"):
        pilot.with_gains(make(VESDE(), "dpmpp_2m"), lambda x, t: -x)
