"""Checkpoints: training states (orbax) and finished models (safetensors, configuration, statistics).

A finished model is a folder with ``model.safetensors`` (arrays named a/b/c), ``config.json``, and, where the data are
known, ``statistics.npz``. The names of the included models are in ``SHIPPED``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import hashlib
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import ml_collections
import numpy as np
from absl import logging

from pds_jax import convert
from pds_jax import statistics as statistics_lib
from pds_jax.config_defaults import complete
from pds_jax.convert import safetensors_io
from pds_jax.convert.orbax_io import quiet
from pds_jax.convert.tree import check_params, flatten, nest
from pds_jax.data.shapes import image_shape
from pds_jax.io import files
from pds_jax.types import PdsError

if TYPE_CHECKING:  # who only samples need not wait for optax
    from pds_jax.train_state import TrainState

Params = Any

STATISTICS = safetensors_io.STATISTICS
CONFIG = safetensors_io.CONFIG
SHIPPED = ("fashion", "landscapes", "photos", "digits", "fashion_small")
_PACKAGE = pathlib.Path(__file__).resolve().parent
_SHIPPED_FOLDERS = (_PACKAGE.parent / "checkpoints", _PACKAGE / "checkpoints_shipped")


# --- training states -------------------------------------------------------------------------------------------


# Of messages of tensorstore about a file that may be sound.
_NO_DAMAGE = ("PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "Too many open files", "Permission denied", "Out of memory")


class DamagedState(PdsError):
    """A training state that cannot be read."""


class TrainingFolder:
    """A folder of training states by step, written by orbax: each is whole or absent."""

    def __init__(self, folder: str | os.PathLike[str], keep: int | None = None, *, create: bool = True):
        """Open or make the folder.

        Args:
          folder: where.
          keep: how many of the newest states stay; None for all.
          create: make the folder if it is not there.

        Raises:
          PdsError: the folder cannot be made.
        """
        import orbax.checkpoint as ocp

        self._ocp = ocp
        self.folder = pathlib.Path(folder).absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=create, enable_async_checkpointing=False)
        try:
            with quiet():
                self._manager = ocp.CheckpointManager(self.folder, options=options)
        except OSError as error:
            raise PdsError(f"cannot use {self.folder}: {error.strerror or error}") from error

    def steps(self) -> list[int]:
        """Steps that have a state, ascending."""
        return sorted(self._manager.all_steps())

    def latest(self) -> int | None:
        """The newest step, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState) -> None:
        """Write a state; a step that is there already is left as it is.

        Raises:
          PdsError: no space or no permission; earlier states are unharmed.
        """
        if step in self._manager.all_steps():
            return
        from pds_jax.train_state import to_tree

        tree = jax.tree.map(np.asarray, to_tree(state))
        try:
            with quiet():
                self._manager.save(step, args=self._ocp.args.StandardSave(tree))
                self._manager.wait_until_finished()
        except (OSError, ValueError) as error:  # tensorstore calls a full disk a ValueError
            reason = getattr(error, "strerror", None) or str(error)[:300]
            raise PdsError(
                f"cannot save step {step} in {self.folder}: {reason}; free some space or choose another folder; "
                "earlier states are unharmed, and the same command continues from them"
            ) from error

    def restore_newest(self, template: TrainState) -> TrainState | None:
        """The newest state that can be read, or None; damaged ones are set aside with a warning, as ``damaged-STEP``.

        Args:
          template: see :meth:`restore`.

        Raises:
          PdsError: the newest readable state is of another configuration.
        """
        for step in reversed(self.steps()):
            try:
                return self.restore(step, template)
            except DamagedState as error:
                aside = self._set_aside(step)
                logging.warning("%s; it is kept as %s, going back to an earlier state", error, aside)
        return None

    def _set_aside(self, step: int) -> pathlib.Path:
        """Rename a state that cannot be read, so that its step can be saved again."""
        aside = self.folder / f"damaged-{step}"
        number = 1
        while aside.exists():
            number += 1
            aside = self.folder / f"damaged-{step}-{number}"
        with contextlib.suppress(FileNotFoundError):  # another process did
            (self.folder / str(step)).rename(aside)
        with quiet():
            self._manager.reload()
        return aside

    def restore(self, step: int, template: TrainState) -> TrainState:
        """Read a state.

        Args:
          step: which.
          template: a state of the same configuration, for structure, shapes and dtypes.

        Raises:
          PdsError: the state is missing, damaged or of another configuration.
        """
        from pds_jax.train_state import from_tree, to_tree

        expected, found = to_tree(template), flatten(self._read(step))
        wanted = flatten(expected)
        for name, leaf in wanted.items():
            there = found[name].shape if name in found else "absent"
            if there != np.shape(leaf):
                raise PdsError(
                    f"step {step} in {self.folder} is of another configuration: {name} is {there} there, the "
                    f"configuration needs {np.shape(leaf)}"
                )
        # Filled into the expected tree, since orbax may drop the empty nodes of an optimiser's state.
        return from_tree(template, _filled(expected, found, ""))

    def restore_params(self, step: int, *, use_ema: bool = True) -> Params:
        """Read the parameters of a state alone: their moving average, or the raw ones."""
        tree = self._read(step)
        name = "ema_params" if use_ema else "params"
        if name not in tree:
            raise PdsError(f"step {step} in {self.folder} holds no {name}; it is not a training state of pds_jax")
        return tree[name]

    def _read(self, step: int) -> dict[str, Any]:
        try:
            with quiet():
                tree = self._manager.restore(step, args=self._ocp.args.StandardRestore())
        except (PermissionError, MemoryError) as error:
            raise PdsError(f"cannot read step {step} in {self.folder}: {error or 'not enough memory'}") from error
        except Exception as error:  # orbax and tensorstore share no narrower base
            reason = " ".join(str(error).split())[:300]
            if any(word in reason for word in _NO_DAMAGE):
                raise PdsError(f"cannot read step {step} in {self.folder}: {reason}") from error
            raise DamagedState(f"step {step} in {self.folder} is missing or damaged: {reason}") from error
        return jax.tree.map(np.asarray, tree)

    def close(self) -> None:
        """Let go of the folder."""
        with quiet():
            self._manager.close()


