"""α(N) on the recursions it is derived from, iterated here step by step in their plainest form."""

import math
import types

import numpy as np
import pytest

from pds_jax import alpha, sde_lib, statistics
from pds_jax.types import PdsError


def lag_after(r, gain, snr, n_steps, iterations=4000):
    """Variance over noise level, before an iteration, of a mode without data: the sampler's own recursion."""
    e = 2 * snr**2
    c = 1.0
    for _ in range(iterations):
        for _ in range(n_steps if snr else 0):
            c = (1 - e) ** 2 * c + 2 * e
        c = ((1 - gain * (1 - r)) ** 2 * c + gain * (1 - r)) / r
    return c


@pytest.mark.parametrize(("snr", "n_steps"), [(0.0, 1), (0.16, 1), (0.16, 2), (0.3, 1)])
@pytest.mark.parametrize("r", [0.98, 0.9, 0.8, 0.6, 0.4])
def test_best_gain_on_the_lag_recursion(r, snr, n_steps):
    gain = alpha.best_gain(r, snr, n_steps)
    fixed_point = 2 / (2 - 2 * snr**2)
    lags = {g: lag_after(r, g, snr, n_steps) for g in (1.0, gain - 0.02, gain, gain + 0.02)}
    if gain == 1.0:
        assert lags[1.0] == pytest.approx(fixed_point, rel=0.02)
    elif lags[gain] > fixed_point * (1 + 1e-9):
        assert lags[gain] < lags[gain - 0.02] and lags[gain] < lags[gain + 0.02]
        assert lags[gain] < lags[1.0]
    else:
        assert lags[gain] == pytest.approx(fixed_point, rel=1e-9)
        assert lags[1.0] > lags[gain]


def test_alpha_auto_values_and_order():
    sde = types.SimpleNamespace(sigma_min=0.01, sigma_max=50.0)  # all that the closed form looks at
    alphas = [alpha.alpha_auto(sde, N) for N in (200, 100, 66, 40)]
    np.testing.assert_allclose(alphas, [21.7, 9.6, 5.0, 4.4], atol=0.05)
    for N in (10, 20, 40, 66, 100, 200):
        assert alpha.alpha_auto(sde, N, corrector=True) > alpha.alpha_auto(sde, N)
    with pytest.raises(PdsError, match="N=2"):
        alpha.alpha_auto(sde, 1)


def spectrum(shape=(16, 16)):
    """A 1/|k|² power spectrum and its raw statistics, in [0, 1]."""
    k = np.hypot(*(np.fft.fftfreq(n)[(slice(None), None) if i == 0 else (None,)] * n for i, n in enumerate(shape)))
    power = 4 / np.maximum(k, 0.7) ** 2
    return power, np.log1p(power * 256 + 1e4 * (k == 0))


def plain_ve(n, power, gains, snr, sigma_max=26.0):
    """Final variances of reverse diffusion after Langevin steps, one mode and one number at a time."""
    sigma = 26.0 * (0.01 / sigma_max) ** (np.arange(n) / (n - 1))
    values = [g * sigma_max**2 for g in gains]
    for i in range(n):
        below = sigma[i + 1] if i < n - 1 else 0.0
        if snr:
            noise = sum(gains)
            score = sum(g * g * v / (p + sigma[i] ** 2) ** 2 for g, v, p in zip(gains, values, power, strict=True))
            step = 2 * snr**2 * noise / score
            values = [
                (1 - step * g / (p + sigma[i] ** 2)) ** 2 * v + 2 * step * g
                for g, v, p in zip(gains, values, power, strict=True)
            ]
        fresh = sigma[i] ** 2 - below**2
        values = [
            (1 - g * fresh / (p + sigma[i] ** 2)) ** 2 * v + (g * fresh if i < n - 1 else 0.0)
            for g, v, p in zip(gains, values, power, strict=True)
        ]
    return np.array(values)


@pytest.mark.parametrize("snr", [0.0, 0.16])
def test_final_variance_is_the_plain_recursion(snr):
    power, gains = np.array([30.0, 1.0, 0.01]), np.array([1.0, 1.2, 1.5])
    ours = alpha.final_variance(sde_lib.VESDE(0.01, 26.0), 60, power, gains, snr)
    np.testing.assert_allclose(ours, plain_ve(60, power, gains, snr), rtol=3e-3)  # its times end at eps, not 0


def test_more_steps_end_at_the_data_without_m_and_at_the_bias_with_it():
    power = np.array([10.0, 1.0, 0.1])
    for sde in (sde_lib.VESDE(0.01, 26.0), sde_lib.subVPSDE(), sde_lib.VPSDE()):
        plain = alpha.final_variance(sde, 1000, power, np.ones(3))
        np.testing.assert_allclose(plain, power, rtol=0.06)
    biased = alpha.final_variance(sde_lib.VESDE(0.01, 26.0), 1000, power, np.full(3, 1.5625))
    np.testing.assert_allclose(biased, power * 1.5625 / (2 * 1.5625 - 1), rtol=0.06)


