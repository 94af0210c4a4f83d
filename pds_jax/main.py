"""Command line: absl flags to run_lib. ``pds_jax --mode=sample --checkpoint=photos --workdir=runs/photos``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from absl import app, flags, logging
from ml_collections import config_flags

_MAIN = "pds_jax.main"
_MODES = ("sample", "train")

flags.DEFINE_enum("mode", None, _MODES, "What to do.", module_name=_MAIN)
config_flags.DEFINE_config_file(
    "config",
    None,
    "Configuration, e.g. configs/ve/cifar10_ncsnpp_continuous.py; override fields with --config.a.b=c. "
    "A checkpoint that carries its own configuration (photos, digits) needs none.",
    lock_config=False,
)
flags.DEFINE_string("workdir", None, "Folder of the run; everything is written below it.")
flags.DEFINE_string(
    "checkpoint",
    None,
    "Trained model: photos, digits, a folder with model.safetensors, a training workdir, or an original file "
    "of score_sde (checkpoint_N), score_sde_pytorch (.pth) or diffusers (folder).",
)
flags.DEFINE_bool("raw_weights", False, "Use the raw weights of a checkpoint instead of their moving average.")
flags.DEFINE_string("seeds", "0-15", "Which images: one per seed, e.g. 0-63 or 0-7,12,20-29.")
flags.DEFINE_integer("batch_size", None, "Images at once; by default the number of seeds, at most 64.")
flags.DEFINE_string("eval_folder", None, "Folder below workdir for this run's images. Default: samples.")
flags.DEFINE_float("speed_up", None, "Run N = num_scales / speed_up iterations, e.g. 20.")
flags.DEFINE_string("alpha", None, "Strength of PDS: a number above 1 (the papers use 5), auto, tune, or inf for none.")
flags.DEFINE_enum("filters", None, ["freq", "space", "both"], "Which filters of the statistics M uses.")
flags.DEFINE_enum("recipe", None, ["ijcv2025", "eccv2022"], "How filters are made from statistics.")
flags.DEFINE_string("statistics", None, "statistics.npz of the data; by default the checkpoint's own.")
flags.DEFINE_string("freq_mask_path", None, "Raw frequency statistics (C, H, W) .npy of the released PDS code.")
flags.DEFINE_string("space_mask_path", None, "Raw pixel statistics (C, H, W) .npy of the released PDS code.")
flags.DEFINE_float("radius", None, "Two-number filter without data: radius in DFT bins (with --lam).")
flags.DEFINE_float("lam", None, "Two-number filter without data: gain outside the radius.")
flags.DEFINE_string("predictor", None, "reverse_diffusion, euler_maruyama, ancestral_sampling, none, ...")
flags.DEFINE_string("corrector", None, "langevin, ald or none.")
flags.DEFINE_float("snr", None, "Signal-to-noise ratio of the corrector.")
flags.DEFINE_integer("n_steps_each", None, "Corrector steps an iteration.")
flags.DEFINE_enum("norm", None, ["sample", "batch"], "Langevin step from each image's norms, or the batch's mean.")
flags.DEFINE_enum("variant", None, ["paper", "exact"], "The papers' drift, or the bias-free one.")
flags.DEFINE_enum(
    "prior", None, ["standard", "matched"], "Start from noise, or from noise plus the data's mean and spectrum."
)
flags.DEFINE_enum("precision", "float32", ["float32", "tf32", "bfloat16"], "Matrix products of the network.")
flags.DEFINE_string("cache_dir", None, "Compilation cache; default: the user's cache folder; '' turns it off.")

FLAGS = flags.FLAGS

# Flag -> where it goes in the configuration.
_FIELDS = {
    "speed_up": "sampling.speed_up",
    "predictor": "sampling.predictor",
    "corrector": "sampling.corrector",
    "snr": "sampling.snr",
    "n_steps_each": "sampling.n_steps_each",
    "norm": "sampling.norm",
    "variant": "sampling.variant",
    "prior": "sampling.prior",
    "alpha": "pds.alpha",
    "filters": "pds.filters",
    "recipe": "pds.recipe",
    "statistics": "pds.statistics",
    "freq_mask_path": "pds.freq_mask_path",
    "space_mask_path": "pds.space_mask_path",
    "radius": "pds.r",
    "lam": "pds.lam",
}


def overrides() -> dict[str, object]:
    """The configuration fields that flags on this command line set."""
    return {field: FLAGS[name].value for name, field in _FIELDS.items() if FLAGS[name].value is not None}


def main(argv: Sequence[str]) -> None:
    """Check the flags, then hand over to run_lib."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected words {argv[1:]}; every option starts with --")
    if FLAGS.mode is None:
        raise app.UsageError("type --mode=sample or --mode=train; e.g. " + _EXAMPLE)
    if FLAGS.workdir is None:
        raise app.UsageError("type --workdir=FOLDER, where results go; e.g. " + _EXAMPLE)
    from pds_jax.cache import use_compilation_cache

    use_compilation_cache(FLAGS.cache_dir)
    from pds_jax import run_lib
    from pds_jax.types import PdsError

    try:
        run_lib.run(FLAGS.mode, FLAGS.config, FLAGS.workdir, overrides(), _options())
    except (PdsError, FloatingPointError) as error:
        logging.error("%s", error)
        print(f"pds_jax: {error}", file=sys.stderr)
        sys.exit(2)


_EXAMPLE = "pds_jax --mode=sample --checkpoint=photos --workdir=runs/photos --seeds=0-15 --speed_up=20 --alpha=5"


def _options() -> dict[str, object]:
    names = ("checkpoint", "raw_weights", "seeds", "batch_size", "eval_folder", "precision")
    return {name: FLAGS[name].value for name in names}


def run() -> None:
    """Console script."""
    app.run(main)


if __name__ == "__main__":
    run()
