"""The solvers of ``pds_jax.solvers`` on the runs that the authors' programs recorded (tests/golden/solvers).

Tolerances are relative to the largest value of the final state: five times what float32 costs the program itself, not
below 1e-5; 2e-3 where the program sums an integral that is exact here, with the program's own numbers beside, to 1e-5.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recorded import GaussianScore, load, nhwc, relative

from pds_jax import sampling
from pds_jax.levels import VPTime, levels
from pds_jax.sde_lib import VESDE, VPSDE
from pds_jax.solvers import adams, stochastic

SHAPE = (8, 8, 3)
VP = VPSDE(N=10)


@pytest.fixture(scope="module")
def recorded(golden):
    """(settings, arrays) of one file."""
    cases = json.loads((golden / "solvers" / "cases.json").read_text())
    return lambda name: (cases[name], load(golden / "solvers" / f"{name}.npz"))


def gauss(data, sde):
    return GaussianScore(sde, jnp.asarray(nhwc(data["gauss.mean"])), jnp.asarray(nhwc(data["gauss.var"]))[None])


@jax.jit
def row_of(sampler, carry, noise, firsts, denoised):
    """One row on a recorded answer of the network."""

    def score(x, t):
        m, std = (v[:, None, None, None] for v in (sampler.sde.mean_scale(t), sampler.sde.std(t)))
        return (m * denoised - x) / jnp.square(std)

    return sampler.turn(carry, lambda step, draw: noise[firsts[step - 1] + draw], score)


def run(sampler, noise, law=None, answers=None):
    """The images, from a law or from the recorded answers; checks that every answer is asked for."""
    noise = jnp.asarray(noise, jnp.float32)
    if law is not None:
        return np.asarray(sampling.replay(sampler, noise, law)[0])
    assert int(sampler.nfe) == len(answers)
    draws = sampler.table.rows.draws[sampler.table.ends - 1]
    firsts, carry = jnp.asarray(1 + np.cumsum(draws) - draws), sampler.start(noise[0])
    for answer in nhwc(answers):
        carry = row_of(sampler, carry, noise, firsts, jnp.asarray(answer))
    return np.asarray(sampler.result(carry))


def check(case, name, data, sampler, noise, final, tolerance):
    answers = data.get(f"{name}.call_D")
    assert int(sampler.nfe) == case.get("calls", case.get("denoiser_calls"))
    x = run(sampler, noise, None if answers is not None else gauss(data, sampler.sde), answers)
    assert relative(x, final) < tolerance, (name, relative(x, final))


def own_of(case):
    """Name and options of a recorded setting of diff-sampler."""
    given = case["settings"]
    words = {"order": given["max_order"]} if "max_order" in given else {}
    if "predict_x0" in given:
        words["prediction"] = "noise"
    name = {
        "euler_sampler": "ddim",
        "heun_sampler": "heun",
        "ipndm_sampler": "ipndm",
        "ipndm_v_sampler": "ipndm_v",
        "deis_sampler": "deis",
        "dpm_pp_sampler": f"dpmpp_{given.get('max_order')}m",
        "unipc_sampler": "unipc",
    }[case["sampler"]]
    if name == "dpmpp_2m":
        del words["order"]
    if "variant" in given:
        words["form"] = given["variant"]
    return name, {**words, **({"afs": True} if given.get("afs") else {})}


def clipped(images):
    """Dynamic thresholding: at most the 0.995 quantile of |D| of the sample, at least 1, and divided by it."""
    bound = np.maximum(np.quantile(np.abs(images), 0.995, axis=(2, 3, 4), keepdims=True), 1)
    return (np.clip(images, -bound, bound) / bound).astype(np.float32)


DIFF = [
    *(f"{name}.gauss" for name in ("euler", "heun", "ipndm2", "ipndm3", "ipndm4", "ipndm4_afs")),
    *(f"{name}.gauss" for name in ("ipndm_v2", "ipndm_v4", "deis_tab2", "deis_tab3", "dpmpp_2m", "dpmpp_3m")),
    *(f"{name}.gauss" for name in ("dpmpp_3m_eps", "dpmpp_3m_tozero", "unipc2_bh1", "unipc3_bh2", "unipc3_bh1_eps")),
    *(f"{name}.net" for name in ("euler", "ipndm3", "ipndm4", "dpmpp_2m", "dpmpp_3m", "unipc2_bh1", "unipc3_bh2")),
]


@pytest.mark.parametrize("name", DIFF)
def test_diff_sampler(recorded, name):
    cases, data = recorded("diff_solvers")
    case, (solver, options) = cases[name], own_of(cases[name])
    low, high = case["grid"]["sigma_min"], case["grid"]["sigma_max"]
    sde = VESDE(low, high)
    times = np.clip(sde.t_of_level(data[f"{name}.t_steps"]), 1e-7, 1.0)
    to_data = bool(case["settings"].get("denoise_to_zero"))
    sampler = sampling.get_pc_sampler(sde, SHAPE, solver, "none", grid=times, denoise=to_data, **options)
    final = data[f"{name}.x"][-1]
    if name.endswith("net") and case["sampler"] in ("dpm_pp_sampler", "unipc_sampler"):
        # These two programs clip what the network says, whatever is asked; the test does it for them.
        data = {**data, f"{name}.call_D": clipped(data[f"{name}.call_D"])}
    if f"{name}.x_exact_adams_bashforth" in data:
        final = data[f"{name}.x_exact_adams_bashforth"]
        final = final[-1] if final.ndim == 5 else final
    tolerance = 1e-4 if name.endswith("net") else max(5 * case["f32_vs_f64_rel"], 1e-5)
    check(case, name, data, sampler, nhwc(data[f"{name}.latents"])[None], nhwc(final), tolerance)


def test_iterated_weights_of_deis_are_those_recorded(recorded):
    """To what a sum of 10000 float32 values is off; order 1 in the first row, which is not recorded."""
    _, data = recorded("diff_solvers")
    for name, order in (("deis_tab2.gauss", 2), ("deis_tab3.gauss", 3)):
        sigma = np.asarray(data[f"{name}.t_steps"], np.float64)
        ours = adams.adams_bashforth(sigma, order, VPTime(0.002, 80).of_level).predict
        theirs = data[f"{name}.coeff"]
        steps = np.abs(np.diff(sigma))[1:, None]
        assert np.all(np.abs(ours[1:, :order] - theirs[1:]) < 6e-4 * steps + 1e-5)
        np.testing.assert_allclose(ours.sum(axis=1), np.diff(sigma), rtol=1e-12)


ER_SDE = ["ve.o1_f7.gauss", "ve.o2_f7.gauss", "ve.o3_f7.gauss", "ve.o3_f7.net", "ve.o3_f1.gauss", "ve.o3_f2.gauss"]
ER_SDE += ["ve.o2_f3.gauss", "ve.o2_f3.net", "vp.o1_f7.gauss", "vp.o2_f5.gauss", "vp.o3_f7.gauss", "vp.o3_f7.net"]


def left_sums(f, start, end):
    """S₀ and S₁ as the authors' program has them: 100 values from the lower end."""
    u, width = np.linspace(end, start, 100, endpoint=False), (start - end) / 100
    return float((width / f(u)).sum()), float((width * (u - start) / f(u)).sum())


