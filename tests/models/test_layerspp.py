"""Layers of NCSN++ against recorded numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recorded_networks import fast_jit

from configs.ve import cifar10_ncsnpp_continuous
from pds_jax.models import create_model, init_model, layers, layerspp
from pds_jax.models.layers import get_act
from pds_jax.types import PdsError


def attention_params(z):
    names = [key for key in z.files if key.startswith("attn.") and key.count(".") == 2]
    params = {}
    for key in names:
        _, layer, leaf = key.split(".")
        params.setdefault(layer, {})["scale" if leaf == "weight" else leaf] = z[key]
    return params


@pytest.mark.parametrize("rescale", [False, True])
def test_attention_block_is_score_sdes(golden, rescale):
    with np.load(golden / "score_sde/units.npz") as z:
        block = layerspp.AttnBlockpp(skip_rescale=rescale)
        got = fast_jit(block.apply)({"params": attention_params(z)}, z["attn.x"])
        np.testing.assert_allclose(got, z[f"attn.out_skip_rescale{int(rescale)}"], atol=1e-5)


def test_attention_block_is_the_torch_codes(golden):
    with np.load(golden / "torch/models/layers.npz") as z:
        block = layerspp.AttnBlockpp(skip_rescale=True)
        got = fast_jit(block.apply)({"params": attention_params(z)}, z["attn_x"].transpose(0, 2, 3, 1))
        np.testing.assert_allclose(got, z["attn_out"].transpose(0, 2, 3, 1), atol=1e-5)


def test_fourier_features_are_the_originals(golden):
    with np.load(golden / "score_sde/units.npz") as z, np.load(golden / "torch/models/layers.npz") as y:
        cases = [(z["fourier.W"], z["fourier.sigma"], z["fourier.out"])]
        cases.append((y["fourier_W"], y["fourier_sigma"], y["fourier_out"]))
    for w, sigma, want in cases:
        layer = layerspp.GaussianFourierProjection(len(w))
        got = layer.apply({"params": {"W": w}}, jnp.log(jnp.asarray(sigma)))
        # Angles reach 2π·40·7: float32 keeps 1e-4 of them.
        np.testing.assert_allclose(got, want, atol=5e-4)


def test_fourier_frequencies_do_not_train():
    layer = layerspp.GaussianFourierProjection(4, scale=16.0)
    x = jnp.asarray([0.3, -1.0])
    params = layer.init(jax.random.key(0), x)
    grads = jax.grad(lambda p: layer.apply(p, x).sum())(params)
    np.testing.assert_array_equal(grads["params"]["W"], np.zeros(4))


def test_group_normalisation_is_score_sdes(golden):
    with np.load(golden / "score_sde/units.npz") as z:
        x = z["attn.x"]
        grouped = x.reshape(2, 16, 2, 4).astype(np.float64)
        mean, var = grouped.mean(axis=(1, 3), keepdims=True), grouped.var(axis=(1, 3), keepdims=True)
        formula = ((grouped - mean) / np.sqrt(var + 1e-6)).reshape(x.shape)
        scale, bias = z["attn.GroupNorm_0.scale"], z["attn.GroupNorm_0.bias"]
        # The block normalises with two groups of eight channels, and so does the recorded layer.
        np.testing.assert_allclose(formula * scale + bias, z["groupnorm.out_groups2_eps1e-6"], atol=1e-5)


@pytest.mark.parametrize("method", ["sum", "cat"])
def test_combine_puts_the_pyramid_first(method):
    x, y = jnp.ones((1, 2, 2, 3)), jnp.full((1, 2, 2, 4), 2.0)
    kernel = jnp.zeros((1, 1, 3, 4)).at[0, 0, 0, 0].set(5.0)
    params = {"Conv_0": {"kernel": kernel, "bias": jnp.zeros(4)}}
    got = layerspp.Combine(method).apply({"params": params}, x, y)[0, 0, 0]
    want = [7, 2, 2, 2] if method == "sum" else [5, 0, 0, 0, 2, 2, 2, 2]
    np.testing.assert_array_equal(got, want)


def test_rescaling_keeps_the_variance(rng):
    x, y = rng.standard_normal((2, 4, 8, 8, 16)).astype(np.float32)
    np.testing.assert_allclose(layerspp.rescaled_sum(x, y, True).std(), 1, atol=0.05)
    np.testing.assert_allclose(layerspp.rescaled_sum(x, y, False).std(), np.sqrt(2), atol=0.05)


@pytest.mark.parametrize("fir", [False, True])
@pytest.mark.parametrize("with_conv", [False, True])
def test_resampling_layers_have_score_sdes_leaves(fir, with_conv):
    x = jnp.ones((1, 4, 6, 4))
    for cls, shape in ((layerspp.Upsample, (1, 8, 12, 8)), (layerspp.Downsample, (1, 2, 3, 8))):
        layer = cls(out_ch=8, with_conv=with_conv, fir=fir)
        out, params = jax.eval_shape(lambda key, f=layer: f.init_with_output(key, x), jax.random.key(0))
        assert out.shape == (shape if with_conv else (*shape[:3], 4))
        names = jax.tree_util.tree_leaves_with_path(params.get("params", {}))
        got = {jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in names}
        leaves = {"Conv2d_0/weight", "Conv2d_0/bias"} if fir else {"Conv_0/kernel", "Conv_0/bias"}
        assert got == (leaves if with_conv else set())


def test_the_blocks_start_as_their_shortcut():
    """init_scale 0 makes the last convolution vanish, so that a new block is the identity over √2."""
    x = jax.random.normal(jax.random.key(0), (1, 4, 4, 8))
    temb = jnp.ones((1, 16))
    for cls in (layerspp.ResnetBlockBigGANpp, layerspp.ResnetBlockDDPMpp):
        block = cls(get_act("swish"), skip_rescale=True)
        out, _ = fast_jit(lambda key, f=block: f.init_with_output(key, x, temb, False))(jax.random.key(1))
        np.testing.assert_allclose(out, x / np.sqrt(2), atol=1e-4)


def test_conv2d_needs_a_direction():
    with pytest.raises(PdsError, match="exactly one"):
        layerspp.Conv2d(4, 3).init(jax.random.key(0), jnp.ones((1, 4, 4, 4)))


@pytest.mark.slow
def test_equal_blocks_are_traced_once_and_give_the_same_numbers(monkeypatch):
    """Nine blocks and five attentions, of four kinds."""
    config = cifar10_ncsnpp_continuous.get_config("runlocal,image_size=8,nf=8,ch_mult=1,num_res_blocks=3")
    config.model.attn_resolutions = (8,)
    model, params = create_model(config), init_model(jax.random.key(0), config)
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)  # nothing is initialised to zero then
    x, t = jax.random.normal(jax.random.key(1), (2, 8, 8, 3)), jnp.asarray([0.5, 2.0])
    traced = []
    for cls in (layerspp.ResnetBlockBigGANpp, layerspp.AttnBlockpp):

        def counted(self, *inputs, forward=cls.forward):
            traced.append(type(self).__name__)
            return forward(self, *inputs)

        monkeypatch.setattr(cls, "forward", counted)
    found = jax.jit(lambda params: model.apply({"params": params}, x, t, train=False))(params)
    assert sorted(traced) == ["AttnBlockpp"] + 3 * ["ResnetBlockBigGANpp"]  # down, middle, up
    with monkeypatch.context() as each:
        each.setattr(layers.Block, "__call__", lambda self, *inputs: self.forward(*inputs))
        expected = jax.jit(lambda params: model.apply({"params": params}, x, t, train=False))(params)
    assert len(traced) > 12
    np.testing.assert_array_equal(found, expected)
