"""The flags of the command line, in groups. A new flag is one line in its group."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import pathlib
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags
from ml_collections import config_flags

MODULE = "pds_jax.main"
MODES = (
    "sample",
    "train",
    "eval",
    "inpaint",
    "colorize",
    "super_resolution",
    "deblur",
    "class_conditional",
)
WIDTH = 100


@dataclasses.dataclass(frozen=True)
class Flag:
    """One flag.

    Attributes:
      name: without the dashes.
      kind: str, int, float, bool, or a tuple of the values it may have.
      help: what it does, one sentence or two.
      value: what stands for its value in the help, e.g. "FOLDER".
      default: its value when it is not given; None where the program or the configuration decides.
      field: field of the configuration that it sets, e.g. "sampling.snr"; "" for an option of the run itself.
      otherwise: what happens when it is not given, where neither default nor field says so.
    """

    name: str
    kind: Any
    help: str
    value: str = ""
    default: Any = None
    field: str = ""
    otherwise: str = ""


# "config" is absl's configuration file flag; the others are defined from this table. The options of the run (no field)
# reach run_lib in `options`, the others in `overrides`.
GROUPS: dict[str, tuple[Flag, ...]] = {
    "Main": (
        Flag("mode", MODES, "What to do. Required."),
        Flag("workdir", str, "Folder of the run; everything is written below it. Required.", "FOLDER"),
        Flag("eval_folder", str, "Folder below workdir for this run's images.", "NAME", otherwise="samples"),
    ),
    "Model": (
        Flag(
            "checkpoint",
            str,
            "Trained model: photos, digits, a folder with model.safetensors, a training workdir, or an original file "
            "of score_sde (checkpoint_N), score_sde_pytorch (.pth) or diffusers (folder).",
            "NAME|PATH",
            otherwise="the training in workdir",
        ),
        Flag(
            "config",
            "config",
            "Configuration, e.g. configs/ve/cifar10_ncsnpp_continuous.py; override fields with --config.a.b=c or "
            "FILE.py:speed_up=20,alpha=5.",
            "FILE.py",
            otherwise="the one that lies with the weights",
        ),
        Flag("raw_weights", bool, "Use the raw weights of a checkpoint, not their moving average.", default=False),
    ),
    "What to make": (
        Flag("seeds", str, "Which images: one per seed, e.g. 0-63 or 0-7,12,20-29.", "LIST", "0-15"),
        Flag("batch_size", int, "Images at once.", "COUNT", otherwise="the number of seeds, at most 64"),
    ),
    "PDS": (
        Flag(
            "alpha",
            str,
            "Strength of M: a number above 1 (the papers use 5; larger is weaker), auto (from the number of steps), "
            "tune (by the spectrum of a few samples), or inf for no PDS.",
            "NUMBER|auto|tune|inf",
            field="pds.alpha",
        ),
        Flag("filters", ("freq", "space", "both"), "Which filters of the statistics M has.", field="pds.filters"),
        Flag("recipe", ("ijcv2025", "eccv2022"), "How statistics become filters.", field="pds.recipe"),
        Flag(
            "statistics",
            str,
            "Statistics of the data, made by scripts/make_statistics.py.",
            "FILE.npz",
            field="pds.statistics",
            otherwise="the checkpoint's own",
        ),
        Flag(
            "freq_mask_path",
            str,
            "Raw frequency statistics (C, H, W) of the released PDS code.",
            "FILE.npy",
            field="pds.freq_mask_path",
        ),
        Flag(
            "space_mask_path",
            str,
            "Raw pixel statistics (C, H, W) of the released PDS code.",
            "FILE.npy",
            field="pds.space_mask_path",
        ),
        Flag("radius", float, "Filter without data: radius in DFT bins; give --lam too.", "BINS", field="pds.r"),
        Flag("lam", float, "Filter without data: gain outside the radius.", "GAIN", field="pds.lam"),
        Flag(
            "solenoidal",
            float,
            "Strength of the skew-symmetric drift S beside M M^T; 0 for none.",
            "NUMBER",
            field="pds.solenoidal",
        ),
        Flag(
            "variant",
            ("paper", "exact"),
            "The papers' drift, or the one without bias (docs/theory.md).",
            field="sampling.variant",
        ),
        Flag(
            "prior",
            ("standard", "matched"),
            "Start from noise, or from noise plus the data's mean and spectrum.",
            field="sampling.prior",
        ),
    ),
    "Sampler": (
        Flag(
            "speed_up",
            float,
            "Run N = num_scales / speed_up iterations, e.g. 20.",
            "FACTOR",
            field="sampling.speed_up",
        ),
        Flag(
            "predictor",
            str,
            "reverse_diffusion, euler_maruyama, ancestral_sampling, none, ddim, heun, dpmpp_2m, ...: "
            "docs/how_to_choose.md.",
            "NAME",
            field="sampling.predictor",
        ),
        Flag("corrector", str, "langevin, ald or none.", "NAME", field="sampling.corrector"),
        Flag(
            "grid",
            ("uniform", "edm"),
            "Times of the steps: uniform in t, or those of EDM, for the solvers (ddim, heun, dpmpp_2m, ...).",
            field="sampling.grid",
        ),
        Flag(
            "method",
            ("pc", "ode"),
            "Predictor and corrector, or an adaptive solver of the probability flow, which chooses its steps itself.",
            field="sampling.method",
        ),
        Flag("snr", float, "Signal-to-noise ratio of the corrector.", "RATIO", field="sampling.snr"),
        Flag("n_steps_each", int, "Corrector steps an iteration.", "COUNT", field="sampling.n_steps_each"),
        Flag(
            "norm",
            ("sample", "batch"),
            "Langevin step from each image's norms, or from their mean over the batch as the originals do.",
            field="sampling.norm",
        ),
    ),
    "Conditional": (
        Flag(
            "images",
            str,
            "What is given: a folder, an image, .zip, .npz or .npy, or test:COUNT for test images of the model's data.",
            "PATH",
            otherwise="none; required by inpaint, colorize, super_resolution and deblur",
        ),
        Flag(
            "originals",
            bool,
            "The images are whole: take the measurement from them, and show them beside the results.",
            default=False,
        ),
        Flag(
            "resize_images",
            bool,
            "Crop images to their central part and resize it to what is needed; for train: data.resize.",
            default=False,
        ),
        Flag(
            "convert_images",
            bool,
            "Bring images to the model's channels: transparency on white, palettes, gray, CMYK, 16 bits; for train: "
            "data.convert_images.",
            default=False,
        ),
        Flag("per_image", int, "Results for each image given.", "COUNT", otherwise="1"),
        Flag(
            "mask",
            str,
            "For inpaint: white where pixels are known, black where they are to be found.",
            "FILE",
            otherwise="none; required by inpaint",
        ),
        Flag("factor", int, "For super_resolution: how many times more pixels a side.", "COUNT", otherwise="2"),
        Flag("blur_sigma", float, "For deblur: deviation of the Gaussian blur in pixels.", "PIXELS", otherwise="1"),
        Flag(
            "labels",
            str,
            "For class_conditional: class of each seed, e.g. 3 or 0-9, over and over.",
            "LIST",
            otherwise="none; required by class_conditional",
        ),
        Flag(
            "guidance",
            float,
            "Weight of the gradient of what is given; 0 only puts known parts in place, which is cheaper and biased.",
            "WEIGHT",
            otherwise="1",
        ),
    ),
    "Evaluation": (
        Flag(
            "extractor",
            ("inception", "digits", "patches", "pixels"),
            "What makes the features of FID and its kin.",
            otherwise="digits and patches for the shipped digits and photos, else inception",
        ),
        Flag(
            "inception_weights",
            str,
            "The Inception network of FID, the file of pytorch-fid; it is never downloaded.",
            "FILE",
            otherwise="$PDS_INCEPTION, else torch's cache",
        ),
        Flag(
            "ref",
            str,
            "Statistics of the reference images: of scripts/fid.py, pytorch-fid, EDM or score_sde.",
            "FILE.npz",
            otherwise="made from the training data",
        ),
        Flag("metrics", str, "Some of fid,kid,is,pr,dc.", "LIST", otherwise="fid, kid and is where they can be had"),
        Flag("allow_fewer", bool, "Accept an FID of fewer than 50000 images; the count is printed.", default=False),
        Flag(
            "eval_images",
            int,
            "Most images of the data for loss and bits/dim.",
            "COUNT",
            otherwise="all, 4096 of a data set without end",
        ),
    ),
    "Machine": (
        Flag(
            "precision",
            ("float32", "tf32", "bfloat16"),
            "What the network computes in; weights and the sampler's state are always float32.",
            default="float32",
        ),
        Flag(
            "max_batch",
            str,
            "Most images at once where --batch_size is not given; auto halves them when memory runs out.",
            "COUNT|auto",
            otherwise="64",
        ),
        Flag(
            "shard",
            str,
            "Make only the i-th of n shares of the images; the last shard to end merges.",
            "i/n",
            otherwise="all",
        ),
        Flag(
            "coordinator",
            str,
            "Run with other processes: address of the first one (docs/scale.md).",
            "HOST:PORT",
            otherwise="$PDS_JAX_COORDINATOR; $PDS_JAX_DISTRIBUTED=1 asks the cluster",
        ),
        Flag("num_processes", int, "How many processes.", "COUNT", otherwise="$PDS_JAX_NUM_PROCESSES"),
        Flag("process_id", int, "Which of them this is, from 0.", "INDEX", otherwise="$PDS_JAX_PROCESS_ID"),
        Flag(
            "cache_dir",
            str,
            "Compilation cache; '' turns it off.",
            "FOLDER",
            otherwise="the user's cache folder",
        ),
    ),
}

EXAMPLES = """\
  The shipped photos network, 16 images, 50 iterations, with PDS:
    pds_jax --mode=sample --checkpoint=photos --workdir=runs/photos --seeds=0-15 --speed_up=20 --alpha=5
  The same without PDS, to compare:
    pds_jax --mode=sample --checkpoint=photos --workdir=runs/photos --eval_folder=plain --seeds=0-15 --speed_up=20
  An official checkpoint and the masks of the released PDS code:
    pds_jax --mode=sample --config=configs/ve/cifar10_ncsnpp_continuous.py --checkpoint=checkpoint_26 \\
      --workdir=runs/cifar10 --speed_up=20 --freq_mask_path=freq.npy --space_mask_path=space.npy --norm=batch
  Digits of given classes; find the hidden part of images (white in the mask is known):
    pds_jax --mode=class_conditional --checkpoint=digits --workdir=runs/digits --seeds=0-9 --labels=0-9
    pds_jax --mode=inpaint --checkpoint=photos --workdir=runs/photos --images=my_images --mask=my_mask.png
  Loss, bits per dimension and sample quality of the checkpoints of a training:
    pds_jax --mode=eval --workdir=runs/train --metrics=fid,kid
  Train; the same command goes on after an interruption:
    pds_jax --mode=train --config=configs/photos.py --workdir=runs/train"""

EXAMPLE = EXAMPLES.splitlines()[1].strip()

_NOT_OPTIONS = ("mode", "config", "workdir", "cache_dir", "coordinator", "num_processes", "process_id")


def table() -> list[Flag]:
    """All flags in the order of the help."""
    return [flag for group in GROUPS.values() for flag in group]


def define(values: flags.FlagValues = flags.FLAGS) -> None:
    """Make absl know the flags, in the registry of the program or another."""
    for flag in table():
        words: dict[str, Any] = {"help": flag.help, "module_name": MODULE, "flag_values": values}
        if flag.kind == "config":
            config_flags.DEFINE_config_file(flag.name, None, flag.help, lock_config=False, flag_values=values)
        elif isinstance(flag.kind, tuple):
            flags.DEFINE_enum(flag.name, flag.default, flag.kind, **words)
        elif flag.kind is bool:
            flags.DEFINE_bool(flag.name, flag.default, **words)
        elif flag.kind is int:
            flags.DEFINE_integer(flag.name, flag.default, **words)
        elif flag.kind is float:
            flags.DEFINE_float(flag.name, flag.default, **words)
        else:
            flags.DEFINE_string(flag.name, flag.default, **words)


def overrides(values: flags.FlagValues) -> dict[str, Any]:
    """Configuration field -> value, for the flags given on the command line that set one."""
    given = {flag.field: values[flag.name].value for flag in table() if flag.field}
    return {field: value for field, value in given.items() if value is not None}


def options(values: flags.FlagValues) -> dict[str, Any]:
    """Name -> value of the flags that are not fields of the configuration."""
    return {flag.name: values[flag.name].value for flag in table() if not flag.field and flag.name not in _NOT_OPTIONS}


def with_installed_configs(words: Sequence[str]) -> list[str]:
    """The command line with ``configs/...`` found beside the installed package where it is not below this folder."""
    return [head + (_installed(path) if config else path) for head, path, config in _split(words)]


def missing_config(words: Sequence[str]) -> str | None:
    """The configuration that a command line names but that is not there."""
    named = [path for _, path, config in _split(words) if config]
    return next((path for path in named if not os.path.exists(path.partition(":")[0])), None)


def _split(words: Sequence[str]) -> Iterator[tuple[str, str, bool]]:
    """Words as (head with its =, value, whether the value is that of --config)."""
    for before, word in zip(["", *words], words, strict=False):
        head, equals, path = word.partition("=") if word.startswith("-") else ("", "", word)
        follows = not head and before.startswith("-") and before.lstrip("-") == "config"
        yield head + equals, path, (head.lstrip("-") == "config" and bool(equals)) or follows


def _installed(path: str) -> str:
    name, colon, argument = path.partition(":")
    root = importlib.util.find_spec("configs")
    if os.path.exists(name) or not name.startswith("configs/") or root is None or root.origin is None:
        return path
    place = pathlib.Path(root.origin).parent.parent / name
    return f"{place}{colon}{argument}" if place.exists() else path


def help_text() -> str:
    """What ``pds_jax --help`` prints."""
    parts = [
        "pds_jax: sample score-based generative models with and without preconditioning, judge and train them.",
        "Usage: pds_jax --mode=MODE --workdir=FOLDER [flags]",
        "Examples:\n" + EXAMPLES,
    ]
    for name, group in GROUPS.items():
        if group:
            parts.append("\n".join([f"{name}:", *map(_entry, group)]))
    parts.append(
        "A default [section.field] is the configuration's. Any other field: --config.section.field=value.\n"
        "Results lie in WORKDIR/EVAL_FOLDER; the last lines printed say where. All flags of all modules: --helpfull."
    )
    return "\n\n".join(parts) + "\n"


def _entry(flag: Flag) -> str:
    if flag.kind is bool:
        head = f"--[no]{flag.name}"
    else:
        head = f"--{flag.name}={'|'.join(flag.kind) if isinstance(flag.kind, tuple) else flag.value or 'VALUE'}"
    default = flag.otherwise
    if flag.default is not None:
        default = str(flag.default).lower() if flag.kind is bool else str(flag.default)
    if flag.field:
        default = f"{default} [{flag.field}]" if default else f"[{flag.field}]"
    text = f"{flag.help} Default: {default}." if default else flag.help
    return "\n".join([f"  {head}", *textwrap.wrap(text, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)])