@pytest.mark.parametrize("as_recorded", [False, True])
@pytest.mark.parametrize("name", ER_SDE)
def test_er_sde(recorded, monkeypatch, name, as_recorded):
    cases, data = recorded("er_sde")
    case, ve = cases[name], name.startswith("ve")
    if as_recorded:
        monkeypatch.setattr(stochastic, "er_sde_weights", functools.partial(stochastic.er_sde_weights, sums=left_sums))
    if ve:
        sigma = data[f"{name}.sigmas"]
        sde = VESDE(case["grid"]["sigma_min"], case["grid"]["sigma_max"])
        times = np.clip(sde.t_of_level(sigma[:-1]), 1e-7, 1.0)
    else:
        sde, times = VP, data[f"{name}.times"]
    start = data[f"{name}.latents" if ve else f"{name}.x_T"]
    noise = nhwc(np.concatenate([start[None], data[f"{name}.noise"]]))
    options = {"order": case["order"], "scale": case["noise_scale_function"]}
    sampler = sampling.get_pc_sampler(sde, SHAPE, "er_sde", "none", grid=times, denoise=ve, **options)
    tolerance = (1e-5 if ve else 1e-4) if as_recorded else 2e-3
    last = nhwc(data[f"{name}.x"][-1])
    answers = data.get(f"{name}.call_D")
    x = run(sampler, noise, None if answers is not None else gauss(data, sde), answers)
    assert relative(x, last) < tolerance
    # The program draws at every step; x is the noisy state there.
    assert int(sampler.nfe) == case["calls"]


