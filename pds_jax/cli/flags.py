"""The flags of the command line: a table, in groups. A new flag is one line in its group."""

from __future__ import annotations

import dataclasses
from typing import Any

from absl import flags
from ml_collections import config_flags

MODULE = "pds_jax.main"
TASKS = {
    "sample": "Draw images from a trained model.",
    "train": "Train a network; the same command resumes an interrupted training.",
    "eval": "Compute loss, bits per dimension and FID for the checkpoints of a training.",
    "inpaint": "Fill in the unknown part of images.",
    "colorize": "Add colours to gray images.",
    "super_resolution": "Enlarge small images.",
    "deblur": "Sharpen blurred images.",
    "class_conditional": "Draw digits of given classes (other models: --mode=sample --labels).",
}
MODES = tuple(TASKS)
CONDITIONAL = ("inpaint", "colorize", "super_resolution", "deblur", "class_conditional")
_GIVEN = CONDITIONAL[:-1]  # something is known of each image
_MAKES = ("sample", *CONDITIONAL)
_SAMPLES = ("sample", "eval", *CONDITIONAL)
_LABELLED = ("sample", "class_conditional")


@dataclasses.dataclass(frozen=True)
class Flag:
    """One flag.

    Attributes:
      name: without the dashes.
      kind: str, int, float, bool, "config", or a tuple of allowed values.
      help: one or two sentences.
      value: placeholder for its value in the help, e.g. "FOLDER".
      default: default value, for the help; None if the program or the configuration decides.
      field: field of the configuration that it sets, e.g. "sampling.snr"; "" for an option of the run itself.
      otherwise: default in words, if neither default nor field gives it.
      modes: tasks that use it; other tasks refuse it.
    """

    name: str
    kind: Any
    help: str
    value: str = ""
    default: Any = None
    field: str = ""
    otherwise: str = ""
    modes: tuple[str, ...] = MODES

    @property
    def option(self) -> str:
        """Its name in ``options.RunOptions`` or ``options.SamplerOptions``."""
        return self.field.partition(".")[2] or self.name


