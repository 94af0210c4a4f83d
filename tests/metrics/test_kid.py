import numpy as np
import pytest

from pds_jax.metrics.kid import kernel_distance, mmd2, polynomial_kernel, rbf_kernel
from pds_jax.types import PdsError

KERNELS = {
    "poly_degree_3_gamma_1_over_dims_coef0_1": polynomial_kernel(),
    "poly_degree_2_gamma_0.1_coef0_0": polynomial_kernel(2, 0.1, 0.0),
    "rbf_sigma_10": rbf_kernel(10.0),
    "rbf_sigma_2": rbf_kernel(2.0),
}


def kernel_of(parameters):
    if parameters.get("kid_kernel") == "rbf":
        return rbf_kernel(parameters.get("kid_kernel_rbf_sigma", 10.0))
    return polynomial_kernel(
        parameters.get("kid_kernel_poly_degree", 3),
        parameters.get("kid_kernel_poly_gamma"),
        parameters.get("kid_kernel_poly_coef0", 1.0),
    )


@pytest.mark.slow
def test_every_recorded_subset_run(feats, numbers):
    for name, run in numbers["kid"]["subset_runs"].items():
        parameters = run["parameters"]
        for pair in set(run) - {"parameters"}:
            first, second = (feats[key] for key in pair.split("_"))
            result = kernel_distance(
                first,
                second,
                subsets=parameters["kid_subsets"],
                subset_size=parameters["kid_subset_size"],
                seed=parameters["rng_seed"],
                kernel=kernel_of(parameters),
            )
            recorded = run[pair]["float64_features"]
            assert result.mean == pytest.approx(recorded["mean"], rel=1e-11, abs=1e-12), name
            assert result.std == pytest.approx(recorded["std"], rel=1e-9, abs=1e-12), name


def test_single_subsets(feats, archive):
    stored = archive("kid_subsets.npz")
    values = kernel_distance(feats["c"], feats["d"], subsets=20, subset_size=100).values
    np.testing.assert_allclose(values, stored["c_d_mmd2_float64_features"], rtol=0, atol=1e-13)
    rows = stored["a_b_index_1"][3], stored["a_b_index_2"][3]
    one = mmd2(feats["a"][rows[0]], feats["b"][rows[1]])
    assert one == pytest.approx(stored["a_b_mmd2_float64_features"][3], abs=1e-13)


def test_whole_sets_with_every_kernel_and_estimator(feats, numbers):
    sets = {"a500_b500": (feats["a"][:500], feats["b"]), "c280_d280": (feats["c"][:280], feats["d"])}
    sets["a_a"] = (feats["a"], feats["a"])
    recorded = numbers["kid"]["full_set_equal_sizes"]
    assert set(recorded) == set(sets)
    for pair, (x, y) in sets.items():
        for kernel, estimators in recorded[pair].items():
            for estimator, values in estimators.items():
                got = mmd2(x, y, KERNELS[kernel], estimator)
                assert got == pytest.approx(values["formula_float64"], abs=1e-12), (pair, kernel, estimator)


def test_whole_sets_of_unequal_sizes(feats, numbers, monkeypatch):
    recorded = numbers["kid"]["full_set_unequal_sizes_formula_float64_only"]
    monkeypatch.setattr("pds_jax.metrics.kid._BLOCK", 77)
    assert mmd2(feats["a"], feats["b"]) == pytest.approx(recorded["a600_b500"], abs=1e-12)
    assert mmd2(feats["c"], feats["d"]) == pytest.approx(recorded["c300_d280"], abs=1e-12)
    assert mmd2(feats["a"], feats["b"], estimator="biased") == pytest.approx(recorded["a600_b500_biased"], abs=1e-12)


def test_bad_input_is_named(feats):
    a, b = feats["a"], feats["b"]
    with pytest.raises(PdsError, match="subset_size=1000 must lie between 2 and the smaller set's 500"):
        kernel_distance(a, b)
    with pytest.raises(PdsError, match="subset_size=1 "):
        kernel_distance(a, b, subset_size=1)
    with pytest.raises(PdsError, match="at least one subset"):
        kernel_distance(a, b, subset_size=10, subsets=0)
    with pytest.raises(PdsError, match="u-statistic needs sets of one size"):
        mmd2(a, b, estimator="u-statistic")
    with pytest.raises(PdsError, match="unknown estimator 'fair'; known: "):
        mmd2(a, b, estimator="fair")
    with pytest.raises(PdsError, match="64 and 60 columns"):
        mmd2(a, b[:, :60])
    with pytest.raises(PdsError, match="must be positive"):
        rbf_kernel(0.0)
