import numpy as np
import pytest

from pds_jax.metrics.precision_recall import density_coverage, neighbour_radii, precision_recall
from pds_jax.types import PdsError


def pairs(feats):
    a, b, c, d = (feats[name] for name in "abcd")
    return {"a_b": (a, b), "b_a": (b, a), "c_d": (c, d), "n_below_dims": (a[:40], b[:48])}


def test_every_recorded_run(feats, numbers, archive, monkeypatch):
    monkeypatch.setattr("pds_jax.metrics.precision_recall._BLOCK", 130)
    runs = numbers["prc"]["runs"]
    assert len(runs) == 16
    for name, run in runs.items():
        pair, k = name.split("_neighborhood_")
        result = precision_recall(*pairs(feats)[pair], k=int(k))
        assert result.inside_real.sum() == run["precision_count"], name
        assert result.inside_generated.sum() == run["recall_count"], name
        assert result.f_score == pytest.approx(run["f_score"], rel=1e-6)
    stored = archive("prc.npz")
    for pair in ("a_b", "c_d"):
        x, y = pairs(feats)[pair]
        result = precision_recall(x, y)
        np.testing.assert_array_equal(result.inside_real, stored[f"{pair}_inside_1"])
        np.testing.assert_array_equal(result.inside_generated, stored[f"{pair}_inside_2"])
        np.testing.assert_allclose(neighbour_radii(x, 3), stored[f"{pair}_radii_1"], rtol=1e-10)
        np.testing.assert_allclose(neighbour_radii(y, 3), stored[f"{pair}_radii_2"], rtol=1e-10)


def test_edge_cases(feats, numbers):
    a, b = feats["a"], feats["b"]
    same = precision_recall(a, a)
    assert (same.precision, same.recall, same.f_score) == (1.0, 1.0, 1.0)
    apart = precision_recall(a + np.float32(100), b)
    assert (apart.precision, apart.recall, apart.f_score) == (0.0, 0.0, 0.0)
    four = precision_recall(a[:4], b[:4])
    recorded = numbers["prc"]["edge_cases"]["four_samples_neighborhood_3"]["value"]
    assert (four.precision, four.recall) == (recorded["precision"], recorded["recall"])
    with pytest.raises(PdsError, match="generated set has 3 images; at least 4"):
        precision_recall(a[:3], b)
    with pytest.raises(PdsError, match="k=0"):
        precision_recall(a, b, k=0)
    with pytest.raises(PdsError, match="64 and 63 columns"):
        density_coverage(a, b[:, 1:])


def test_repeated_rows_have_radius_zero(feats, numbers):
    repeated = np.concatenate([np.repeat(feats["a"][:50], 5, axis=0), feats["a"][50:]])
    assert (neighbour_radii(repeated, 3) == 0).sum() == 250
    result = precision_recall(repeated, feats["b"])
    recorded = numbers["prc"]["edge_cases"]["a_with_first_50_rows_five_times_vs_b"]["formula_float64"]
    assert (result.precision, result.recall) == (recorded["precision"], recorded["recall"])


def test_a_collapsed_generator_is_measured_without_a_loop_over_pairs():
    """2000 copies of one image, and as many that differ from it by less than the matrix product has digits for."""
    rng = np.random.default_rng(0)
    real, one = rng.standard_normal((50, 8)), rng.standard_normal((1, 8))
    copies = np.repeat(one, 2000, axis=0)
    assert (neighbour_radii(copies, 3) == 0).all()
    apart = precision_recall(copies, real)
    inside = np.linalg.norm(real - one, axis=1) <= neighbour_radii(real, 3)
    assert (apart.precision, apart.recall) == (float(inside.any()), 0.0)
    assert density_coverage(copies, real).density == pytest.approx(
        np.sum(np.linalg.norm(real - one, axis=1) <= neighbour_radii(real, 5)) / 5
    )
    near = one + 1e-7 * rng.standard_normal((1000, 8))
    within = np.sort(np.linalg.norm(near[:40, None] - near[None], axis=2), axis=1)[:, 3]
    np.testing.assert_allclose(neighbour_radii(near, 3)[:40], within, rtol=1e-12)


def test_density_and_coverage_by_definition(feats):
    fake, real, k = feats["a"][:60].astype(np.float64), feats["b"][:50].astype(np.float64), 5
    within = np.linalg.norm(real[:, None] - real[None], axis=-1)
    radii = np.sort(within, axis=1)[:, k]
    inside = np.linalg.norm(fake[:, None] - real[None], axis=-1) <= radii[None]
    result = density_coverage(fake, real, k)
    assert result.density == pytest.approx(inside.sum() / (k * 60))
    assert result.coverage == pytest.approx(inside.any(axis=0).mean())


def test_density_and_coverage_of_the_same_law():
    draws = np.random.default_rng(0).standard_normal((2, 1000, 4))
    result = density_coverage(draws[0], draws[1])
    assert result.density == pytest.approx(1.0, abs=0.1)
    assert result.coverage == pytest.approx(1.0 - 0.5**5, abs=0.03)
