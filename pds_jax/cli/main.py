"""The command line: flags to a job. ``pds_jax --mode=sample --checkpoint=photos --workdir=runs/photos``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

from absl import app
from absl import flags as absl_flags

from pds_jax.cli import flags
from pds_jax.cli.help import help_text

FLAGS = absl_flags.FLAGS
_HELP = ("--help", "-help", "-h", "--helpshort")


def parse(words: Sequence[str], values: absl_flags.FlagValues = FLAGS) -> list[str]:
    """Read the flags; a mistake ends the program with one line. Returns the program and the overrides, for ``main``."""
    from pds_jax.cli import parse as parsing
    from pds_jax.types import PdsError

    try:
        overrides = parsing.read(words, values)
    except PdsError as error:
        _refuse(f"{error}\nAll flags: --help")
    return [words[0], *(f"{path}={text}" for path, text in overrides)]


def main(argv: Sequence[str]) -> None:
    """Do what the flags say; ``argv`` is what :func:`parse` gave."""
    from pds_jax.cache import use_compilation_cache

    use_compilation_cache(FLAGS.cache_dir)
    from pds_jax import processes
    from pds_jax.cli import parse as parsing
    from pds_jax.cli import run_lib
    from pds_jax.cli.failures import check_ambient, explain
    from pds_jax.io import files
    from pds_jax.keys import use_generator

    use_generator()
    overrides = [(path, text) for path, _, text in (word.partition("=") for word in argv[1:])]
    try:
        check_ambient(FLAGS.precision)
        processes.initialize_distributed(FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id)
        with processes.abort_on_failure(), files.stoppable():
            run_lib.run(parsing.run_options(FLAGS, overrides))
    except files.Stopped as signal:
        print(f"stopped by {signal}: what was finished is saved, the same command resumes from there")
    except Exception as error:
        message = explain(error, FLAGS.mode)
        if message is None:
            raise
        _refuse(message)


def _doctor() -> NoReturn:
    from pds_jax.cache import use_compilation_cache
    from pds_jax.keys import use_generator

    use_compilation_cache(None)
    use_generator()
    from pds_jax.cli.doctor import doctor

    sys.exit(0 if doctor() else 1)


def _refuse(message: str) -> NoReturn:
    print(f"pds_jax: {message}", file=sys.stderr)
    sys.exit(2)


def run() -> None:
    """Console script."""
    if any(word in _HELP for word in sys.argv[1:]):
        modes = [mode for mode in flags.MODES if f"--mode={mode}" in sys.argv]
        print(help_text(modes[0] if modes else None), end="")
        return
    if sys.argv[1:2] == ["doctor"]:
        if sys.argv[2:]:
            _refuse(f"doctor takes no options, not {sys.argv[2:]}")
        _doctor()
    flags.define()
    try:
        app.run(main, flags_parser=parse)
    except KeyboardInterrupt:
        print("stopped by Ctrl-C before anything was finished, or by a second one", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    run()
