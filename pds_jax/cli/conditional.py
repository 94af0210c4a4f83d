"""``--mode=inpaint|colorize|super_resolution|deblur|class_conditional``: images of which something is known.

WORKDIR/MODE/000/000000.png …     results; result k of image i is number i·per_image + k, which is its seed
WORKDIR/MODE/comparison.png       one line an image: what was given | results | the original, where it is known
WORKDIR/MODE/manifest.json        settings, and what each result was made from
"""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pds_jax import assembly, operators
from pds_jax import controllable_generation as cg
from pds_jax import options as options_lib
from pds_jax.cli import sample as sampling_job
from pds_jax.cli.options import RunOptions
from pds_jax.data import arrays, datasets, image_files, masks
from pds_jax.io import images
from pds_jax.io.manifest import RunFolder
from pds_jax.loading import digest_of
from pds_jax.metrics import classifier_features
from pds_jax.types import PdsError, ScoreFn

_SHOWN = 16  # images of the comparison
_UNKNOWN = 0.5  # gray of unknown pixels in the comparison


@dataclasses.dataclass(frozen=True)
class Task:
    """What is known of images.

    Attributes:
      condition: of all images.
      given: (n, H, W, C) what was given, in [0, 1], to be looked at.
      original: (n, H, W, C) in [0, 1], or None.
      identity: what decides the condition, for the manifest.
    """

    condition: cg.Known
    given: np.ndarray
    original: np.ndarray | None
    identity: dict[str, Any]


def restore(options: RunOptions) -> pathlib.Path:
    """Do what the mode says, one of ``flags.CONDITIONAL``; resumes an interrupted run with the same settings.

    Returns:
      The folder with the results.

    Raises:
      PdsError: anything that cannot be done, before long work starts.
    """
    place = options.workdir / (options.eval_folder or options.mode)
    scale = options.guidance_weight
    _check_guidance(scale)
    if options.mode == "class_conditional":
        return _classes(options, place)
    if not options.images:
        raise PdsError(f"--mode={options.mode} needs --images=FOLDER, or a file, .zip, .npz or .npy")
    if options.per_image < 1:
        raise PdsError(f"--per_image={options.per_image}: use at least 1")
    trained = sampling_job.load(options)
    given = _Given(trained, options)
    task = _TASKS[options.mode](given)
    plan = _plan(trained, options)
    per_image, count = options.per_image, len(task.given)
    labels = sampling_job.in_turn(options.labels, range(count * per_image))
    score_of = assembly.labelled(trained, plan, range(count * per_image), labels)
    chosen = {"mode": options.mode, "per_image": per_image, "guidance": scale}
    chosen |= {} if labels is None else {"labels": options.labels}
    power = _power(trained, plan)
    chosen |= {"guidance_power_sha256": digest_of([power])} if scale else {}
    made = sampling_job.draw_to_folder(
        trained,
        plan,
        range(count * per_image),
        place,
        sampling_job.batching_of(options),
        given=_given(trained, task, per_image, scale, power, score_of),
        identity={**chosen, **task.identity},
        facts={"per_image": per_image, "given": given.record},
    )
    if _holds(made, range(count * per_image)):
        if task.original is not None:
            _report_errors(made, task, per_image)
        columns = "given | results | original" if task.original is not None else "given | results"
        print(f"Comparison ({columns}): {_compare(made, task, per_image)}")
    return place


def _plan(trained: assembly.Trained, options: RunOptions) -> assembly.Plan:
    if (options.sampler.method or trained.config.sampling.method) == "ode":
        raise PdsError("sampling.method=ode takes no condition; use predictors and correctors (sampling.method=pc)")
    return sampling_job.plan(trained, options, conditional=True)


def _holds(folder: RunFolder, seeds: Sequence[int]) -> bool:
    """Whether the run is complete with the images of all seeds; a run before it may have had fewer."""
    return folder.complete and not set(seeds) - folder.done().keys()


def _power(trained: assembly.Trained, plan: assembly.Plan) -> Any:
    """Spectrum of the data in the model's range, for guidance; without statistics, of pixels uniform on the range."""
    centered, stats = trained.config.data.centered, options_lib.statistics_of(trained, plan.config)
    return (
        np.float32((4.0 if centered else 1.0) / 12) if stats is None else np.maximum(stats.to_range(centered)[1], 1e-8)
    )


def _check_guidance(scale: float) -> None:
    if not 0 <= scale < np.inf:
        raise PdsError(f"--guidance={scale}: use 1 (theory), or 0 for none")


