"""What a configuration says about training: checks of its fields, and the loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from pds_jax import losses
from pds_jax import score_fn as score_fns
from pds_jax import statistics as stats_lib
from pds_jax.data.shapes import image_size
from pds_jax.models import create_model
from pds_jax.types import Array, PdsError, check_choice

# Fields without which no training is described; none has a default.
_REQUIRED = (
    "training.sde training.continuous training.batch_size training.n_iters training.reduce_mean training.snapshot_freq "
    "training.snapshot_freq_for_preemption training.log_freq training.eval_freq training.snapshot_sampling "
    "training.likelihood_weighting data.dataset data.random_flip data.uniform_dequantization model.ema_rate "
    "optim.optimizer optim.lr optim.beta1 optim.eps optim.warmup optim.grad_clip optim.weight_decay"
).split()
# What a training needs of a field, and how that is said; fields that are not there are not checked.
_NEEDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "training.batch_size": (lambda n: n >= 1, "at least 1"),
    "training.n_iters": (lambda n: n >= 1, "at least 1"),
    "training.n_jitted_steps": (lambda n: n >= 1, "at least 1"),
    "optim.lr": (lambda rate: 0 < rate < math.inf, "positive and finite"),
    "optim.beta1": (lambda beta: 0 <= beta < 1, "in [0, 1)"),
    "optim.eps": (lambda eps: 0 < eps < math.inf, "positive and finite"),
    "optim.weight_decay": (lambda decay: 0 <= decay < math.inf, "0 or more, and finite"),
    "optim.warmup": (lambda steps: 0 <= steps < math.inf, "a number of steps, or 0 for no warm-up"),
    "optim.cosine_steps": (lambda steps: 0 <= steps < math.inf, "a number of steps, or 0 for no decay"),
    "optim.grad_clip": (lambda norm: norm < 0 or norm > 0, "the largest norm, or negative for no clipping"),
    "optim.amsgrad": (lambda on: not on, "False: Adam is without AMSGrad here, as in score_sde"),
    "model.ema_rate": (lambda rate: 0 <= rate < 1, "in [0, 1)"),
    "model.conv_size": (lambda size: size == 3, "3, as in score_sde: no network reads it"),
    "model.sigma_begin": (lambda sigma: sigma == 90, "90, as in score_sde: it is not read; set model.sigma_max"),
}


def check_fields(config: Any) -> None:
    """Raise if a field is missing, a number is one that no training can have, or an option is set that nothing reads.

    Args:
      config: with training, optim and model.

    Raises:
      PdsError: a missing field; one out of range, with its value and what it must be; or as ``create_model`` and
        :func:`check_loss`.
    """
    for path in _REQUIRED:
        section, field = path.split(".")
        if field not in config.get(section, {}):
            raise PdsError(f"config.{path} is missing: a training needs it, add it to the configuration's file")
    for path, (holds, needed) in _NEEDS.items():
        section, field = path.split(".")
        if field in config[section] and not holds(config[section][field]):
            raise PdsError(f"config.{path}={config[section][field]!r} must be {needed}")
    if not (isinstance(config.seed, int) and config.seed >= 0):
        raise PdsError(f"config.seed={config.seed!r} must be a whole number of at least 0")
    create_model(config)  # refuses options that its network does not have
    check_loss(config)


def check_loss(config: Any) -> None:
    """Raise if the training loss does not have the weighting or the parametrisation.

    Args:
      config: see :func:`get_loss_fn`.

    Raises:
      PdsError: an unknown weighting, two at once, or one that the discrete losses (continuous=False) do not have.
    """
    training = config.training
    weighting = training.get("loss_weighting", "sigma")
    check_choice("training.loss_weighting", weighting, ("sigma", "unit"))
    likelihood = training.get("likelihood_weighting", False)
    if likelihood and weighting != "sigma":
        raise PdsError(
            "config.training.likelihood_weighting=True and loss_weighting='unit' are two weightings: set "
            "likelihood_weighting=False or loss_weighting='sigma'"
        )
    if training.continuous:
        return
    parametrisation = config.model.get("parametrisation", "score_sde")
    for field, value, only in (
        ("training.likelihood_weighting", likelihood, False),
        ("training.loss_weighting", weighting, "sigma"),
        ("model.parametrisation", parametrisation, "score_sde"),
    ):
        if value != only:
            raise PdsError(
                f"config.{field}={value!r} needs continuous times: set config.training.continuous=True or "
                f"config.{field}={only!r}"
            )


def get_loss_fn(
    config: Any, sde: Any, model: Any, statistics: stats_lib.Statistics | None, train: bool = True
) -> losses.LossFn:
    """The training loss that a configuration describes.

    Args:
      config: with training.{continuous, reduce_mean, likelihood_weighting, loss_weighting}, model.parametrisation.
      sde: forward SDE.
      model: network.
      statistics: of the data, for the parametrisation "wiener" and loss weighting "unit".
      train: dropout on.

    Returns:
      loss_fn(keys (B,), params, batch) -> scalar.

    Raises:
      PdsError: as :func:`check_loss`; another SDE than the discrete losses need; or "unit" without statistics, unless
        the parametrisation is "edm".
    """
    check_loss(config)
    training = config.training
    if not training.continuous:
        get = losses.get_smld_loss_fn if training.sde.lower() == "vesde" else losses.get_ddpm_loss_fn
        return get(sde, model, train=train, reduce_mean=training.reduce_mean)
    moments = None if statistics is None else statistics.to_range(config.data.centered)
    unit = training.get("loss_weighting", "sigma") == "unit"
    weight = losses.unit_weight(sde, _output_scale(config, moments)) if unit else None
    return losses.get_sde_loss_fn(
        sde,
        model,
        train=train,
        reduce_mean=training.reduce_mean,
        continuous=True,
        likelihood_weighting=training.likelihood_weighting,
        weight=weight,
        statistics=moments,
        **score_fns.model_options(config),
    )


def _output_scale(config: Any, moments: Any) -> Callable[[Array], Array]:
    """Scale of the network's output in the denoiser, of the noise level; of "score_sde" the one of "wiener"."""
    if config.model.get("parametrisation", "score_sde") == "edm":
        return lambda level: score_fns.edm_scales(config.model.sigma_data, level)[2]
    if moments is None:
        raise PdsError(
            "training.loss_weighting='unit' needs the statistics of the training data: pass them, or set "
            "loss_weighting='sigma'"
        )
    return lambda level: score_fns.wiener_scales(moments[1], level, image_size(config)[1])[1]
