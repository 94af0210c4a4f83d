"""Turn errors of libraries and of the environment into one-line messages."""

from __future__ import annotations

import contextlib
import errno
import pathlib
import sys
from collections.abc import Iterator

import jax

from pds_jax.io import files
from pds_jax.types import PdsError

_BATCH = {"train": "--config.training.batch_size", "eval": "--config.eval.batch_size"}
_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """End a script in which something cannot be done with one line that names the script, and status 2.

    The script's command line is read with ``~`` as the user's folder.
    """
    from pds_jax.cli.parse import with_home

    program, sys.argv = pathlib.Path(sys.argv[0]).stem, with_home(sys.argv)
    try:
        with files.stoppable():
            yield
    except files.Stopped as signal:
        print(f"{program}: stopped by {signal}", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
        print(f"{program}: {message}", file=sys.stderr)
        sys.exit(2)


def explain(error: Exception, mode: str = "") -> str | None:
    """One sentence that names the cause and a remedy; None for bugs in this package."""
    text = str(error)
    first = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)[:300]
    if isinstance(error, PdsError | FloatingPointError) and not (mode in _BATCH and "RESOURCE_EXHAUSTED" in text):
        return text
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text or "out of memory" in text.lower():
        return f"memory is full: use a smaller {_BATCH.get(mode, '--batch_size')} ({first})"
    if isinstance(error, OSError):
        where, reason = error.filename or "a file", error.strerror or first
        if error.errno in _FULL:
            return f"{where}: {reason}; free some space and run the same command again to resume"
        return f"{where}: {reason}"
    if "No space left on device" in text:
        return "the disk is full; free some space and type the same command again, it resumes from what was saved"
    if "Unable to initialize backend" in text or "Unknown backend" in text:
        return f"JAX cannot use the devices asked for: {first}; set JAX_PLATFORMS=cpu, or install jax for them"
    if "DEADLINE_EXCEEDED" in text or "UNAVAILABLE" in text:
        return f"another process of this run does not answer: {first}; see that all of them run and reach --coordinator"
    return None


def check_ambient(precision: str | None) -> None:
    """Refuse an environment that asks for another precision than the flags.

    Args:
      precision: of the command line, or None.

    Raises:
      PdsError: JAX's own setting would be overridden without a word.
    """
    asked = getattr(jax.config, "jax_default_matmul_precision", None)
    if precision is None and asked not in (None, "highest", "float32"):
        raise PdsError(
            f"JAX_DEFAULT_MATMUL_PRECISION={asked} asks for another precision than float32, the default here; say "
            "which: --precision=float32, tf32 or bfloat16"
        )
