"""ADM and SongUNet beyond the recorded outputs: packing of q, k, v, dtypes, recomputation, labels, refusals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recorded_networks import fast_jit, random_params

from pds_jax.models import adm
from pds_jax.models.adm import ADM, ADMClassifier, cos_sin_embedding, heads_attention, split_heads
from pds_jax.models.labels import label_rows
from pds_jax.models.songunet import SongUNet
from pds_jax.types import PdsError

SMALL = {"nf": 32, "ch_mult": (1, 2), "num_res_blocks": 1, "attn_resolutions": (4,), "label_dim": 3}
TINY = {**SMALL, "ch_mult": (1,), "attn_resolutions": ()}
MODELS = {
    "adm": functools.partial(ADM, **TINY, heads=2),
    "songunet": functools.partial(SongUNet, **{**TINY, "nf": 8}, embedding_type="positional", augment_dim=2),
}


@pytest.fixture
def inputs(rng):
    x = jnp.asarray(rng.normal(size=(2, 8, 8, 3)), jnp.float32)
    return x, jnp.asarray([0.3, 700.0], jnp.float32), jnp.eye(3, dtype=jnp.float32)[:2]


def test_orders_are_three_packings_of_the_same_attention(rng):
    q, k, v = (rng.normal(size=(1, 2, 2, 2, 4)).astype(np.float32) for _ in range(3))
    packed = {
        "new": np.stack([q, k, v], axis=-3),
        "legacy": np.stack([q, k, v], axis=-2),
        "interleaved": np.stack([q, k, v], axis=-1),
    }
    assert set(packed) == set(adm.ATTENTION_ORDERS)
    for order, array in packed.items():
        for part, want in zip(split_heads(jnp.asarray(array.reshape(1, 2, 2, 24)), 2, order), (q, k, v), strict=True):
            np.testing.assert_array_equal(part, want)


def test_heads_attend_each_by_itself(rng):
    q, k, v = (rng.normal(size=(1, 2, 3, 2, 4)) for _ in range(3))
    found = heads_attention(*(jnp.asarray(a, jnp.float32) for a in (q, k, v)))
    for head in range(2):
        a, b, c = (array[0, :, :, head].reshape(6, 4) for array in (q, k, v))
        weights = np.exp(a @ b.T / 2)
        want = weights / weights.sum(axis=1, keepdims=True) @ c
        np.testing.assert_allclose(found[0, :, :, 4 * head : 4 * head + 4].reshape(6, 4), want, rtol=1e-4, atol=1e-5)


def test_embedding_is_the_formula():
    t, dim = np.asarray([0.0, 3.5, 999.0]), 9
    omega = 10000.0 ** (-np.arange(4) / 4)
    want = np.concatenate([np.cos(t[:, None] * omega), np.sin(t[:, None] * omega), np.zeros((3, 1))], axis=1)
    np.testing.assert_allclose(cos_sin_embedding(jnp.asarray(t, jnp.float32), dim), want, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_is_near_and_labels_matter(name, inputs):
    x, t, labels = (jnp.concatenate([a, a]) for a in inputs)
    labels = labels.at[2:].set(labels[::-1][:2])  # the same images and times, once more, for other classes
    params = random_params(MODELS[name](), x, t, scale=0.3)
    run = lambda m: np.asarray(fast_jit(lambda p: m.apply({"params": p}, x, t, False, labels))(params))  # noqa: E731
    exact, half = run(MODELS[name]()), run(MODELS[name](dtype=jnp.bfloat16))
    assert half.dtype == np.float32 and exact.shape == x.shape
    assert 0 < np.abs(half - exact).max() < 0.1 * np.abs(exact).max()
    assert np.abs(exact[:2] - exact[2:]).max() > 1e-3 * np.abs(exact).max()


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_recomputation_changes_neither_parameters_nor_gradients(name, inputs):
    x, t, labels = inputs
    params = random_params(MODELS[name](), x, t, scale=0.1)

    def gradient(model):
        rngs = {"dropout": jax.random.key(0)}
        loss = lambda p: jnp.sum(model.apply({"params": p}, x, t, True, labels, rngs=rngs) ** 2)  # noqa: E731
        return fast_jit(jax.grad(loss))(params)

    plain, again = gradient(MODELS[name]()), gradient(MODELS[name](remat=True))
    size = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * size), plain, again)


def test_below_64_channels_edm_s_attention_is_off(inputs):
    x, t, _ = inputs
    options = {**SMALL, "label_dim": 0, "attn_resolutions": (8, 4)}
    tree = jax.eval_shape(lambda: ADM(**options, head_channels=64).init(jax.random.key(0), x, t, False)["params"])
    # Of 64 channels: the level of 4x4, one block on the way down, one in the middle and two on the way up.
    assert sum(name.startswith("ADMAttention") for name in tree) == 4


@pytest.mark.parametrize("pool", adm.POOLS)
def test_classifiers_pool_to_logits(pool, inputs):
    x, t, _ = inputs
    model = ADMClassifier(**{**TINY, "label_dim": 0}, out_channels=7, head_channels=32, pool=pool)
    params = random_params(model, x, t, scale=0.1)
    out = fast_jit(lambda p: model.apply({"params": p}, x, t, False))(params)
    assert out.shape == (2, 7) and out.dtype == jnp.float32 and bool(jnp.isfinite(out).all())


def test_label_dropout_acts_in_training_only(inputs):
    x, t, labels = inputs
    model = ADM(**TINY, heads=2, label_dropout=0.999999)
    params = random_params(model, x, t, scale=0.1)
    run = fast_jit(lambda p, y: model.apply({"params": p}, x, t, True, y, rngs={"dropout": jax.random.key(0)}))
    np.testing.assert_array_equal(run(params, labels), run(params, 0 * labels))


def test_bad_options_and_labels_are_named(inputs):
    x, t, labels = inputs
    with pytest.raises(PdsError, match="attention_order"):
        ADM(**SMALL, attention_order="old")
    with pytest.raises(PdsError, match="pool"):
        ADMClassifier(**SMALL, out_channels=2, pool="max")
    for options, images, message in [
        ({"nf": 16}, x, "32 groups"),
        ({"heads": 5}, x, "heads"),
        ({}, x[:, :7], "multiples"),
    ]:
        model = ADM(**{**SMALL, "heads": 2, **options})
        with pytest.raises(PdsError, match=message):
            jax.eval_shape(lambda model=model, images=images: model.init(jax.random.key(0), images, t, False))
    with pytest.raises(PdsError, match="one-hot"):
        label_rows(jnp.asarray([1, 2]), 2, 3)
