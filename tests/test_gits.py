"""The costs of GITS: recorded ones, its grid in a sampler, refusals."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from recorded import GaussianScore, load, nhwc

from pds_jax import gits, sampling
from pds_jax.sde_lib import VESDE
from pds_jax.types import PdsError


@pytest.mark.parametrize(("name", "solver"), [("euler_dev", "ddim"), ("ipndm_l2", "ipndm")])
def test_recorded_costs(golden, name, solver):
    case = json.loads((golden / "solvers" / "cases.json").read_text())["gits"][name]
    data, given = load(golden / "solvers" / "gits.npz"), case["settings"]
    sde = VESDE(given["sigma_min"], given["sigma_max"], given["num_steps_tea"])
    law = GaussianScore(sde, *(jnp.asarray(nhwc(data[f"gauss.{what}"])) for what in ("mean", "var")))
    law = GaussianScore(sde, law.leaves[1], law.leaves[2][None])
    options = {"order": given["max_order"]} if "max_order" in given else {}
    words = {"grid": "edm", "eps": 1e-7, "denoise": False}
    teacher = sampling.get_pc_sampler(sde, (8, 8, 3), solver, "none", **words, **options)
    found = gits.cost_matrix(teacher, nhwc(data[f"{name}.latents"])[0], law, given["metric"])
    recorded = data[f"{name}.cost"]
    np.testing.assert_allclose(found["cost"], recorded, rtol=2e-3, atol=5e-4 * recorded.max())
    path = gits.cheapest_path(found["cost"], given["num_steps"], given["coeff"])
    assert path == case["indices"]
    student = sampling.get_pc_sampler(
        sde.with_num_scales(given["num_steps"]), (8, 8, 3), solver, "none",
        grid="gits", eps=1e-7, coeff=given["coeff"], **found, **options,
    )  # fmt: skip
    np.testing.assert_array_equal(student.times, found["teacher"][path])


def test_the_costs_do_not_depend_on_how_many_images_are_held_at_once(monkeypatch):
    teacher = sampling.get_pc_sampler(VESDE(0.01, 5.0, N=6), (4, 4, 1), "ddim", "none", grid="edm", denoise=False)
    noise = np.random.default_rng(0).standard_normal((5, 4, 4, 1)).astype(np.float32)
    score = lambda x, t: -jnp.tanh(x)  # noqa: E731
    whole = gits.cost_matrix(teacher, noise, score)["cost"]
    monkeypatch.setattr(gits, "_VALUES", 2 * 7 * 16)
    np.testing.assert_allclose(gits.cost_matrix(teacher, noise, score)["cost"], whole, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("solver", "options", "metric", "message"),
    [
        ("ddim", {"denoise": False}, "l3", "known: dev, l2, l1"),
        ("ddim", {}, "dev", "denoise=False"),
        ("sde_dpmpp_2m", {"denoise": False}, "dev", "probability flow"),
        ("edm", {"denoise": False, "churn": 3.0}, "dev", "probability flow"),
    ],
)
def test_refusals(solver, options, metric, message):
    teacher = sampling.get_pc_sampler(VESDE(N=5), (4, 4, 1), solver, "none", **options)
    with pytest.raises(PdsError, match=message):
        gits.cost_matrix(teacher, jnp.zeros((2, 4, 4, 1)), lambda x, t: -x, metric)
