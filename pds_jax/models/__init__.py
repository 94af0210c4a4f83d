"""Networks of score_sde, EDM and guided-diffusion in flax.linen; exact scores are in ``analytic``."""

from pds_jax.models import adm, ddpm, ncsnpp, ncsnv2, songunet
from pds_jax.models.utils import MODELS, create_model, get_model, get_sigmas, init_model, register_model

__all__ = [
    "MODELS",
    "adm",
    "create_model",
    "ddpm",
    "get_model",
    "get_sigmas",
    "init_model",
    "ncsnpp",
    "ncsnv2",
    "register_model",
    "songunet",
]
