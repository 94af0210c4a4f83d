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
    "eval": "Loss, bits per dimension and FID of a training's checkpoints.",
    "inpaint": "Find the hidden part of images.",
    "colorize": "Find the colours of gray images.",
    "super_resolution": "Find images from small ones.",
    "deblur": "Find images from blurred ones.",
    "class_conditional": "Draw images of given classes.",
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
      kind: str, int, float, bool, "config", or a tuple of the values it may have.
      help: what it does, one sentence or two.
      value: what stands for its value in the help, e.g. "FOLDER".
      default: of the flag, for the help; None where the program or the configuration decides.
      field: field of the configuration that it sets, e.g. "sampling.snr"; "" for an option of the run itself.
      otherwise: what happens when it is not given, where neither default nor field says so.
      modes: that use it; given with another, it is refused.
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
        Flag("mode", MODES, "What to do, see above. Required.", "TASK"),
        Flag("workdir", str, "Folder of the run; everything is written below it. Required.", "FOLDER"),
        Flag(
            "eval_folder",
            str,
            "Folder below workdir for this run's images.",
            "NAME",
            otherwise="samples",
            modes=_SAMPLES,
        ),
    ),
    "Model": (
        Flag(
            "checkpoint",
            str,
            "Trained model: fashion, photos, digits, a folder with model.safetensors, a training workdir, or an "
            "original file of score_sde (checkpoint_N), score_sde_pytorch (.pth), diffusers (folder; Stable Diffusion "
            "1 and 2 too), EDM (.pkl) or guided-diffusion (.pt). With --mode=train, a whole state of score_sde or "
            "score_sde_pytorch to go on from.",
            "NAME|PATH",
            otherwise="the training in workdir",
            modes=(*_SAMPLES, "train"),
        ),
        Flag(
            "config",
            "config",
            "Configuration, e.g. configs/ve/cifar10_ncsnpp_continuous.py.",
            "FILE.py",
            otherwise="the one that lies with the weights",
        ),
        Flag(
            "config.section.field",
            "override",
            "Set any field of the configuration, e.g. --config.eval.num_samples=1000; also without --config.",
            "VALUE",
            otherwise="as it is there",
        ),
        Flag(
            "plugin",
            str,
            "Your Python file that registers predictors, correctors, SDEs or networks, which then have names here; "
            "several with commas between.",
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
        Flag("seeds", str, "Which images: one per seed, e.g. 0-63 or 0-7,12,20-29.", "LIST", "0-15", modes=_LABELLED),
        Flag(
            "batch_size", int, "Images at once.", "COUNT", otherwise="the number of seeds, at most 64", modes=_SAMPLES
        ),
    ),
    "PDS": (
        Flag(
            "alpha",
            str,
            "Strength of M: a number above 1 (the papers use 5; larger is weaker), auto (from the number of steps), "
            "tune (by the spectrum of a few samples), or inf for no PDS.",
            "NUMBER|auto|tune|inf",
            field="pds.alpha",
            modes=_SAMPLES,
        ),
        Flag(
            "filters",
            ("freq", "space", "both", "flat"),
            "Which filters of the statistics M has; flat is M = c I with c of --gain, without statistics or alpha.",
            field="pds.filters",
            modes=_SAMPLES,
        ),
        Flag("recipe", ("ijcv2025", "eccv2022"), "How statistics become filters.", field="pds.recipe", modes=_SAMPLES),
        Flag(
            "statistics",
            str,
            "Statistics of the data, made by scripts/make_statistics.py.",
            "FILE.npz",
            field="pds.statistics",
            otherwise="the checkpoint's own",
            modes=_SAMPLES,
        ),
        Flag(
            "freq_mask_path",
            str,
            "Raw frequency statistics (C, H, W) of the released PDS code.",
            "FILE.npy",
            field="pds.freq_mask_path",
            modes=_SAMPLES,
        ),
        Flag(
            "space_mask_path",
            str,
            "Raw pixel statistics (C, H, W) of the released PDS code.",
            "FILE.npy",
            field="pds.space_mask_path",
            modes=_SAMPLES,
        ),
        Flag(
            "radius",
            float,
            "Filter without data: radius in DFT bins; give --lam too.",
            "BINS",
            field="pds.r",
            modes=_SAMPLES,
        ),
        Flag("gain", float, "c of --filters=flat, for instance 1.15.", "GAIN", field="pds.gain", modes=_SAMPLES),
        Flag("lam", float, "Filter without data: gain outside the radius.", "GAIN", field="pds.lam", modes=_SAMPLES),
        Flag(
            "solenoidal",
            float,
            "Strength of the skew-symmetric drift S beside M M^T; 0 for none.",
            "NUMBER",
            field="pds.solenoidal",
            modes=_SAMPLES,
        ),
        Flag(
            "variant",
            ("paper", "exact"),
            "The papers' drift, or the one without bias (docs/theory.md).",
            field="sampling.variant",
            modes=_SAMPLES,
        ),
        Flag(
            "prior",
            ("standard", "matched"),
            "Start from noise, or from noise plus the data's mean and spectrum.",
            field="sampling.prior",
            modes=_SAMPLES,
        ),
    ),
    "Sampler": (
        Flag(
            "nfe",
            int,
            "Network evaluations an image, rounded down to whole iterations; or give --speed_up.",
            "COUNT",
            otherwise="by speed_up",
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
            "reverse_diffusion, euler_maruyama, ancestral_sampling, none, ddim, heun, dpmpp_2m, ...: "
            "docs/how_to_choose.md.",
            "NAME",
            field="sampling.predictor",
            modes=_SAMPLES,
        ),
        Flag("corrector", str, "langevin, ald or none.", "NAME", field="sampling.corrector", modes=_SAMPLES),
        Flag(
            "grid",
            str,
            "Times of the steps: uniform in t; or, for the solvers (ddim, heun, dpmpp_2m, ...), edm, log_sigma, "
            "quadratic or spectrum.",
            "NAME",
            field="sampling.grid",
            modes=_SAMPLES,
        ),
        Flag(
            "solver_options",
            str,
            "Options of the predictor and the grid by their names, e.g. order=2,form=bh1,rho=5: docs/how_to_choose.md.",
            "NAME=VALUE,...",
            field="sampling.solver_options",
            modes=_SAMPLES,
        ),
        Flag(
            "method",
            ("pc", "ode"),
            "Predictor and corrector, or an adaptive solver of the probability flow, which chooses its steps itself.",
            field="sampling.method",
            modes=_SAMPLES,
        ),
        Flag("snr", float, "Signal-to-noise ratio of the corrector.", "RATIO", field="sampling.snr", modes=_SAMPLES),
        Flag(
            "n_steps_each", int, "Corrector steps an iteration.", "COUNT", field="sampling.n_steps_each", modes=_SAMPLES
        ),
        Flag(
            "norm",
            ("sample", "batch"),
            "Langevin step from each image's norms, or from their mean over the batch as the originals do.",
            field="sampling.norm",
            modes=_SAMPLES,
        ),
    ),
    "Images of which something is known": (
        Flag(
            "images",
            str,
            "What is given: a folder, an image, .zip, .npz or .npy, or test:COUNT for test images of the model's data.",
            "PATH",
            otherwise="none; required by inpaint, colorize, super_resolution and deblur",
            modes=_GIVEN,
        ),
        Flag(
            "originals",
            bool,
            "The images are whole: take the measurement from them, and show them beside the results.",
            default=False,
            modes=_GIVEN,
        ),
        Flag(
            "resize_images",
            bool,
            "Crop images to their central part and resize it to what is needed; for train: data.resize.",
            default=False,
            modes=("train", *_GIVEN),
        ),
        Flag(
            "convert_images",
            bool,
            "Bring images to the model's channels: transparency on white, palettes, gray, CMYK, 16 bits; for train: "
            "data.convert_images.",
            default=False,
            modes=("train", *_GIVEN),
        ),
        Flag("per_image", int, "Results for each image given.", "COUNT", otherwise="1", modes=_GIVEN),
        Flag(
            "mask",
            str,
            "For inpaint: white where pixels are known, black where they are to be found.",
            "FILE",
            otherwise="none; required by inpaint",
            modes=("inpaint",),
        ),
        Flag(
            "factor",
            int,
            "For super_resolution: how many times more pixels a side.",
            "COUNT",
            otherwise="2",
            modes=("super_resolution",),
        ),
        Flag(
            "blur_sigma",
            float,
            "For deblur: deviation of the Gaussian blur in pixels.",
            "PIXELS",
            otherwise="1",
            modes=("deblur",),
        ),
        Flag(
            "labels",
            str,
            "Class of each image, e.g. 3 or 0-9, over and over; random or none for a network that was trained with "
            "classes, which needs them.",
            "LIST|random|none",
            otherwise="none; required by class_conditional",
            modes=_MAKES,
        ),
        Flag(
            "guidance",
            float,
            "For sample: weight of classifier-free guidance, which doubles the evaluations; 1 is none. Else the weight "
            "of the gradient of what is given; 0 only puts known parts in place, which is cheaper and biased.",
            "WEIGHT",
            otherwise="1, with a text 7.5",
            modes=_MAKES,
        ),
        Flag(
            "guidance_interval",
            str,
            "Guide between these noise levels only, in the range of the model's images.",
            "LOW,HIGH",
            otherwise="everywhere",
            modes=("sample",),
        ),
        Flag(
            "classifier",
            str,
            "Classifier of noisy images that guides to the labels, in place of classifier-free guidance or beside it: "
            "guided-diffusion's (.pt) or a folder with model.safetensors.",
            "PATH",
            otherwise="none",
            modes=("sample",),
        ),
        Flag(
            "classifier_config",
            "config",
            "Configuration of the classifier, e.g. configs/adm/classifier256.py.",
            "FILE.py",
            otherwise="the one that lies with its weights",
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
        Flag("prompt", str, "A text for all seeds.", "TEXT", otherwise="none", modes=("sample",)),
        Flag(
            "prompts",
            str,
            "A text for each seed: a prompt a line, a JSON list, or COCO's annotations; seed i takes prompt i.",
            "FILE",
            otherwise="none",
            modes=("sample",),
        ),
        Flag("negative_prompt", str, "Text to guide away from.", "TEXT", otherwise="empty", modes=("sample",)),
        Flag(
            "image_size",
            str,
            "Pixels of an image, of a side or HEIGHTxWIDTH.",
            "PIXELS",
            otherwise="what the network was trained at",
            modes=("sample",),
        ),
        Flag(
            "decode_tile",
            int,
            "Decode images in overlapping tiles of so many latents a side, 64 for instance: less memory.",
            "COUNT",
            otherwise="whole images",
            modes=("sample",),
        ),
    ),
    "Judging": (
        Flag(
            "extractor",
            ("inception", "fashion", "digits", "patches", "pixels"),
            "What makes the features of FID and related metrics.",
            otherwise="fashion, digits and patches for the shipped fashion, digits and photos, else inception",
            modes=("eval",),
        ),
        Flag(
            "inception_weights",
            str,
            "The Inception network of FID, the file of pytorch-fid; it is never downloaded.",
            "FILE",
            otherwise="$PDS_INCEPTION, else torch's cache",
            modes=("eval",),
        ),
        Flag(
            "ref",
            str,
            "Statistics of the reference images: of scripts/fid.py, pytorch-fid, EDM or score_sde.",
            "FILE.npz",
            otherwise="made from the training data",
            modes=("eval",),
        ),
        Flag(
            "metrics",
            str,
            "Some of fid,kid,is,pr,dc.",
            "LIST",
            otherwise="fid, kid and is where they can be had",
            modes=("eval",),
        ),
        Flag(
            "allow_fewer",
            bool,
            "Accept an FID of fewer than 50000 images; the count is printed.",
            default=False,
            modes=("eval",),
        ),
        Flag(
            "eval_images",
            int,
            "Most images of the data for loss and bits/dim.",
            "COUNT",
            otherwise="all, 4096 of a data set without end",
            modes=("eval",),
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
            modes=_MAKES,
        ),
        Flag(
            "shard",
            str,
            "Make only the i-th of n shares of the images; the last shard to end merges.",
            "i/n",
            otherwise="all",
            modes=_MAKES,
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
