import jax
import jax.numpy as jnp
import numpy as np
import pytest
from latent_cases import BETAS, libraries

from pds_jax.latent.schedule import TableVPSDE, alpha_bars
from pds_jax.levels import levels
from pds_jax.sampling import get_pc_sampler, image_keys
from pds_jax.sde_lib import SDE, VPSDE
from pds_jax.time_grids import edm_rho
from pds_jax.types import PdsError

TABLE = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        BETAS,
        {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 50},
        {**BETAS, "rescale_betas_zero_snr": True},
        {"trained_betas": [0.1, 0.2, 0.3]},
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_levels_equal_diffusers(fields):
    _, diffusers, _ = libraries()
    theirs = diffusers.DDIMScheduler(**fields).alphas_cumprod.numpy()
    ours = alpha_bars(fields, "scheduler_config.json")
    np.testing.assert_allclose(ours[:-1], theirs[:-1], rtol=1e-4)
    if "rescale_betas_zero_snr" in fields:
        assert theirs[-1] == 0 and ours[-1] == 2.0**-24
    else:
        np.testing.assert_allclose(ours[-1], theirs[-1], rtol=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"beta_schedule": "laplace"}, "'laplace' is not supported; known"),
        ({"trained_betas": [0.1, 1.5]}, "between 0 and 1"),
        ({"num_train_timesteps": "many"}, "num_train_timesteps"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}, "flow-matching"),
    ],
)
def test_other_schedules_are_refused(fields, message):
    with pytest.raises(PdsError, match=message):
        alpha_bars(fields, "scheduler_config.json")


def test_the_sde_meets_every_level_of_the_table():
    sde = TableVPSDE(TABLE)
    t = (jnp.arange(1000, dtype=jnp.float32) + 1) / 1000
    np.testing.assert_allclose(sde.mean_scale(t), np.sqrt(TABLE), rtol=1e-6)
    np.testing.assert_allclose(sde.std(t), np.sqrt(1 - TABLE), rtol=1e-5)
    np.testing.assert_allclose(sde.label(t, True), np.arange(1000), atol=1e-3)
    np.testing.assert_allclose(sde.t_of_level(np.sqrt(1 / TABLE - 1)), t, rtol=1e-6)
    assert float(sde.mean_scale(jnp.zeros(1))[0]) == 1 and sde.default_eps == 0.001


def test_drift_and_diffusion_are_those_of_the_marginals():
    sde, t, h = TABLE_SDE, np.float64([0.00042, 0.25037, 0.9003, 0.99951]), 2e-4
    log_means = np.interp([t - h, t + h], np.linspace(0, 1, 1001), np.concatenate([[0], np.log(TABLE) / 2]))
    rate = (log_means[1] - log_means[0]) / (2 * h)
    drift, diffusion = sde.sde(jnp.ones((4, 1)), jnp.asarray(t, jnp.float32))
    np.testing.assert_allclose(drift[:, 0], rate, rtol=2e-3)
    np.testing.assert_allclose(np.square(diffusion), -2 * rate, rtol=2e-3)


TABLE_SDE = TableVPSDE(TABLE)


@pytest.mark.parametrize("n", [1000, 20, 7])
def test_the_discrete_chain_is_exact_for_every_number_of_levels(n):
    sde = TABLE_SDE.with_num_scales(n)
    t = jnp.linspace(1 / n, 1, n)
    beta, shrink, deviation = sde.ancestral(t)
    ends = np.interp(np.arange(1, n + 1) / n, np.linspace(0, 1, 1001), np.concatenate([[0], np.log(TABLE)]))
    np.testing.assert_allclose(np.cumsum(np.log1p(-np.asarray(beta, np.float64))), ends, rtol=1e-4)
    if n == 1000:
        np.testing.assert_allclose(beta, 1 - TABLE / np.concatenate([[1], TABLE[:-1]]), rtol=1e-4)
    f, g = sde.discretize(jnp.ones((n, 1)), t)
    np.testing.assert_allclose(np.square(1 + f[:, 0]) + np.square(g), 1, rtol=1e-6)


@pytest.mark.parametrize("name", ["reverse_diffusion", "ancestral_sampling", "dpmpp_2m"])
def test_samplers_reach_gaussian_data_and_compile_once(name):
    """Exact score of N(0.3, 0.5²); the mean and the deviation of the samples are the data's."""
    sampler = get_pc_sampler(TABLE_SDE.with_num_scales(250), (4, 4, 2), name, "none", eps=1 / 250)

    def score(x, t):
        m, std = (v[:, None, None, None] for v in (TABLE_SDE.mean_scale(t), TABLE_SDE.std(t)))
        return -(x - 0.3 * m) / (0.25 * m**2 + std**2)

    run = jax.jit(lambda sampler, keys: sampler(keys, score)[0])
    x = run(sampler, image_keys(range(200)))
    assert abs(float(x.mean()) - 0.3) < 0.03 and abs(float(x.std()) - 0.5) < 0.03
    run(get_pc_sampler(TABLE_SDE.with_num_scales(100), (4, 4, 2), name, "none", eps=1 / 100), image_keys(range(200)))
    assert run._cache_size() == 1


class Bisected(TableVPSDE):
    t_of_level = SDE.t_of_level


@pytest.mark.parametrize("sde", [TABLE_SDE, pytest.param(Bisected(TABLE), marks=pytest.mark.slow), VPSDE(N=10)])
def test_noise_is_not_raised_above_the_level_of_the_first_time(sde):
    """The levels of x and of the question to the network are one; the first step has no room for noise."""
    made = get_pc_sampler(sde.with_num_scales(10), (4, 4, 2), "edm", "none", eps=1e-3, grid="edm", churn=4.0)
    rows, top = made.table.rows, levels(sde, [1.0])[1][0]
    firsts = np.concatenate([[0], made.table.ends[:-1]])
    assert rows.noise_before[0] == 0 and rows.scale_before[0] == 1 and (rows.noise_before[firsts[1:]] > 0).all()
    (m, before), (m_high, asked) = levels(sde, edm_rho(sde, 1e-3, 10)), levels(sde, rows.t[firsts])
    np.testing.assert_allclose(rows.scale_before[firsts], m_high / m, rtol=1e-4)
    reached = np.hypot(before, rows.noise_before[firsts] / m_high)
    np.testing.assert_allclose(reached, asked, rtol=1e-4)
    np.testing.assert_allclose(reached, np.minimum(1.4 * before, top), rtol=1e-4)


def test_a_restart_above_the_first_level_is_refused():
    with pytest.raises(PdsError, match="above the first level"):
        get_pc_sampler(TABLE_SDE.with_num_scales(10), (4, 4, 2), "restart", "none", restarts=((3, 2, 1.0, 100.0),))


def test_tables_that_are_no_schedule_are_refused():
    for table in ([0.5], [0.5, 0.6], [1.0, 0.5], [0.5, 0.0]):
        with pytest.raises(PdsError, match="must decrease"):
            TableVPSDE(table)
