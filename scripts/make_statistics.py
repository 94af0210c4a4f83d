"""Statistics of a data set for PDS, in one pass.

    python scripts/make_statistics.py --images=my_folder --image_size=64 --out=statistics.npz --masks_dir=masks
    python scripts/make_statistics.py --images=my_folder --image_size=48x64 --convert_images --out=statistics.npz
    python scripts/make_statistics.py --dataset=photos --image_size=16 --out=statistics.npz

About 200 images are enough for the filters; sigma_max wants all of them. docs/files.md says what is read.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import ml_collections
import numpy as np
from absl import flags, logging

from pds_jax import statistics
from pds_jax.cli import scripts
from pds_jax.data import datasets, image_files
from pds_jax.io.files import check_writable
from pds_jax.types import PdsError

_IMAGES = flags.DEFINE_string("images", None, "Folder or archive of image files, or .npy/.npz array (n, H, W, C).")
_DATASET = flags.DEFINE_string("dataset", None, "Name of a data set instead, as in config.data.dataset.")
_SIZE = flags.DEFINE_string("image_size", None, "Crop files to their central part and resize it to this side, or HxW.")
_CHANNELS = flags.DEFINE_integer("channels", None, "That images must have; by default those of the first file.")
_CONVERT = flags.DEFINE_bool(
    "convert_images",
    False,
    "Bring files to --channels (by default 3): transparency on white, palettes, gray, CMYK, 16 bits.",
)
_RANGE = flags.DEFINE_list("range", None, "lo,hi of floating-point arrays; by default 0,1.")
_LIMIT = flags.DEFINE_integer("limit", None, "Use so many images; by default all, 20000 of an endless data set.")
_SIGMA_LIMIT = flags.DEFINE_integer("sigma_max_images", 5000, "Estimate sigma_max from so many images.")
_OUT = flags.DEFINE_string("out", "statistics.npz", "Where the statistics go.")
_MASKS = flags.DEFINE_string("masks_dir", None, "Also write freq_mask.npy and space_mask.npy of the PyTorch release.")
_FEW, _ENOUGH = 16, 200  # images


def size() -> tuple[int, int] | None:
    """(H, W) of --image_size."""
    if _SIZE.value is None:
        return None
    sides = _SIZE.value.lower().replace(",", "x").split("x")
    if len(sides) not in (1, 2) or not all(side.isascii() and side.isdigit() and int(side) for side in sides):
        raise PdsError(f"--image_size={_SIZE.value}: write a side such as 64, or height x width such as 48x64")
    return int(sides[0]), int(sides[-1])


def images() -> tuple[Callable[[], Iterator[np.ndarray]], dict[str, Any], str]:
    """A function that passes over the images that the flags name; their record, and that in one line."""
    if (_IMAGES.value is None) == (_DATASET.value is None):
        raise PdsError("say where the images are: either --images=PATH or --dataset=NAME")
    if _IMAGES.value is not None:
        found = image_files.open_images(
            _IMAGES.value,
            size=size(),
            channels=_CHANNELS.value,
            convert=_CONVERT.value,
            value_range=_RANGE.value,
            limit=_LIMIT.value,
        )
        return lambda: image_files.batches(found), found.record, found.summary()
    if _CONVERT.value or _RANGE.value:
        raise PdsError("--convert_images and --range are for --images=PATH; a data set by name needs neither")
    sizes = {"digits": (8, 1), "photos": (16, 3), "fashion": (32, 1), "landscapes": (64, 3)}
    default = sizes.get(_DATASET.value, (32, 3))
    data = {"dataset": _DATASET.value, "image_size": size() or default[0]}
    data["num_channels"] = _CHANNELS.value or default[1]
    source = datasets.get_source(ml_collections.ConfigDict({"data": data}))
    count = _LIMIT.value or (20_000 if source.size is None else None)
    return lambda: datasets.iterate(source, 256, count), {"data_set": source.name}, f"data set {source.name}"


def main(argv: list[str]) -> None:
    """Make the file, say what is in it."""
    scripts.refuse_words(argv)
    if _LIMIT.value is not None and _LIMIT.value < 1:
        raise PdsError(f"--limit={_LIMIT.value}: use at least one image")
    if _SIGMA_LIMIT.value < 2:
        raise PdsError(f"--sigma_max_images={_SIGMA_LIMIT.value}: a distance is between at least two images")
    for path in (_OUT.value, *([pathlib.Path(_MASKS.value) / "freq_mask.npy"] if _MASKS.value else [])):
        check_writable(path)
    batches, record, summary = images()
    print(summary)
    result = statistics.compute_statistics(batches(), limit=_LIMIT.value, source=record)
    if result.count < 2:
        raise PdsError(f"{_IMAGES.value or _DATASET.value}: statistics of one image say nothing; give about {_ENOUGH}")
    if result.count < _FEW:
        logging.warning("statistics of %d images are rough; give about %d", result.count, _ENOUGH)
    result.save(_OUT.value)
    masks = [str(path) for path in result.to_masks(_MASKS.value)] if _MASKS.value else []
    print(f"{result.count} images of shape (H, W, C) = {result.shape}")
    print("\n".join(["written: " + _OUT.value, *masks]))
    sigma_max = statistics.estimate_sigma_max(batches(), limit=min(_SIGMA_LIMIT.value, result.count))
    mean, deviation = result.pixel_moments
    print(f"pixels: mean {mean:.4g}, deviation {deviation:.4g} (config.model.data_mean and sigma_data of edm)")
    print(f"sigma_max from the largest distance of two images: {sigma_max:.4g} (twice that for [-1, 1] models)")
    print(
        json.dumps(
            {
                "statistics": _OUT.value,
                "masks": masks,
                "count": result.count,
                "shape": result.shape,
                "estimate_sigma_max": sigma_max,
                "pixel_moments": result.pixel_moments,
                "images_sha256": result.provenance["images_sha256"],
                "source": record,
            }
        )
    )


if __name__ == "__main__":
    scripts.run(main)