@pytest.mark.parametrize("name", ["one_interval", "two_intervals_gamma", "two_points", "net"])
def test_restart(recorded, name):
    cases, data = recorded("restart")
    given = cases[name]["settings"]
    options = {
        "restarts": tuple(json.loads(given["restart_info"]).values()),
        "restart_gamma": given.get("restart_gamma", 0.0),
        "churn_min": given.get("S_min", 0.0),
        "churn_max": given.get("S_max", np.inf),
        "churn_noise": given["S_noise"],
    }
    sde = VESDE(0.002, 80, given["num_steps"])
    sampler = sampling.get_pc_sampler(sde, SHAPE, "restart", "none", grid="edm", eps=1e-7, **options)
    asked = levels(sde, sampler.table.rows.t)[1]
    np.testing.assert_allclose(asked, data[f"{name}.call_sigma"], rtol=2e-5)
    noise = nhwc(np.concatenate([data[f"{name}.latents"][None], data[f"{name}.noise"]]))
    check(cases[name], name, data, sampler, noise, nhwc(data[f"{name}.final"]), 1e-4 if name == "net" else 1e-5)


@pytest.mark.parametrize("name", ["heun8_churn20", "heun6_churnmax", "euler8", "alpha_half7", "net_heun8_churn20"])
def test_edm(recorded, name):
    cases, data = recorded("edm")
    given = cases[name]["settings"]
    renamed = {"S_churn": "churn", "S_min": "churn_min", "S_max": "churn_max", "S_noise": "churn_noise", "rho": "rho"}
    options = {ours: given[theirs] for theirs, ours in {**renamed, "alpha": "second_at"}.items() if theirs in given}
    if given.get("solver") == "euler":
        options["order"] = 1
    sde = VESDE(given.get("sigma_min", 0.002), given.get("sigma_max", 80), given["num_steps"])
    sampler = sampling.get_pc_sampler(sde, SHAPE, "edm", "none", grid="edm", eps=1e-7, **options)
    noise = nhwc(np.concatenate([data[f"{name}.latents"][None], data[f"{name}.noise"]]))
    check(cases[name], name, data, sampler, noise, nhwc(data[f"{name}.final"]), 1e-4 if "net" in name else 1e-5)


@pytest.mark.parametrize(
    "name", ["few_p3c4_tau1", "few_p2c2_tau0.6", "few_p3c0_tau0", "more_p2c3_window", "few_p3c4_tau1_net"]
)
def test_sa_solver(recorded, name):
    cases, data = recorded("sa_solver")
    case, more = cases[name], name.startswith("more")
    given, noise = case["settings"], nhwc(data[f"{name}.noise"])
    tau = (1.0, 0.2, 0.8) if more else case["tau"]
    options = {"order": given["predictor_order"], "corrector_order": given["corrector_order"], "tau": tau}
    times = data[f"{name}.times"]
    sampler = sampling.get_pc_sampler(VP, SHAPE, "sa", "none", grid=times, denoise=more, more_steps=more, **options)
    # The first draw of the program is never used.
    noise = np.concatenate([nhwc(data[f"{name}.x_T"])[None], noise[1:]])
    final = data[f"{name}.final_f64"] if f"{name}.final_f64" in data else data[f"{name}.x"][-1]
    tolerance = 1e-4 if name.endswith("net") else max(5 * case["f32_vs_f64_rel"], 1e-5)
    check(case, name, data, sampler, noise, nhwc(final), tolerance)


@pytest.mark.parametrize(
    "name", ["pp_multi2_uniform.gauss", "pp_multi3_logsnr.gauss", "pp_multi3_logsnr.net", "multi2_quadratic.gauss"]
)
def test_dpm_solver_of_vp(recorded, name):
    cases, data = recorded("dpm_solver_vp")
    case = cases[name]
    prediction = "data" if case["algorithm"] == "dpmsolver++" else "noise"
    times, options = data[f"{name}.times_of_plain_grid"], {"prediction": prediction, "denoise": False}
    sampler = sampling.get_pc_sampler(VP, SHAPE, f"dpmpp_{case['settings']['order']}m", "none", grid=times, **options)
    final = data[f"{name}.final_f64"] if f"{name}.final_f64" in data else data[f"{name}.x"][-1]
    tolerance = 1e-4 if name.endswith("net") else max(5 * case["f32_vs_f64_rel"], 1e-5)
    check(case, name, data, sampler, nhwc(data[f"{name}.x_T"])[None], nhwc(final), tolerance)
