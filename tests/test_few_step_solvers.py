"""The linear solvers, EDM's and Restart: orders of convergence, evaluations, programs, every grid, refusals."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pds_jax import predictors, runner, sampling, table
from pds_jax.correctors import get_corrector
from pds_jax.levels import levels
from pds_jax.models.analytic import FrequencyGaussian, GaussianMixture
from pds_jax.preconditioner import from_radius
from pds_jax.sde_lib import VESDE, VPSDE, subVPSDE
from pds_jax.solvers import adams, dpm, stochastic
from pds_jax.solvers.linear import lagrange, quadrature
from pds_jax.steps import named_options, read_value
from pds_jax.types import PdsError

SHAPE = (6, 4, 2)
SDES = {"ve": VESDE(0.05, 20, 10), "vp": VPSDE(N=10), "subvp": subVPSDE(N=10)}
RNG = np.random.default_rng(0)
MEAN = (0.5 + 0.2 * RNG.normal(size=SHAPE)).astype(np.float32)
POWER = np.full((6, 3, 2), 0.25, np.float32)
Z = RNG.normal(size=(4, *SHAPE)).astype(np.float32)
QUICK = {"xla_backend_optimization_level": 1}
ODE = ("ipndm", "ipndm_v", "deis", "dpmpp_2m", "dpmpp_3m", "unipc")
ALL = (*ODE, "er_sde", "sa", "edm", "restart")


def make(sde, n, name, **options):
    return sampling.get_pc_sampler(sde.with_num_scales(n), SHAPE, name, "none", **options)


@functools.partial(jax.jit, compiler_options=QUICK)
def solve(sampler, z, law):
    return sampler.result(sampler.run_all(sampler.start(z), law))


def mixture(sde):
    means = np.stack([MEAN - 0.5, MEAN + 0.7]).reshape(2, *SHAPE)
    return GaussianMixture.create(sde, [0.4, 0.6], means, np.float32(0.3))


def flow(weights, sigma, prediction):
    """x at the last level by weights in float64, on a scalar denoiser that no method is exact for."""
    x, base, answers = 3.0 * sigma[0], 0.0, [0.0] * weights.predict.shape[1]
    for i, s in enumerate(sigma[:-1]):
        denoised = np.tanh(x / (0.5 + s**2)) + 0.1 * x / (1 + s)
        answers = [denoised if prediction == "data" else (x - denoised) / s, *answers[:-1]]
        if weights.corrects[i]:
            x = base + np.dot(weights.correct[i], answers)
        base = weights.keep[i] * x
        x = base + np.dot(weights.predict[i], answers)
    return x


def logarithmic(n):
    """Levels with steps that vary smoothly."""
    u = np.linspace(0, 1, n + 1)
    return np.exp(math.log(2.0) - math.log(8.0) * (u + 0.15 * np.sin(np.pi * u)))


METHODS = {
    "ipndm_v 2": (lambda s: adams.adams_bashforth(s, 2, lambda u: u), "noise", 2),
    "ipndm_v 3": (lambda s: adams.adams_bashforth(s, 3, lambda u: u), "noise", 3),
    "deis 2": (lambda s: adams.adams_bashforth(s, 2, np.sqrt), "noise", 2),
    "deis 3": (lambda s: adams.adams_bashforth(s, 3, np.sqrt), "noise", 3),
    "dpmpp_2m": (lambda s: dpm.dpmpp(s, 2, "data", False), "data", 2),
    "dpmpp_2m of noise": (lambda s: dpm.dpmpp(s, 2, "noise", False), "noise", 2),
    "dpmpp_3m as published": (lambda s: dpm.dpmpp(s, 3, "data", False), "data", 2),
    "dpmpp_3m exact": (lambda s: dpm.dpmpp(s, 3, "data", False, exact=True), "data", 3),
    "unipc 2 bh1": (lambda s: dpm.unipc_weights(s, 2, "bh1", "data", False), "data", 3),
    "unipc 2 bh2": (lambda s: dpm.unipc_weights(s, 2, "bh2", "data", False), "data", 3),
    "unipc 3 bh2 of noise": (lambda s: dpm.unipc_weights(s, 3, "bh2", "noise", False), "noise", 4),
    "er_sde 2, no noise": (lambda s: stochastic.er_sde_weights(s, 2, stochastic.SCALES[1]), "data", 2),
    "er_sde 3, no noise": (lambda s: stochastic.er_sde_weights(s, 3, stochastic.SCALES[1]), "data", 3),
    "sa 3, no noise": (lambda s: stochastic.sa_weights(s, 3, 0, np.zeros(len(s) - 1), True), "data", 3),
}


@pytest.mark.parametrize("method", METHODS)
def test_order_of_convergence_of_the_weights(method):
    """Twice the steps divide the error by 2^order; the first steps, of lower order, are replaced by exact ones."""
    weigh, prediction, order = METHODS[method]
    errors = []
    exact = flow(dpm.unipc_weights(logarithmic(6000), 3, "bh2", "data"), logarithmic(6000), "data")
    for n in (160, 320):
        errors.append(abs(flow(weigh(logarithmic(n)), logarithmic(n), prediction) - exact))
    measured = math.log2(errors[0] / errors[1])
    # Starting at order 1 and 2 costs one power at most in a method of order above 2.
    assert measured > min(order, 2) - 0.25, (measured, errors)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "order"), [("edm", {}, 2), ("edm", {"second_at": 0.5}, 2), ("sa", {"tau": 0.0}, 2)]
)
@pytest.mark.parametrize("kind", ["ve", "vp"])
def test_order_of_convergence_on_the_mixture(kind, name, options, order):
    sde, law = SDES[kind], mixture(SDES[kind])
    words = {"denoise": False, "eps": 0.1}
    fine = solve(make(sde, 1025, "heun", **words), Z, law)
    errors = [float(jnp.abs(solve(make(sde, n + 1, name, **words, **options), Z, law) - fine).max()) for n in (24, 48)]
    assert errors[1] < 0.05 and errors[0] / errors[1] > 2**order * 0.6


def test_weights_of_constant_polynomials_are_exact():
    """Where the answer does not change, every method makes the exact step, whatever its order."""
    sigma = np.array([5.0, 3.0, 2.5, 1.0, 0.4])
    for method, (weigh, prediction, _) in METHODS.items():
        weights = weigh(sigma)
        total = weights.predict.sum(axis=1)
        if prediction == "noise":
            np.testing.assert_allclose(total, np.diff(sigma), rtol=1e-10, err_msg=method)
        else:
            np.testing.assert_allclose(total + weights.keep, 1, rtol=1e-10, err_msg=method)


def test_lagrange_and_quadrature():
    nodes = np.array([2.0, 1.0, 0.5])
    points, weights = quadrature(0.1, 1.7)
    for power in range(3):
        by_nodes = (lagrange(nodes, points) @ weights) @ nodes**power
        np.testing.assert_allclose(by_nodes, (1.7 ** (power + 1) - 0.1 ** (power + 1)) / (power + 1), rtol=1e-12)


@pytest.mark.parametrize("scale", range(1, 8))
def test_variance_of_er_sde_on_data_of_one_image(scale):
    """Data of one image: x̄ = D + σ z stays of that law for every noise scale function."""
    sigma = np.geomspace(30, 0.05, 9)
    weights = stochastic.er_sde_weights(sigma, 1, stochastic.SCALES[scale], least=0.0)
    np.testing.assert_allclose((weights.keep * sigma[:-1]) ** 2 + weights.noise**2, sigma[1:] ** 2, rtol=1e-9)
    np.testing.assert_allclose(weights.keep + weights.predict.sum(axis=1), 1, rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        *((name, {}, 7) for name in (*ODE, "er_sde", "sa")),
        ("ipndm", {"afs": True}, 6),
        ("unipc", {"denoise": False}, 6),
        ("sa", {"more_steps": True}, 8),
        ("edm", {}, 13),
        ("edm", {"denoise": False, "churn": 30}, 12),
        ("edm", {"order": 1}, 7),
        ("edm", {"order": 1, "denoise": False}, 6),
        ("restart", {"restarts": ((4, 3, 0.1, 1.0), (2, 1, 1.0, 5.0))}, 13 + 18 + 2),
        ("restart", {"order": 1, "restarts": ((4, 3, 0.1, 1.0),)}, 7 + 9),
        ("restart", {"restarts": ((3, 2, 0.1, 1.0), (2, 1, 0.11, 5.0))}, 13 + 8 + 2),
    ],
)
def test_evaluations_are_rows(name, options, expected):
    calls = []

    def counted(x, t):
        jax.debug.callback(lambda: calls.append(1))
        return -x / (1 + t[:, None, None, None])

    sampler = make(SDES["ve"], 7, name, grid="edm", **options)
    jax.jit(lambda keys: sampler(keys, counted)[0], compiler_options=QUICK)(sampling.image_keys([0]))
    jax.effects_barrier()
    assert len(calls) == int(sampler.nfe) == len(sampler.table) == expected
    own = {key: value for key, value in options.items() if key != "denoise"}
    step, none = predictors.get_predictor(name), get_corrector("none")
    assert table.iterations(expected, step, none, 1, options.get("denoise", True), own) == 7


@pytest.mark.slow
def test_another_setting_compiles_nothing():
    """Steps, order, tau, noise scale, churn, intervals and times are data of the compiled program."""
    traced = []

    @jax.tree_util.Partial
    def counted(x, t):
        traced.append(1)
        return -x / (1 + t[:, None, None, None])

    pairs = {
        "ipndm": ({"order": 2}, {"order": 4}),
        "unipc": ({"order": 2, "form": "bh1"}, {"order": 3, "grid": "log_sigma"}),
        "sa": ({"tau": 0.5}, {"tau": (1.0, 0.2, 0.8), "order": 2, "corrector_order": 0}),
        "restart": ({"churn": 5.0}, {"restarts": ((2, 5, 0.1, 0.7),), "churn": 10.0, "grid": "edm", "rho": 5.0}),
    }
    for name, (first, second) in pairs.items():
        sampling.run(make(SDES["ve"], 6, name, **first), sampling.image_keys(range(2)), counted)
        before, programs = len(traced), runner._run_chunk._cache_size()
        sampling.run(make(SDES["ve"], 11, name, **second), sampling.image_keys(range(2)), counted)
        assert len(traced) == before and runner._run_chunk._cache_size() == programs, name


@pytest.mark.parametrize("kind", SDES)
@pytest.mark.parametrize("name", ALL)
def test_finite_with_few_steps_on_every_grid(kind, name):
    sde, made = SDES[kind], 0
    law = FrequencyGaussian.create(sde, MEAN, POWER)
    for grid in ("uniform", "edm", "log_sigma", "quadratic", "spectrum"):
        for n in (2, 3, 11):
            try:
                sampler = make(sde, n, name, grid=grid, statistics=(MEAN, POWER))
            except PdsError as error:
                assert ("needs at least" in str(error) and n < 11) or "restart: " in str(error)
                continue
            made += 1
            x = np.asarray(solve(sampler, Z, law))
            # Heun's slope at the end of a step over all levels is steep: finite, not good.
            assert np.isfinite(x).all() and np.abs(x).max() < 1e4, (grid, n)
    assert made >= 5


def test_intervals_at_one_level_are_repeated_one_after_the_other():
    """(3, 2) is (3, 1) twice, and another interval follows from the same level."""
    first, second = (3, 1, 0.1, 1.0), (2, 1, 0.11, 5.0)
    twice = make(SDES["ve"], 9, "restart", grid="edm", restarts=((3, 2, 0.1, 1.0), second)).table
    apart = make(SDES["ve"], 9, "restart", grid="edm", restarts=(first, first, second)).table
    assert str(twice) == str(apart)
    level = twice.rows.t_next[np.flatnonzero(np.diff(twice.rows.t, append=0) > 0)]
    np.testing.assert_allclose(levels(SDES["ve"], level)[1], [1.0, 1.0, 5.0], rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["er_sde", "sa", "edm", "restart"])
def test_law_of_gaussian_data_after_many_steps(name):
    """Mean and spectrum of 4000 images are the data's."""
    sde = VESDE(0.02, 20, 60)
    options = {"edm": {"churn": 20.0, "churn_max": 10.0}, "restart": {"restarts": ((5, 2, 0.2, 1.0),)}}.get(name, {})
    sampler = make(sde, 60, name, grid="edm", statistics=(MEAN, POWER), prior="matched", **options)
    law = FrequencyGaussian.create(sde, MEAN, POWER)
    x = np.asarray(sampling.run(sampler, sampling.image_keys(range(4000)), law).x)
    assert np.abs(x.mean(axis=0) - MEAN).max() < 5 * 0.5 / math.sqrt(4000)
    np.testing.assert_allclose(x.var(axis=0), 0.25, rtol=5 * math.sqrt(2 / 4000))


