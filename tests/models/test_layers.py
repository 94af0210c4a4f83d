"""Shared layers against recorded numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pds_jax.models import ddpm, layers
from pds_jax.types import PdsError


@pytest.mark.parametrize("dim", [8, 9, 128])
def test_timestep_embedding_is_score_sdes(golden, dim):
    with np.load(golden / "score_sde/units.npz") as z:
        got = layers.get_timestep_embedding(jnp.asarray(z["ts"]), dim)
        # sin of an angle near 1000 keeps 1000 x 6e-8 of float32.
        np.testing.assert_allclose(got, z[f"get_timestep_embedding.{dim}"], atol=1e-4)


@pytest.mark.parametrize("dim", [8, 9])
def test_timestep_embedding_is_the_torch_codes(golden, dim):
    with np.load(golden / "torch/models/layers.npz") as z:
        got = layers.get_timestep_embedding(jnp.asarray(z["t"]), dim)
        np.testing.assert_allclose(got, z[f"timestep_embedding_{dim}"], atol=1e-4)


def test_timestep_embedding_formula():
    t = np.array([0, 3, 999])
    omega = 10000.0 ** (-np.arange(4) / 3)
    want = np.concatenate([np.sin(t[:, None] * omega), np.cos(t[:, None] * omega)], axis=1)
    np.testing.assert_allclose(layers.get_timestep_embedding(jnp.asarray(t), 8), want, atol=1e-4)
    with pytest.raises(PdsError, match="at least 4"):
        layers.get_timestep_embedding(jnp.asarray(t), 3)


def test_attention_formula(rng):
    q, k, v = (rng.standard_normal((2, 3, 4, 8)) for _ in range(3))
    logits = np.einsum("bic,bjc->bij", q.reshape(2, 12, 8), k.reshape(2, 12, 8)) / np.sqrt(8)
    weights = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    want = (weights @ v.reshape(2, 12, 8)).reshape(2, 3, 4, 8)
    got = layers.attention(*(jnp.asarray(a, jnp.float32) for a in (q, k, v)))
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_nin_is_a_linear_map_of_the_channels(rng):
    x = jnp.asarray(rng.standard_normal((2, 3, 4, 5)), jnp.float32)
    nin = layers.NIN(6)
    params = nin.init(jax.random.key(0), x)["params"]
    params["b"] = jnp.arange(6, dtype=jnp.float32)
    want = np.asarray(x) @ np.asarray(params["W"]) + np.arange(6)
    np.testing.assert_allclose(nin.apply({"params": params}, x), want, atol=1e-6)


@pytest.mark.parametrize("scale", [0.0, 0.1, 1.0])
def test_default_init_is_uniform_with_the_variance_of_its_scale(scale):
    w = layers.default_init(scale)(jax.random.key(0), (3, 3, 40, 24), jnp.float32)
    std = np.sqrt(max(scale, 1e-10) / (9 * (40 + 24) / 2))
    np.testing.assert_allclose(w.std(), std, rtol=0.02)
    assert std * 1.7 < np.abs(w).max() <= std * np.sqrt(3) * (1 + 1e-6)


def test_ddpm_downsampling_pads_right_and_bottom(golden):
    with np.load(golden / "score_sde/units.npz") as z:
        params = {"Conv_0": {"kernel": z["down.kernel"], "bias": np.zeros(8, np.float32)}}
        got = ddpm.Downsample(with_conv=True).apply({"params": params}, jnp.asarray(z["attn.x"]))
        np.testing.assert_allclose(got, z["down.out"], atol=1e-6)
    with np.load(golden / "torch/models/layers.npz") as z:
        params = {"Conv_0": {"kernel": z["ddpm_down_w"].transpose(2, 3, 1, 0), "bias": z["ddpm_down_b"]}}
        got = ddpm.Downsample(with_conv=True).apply({"params": params}, jnp.asarray(z["x"].transpose(0, 2, 3, 1)))
        np.testing.assert_allclose(got, z["ddpm_down_out"].transpose(0, 2, 3, 1), atol=1e-6)


def test_lrelu_has_score_sdes_slope():
    np.testing.assert_allclose(layers.get_act("lrelu")(jnp.float32(-2.0)), -0.4, rtol=1e-6)


def test_unknown_activation_names_the_known_ones():
    with pytest.raises(PdsError, match="elu, lrelu, relu, swish"):
        layers.get_act("gelu")


@pytest.mark.parametrize(("channels", "groups"), [(4, 1), (8, 2), (128, 32), (256, 32)])
def test_group_count(channels, groups):
    assert layers.group_count(channels) == groups


@pytest.mark.parametrize("channels", [3, 11, 132])
def test_widths_that_do_not_split_are_refused(channels):
    with pytest.raises(PdsError, match=f"{channels} channels"):
        layers.group_count(channels)
