"""Statistics of latents for PDS on a latent diffusion model: of images through its encoder, or of its own samples.

    python scripts/latent_statistics.py --checkpoint=FOLDER --images=my_images --out=latents.npz
    python scripts/latent_statistics.py --checkpoint=FOLDER --prompts=captions.txt --nfe=100 --out=latents.npz

Then pds_jax --mode=sample --checkpoint=FOLDER --statistics=latents.npz --alpha=5. About 200 images are enough. Samples
carry the model's and the sampler's own faults into M; images like those it was trained on are better.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from absl import flags

from pds_jax import assembly
from pds_jax.cache import use_compilation_cache
from pds_jax.cli import scripts
from pds_jax.data import image_files
from pds_jax.io.files import check_writable
from pds_jax.latent.captions import read_captions
from pds_jax.latent.folder import INDEX, is_pipeline
from pds_jax.latent.statistics import encoded, latent_statistics
from pds_jax.latent.trained import LatentModel, load
from pds_jax.types import PdsError

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Folder of diffusers with model_index.json.", required=True)
_IMAGES = flags.DEFINE_string("images", None, "Folder or archive of images; they are cropped to the model's size.")
_CONVERT = flags.DEFINE_bool("convert_images", False, "Bring images of other modes to RGB instead of refusing them.")
_RANGE = flags.DEFINE_list("range", None, "lo,hi of floating-point arrays; by default 0,1.")
_PROMPTS = flags.DEFINE_string("prompts", None, "Without images: texts of the samples, a file as of pds_jax --prompts.")
_GUIDANCE = flags.DEFINE_float("guidance", 7.5, "Weight of classifier-free guidance of the samples.")
_NFE = flags.DEFINE_integer("nfe", 100, "Network evaluations of a sample.")
_LIMIT = flags.DEFINE_integer("limit", 200, "Use so many images or samples.", 2)
_BATCH = flags.DEFINE_integer("batch_size", 4, "Samples at once.", 1)
_SIZE = flags.DEFINE_list("image_size", None, "H,W of the images; by default those that the network was trained at.")
_OUT = flags.DEFINE_string("out", "latents.npz", "Where the statistics go.")


def of_images(model: LatentModel) -> tuple[Iterator[np.ndarray], dict[str, Any]]:
    """Latents of a folder's images, and what was read."""
    found = image_files.open_images(
        _IMAGES.value,
        size=model.trained.image_shape[:2],
        channels=3,
        convert=_CONVERT.value,
        value_range=_RANGE.value,
        limit=_LIMIT.value,
    )
    print(found.summary())
    return encoded(image_files.batches(found, _BATCH.value), model.codec), {"images": found.record}


def of_samples(model: LatentModel) -> tuple[Iterator[np.ndarray], dict[str, Any]]:
    """Latents that the model makes, and how."""
    given, guided = None, {}
    if model.pipeline.text is not None:
        if _PROMPTS.value is None:
            raise PdsError("give --images=FOLDER, or --prompts=FILE with the texts of the samples")
        prompts, guided = read_captions(_PROMPTS.value), {"guidance": _GUIDANCE.value}
        given = model.given(lambda seed: prompts[seed % len(prompts)], **guided)
    plan = assembly.plan(model.trained, nfe=_NFE.value, **guided)
    record = {"samples": plan.describe(), "prompts": _PROMPTS.value}

    def draw() -> Iterator[np.ndarray]:
        for seeds in np.array_split(np.arange(_LIMIT.value), -(-_LIMIT.value // _BATCH.value)):
            yield model.latents(plan, seeds.tolist(), given=given, batch_size=_BATCH.value)

    return draw(), record


def main(argv: list[str]) -> None:
    """Make the file, say what is in it."""
    scripts.refuse_words(argv)
    use_compilation_cache(None)
    if _LIMIT.value < 1 or _BATCH.value < 1:
        raise PdsError("--limit and --batch_size must be at least 1")
    check_writable(_OUT.value)
    size = None if _SIZE.value is None else (int(_SIZE.value[0]), int(_SIZE.value[-1]))
    if not is_pipeline(_CHECKPOINT.value):
        raise PdsError(
            f"--checkpoint={_CHECKPOINT.value} is no latent model, no folder of diffusers with {INDEX} and an "
            "autoencoder; scripts/make_statistics.py is for models of images"
        )
    model = load(_CHECKPOINT.value, size=size)
    latents, record = of_samples(model) if _IMAGES.value is None else of_images(model)
    result = latent_statistics(latents, {**record, "weights_sha256": model.trained.digest})
    result.save(_OUT.value)
    print(f"{result.count} latents of shape (h, w, c) = {result.shape}\nwritten: {_OUT.value}")
    print(json.dumps({"statistics": _OUT.value, "count": result.count, "shape": result.shape}))


if __name__ == "__main__":
    scripts.run(main)
