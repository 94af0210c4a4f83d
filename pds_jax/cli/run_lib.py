"""The jobs of the command line. Wiring only; each job is imported when it is asked for, which a start waits for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from pds_jax.cli.sample import dtype_of, sample
from pds_jax.types import PdsError

# Of products of float32 arrays; --precision=bfloat16 also lets the network compute in bfloat16, else a GPU takes TF32.
_PRECISIONS = {"float32": "highest", "tf32": "tensorfloat32", "bfloat16": "bfloat16"}


def run(
    mode: str,
    config: ConfigDict | None,
    workdir: str,
    overrides: Mapping[str, Any],
    options: Mapping[str, Any],
) -> None:
    """Do what ``--mode`` says.

    Args:
      mode: "sample", "train", "eval", or one of ``conditional_job.MODES``.
      config: configuration, or None where a checkpoint brings its own.
      workdir: folder of the run.
      overrides: configuration fields such as "sampling.snr" set by flags.
      options: the other flags.

    Raises:
      PdsError: anything that cannot be done, before long work starts.
    """
    jax.config.update("jax_default_matmul_precision", _PRECISIONS[options["precision"]])
    if mode == "train":
        from pds_jax import training

        if config is None:
            raise PdsError("--mode=train needs --config=configs/….py")
        config = _overridden(config, overrides)
        for name, field in (("resize_images", "resize"), ("convert_images", "convert_images")):
            if options.get(name):
                config.data[field] = True
        if dtype_of(options) is not None:
            config.model.dtype = dtype_of(options)
        training.train(config, workdir)
        print(f"Training states, samples and logs are in {workdir}")
    elif mode == "eval":
        from pds_jax.cli.evaluate import evaluate

        evaluate(config, workdir, overrides, options)
    elif mode == "sample":
        sample(config, workdir, overrides, options)
    else:
        from pds_jax.cli import conditional as conditional_job

        conditional_job.run(mode, config, workdir, overrides, options)


def _overridden(config: ConfigDict, overrides: Mapping[str, Any]) -> ConfigDict:
    config = ConfigDict(config.to_dict())
    for path, value in overrides.items():
        section, field = path.split(".")
        with config.ignore_type():
            config[section][field] = value
    return config
