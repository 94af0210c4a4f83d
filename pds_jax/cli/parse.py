"""A command line to :class:`RunOptions`; every mistake in it is a PdsError that names the flag."""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import io
import os
import pathlib
import re
import traceback
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from absl import flags as absl_flags
from ml_collections import ConfigDict

from pds_jax import options as options_lib
from pds_jax.cli import flags
from pds_jax.cli.help import EXAMPLE
from pds_jax.cli.options import RunOptions, SamplerOptions, from_flags
from pds_jax.types import PdsError, did_you_mean

# Flags of the process, which the start of the program uses up.
_OF_THE_PROCESS = ("cache_dir", "coordinator", "num_processes", "process_id")
_OVERRIDE = re.compile(r"--?config\.([^=]+)(=(.*))?$", re.DOTALL)
_CONFIGS = tuple(flag.name for flag in flags.table() if flag.kind == "config")
_REFUSAL = re.compile(r"^([\w.]+\.)?(ValueError|PdsError): ")  # before the message, in a traceback
_ILLEGAL = re.compile(r"^flag --([\w.]+)=(.*?): (.*)$")  # what absl says of a value
_FRAME = re.compile(r'File "(.+)", line (\d+)')
_FLAG = re.compile(r"--?([A-Za-z_][\w.]*)(=.*)?$", re.DOTALL)


def read(words: Sequence[str], values: absl_flags.FlagValues) -> list[tuple[str, str]]:
    """Read the flags of ``pds_jax`` into absl's registry, in which they are defined.

    Args:
      words: the command line, program first.
      values: the registry.

    Returns:
      (section.field, text) of each ``--config.section.field=text``.

    Raises:
      PdsError: as :func:`read_words`; a word without a flag, a flag that the mode does not use, or no --mode or
        --workdir.
    """
    rest, overrides = read_words(words, values)
    if len(rest) > 1:
        raise PdsError(f"unexpected words {rest[1:]}; every option starts with --")
    for flag in flags.table():
        if isinstance(flag.kind, tuple) and values[flag.name].value not in (None, *flag.kind):
            given = str(values[flag.name].value)
            raise PdsError(f"--{flag.name}={given}: use one of {'|'.join(flag.kind)}{did_you_mean(given, flag.kind)}")
    for name, value in (("mode", "|".join(flags.MODES)), ("workdir", "FOLDER")):
        if values[name].value is None:
            raise PdsError(f"--{name} is missing: type --{name}={value}, for example\n  {EXAMPLE}")
    _check_used(_given(values), str(values["mode"].value))
    return overrides


def read_words(words: Sequence[str], values: absl_flags.FlagValues) -> tuple[list[str], list[tuple[str, str]]]:
    """Read a command line into absl's registry, that of ``pds_jax`` or of a script.

    Args:
      words: the command line, program first.
      values: the registry.

    Returns:
      The words that belong to no flag, program first, and (section.field, text) of each
      ``--config.section.field=text``.

    Raises:
      PdsError: an unknown flag (the nearest is named), one given twice, a value of another kind, or a configuration
        that is missing or does not run.
    """
    words, overrides = _without_overrides(with_installed_configs(with_home(words)))
    missing = _missing_config(words)
    if missing:
        raise PdsError(f"--{missing}: there is no such file, here or beside the installed package")
    several = [name for name in values if isinstance(values[name], absl_flags.MultiFlag)]
    modules = values.flags_by_module_dict().items()
    of_absl = [flag.name for module, found in modules if module.startswith("absl.") for flag in found]
    check_names(words, list(values), several, of_absl)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            rest = values(words)
    except absl_flags.Error as error:
        raise PdsError(_what_is_wrong(str(error), values)) from error
    except Exception as error:  # of the code of a configuration
        raise PdsError(_where(error, words)) from error
    for _, path, name in _split(words):
        if name in values and not isinstance(values[name].value, ConfigDict):
            raise PdsError(f"--{name}={path}: its get_config() returns no ml_collections.ConfigDict")
    return rest, overrides


def run_options(values: absl_flags.FlagValues, overrides: Sequence[tuple[str, str]] = ()) -> RunOptions:
    """What the flags that were read ask for; loads plugins.

    Raises:
      PdsError: a value that cannot be used; the message names the flag.
    """
    fields = {flag.name: flag.option for flag in flags.table() if hasattr(SamplerOptions, flag.option)}
    words = {name: value for name, value in _given(values).items() if name not in _OF_THE_PROCESS}
    return from_flags(words | {"overrides": tuple(overrides)}, fields)


def _given(values: absl_flags.FlagValues) -> dict[str, Any]:
    """Flags on the command line and their values."""
    known = (flag.name for flag in flags.table() if flag.name in values)
    return {name: values[name].value for name in known if values[name].value is not None}


