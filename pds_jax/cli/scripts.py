"""Run a script: its command line is read as that of ``pds_jax``, and what cannot be done is one line with status 2."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NoReturn

from absl import app, flags
from ml_collections import config_flags

from pds_jax import options as options_lib
from pds_jax.cli import parse
from pds_jax.cli.failures import one_line_errors
from pds_jax.cli.options import with_fields
from pds_jax.config_defaults import complete
from pds_jax.types import PdsError

flags.disclaim_key_flags()  # a flag that is defined here belongs to the script
_HELP = ("--help", "-help", "-h", "--helpshort", "--helpfull")


def run(main: Callable[[list[str]], Any]) -> None:
    """Read the flags and call ``main`` with the words that belong to none, the script's name first."""
    with one_line_errors():
        app.run(main, flags_parser=read)


def read(words: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Read the flags of a script; prints the help if that is asked for.

    Args:
      words: the command line, script first.
      values: absl's registry.

    Returns:
      The words that belong to no flag, script first.

    Raises:
      PdsError: as ``parse.read_words``, or a field of a configuration that is not given or has no such field.
    """
    if set(words) & set(_HELP):
        app.usage(shorthelp=True, writeto_stdout=True, exitcode=0)
    try:
        rest, overrides = parse.read_words(words, values)
    except PdsError as error:
        raise PdsError(f"{error}\nAll flags: --help") from error
    if overrides:
        path, text = overrides[0]
        if "config" not in values or values["config"].value is None:
            known = "this script has no --config" if "config" not in values else "add --config=FILE.py"
            raise PdsError(f"--config.{path}={text}: there is no configuration to change; {known}")
        values["config"].value = with_fields(complete(values["config"].value), tuple(overrides))
    return rest


def define_config(name: str, text: str) -> flags.FlagHolder[Any]:
    """Define the flag of a configuration file, with this help."""
    return config_flags.DEFINE_config_file(name, None, text, lock_config=False, sys_argv=[])


def refuse_words(argv: Sequence[str]) -> None:
    """Refuse words of a script's command line that belong to no flag.

    Raises:
      PdsError: names them.
    """
    if len(argv) > 1:
        raise PdsError(f"unexpected words {list(argv[1:])}; every option starts with --")


def refuse_flags(unused: Iterable[tuple[Collection[str], str]]) -> None:
    """Refuse flags that were given and have no effect.

    Args:
      unused: (flags, why they have no effect).

    Raises:
      PdsError: names the first and the reason.
    """
    given = {name: True for name in flags.FLAGS if flags.FLAGS[name].present}
    options_lib.refuse(given, unused, "--")


class Arguments(argparse.ArgumentParser):
    """The arguments of a script that is imported without absl's flags; a mistake in them is a PdsError."""

    def __init__(self, text: str | None):
        """``text`` describes the script."""
        super().__init__(description=text, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)

    def read(self) -> argparse.Namespace:
        """The arguments of the command line.

        Raises:
          PdsError: an unknown flag (the nearest is named), one given twice, a value of another kind, or a missing flag.
        """
        known = [option.lstrip("-") for action in self._actions for option in action.option_strings]
        try:
            parse.check_names(sys.argv, known)
        except PdsError as error:
            self.error(str(error))
        return self.parse_args()

    def error(self, message: str) -> NoReturn:
        """Refuse the command line."""
        raise PdsError(f"{message}\nAll flags: --help")
