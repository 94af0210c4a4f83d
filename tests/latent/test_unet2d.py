import jax
import jax.numpy as jnp
import numpy as np
import pytest
from latent_cases import UNETS, from_torch, libraries, load_unet, make_unet, normal, relative, to_torch


def both(folder, kind, size=(8, 8), dtype=jnp.float32, limit=1 << 30, **fields):
    """Outputs of our network and of diffusers' on the same weights."""
    torch, _, _ = libraries()
    theirs = make_unet(kind, **fields)
    theirs.save_pretrained(folder)
    model, params = load_unet(folder, dtype, limit)
    x, t = normal(1, 2, *size, model.sizes.in_channels), np.asarray([3.0, 901.0], np.float32)
    width = model.sizes.context_width
    context = None if width is None else normal(2, 2, 5, width)
    ours = jax.jit(model.apply)({"params": params}, x, t, context)
    with torch.no_grad():
        more = () if context is None else (to_torch(context),)
        return np.asarray(ours), from_torch(theirs(to_torch(x), torch.from_numpy(t), *more).sample)


@pytest.mark.parametrize("kind", ["sd1", *(pytest.param(k, marks=pytest.mark.slow) for k in UNETS if k != "sd1")])
def test_output_equals_diffusers(tmp_path, kind):
    ours, theirs = both(tmp_path, kind)
    assert ours.dtype == np.float32
    assert relative(ours, theirs) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("size", [(7, 8), (10, 6), (5, 9)])
def test_sizes_that_cannot_be_halved_equal_diffusers(tmp_path, size):
    ours, theirs = both(tmp_path, "sd1", size=size)
    assert relative(ours, theirs) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("limit", [4 * 2 * 2 * 64 * 5, 1])
def test_attention_in_slices_changes_nothing(tmp_path, limit):
    ours, theirs = both(tmp_path, "sd1", limit=limit)
    assert relative(ours, theirs) < 1e-5


@pytest.mark.slow
def test_bfloat16_gives_float32_near_the_float32_network(tmp_path):
    ours, theirs = both(tmp_path, "sd1", dtype=jnp.bfloat16)
    assert ours.dtype == np.float32
    assert 1e-4 < relative(ours, theirs) < 0.05
