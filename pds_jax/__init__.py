"""pds_jax: Preconditioned Diffusion Sampling for score-based generative models, in JAX/Flax."""

from pds_jax.version import __version__

__all__ = ["__version__"]
