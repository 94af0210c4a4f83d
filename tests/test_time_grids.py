"""Time grids: recorded ones, closed forms, refusals."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from pds_jax import time_grids
from pds_jax.sde_lib import VESDE, VPSDE, subVPSDE
from pds_jax.types import PdsError


def test_recorded_speed_ups(golden):
    eps0 = {"vp": 1e-3, "subvp": 1e-3}
    with np.load(golden / "torch" / "pds" / "schedules.npz") as data:
        for key in (k for k in data.files if k.endswith(".t")):
            tag, steps, _ = key.split(".")
            scales = 2000 if tag in ("bedroom", "church", "ffhq") else 1000
            n, eps = time_grids.speed_up(scales, float(steps[1:]), eps0.get(tag, 1e-5))
            np.testing.assert_allclose(time_grids.uniform(1.0, eps, n), data[key], rtol=2e-7, atol=2e-8)


@pytest.mark.parametrize("eps", [1e-5, 1e-3])
def test_uniform_grid_visits_every_level(eps):
    """int(t (N − 1)) never skips a level, whatever rounding does to t."""
    for n in [*range(2, 200), 232, 333, 500, 999, 1000, *([2000, 4000] if eps < 1e-3 else [])]:
        sde = VESDE(N=n)
        t = time_grids.uniform(1.0, min(eps * max(1.0, 1000 / n), 0.5), n)
        np.testing.assert_array_equal((t * np.float32(sde.N - 1)).astype(int), np.arange(n)[::-1])


@pytest.mark.parametrize("sde", [VESDE(), VPSDE(), subVPSDE()], ids=["ve", "vp", "subvp"])
def test_edm_grid_is_linear_in_the_root_of_the_level(sde):
    t = time_grids.edm_rho(sde, 1e-3, 12, rho=5.0)
    assert t.dtype == np.float32 and t[0] == 1 and t[-1] == np.float32(1e-3)
    roots = np.asarray(sde.std(jnp.asarray(t)) / sde.mean_scale(jnp.asarray(t)), np.float64) ** 0.2
    np.testing.assert_allclose(np.diff(roots), (roots[-1] - roots[0]) / 11, rtol=1e-4)


def test_edm_grid_of_ve_is_edms():
    i = np.arange(18) / 17
    expected = (80 ** (1 / 7) + i * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    sde = VESDE(0.002, 80)
    t = time_grids.edm_rho(sde, 1e-7, 18)
    np.testing.assert_allclose(sde.std(jnp.asarray(t)), expected, rtol=1e-4)


def test_by_name():
    sde = VESDE()
    np.testing.assert_array_equal(time_grids.get_grid("uniform", sde, 1e-3, 5), time_grids.uniform(1.0, 1e-3, 5))
    np.testing.assert_array_equal(time_grids.get_grid("edm", sde, 1e-3, 5), time_grids.edm_rho(sde, 1e-3, 5))
    with pytest.raises(PdsError, match="known: uniform, edm"):
        time_grids.get_grid("cosine", sde, 1e-3, 5)


@pytest.mark.parametrize(
    "make",
    [
        lambda: time_grids.uniform(1.0, 1e-3, 1),
        lambda: time_grids.uniform(1.0, 0.0, 10),
        lambda: time_grids.uniform(1.0, 1.0, 10),
        lambda: time_grids.uniform(1.0, math.nan, 10),
        lambda: time_grids.edm_rho(VESDE(), 1e-3, 10, rho=0.0),
        lambda: time_grids.speed_up(1000, 0.5, 1e-5),
        lambda: time_grids.speed_up(1000, math.nan, 1e-5),
    ],
)
def test_bad_grids_are_refused(make):
    with pytest.raises(PdsError):
        make()


def test_too_much_speed_up_names_the_numbers():
    with pytest.raises(PdsError, match="leaves N=1 iterations.*at most 500"):
        time_grids.speed_up(1000, 600, 1e-5)
    with pytest.raises(PdsError, match="eps=1.*at most 499.5|eps=1"):
        time_grids.speed_up(4000, 1000, 1e-3)
