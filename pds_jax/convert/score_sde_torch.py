"""Checkpoints with the names of score_sde_pytorch, which the PDS release shares: ``.pth`` and similar files.

The originals write ``model``, ``ema``, ``optimizer``, ``step``. Their moving average is a bare list in the order of the
trainable parameters, without the frozen Fourier frequencies. Other layouts are found by their names (``weight_sets``).
"""

from __future__ import annotations

import importlib.util
import io
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pds_jax.convert.names import FROZEN, torch_pairs
from pds_jax.convert.tree import ConversionError, Leaf, Pair, Report, Shape, assemble, check_params, template, to_source
from pds_jax.convert.weight_sets import Expected, choose
from pds_jax.io import files

PREFIX = "module."
SIGMAS = "sigmas"
_ROUNDING = {"float16": 1e-3, "bfloat16": 8e-3}  # of noise levels that were stored in half precision
_NCSN_NOTE = (
    "score_sde_pytorch's NCSNv2 computes otherwise than score_sde's (bilinear resizing with aligned corners, "
    "InstanceNorm++ with the unbiased variance): the weights are mapped leaf by leaf, the outputs differ"
)


def from_arrays(
    value: Any,
    kind: type,
    leaf: Callable[[Any], Leaf],
    config: Any,
    shapes: Mapping[str, Shape],
    report: Report,
    use_ema: bool,
    *,
    alone: bool = False,
) -> dict[str, Any]:
    """Parameters from what a file holds, whose arrays have the names of score_sde_pytorch.

    ``value`` holds arrays of class ``kind``, which ``leaf`` makes readable. Raises NoWeights if no array has such
    names, ConversionError if they are not those of the config's network.
    """
    pairs = torch_pairs(config, shapes)
    expected = Expected([pair.source for pair in pairs], frozen=frozen(pairs))
    found = choose(value, kind, expected, report, use_ema, alone=alone)
    if config.model.name.startswith("ncsnv2"):
        report.notes.append(_NCSN_NOTE)
    params = assemble(pairs, {name: leaf(array) for name, array in found.arrays.items()}, shapes, report)
    sigmas = found.buffers.get(SIGMAS)
    if sigmas is not None:
        _check_sigmas(leaf(sigmas), config, report)
    return params


def frozen(pairs: list[Pair]) -> frozenset[str]:
    """Names of the parameters that never train, which the moving average and the optimiser do not hold."""
    return frozenset(pair.source for pair in pairs if pair.target == FROZEN)


def _check_sigmas(sigmas: Leaf, config: Any, report: Report) -> None:
    """Compare the noise levels in the file with the config's: for VE another range is another model."""
    if len(sigmas.shape) != 1 or sigmas.shape[0] < 1:
        raise ConversionError(f"{report.path}: the noise levels have shape {sigmas.shape}")
    values = sigmas.read().astype(np.float64)
    found = (float(np.max(values)), float(np.min(values)))
    ours = (float(config.model.sigma_max), float(config.model.sigma_min))
    if not np.allclose(found, ours, rtol=_ROUNDING.get(sigmas.dtype, 1e-4), atol=0):
        message = f"noise levels {found[0]:.6g} to {found[1]:.6g}, the config says {ours[0]:.6g} to {ours[1]:.6g}"
        if config.training.sde.lower() == "vesde":
            raise ConversionError(f"{report.path} has {message}; set model.sigma_max and model.sigma_min")
        report.notes.append(message)
    if len(values) != config.model.num_scales:
        report.notes.append(f"trained with {len(values)} noise levels, the config has {config.model.num_scales}")


def check(config: Any) -> None:
    """Refuse what score_sde_pytorch has no network for, and a machine without PyTorch. Raises ConversionError."""
    if importlib.util.find_spec("torch") is None:
        raise ConversionError("writing a .pth needs PyTorch: pip install 'pds_jax[convert]'")
    torch_pairs(config, template(config))


def export(params: Mapping[str, Any], config: Any, path: str | os.PathLike[str]) -> None:
    """Write a ``.pth`` that score_sde_pytorch restores: the weights as model and as moving average, a fresh optimizer.

    Args:
      params: the parameter tree.
      config: the configuration it belongs to.
      path: the file.

    Raises:
      PdsError: parameters and configuration do not agree, PyTorch is not installed, or the place cannot be written.
    """
    check(config)
    import torch

    pairs = torch_pairs(config, template(config))
    arrays = to_torch(check_params(params, config), pairs)
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    levels = np.linspace(np.log(config.model.sigma_max), np.log(config.model.sigma_min), config.model.num_scales)
    never_trains = frozen(pairs)
    state = {
        "optimizer": _fresh_optimizer(config, len(tensors)),
        "model": {f"{PREFIX}{SIGMAS}": torch.from_numpy(np.exp(levels))}
        | {f"{PREFIX}{name}": tensor for name, tensor in tensors.items()},
        "ema": {
            "decay": float(config.model.ema_rate),
            "num_updates": 0,
            "shadow_params": [tensor.clone() for name, tensor in tensors.items() if name not in never_trains],
        },
        "step": 0,
    }
    buffer = io.BytesIO()
    torch.save(state, buffer)
    files.atomic_write(path, lambda file: file.write(buffer.getvalue()))


def to_torch(flat: Mapping[str, np.ndarray], pairs: list[Pair]) -> dict[str, np.ndarray]:
    """Our parameters by path with the names, axes and order of the PyTorch model, without the prefix ``module.``."""
    arrays = to_source(flat, pairs)
    for pair in pairs:
        if pair.axes is None and flat[pair.target].shape[:-1] == (1, 1, 1):  # the leaves of InstanceNorm++
            arrays[pair.source] = arrays[pair.source].reshape(-1)
    return arrays


def _fresh_optimizer(config: Any, number: int) -> dict[str, Any]:
    """What ``torch.optim.Adam.state_dict()`` is before the first step."""
    optim = config.optim
    group = {
        "lr": float(optim.lr),
        "betas": (float(optim.beta1), 0.999),
        "eps": float(optim.eps),
        "weight_decay": float(optim.weight_decay),
        "amsgrad": False,
        "params": list(range(number)),
    }
    return {"state": {}, "param_groups": [group]}
