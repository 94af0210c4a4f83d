"""Networks of score_sde in flax.linen, with score_sde's parameter names; exact scores are in ``analytic``."""

from pds_jax.models import ddpm, ncsnpp, ncsnv2
from pds_jax.models.utils import MODELS, create_model, get_model, get_sigmas, init_model, register_model

__all__ = [
    "MODELS",
    "create_model",
    "ddpm",
    "get_model",
    "get_sigmas",
    "init_model",
    "ncsnpp",
    "ncsnv2",
    "register_model",
]
