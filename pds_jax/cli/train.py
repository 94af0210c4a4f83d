"""``--mode=train``."""

from __future__ import annotations

import pathlib

from pds_jax import checkpoints
from pds_jax.cli.options import RunOptions
from pds_jax.types import PdsError


def train(options: RunOptions) -> None:
    """Train in the workdir, from --checkpoint if one is given, or resume the training there; see ``training.train``.

    Raises:
      PdsError: no configuration, a bad one, or the folder holds another training.
    """
    from pds_jax import training

    if options.checkpoint in checkpoints.SHIPPED and not pathlib.Path(options.checkpoint).exists():
        raise PdsError(
            f"--checkpoint={options.checkpoint}: an included model has no optimizer state to go on from; give a full "
            "training state (docs/checkpoints.md), or leave --checkpoint out"
        )
    config = options.configuration(str(options.workdir))
    stored = options.workdir / checkpoints.CONFIG
    if config is None and stored.is_file():
        config = checkpoints.read_config(stored)
    if config is None:
        raise PdsError("--mode=train needs --config=configs/….py, or the --workdir of a training to resume")
    if options.resize_images:
        config.data.resize = True
    if options.convert_images:
        config.data.convert_images = True
    if options.dtype is not None:
        config.model.dtype = options.dtype
    training.train(config, str(options.workdir), options.checkpoint)
    print(f"Training states, snapshots of samples and log.jsonl are in {options.workdir}")