@pytest.mark.parametrize("corrector", [False, True])
@pytest.mark.parametrize("name", ["ve", "vp", "subvp"])
def test_auto_is_near_the_best_of_a_sweep_on_gaussian_data(name, corrector):
    sde = {"ve": sde_lib.VESDE(0.01, 26.0), "vp": sde_lib.VPSDE(), "subvp": sde_lib.subVPSDE()}[name]
    power, r_f = spectrum()
    power = power if hasattr(sde, "sigma_max") else 4 * power
    snr = 0.16 if corrector else 0.0

    def distance(a, n):
        gains = (1 / (1 + (r_f / r_f.max() - 1) / a)) ** 2
        final = alpha.final_variance(sde, n, power.reshape(-1), gains.reshape(-1), snr)
        return np.sum((np.sqrt(final) - np.sqrt(power.reshape(-1))) ** 2)

    for n in (40, 100):
        best = min(distance(a, n) for a in (1.5, 2, 3, 4, 5, 7, 10, 14, 20, 30, 50, 100, math.inf))
        assert distance(alpha.gaussian_alpha(sde, n, power, r_f, corrector), n) <= 1.02 * best
        if name == "ve":  # for the others alpha_auto assumes a spectrum of its own
            assert distance(alpha.alpha_auto(sde, n, corrector), n) <= 1.5 * best


@pytest.mark.parametrize("name", ["vp", "subvp"])
def test_auto_is_near_the_best_of_a_sweep_on_photographs(name, golden):
    crops = np.load(golden / "torch/pds/mask_crops.npz")["crops"]
    stats = statistics.compute_statistics([crops])
    _, half = stats.to_range(True)
    power = statistics.full_plane(half.astype(np.float64), 16)
    sde = sde_lib.VPSDE() if name == "vp" else sde_lib.subVPSDE()
    for n in (40, 100):
        blind, informed = alpha.alpha_auto(sde, n), alpha.alpha_auto(sde, n, stats=stats)
        gains = {
            a: np.square(1 / (1 + (stats.r_f.reshape(-1) / stats.r_f.max() - 1) / a))
            for a in (2, 3, 4, 5, 7, 10, 14, 20, 50, math.inf, blind, informed)
        }
        roots = {a: np.sqrt(alpha.final_variance(sde, n, power.reshape(-1), g)) for a, g in gains.items()}
        distances = {a: np.sum((root - np.sqrt(power.reshape(-1))) ** 2) for a, root in roots.items()}
        assert distances[informed] <= 1.1 * min(distances.values())
        assert distances[blind] <= 1.01 * distances[math.inf]


def test_gaussian_alpha_without_any_finite_result():
    power, r_f = spectrum()
    with pytest.raises(PdsError, match="N=10"):
        alpha.gaussian_alpha(sde_lib.VPSDE(), 10, power, r_f)


def test_the_middle_of_what_is_as_good_is_chosen():
    assert alpha.choose({2.0: 0.9, 4.0: 0.1, 8.0: 0.3}) == 4.0
    assert alpha.choose({4.0: 0.12, 8.0: 0.2, math.inf: 0.3}) == 4.0
    flat = {3.0: 0.3, 7.0: 0.105, 10.0: 0.11, 20.0: 0.10, 30.0: 0.113, math.inf: 0.2}
    assert alpha.choose(flat) == 10.0


def test_no_m_is_chosen_where_it_is_as_good():
    assert alpha.choose({7.0: 0.1, 15.0: 0.1, math.inf: 0.11}) == math.inf
    assert alpha.tune(lambda strength, _: 0.1 if strength > 9 else 0.3).said == "no M"


def test_auto_refuses_a_corrector_without_a_stationary_variance():
    with pytest.raises(PdsError, match="snr=1.2 have no stationary variance"):
        alpha.alpha_auto(sde_lib.VESDE(), 20, corrector=True, snr=1.2)
    assert alpha.alpha_auto(sde_lib.VESDE(), 20, corrector=False, snr=1.2) > 1


@pytest.mark.parametrize("best_gain, flat, wanted", [(1.25, 0.5, 1.25), (1.25, 2.0, None), (1.0, 0.5, None)])
def test_tuning_tries_as_many_flat_strengths_and_says_what_it_chose(best_gain, flat, wanted):
    """The error is the distance of the gain from the best; a flat M's is that times `flat`."""
    asked = []

    def error(strength, is_flat):
        asked.append((strength, is_flat))
        return (0.01 + abs(alpha.largest_gain(strength) - best_gain)) * (flat if is_flat else 1)

    found = alpha.tune(error, (3.0, 5.0, 9.0, math.inf))
    shaped, of_flat = ([s for s, kind in asked if kind == is_flat and s < math.inf] for is_flat in (False, True))
    assert shaped == of_flat and len(set(asked)) == len(asked) and (math.inf, True) not in asked
    if wanted is None:
        assert found.gain is None and alpha.largest_gain(found.alpha) == pytest.approx(best_gain)
        assert found.said.startswith("alpha=5" if best_gain > 1 else "no M")
    else:
        assert found.alpha == math.inf and found.gain == pytest.approx(wanted) and "flat M = 1.25 I" in found.said


def test_a_kind_of_m_can_be_left_out():
    found = alpha.tune(lambda strength, is_flat: 1.0 if is_flat else 0.1, (5.0, 9.0), kinds=(True,))
    assert found.alpha == math.inf and found.gain is not None and "alpha" not in found.said
