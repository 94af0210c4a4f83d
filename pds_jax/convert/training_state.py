"""Whole training states of other programs: weights, moving average, Adam's moments and steps, to go on training from.

score_sde keeps flax.optim's Adam (``optimizer/state/param_states/NAME/grad_ema``), later Flax programs optax's
(``opt_state/.../mu/NAME``), score_sde_pytorch torch.optim's (a list in the order of the parameters).
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pds_jax.convert import orbax_io, score_sde, score_sde_torch
from pds_jax.convert.names import torch_pairs
from pds_jax.convert.pickles import Tensor
from pds_jax.convert.sniffing import sniff
from pds_jax.convert.torch_files import opened
from pds_jax.convert.tree import ConversionError, Leaf, Pair, Report, Shape, assemble, nest, template
from pds_jax.convert.weight_sets import Expected, arrays_in, choose

_ADAM = "optimizer/state/param_states/"


@dataclasses.dataclass(frozen=True)
class TrainingState:
    """What training goes on from; trees of float32 with our names.

    ``step`` steps were done, ``count`` of them by the optimiser; ``mu`` and ``nu`` are Adam's averages of the gradient
    and of its square, not corrected for their start at zero.
    """

    step: int
    count: int
    params: dict[str, Any]
    ema_params: dict[str, Any]
    mu: dict[str, Any]
    nu: dict[str, Any]
    report: Report


def load_training_state(path: str | os.PathLike[str], config: Any) -> TrainingState:
    """Read a ``checkpoint_N`` of score_sde, a ``.pth`` of score_sde_pytorch, or Flax's state by orbax.

    Raises ConversionError if it is damaged, of another network, or if one of the parts is not there.
    """
    kind, shapes = sniff(path), template(config)
    if kind == "score_sde_torch":
        with opened(path) as (state, leaf):
            return _of_torch(state, leaf, config, shapes, str(path))
    if kind in ("score_sde_flax", "orbax"):
        read = score_sde.read if kind == "score_sde_flax" else orbax_io.read
        return _of_flax(read(path), config, shapes, str(path), kind)
    raise ConversionError(
        f"{path} holds weights without an optimiser's state ({kind}); training goes on from score_sde's checkpoint_N, "
        "score_sde_pytorch's .pth, or an orbax state of Flax"
    )


def _of_flax(state: Any, config: Any, shapes: Mapping[str, Shape], path: str, kind: str) -> TrainingState:
    report = Report(kind, path, "ema")
    ema_params = score_sde.from_tree(state, shapes, report, use_ema=True)
    if report.weights != "ema":
        raise ConversionError(f"{path} holds no moving average of the weights; it is no whole training state")
    params = score_sde.from_tree(state, shapes, Report(kind, path, "raw"), use_ema=False)
    arrays = arrays_in(state, Leaf, "/")
    names = _adam_names(arrays, shapes, path)
    pairs = [Pair(name, name) for name in shapes]
    mu, nu = (
        assemble(pairs, {name: arrays[where(name)] for name in shapes}, shapes, Report(kind, path, "moments"))
        for where in names[:2]
    )
    step = _whole(state.get("step") if isinstance(state, Mapping) else None, path)
    count = _whole(arrays.get(names[2], step), path)
    for name, ours in (("lr", config.optim.lr), ("ema_rate", config.model.ema_rate)):
        _note_other(name, arrays.get(name), ours, report)
    return TrainingState(step, count, params, ema_params, mu, nu, report)


Where = Callable[[str], str]


def _adam_names(arrays: Mapping[str, Any], shapes: Mapping[str, Shape], path: str) -> tuple[Where, Where, str]:
    """Where Adam's two moments of a parameter lie, and the number of its steps."""
    first = next(iter(shapes))
    if f"{_ADAM}{first}/grad_ema" in arrays:
        places = (lambda name: f"{_ADAM}{name}/grad_ema", lambda name: f"{_ADAM}{name}/grad_sq_ema")
        return _complete(*places, "optimizer/state/step", arrays, shapes, path)
    heads = [name.removesuffix(f"mu/{first}") for name in arrays if f"/{name}".endswith(f"/mu/{first}")]
    if len(heads) != 1:
        raise ConversionError(f"{path} holds {len(heads) or 'no'} sets of Adam's moments; training goes on from one")
    head = heads[0]
    return _complete(lambda n: f"{head}mu/{n}", lambda n: f"{head}nu/{n}", f"{head}count", arrays, shapes, path)


