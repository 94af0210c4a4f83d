"""What has to be set before JAX makes its first array: the persistent compilation cache, and the CPU's scheduler."""

from __future__ import annotations

import importlib.util
import logging
import os

import jax
import jaxlib

_SCHEDULER = "--xla_cpu_scheduler_type=CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"
_PLUGINS = ("libtpu", "jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm7_plugin", "jax_rocm60_plugin")


def use_compilation_cache(folder: str | None) -> None:
    """Keep compiled programs between runs; called before any array exists.

    Args:
      folder: where; None for the user's cache folder, empty to turn it off.
    """
    if folder == "":
        return
    default = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "pds_jax", "xla")
    jax.config.update("jax_compilation_cache_dir", folder or default)
    # Else absl prints a line for every kind of device that is not there.
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.WARNING)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def order_for_memory() -> None:
    """Let XLA's CPU backend order a program for little memory; called before any array exists.

    A network of 1024x1024 pixels then needs a tenth of the temporary memory; no difference in speed was measured. XLA
    stops the process at a flag that it does not know, so nothing is set for a jaxlib that was not tried, where
    an accelerator's plugin would read the flag too, nor where the user's XLA_FLAGS choose a scheduler.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    tried = jaxlib.__version__.startswith("0.10.")
    alone = getattr(jax.config, "jax_platforms", None) == "cpu" or not any(map(importlib.util.find_spec, _PLUGINS))
    if tried and alone and "xla_cpu_scheduler_type" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {_SCHEDULER}".strip()
