"""Check that a checkpoint denoises images; detects a wrong attention order, noise schedule or image range.

    python scripts/check_denoiser.py --checkpoint=64x64_diffusion.pt --config=configs/adm/imagenet64.py --images=folder
    python scripts/check_denoiser.py --checkpoint=edm-ffhq-64x64-uncond-vp.pkl --images=folder

Images are noised at some levels and denoised; the error is given as a share of the noise's own power. A trained network
is well below 1 at every level on images of its training set. For a checkpoint of guided-diffusion, which does not store
its attention order, both orders are tried: if the other one is better, the exit status is 1. The last line is JSON.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from pds_jax import assembly
from pds_jax.bench import quality
from pds_jax.cli import scripts
from pds_jax.data import datasets, image_files
from pds_jax.denoisers import denoising_errors
from pds_jax.types import PdsError

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "The network, whatever --checkpoint of pds_jax takes.")
_CONFIG = scripts.define_config("config", "Its configuration, where the file carries none.")
_IMAGES = flags.DEFINE_string("images", None, "Folder, archive, .npz or .npy of images of the kind it was trained on.")
_RESIZE = flags.DEFINE_bool("resize_images", False, "Crop images to their central part and resize it.")
_RANGE = flags.DEFINE_list("range", None, "lo,hi of floating-point arrays; by default the model's own, else 0,1.")
_COUNT = flags.DEFINE_integer("count", 16, "How many images.", lower_bound=1)
_LEVELS = flags.DEFINE_list("levels", ["0.1", "0.3", "1", "3"], "Noise levels in the range of the model's images.")
_LABEL = flags.DEFINE_integer("label", None, "Class of all images, for a network with classes; by default none.")

OTHER = {"new": "legacy", "legacy": "new"}


def attempts() -> list[assembly.Trained]:
    """The network as configured, and with the other attention order where its file does not say which is right."""
    trained = assembly.load(_CHECKPOINT.value, _CONFIG.value)
    order = trained.config.model.get("attention_order")
    if order not in OTHER:
        return [trained]
    config = ConfigDict(trained.config.to_dict())
    config.model.attention_order = OTHER[order]
    return [trained, assembly.load(_CHECKPOINT.value, config)]


def pixels(trained: assembly.Trained) -> np.ndarray:
    """The first images, in the model's range."""
    size = trained.shape[:2] if _RESIZE.value else None
    images = image_files.open_images(
        _IMAGES.value,
        size=size,
        channels=trained.shape[2],
        value_range=_RANGE.value or datasets.get_range(trained.config),
        limit=_COUNT.value,
    )
    if images.shape != trained.shape:
        raise PdsError(f"{_IMAGES.value} has images {images.shape}, the network {trained.shape}; use --resize_images")
    found = images.images(range(min(_COUNT.value, len(images))))
    return datasets.get_data_scaler(trained.config)(found.astype(np.float32) / 255)


def errors(trained: assembly.Trained, x: np.ndarray, levels: list[float]) -> np.ndarray:
    """Error of a network at every level."""
    given: Any = "none" if trained.num_classes else None
    if _LABEL.value is not None:
        given = [_LABEL.value] * len(x)
    seeds = range(len(x))
    _, score_fn = assembly.labelled(trained, assembly.plan(trained), seeds, given)(seeds)
    return denoising_errors(score_fn, trained.sde, x, levels)


def verdict(found: dict[str | None, np.ndarray]) -> str:
    """One sentence on the errors by attention order, the configuration's first."""
    means = {order: float(np.exp(np.mean(np.log(values)))) for order, values in found.items()}
    chosen, best = next(iter(means)), min(means, key=lambda order: means[order])
    if best != chosen and means[best] < 0.95 * means[chosen]:
        return f"wrong attention order: {best!r} denoises better than the configuration's {chosen!r}"
    if max(found[chosen]) > 1:
        return "it does not denoise: wrong configuration, schedule or range, or images of another kind"
    return "it denoises"


def main(argv: list[str]) -> None:
    """Measure and judge."""
    scripts.refuse_words(argv)
    if not _CHECKPOINT.value or not _IMAGES.value:
        raise PdsError("say which network and which images: --checkpoint=PATH and --images=PATH")
    try:
        levels = [float(level) for level in _LEVELS.value]
    except ValueError:
        levels = []
    if not levels or not all(0 < level < np.inf for level in levels):
        raise PdsError(f"--levels={','.join(_LEVELS.value)}: use noise levels above 0, separated by commas")
    networks = attempts()
    x = pixels(networks[0])
    found = {network.config.model.get("attention_order"): errors(network, x, levels) for network in networks}
    rows = [
        {"attention order": order or "as configured", **dict(zip(_LEVELS.value, map(float, values), strict=True))}
        for order, values in found.items()
    ]
    said = verdict(found)
    print(f"Error of the denoiser over that of doing nothing, by noise level\n\n{quality.markdown(rows)}\n{said}")
    print(json.dumps({"verdict": said, "rows": rows}))
    sys.exit(0 if said == "it denoises" else 1)


if __name__ == "__main__":
    scripts.run(main)
