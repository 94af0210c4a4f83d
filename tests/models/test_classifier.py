"""The small classifier: its shapes, its two forms, and the facts that describe it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pds_jax.models.classifier import Classifier, from_facts
from pds_jax.types import PdsError

FACTS = {
    "widths": [4, 8], "pools": [True, False], "features": 5, "classes": 3, "normalised": True,
    "noise_conditional": False,
}  # fmt: skip
X = jax.random.uniform(jax.random.key(0), (2, 8, 8, 1))


def test_facts_describe_the_network():
    model = from_facts(FACTS)
    params = model.init(jax.random.key(1), X)["params"]
    logits, features = model.apply({"params": params}, X)
    assert logits.shape == (2, 3) and features.shape == (2, 5) and float(features.min()) >= 0
    assert set(params) == {"conv_0", "norm_0", "conv_1", "norm_1", "features", "logits"}
    with pytest.raises(PdsError, match="describes no classifier"):
        from_facts({"widths": [4]})


def test_only_the_noise_conditional_form_looks_at_the_noise_level():
    for conditional in (False, True):
        model = Classifier(widths=(4,), pools=(True,), noise_conditional=conditional)
        params = model.init(jax.random.key(1), X, jnp.ones(2))["params"]
        low, high = (np.asarray(model.apply({"params": params}, X, jnp.full(2, level))[0]) for level in (0.1, 1.0))
        assert np.array_equal(low, high) != conditional


def test_normalised_features_do_not_change_with_the_contrast_of_the_first_layer():
    """Group normalisation after the first convolution removes the scale of its weights."""
    model = from_facts(FACTS)
    params = model.init(jax.random.key(1), X)["params"]
    scaled = jax.tree.map(lambda leaf: leaf, params)
    scaled["conv_0"] = jax.tree.map(lambda leaf: 7 * leaf, params["conv_0"])
    a, b = (model.apply({"params": p}, X)[1] for p in (params, scaled))
    np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-4)
