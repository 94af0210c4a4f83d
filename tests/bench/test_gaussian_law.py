"""The closed-form law of the samplers on Gaussian data, against the samplers themselves and against limits."""

import jax.numpy as jnp
import numpy as np
import pytest

from pds_jax import preconditioner, sampling
from pds_jax.bench import gaussian_law as law_of
from pds_jax.models import analytic
from pds_jax.sde_lib import VESDE
from pds_jax.statistics import full_plane
from pds_jax.types import PdsError

SIZE = 16


def isotropic(seed=0):
    """A mean with an offset of the whole image and an isotropic spectrum 1/k², two channels."""
    k = np.hypot(np.fft.fftfreq(SIZE)[:, None] * SIZE, np.fft.rfftfreq(SIZE)[None] * SIZE)
    ring = np.round(k)
    power = np.stack([2.0 / (1 + ring) ** 2, 1.0 / (1 + ring) ** 2], axis=-1)
    mean = np.broadcast_to(np.array([0.5, 0.3]), (SIZE, SIZE, 2))
    return mean, power


def test_isotropic_modes_keep_variance_and_offset():
    mean, power = isotropic()
    modes = law_of.isotropic_modes(mean, power)
    columns = np.array([1.0] + [2.0] * (SIZE // 2 - 1) + [1.0])
    assert modes.count.sum() == 2 * SIZE**2
    assert modes.variance == pytest.approx(np.sum(power * columns[None, :, None]))
    assert np.sum(modes.count * modes.offset) == pytest.approx(np.sum(mean**2))
    assert modes.offset[1:].max() < modes.offset[0]


def test_gains_are_those_of_the_preconditioner():
    mean, power = isotropic()
    modes = law_of.isotropic_modes(mean, power)
    second = SIZE**2 * power + np.square(np.abs(np.fft.rfft2(mean, axes=(0, 1))))

    class Raw:
        shape, r_f, r_a = (SIZE, SIZE, 2), full_plane(np.log1p(second), SIZE), np.ones((SIZE, SIZE, 2))

    r = np.asarray(preconditioner.from_statistics(Raw(), 4.0).freq)
    got = law_of.pds_gain(modes, 4.0)
    for row in range(len(got)):
        channel = row // (len(got) // 2)
        ring = np.round(np.hypot(np.fft.fftfreq(SIZE)[:, None] * SIZE, np.fft.rfftfreq(SIZE)[None] * SIZE))
        np.testing.assert_allclose(r[..., channel][ring == modes.ring[row]], got[row], rtol=1e-5)
    assert (law_of.pds_gain(modes, np.inf) == 1).all()
    with pytest.raises(PdsError, match="alpha=1"):
        law_of.pds_gain(modes, 1.0)


@pytest.mark.parametrize("corrector", ["none", "langevin"])
@pytest.mark.parametrize("gain", ["plain", "flat", "pds"])
def test_the_law_is_that_of_the_sampler(corrector, gain):
    """Against 2000 images of ``get_pc_sampler``: per-ring variance within Monte-Carlo error, offset of the mean."""
    mean, power = isotropic()
    modes = law_of.isotropic_modes(mean, power)
    iterations, sigma = 20, (0.01, 12.0)
    second = SIZE**2 * power + np.square(np.abs(np.fft.rfft2(mean, axes=(0, 1))))
    r = {
        "plain": np.ones_like(power),
        "flat": np.full_like(power, 1.15),
        "pds": 1 / ((np.log1p(second) / np.log1p(second).max() - 1) / 4 + 1),
    }[gain]
    m = preconditioner.Preconditioner(freq=jnp.asarray(r, jnp.float32), shape=mean.shape)
    gains = {"plain": 1.0, "flat": 1.15, "pds": law_of.pds_gain(modes, 4.0)}[gain]
    snr = 0.16 if corrector == "langevin" else None
    expected = law_of.final_law(modes, np.broadcast_to(gains, modes.power.shape), iterations, sigma, snr=snr)
    sde = VESDE(*sigma, N=iterations)
    score = analytic.FrequencyGaussian.create(sde, mean.astype(np.float32), power.astype(np.float32))
    sampler = sampling.get_pc_sampler(
        sde, mean.shape, "reverse_diffusion", corrector, preconditioner=m, eps=5e-4, snr=0.16
    )
    x = np.asarray(sampling.run(sampler, sampling.image_keys(range(2000)), score).x, np.float64)
    amplitude = np.fft.rfft2(x - mean, axes=(1, 2), norm="ortho")
    ring = np.round(np.hypot(np.fft.fftfreq(SIZE)[:, None] * SIZE, np.fft.rfftfreq(SIZE)[None] * SIZE))
    half = len(modes.power) // 2
    for row in range(len(modes.power)):
        some = amplitude[:, ring == modes.ring[row], row // half]
        offset = np.abs(some.mean(axis=0)) ** 2 if modes.ring[row] == 0 else 0.0
        found = np.mean(np.abs(some) ** 2) - np.mean(offset)
        assert found == pytest.approx(expected.variance[row], rel=0.1), (row, modes.ring[row])
    for row in (0, half):
        found = np.abs(amplitude[:, 0, 0, row // half].mean()) ** 2
        assert found == pytest.approx(expected.offset[row], abs=0.05 + 4 * np.sqrt(expected.variance[row] / 2000))


def test_with_many_iterations_the_plain_predictor_is_exact_and_m_leaves_its_known_bias():
    modes = law_of.isotropic_modes(*isotropic())
    plain = law_of.final_law(modes, np.ones_like(modes.power), 4000, (0.001, 200.0))
    np.testing.assert_allclose(plain.variance, modes.power, rtol=0.02)
    assert law_of.frechet(modes, plain) < 1e-3 * modes.variance and law_of.spectrum_error(modes, plain) < 0.02
    flat = law_of.final_law(modes, np.full_like(modes.power, 1.25), 4000, (0.001, 200.0))
    np.testing.assert_allclose(flat.variance, modes.power * 1.25**2 / (2 * 1.25**2 - 1), rtol=0.03)


def test_gains_may_be_stacked():
    modes = law_of.isotropic_modes(*isotropic())
    stacked = law_of.final_law(modes, np.array([[1.0], [1.2]]), 30, (0.01, 12.0), snr=0.16)
    for row, c in enumerate((1.0, 1.2)):
        one = law_of.final_law(modes, np.full_like(modes.power, c), 30, (0.01, 12.0), snr=0.16)
        np.testing.assert_allclose(stacked.variance[row], one.variance)
    assert law_of.frechet(modes, stacked).shape == (2,)
    with pytest.raises(PdsError, match="iterations=1"):
        law_of.final_law(modes, 1.0, 1, (0.01, 12.0))
