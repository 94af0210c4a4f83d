"""Statistics of a data set for PDS, in one pass.

    python scripts/make_statistics.py --images=my_folder --image_size=64 --out=statistics.npz --masks_dir=masks
    python scripts/make_statistics.py --dataset=photos --image_size=16 --out=statistics.npz

About 200 images are enough for the filters; sigma_max wants all of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

import ml_collections
import numpy as np
from absl import app, flags

from pds_jax import statistics
from pds_jax.data.image_files import read_images
from pds_jax.types import PdsError

_IMAGES = flags.DEFINE_string("images", None, "Folder or .zip of image files, or .npy/.npz array (n, H, W, C).")
_DATASET = flags.DEFINE_string("dataset", None, "Name of a data set instead, as in config.data.dataset.")
_SIZE = flags.DEFINE_integer("image_size", None, "Crop to the central square and resize files to this many pixels.")
_CHANNELS = flags.DEFINE_integer("channels", None, "1 or 3; by default that of the first file.")
_LIMIT = flags.DEFINE_integer("limit", None, "Use so many images; by default all, 20000 of an endless data set.")
_SIGMA_LIMIT = flags.DEFINE_integer("sigma_max_images", 5000, "Estimate sigma_max from so many images.")
_OUT = flags.DEFINE_string("out", "statistics.npz", "Where the statistics go.")
_MASKS = flags.DEFINE_string("masks_dir", None, "Also write freq_mask.npy and space_mask.npy of the PyTorch release.")


def batches() -> Iterable[np.ndarray]:
    """The images that the flags name."""
    if (_IMAGES.value is None) == (_DATASET.value is None):
        raise PdsError("say where the images are: either --images=PATH or --dataset=NAME")
    if _IMAGES.value is not None:
        return read_images(_IMAGES.value, size=_SIZE.value, channels=_CHANNELS.value)
    from pds_jax.data import datasets

    default = {"digits": (8, 1), "photos": (16, 3)}.get(_DATASET.value, (32, 3))
    data = {"dataset": _DATASET.value, "image_size": _SIZE.value or default[0]}
    data["num_channels"] = _CHANNELS.value or default[1]
    source = datasets.get_source(ml_collections.ConfigDict({"data": data}))
    return datasets.iterate(source, 256, _LIMIT.value or (20_000 if source.size is None else None))


def main(argv: list[str]) -> None:
    """Make the file, say what is in it."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    try:
        result = statistics.compute_statistics(batches(), limit=_LIMIT.value)
        sigma_max = statistics.estimate_sigma_max(batches(), limit=min(_SIGMA_LIMIT.value, result.count))
        result.save(_OUT.value)
        masks = [str(path) for path in result.to_masks(_MASKS.value)] if _MASKS.value else []
    except PdsError as error:
        raise SystemExit(f"error: {error}") from error
    print(f"{result.count} images of shape (H, W, C) = {result.shape}")
    print(f"sigma_max from the largest distance between two images: {sigma_max:.4g} (twice that for [-1, 1] models)")
    print("\n".join(["written: " + _OUT.value, *masks]))
    print(json.dumps({
        "statistics": _OUT.value, "masks": masks, "count": result.count, "shape": result.shape,
        "estimate_sigma_max": sigma_max, "images_sha256": result.provenance["images_sha256"],
    }))


if __name__ == "__main__":
    app.run(main)