M = from_radius(SHAPE, 1.0, 1.3)
MATCHED = {"prior": "matched", "statistics": (MEAN, POWER)}


@pytest.mark.parametrize(
    ("name", "n", "options", "message"),
    [
        ("ipndm", 3, {"order": 4}, "order 4 needs at least 4 steps, got 3"),
        ("ipndm", 9, {"order": 5}, "order=5; use a whole number from 1 to 4"),
        ("ipndm", 9, {"order": 2.5}, "whole number"),
        ("ipndm", 9, {"form": "bh1"}, "no form option; it takes order, afs"),
        ("ipndm", 9, {"preconditioner": M}, "no noise for M"),
        ("deis", 9, {"time_range": (3.0, 1.0)}, "low < high"),
        ("dpmpp_3m", 2, {}, "order 3 needs at least 3 steps"),
        ("ipndm", 9, {"afs": "off"}, "afs=off; use true or false"),
        ("dpmpp_2m", 9, {"lower_final": "no"}, "lower_final=no; use true or false"),
        ("dpmpp_3m", 9, {"exact": "false"}, "exact=false; use true or false"),
        ("unipc", 9, {"lower_final": 2}, "lower_final=2; use true or false"),
        ("sa", 9, {"more_steps": "false"}, "more_steps=false; use true or false"),
        ("dpmpp_3m", 9, {"prediction": "v"}, "known: data, noise"),
        ("unipc", 9, {"form": "bh3"}, "known: bh1, bh2"),
        ("unipc", 3, {"order": 4}, "needs at least 4"),
        ("er_sde", 9, {"scale": 8}, "scale=8; use a whole number from 1 to 7"),
        ("er_sde", 9, {"least_variance": -1.0}, "least_variance"),
        ("er_sde", 9, {"preconditioner": M}, "white noise"),
        ("sa", 9, {"tau": -1.0}, "tau=-1.0"),
        ("sa", 9, {"tau": (1.0, 0.2)}, "low <= t <= high"),
        ("sa", 3, {"order": 3}, "needs at least 3 steps, got 2"),
        ("edm", 9, {"churn": -1.0}, "churn=-1.0"),
        ("edm", 9, {"churn_min": 2.0, "churn_max": 1.0}, "churn_min <= churn_max"),
        ("edm", 9, {"second_at": 0.0}, "second_at"),
        ("edm", 9, {"preconditioner": M}, "white noise"),
        ("restart", 9, {"restarts": ((3, 2, 0.3),)}, "levels >= 2, repeats >= 1, sigma_min, sigma_max"),
        ("restart", 9, {"restarts": 3}, "restarts=3; use"),
        ("restart", 9, {"restarts": "abcd"}, "restarts=abcd; use"),
        ("restart", 9, {"restarts": (3, 2, 0.06, 0.3)}, "interval 3 of restarts=.*; use"),
        ("restart", 9, {"restarts": ((3, "x", 0.06, 0.3),)}, "interval .*; use"),
        ("restart", 9, {"restart_gamma": "x"}, "restart_gamma=x; use a finite number"),
        ("edm", 9, {"churn": "x"}, "churn=x; use a finite number"),
        ("edm", 9, {"churn_max": "x"}, "churn_min <= churn_max, got 0.0 and x"),
        ("edm", 9, {"second_at": "x"}, "second_at=x; use a number"),
        ("edm", 9, {"order": "x"}, "order=x; use a whole number"),
        ("unipc", 9, {"order": "x"}, "order=x; use a whole number"),
        ("unipc", 9, {"order": (1, 2)}, "order=.1, 2.; use a whole number"),
        ("unipc", 9, {"order": math.inf}, "order=inf; use a whole number"),
        ("deis", 9, {"time_range": 3}, "time_range=3; use two levels"),
        ("deis", 9, {"time_range": (1, "x")}, "use two levels"),
        ("er_sde", 9, {"least_variance": "x"}, "least_variance=x; use a finite number"),
        ("er_sde", 9, {"scale": "x"}, "scale=x; use a whole number"),
        ("sa", 9, {"tau": "abc"}, "tau=abc; use a number"),
        ("sa", 9, {"tau": (1.0, "x", 0.8)}, "use a number >= 0, or .tau, low, high"),
        ("sa", 9, {"tau": (1.0, 0.8, 0.2)}, "use a number >= 0, or .tau, low, high"),
        ("ddim", 9, {"grid": "edm", "rho": "x"}, "rho=x: use a finite number"),
        ("ddim", 9, {"grid": "quadratic", "power": "x"}, "power=x: use a finite number"),
        ("restart", 9, {"restarts": ((1, 2, 0.1, 0.3),)}, "levels >= 2"),
        ("restart", 9, {"restarts": ((3, 2, 0.5, 0.3),)}, "sigma_min < sigma_max"),
        ("restart", 9, {"restarts": ((3, 2, 100.0, 200.0),)}, "above the first level, 20"),
        ("restart", 9, {"restarts": ((3, 2, 19.0, 20.0),)}, "nearest is 20"),
        ("restart", 9, {"restarts": ((3, 2, 0.06, 21.0),)}, "above the first level, 20"),
        ("restart", 9, {"restarts": ((3, 2, 0.06, 5.0),), "head_start": 4.0, **MATCHED}, "above the first level, 4"),
        ("ddim", 9, {"rho": 5.0}, "no rho option"),
        ("ddim", 9, {"grid": "edm", "rho": 0.0}, "rho=0.0"),
    ],
)
def test_refusals(name, n, options, message):
    with pytest.raises(PdsError, match=message):
        make(SDES["ve"], n, name, **{"grid": "edm" if name == "restart" else "uniform", **options})


