"""What the recorded cases of score_sde (NHWC) and of the released PDS code (NCHW) have in common."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from pds_jax import preconditioner
from pds_jax.sde_lib import VESDE, VPSDE, subVPSDE

SDES = {"vesde": VESDE, "vpsde": VPSDE, "subvpsde": subVPSDE, "ve": VESDE, "vp": VPSDE, "subvp": subVPSDE}


@functools.cache
def load(path):
    with np.load(path) as data:
        return dict(data)


def nhwc(x):
    return np.moveaxis(x, -3, -1)


def relative(a, b):
    """Largest difference over the largest value."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.abs(a - b).max() / np.abs(b).max()


def worst_sample(a, b):
    """The worst :func:`relative` of the samples."""
    return max(relative(x, y) for x, y in zip(a, b, strict=True))


@jax.tree_util.register_pytree_node_class
class GaussianScore:
    """s = −(x − m μ)/(m² V + std²), with the m and std of the SDE or of a discrete model's table."""

    def __init__(self, sde, mean, variance, table=None):
        self.leaves = (sde, mean, variance, table)

    def tree_flatten(self):
        return self.leaves, None

    @classmethod
    def tree_unflatten(cls, _, leaves):
        return cls(*leaves)

    def __call__(self, x, t):
        sde, mean, variance, table = self.leaves
        m, std = (sde.mean_scale(t), sde.std(t)) if table is None else (v[self._label(t)] for v in table)
        m, std = m[:, None, None, None], std[:, None, None, None]
        return -(x - m * mean[None]) / (m * m * variance + std * std)

    def _label(self, t):
        return jnp.round(t * jnp.float32(self.leaves[0].N - 1)).astype(jnp.int32)


def score_sde_score(data, sde, discrete=False):
    """The score of the recorded score_sde cases; discrete networks take m and std from the table of the level."""
    table = None
    if discrete and isinstance(sde, VESDE):
        table = jnp.ones_like(jnp.asarray(sde.discrete_sigmas)), jnp.asarray(sde.discrete_sigmas)
    elif discrete:
        table = jnp.asarray(sde.sqrt_alphas_cumprod), jnp.asarray(sde.sqrt_1m_alphas_cumprod)
    return GaussianScore(sde, jnp.asarray(data["m"]), jnp.asarray(data["s2"]), table)


def pds_score(golden, sde):
    """The score of the recorded PDS cases: data in [0, 1] for VE, in [-1, 1] otherwise."""
    data = load(golden / "torch" / "pds" / "gauss.npz")
    mean, variance = (jnp.asarray(nhwc(data[name])) for name in ("mu", "var"))
    if not isinstance(sde, VESDE):
        mean, variance = 2 * mean - 1, 4 * variance
    return GaussianScore(sde, mean, variance[None])


def pds_mask(golden, name):
    """M of a recorded case from the raw masks: "none", "freq", "space" or "both", alpha 5."""
    pds = golden / "torch" / "pds"
    freq = pds / "freq_mask.npy" if name in ("freq", "both") else None
    space = pds / "space_mask.npy" if name in ("space", "both") else None
    return preconditioner.from_masks(freq, space, 5.0)
