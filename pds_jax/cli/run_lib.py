"""Dispatch a mode of the command line to its job; each job is imported on first use to keep start-up short."""

from __future__ import annotations

import jax

from pds_jax.cli.options import RunOptions

# Of products of float32 arrays; --precision=bfloat16 also lets the network compute in bfloat16, else a GPU takes TF32.
_PRECISIONS = {"float32": "highest", "tf32": "tensorfloat32", "bfloat16": "bfloat16"}


def run(options: RunOptions) -> None:
    """Do what the options ask for.

    Raises:
      PdsError: anything that cannot be done, before long work starts.
    """
    jax.config.update("jax_default_matmul_precision", _PRECISIONS[options.precision])
    if options.mode == "sample":
        from pds_jax.cli.sample import sample

        sample(options)
    elif options.mode == "train":
        from pds_jax.cli.train import train

        train(options)
    elif options.mode == "eval":
        from pds_jax.cli.evaluate import evaluate

        evaluate(options)
    else:
        from pds_jax.cli.conditional import restore

        restore(options)