def _complete(
    mu: Where, nu: Where, count: str, arrays: Mapping[str, Any], shapes: Mapping[str, Shape], path: str
) -> tuple[Where, Where, str]:
    for name in (where(name) for where in (mu, nu) for name in shapes):
        if name not in arrays:
            raise ConversionError(f"{path}: {name!r} is missing among Adam's moments")
    return mu, nu, count


def _of_torch(
    state: Any, leaf: Callable[[Tensor], Leaf], config: Any, shapes: Mapping[str, Shape], path: str
) -> TrainingState:
    report = Report("score_sde_torch", path, "ema")
    ema_params = score_sde_torch.from_arrays(state, Tensor, leaf, config, shapes, report, use_ema=True)
    if report.weights != "ema":
        raise ConversionError(f"{path} holds no moving average of the weights; it is no whole training state")
    raw = Report("score_sde_torch", path, "raw")
    params = score_sde_torch.from_arrays(state, Tensor, leaf, config, shapes, raw, use_ema=False)
    pairs = torch_pairs(config, shapes)
    frozen = score_sde_torch.frozen(pairs)
    names = list(choose(state, Tensor, Expected([p.source for p in pairs], frozen=frozen), raw, False).arrays)
    moments, counts = _torch_adam(state, leaf, names, frozen, path)
    step = _whole(state.get("step"), path)
    if not moments:  # saved before the first step
        zeros = nest({name: np.zeros(shape, np.float32) for name, shape in shapes.items()})
        return TrainingState(step, 0, params, ema_params, zeros, zeros, report)
    trees = []
    for which in ("exp_avg", "exp_avg_sq"):
        sources = {
            pair.source: leaf(moments[pair.source][which]) if pair.source in moments else _zeros(shapes[pair.target])
            for pair in pairs
        }
        trees.append(assemble(pairs, sources, shapes, Report("score_sde_torch", path, "moments")))
    if len(counts) != 1:
        raise ConversionError(
            f"{path}: the parameters were trained for different numbers of steps, {sorted(counts)[:4]}"
        )
    return TrainingState(step, counts.pop(), params, ema_params, trees[0], trees[1], report)


def _torch_adam(
    state: Any, leaf: Callable[[Tensor], Leaf], names: list[str], frozen: frozenset[str], path: str
) -> tuple[dict[str, dict[str, Tensor]], set[int]]:
    """Adam's moments by parameter, and how many steps they are of; parameters that never train have none."""
    optimizer = state.get("optimizer") if isinstance(state, dict) else None
    entries = optimizer.get("state") if isinstance(optimizer, dict) else None
    groups = optimizer.get("param_groups") if isinstance(optimizer, dict) else None
    if not isinstance(entries, dict) or not isinstance(groups, list):
        raise ConversionError(f"{path} holds no state of an optimiser; it is no whole training state")
    ids = [number for group in groups if isinstance(group, dict) for number in group.get("params") or []]
    trainable = [name for name in names if name not in frozen]
    order = next((order for order in (names, trainable) if len(order) == len(ids)), None)
    if order is None:
        raise ConversionError(f"{path}: the optimiser has {len(ids)} parameters, the model {len(names)}")
    began = bool(entries) or _whole(state.get("step"), path) > 0
    moments, counts = {}, set()
    for name, number in zip(order, ids, strict=True):
        entry = entries.get(number)
        if isinstance(entry, dict) and all(isinstance(entry.get(k), Tensor) for k in ("exp_avg", "exp_avg_sq")):
            moments[name] = entry
            steps = entry.get("step")
            counts.add(_whole(leaf(steps) if isinstance(steps, Tensor) else steps, path))
        elif began and name not in frozen:
            raise ConversionError(f"{path}: Adam's moments of {name!r} are missing")
    return moments, counts


def _note_other(name: str, found: Any, ours: float, report: Report) -> None:
    """Note an option of the training that goes on with another value."""
    if isinstance(found, Leaf) and found.shape == () and not np.isclose(float(found.read()), ours, rtol=1e-4):
        theirs = float(found.read())
        report.notes.append(f"it was trained with {name}={theirs:.6g}; it goes on with the config's {ours:.6g}")


def _zeros(shape: Shape) -> Leaf:
    return Leaf(shape, "float32", lambda: np.zeros(shape, np.float32))


def _whole(value: Any, path: str) -> int:
    """A count of steps, which programs keep as a number or as an array."""
    found = value.read().item() if isinstance(value, Leaf) and value.shape == () else value
    if type(found) is float and found.is_integer():
        found = int(found)
    if type(found) is not int or not 0 <= found < 2**31:
        raise ConversionError(f"{path} does not say after how many steps it was saved; it is no whole training state")
    return found
