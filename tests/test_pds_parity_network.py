"""The released PDS code's trajectories with a network: recorded noise, a converted .pth, the sampler's own steps."""

import json

import jax
import ml_collections
import numpy as np
import pytest

from pds_jax import convert, preconditioner, sampling
from pds_jax.models import create_model
from pds_jax.score_fn import get_score_fn
from pds_jax.sde_lib import get_sde


def nhwc(x):
    return np.moveaxis(x, -3, -1)


def relative(a, b):
    """Largest difference over the largest value, of each image of each step; the worst."""
    return (np.abs(a - b).max(axis=(-3, -2, -1)) / np.abs(b).max(axis=(-3, -2, -1))).max()


@pytest.fixture(scope="module")
def network(golden):
    models = golden / "torch" / "models"
    config = ml_collections.ConfigDict(json.loads((models / "ncsnpp_ve.config.json").read_text()))
    params, _ = convert.load_checkpoint(models / "ncsnpp_ve.pth", config)
    return config, params


@pytest.mark.slow
def test_the_score_of_the_converted_network_is_the_recorded_one(golden, network):
    config, params = network
    io = np.load(golden / "torch" / "models" / "ncsnpp_ve.io.npz")
    sde, _ = get_sde(config)
    score_fn = get_score_fn(sde, create_model(config), params, continuous=True)
    ours = jax.jit(lambda s, x, t: s(x, t))(score_fn, nhwc(io["x"]), io["score_t"])
    assert relative(np.asarray(ours), nhwc(io["score_out"])) < 1e-5


@pytest.mark.parametrize("mask", [pytest.param("nomask", marks=pytest.mark.slow), "both_a5"])
def test_the_trajectory_is_the_recorded_one(golden, network, mask):
    config, params = network
    pds = golden / "torch" / "pds"
    run = np.load(pds / f"ve_ncsnpp_{mask}.npz")
    n, draws = int(run["N"]), int(run["n_draws"])
    sde, _ = get_sde(config, N=n)
    m = preconditioner.identity()
    if mask != "nomask":
        m = preconditioner.from_masks(pds / "freq_mask.npy", pds / "space_mask.npy", float(run["alpha"]))
    sampler = sampling.get_pc_sampler(
        sde, (16, 16, 3), snr=config.sampling.snr, preconditioner=m, eps=float(run["eps"]), norm="batch"
    )
    score_fn = get_score_fn(sde, create_model(config), params, continuous=True)
    noise = nhwc(np.load(pds / "noise.npz")["draws"][:draws])
    x, trajectory = sampling.replay(sampler, noise, score_fn)

    np.testing.assert_allclose(np.asarray(sampler.times)[:n], run["t"], rtol=1e-6)
    assert relative(np.asarray(x), nhwc(run["final"])) < 1e-5
    assert relative(np.asarray(trajectory["x_pred"]), nhwc(run["x_pred"])) < 1e-5
    steps = run["corr_steps"]
    assert relative(np.asarray(trajectory["x_corr"])[steps], nhwc(run["x_corr"])) < 1e-5
    assert relative(np.asarray(trajectory["x_corr_mean"])[steps], nhwc(run["x_corr_mean"])) < 1e-5
    assert int(sampler.nfe) == 2 * n