@pytest.mark.parametrize("name", ALL)
def test_a_corrector_has_no_place_between_their_steps(name):
    with pytest.raises(PdsError, match="corrector 'none'"):
        sampling.get_pc_sampler(SDES["ve"], SHAPE, name, "langevin")


@pytest.mark.parametrize(
    "text, value",
    [("2", 2), ("inf", math.inf), ("true", True), ("false", False), ("None", None), ("(1, 2)", (1, 2)), ("edm", "edm"),
     ("runs/x.npz", "runs/x.npz"), ("order=2,form=bh1", "order=2,form=bh1"), ("f(2)", "f(2)"), ("", "")],
)  # fmt: skip
def test_a_value_is_read_likewise_and_other_text_stays(text, value):
    assert read_value(text) == value and type(read_value(text)) is type(value)


def test_options_as_text():
    text = "order=2, form=bh1, tau=(1, 0.2, inf), afs=True"
    assert named_options("tau=(1, 0.2, 0.8),scale=7") == {"tau": (1, 0.2, 0.8), "scale": 7}
    assert named_options("churn_max=inf,form=bh2,afs=True") == {"churn_max": math.inf, "form": "bh2", "afs": True}
    assert named_options("exact=false,afs=true,lower_final=0") == {"exact": False, "afs": True, "lower_final": 0}
    assert named_options("") == {} == named_options(None) and named_options({"order": 2}) == {"order": 2}
    for bad in ("order", "order=", "1, 2", "order=f(2)", text):
        with pytest.raises(PdsError, match="NAME=VALUE"):
            named_options(bad)


