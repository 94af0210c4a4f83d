"""pds_jax: Preconditioned Diffusion Sampling for score-based generative models, in JAX/Flax.

Public names load on first use, so that ``import pds_jax`` stays light.
"""

from __future__ import annotations

import importlib
from typing import Any

from pds_jax.version import __version__

_PUBLIC = {
    "VESDE": "sde_lib",
    "VPSDE": "sde_lib",
    "subVPSDE": "sde_lib",
    "Preconditioner": "preconditioner",
    "identity": "preconditioner",
    "from_statistics": "preconditioner",
    "from_masks": "preconditioner",
    "from_radius": "preconditioner",
    "alpha_auto": "alpha",
    "Statistics": "statistics",
    "compute_statistics": "statistics",
    "estimate_sigma_max": "statistics",
    "get_score_fn": "score_fn",
    "get_pc_sampler": "sampling",
    "image_keys": "keys",
    "flat": "preconditioner",
    "get_ode_sampler": "sampling",
    "get_likelihood_fn": "likelihood",
    "PdsError": "types",
    "load": "assembly",
    "plan": "assembly",
    "draw": "assembly",
}

__all__ = ["__version__", *sorted(_PUBLIC)]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'pds_jax' has no attribute {name!r}; public names: {', '.join(__all__)}")
    return getattr(importlib.import_module(f"pds_jax.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return __all__
