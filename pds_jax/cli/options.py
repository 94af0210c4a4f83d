"""What a command asks for: frozen dataclasses, built once from flags, that the jobs take."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from pds_jax import checkpoints
from pds_jax.alpha import parse_alpha
from pds_jax.config_defaults import complete
from pds_jax.io import files
from pds_jax.plugins import Plugin, load_plugin
from pds_jax.steps import read_value
from pds_jax.types import PdsError


@dataclasses.dataclass(frozen=True)
class SamplerOptions:
    """Keyword arguments of ``assembly.plan``; None for what the configuration decides."""

    nfe: int | None = None
    speed_up: float | None = None
    predictor: str | None = None
    corrector: str | None = None
    grid: str | None = None
    solver_options: str | None = None
    method: str | None = None
    snr: float | None = None
    n_steps_each: int | None = None
    norm: str | None = None
    alpha: float | str | None = None
    filters: str | None = None
    gain: float | None = None
    recipe: str | None = None
    statistics: str | None = None
    freq_mask_path: str | None = None
    space_mask_path: str | None = None
    r: float | None = None
    lam: float | None = None
    solenoidal: float | None = None
    variant: str | None = None
    prior: str | None = None
    stochasticity: float | str | None = None
    spectrum: float | None = None
    kappa: float | None = None
    head_start: float | str | None = None
    colours: bool | None = None
    corrector_levels: tuple[float, float] | None = None
    pilot_gain: bool | None = None

    def given(self) -> dict[str, Any]:
        """Those that were given."""
        words = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in words.items() if value is not None}


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """One run of the command line; the fields are the flags (``cli.flags``), parsed.

    Attributes:
      overrides: (section.field, value as text) of ``--config.section.field=value``, applied to the configuration.
      max_batch: most images at once where batch_size is None; None halves them when memory runs out.
      shard: (index, count).
    """

    mode: str
    workdir: pathlib.Path
    eval_folder: str | None = None
    plugin: tuple[Plugin, ...] = ()
    checkpoint: str | None = None
    config: ConfigDict | None = None
    overrides: tuple[tuple[str, str], ...] = ()
    raw_weights: bool = False
    seeds: tuple[int, ...] = tuple(range(16))
    batch_size: int | None = None
    sampler: SamplerOptions = SamplerOptions()
    images: str | None = None
    originals: bool = False
    resize_images: bool = False
    convert_images: bool = False
    per_image: int = 1
    mask: str | None = None
    factor: int = 2
    blur_sigma: float = 1.0
    labels: tuple[int, ...] | str | None = None
    guidance: float | None = None
    guidance_interval: tuple[float, float] | None = None
    classifier: str | None = None
    classifier_config: ConfigDict | None = None
    classifier_scale: float | None = None
    prompt: str | None = None
    prompts: str | None = None
    negative_prompt: str | None = None
    image_size: tuple[int, int] | None = None
    decode_tile: int | None = None
    extractor: str | None = None
    inception_weights: str | None = None
    ref: str | None = None
    metrics: tuple[str, ...] | None = None
    allow_fewer: bool = False
    eval_images: int | None = None
    precision: str = "float32"
    max_batch: int | None = 64
    shard: tuple[int, int] = (0, 1)

    @property
    def dtype(self) -> str | None:
        """The network's dtype that the precision asks for; None for the configuration's."""
        return "bfloat16" if self.precision == "bfloat16" else None

    @property
    def guidance_weight(self) -> float:
        """``guidance``, 1 where it was not given."""
        return 1.0 if self.guidance is None else self.guidance

    @property
    def weights(self) -> str:
        """Where the weights are: the checkpoint, else the training in workdir."""
        return self.checkpoint or str(self.workdir)

    def configuration(self, place: str | None = None) -> ConfigDict | None:
        """The configuration that was given, with its overrides; None to take that of the weights as it is.

        Args:
          place: where a configuration may lie, if none was given; by default with the weights.

        Raises:
          PdsError: there is nothing to override, or no such field.
        """
        if self.config is None and not self.overrides:
            return None
        place = place or self.weights
        config = self.config if self.config is not None else checkpoints.config_of(place)
        if config is None:
            path, text = self.overrides[0]
            raise PdsError(f"--config.{path}={text}: {place} holds no configuration to change; add --config=FILE.py")
        return with_fields(complete(config), self.overrides)


def from_flags(given: Mapping[str, Any], fields: Mapping[str, str]) -> RunOptions:
    """The options of flags that were given.

    Args:
      given: flag -> its value; texts are parsed here.
      fields: flag -> its name in :class:`SamplerOptions`, for the flags that are there.

    Raises:
      PdsError: a value that cannot be parsed; the message names the flag.
    """
    parsed = {name: _PARSERS[name](value) if name in _PARSERS else value for name, value in given.items()}
    sampler = {fields[name]: parsed.pop(name) for name in list(parsed) if name in fields}
    return RunOptions(sampler=SamplerOptions(**sampler), **parsed)


def _alpha(text: str) -> float | str:
    try:
        return parse_alpha(text)
    except PdsError as error:
        raise PdsError(f"--{error}") from None


def _labels(text: str) -> tuple[int, ...] | str:
    return text if text in ("random", "none") else tuple(files.parse_seeds(text, "--labels", "label"))


def _interval(text: str) -> tuple[float, float]:
    try:
        low, high = (float(end) for end in text.split(","))
    except ValueError:
        raise PdsError(f"--guidance_interval={text}: write LOW,HIGH, two noise levels such as 0.28,2.9") from None
    return low, high


def _levels(text: str) -> tuple[float, float]:
    try:
        low, high = (float(end) for end in text.split(","))
    except ValueError:
        raise PdsError(f"--corrector_levels={text}: write LOW,HIGH, two noise levels such as 0,1.5") from None
    return low, high


def _number_or(flag: str, words: Mapping[str, Any]) -> Callable[[str], Any]:
    """Read a number, or one of some words as what it stands for."""

    def read(text: str) -> Any:
        try:
            return words[text] if text in words else float(text)
        except ValueError:
            raise PdsError(f"--{flag}={text}: use a number, or {' or '.join(words)}") from None

    return read


def _max_batch(text: str) -> int | None:
    if text == "auto":
        return None
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise PdsError(f"--max_batch={text}: use a number of at least 1, or auto")
    return int(text)


def _image_size(text: str) -> tuple[int, int]:
    sides = text.lower().split("x")
    if not 1 <= len(sides) <= 2 or not all(side.isascii() and side.isdigit() and int(side) > 0 for side in sides):
        raise PdsError(f"--image_size={text}: write the pixels of a side, or HEIGHTxWIDTH, for example 512 or 512x768")
    return int(sides[0]), int(sides[-1])


def _workdir(text: str) -> pathlib.Path:
    if not text:
        raise PdsError("--workdir= is empty: write the folder of the run, or . for this one")
    return pathlib.Path(text)


def _eval_folder(text: str) -> str:
    if not text or ".." in pathlib.Path(text).parts or not pathlib.Path("x", text).parts[1:] or os.path.isabs(text):
        raise PdsError(
            f"--eval_folder={text}: write the name of a folder in --workdir, such as plain; all files of a run are "
            "below --workdir"
        )
    return text


_PARSERS: Mapping[str, Callable[[Any], Any]] = {
    "workdir": _workdir,
    "eval_folder": _eval_folder,
    "seeds": lambda text: tuple(files.parse_seeds(text)),
    "labels": _labels,
    "guidance_interval": _interval,
    "shard": files.parse_shard,
    "plugin": lambda text: tuple(load_plugin(path) for path in text.split(",")),
    "metrics": lambda text: tuple(text.split(",")),
    "alpha": _alpha,
    "image_size": _image_size,
    "max_batch": _max_batch,
    "stochasticity": _number_or("stochasticity", {"M": "M"}),
    "spectrum": _number_or("spectrum", {"on": 1.0, "off": 0.0}),
    "head_start": _number_or("head_start", {"auto": "auto", "off": "off"}),
    "corrector_levels": _levels,
}


def named_values(words: Sequence[str], flag: str) -> dict[str, Any]:
    """Options of repeated ``--flag=name=value``; values are read as those of ``solver_options``.

    >>> named_values(["kappa=0.4", "grid=edm", "colours=true"], "option")
    {'kappa': 0.4, 'grid': 'edm', 'colours': True}

    Raises:
      PdsError: a word of another form, or a name that stands twice.
    """
    found: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name or not text or name in found:
            raise PdsError(f"--{flag}={word}: each is name=value, and each name stands once")
        found[name] = read_value(text)
    return found


# --- --config.section.field=value ------------------------------------------------------------------------------


def with_fields(config: ConfigDict, overrides: tuple[tuple[str, str], ...]) -> ConfigDict:
    """A copy of a configuration with fields set from text, each read as what it is there.

    Raises:
      PdsError: no such field (the nearest is named), or text that is no such value.
    """
    changed = ConfigDict(config.to_dict())
    for path, text in overrides:
        section, field = _owner(changed, path)
        value = _read(path, text, section[field])
        with section.ignore_type():
            section[field] = value
    return changed


def _owner(config: ConfigDict, path: str) -> tuple[ConfigDict, str]:
    """The section that holds a field, and the field's name in it."""
    *sections, field = path.split(".")
    owner: Any = config
    for name in sections:
        owner = owner.get(name) if isinstance(owner, ConfigDict) else None
    if isinstance(owner, ConfigDict) and field in owner and not isinstance(owner[field], ConfigDict):
        return owner, field
    known = [f"{name}.{key}" for name, value in config.items() if isinstance(value, ConfigDict) for key in value]
    near = difflib.get_close_matches(path, known, 1)
    near = near or [name for name in known if name.split(".")[1] == field]
    hint = f"; did you mean --config.{near[0]}?" if near else f"; sections: {', '.join(sorted(config))}"
    raise PdsError(f"--config.{path}: the configuration has no such field{hint}")


def _read(path: str, text: str, old: Any) -> Any:
    """Text as a value of the type that is there."""
    if path == "pds.alpha":
        return parse_alpha(text)
    try:
        if isinstance(old, bool):
            return {"true": True, "false": False, "1": True, "0": False}[text.lower()]
        if isinstance(old, str):
            return text
        if isinstance(old, int):
            return int(text)
        if isinstance(old, float):
            return float(text)
        value = ast.literal_eval(text)
    except (KeyError, ValueError, SyntaxError):
        value = NotImplemented
    if isinstance(old, tuple | list) and isinstance(value, tuple | list):
        return type(old)(value)
    if old is None and value is not NotImplemented:
        return value
    raise PdsError(f"--config.{path}={text}: use a value of type {type(old).__name__}, as {old!r} is")
