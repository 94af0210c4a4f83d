"""Checkpoints of score_sde_pytorch and of the PDS release: ``.pth`` with ``model``, ``ema``, ``optimizer``, ``step``.

The moving average is a bare list in the order of the trainable parameters; its names come from ``model``, without the
buffer ``sigmas`` and the frozen Fourier frequencies, which exist only there.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pds_jax.convert.names import FROZEN, torch_pairs
from pds_jax.convert.pickles import Tensor
from pds_jax.convert.torch_files import opened
from pds_jax.convert.tree import ConversionError, Leaf, Pair, Report, Shape, assemble, check_params, match, template
from pds_jax.io import files

PREFIX = "module."
SIGMAS = "sigmas"
_NCSN_NOTE = (
    "score_sde_pytorch's NCSNv2 computes otherwise than score_sde's (bilinear resizing with aligned corners, "
    "InstanceNorm++ with the unbiased variance): the weights are mapped leaf by leaf, the outputs differ"
)


def load(
    path: str | os.PathLike[str], config: Any, shapes: Mapping[str, Shape], use_ema: bool
) -> tuple[dict[str, Any], Report]:
    """Parameters from a ``.pth``.

    Args:
      path: the file, possibly compressed by gzip.
      config: the score_sde config that it was trained with.
      shapes: path and shape of every parameter of the network.
      use_ema: the moving average, or the raw weights.

    Returns:
      (parameter tree, report).

    Raises:
      ConversionError: damaged, asking for code, or of another network.
    """
    report = Report("score_sde_torch", str(path), "ema" if use_ema else "raw")
    pairs = torch_pairs(config, shapes)
    with opened(path) as (state, leaf):
        model = _model(state, leaf, report.path)
        sigmas = model.pop(SIGMAS, None)
        match(pairs, model, report.path)
        names = [name for name in model if name not in _frozen(pairs)]
        sources = dict(model)
        if use_ema:
            sources.update(zip(names, _shadows(state, leaf, names, report), strict=True))
            report.unused.append(f"model: {len(names)} raw weights")
        report.unused += [f"{name}: training state" for name in state if name not in ("model", "ema")]
        if config.model.name.startswith("ncsnv2"):
            report.notes.append(_NCSN_NOTE)
        params = assemble(pairs, sources, shapes, report)
        _check_sigmas(sigmas, config, report)
        return params, report


def _frozen(pairs: list[Pair]) -> set[str]:
    return {pair.source for pair in pairs if pair.target == FROZEN}


def _model(state: Any, leaf: Callable[[Tensor], Leaf], path: str) -> dict[str, Leaf]:
    """Leaves of ``model`` without the prefix of DataParallel."""
    if not isinstance(state, dict) or not isinstance(state.get("model"), dict):
        found = sorted(map(str, state))[:8] if isinstance(state, dict) else type(state).__name__
        raise ConversionError(f"{path}: no dictionary 'model' of weights; the file holds {found}")
    leaves = {}
    for name, value in state["model"].items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ConversionError(f"{path}: 'model' holds something other than named tensors")
        leaves[name.removeprefix(PREFIX)] = leaf(value)
    if len(leaves) != len(state["model"]):
        raise ConversionError(f"{path}: 'model' has a name with and without {PREFIX!r}")
    return leaves


def _shadows(state: dict[str, Any], leaf: Callable[[Tensor], Leaf], names: list[str], report: Report) -> list[Leaf]:
    """The moving average, one leaf for each trainable parameter."""
    ema = state.get("ema")
    shadows = ema.get("shadow_params") if isinstance(ema, dict) else None
    if not isinstance(shadows, list) or not all(isinstance(value, Tensor) for value in shadows):
        raise ConversionError(f"{report.path}: no list ema/shadow_params of tensors; ask for the raw weights instead")
    if len(shadows) != len(names):
        raise ConversionError(
            f"{report.path}: the moving average has {len(shadows)} tensors, the model {len(names)} trainable ones"
        )
    return [leaf(value) for value in shadows]


def _check_sigmas(sigmas: Leaf | None, config: Any, report: Report) -> None:
    """Compare the noise levels in the file with the config's: for VE another range is another model."""
    if sigmas is None:
        return
    report.unused.append(f"{SIGMAS}: the noise levels, which follow from the config")
    if len(sigmas.shape) != 1 or sigmas.shape[0] < 1:
        raise ConversionError(f"{report.path}: the noise levels have shape {sigmas.shape}")
    values = sigmas.read().astype(np.float64)
    found = (float(values.max()), float(values.min()))
    ours = (float(config.model.sigma_max), float(config.model.sigma_min))
    if not np.allclose(found, ours, rtol=1e-4, atol=0):
        message = f"noise levels {found[0]:.6g} to {found[1]:.6g}, the config says {ours[0]:.6g} to {ours[1]:.6g}"
        if config.training.sde.lower() == "vesde":
            raise ConversionError(f"{report.path} has {message}; set model.sigma_max and model.sigma_min")
        report.notes.append(message)
    if len(values) != config.model.num_scales:
        report.notes.append(f"trained with {len(values)} noise levels, the config has {config.model.num_scales}")


def export(params: Mapping[str, Any], config: Any, path: str | os.PathLike[str]) -> None:
    """Write a ``.pth`` that score_sde_pytorch restores: the weights as model and as moving average, a fresh optimizer.

    Args:
      params: the parameter tree.
      config: the configuration it belongs to.
      path: the file.

    Raises:
      PdsError: parameters and configuration do not agree, PyTorch is not installed, or the place cannot be written.
    """
    try:
        import torch
    except ImportError as error:
        raise ConversionError("writing a .pth needs PyTorch: pip install 'pds_jax[convert]'") from error
    pairs = torch_pairs(config, template(config))
    arrays = to_torch(check_params(params, config), pairs)
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    levels = np.linspace(np.log(config.model.sigma_max), np.log(config.model.sigma_min), config.model.num_scales)
    frozen = _frozen(pairs)
    state = {
        "optimizer": _fresh_optimizer(config, len(tensors)),
        "model": {f"{PREFIX}{SIGMAS}": torch.from_numpy(np.exp(levels))}
        | {f"{PREFIX}{name}": tensor for name, tensor in tensors.items()},
        "ema": {
            "decay": float(config.model.ema_rate),
            "num_updates": 0,
            "shadow_params": [tensor.clone() for name, tensor in tensors.items() if name not in frozen],
        },
        "step": 0,
    }
    buffer = io.BytesIO()
    torch.save(state, buffer)
    files.atomic_write(path, lambda file: file.write(buffer.getvalue()))


def to_torch(flat: Mapping[str, np.ndarray], pairs: list[Pair]) -> dict[str, np.ndarray]:
    """Arrays with the names, axes and order of the PyTorch model.

    Args:
      flat: our parameters by path.
      pairs: which leaf is which.

    Returns:
      ``{name: array}`` without the prefix ``module.``.
    """
    arrays = {}
    for pair in pairs:
        value = flat[pair.target]
        if pair.axes is not None:
            value = value.transpose(np.argsort(pair.axes))
        elif value.shape[:-1] == (1, 1, 1):  # the leaves of InstanceNorm++
            value = value.reshape(-1)
        arrays[pair.source] = np.array(value, order="C")
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