@pytest.mark.parametrize(("name", "option"), [("ipndm", "afs"), ("sa", "more_steps")])
def test_evaluations_are_not_counted_with_a_flag_that_is_none(name, option):
    steps = predictors.get_predictor(name), get_corrector("none")
    assert table.iterations(10, *steps, options=named_options(f"{option}=false")) == 10
    with pytest.raises(PdsError, match=f"{option}=off; use true or false"):
        table.iterations(10, *steps, options=named_options(f"{option}=off"))


@pytest.mark.parametrize(
    ("name", "options"), [("ddim", {"grid": [0.7, 0.3, 0.1]}), ("edm", {"churn": 20.0}), ("ipndm", {"afs": True})]
)
def test_the_prior_is_that_of_the_first_time(name, options):
    """Also where the first evaluation is at another time, or the times begin below T."""
    for kind, sde in SDES.items():
        sampler = make(sde, 6, name, statistics=(MEAN, POWER), **options)
        t = np.float32(options.get("grid", [1.0])[0])
        std = np.asarray(sde.std(jnp.array([t])))[0]
        expected = Z * std if kind == "ve" else Z * (std / np.asarray(sde.std(jnp.ones(1)))[0])
        np.testing.assert_allclose(sampler.start(Z).x, expected, rtol=1e-5)
        matched = make(sde, 6, name, statistics=(MEAN, POWER), prior="matched", **options).start(Z).x
        m = np.asarray(sde.mean_scale(jnp.array([t])))[0]
        np.testing.assert_allclose(matched, m * MEAN + Z * np.sqrt(m**2 * 0.25 + std**2), rtol=1e-3, atol=1e-4)
