"""Command line: flags to run_lib. ``pds_jax --mode=sample --checkpoint=photos --workdir=runs/photos``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from absl import app
from absl import flags as absl_flags

from pds_jax import flags

FLAGS = absl_flags.FLAGS
flags.define()


def main(argv: Sequence[str]) -> None:
    """Check the flags, then hand over to run_lib."""
    if len(argv) > 1:
        _refuse(f"unexpected words {argv[1:]}; every option starts with --")
    for name, value in (("mode", "|".join(flags.MODES)), ("workdir", "FOLDER")):
        if FLAGS[name].value is None:
            _refuse(f"--{name} is missing: type --{name}={value}, for example\n  {flags.EXAMPLE}\nAll flags: --help")
    from pds_jax.cache import order_for_memory, use_compilation_cache

    order_for_memory()
    use_compilation_cache(FLAGS.cache_dir)
    from pds_jax import files, parallel, run_lib
    from pds_jax.types import PdsError

    try:
        parallel.initialize_distributed(FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id)
        with files.stoppable():
            run_lib.run(FLAGS.mode, FLAGS.config, FLAGS.workdir, flags.overrides(FLAGS), flags.options(FLAGS))
    except files.Stopped:
        print("stopped by SIGTERM: what was finished is saved, the same command goes on from there")
    except (PdsError, FloatingPointError) as error:
        _refuse(str(error))


def _refuse(message: str) -> None:
    print(f"pds_jax: {message}", file=sys.stderr)
    sys.exit(2)


def run() -> None:
    """Console script."""
    if any(word in ("--help", "-help", "-h", "--helpshort") for word in sys.argv[1:]):
        print(flags.help_text(), end="")
        return
    app.run(main, argv=flags.with_installed_configs(sys.argv))


if __name__ == "__main__":
    run()