def _filled(expected: Any, found: Mapping[str, np.ndarray], path: str) -> Any:
    if not isinstance(expected, Mapping):
        return found[path]
    return {key: _filled(value, found, f"{path}/{key}" if path else key) for key, value in expected.items()}


# --- finished models -------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A model read from somewhere.

    Attributes:
      params: parameter tree, float32 on the host.
      config: its configuration.
      statistics: of its data, or None.
      digest: SHA-256 of the parameters.
      path: where it came from.
      notes: what a user should know about how it was read, for example which of two sets of weights.
    """

    params: Params
    config: ml_collections.ConfigDict
    statistics: statistics_lib.Statistics | None
    digest: str
    path: str
    notes: tuple[str, ...] = ()


def digest_of(params: Params) -> str:
    """SHA-256 of a parameter tree: names, shapes and float32 values, in the order of the names."""
    digest = hashlib.sha256()
    for name, value in sorted(flatten(params).items()):
        array = np.ascontiguousarray(value, "<f4")
        digest.update(f"{name}{array.shape}".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def save_model(
    folder: str | os.PathLike[str],
    params: Params,
    config: Any,
    statistics: statistics_lib.Statistics | None = None,
) -> None:
    """Write a finished model: ``model.safetensors``, ``config.json`` and ``statistics.npz``.

    Args:
      folder: where; made if need be. A model that is there is replaced, its statistics included.
      params: parameter tree of the configuration's network.
      config: its configuration.
      statistics: of its data; None writes none.

    Raises:
      PdsError: parameters and configuration do not agree, or the folder cannot be written.
    """
    safetensors_io.export(params, config, folder, statistics)


def load_model(folder: str | os.PathLike[str], config: Any = None, *, use_ema: bool = True) -> Loaded:
    """Read a finished model.

    Args:
      folder: with ``model.safetensors`` and ``config.json``; or a name in ``SHIPPED``.
      config: configuration to use instead of the folder's.

    Returns:
      The model.

    Raises:
      PdsError: a file is missing, truncated or corrupt, or the parameters are not those of the configuration; the
        first that differs is named with both shapes.
    """
    place = _shipped(str(folder)) or pathlib.Path(folder)
    if place.is_file():
        place = place.parent
    if not (place / safetensors_io.MODEL).is_file():
        raise PdsError(f"{place} holds no {safetensors_io.MODEL}; give a model's folder, or one of {list(SHIPPED)}")
    config = complete(config) if config is not None else read_config(place / CONFIG)
    return _read(str(place), place, config, use_ema)


def _read(name: str, folder: pathlib.Path | None, config: Any, use_ema: bool) -> Loaded:
    """A checkpoint and the statistics of its data, if they lie in its folder."""
    params, report = convert.load_checkpoint(name, config, use_ema=use_ema)
    log_notes(name, report.notes)
    statistics = folder / STATISTICS if folder is not None else None
    stats = statistics_lib.load(statistics) if statistics is not None and statistics.is_file() else None
    return Loaded(params, config, stats, digest_of(params), name, tuple(report.notes))


def log_notes(name: str, notes: Iterable[str]) -> None:
    """Log what a user should know about how a checkpoint was read.

    Args:
      name: of the checkpoint.
      notes: the messages.
    """
    for note in notes:
        level = logging.INFO if note.startswith("read the moving average") else logging.WARNING
        logging.log(level, "%s: %s", name, note)


def load_any(checkpoint: str | os.PathLike[str], config: Any = None, *, use_ema: bool = True) -> Loaded:
    """Read a model from any supported file or folder.

    Args:
      checkpoint: a name in ``SHIPPED``; a finished model's folder; a training
        workdir (its newest state) or one state in it (workdir/checkpoints/4000); or a file or folder of
        score_sde, score_sde_pytorch, diffusers, EDM or guided-diffusion.
      config: configuration; needed if none is saved with the weights.
      use_ema: read the moving average of the weights if there is one, not the raw weights.

    Returns:
      The model.

    Raises:
      PdsError: there is no checkpoint, it is damaged, or it is of another network.
    """
    text = str(checkpoint)
    shipped = _shipped(text)
    if shipped is not None:
        return load_model(shipped, config)
    place = pathlib.Path(text)
    if not place.exists():
        hub = "; a model of the Hugging Face Hub is fetched by scripts/convert_checkpoint.py" * convert.is_hub_id(text)
        near = difflib.get_close_matches(text, SHIPPED, 1)
        hint = f"; did you mean {near[0]}?" if near else hub
        raise PdsError(f"checkpoint {text!r} is neither a path that exists nor one of {list(SHIPPED)}{hint}")
    if (place / safetensors_io.MODEL).is_file() or place.name == safetensors_io.MODEL:
        return load_model(place, config, use_ema=use_ema)
    training = _training_state(place)
    if training is not None:
        return _load_training(*training, config, use_ema)
    if config is None and convert.sniff(place) == "edm":
        config = convert.config_of(place)
    if config is None:
        kind = convert.sniff(place)  # first whether it is a checkpoint at all
        raise PdsError(
            f"{text} ({kind}) carries no configuration of pds_jax; give the one it was trained with, on the command "
            "line by --config=FILE.py"
        )
    return with_statistics_beside(_read(text, None, complete(config), use_ema), place)


def with_statistics_beside(found: Loaded, place: pathlib.Path) -> Loaded:
    """Add the statistics that lie beside another program's file, if they are of this package and of its images.

    Args:
      found: what was read.
      place: the file or the folder.

    Returns:
      The same with the statistics, and with a note on them or on why they are skipped.
    """
    path = (place if place.is_dir() else place.parent) / STATISTICS
    if not path.is_file():
        return found
    try:
        stats = statistics_lib.load(path)
        stats.check_shape(image_shape(found.config))
    except PdsError as error:
        note = f"{STATISTICS} beside it is skipped: {error}"
        logging.warning("%s: %s", found.path, note)
        return dataclasses.replace(found, notes=(*found.notes, note))
    note = f"the statistics of its data are {STATISTICS} beside it"
    return dataclasses.replace(found, statistics=stats, notes=(*found.notes, note))


def config_of(checkpoint: str | os.PathLike[str]) -> ml_collections.ConfigDict | None:
    """The configuration saved with a finished model or in a training folder; None if there is none.

    Raises:
      PdsError: it cannot be read.
    """
    place = _shipped(str(checkpoint)) or pathlib.Path(checkpoint)
    training = _training_state(place)
    folder = training[0] if training else place.parent if place.name == safetensors_io.MODEL else place
    ours = training is not None or (folder / safetensors_io.MODEL).is_file()
    return read_config(folder / CONFIG) if ours and (folder / CONFIG).is_file() else None


def _shipped(name: str) -> pathlib.Path | None:
    """The folder of a model that ships, if that is what the name means."""
    if name not in SHIPPED or os.path.exists(os.path.join(name, safetensors_io.MODEL)):
        return None
    for folder in _SHIPPED_FOLDERS:
        if (folder / name / safetensors_io.MODEL).is_file():
            return folder / name
    raise PdsError(
        f"the shipped model {name!r} is not in {_SHIPPED_FOLDERS[0]}; install pds_jax from its repository "
        "(pip install -e .), or give the path of its folder"
    )


def _training_state(place: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path, int | None] | None:
    """(workdir, folder of states, step or None for the newest) if the place is, or is in, a training workdir."""
    if place.name.isdigit() and place.parent.name in ("checkpoints", "checkpoints-meta"):
        return place.parent.parent, place.parent, int(place.name)
    if place.name in ("checkpoints", "checkpoints-meta") and (place.parent / CONFIG).is_file():
        return place.parent, place, None
    for name in ("checkpoints-meta", "checkpoints"):
        if (place / name).is_dir() and (place / CONFIG).is_file():
            return place, place / name, None
    return None


def _load_training(workdir: pathlib.Path, folder: pathlib.Path, step: int | None, config: Any, use_ema: bool) -> Loaded:
    config = complete(config) if config is not None else read_config(workdir / CONFIG)
    states = TrainingFolder(folder, create=False)
    try:
        step = states.latest() if step is None else step
        if step is None:
            raise PdsError(f"the training in {workdir} has not saved a state yet")
        params = nest(check_params(states.restore_params(step, use_ema=use_ema), config))
    finally:
        states.close()
    statistics = workdir / STATISTICS
    return Loaded(
        params,
        config,
        statistics_lib.load(statistics) if statistics.is_file() else None,
        digest_of(params),
        f"{workdir} at step {step}",
    )


def read_config(path: pathlib.Path) -> ml_collections.ConfigDict:
    """Read a configuration from a file config.json that this package wrote.

    Args:
      path: of the file.

    Returns:
      The configuration.

    Raises:
      PdsError: it is missing or damaged.
    """
    return complete(safetensors_io.config_of(path.parent))


# --- other small networks --------------------------------------------------------------------------------------


def save_parameters(folder: str | os.PathLike[str], params: Params, facts: Mapping[str, Any]) -> None:
    """Write parameters of any network as ``model.safetensors``, with facts about it as ``config.json``.

    Args:
      folder: where; made if need be.
      params: nested dicts of arrays.
      facts: what goes into config.json.

    Raises:
      PdsError: the folder cannot be written.
    """
    place = pathlib.Path(folder)
    arrays = {name: np.asarray(value, np.float32) for name, value in flatten(params).items()}
    safetensors_io.write_arrays(place / safetensors_io.MODEL, arrays, {"format": "pds_jax"})
    files.write_json(place / CONFIG, dict(facts))


def load_parameters(folder: str | os.PathLike[str]) -> tuple[Params, dict[str, Any]]:
    """Read what :func:`save_parameters` wrote.

    Returns:
      The parameter tree and the facts.

    Raises:
      PdsError: a file is missing or damaged.
    """
    place = pathlib.Path(folder)
    found = safetensors_io.leaves(place / safetensors_io.MODEL)
    return nest({name: leaf.read() for name, leaf in found.items()}), files.read_json(place / CONFIG)


def shipped_folder(name: str) -> pathlib.Path:
    """The folder of something that ships in checkpoints/, e.g. ``digits_classifier``.

    Raises:
      PdsError: there is no such folder.
    """
    for folder in _SHIPPED_FOLDERS:
        if (folder / name / safetensors_io.MODEL).is_file():
            return folder / name
    raise PdsError(f"{name} is not in {_SHIPPED_FOLDERS[0]}; install pds_jax from its repository (pip install -e .)")
