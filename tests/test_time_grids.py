"""Time grids: recorded ones, closed forms, refusals."""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from pds_jax import gits, sampling, time_grids
from pds_jax.levels import levels
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
    with pytest.raises(PdsError, match="known: edm, gits, log_sigma, quadratic, spectrum, uniform"):
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


def test_recorded_grids(golden):
    """diff-sampler's: EDM, uniform in log σ, uniform and quadratic in the time of a VP SDE."""
    cases = json.loads((golden / "solvers" / "cases.json").read_text())["grids"]
    names = {"polynomial": ("edm", "rho"), "logsnr": ("log_sigma", None), "time_uniform": ("quadratic", "power")}
    with np.load(golden / "solvers" / "grids.npz") as data:
        for key in ("edm18", "poly_rho3", "logsnr12", "uniform11", "quadratic11"):
            case = cases[key]
            name, option = names[case["schedule_type"]]
            options = {} if option is None else {option: float(case["schedule_rho"])}
            sde = VESDE(case["sigma_min"], case["sigma_max"])
            t = time_grids.get_grid(name, sde, 1e-7, case["num_steps"], **options)
            # σ = √(exp − 1) of the VP time has few digits in the program's float32, least where σ is small.
            rtol, atol = (3e-4, 2e-5) if name == "quadratic" else (2e-5, 0)
            np.testing.assert_allclose(levels(sde, t)[1], data[key], rtol=rtol, atol=atol, err_msg=key)


def test_recorded_paths_of_gits(golden):
    cases = json.loads((golden / "solvers" / "cases.json").read_text())["gits"]
    with np.load(golden / "solvers" / "gits.npz") as data:
        for key in ("dp0", "dp1", "dp2"):
            path = gits.cheapest_path(data[f"{key}.cost"], cases[key]["num_steps"], cases[key]["coeff"])
            assert path == cases[key]["indices"] == list(data[f"{key}.indices"])
        for key in ("euler_dev", "ipndm_l2"):
            given, cost = cases[key]["settings"], data[f"{key}.cost"]
            sde = VESDE(given["sigma_min"], given["sigma_max"])
            teacher = time_grids.get_grid("edm", sde, 1e-7, given["num_steps_tea"])
            options = {"cost": cost, "teacher": teacher, "coeff": given["coeff"]}
            t = time_grids.get_grid("gits", sde, 1e-7, given["num_steps"], **options)
            np.testing.assert_array_equal(t, teacher[cases[key]["indices"]])


@pytest.mark.parametrize("sde", [VESDE(), VPSDE(), subVPSDE()], ids=["ve", "vp", "subvp"])
def test_spectrum_grid_makes_equal_changes(sde):
    rng = np.random.default_rng(0)
    mean, power = np.zeros((6, 5, 2)), rng.uniform(0.01, 4, size=(6, 5, 2))
    whole = np.concatenate([power[:, :3], power[:, 1:3]], axis=1)  # a frequency and its opposite have the same
    t = time_grids.get_grid("spectrum", sde, 1e-3, 9, moments=(mean, power[:, :3]))
    change = [np.log(whole + s**2).sum() for s in levels(sde, t)[1]]
    np.testing.assert_allclose(np.diff(change), (change[-1] - change[0]) / 8, rtol=2e-3)
    # Data without power: nothing but noise is decided, and the grid is uniform in log σ.
    none = time_grids.get_grid("spectrum", sde, 1e-3, 9, moments=(mean, 1e-30 * power[:, :3]))
    np.testing.assert_allclose(none, time_grids.get_grid("log_sigma", sde, 1e-3, 9), rtol=1e-4)


def test_quadratic_grid_of_vp_is_in_its_own_time():
    t = time_grids.get_grid("quadratic", VPSDE(), 1e-3, 7)
    np.testing.assert_allclose(np.diff(np.sqrt(t)), (np.sqrt(1e-3) - 1) / 6, rtol=1e-5)


@pytest.mark.parametrize("sde", [VESDE(), VPSDE(), subVPSDE()], ids=["ve", "vp", "subvp"])
def test_levels_are_those_of_the_sde(sde):
    t = np.array([1.0, 0.3, 1e-3, 0.0], np.float32)
    m, sigma = levels(sde, t)
    assert m.dtype == sigma.dtype == np.float64 and (m[-1], sigma[-1]) == (1, 0)
    np.testing.assert_allclose(m[:3], sde.mean_scale(jnp.asarray(t[:3])), rtol=1e-5)
    np.testing.assert_allclose(sigma[:3] * m[:3], sde.std(jnp.asarray(t[:3])), rtol=1e-5)
    np.testing.assert_allclose(sde.t_of_level(sigma[:3]), t[:3], rtol=1e-5, atol=1e-7)


def test_times_of_ones_own():
    sde, times = VESDE(N=50), [1.0, 0.5, 0.2, 1e-3]
    sampler = sampling.get_pc_sampler(sde, (4, 4, 1), "ddim", "none", grid=times)
    assert int(sampler.nfe) == int(sampler.sde.N) == 4
    np.testing.assert_array_equal(sampler.times, np.float32(times))
    for bad in ([1.0], [0.5, 0.5], [0.2, 0.5], [1.0, 0.0], [1.5, 1.0], [1.0, math.nan], [[1.0, 0.5]]):
        with pytest.raises(PdsError, match="decreasing times"):
            sampling.get_pc_sampler(sde, (4, 4, 1), "ddim", "none", grid=bad)
    with pytest.raises(PdsError, match="own levels"):
        sampling.get_pc_sampler(sde, (4, 4, 1), "reverse_diffusion", "none", grid=times)


def test_a_grid_is_a_function():
    @time_grids.register_grid("halves")
    def halves(sde, eps, N, *, ratio=0.5):  # noqa: N803
        return np.append(ratio ** np.arange(N - 1), eps)

    try:
        sampler = sampling.get_pc_sampler(VESDE(N=4), (4, 4, 1), "ddim", "none", grid="halves", ratio=0.25)
        np.testing.assert_allclose(sampler.times, [1, 0.25, 0.0625, 1e-5])
    finally:
        del time_grids.GRIDS["halves"]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("edm", {"power": 2.0}, "grid 'edm' has no power option; it takes rho"),
        ("uniform", {"rho": 7.0}, "has no rho option"),
        ("quadratic", {"power": 0.0}, "power=0"),
        ("gits", {}, "cost= and teacher="),
        ("gits", {"cost": np.zeros((3, 3)), "teacher": [1.0, 1e-3]}, r"cost is \(3, 3\) for 2 times"),
        ("gits", {"cost": np.zeros((2, 2)), "teacher": [1.0, 0.5]}, "ends at 0.5"),
        ("gits", {"cost": np.zeros((2, 2)), "teacher": [1.0, 1e-3]}, "2 to 2 points, got N=5"),
        ("gits", {"cost": np.full((5, 5), np.nan), "teacher": np.linspace(1, 1e-3, 5)}, "finite"),
    ],
)
def test_options_of_grids_are_checked(name, options, message):
    with pytest.raises(PdsError, match=message):
        time_grids.get_grid(name, VESDE(), 1e-3, 5, **options)


def test_spectrum_grid_needs_statistics():
    with pytest.raises(PdsError, match="needs the data's statistics"):
        sampling.get_pc_sampler(VESDE(N=4), (4, 4, 1), "ddim", "none", grid="spectrum")
