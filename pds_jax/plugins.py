"""Python files of a user that register predictors, correctors, SDEs or networks, loaded before names are looked up."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
import sys
import types

from pds_jax.types import PdsError


@dataclasses.dataclass(frozen=True)
class Plugin:
    """A file that was loaded: its name and the SHA-256 of its text, for manifests."""

    file: str
    sha256: str


_LOADED: dict[str, Plugin] = {}


def load_plugin(path: str | os.PathLike[str]) -> Plugin:
    """Run a Python file once; what it registers is known by name from then on.

    Raises:
      PdsError: no such file, or it fails; the message has the line of the plugin.
    """
    place = pathlib.Path(path)
    try:
        text = place.read_bytes()
    except OSError as error:
        raise PdsError(f"--plugin={path}: {error.strerror or error}; give a Python file") from error
    digest = hashlib.sha256(text).hexdigest()
    if digest in _LOADED:
        return _LOADED[digest]
    module = types.ModuleType(f"pds_jax_plugin_{digest[:12]}")
    module.__file__ = str(place)
    sys.modules[module.__name__] = module  # dataclasses and pickle look their module up
    try:
        exec(compile(text, str(place), "exec"), module.__dict__)
    except Exception as error:
        del sys.modules[module.__name__]
        raise PdsError(f"--plugin={path}: {_where(error, str(place))}{type(error).__name__}: {error}") from error
    return _LOADED.setdefault(digest, Plugin(place.name, digest))


def _where(error: Exception, file: str) -> str:
    """The last line of the plugin on the way to an error."""
    if isinstance(error, SyntaxError):
        return f"line {error.lineno}: "
    line, trace = 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == file:
            line = trace.tb_lineno
        trace = trace.tb_next
    return f"line {line}: " if line else ""