# "config" is a configuration file, for ml_collections to load.
GROUPS: dict[str, tuple[Flag, ...]] = {
    "Every task": (
        Flag("mode", MODES, "Task, see above. Required.", "TASK"),
        Flag("workdir", str, "Folder of the run; all files are written there. Required.", "FOLDER"),
        Flag(
            "eval_folder",
            str,
            "Subfolder of workdir for the images of this run.",
            "NAME",
            otherwise="samples; for other tasks their name",
            modes=_SAMPLES,
        ),
    ),
    "Model": (
        Flag(
            "checkpoint",
            str,
            "Trained model: fashion, landscapes, photos, digits, fashion_small, a folder with model.safetensors, a "
            "training workdir, or a file of score_sde (checkpoint_N), score_sde_pytorch (.pth), diffusers (folder; "
            "Stable Diffusion 1 and 2 too), EDM (.pkl) or guided-diffusion (.pt). With --mode=train, a full training "
            "state of score_sde or score_sde_pytorch to continue from.",
            "NAME|PATH",
            otherwise="the training in workdir",
            modes=(*_SAMPLES, "train"),
        ),
        Flag(
            "config",
            "config",
            "Configuration, e.g. configs/ve/cifar10_ncsnpp_continuous.py.",
            "FILE.py",
            otherwise="the one saved with the weights",
        ),
        Flag(
            "config.section.field",
            "override",
            "Set any field of the configuration, e.g. --config.eval.num_samples=1000; also without --config.",
            "VALUE",
            otherwise="the value in the configuration",
        ),
        Flag(
            "plugin",
            str,
            "Your Python file that registers predictors, correctors, SDEs or networks, to use them by name; separate "
            "several files by commas.",
            "FILE.py",
            otherwise="none",
        ),
        Flag(
            "raw_weights",
            bool,
            "Use the raw weights of a checkpoint, not their moving average.",
            default=False,
            modes=_SAMPLES,
        ),
    ),
    "Which images": (
        Flag("seeds", str, "One image per seed, e.g. 0-63 or 0-7,12,20-29.", "LIST", "0-15", modes=_LABELLED),
        Flag(
            "batch_size",
            int,
            "Images per batch.",
            "COUNT",
            otherwise="the number of seeds, at most 64; for eval that of the configuration",
            modes=_SAMPLES,
        ),
    ),
    "PDS": (
        Flag(
            "alpha",
            str,
            "Strength of M: a number above 1 (the papers use 5; larger is weaker), auto (from the number of steps), "
            "tune (128 samples per strength; it may choose no M or, without --filters, a flat M), or inf, which turns "
            "PDS off.",
            "NUMBER|auto|tune|inf",
            field="pds.alpha",
            modes=_SAMPLES,
        ),
        Flag(
            "filters",
            ("freq", "space", "both", "flat"),
            "Filters of M: R (freq), A (space) or both; flat is M = c I, c from --gain, without statistics or alpha.",
            field="pds.filters",
            modes=_SAMPLES,
        ),
        Flag("recipe", ("ijcv2025", "eccv2022"), "Formula for the filters.", field="pds.recipe", modes=_SAMPLES),
        Flag(
            "statistics",
            str,
            "Statistics of the data, made by scripts/make_statistics.py.",
            "FILE.npz",
            field="pds.statistics",
            otherwise="those saved with the checkpoint",
            modes=_SAMPLES,
        ),
        Flag(
            "freq_mask_path",
            str,
            "Raw frequency statistics (C, H, W) of the released PDS code; alpha is 5 unless given.",
            "FILE.npy",
            field="pds.freq_mask_path",
            modes=_SAMPLES,
        ),
        Flag(
            "space_mask_path",
            str,
            "Raw pixel statistics (C, H, W) of the released PDS code; alpha is 5 unless given.",
            "FILE.npy",
            field="pds.space_mask_path",
            modes=_SAMPLES,
        ),
        Flag(
            "radius",
            float,
            "Filter without data: radius in DFT bins, for instance a tenth of the height; needs --lam.",
            "BINS",
            field="pds.r",
            modes=_SAMPLES,
        ),
        Flag("gain", float, "c of --filters=flat, for instance 1.15.", "GAIN", field="pds.gain", modes=_SAMPLES),
        Flag(
            "lam",
            float,
            "Filter without data: gain outside the radius, e.g. 1.6.",
            "GAIN",
            field="pds.lam",
            modes=_SAMPLES,
        ),
        Flag(
            "solenoidal",
            float,
            "Strength of the skew-symmetric drift S that is added to M M^T; 0 for none.",
            "NUMBER",
            field="pds.solenoidal",
            modes=_SAMPLES,
        ),
        Flag(
            "variant",
            ("paper", "exact"),
            "Drift of the papers, or the one without bias (docs/theory.md).",
            field="sampling.variant",
            modes=_SAMPLES,
        ),
        Flag(
            "prior",
            ("standard", "matched"),
            "Start from noise, or from noise with the data's mean and spectrum.",
            field="sampling.prior",
            modes=_SAMPLES,
        ),
    ),
    "Sampler": (
        Flag(
            "nfe",
            int,
            "Network evaluations per image, rounded down to whole iterations; use this or --speed_up.",
            "COUNT",
            otherwise="from speed_up",
            modes=_SAMPLES,
        ),
        Flag(
            "speed_up",
            float,
            "Run N = num_scales / speed_up iterations.",
            "FACTOR",
            field="sampling.speed_up",
            modes=_SAMPLES,
        ),
        Flag(
            "predictor",
            str,
            "reverse_diffusion, euler_maruyama, ancestral_sampling, none, ddim, heun, dpmpp_2m, ...; all are in "
            "docs/how_to_choose.md. auto chooses one.",
            "NAME",
            field="sampling.predictor",
            modes=_SAMPLES,
        ),
        Flag(
            "corrector",
            str,
            "langevin, langevin_exact, ald or none.",
            "NAME",
            field="sampling.corrector",
            modes=_SAMPLES,
        ),
        Flag(
            "grid",
            str,
            "Times of the steps: uniform in t; or, for the solvers (ddim, heun, dpmpp_2m, ...), edm, log_sigma, "
            "quadratic, spectrum or gits (from the network's own path in many steps).",
            "NAME",
            field="sampling.grid",
            modes=_SAMPLES,
        ),
        Flag(
            "solver_options",
            str,
            "Options of the predictor and the grid, e.g. order=2,form=bh1,rho=5; see docs/how_to_choose.md.",
            "NAME=VALUE,...",
            field="sampling.solver_options",
            modes=_SAMPLES,
        ),
        Flag(
            "stochasticity",
            str,
            "lambda of predictor spectral: 0 is the probability flow, 1 the reverse SDE, M the papers' M in its exact "
            "form, with --alpha.",
            "NUMBER|M",
            field="sampling.stochasticity",
            otherwise="0",
            modes=_SAMPLES,
        ),
        Flag(
            "spectrum",
            str,
            "Factor of the data's spectrum in predictor spectral and corrector langevin_exact, from 0 (off) to 1 (on).",
            "NUMBER|on|off",
            field="sampling.spectrum",
            otherwise="on",
            modes=_SAMPLES,
        ),
        Flag(
            "kappa",
            float,
            "How much predictor spectral extrapolates from two evaluations: 1 is second order, 0 first.",
            "NUMBER",
            field="sampling.kappa",
            otherwise="1",
            modes=_SAMPLES,
        ),
        Flag(
            "head_start",
            str,
            "Start at this noise level instead of the highest, from a Gaussian with the data's mean and spectrum; auto "
            "takes the lowest at which that changes the result little. Needs --prior=matched.",
            "LEVEL|off|auto",
            field="sampling.head_start",
            otherwise="off",
            modes=_SAMPLES,
        ),
        Flag(
            "colours",
            bool,
            "Use the data's spectrum along the principal axes of its colours, not of each channel.",
            field="sampling.colours",
            otherwise="off",
            modes=_SAMPLES,
        ),
        Flag(
            "corrector_levels",
            str,
            "Correct at these noise levels only.",
            "LOW,HIGH",
            field="sampling.corrector_levels",
            otherwise="all",
            modes=_SAMPLES,
        ),
        Flag(
            "pilot_gain",
            bool,
            "Correct the spectrum of predictor spectral step by step, from a pilot run of 512 images.",
            field="sampling.pilot_gain",
            otherwise="off",
            modes=_SAMPLES,
        ),
        Flag(
            "method",
            ("pc", "ode"),
            "Predictor and corrector, or an adaptive solver of the probability flow, which chooses its own steps.",
            field="sampling.method",
            modes=_SAMPLES,
        ),
        Flag("snr", float, "Signal-to-noise ratio of the corrector.", "RATIO", field="sampling.snr", modes=_SAMPLES),
        Flag(
            "n_steps_each",
            int,
            "Corrector steps per iteration.",
            "COUNT",
            field="sampling.n_steps_each",
            modes=_SAMPLES,
        ),
        Flag(
            "norm",
            ("sample", "batch"),
            "Langevin step size from the norms of each image, or from their mean over the batch, as in score_sde.",
            field="sampling.norm",
            modes=_SAMPLES,
        ),
    ),
    "Conditional sampling": (
        Flag(
            "images",
            str,
            "Given images: a folder, an image, .zip, .npz or .npy, or test:COUNT for test images of the model's data.",
            "PATH",
            otherwise="none; required by inpaint, colorize, super_resolution and deblur",
            modes=_GIVEN,
        ),
        Flag(
            "originals",
            bool,
            "The images are complete: compute the measurement from them, and show them beside the results.",
            default=False,
            modes=_GIVEN,
        ),
        Flag(
            "resize_images",
            bool,
            "Crop the centre of images and resize it to the model's size; for train: data.resize.",
            default=False,
            modes=("train", *_GIVEN),
        ),
        Flag(
            "convert_images",
            bool,
            "Convert images to the model's channels: transparency on white, palettes, gray, CMYK, 16 bits; for train: "
            "data.convert_images.",
            default=False,
            modes=("train", *_GIVEN),
        ),
        Flag("per_image", int, "Results per given image.", "COUNT", otherwise="1", modes=_GIVEN),
        Flag(
            "mask",
            str,
            "For inpaint: white where pixels are known, black where they are filled in.",
            "FILE",
            otherwise="none; required by inpaint",
            modes=("inpaint",),
        ),
        Flag(
            "factor",
            int,
            "For super_resolution: factor by which width and height grow.",
            "COUNT",
            otherwise="2",
            modes=("super_resolution",),
        ),
        Flag(
            "blur_sigma",
            float,
            "For deblur: standard deviation of the Gaussian blur in pixels.",
            "PIXELS",
            otherwise="1",
            modes=("deblur",),
        ),
        Flag(
            "labels",
            str,
            "Class of each image, e.g. 3 or 0-9, repeated as needed; or random or none, for a network trained with "
            "classes.",
            "LIST|random|none",
            otherwise="nothing; class_conditional and networks with classes need it",
            modes=_MAKES,
        ),
        Flag(
            "guidance",
            float,
            "For sample: weight of classifier-free guidance, which doubles the evaluations; 1 turns it off. For other "
            "tasks: weight of the gradient of the measurement; 0 only pins known parts, which is cheaper and biased.",
            "WEIGHT",
            otherwise="1; with a prompt 7.5",
            modes=_MAKES,
        ),
        Flag(
            "guidance_interval",
            str,
            "Guide only between these noise levels, in the range of the model's images.",
            "LOW,HIGH",
            otherwise="everywhere",
            modes=("sample",),
        ),
        Flag(
            "classifier",
            str,
            "Classifier of noisy images that guides to the labels, with or without classifier-free guidance: a file of "
            "guided-diffusion (.pt) or a folder with model.safetensors.",
            "PATH",
            otherwise="none",
            modes=("sample",),
        ),
        Flag(
            "classifier_config",
            "config",
            "Configuration of the classifier, e.g. configs/adm/classifier256.py.",
            "FILE.py",
            otherwise="the one saved with its weights",
            modes=("sample",),
        ),
        Flag(
            "classifier_scale",
            float,
            "Weight of the classifier's gradient.",
            "WEIGHT",
            otherwise="1",
            modes=("sample",),
        ),
    ),
    "Text to image": (
        Flag("prompt", str, "Prompt for all seeds.", "TEXT", otherwise="none", modes=("sample",)),
        Flag(
            "prompts",
            str,
            "Prompts in a file: one per line, a JSON list, or COCO annotations; seed i uses prompt i.",
            "FILE",
            otherwise="none",
            modes=("sample",),
        ),
        Flag("negative_prompt", str, "Prompt to guide away from.", "TEXT", otherwise="empty", modes=("sample",)),
        Flag(
            "image_size",
            str,
            "Size of an image in pixels: one number, or HEIGHTxWIDTH.",
            "PIXELS",
            otherwise="the size of training",
            modes=("sample",),
        ),
        Flag(
            "decode_tile",
            int,
            "Decode images in overlapping tiles with this many latents per side, e.g. 64, to save memory.",
            "COUNT",
            otherwise="whole images",
            modes=("sample",),
        ),
    ),
    "Evaluation": (
        Flag(
            "extractor",
            ("inception", "fashion", "landscapes", "digits", "patches", "pixels"),
            "Features for FID and related metrics.",
            otherwise="for included models their classifier, patches for photos; else inception",
            modes=("eval",),
        ),
        Flag(
            "inception_weights",
            str,
            "Inception weights for FID, the file of pytorch-fid; never downloaded.",
            "FILE",
            otherwise="$PDS_INCEPTION, else torch's cache",
            modes=("eval",),
        ),
        Flag(
            "ref",
            str,
            "Statistics of the reference images, from scripts/fid.py, pytorch-fid, EDM or score_sde.",
            "FILE.npz",
            otherwise="computed from the training data",
            modes=("eval",),
        ),
        Flag(
            "metrics",
            str,
            "Any of fid,kid,is,pr,dc.",
            "LIST",
            otherwise="fid, kid and is, if available",
            modes=("eval",),
        ),
        Flag(
            "allow_fewer",
            bool,
            "Allow FID with fewer than 50000 images; the number is printed.",
            default=False,
            modes=("eval",),
        ),
        Flag(
            "eval_images",
            int,
            "Largest number of data images for loss and bits/dim.",
            "COUNT",
            otherwise="all; 4096 of an infinite data set",
            modes=("eval",),
        ),
    ),
    "Machine": (
        Flag(
            "precision",
            ("float32", "tf32", "bfloat16"),
            "Precision of the network; weights and the sampler's state are always float32.",
            default="float32",
        ),
        Flag(
            "max_batch",
            str,
            "Largest batch if --batch_size is not given; auto halves it when memory runs out.",
            "COUNT|auto",
            otherwise="64",
            modes=_MAKES,
        ),
        Flag(
            "shard",
            str,
            "Make only the i-th of n shares of the images; the last shard to finish merges them.",
            "i/n",
            otherwise="all",
            modes=_MAKES,
        ),
        Flag(
            "coordinator",
            str,
            "Run with other processes: address of the first (docs/scale.md).",
            "HOST:PORT",
            otherwise="$PDS_JAX_COORDINATOR; with $PDS_JAX_DISTRIBUTED=1, from the cluster",
        ),
        Flag("num_processes", int, "Number of processes.", "COUNT", otherwise="$PDS_JAX_NUM_PROCESSES"),
        Flag("process_id", int, "Index of this process, from 0.", "INDEX", otherwise="$PDS_JAX_PROCESS_ID"),
        Flag(
            "cache_dir",
            str,
            "Compilation cache; '' turns it off.",
            "FOLDER",
            otherwise="the user's cache folder",
        ),
    ),
}


def table() -> list[Flag]:
    """All flags in the order of the help."""
    return [flag for group in GROUPS.values() for flag in group]


def define(values: flags.FlagValues = flags.FLAGS) -> None:
    """Make absl know the flags, in the registry of the program or another."""
    for flag in table():
        words: dict[str, Any] = {"help": flag.help, "module_name": MODULE, "flag_values": values}
        if flag.kind == "override":
            continue  # parse.py takes them off the command line
        if flag.kind == "config":
            # It would look for overrides in sys.argv by itself, and refuse those before --config.
            words = {"lock_config": False, "flag_values": values, "sys_argv": []}
            config_flags.DEFINE_config_file(flag.name, None, flag.help, **words)
        else:
            kinds: dict[Any, Any] = {bool: flags.DEFINE_bool, int: flags.DEFINE_integer, float: flags.DEFINE_float}
            kinds.get(flag.kind, flags.DEFINE_string)(flag.name, None, **words)
