"""The text of ``pds_jax --help`` and ``pds_jax --mode=TASK --help``."""

from __future__ import annotations

import textwrap

from pds_jax.cli.flags import GROUPS, MODES, TASKS, Flag

WIDTH = 100
_MIXED = ("Every task", "Model", "Machine")

EXAMPLES = """\
  Sample the included photos network with PDS, 16 images, 100 network evaluations each:
    pds_jax --mode=sample --checkpoint=photos --workdir=runs/photos --seeds=0-15 --nfe=100 --alpha=5
  The same seeds without PDS, to compare:
    pds_jax --mode=sample --checkpoint=photos --workdir=runs/photos --eval_folder=plain --seeds=0-15 --nfe=100
  Sample an official checkpoint with the masks of the released PDS code:
    pds_jax --mode=sample --config=configs/ve/cifar10_ncsnpp_continuous.py --checkpoint=checkpoint_26 \\
      --workdir=runs/cifar10 --speed_up=20 --freq_mask_path=freq.npy --space_mask_path=space.npy --norm=batch
  Sample digits of given classes; fill in the unknown part of images (known pixels are white in the mask):
    pds_jax --mode=class_conditional --checkpoint=digits --workdir=runs/digits --seeds=0-9 --labels=0-9 --nfe=100
    pds_jax --mode=inpaint --checkpoint=photos --workdir=runs/photos --images=my_images --mask=my_mask.png --nfe=80
  Train; evaluate the checkpoints; sample the newest:
    pds_jax --mode=train --config=configs/photos.py --workdir=runs/train
    pds_jax --mode=eval --workdir=runs/train --metrics=fid,kid
    pds_jax --mode=sample --workdir=runs/train --nfe=100 --alpha=5"""

EXAMPLE = EXAMPLES.splitlines()[1].strip()


def help_text(mode: str | None = None) -> str:
    """The help of a task, or of all."""
    parts = [
        "pds_jax: sample, train and evaluate score-based generative models, with and without preconditioning (PDS).",
        "Usage: pds_jax --mode=TASK --workdir=FOLDER [flags]\n"
        "       pds_jax --mode=TASK --help     the flags of one task\n"
        "       pds_jax doctor                 versions, devices, cache, and a one-second self-test",
    ]
    if mode is None:
        tasks = "\n".join(f"  {name:<18} {text}" for name, text in TASKS.items())
        parts += [f"Tasks:\n{tasks}", f"Examples:\n{EXAMPLES}"]
    else:
        parts += [f"--mode={mode}: {TASKS[mode]}"]
    for name, group in GROUPS.items():
        shown = [flag for flag in group if mode is None or mode in flag.modes]
        if shown:
            common = MODES if mode or name in _MIXED else max((flag.modes for flag in group), key=len)
            parts.append("\n".join([f"{name}{_users(common)}:", *(_entry(flag, common, mode) for flag in shown)]))
    parts.append(
        "A default [section.field] is that of the configuration. PDS is off without --alpha, a mask,\n"
        "--radius or --filters=flat with --gain.\n"
        "A flag that the task does not use is an error. The last lines of output say where the results are."
    )
    return "\n\n".join(parts) + "\n"


def _users(modes: tuple[str, ...]) -> str:
    others = [mode for mode in MODES if mode not in modes]
    text = f"not {', '.join(others)}" if len(others) < 3 else f"for {', '.join(modes)}"
    return f"   ({text})" if others else ""


def _entry(flag: Flag, common: tuple[str, ...], mode: str | None) -> str:
    if flag.kind is bool:
        head = f"--[no]{flag.name}"
    else:
        head = f"--{flag.name}={flag.value or ('|'.join(flag.kind) if isinstance(flag.kind, tuple) else 'VALUE')}"
    if mode is None and flag.modes != common:
        head += _users(flag.modes)
    default = flag.otherwise
    if flag.default is not None:
        default = str(flag.default).lower() if flag.kind is bool else str(flag.default)
    if flag.field:
        default = f"{default} [{flag.field}]" if default else f"[{flag.field}]"
    text = f"{flag.help} Default: {default}." if default else flag.help
    return "\n".join([f"  {head}", *textwrap.wrap(text, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)])
