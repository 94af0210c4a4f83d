"""Crops of photographs that packages bring along: `photos` (16x16 patches) and `landscapes` (64x64 views).

The right quarter of every photograph is held out. Nothing is stored here: the packages are read where they are.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from pds_jax.data.counters import below, uniform
from pds_jax.data.splits import check_split
from pds_jax.types import PdsError


@dataclasses.dataclass(frozen=True)
class Photograph:
    """Where a photograph comes from: package, file in it (of a Debian package: from the root), credit and licence."""

    package: str
    file: str
    credit: str
    licence: str


# Photographs inside the wheels of scikit-image and scikit-learn.
PHOTOS = (
    Photograph("skimage", "data/astronaut.png", "Eileen Collins; NASA Great Images", "public domain"),
    Photograph("skimage", "data/chelsea.png", "Chelsea the cat; Stéfan van der Walt", "CC0"),
    Photograph("skimage", "data/coffee.png", "Coffee cup; Rachel Michetti, courtesy of Pikolo Espresso Bar", "CC0"),
    Photograph("skimage", "data/rocket.jpg", "Launch of DSCOVR on Falcon 9; SpaceX", "public domain"),
    Photograph("sklearn", "datasets/images/china.jpg", "flickr.com/photos/danielbuechele/6061409035", "CC BY 2.0"),
    Photograph("sklearn", "datasets/images/flower.jpg", "flickr.com/photos/vultilion/6056698931", "CC BY 2.0"),
)
_PHOTO_BOXES = (2, 3, 4)

_MATE = {
    "Aqua": "Charles Barbin",
    "Blinds": "Lennart Poettering, Andrea Cimitan",
    "Dune": "Marco Cogoni, Hylke Bons",
    "FreshFlower": "Jens Ansorg",
    "Garden": "Charles Barbin",
    "GreenMeadow": "Timothy Schellhase, Lapo Calamandrei",
    "LadyBird": "Charles Barbin",
    "RainDrops": '"blackcombwhistler07"',
    "Storm": "Sergey Nazarov",
    "TwoWings": "Charles Barbin, Hylke Bons",
    "Wood": "Jean-François Fortin Tam",
    "YellowFlower": "Charles Barbin",
}
_PLASMA = {
    "BytheWater": "Maciej Wiklo",
    "ColdRipple": "Risto Saukonpää",
    "ColorfulCups": "Dmitri Popov",
    "DarkestHour": "Risto Saukonpää",
    "EveningGlow": "Ian Hex",
    "FallenLeaf": "Martin Klapetek",
    "Grey": "Sigi Sagi",
    "Kite": "Risto Saukonpää",
    "OneStandsOut": "Risto Saukonpää",
    "Path": "Risto Saukonpää",
    "summer_1am": "Risto Saukonpää",
}
# Photographs of two Debian packages (their other wallpapers are drawn), and those of PHOTOS that are wide enough.
LANDSCAPES = (
    *(
        Photograph("mate-backgrounds", f"usr/share/backgrounds/mate/nature/{name}.jpg", credit, "GPL-2+")
        for name, credit in _MATE.items()
    ),
    *(
        Photograph(
            "plasma-workspace-wallpapers",
            f"usr/share/wallpapers/{name}/contents/images/2560x1600.jpg",
            credit,
            "LGPL-3 (package: GPL-2+)",
        )
        for name, credit in _PLASMA.items()
    ),
    *(photo for photo in PHOTOS if "chelsea" not in photo.file),
)
_LANDSCAPE_BOXES = (2, 4, 6, 8, 10)
# Where Debian's packages are unpacked, if not in /.
ROOT_VARIABLE = "LANDSCAPES_ROOT"
_TRAIN_WIDTH = 0.75  # the right quarter of every photograph is held out


def photos(split: str, image_size: int | tuple[int, int]) -> PhotoCrops:
    """Crops of :data:`PHOTOS`, averaged over boxes of 2, 3 or 4 pixels a side.

    Args:
      split: "train" or "test".
      image_size: side of a crop after averaging, or its height and width.

    Returns:
      An endless source of crops (H, W, 3) in [0, 1].

    Raises:
      PdsError: unknown split, a photograph that is missing, or crops larger than a photograph allows.
    """
    pictures = read(PHOTOS, "photos")
    return PhotoCrops(pictures, image_size, split, boxes=[_PHOTO_BOXES] * len(pictures), name="photos")


def landscapes(
    split: str,
    image_size: int | tuple[int, int],
    *,
    boxes: Sequence[int] = _LANDSCAPE_BOXES,
    shares: tuple[float, float] = (0.1, 0.25),
) -> PhotoCrops:
    """Crops of :data:`LANDSCAPES`, each of a tenth to a quarter of its photograph's width, box-averaged to size.

    Args:
      split: "train" or "test".
      image_size: side of a crop after averaging, or its height and width.
      boxes: sides of the averaged boxes, of which a photograph uses those that give a crop of such a share.
      shares: least and largest share of the width; more than a quarter leaves no room in the split "test".

    Returns:
      An endless source of crops (H, W, 3) in [0, 1].

    Raises:
      PdsError: unknown split, a photograph that is missing, or one that has no crop of that size and such a share.
    """
    pictures = read(LANDSCAPES, "landscapes")
    widths, side = [picture.shape[1] for picture in pictures], max(_pair(image_size))
    chosen = [tuple(b for b in boxes if shares[0] * w <= b * side <= shares[1] * w) for w in widths]
    if not all(chosen):
        raise PdsError(f"landscapes has no crops of {side} pixels; use data.image_size=64, or 32")
    return PhotoCrops(pictures, image_size, split, boxes=chosen, name="landscapes")


def labelled_landscapes(split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first crops of :func:`landscapes`, and the photograph that each is from.

    Args:
      split: "train" or "test".
      count: number of crops.

    Returns:
      Crops (count, 64, 64, 3) uint8 and the index of the photograph (count,) int64.

    Raises:
      PdsError: unknown split, or a photograph that is missing.
    """
    crops, indices = landscapes(split, 64), np.arange(count)
    parts = [np.rint(255 * crops.images(some)) for some in np.array_split(indices, max(count // 256, 1))]
    return np.concatenate(parts).astype(np.uint8), crops.photograph(indices)


def read(photographs: Sequence[Photograph], name: str) -> list[np.ndarray]:
    """Read photographs.

    Args:
      photographs: which.
      name: of the data set, for the message.

    Returns:
      One (H, W, 3) uint8 each.

    Raises:
      PdsError: a photograph is missing or cannot be read; says what to install.
    """
    from PIL import Image

    found = []
    for photo in photographs:
        path = _path_of(photo, name)
        try:
            with Image.open(path) as image:
                found.append(np.asarray(image.convert("RGB")))
        except OSError as error:
            raise PdsError(
                f"the data set {name} needs {path}, which cannot be read: {error}; {_how_to_get(photo)}"
            ) from error
    return found


def _path_of(photo: Photograph, name: str) -> pathlib.Path:
    if photo.file.startswith("usr/"):
        return pathlib.Path(os.environ.get(ROOT_VARIABLE, "/")) / photo.file
    spec = importlib.util.find_spec(photo.package)
    if spec is None or spec.origin is None:
        raise PdsError(f"the data set {name} needs {photo.package}: {_how_to_get(photo)}")
    return pathlib.Path(spec.origin).parent / photo.file


def _how_to_get(photo: Photograph) -> str:
    if photo.file.startswith("usr/"):
        return (
            f"on Debian and Ubuntu: apt install mate-backgrounds plasma-workspace-wallpapers; elsewhere unpack the "
            f"two packages of packages.debian.org into a folder (dpkg-deb -x, or ar and tar); {ROOT_VARIABLE} names it"
        )
    return "pip install scikit-image scikit-learn"


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


class PhotoCrops:
    """Endless random crops of photographs, box-averaged to ``image_size``.

    Image i is a function of (seed, i): photograph, box size, corner and flip.
    """

    size = None

    def __init__(
        self,
        photographs: Sequence[np.ndarray],
        image_size: int | tuple[int, int],
        split: str = "train",
        seed: int = 0,
        *,
        boxes: Sequence[Sequence[int]] | None = None,
        name: str = "photos",
    ):
        """Cut the photographs.

        Args:
          photographs: (H, W, C) uint8 each.
          image_size: side, or (H, W), of a crop after averaging.
          split: "train" is the left three quarters of each photograph, "test" the right quarter.
          seed: decides all crops.
          boxes: the sides of the averaged boxes for each photograph, by default 2, 3, 4; those that fit are used.
          name: for messages.

        Raises:
          PdsError: unknown split, or a photograph on which no box fits.
        """
        self.name = f"{name}-{split}"
        height, width = _pair(image_size)
        self.shape = (height, width, photographs[0].shape[-1])
        self.seed = seed if check_split(split) == "train" else seed + 1
        self._sides = [_side(photo, split) for photo in photographs]
        wanted = boxes or [_PHOTO_BOXES] * len(photographs)
        rooms = [min(side.shape[0] // height, side.shape[1] // width) for side in self._sides]
        self._boxes = [[box for box in some if box <= room] for some, room in zip(wanted, rooms, strict=True)]
        if not all(self._boxes):
            least = min(min(some) for some in wanted)
            tall, wide = (min(side.shape[axis] for side in self._sides) for axis in (0, 1))
            raise PdsError(
                f"{name} at {height}x{width} pixels need {height * least}x{width * least} source pixels, there are "
                f"{tall}x{wide}; use data.image_size of at most ({tall // least}, {wide // least})"
            )

    def images(self, indices: np.ndarray) -> np.ndarray:
        """Return crops (B, H, W, C), float32 in [0, 1]."""
        indices = np.asarray(indices)
        which = self.photograph(indices)
        counts = np.array([len(some) for some in self._boxes])
        scale = below(self.seed, 1, indices, counts[which])
        down, right = uniform(self.seed, 2, indices), uniform(self.seed, 3, indices)
        flip = below(self.seed, 4, indices, 2)
        out = np.empty((len(indices), *self.shape), np.float32)
        for row in range(len(indices)):
            photo, box = self._sides[which[row]], self._boxes[which[row]][scale[row]]
            tall, wide = self.shape[0] * box, self.shape[1] * box
            top = int(down[row] * (photo.shape[0] - tall + 1))
            left = int(right[row] * (photo.shape[1] - wide + 1))
            crop = _box_average(photo[top : top + tall, left : left + wide], box)
            out[row] = crop[:, ::-1] if flip[row] else crop
        return out

    def photograph(self, indices: np.ndarray) -> np.ndarray:
        """Which photograph each crop (B,) is from, (B,) int64."""
        return below(self.seed, 0, np.asarray(indices), len(self._sides))


def _side(photo: np.ndarray, split: str) -> np.ndarray:
    cut = int(_TRAIN_WIDTH * photo.shape[1])
    return photo[:, :cut] if split == "train" else photo[:, cut:]


def _box_average(crop: np.ndarray, box: int) -> np.ndarray:
    """Means of box x box pixels, (H / box, W / box, C) float32 in [0, 1]; rows first, in whole numbers."""
    height, width, channels = crop.shape
    rows = crop.reshape(height // box, box, width, channels).sum(1, dtype=np.uint16)
    total = rows.reshape(height // box, width // box, box, channels).sum(2, dtype=np.uint32)
    return (total / (255.0 * box * box)).astype(np.float32)