def check_names(
    words: Sequence[str], known: Collection[str], several: Collection[str] = (), hidden: Collection[str] = ()
) -> None:
    """Refuse what is no flag, and a flag that stands twice.

    Args:
      words: the command line, program first.
      known: flags, without dashes.
      several: those of them that may stand more than once.
      hidden: those of them that are not suggested.

    Raises:
      PdsError: names the flag, and the nearest that is known.
    """
    seen: set[str] = set()
    for word in words[1:]:
        match = _FLAG.match(word)
        if match is None:
            continue
        name = match[1] if match[1] in known else match[1].removeprefix("no")
        if name in seen and name not in several:
            raise PdsError(f"--{name} is given twice; leave one of the two out")
        if name not in known:
            near = difflib.get_close_matches(name, sorted(set(known) - set(hidden)), 3, 0.5)
            near.sort(key=lambda other: sorted(other) != sorted(name))  # letters in another order first: --nef is --nfe
            hint = f"; did you mean --{near[0]}?" if near else ""
            raise PdsError(f"unknown flag --{match[1]}{hint}")
        seen.add(name)


def _check_used(given: dict[str, Any], mode: str) -> None:
    """Refuse flags that a mode does not use."""
    unused = [flag for flag in flags.table() if mode not in flag.modes]
    reasons = [((flag.name,), f"it is for --mode={'|'.join(flag.modes)}") for flag in unused]
    options_lib.refuse(given, reasons, "--")


def _what_is_wrong(text: str, values: absl_flags.FlagValues) -> str:
    """One line of an error of absl; that of a configuration comes with its traceback."""
    last = [line.strip() for line in text.splitlines() if line.strip()][-1]
    match = _ILLEGAL.match(last)
    if match is None:
        place = _FRAME.findall(text)
        at = f"{place[-1][0]}, line {place[-1][1]}: " if place and not _REFUSAL.match(last) else ""
        return at + _REFUSAL.sub("", last)
    name, given, reason = match.groups()
    parser = values[name].parser if name in values else None
    if isinstance(parser, absl_flags.EnumParser):
        return f"--{name}={given}: use one of {'|'.join(parser.enum_values)}{did_you_mean(given, parser.enum_values)}"
    if "convert" in reason or "invalid literal" in reason:
        reason = f"use {getattr(parser, 'syntactic_help', 'a number')}"
    return f"--{name}={given}: {reason}"


def _where(error: Exception, words: Sequence[str]) -> str:
    """One line of an error in the code of a configuration."""
    said = f"{type(error).__name__}: {error.msg if isinstance(error, SyntaxError) else error}"
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}: {said}"
    paths = [path.partition(":")[0] for _, path, name in _split(words) if name]
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in paths]
    return f"{frames[-1].filename}, line {frames[-1].lineno}: {said}" if frames else f"{', '.join(paths)}: {said}"


def _without_overrides(words: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """The command line without ``--config.section.field=value``, and what these say."""
    kept: list[str] = []
    found: list[tuple[str, str]] = []
    rest = iter(words)
    for word in rest:
        match = _OVERRIDE.match(word)
        if match is None:
            kept.append(word)
            continue
        path, text = match[1], match[3] if match[2] else next(rest, None)
        if text is None:
            raise PdsError(f"--config.{path}: write --config.section.field=value")
        if path in dict(found):
            raise PdsError(f"--config.{path} is given twice; leave one of the two out")
        found.append((path, text))
    return kept, found


def with_home(words: Sequence[str]) -> list[str]:
    """The command line with ``~`` at the start of a value as the user's folder; shells leave ``--flag=~/x`` alone.

    >>> with_home(["pds_jax", "--seeds=0-3"])
    ['pds_jax', '--seeds=0-3']
    """
    parts = [word.partition("=") if word.startswith("-") else ("", "", word) for word in words]
    return [name + equals + os.path.expanduser(value) for name, equals, value in parts]


def with_installed_configs(words: Sequence[str]) -> list[str]:
    """The command line with ``configs/...`` found beside the installed package where it is not below this folder."""
    return [head + (_installed(path) if config else path) for head, path, config in _split(words)]


def _missing_config(words: Sequence[str]) -> str | None:
    """The flag of a configuration that is not there, with its value."""
    named = [(config, path) for _, path, config in _split(words) if config]
    return next((f"{name}={path}" for name, path in named if not os.path.isfile(path.partition(":")[0])), None)


def _split(words: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Words as (head with its =, value, name of the flag if the value is a configuration, else "")."""
    for before, word in zip(["", *words], words, strict=False):
        head, equals, path = word.partition("=") if word.startswith("-") else ("", "", word)
        flag = head.lstrip("-") if equals else before.lstrip("-") if before.startswith("-") and not head else ""
        yield head + equals, path, flag if flag in _CONFIGS else ""


def _installed(path: str) -> str:
    name, colon, argument = path.partition(":")
    root = importlib.util.find_spec("configs")
    if os.path.exists(name) or not name.startswith("configs/") or root is None or root.origin is None:
        return path
    place = pathlib.Path(root.origin).parent.parent / name
    return f"{place}{colon}{argument}" if place.exists() else path
