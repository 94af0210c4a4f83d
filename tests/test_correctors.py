"""Correctors: recorded updates, norm modes, the stationary law of Langevin dynamics, Theorem 1."""

import dataclasses
import functools
import re

import gaussian
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recorded import SDES, load, nhwc, pds_mask, relative, score_sde_score, worst_sample

from pds_jax import correctors
from pds_jax.preconditioner import Preconditioner, identity
from pds_jax.sde_lib import VESDE, VPSDE, subVPSDE
from pds_jax.types import PdsError


@functools.partial(jax.jit, static_argnames=("name", "mean_fn"))
def step(name, x, t, z, sde, score_fn, snr, preconditioner=None, mean_fn=correctors.norm_per_image):
    return correctors.get_corrector(name)(
        x, t, z, sde=sde, score_fn=score_fn, preconditioner=preconditioner, snr=snr, mean_fn=mean_fn
    )


def test_recorded_updates_of_score_sde(golden):
    data = load(golden / "score_sde" / "sde" / "predictor_corrector.npz")
    checked = 0
    for key in data:
        match = re.fullmatch(r"(\w+)\.N(\d+)\.(t_\w+)\.(\w+)\.snr([\d.]+)\.n(\d)\.(x_out|x_mean)", key)
        if match is None:
            continue
        kind, n, times, name, snr, inner, what = match.groups()
        sde, base = SDES[kind](N=int(n)), f"{kind}.N{n}.{times}"
        x, t = data[f"{base}.x_in"], data[f"{base}.t"]
        for z in data[f"corrector.noise.n{inner}"]:
            x, x_mean = step(
                name, x, t, z, sde, score_sde_score(data, sde), float(snr), mean_fn=correctors.mean_norm_over_batch
            )
        assert worst_sample(x if what == "x_out" else x_mean, data[key]) < 1e-5, key
        checked += 1
    assert checked > 25


def test_recorded_norms_over_two_devices(golden):
    """The mean of norms over two devices is what any mean_fn may give, here by vmap's axis."""
    data = load(golden / "score_sde" / "sde" / "predictor_corrector.npz")
    sde = VESDE(N=1000)

    def both(norm):
        return jnp.broadcast_to(jax.lax.pmean(jnp.mean(norm), "batch"), norm.shape)

    @functools.partial(jax.vmap, axis_name="batch")
    def update(x, t, z):
        return correctors.langevin(x, t, z, sde=sde, score_fn=score_sde_score(data, sde), snr=0.16, mean_fn=both)

    x, x_mean = update(data["twodev.x_in"], data["twodev.t"], data["twodev.noise"])
    for ours, recorded in ((x, data["twodev.x_out"]), (x_mean, data["twodev.x_mean"])):
        assert worst_sample(ours.reshape(-1, 8, 8, 3), recorded.reshape(-1, 8, 8, 3)) < 1e-5


def test_recorded_updates_of_the_released_code(golden):
    data = load(golden / "torch" / "pds" / "single_updates.npz")
    times = {"eq": data["t_eq"], "mix": data["t_mix"], "T": np.ones(2), "eps": np.full(2, 5e-4)}
    recorded = jax.tree_util.Partial(lambda s, x, t: s, nhwc(data["score"]))
    checked = 0
    for key in data:
        match = re.fullmatch(r"(lang|lang2)\.([a-z]+)(\d+)\.(\w+)\.(\w+)\.(x_out|x_mean)", key)
        if match is None:
            continue
        kind, name, n, mask, t, what = match.groups()
        x = nhwc(data["x_in"])
        for noise in ("noise", "noise2")[: 2 if kind == "lang2" else 1]:
            x, x_mean = step(
                "langevin",
                x,
                np.float32(times[t]),
                nhwc(data[noise]),
                SDES[name](N=int(n)),
                recorded,
                0.16,
                pds_mask(golden, mask),
                correctors.mean_norm_over_batch,
            )
        assert relative(x if what == "x_out" else x_mean, nhwc(data[key])) < 5e-6, key
        checked += 1
    assert checked > 20


SHAPE = (6, 4, 1)
MEAN = np.random.default_rng(5).uniform(size=SHAPE).astype(np.float32)


@jax.tree_util.Partial
def correlated(x, t):
    """Score of a Gaussian whose precision is diag(d) + a uᵀu, nowhere diagonal in frequency."""
    d = 1 + jnp.arange(24.0).reshape(SHAPE) / 8
    y = x - MEAN[None]
    u = jnp.sin(jnp.arange(24.0)).reshape(SHAPE)
    return -(d[None] * y + 0.4 * jnp.sum(y * u[None], axis=(1, 2, 3), keepdims=True) * u[None])


def precision():
    u = np.sin(np.arange(24.0))
    return np.diag(1 + np.arange(24.0) / 8) + 0.4 * np.outer(u, u)


def filters(skew=False):
    rng = np.random.default_rng(0)
    freq = 1 + 0.6 * rng.uniform(size=(6, 3, 1))
    w = 0.8 * rng.normal(size=(6, 3, 1))
    for column in (0, 2):
        mirrored = np.roll(freq[::-1, column], 1, axis=0)
        freq[:, column] = (freq[:, column] + mirrored) / 2
        w[:, column] = (w[:, column] - np.roll(w[::-1, column], 1, axis=0)) / 2
    space = 1 + 0.5 * rng.uniform(size=SHAPE)
    return Preconditioner(
        freq=np.float32(freq), space=np.float32(space), skew=np.float32(w) if skew else None, shape=SHAPE
    )


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class UnitNoise:
    """What ald asks an SDE: std = 1, a_t = 1."""

    def std(self, t):
        return jnp.ones_like(t)

    def alphas_at(self, t):
        return jnp.ones_like(t)


