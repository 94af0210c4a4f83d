"""The persistent compilation cache."""

from __future__ import annotations

import os

import jax


def use_compilation_cache(folder: str | None) -> None:
    """Keep compiled programs between runs; called before any array exists.

    Args:
      folder: where; None for the user's cache folder, empty to turn it off.
    """
    if folder == "":
        return
    default = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "pds_jax", "xla")
    jax.config.update("jax_compilation_cache_dir", folder or default)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
