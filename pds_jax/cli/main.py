"""Command line: flags to run_lib. ``pds_jax --mode=sample --checkpoint=photos --workdir=runs/photos``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

from absl import app
from absl import flags as absl_flags

from pds_jax.cli import flags

FLAGS = absl_flags.FLAGS


def main(argv: Sequence[str]) -> None:
    """Hand the flags over to run_lib."""
    from pds_jax.cache import order_for_memory, use_compilation_cache

    order_for_memory()
    use_compilation_cache(FLAGS.cache_dir)
    from pds_jax import parallel
    from pds_jax.cli import run_lib
    from pds_jax.io import files
    from pds_jax.types import PdsError

    try:
        parallel.initialize_distributed(FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id)
        with parallel.ending_at_once(), files.stoppable():
            run_lib.run(FLAGS.mode, FLAGS.config, FLAGS.workdir, flags.overrides(FLAGS), flags.options(FLAGS))
    except files.Stopped:
        print("stopped by SIGTERM: what was finished is saved, the same command goes on from there")
    except (PdsError, FloatingPointError) as error:
        _refuse(str(error))


def _refuse(message: str) -> NoReturn:
    print(f"pds_jax: {message}", file=sys.stderr)
    sys.exit(2)


def parse(words: Sequence[str], values: absl_flags.FlagValues = FLAGS) -> list[str]:
    """Read the flags; a mistake ends the program with one line.

    Args:
      words: the command line, program first.
      values: absl's registry, with the flags defined.

    Returns:
      What is no flag, program first.
    """
    words = flags.with_installed_configs(words)
    missing = flags.missing_config(words)
    if missing:
        _refuse(f"--config={missing}: there is no such file, here or beside the installed package")
    try:
        rest = values(words)
    except absl_flags.Error as error:
        # A configuration's own error comes with its traceback; the last line says it.
        message = [line.strip() for line in str(error).splitlines() if line.strip()][-1]
        if "flag 'config." in message:
            message += "; fields are set like this beside --config=FILE.py"
        _refuse(f"{message}\nAll flags: --help")
    except (AttributeError, KeyError, TypeError) as error:
        _refuse(f"--config.section.field=value: no such field, or a value of another type: {error}")
    if len(rest) > 1:
        _refuse(f"unexpected words {rest[1:]}; every option starts with --")
    for name, value in (("mode", "|".join(flags.MODES)), ("workdir", "FOLDER")):
        if values[name].value is None:
            _refuse(f"--{name} is missing: type --{name}={value}, for example\n  {flags.EXAMPLE}\nAll flags: --help")
    return rest


def run() -> None:
    """Console script."""
    if any(word in ("--help", "-help", "-h", "--helpshort") for word in sys.argv[1:]):
        print(flags.help_text(), end="")
        return
    flags.define()
    app.run(main, flags_parser=parse)


if __name__ == "__main__":
    run()
