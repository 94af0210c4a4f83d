"""The cache between processes, of compiled programs and traced layouts; and XLA's flags for CPUs.

The first and the last have to be set before JAX makes its first array.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import logging
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jaxlib

from pds_jax.io import files
from pds_jax.types import PdsError

# Flag, value, and the versions of jaxlib that it was tried with: XLA stops the process at a flag that it does not know.
_CPU_FLAGS = (
    ("--xla_cpu_scheduler_type", "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED", ("0.10.",)),
    ("--xla_cpu_experimental_ynn_fusion_type", "", ("0.10.", "0.11.", "0.12.")),
)
_PLUGINS = ("libtpu", "jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm7_plugin", "jax_rocm60_plugin")


def use_compilation_cache(folder: str | None) -> None:
    """Keep compiled programs between runs, and :func:`set_cpu_flags`; called before any array exists.

    Args:
      folder: its path; empty turns the cache off; None uses JAX_COMPILATION_CACHE_DIR, else the user's cache folder.
    """
    set_cpu_flags()
    default = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "pds_jax", "xla")
    ambient = os.environ.get("JAX_COMPILATION_CACHE_DIR", default)
    folder = ambient if folder is None else folder
    jax.config.update("jax_compilation_cache_dir", folder or None)
    if not folder:
        return
    # Else absl prints a line for every kind of device that is not there.
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.WARNING)
    # A start has a dozen small programs too, each of which is compiled in longer than it is read.
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.01)


def set_cpu_flags() -> None:
    """Order programs on CPUs for memory, and convolve with Eigen's kernels; called before any array exists.

    A network of 1024x1024 pixels then needs a tenth of the temporary memory at the same speed. Eigen's convolutions are
    1.1 to 2 times faster than the YNNPACK ones that XLA prefers, their gradients 2 to 9 times. Nothing is set for
    a jaxlib that was not tried, where an accelerator's plugin would read the flag too, nor over the user's XLA_FLAGS,
    nor where these name a file of flags.
    """
    alone = getattr(jax.config, "jax_platforms", None) == "cpu" or not any(map(importlib.util.find_spec, _PLUGINS))
    for flag, value, tried in _CPU_FLAGS if alone else ():
        flags = os.environ.get("XLA_FLAGS", "")
        if jaxlib.__version__.startswith(tried) and flag not in flags and flags.lstrip()[:1] in ("", "-"):
            os.environ["XLA_FLAGS"] = f"{flags} {flag}={value}".strip()


def remembered(kind: str, key: str, compute: Callable[[], Any], valid: Callable[[Any], bool]) -> Any:
    """A value that depends on its key alone, from a file beside the compiled programs where one is.

    Without a compilation cache, and where its folder cannot be written, the value is computed each time.

    Args:
      kind: what it is, a word for the file's name.
      key: everything that decides the value, the code that computes it included (:func:`code_digest`).
      compute: makes the value, of what JSON holds.
      valid: whether the content of a file can be the value; a damaged file is not used.

    Returns:
      The value.
    """
    folder = getattr(jax.config, "jax_compilation_cache_dir", None)
    if not folder or "://" in folder:  # JAX's own cache may lie in a bucket
        return compute()
    path = pathlib.Path(folder) / f"{kind}-{hashlib.sha256(key.encode()).hexdigest()}.json"
    with contextlib.suppress(PdsError):
        entry = files.read_json(path)
        if isinstance(entry, dict) and entry.get("sha256") == _digest(entry.get("value")) and valid(entry["value"]):
            return entry["value"]
    value = compute()
    with contextlib.suppress(PdsError):
        files.write_json(path, {"value": value, "sha256": _digest(value)})
    return value


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def code_digest(folder: str | os.PathLike[str]) -> str:
    """SHA-256 of the Python files of a folder: another code, another digest."""
    digest = hashlib.sha256()
    for path in sorted(pathlib.Path(folder).glob("*.py")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()