def _given(
    trained: assembly.Trained, task: Task, per_image: int, scale: float, power: Any, score_of: assembly.Given
) -> assembly.Given:
    """Condition and score of the images that seeds belong to."""

    def given(seeds: Sequence[int]) -> tuple[Any, ScoreFn]:
        rows = np.asarray(seeds) // per_image
        condition = jax.tree.map(lambda leaf: leaf[rows], task.condition)
        _, score_fn = score_of(seeds)
        if not scale:
            return condition, score_fn
        guided = cg.reconstruction_guidance(score_fn, trained.sde, condition, power=power, scale=scale)
        return condition, guided

    return given


# --- what is given ---------------------------------------------------------------------------------------------


class _Given:
    """The user's images, brought to the model's size and range."""

    def __init__(self, trained: assembly.Trained, options: RunOptions):
        self.trained, self.options = trained, options
        self.shape = trained.shape
        self.record: dict[str, Any] = {"images": options.images, "mask": options.mask}
        self.scale = datasets.get_data_scaler(trained.config)

    @property
    def whole(self) -> bool:
        """Whether the images are the originals, from which a measurement is to be taken."""
        return self.options.originals

    def read(self, size: tuple[int, int] | None = None, channels: Sequence[int] | None = None) -> np.ndarray:
        """Images (n, H, W, C) in [0, 1].

        Args:
          size: (H, W) they must have; the model's by default.
          channels: that they may have; the model's by default.
        """
        height, width = size or self.shape[:2]
        allowed = tuple(channels or self.shape[2:])
        path = self.options.images
        assert path is not None
        if path.startswith("test:"):
            return self._test_images(path.removeprefix("test:"))
        convert = self.options.convert_images
        found = image_files.open_images(
            path,
            size=(height, width) if self.options.resize_images else None,
            channels=allowed[-1] if convert else None,
            convert=convert,
            value_range=datasets.get_range(self.trained.config),
        )
        if found.shape[:2] != (height, width):
            raise PdsError(
                f"{path} has images of {found.shape[0]}x{found.shape[1]} pixels (height x width), {self.trained.name} "
                f"needs {height}x{width} here; crop them, or use --resize_images (central part, then resized)"
            )
        if found.shape[2] not in allowed:
            raise PdsError(
                f"{path} has images of {found.shape[2]} channels, {self.trained.name} needs "
                f"{' or '.join(map(str, allowed))} here; convert them, or use --convert_images"
            )
        print(found.summary())
        self.record["images"] = found.record
        return arrays.to_unit(found.stored(range(len(found))))

    def _test_images(self, count: str) -> np.ndarray:
        if not (count.isascii() and count.isdigit() and int(count) > 0):
            raise PdsError(f"--images=test:{count}: write test:COUNT, for example test:8")
        if self.options.mode in ("super_resolution", "deblur") and not self.whole:
            raise PdsError("--images=test:COUNT are whole images: add --originals")
        for flag in ("resize_images", "convert_images"):
            if getattr(self.options, flag):
                raise PdsError(f"--{flag} has no effect here: test images have the model's size already; leave it out")
        source, number = datasets.get_source(self.trained.config, "test"), int(count)
        if source.size is not None and number > source.size:
            raise PdsError(
                f"--images=test:{count}: {source.name} holds {source.size} images; use test:{source.size} at most"
            )
        return source.images(np.arange(number))


def _inpaint(given: _Given) -> Task:
    path = given.options.mask
    if not path:
        raise PdsError("--mode=inpaint needs --mask=FILE.png, white where pixels are known and black elsewhere")
    pixels = given.read()
    mask = masks.read_mask(path)
    given.record["mask"] = f"{path}: {masks.describe(mask)}"
    print(given.record["mask"])
    condition = cg.inpainting(given.scale(pixels), mask)
    shown = np.where(np.asarray(condition.operator.mask) > 0, pixels, np.float32(_UNKNOWN))  # type: ignore[attr-defined]
    return Task(condition, shown, pixels if given.whole else None, _identity(pixels, mask=_digest(mask)))


def _colorize(given: _Given) -> Task:
    channels = given.shape[2]
    if channels < 2:
        raise PdsError(f"{given.trained.name} makes images of one channel, so there are no colours to generate")
    pixels = given.read(channels=(1, channels))
    if given.whole and pixels.shape[-1] == 1:
        raise PdsError("--originals: the images are gray already")
    condition = cg.colorization(given.scale(pixels), channels=channels)
    gray = pixels.mean(axis=-1, keepdims=True)
    shown = np.repeat(gray, channels, axis=-1)
    return Task(condition, shown, pixels if given.whole else None, _identity(gray))


