"""Make, in the current folder, small stand-ins for files that the documentation calls the reader's own or downloads.

    python scripts/dev/documented_stand_ins.py my_folder my_mask.png

run_documented_commands.py calls it for the names that a page mentions. Images are crops of photographs that come with
scikit-learn; networks are small and untrained; the EDM snapshot and the shapes of Inception are those of the tests.
"""

from __future__ import annotations

import io
import json
import pathlib
import shutil
import sys
import tarfile
from typing import Any

import numpy as np

TESTS = pathlib.Path(__file__).resolve().parents[2] / "tests"
SIZE = 64
CONFIG = '''"""A small network for images of 64x64 pixels."""

from configs.ve import cifar10_ncsnpp_continuous


def get_config(arg=""):
    return cifar10_ncsnpp_continuous.get_config(f"runlocal,data.image_size=64,{arg}")
'''


def images(name: str) -> None:
    """A folder of 256 PNG images."""
    from sklearn.datasets import load_sample_images

    from pds_jax.io.images import save_png

    rng, pictures = np.random.default_rng(0), load_sample_images().images
    for number in range(256):
        picture = pictures[number % len(pictures)]
        row, column = (rng.integers(0, side - SIZE) for side in picture.shape[:2])
        crop = picture[row : row + SIZE, column : column + SIZE]
        save_png(pathlib.Path(name) / f"{number:03d}.png", crop.astype(np.float32) / 255)


def mask(name: str) -> None:
    """White but for the middle, 16x16 as photos is."""
    from pds_jax.io.images import save_png

    known = np.ones((16, 16, 1), np.float32)
    known[4:12, 4:12] = 0
    save_png(pathlib.Path(name), known)


def configuration(name: str) -> None:
    """A configuration file."""
    pathlib.Path(name).write_text(CONFIG)


def _network(side: int) -> tuple[Any, Any]:
    """Configuration and parameters of an untrained network."""
    import jax

    from configs.ve import cifar10_ncsnpp_continuous
    from pds_jax.models import init_model

    config = cifar10_ncsnpp_continuous.get_config(f"runlocal,data.image_size={side}")
    return config, init_model(jax.random.key(0), config)


def weights(name: str) -> None:
    """A checkpoint of score_sde_pytorch for my_config.py."""
    from pds_jax import convert

    config, params = _network(SIZE)
    convert.export(params, config, name, "score_sde_torch")


def checkpoint(name: str) -> None:
    """A checkpoint of score_sde, for images of 32x32."""
    from flax import serialization

    _, params = _network(32)
    state = {"optimizer": {"target": params}, "params_ema": params}
    pathlib.Path(name).write_bytes(serialization.to_bytes(state))


def cifar10(name: str) -> None:
    """CIFAR-10's archive with 40 images of noise in each file."""
    rng = np.random.default_rng(0)
    with tarfile.open(name, "w:gz") as archive:
        for number in range(1, 6):
            data = rng.integers(0, 256, (40, 1 + 3 * 32 * 32), np.uint8).tobytes()
            entry = tarfile.TarInfo(f"cifar-10-batches-bin/data_batch_{number}.bin")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def inception(name: str) -> None:
    """Weights of pytorch-fid's Inception network, drawn at random."""
    import torch

    rng = np.random.default_rng(0)
    shapes = json.loads((TESTS / "golden" / "metrics" / "inception_names.json").read_text())
    state = {key: torch.from_numpy(_tensor(rng, key, shape)) for key, shape in shapes.items()}
    torch.save(state, name)


def _tensor(rng: np.random.Generator, key: str, shape: list[int]) -> np.ndarray:
    """Convolutions that keep the scale of their input, and normalisations that do little."""
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if key.endswith(("bn.weight", "bn.running_var")):
        return np.ones(shape, np.float32)
    scale = np.sqrt(2 / np.prod(shape[1:])) if len(shape) > 1 else 0.1
    return (scale * rng.standard_normal(shape)).astype(np.float32)


def edm(name: str) -> None:
    """A small EDM snapshot, for images of 8x8."""
    shutil.copyfile(TESTS / "golden" / "edm" / "edm_ncsnpp_uncond.pkl", name)


MAKERS = {
    "my_folder": images,
    "my_images": images,
    "my_mask.png": mask,
    "my_config.py": configuration,
    "my.pth": weights,
    "checkpoint_26": checkpoint,
    "cifar-10-binary.tar.gz": cifar10,
    "my_inception.pth": inception,
    "edm-cifar10-32x32-uncond-vp.pkl": edm,
}


if __name__ == "__main__":
    for wanted in sys.argv[1:]:
        MAKERS[wanted](wanted)