UNIT = UnitNoise()


@pytest.mark.parametrize("skew", [False, True], ids=["MMt", "MMt+S"])
def test_langevin_keeps_the_stationary_law_as_the_step_shrinks(skew):
    """The covariance of x' = (I − ε (M Mᵀ + S) Λ) x + √(2ε) M z solves a Lyapunov equation; it tends to Λ⁻¹.

    The map is read off the corrector itself, so this is exact: no sampling error.
    """
    m, eye = filters(skew), np.eye(24, dtype=np.float32).reshape(24, *SHAPE)
    errors = []
    for snr in (0.08, 0.04):  # ald with std = 1: ε = 2 snr²
        quiet = step("ald", eye + MEAN[None], np.ones(24, np.float32), eye, UNIT, correlated, snr, m)[1]
        still = step("ald", 0 * eye + MEAN[None], np.ones(24, np.float32), eye, UNIT, correlated, snr, m)
        a = np.asarray(quiet - MEAN[None], np.float64).reshape(24, 24).T
        b = np.asarray(still[0] - still[1], np.float64).reshape(24, 24).T
        covariance = np.linalg.solve(np.eye(576) - np.kron(a, a), (b @ b.T).reshape(-1)).reshape(24, 24)
        errors.append(relative(covariance, np.linalg.inv(precision())))
    assert errors[1] < 0.02 and 3 < errors[0] / errors[1] < 5  # O(ε), ε = 2 snr²


def test_theorem_1_orthogonal_change_of_coordinates():
    """With M orthogonal the preconditioned step is the plain step of the law turned back by Mᵀ (M = R a reflection)."""
    rng = np.random.default_rng(1)
    freq = np.where(rng.uniform(size=(6, 3, 1)) < 0.5, 1.0, -1.0)
    for column in (0, 2):
        freq[:, column] = freq[:, 1] * np.roll(freq[::-1, 1], 1, axis=0)
    m = Preconditioner(freq=np.float32(freq), space=np.ones(SHAPE, np.float32), shape=SHAPE)
    apply, gram = gaussian.numpy_m(m)  # M = Mᵀ = M⁻¹
    x, z = rng.normal(size=(2, 5, *SHAPE)).astype(np.float32)
    np.testing.assert_allclose(gram(x), x, atol=1e-5)
    turned = jax.tree_util.Partial(lambda y, t: m.transpose(correlated(m.apply(y), t)))
    sde, t = VESDE(), np.full(5, 0.6, np.float32)
    for name in ("langevin", "ald"):
        ours = step(name, x, t, z, sde, correlated, 0.2, m)
        plain = step(name, np.float32(apply(x)), t, z, sde, turned, 0.2)
        for a, b in zip(ours, plain, strict=True):
            np.testing.assert_allclose(a, apply(b), rtol=1e-4, atol=1e-4)


def test_an_image_depends_on_itself_only_in_sample_mode():
    x, z = np.random.default_rng(3).normal(size=(2, 4, *SHAPE)).astype(np.float32)
    t, sde, m = np.full(4, 0.5, np.float32), VESDE(), filters()
    for mean_fn, alone_is_same in ((correctors.norm_per_image, True), (correctors.mean_norm_over_batch, False)):
        together, _ = step("langevin", x, t, z, sde, correlated, 0.16, m, mean_fn)
        alone, _ = step("langevin", x[:1], t[:1], z[:1], sde, correlated, 0.16, m, mean_fn)
        assert bool(relative(alone, together[:1]) < 1e-5) is alone_is_same


def test_step_size_is_of_the_norms_after_m():
    x, z = np.random.default_rng(4).normal(size=(2, 3, *SHAPE)).astype(np.float32)
    m, sde, t = filters(), VPSDE(N=100), np.array([0.9, 0.5, 0.1], np.float32)
    moved, x_mean = (np.asarray(v) for v in step("langevin", x, t, z, sde, correlated, 0.16, m))
    apply, gram = gaussian.numpy_m(m)
    offset = np.asarray(x - MEAN[None], np.float64).reshape(3, 24)
    g, n = gram(-(offset @ precision()).reshape(3, *SHAPE)), apply(z)
    norm = [np.sqrt((v**2).sum(axis=(1, 2, 3))) for v in (n, g)]
    epsilon = 2 * (1 - (0.1 + 19.9 * np.array([89, 49, 9]) / 99) / 100) * (0.16 * norm[0] / norm[1]) ** 2
    np.testing.assert_allclose(x_mean, x + epsilon[:, None, None, None] * g, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(moved - x_mean, np.sqrt(2 * epsilon)[:, None, None, None] * n, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["langevin", "ald"])
@pytest.mark.parametrize("sde", [VESDE(N=50), VPSDE(N=50), subVPSDE(N=50)], ids=["ve", "vp", "subvp"])
def test_identity_is_no_preconditioner_to_the_bit(name, sde):
    x, z = np.random.default_rng(4).normal(size=(2, 3, *SHAPE)).astype(np.float32)
    t = np.array([0.9, 0.5, 0.1], np.float32)
    plain = step(name, x, t, z, sde, correlated, 0.16)
    for a, b in zip(step(name, x, t, z, sde, correlated, 0.16, identity()), plain, strict=True):
        np.testing.assert_array_equal(a, b)
        assert np.isfinite(a).all()


def test_the_registry():
    assert {"langevin", "ald", "none"} <= set(correctors.CORRECTORS)
    with pytest.raises(PdsError, match="unknown corrector 'lang'; known: ald, langevin, .*none"):
        correctors.get_corrector("lang")
    with pytest.raises(PdsError, match="already"):
        correctors.register_corrector("ald")(correctors.ald)
