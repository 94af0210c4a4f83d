"""Every SDE × predictor × corrector × M on Gaussian data against the recursion of each mode's mean and variance.

A new predictor costs its formula in gaussian.py. The fast run takes every SDE, corrector, M and variant; --slow takes
all combinations.
"""

import functools
import itertools

import gaussian
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pds_jax import sampling
from pds_jax.models.analytic import FrequencyGaussian, PixelGaussian
from pds_jax.preconditioner import Preconditioner
from pds_jax.sde_lib import VESDE, VPSDE, subVPSDE
from pds_jax.time_grids import uniform

SDES = {"vesde": VESDE, "vpsde": VPSDE, "subvpsde": subVPSDE}
IMAGES = 1000
STEPS = 24
EPS = {"vesde": 1e-3, "vpsde": 0.02, "subvpsde": 0.02}
MEAN, POWER, VARIANCE = gaussian.data()


def refused(sde, predictor, corrector, basis, variant):
    identity = basis == "identity"
    return (
        predictor == corrector == "none"
        or (predictor == "ancestral_sampling" and sde == "subvpsde")
        or (predictor in ("ddim", "spectral_ddim") and not identity)
        or (predictor in ("spectral_ddim", "spectral_ancestral") and basis == "pixels")
        or (variant == "exact" and predictor in ("none", "ddim", "spectral_ddim"))
    )


ALL = [
    case
    for case in itertools.product(
        SDES, gaussian.PREDICTORS, ("none", "ald", "langevin"), ("identity", "frequency", "pixels"), ("paper", "exact")
    )
    if not refused(*case)
]


FAST = {
    ("vesde", "reverse_diffusion", "langevin", "frequency", "paper"),
    ("vesde", "reverse_diffusion", "none", "frequency", "exact"),
    ("subvpsde", "euler_maruyama", "langevin", "pixels", "paper"),
    ("vpsde", "ancestral_sampling", "none", "frequency", "paper"),
    ("subvpsde", "spectral_ancestral", "ald", "frequency", "paper"),
    ("vpsde", "ddim", "langevin", "identity", "paper"),
}
assert set(ALL) > FAST


CASES = [pytest.param(case, marks=() if case in FAST else pytest.mark.slow, id="-".join(case)) for case in ALL]


# Compiling costs more than running here.
@functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 1})
def draw(sampler, keys, law):
    return sampler(keys, law)[0]


def problem(kind, basis):
    """M, the law of the data, and the modes' variances, gains, means and weights."""
    sde = SDES[kind](N=STEPS)
    ones = np.ones_like(POWER), np.ones(gaussian.SHAPE)
    if basis == "pixels":
        gains = 1.0 + 0.15 * np.random.default_rng(1).uniform(size=gaussian.SHAPE)
        law, P, mu, weights = PixelGaussian.create(sde, MEAN, VARIANCE), VARIANCE, MEAN, ones[1]
        freq, space = ones[0], gains
    else:
        low = POWER / POWER.max()
        gains = 1.15 - 0.15 * low if basis == "frequency" else ones[0]
        law, P, mu = FrequencyGaussian.create(sde, MEAN, POWER), POWER, gaussian.modes(MEAN)
        weights, freq, space = gaussian.half_plane_weights(), gains, ones[1]
    # Both filters always, so that the three M are one program; that None is the identity has its own test.
    m = Preconditioner(freq=jnp.float32(freq), space=jnp.float32(space), shape=gaussian.SHAPE)
    return sde, m, law, (P, gains**2, mu, weights)


@pytest.mark.parametrize("case", CASES)
def test_samples_have_the_law_of_the_recursion(case):
    kind, predictor, corrector, basis, variant = case
    sde, m, law, (P, lam, mu, weights) = problem(kind, basis)
    sampler = sampling.get_pc_sampler(
        sde,
        gaussian.SHAPE,
        predictor,
        corrector,
        n_steps=2 if corrector == "ald" else 1,
        preconditioner=m if predictor not in ("ddim", "spectral_ddim") else None,
        eps=EPS[kind],
        norm="batch",
        variant=variant,
        statistics=(MEAN, POWER),
    )
    x = np.asarray(draw(sampler, sampling.image_keys(range(IMAGES)), law), np.float64)
    coefficients = x if basis == "pixels" else gaussian.modes(x)
    mean, variance = gaussian.law(
        gaussian.Sde(kind, STEPS),
        uniform(1.0, EPS[kind], STEPS),
        predictor,
        corrector,
        P=P,
        lam=lam,
        mu=mu,
        weights=weights,
        variant=variant,
        n_steps=2 if corrector == "ald" else 1,
    )
    measured = np.mean(np.abs(coefficients - mean[None]) ** 2, axis=0)
    # A mode of weight 2 is a complex number, the mean of two squares.
    spread = np.sqrt(2 / (IMAGES * (weights if basis != "pixels" else 1)))
    z = (measured / variance - 1) / spread
    slack = 0.01 / spread if corrector == "langevin" else 0  # its recursion has the norms of an infinite batch
    assert np.all(np.abs(z) < 4.5 + slack), np.abs(z).max()
    assert abs(np.mean(z)) < 4.5 / np.sqrt(z.size / 2) + np.mean(slack)
    offset = np.abs(coefficients.mean(axis=0) - mean) / np.sqrt(variance / IMAGES)
    assert offset.max() < 4.5
