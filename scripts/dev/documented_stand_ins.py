"""Make, in the current folder, small stand-ins for the files that the documentation calls the reader's own.

    python scripts/dev/documented_stand_ins.py my_folder my_mask.png

run_documented_commands.py calls it for the names that a page mentions. Images are crops of photographs that come with
scikit-learn; the network is a small one of configs/ve/cifar10_ncsnpp_continuous.py, untrained.
"""

from __future__ import annotations

import pathlib
import sys

import numpy as np

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


def weights(name: str) -> None:
    """A checkpoint of score_sde_pytorch for my_config.py."""
    import jax

    from configs.ve import cifar10_ncsnpp_continuous
    from pds_jax import convert
    from pds_jax.models import init_model

    config = cifar10_ncsnpp_continuous.get_config(f"runlocal,data.image_size={SIZE}")
    params = init_model(jax.random.key(0), config)
    convert.export(params, config, name, "score_sde_torch")


MAKERS = {
    "my_folder": images,
    "my_images": images,
    "my_mask.png": mask,
    "my_config.py": configuration,
    "my.pth": weights,
}


if __name__ == "__main__":
    for wanted in sys.argv[1:]:
        MAKERS[wanted](wanted)
