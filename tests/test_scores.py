"""Any callable is a score function: plain functions, linen, NNX and Equinox modules, PyTorch; keys old and new."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pds_jax import keys as keys_lib
from pds_jax import sampling
from pds_jax.scores import as_pytree
from pds_jax.sde_lib import VESDE
from pds_jax.types import PdsError

SHAPE = (4, 4, 2)
SDE = VESDE(0.01, 5.0, 5)
SAMPLER = sampling.get_pc_sampler(SDE, SHAPE, eps=1e-3)
KEYS = sampling.image_keys(range(2))


def plain(x, t):
    return -x / (0.25 + SDE.std(t)[:, None, None, None] ** 2)


def scaled(module_output, t):
    return module_output / SDE.std(t)[:, None, None, None]


def test_a_plain_function_runs_and_replays():
    x = sampling.run(SAMPLER, KEYS, plain).x
    np.testing.assert_array_equal(x, sampling.run(SAMPLER, KEYS, jax.tree_util.Partial(plain)).x)
    noise = np.random.default_rng(0).normal(size=(11, 2, *SHAPE)).astype(np.float32)
    assert np.isfinite(sampling.replay(SAMPLER, noise, plain)[0]).all()
    with pytest.raises(PdsError, match=r"noise is of images \(4, 2, 2\), the sampler makes \(4, 4, 2\)"):
        sampling.replay(SAMPLER, noise.reshape(11, 4, 4, 2, 2), plain)
    with pytest.raises(PdsError, match="a score function is a callable"):
        sampling.run(SAMPLER, KEYS, 3)


def linen():
    from flax import linen as nn

    net = nn.Conv(2, (3, 3))
    variables = net.init(jax.random.key(0), jnp.zeros((1, *SHAPE)))
    return lambda x, t: scaled(net.apply(variables, x), t)


def nnx():
    from flax import nnx

    net = nnx.Conv(2, 2, (3, 3), rngs=nnx.Rngs(0))
    return lambda x, t: scaled(net(x), t)


def equinox():
    import equinox

    class Net(equinox.Module):
        weight: jax.Array
        activation: object = jax.nn.tanh  # a leaf that is no array

        def __call__(self, x, t):
            return -scaled(self.activation(x @ self.weight), t)

    return Net(jnp.eye(2))


@pytest.mark.parametrize("make", [linen, nnx, equinox])
def test_modules_of_every_library_are_plain_callables(make):
    score = make()
    x = sampling.run(SAMPLER, KEYS, score).x
    assert np.isfinite(x).all()
    jitted = jax.jit(lambda keys: SAMPLER(keys, score)[0])(KEYS)
    np.testing.assert_allclose(x, jitted, atol=2e-4 * np.abs(x).max())


def test_an_equinox_module_is_an_argument_so_new_weights_compile_nothing():
    traced = []

    @jax.jit
    def run(score, x, t):
        traced.append(1)
        return score(x, t)

    x, t = jnp.ones((1, *SHAPE)), jnp.ones(1)
    net = equinox()
    a = run(as_pytree(net), x, t)
    b = run(as_pytree(jax.tree.map(lambda leaf: 2 * leaf if hasattr(leaf, "dtype") else leaf, net)), x, t)
    assert len(traced) == 1 and not np.array_equal(a, b)


def test_a_pytorch_module_by_pure_callback():
    """The recipe of docs/recipes.md: NHWC to NCHW on the host, one network for all images."""
    torch = pytest.importorskip("torch")
    net = torch.nn.Conv2d(2, 2, 3, padding=1)

    def on_host(x, t):
        with torch.no_grad():
            out = net(torch.from_numpy(np.array(x, np.float32).transpose(0, 3, 1, 2)))
        return np.ascontiguousarray(out.numpy().transpose(0, 2, 3, 1) / np.asarray(SDE.std(t))[:, None, None, None])

    def score(x, t):
        return jax.pure_callback(on_host, jax.ShapeDtypeStruct(x.shape, jnp.float32), x, t)

    x = sampling.run(SAMPLER, KEYS, score).x
    weight = jnp.asarray(net.weight.detach().numpy().transpose(2, 3, 1, 0))
    bias = jnp.asarray(net.bias.detach().numpy())

    def same(x, t):
        out = jax.lax.conv_general_dilated(x, weight, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return scaled(out + bias[None, None, None], t)

    np.testing.assert_allclose(x, sampling.run(SAMPLER, KEYS, same).x, atol=1e-3 * np.abs(x).max())


def test_keys_of_both_styles_give_the_same_images():
    old = jnp.stack([jax.random.key_data(key) for key in KEYS])
    np.testing.assert_array_equal(sampling.run(SAMPLER, old, plain).x, sampling.run(SAMPLER, KEYS, plain).x)
    for bad in (jax.random.key(0), jax.random.PRNGKey(0), jnp.zeros((2, 3), jnp.uint32), 7):
        with pytest.raises(PdsError, match="keys must be"):
            sampling.run(SAMPLER, bad, plain)


def test_images_do_not_depend_on_jaxs_default_generator():
    expected = jax.random.key_data(keys_lib.image_keys([3]))
    x = sampling.run(SAMPLER, KEYS, plain).x
    before = jax.config.jax_default_prng_impl, jax.config.jax_threefry_partitionable
    try:
        jax.config.update("jax_default_prng_impl", "rbg")
        jax.config.update("jax_threefry_partitionable", False)
        np.testing.assert_array_equal(jax.random.key_data(keys_lib.image_keys([3])), expected)
        np.testing.assert_array_equal(sampling.run(SAMPLER, KEYS, plain).x, x)
    finally:
        jax.config.update("jax_default_prng_impl", before[0])
        jax.config.update("jax_threefry_partitionable", before[1])


def test_times_and_tables_have_the_length_n():
    assert len(SAMPLER.times) == 5 and len(SAMPLER.table) == int(SAMPLER.nfe) == 10
    assert len(SDE.discrete_sigmas) == 5
    text = str(SAMPLER.table)
    assert text.count("langevin") == text.count("reverse_diffusion") == 5 and "10 evaluations in 5 iterations" in text
    heun = sampling.get_pc_sampler(SDE, SHAPE, "heun", "none", grid="edm", eps=1e-3)
    assert int(heun.nfe) == 9 == len(heun.table)
