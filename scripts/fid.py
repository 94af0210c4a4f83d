"""FID, KID, Inception Score, precision and recall, density and coverage.

    python scripts/fid.py ref  --images=cifar10_train/ --out=cifar10.npz --keep_features
    python scripts/fid.py calc --images=samples/ --ref=cifar10.npz --metrics=fid,kid,is,pr,dc
    python scripts/fid.py calc --images=samples/ --ref=cifar10.npz --seeds=0-49999,50000-99999,100000-149999
    python scripts/fid.py calc --checkpoint=digits --nfe=40 --seeds=0-1499 --option=predictor=reverse_diffusion \\
        --extractor=digits --ref=digits.npz --allow_fewer

--images is a folder, an archive, or a .npz or .npy of images (docs/files.md).
--ref is a file of this program, of pytorch-fid, EDM or score_sde. With --checkpoint images are drawn, judged and not
saved. The last line of the output is JSON. The same command resumes an interrupted run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags
from tqdm import tqdm

from pds_jax import parallel
from pds_jax.cache import use_compilation_cache
from pds_jax.cli import scripts
from pds_jax.cli.options import named_values
from pds_jax.data.arrays import to_unit
from pds_jax.data.datasets import get_range
from pds_jax.io.files import parse_seeds
from pds_jax.io.manifest import plain
from pds_jax.metrics import evaluation, reference
from pds_jax.metrics.extractors import EXTRACTORS, Extractor, get_extractor
from pds_jax.metrics.image_sets import ArrayImages, DrawnImages, FileImages, ImageSet, open_images, select
from pds_jax.metrics.streaming import BLOCK
from pds_jax.types import PdsError

_IMAGES = flags.DEFINE_string("images", None, "Folder, archive, .npz or .npy of images.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Draw images from this trained model instead of --images.")
_CONFIG = scripts.define_config("config", "Configuration of an original checkpoint.")
_SPEED_UP = flags.DEFINE_float("speed_up", None, "Sampling: N = num_scales / speed_up iterations.")
_NFE = flags.DEFINE_integer("nfe", None, "Sampling: network evaluations per image, instead of --speed_up.")
_ALPHA = flags.DEFINE_string("alpha", None, "Sampling: strength of PDS, a number above 1, auto, tune or inf.")
_OPTIONS = flags.DEFINE_multi_string("option", [], "Sampling: name=value of a field of config.sampling or config.pds.")
_SEEDS = flags.DEFINE_string(
    "seeds", None, "Ranges such as 0-49999,50000-99999; each is evaluated separately. Default: everything."
)
_REF = flags.DEFINE_string("ref", None, "calc: reference statistics.")
_OUT = flags.DEFINE_string("out", None, "ref: the .npz to write.")
_KEEP = flags.DEFINE_bool("keep_features", False, "ref: store the features too, which kid, pr and dc need.")
_METRICS = flags.DEFINE_list("metrics", ["fid"], f"calc: some of {','.join(evaluation.METRICS)}.")
_ALLOW_FEWER = flags.DEFINE_bool("allow_fewer", False, "calc: judge fewer than 50000 images; printed with the figure.")
_EXTRACTOR = flags.DEFINE_string(
    "extractor", "inception", "inception, fashion, landscapes, digits, patches (of photos) or pixels."
)
_WEIGHTS = flags.DEFINE_string("weights", None, "Inception's file; else $PDS_INCEPTION, else torch's cache.")
_RESIZE = flags.DEFINE_enum(
    "resize", "tf1", ["tf1", "half_pixel"], "Inception: tf1 as the original FID, half_pixel as pytorch-fid."
)
_CONVERT = flags.DEFINE_bool(
    "convert_images", False, "Bring images to RGB: transparency on white, palettes, gray, CMYK, 16 bits."
)
_RANGE = flags.DEFINE_list("range", None, "lo,hi of float arrays; by default 0,1, or what a sampling run says.")
_SUBSET = flags.DEFINE_integer("kid_subset_size", 1000, "Images of one of KID's 100 subsets.")
_BATCH = flags.DEFINE_integer("batch_size", 64, "Images at once; changes speed and memory only.", lower_bound=1)
_CACHE = flags.DEFINE_string("cache", None, "Folder for unfinished work and features; '' for none.")


def unused(verb: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """(flags, why they have no effect) for a verb and the other flags."""
    for holds, names, what in (
        (_CHECKPOINT.value is not None, ("config", "speed_up", "nfe", "alpha", "option"), "--checkpoint"),
        (_IMAGES.value is not None, ("convert_images", "range"), "--images"),
        (_EXTRACTOR.value == "inception", ("weights", "resize"), "--extractor=inception"),
        ("kid" in _METRICS.value, ("kid_subset_size",), "--metrics=kid"),
        (verb == "ref", ("out", "keep_features"), "fid.py ref"),
        (verb == "calc", ("ref", "metrics", "allow_fewer", "kid_subset_size"), "fid.py calc"),
    ):
        if not holds:
            yield names, f"it is for {what}"


def cache_folder() -> str | None:
    """Where unfinished work is kept."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(base, "pds_jax", "fid") if _CACHE.value is None else _CACHE.value or None


def extractor() -> Extractor:
    """The extractor that the flags name."""
    options = {"weights": _WEIGHTS.value, "resize": _RESIZE.value} if _EXTRACTOR.value == "inception" else {}
    return get_extractor(_EXTRACTOR.value, **options).on_devices(parallel.data_parallel)


