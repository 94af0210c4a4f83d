import numpy as np
import pytest

from pds_jax.metrics.inception_score import inception_score
from pds_jax.types import PdsError


def test_every_recorded_run(archive, numbers):
    logits = archive("logits.npz")["logits"]
    runs = {k: v for k, v in numbers["isc"]["runs"].items() if k.startswith("splits")}
    assert len(runs) == 6
    for name, run in runs.items():
        p = run["parameters"]
        result = inception_score(logits, splits=p["splits"], shuffle=p["shuffle"], seed=p.get("rng_seed", 0))
        assert result.mean == pytest.approx(run["mean"], rel=1e-12), name
        assert result.std == pytest.approx(run["std"], rel=1e-10, abs=1e-14), name
        np.testing.assert_allclose(result.scores, run["formula_float64_scores"], rtol=1e-12)


def test_edge_cases(archive, numbers):
    recorded = numbers["isc"]["edge_cases"]
    logits = archive("logits.npz")["logits"]
    assert inception_score(np.zeros((20, 40)), splits=2).mean == pytest.approx(1.0, abs=1e-14)
    for scale in (50.0, 1000.0):
        assert inception_score(scale * np.eye(40), splits=1).mean == pytest.approx(40.0, rel=1e-12)
    assert inception_score(logits, splits=len(logits)).mean == pytest.approx(1.0, abs=1e-14)
    moved = inception_score(logits + np.float32(100), shuffle=False)
    assert moved.mean == pytest.approx(recorded["logits_plus_100"]["mean"], rel=1e-12)


def test_a_class_never_seen_counts_nothing():
    """The originals compute 0 · infinity here; the limit is the number of classes that are seen."""
    assert inception_score(1000.0 * np.eye(40)[:20], splits=1).mean == pytest.approx(20.0, rel=1e-12)


def test_bad_input_is_named(archive):
    logits = archive("logits.npz")["logits"]
    with pytest.raises(PdsError, match="5 images cannot be taken in 10 splits"):
        inception_score(logits[:5])
    with pytest.raises(PdsError, match="use fewer splits"):
        inception_score(logits, splits=0)
    with pytest.raises(PdsError, match="not finite at image"):
        inception_score(np.where(np.arange(40)[None] == 1, np.nan, logits), splits=1)
