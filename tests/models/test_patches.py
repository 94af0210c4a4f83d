"""Images as patches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recorded_networks import recorded_config

from pds_jax import models
from pds_jax.models.patches import check_patch_size, from_patches, to_patches
from pds_jax.types import PdsError


def test_a_patch_holds_its_square_of_pixels():
    x = jnp.arange(4 * 6 * 3, dtype=jnp.float32).reshape(1, 4, 6, 3)
    patches = to_patches(x, 2)
    assert patches.shape == (1, 2, 3, 12)
    np.testing.assert_array_equal(patches[0, 1, 2], x[0, 2:4, 4:6].reshape(-1))
    np.testing.assert_array_equal(from_patches(patches, 2), x)
    np.testing.assert_array_equal(to_patches(x, 1), x)


@pytest.mark.parametrize("size", [0, -2, 1.5, True, "2"])
def test_no_whole_number_is_refused(size):
    with pytest.raises(PdsError, match="model.patch_size="):
        check_patch_size(size)


def test_a_network_on_patches_refuses_sides_that_do_not_fit():
    network = recorded_config("ncsnpp_ve_cont")
    network.model.update(patch_size=2, attn_resolutions=())
    module = models.create_model(network)
    side = 2 ** (len(network.model.ch_mult) - 1)
    with pytest.raises(PdsError, match="patches of 2"):
        module.init(jax.random.key(0), jnp.zeros((1, 3 * side, 3 * side, 3)), jnp.ones(1), train=False)
