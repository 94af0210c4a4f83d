import numpy as np
import pytest

from pds_jax.metrics import FeatureMoments, frechet_distance, frechet_distance_from_features
from pds_jax.types import PdsError


def cases(feats):
    a, b, c, d = (feats[name] for name in "abcd")

    def blank(x):
        return np.where(np.arange(64)[None] < 8, np.float32(0), x)

    def twice(x):
        return np.concatenate([x[:, :32], x[:, :32]], axis=1)

    return {
        "a_b": (a, b),
        "c_d": (c, d),
        "a_a": (a, a),
        "c_c": (c, c),
        "n_below_dims": (a[:40], b[:48]),
        "one_n_below_dims": (a[:40], b),
        "duplicated_columns": (twice(a), twice(b)),
        "constant_columns_both": (blank(a), blank(b)),
        "constant_columns_first_only": (blank(a), b),
        "two_and_three_samples": (a[:2], b[:3]),
        "zero_covariance_both": (np.repeat(a[:1], 5, 0), np.repeat(b[:1], 6, 0)),
        "zero_covariance_first_only": (np.repeat(a[:1], 5, 0), b),
        "one_dimension": (a[:, :1], b[:, :1]),
    }


def from_moments(x, y):
    first, second = FeatureMoments.of(x), FeatureMoments.of(y)
    return frechet_distance(first.mean, first.covariance, second.mean, second.covariance)


def test_every_recorded_case(feats, numbers):
    """Better than the originals where covariances are singular: compared with the exact value."""
    recorded = numbers["fid"]["cases"]
    assert set(cases(feats)) == set(recorded) - {"one_sample"}
    for name, (x, y) in cases(feats).items():
        exact = float(recorded[name].get("exact_50_digits", recorded[name]["formula_float64"]["value"]))
        assert from_moments(x, y) == pytest.approx(exact, rel=1e-12, abs=1e-12), name
        assert frechet_distance_from_features(x, y) == pytest.approx(exact, rel=1e-12, abs=1e-12), name


def test_stored_statistics(archive, numbers):
    stats = archive("stats.npz")
    for pair, tolerance in (("a_b", 1e-12), ("b_a", 1e-12), ("c_d", 1e-8)):
        x, y = pair.split("_")
        value = frechet_distance(stats[f"mu_{x}"], stats[f"sigma_{x}"], stats[f"mu_{y}"], stats[f"sigma_{y}"])
        assert value == pytest.approx(numbers["fid"]["from_stored_statistics"][pair]["torch_fidelity"], rel=tolerance)


def test_commuting_covariances_have_a_closed_form():
    one, two = np.array([4.0, 1.0, 0.25]), np.array([1.0, 9.0, 0.0])
    value = frechet_distance(np.zeros(3), np.diag(one), np.ones(3), np.diag(two))
    assert value == pytest.approx(3.0 + np.square(np.sqrt(one) - np.sqrt(two)).sum(), rel=1e-14)


def test_moments_do_not_depend_on_blocks(feats, archive):
    stats = archive("stats.npz")
    for size in (1, 7, 600):
        moments = FeatureMoments.empty(64)
        for start in range(0, 600, size):
            moments.add(feats["a"][start : start + size])
        assert moments.count == 600
        np.testing.assert_allclose(moments.mean, stats["mu_a"], rtol=1e-13)
        np.testing.assert_allclose(moments.covariance, stats["sigma_a"], rtol=1e-11, atol=1e-15)


def test_moments_survive_a_large_mean():
    """Sums of squares minus n·mean² would have lost all digits here."""
    noise = np.random.default_rng(0).standard_normal((5000, 3)).astype(np.float32)
    shifted = noise.astype(np.float64) + 1e6
    moments = FeatureMoments.empty(3)
    for start in range(0, 5000, 64):
        moments.add(shifted[start : start + 64])
    np.testing.assert_allclose(moments.covariance, np.cov(noise.astype(np.float64), rowvar=False), atol=1e-9)


def test_bad_input_is_named(feats):
    a = feats["a"]
    eye, zero = np.eye(3), np.zeros(3)
    with pytest.raises(PdsError, match="at least 2"):
        _ = FeatureMoments.of(a[:1]).covariance
    with pytest.raises(PdsError, match="at least 2"):
        frechet_distance_from_features(a[:1], a)
    with pytest.raises(PdsError, match="different extractors"):
        frechet_distance(zero, eye, np.zeros(2), np.eye(2))
    with pytest.raises(PdsError, match="second statistics hold NaN"):
        frechet_distance(zero, eye, zero, eye * np.nan)
    with pytest.raises(PdsError, match="not symmetric"):
        frechet_distance(zero, eye + np.triu(np.ones((3, 3))), zero, eye)
    with pytest.raises(PdsError, match="eigenvalue -1"):
        frechet_distance(zero, np.diag([1.0, 1.0, -1.0]), zero, eye)
    with pytest.raises(PdsError, match=r"must be \(D,\) and \(D, D\)"):
        frechet_distance(zero, np.eye(2), zero, eye)
    with pytest.raises(PdsError, match="64 and 63 features"):
        frechet_distance_from_features(a, a[:, 1:])
    broken = a.copy()
    broken[17, 3] = np.inf
    with pytest.raises(PdsError, match="not finite at image 17"):
        FeatureMoments.of(broken)
    with pytest.raises(PdsError, match="cannot join"):
        FeatureMoments.empty(3).add(a)