def image_sets() -> list[ImageSet]:
    """One set a seed range."""
    if (_IMAGES.value is None) == (_CHECKPOINT.value is None):
        raise PdsError("say where the images are: either --images=PATH or --checkpoint=NAME")
    if _CHECKPOINT.value is not None:
        return drawn_sets()
    whole = open_images(_IMAGES.value, convert=_CONVERT.value, value_range=_RANGE.value)
    print(whole.summary())
    if _SEEDS.value is None:
        return [whole]
    return [select(whole, parse_seeds(part)) for part in _SEEDS.value.split(",")]


def drawn_sets() -> list[ImageSet]:
    """One set a seed range, drawn from the checkpoint when it is judged."""
    from pds_jax import assembly

    if _SEEDS.value is None:
        raise PdsError("say how many images to draw: --seeds=0-49999")
    trained = assembly.load(_CHECKPOINT.value, _CONFIG.value)
    plan = assembly.plan(
        trained,
        nfe=_NFE.value,
        speed_up=_SPEED_UP.value,
        alpha=_ALPHA.value,
        **named_values(_OPTIONS.value, "option"),
    )
    identity = {**trained.identity, **plan.describe()}
    size = min(_BATCH.value, BLOCK)  # the most that one call asks for
    if plan.config.sampling.get("norm", "sample") == "batch":
        identity["batch"] = {"size": size, "seeds": _SEEDS.value}  # an image then depends on its neighbours
    print(f"{trained.name}: N = {plan.N} iterations, NFE = {plan.nfe or 'adaptive'}, alpha = {plan.alpha:.4g}")

    def draw(seeds: Sequence[int]) -> np.ndarray:
        images = assembly.draw(trained, plan, seeds, batch_size=len(seeds), labels=trained.default_labels).images
        return to_unit(images, get_range(trained.config))

    ranges = [parse_seeds(part) for part in _SEEDS.value.split(",")]
    name = f"samples of {trained.name}"
    return [DrawnImages(name, trained.shape, seeds, identity, draw, size) for seeds in ranges]


def bar(name: str) -> Callable[[int, int], None]:
    """A progress bar for one pass."""
    shown = tqdm(total=0, desc=name, unit="image")

    def update(done: int, total: int) -> None:
        shown.total = total
        shown.update(done - shown.n)
        if done == total:
            shown.close()

    return update


def ref() -> dict[str, Any]:
    """Make a reference file."""
    if _OUT.value is None:
        raise PdsError("say where the reference goes: --out=FILE.npz")
    reference.check_path(_OUT.value)
    sets = image_sets()
    if len(sets) != 1:
        raise PdsError("a reference is of one range of seeds")
    images = sets[0]
    made = evaluation.make_reference(
        images,
        extractor(),
        keep_features=_KEEP.value,
        batch_size=_BATCH.value,
        folder=cache_folder(),
        progress=bar(images.name),
    )
    digest = reference.save_reference(_OUT.value, made)
    print(f"{_OUT.value}: {made.count} images of {images.shape}, {made.mu.size} features")
    return {"ref": _OUT.value, "sha256": digest, "n": made.count, "dims": made.mu.size, **made.provenance}


def calc() -> dict[str, Any]:
    """Judge images."""
    stored = reference.load_reference(_REF.value) if _REF.value else None
    sets = image_sets()
    for images in sets:
        evaluation.check_request(
            len(images), _METRICS.value, stored, allow_fewer=_ALLOW_FEWER.value, subset_size=_SUBSET.value
        )
    judge = extractor()
    runs = []
    for images in sets:
        figures = evaluation.evaluate(
            images,
            stored,
            judge,
            metrics=_METRICS.value,
            allow_fewer=_ALLOW_FEWER.value,
            batch_size=_BATCH.value,
            folder=cache_folder(),
            subset_size=_SUBSET.value,
            progress=bar(images.name),
        )
        runs.append({"seeds": f"{min(images.seeds)}-{max(images.seeds)}", **figures})
        print("\n".join(describe(runs[-1])))
    summary = evaluation.summarise(runs)
    if len(runs) > 1:
        for name, values in summary.items():
            print(f"{name} of {len(runs)}: " + ", ".join(f"{key} {value:.6g}" for key, value in values.items()))
    facts: dict[str, Any] = {"extractor": judge.identity, "ref": _REF.value, "n": runs[0]["n"], "runs": runs}
    if isinstance(sets[0], FileImages | ArrayImages):
        facts["files"] = sets[0].record
    if isinstance(sets[0], DrawnImages):
        facts |= {"nfe": sets[0].identity["nfe"], "sampling": plain(sets[0].identity)}
    return {**summary["mean"], **summary, **facts}


def describe(run: Mapping[str, Any]) -> Iterator[str]:
    """One run in words."""
    figures = [f"{name} {value:.6g}" for name, value in run.items() if isinstance(value, float)]
    against = f" against {run['reference_n']}" if run["reference_n"] else ""
    yield f"{', '.join(figures)}   (n = {run['n']}{against}, seeds {run['seeds']})"
    yield from (f"  note: {note}" for note in run["notes"])


def main(argv: list[str]) -> None:
    """Run one verb."""
    verbs: dict[str, Callable[[], dict[str, Any]]] = {"ref": ref, "calc": calc}
    if len(argv) != 2 or argv[1] not in verbs:
        raise PdsError("type fid.py ref ... or fid.py calc ...; extractors: " + ", ".join(sorted(EXTRACTORS)))
    scripts.refuse_flags(unused(argv[1]))
    use_compilation_cache(None)
    result = verbs[argv[1]]()
    print(json.dumps(result))


if __name__ == "__main__":
    scripts.run(main)
