"""Normalisations against recorded numbers and their formulas."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pds_jax.models import normalization
from pds_jax.types import PdsError


def test_instance_norm_plus_is_score_sdes(golden):
    with np.load(golden / "score_sde/units.npz") as z:
        params = {key: z[f"inorm.{key}"] for key in ("alpha", "gamma", "beta")}
        got = normalization.InstanceNorm2dPlus().apply({"params": params}, jnp.asarray(z["attn.x"]))
        np.testing.assert_allclose(got, z["inorm.InstanceNorm2dPlus"], atol=1e-5)


def test_variance_norm_is_score_sdes(golden):
    with np.load(golden / "score_sde/units.npz") as z:
        params = {"scale": z["inorm.gamma"]}
        got = normalization.VarianceNorm2d().apply({"params": params}, jnp.asarray(z["attn.x"]))
        np.testing.assert_allclose(got, z["inorm.VarianceNorm2d"], atol=1e-5)


def test_conditional_instance_norm_plus_is_score_sdes(golden):
    with np.load(golden / "score_sde/units.npz") as z:
        params = {"Embed_0": {"embedding": z["inorm.embedding"]}}
        norm = normalization.ConditionalInstanceNorm2dPlus(10)
        got = norm.apply({"params": params}, jnp.asarray(z["attn.x"]), jnp.asarray(z["inorm.y"]))
        np.testing.assert_allclose(got, z["inorm.ConditionalInstanceNorm2dPlus"], atol=1e-5)


def test_the_torch_code_differs_by_its_unbiased_variance_over_channels(golden):
    """There m̂ is divided by the unbiased deviation: rescaling α by √((C - 1) / C) makes both agree."""
    with np.load(golden / "torch/models/layers.npz") as z:
        x = z["inpp_x"].transpose(0, 2, 3, 1)
        c = x.shape[-1]
        params = {key: z[f"inpp_{key}"].reshape(1, 1, 1, c) for key in ("alpha", "gamma", "beta")}
        want = z["inpp_out"].transpose(0, 2, 3, 1)
    norm = normalization.InstanceNorm2dPlus()
    as_here = norm.apply({"params": params}, jnp.asarray(x))
    params["alpha"] = params["alpha"] * np.float32(np.sqrt((c - 1) / c))
    as_there = norm.apply({"params": params}, jnp.asarray(x))
    np.testing.assert_allclose(as_there, want, atol=2e-4)  # ε weighs differently
    assert np.abs(as_here - want).max() > 10 * np.abs(as_there - want).max()


def test_instance_norm_formula(rng):
    x = rng.standard_normal((2, 4, 5, 3))
    norm = normalization.InstanceNorm2d()
    variables = norm.init(jax.random.key(0), jnp.asarray(x, jnp.float32))
    assert {key: leaf.shape for key, leaf in variables["params"].items()} == {
        "scale": (1, 1, 1, 3),
        "bias": (1, 1, 1, 3),
    }
    want = (x - x.mean(axis=(1, 2), keepdims=True)) / np.sqrt(x.var(axis=(1, 2), keepdims=True) + 1e-5)
    np.testing.assert_allclose(norm.apply(variables, jnp.asarray(x, jnp.float32)), want, atol=1e-5)


class Wrapper(nn.Module):
    name_: str
    num_classes: int | None = None

    @nn.compact
    def __call__(self, x, y=None):
        return normalization.get_normalization(self.name_, num_classes=self.num_classes)(x, y)


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("GroupNorm", "GroupNorm_0"),
        ("InstanceNorm", "InstanceNorm2d_0"),
        ("InstanceNorm++", "InstanceNorm2dPlus_0"),
        ("VarianceNorm", "VarianceNorm2d_0"),
    ],
)
def test_normalisations_are_chosen_by_score_sdes_names(name, module):
    x = jnp.ones((1, 4, 4, 32))
    assert list(Wrapper(name).init(jax.random.key(0), x)["params"]) == [module]


def test_unknown_names_are_refused():
    with pytest.raises(PdsError, match="GroupNorm, InstanceNorm, InstanceNorm\\+\\+, VarianceNorm"):
        normalization.get_normalization("BatchNorm")
    with pytest.raises(PdsError, match="no conditional form"):
        normalization.get_normalization("GroupNorm", num_classes=3)
    with pytest.raises(PdsError, match="32 groups"):
        Wrapper("GroupNorm").init(jax.random.key(0), jnp.ones((1, 4, 4, 48)))