def _super_resolution(given: _Given) -> Task:
    factor = given.options.factor
    height, width = given.shape[:2]
    if factor < 2 or height % factor or width % factor:
        raise PdsError(f"--factor={factor} must be at least 2 and divide the model's {height}x{width} pixels")
    operator = operators.block_mean(factor)
    original = given.read() if given.whole else None
    if original is not None:
        small = np.asarray(operator.forward(jnp.asarray(original)))
    else:
        small = given.read((height // factor, width // factor))
    condition = cg.super_resolution(given.scale(small), factor)
    return Task(condition, images.enlarge(small, factor), original, _identity(small, factor=factor))


def _deblur(given: _Given) -> Task:
    sigma = given.options.blur_sigma
    kernel = operators.gaussian_kernel(sigma)
    pixels = given.read()
    original = pixels if given.whole else None
    if original is not None:
        pixels = np.asarray(operators.blur(kernel, pixels.shape).forward(jnp.asarray(pixels)))
    # Bytes hold a blurred image to 1/255 only: frequencies that the blur cuts below that are not known.
    condition = cg.deblurring(given.scale(pixels), kernel, threshold=0.2)
    return Task(condition, pixels, original, _identity(pixels, blur_sigma=sigma))


_TASKS: Mapping[str, Callable[[_Given], Task]] = {
    "inpaint": _inpaint,
    "colorize": _colorize,
    "super_resolution": _super_resolution,
    "deblur": _deblur,
}


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(repr(array.shape).encode() + np.ascontiguousarray(array, "<f4").tobytes()).hexdigest()


def _identity(measured: np.ndarray, **facts: Any) -> dict[str, Any]:
    return {"measured_sha256": _digest(measured), **facts}


def _compare(folder: RunFolder, task: Task, per_image: int) -> pathlib.Path:
    """Lay given, results and originals side by side."""
    cells: list[np.ndarray] = []
    for row in range(min(len(task.given), _SHOWN)):
        cells += [images.visible(task.given[row : row + 1])]
        cells += [folder.visible(range(row * per_image, (row + 1) * per_image))]
        cells += [images.visible(task.original[row : row + 1])] if task.original is not None else []
    columns = 1 + per_image + (task.original is not None)
    scale = images.visible_scale(cells[0].shape[1])
    path = folder.folder / "comparison.png"
    images.save_png(path, images.grid(images.enlarge(np.concatenate(cells), scale), columns))
    return path


def _report_errors(folder: RunFolder, task: Task, per_image: int) -> None:
    """How far results, and what was given, are from the originals."""
    assert task.original is not None
    count = len(task.original) * per_image
    made = np.stack([folder.load(number) for number in range(count)])
    results = arrays.to_unit(made, folder.format.value_range)
    originals = np.repeat(task.original, per_image, axis=0)
    errors = [float(np.sqrt(np.mean(np.square(x - y)))) for x, y in ((results, originals), (task.given, task.original))]
    print(f"RMS difference from the originals, where white is 1: {errors[0]:.3g} (given images: {errors[1]:.3g})")


# --- classes ---------------------------------------------------------------------------------------------------


def _classes(options: RunOptions, place: pathlib.Path) -> pathlib.Path:
    """Images of classes; --labels are repeated from the first seed on."""
    seeds, wanted, scale = options.seeds, options.labels, options.guidance_weight
    if wanted is None or isinstance(wanted, str):
        raise PdsError("--mode=class_conditional needs --labels, e.g. 3 or 0-9 or 1,4,7")
    trained = sampling_job.load(options)
    if trained.config.data.dataset != "digits":
        raise PdsError(
            f"there is no classifier of noised images for {trained.name}: one ships for digits only; give "
            "yours by --mode=sample --classifier=PATH"
        )
    logit_fn = classifier_features.noisy_logit_fn()
    classes = classifier_features.load("digits").model.classes
    label_of = dict(zip(seeds, sampling_job.dealt(wanted, seeds), strict=True))

    def given(some: Sequence[int]) -> tuple[Any, ScoreFn]:
        labels = np.asarray([label_of[seed] for seed in some])
        score_fn = cg.class_conditional(
            trained.score_fn, trained.sde, logit_fn, labels, num_classes=classes, scale=scale
        )
        return None, score_fn

    given(seeds)  # refuses bad labels
    made = sampling_job.draw_to_folder(
        trained,
        sampling_job.plan(trained, options, conditional=True),
        seeds,
        place,
        sampling_job.batching_of(options),
        given=given,
        identity={"mode": "class_conditional", "labels": wanted, "first_seed": seeds[0], "guidance": scale},
        facts={"labels": {str(seed): label for seed, label in label_of.items()}},
    )
    if _holds(made, seeds):
        _report(place, label_of)
    return place


def _report(place: pathlib.Path, label_of: Mapping[int, int]) -> None:
    """How many images the classifier of clean digits, which guided nothing, takes for what they should be."""
    pixels = np.stack([images.load_png(images.seed_path(place, seed)) for seed in label_of]) / np.float32(255.0)
    found = classifier_features.load("digits").classes(pixels)
    agreed = int(np.sum(found == np.asarray(list(label_of.values()))))
    print(f"The classifier of clean digits agrees with the label of {agreed} of {len(found)} images")
