"""One image file to pixels. What would change the pixels is done on request only, or the file is refused by name.

Orientation tags are always applied; 1-bit, gray and RGB files of 8 bits are taken as they are. Colour profiles are not
applied: the numbers in the file are the data, as for every FID program.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import math
import os
import re
import threading
import warnings
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from pds_jax.types import PdsError

MAX_PIXELS = 1 << 28
_ORIENTATION, _BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 274, 258, 262, 339  # tags
_SAMPLES, _DESCRIPTION, _DEPTH = 277, 270, 32997  # tags
_STACK = re.compile(r"ImageJ=.*\nimages=(\d+)|.*\"shape\": \[([\d, ]+)\], \"truncated\": true", re.S)
_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_HEADER_BYTES = 1 << 14
# Registered with Pillow, but drawn by another program, not pictures, or known by nothing but a suffix.
_NOT_READ = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MCIDAS", "MPEG", "WMF", "IMT", "SPIDER", "XVTHUMB"}
# Recognised by more than a byte or two; files of the other formats must have their suffix.
_SURE = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM", "PSD", "QOI", "DDS", "SUN", "FITS")
_EXACT = {"1": 1, "L": 1, "RGB": 3}  # mode -> channels
_BANDS = {**_EXACT, "LA": 2, "RGBA": 4}  # taken as they are where so many channels are asked for
_VALUES = ("L", "LA", "RGB", "RGBA", "I;16", "I;16L", "I;16B", "I", "F")  # whose numbers speak for themselves
_OPENING = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Rule:
    """How image files become arrays.

    Attributes:
      size: (H, W) to crop (central, of that aspect ratio) and resize to; None takes files as they are.
      channels: that they must have; None for what they have.
      convert: bring every file to ``channels`` (by default 3): blend transparency on white, look palettes up, convert
        CMYK and gray, cut 16 bits to the upper 8, and take the first picture of a .mpo.
    """

    size: tuple[int, int] | None = None
    channels: int | None = None
    convert: bool = False

    def record(self) -> dict[str, Any]:
        """For provenance: what was done to the files, nothing where they were taken as they are."""
        facts = {"resized_to": self.size and list(self.size), "converted_to_channels": self.convert and self.target}
        return {name: value for name, value in facts.items() if value}

    @property
    def target(self) -> int:
        """Channels after conversion."""
        return self.channels or 3


@functools.cache
def suffixes() -> dict[str, str]:
    """Suffix -> format, of all image files that Pillow opens here by itself."""
    Image.init()
    known = {suffix: name for suffix, name in Image.registered_extensions().items() if name in _openers()}
    return known | {".mpo": "JPEG"}


@functools.cache
def _openers() -> frozenset[str]:
    Image.init()
    return frozenset(Image.OPEN) - _NOT_READ


def inspect(where: str, read: Any, rule: Rule) -> tuple[int, int, int]:
    """Shape (H, W, C) that a file will have, from as few bytes as will do.

    Args:
      where: for messages.
      read: number of bytes, -1 for all -> the first bytes of the file.
      rule: how it is read.

    Raises:
      PdsError: what :func:`decode` refuses, but for damage to the pixels.
    """
    data = read(_HEADER_BYTES)
    if len(data) == _HEADER_BYTES:
        if data.startswith((_PNG, _JPEG)):  # in which all that matters stands before the pixels
            with contextlib.suppress(_Unreadable), _opened(where, data) as image:
                return _shape(where, image, data, rule)
        data = read(-1)
    with _opened(where, data) as image:
        return _shape(where, image, data, rule)


def decode(where: str, data: bytes, rule: Rule) -> np.ndarray:
    """Pixels (H, W, C) uint8 of a file.

    Args:
      where: for messages.
      data: the whole file.
      rule: how it is read.

    Raises:
      PdsError: damaged or cut off, several frames or pages, more than 2^28 pixels, or a colour mode or depth that the
        rule does not allow; names the file.
    """
    with _opened(where, data) as image:
        _shape(where, image, data, rule)
        _check_png(where, data)
        image.load()
        shape = _shape(where, image, data, rule)  # with the tags behind the pixels
        pixels = _pixels(image, rule)
    if rule.size is not None:
        pixels = fit(pixels, rule.size)
    if pixels.shape != shape or pixels.dtype != np.uint8:
        raise PdsError(f"{where} decodes to {pixels.dtype} {pixels.shape}, its header says {shape}; save it again")
    return pixels


def decode_any(where: str, data: bytes) -> np.ndarray:
    """Stored values (H, W, 1 to 4) of a file of any colour mode and depth, upright, palettes looked up.

    Args:
      where: for messages.
      data: the whole file.

    Returns:
      uint8, uint16 or float32; 1-bit files are 0 and 255.

    Raises:
      PdsError: damaged, several frames, too many pixels, CMYK and the like, or 16 bits of more than one channel.
    """
    with _opened(where, data) as image:
        _check_size(where, image)
        _check_frames(where, image, Rule())
        _check_png(where, data)
        image.load()
        depth = _bits(image, data)
        _check_tiff(where, image, depth)
        upright = ImageOps.exif_transpose(image)
        if image.has_transparency_data:
            upright = upright.convert("RGBA")
        elif image.mode in ("1", "P"):
            upright = upright.convert("L" if image.mode == "1" else "RGB")
        if upright.mode not in _VALUES:
            raise PdsError(f"{where} has the colour mode {image.mode}; save it in gray or black and white")
        pixels = np.asarray(upright)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if depth > 8 and pixels.shape[2] > 1:
        raise PdsError(f"{where} has {pixels.shape[2]} channels of {depth} bits; save it as 8 bits or gray")
    if depth == 16 and pixels.dtype.kind == "i":
        return np.clip(pixels, 0, 65535).astype(np.uint16)
    return pixels.astype(pixels.dtype.newbyteorder("="))


# --- opening -------------------------------------------------------------------------------------------------------


class _Unreadable(PdsError):
    """Pillow cannot read the file."""


def _unreadable(where: str, why: str) -> _Unreadable:
    return _Unreadable(f"{where} is not a readable image ({why}); copy it again or remove it")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No warnings of metadata, in this and other threads; for all readers of files."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _opened(where: str, data: bytes) -> Iterator[Image.Image]:
    try:
        with _open(where, data) as image:
            yield image
    except PdsError:
        raise
    except Image.DecompressionBombError as error:
        raise PdsError(f"{where} holds a picture that is too large to decode ({error}); shrink it first") from error
    except Exception as error:  # Pillow's parsers raise anything on damaged files
        raise _unreadable(where, _why(error, data)) from error


def _open(where: str, data: bytes) -> Image.Image:
    suffix = os.path.splitext(where)[1].lower()
    formats = [name for name in dict.fromkeys((*_SURE, suffixes().get(suffix, "PNG"))) if name in _openers()]
    with _OPENING:  # Pillow's limit is global; _shape has its own, by the header
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(io.BytesIO(data), formats=formats)
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    _scale_key(image, data)
    return image


def _scale_key(image: Image.Image, data: bytes) -> None:
    """Bring the transparent value of a gray PNG of 2 or 4 bits to 8 bits, as Pillow brings the pixels."""
    key = image.info.get("transparency")
    if image.format == "PNG" and image.mode == "L" and isinstance(key, int) and key < 1 << data[24] < 256:
        image.info["transparency"] = key * 255 // ((1 << data[24]) - 1)


def _why(error: Exception, data: bytes) -> str:
    if not data:
        return "it is empty"
    if isinstance(error, Image.UnidentifiedImageError):
        return "damaged, or of a format that is not known"
    return f"{type(error).__name__}: {error}" if not isinstance(error, OSError | SyntaxError) else str(error)


# --- what a file is ------------------------------------------------------------------------------------------------


def _shape(where: str, image: Image.Image, data: bytes, rule: Rule) -> tuple[int, int, int]:
    """Shape after decoding; says what is wrong with the file."""
    _check_size(where, image)
    width, height = image.size
    _check_frames(where, image, rule)
    channels = _channels(where, image, data, rule)
    if rule.size is not None:
        return (*rule.size, channels)
    turned = _orientation(image) in (5, 6, 7, 8)
    if image.format == "TIFF":  # whose size newer versions of Pillow give upright
        tags: Any = image.tag_v2  # type: ignore[attr-defined]
        turned &= (width, height) == (tags.get(256), tags.get(257))
    return (width, height, channels) if turned else (height, width, channels)


def _check_size(where: str, image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise PdsError(
            f"{where} has {width}x{height} pixels, more than the {MAX_PIXELS} that are decoded (a small file can "
            "unpack to more than the memory); shrink it first"
        )
    if width * height == 0:
        raise PdsError(f"{where} has no pixels")


def _orientation(image: Image.Image) -> Any:
    if image.format == "PNG" and not {"exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp"} & set(image.info):
        return 1  # Pillow would decode the whole picture to look for the tag behind the pixels
    return image.getexif().get(_ORIENTATION)


def _check_frames(where: str, image: Image.Image, rule: Rule) -> None:
    count = max(int(getattr(image, "n_frames", 1)), len(image.info.get("sizes", ())), _stacked(image))
    if count > 1 and image.format == "MPO":
        if not rule.convert:
            raise PdsError(
                f"{where} holds {count} pictures (.mpo, as cameras write it); use --convert_images (convert=True) to "
                "take the first, or split it"
            )
    elif count > 1:
        raise PdsError(f"{where} holds {count} frames, pages or layers; save each that is meant as a file")


def _stacked(image: Image.Image) -> int:
    """Images that a TIFF says to hold in its one page: a volume, or a stack of which only the first page is listed."""
    if image.format != "TIFF":
        return 1
    tags: Any = image.tag_v2  # type: ignore[attr-defined]
    told = _STACK.match(str(tags.get(_DESCRIPTION, "")))
    count = int(told[1] or 1) if told else 1
    if told and told[2]:
        count = math.prod(map(int, told[2].split(","))) // max(math.prod(image.size) * tags.get(_SAMPLES, 1), 1)
    return max(count, int(tags.get(_DEPTH, 1)))


def _channels(where: str, image: Image.Image, data: bytes, rule: Rule) -> int:
    """Channels after decoding."""
    mode, depth = image.mode, _bits(image, data)
    if depth > 16 or mode == "F":
        raise PdsError(
            f"{where} has {depth} bits a channel (mode {mode}), whose range is not known; save it as 8 bits, or as "
            ".npy with a declared range"
        )
    _check_tiff(where, image, depth)
    wanted = rule.channels
    if depth > 8 and image.has_transparency_data:
        raise PdsError(f"{where} has {depth} bits a channel and transparency; save it as 8 bits, without transparency")
    if depth > 8 and not rule.convert:
        raise PdsError(
            f"{where} has more than 8 bits a channel (mode {mode}, {depth} bits); use --convert_images (convert=True) "
            "to keep the upper 8, or save it as 8 bits"
        )
    if rule.convert:
        if rule.target not in (1, 3) and _BANDS.get(mode) != wanted:
            raise PdsError(f"{where} is {mode}; files are converted to 1 (gray) or 3 (RGB) channels, not {wanted}")
        return rule.target
    if mode in _BANDS and _BANDS[mode] == wanted and (mode not in _EXACT or not image.has_transparency_data):
        return _BANDS[mode]
    if image.has_transparency_data:
        raise PdsError(
            f"{where} has transparency (colour mode {mode}), which is not RGB or gray; use --convert_images "
            "(convert=True) to blend it on white, or save it without"
        )
    if mode not in _EXACT:
        raise PdsError(
            f"{where} has the colour mode {mode}{' (a palette)' * (mode == 'P')}, not RGB or gray; use "
            "--convert_images (convert=True), or save it as RGB"
        )
    if wanted is not None and _EXACT[mode] != wanted:
        raise PdsError(
            f"{where} has {_EXACT[mode]} channel{'s' * (_EXACT[mode] > 1)}, {wanted} are asked for"
            + ("; use --convert_images (convert=True), or save it so" if wanted in (1, 3) else "; give a .npy or .npz")
        )
    return _EXACT[mode]


def _bits(image: Image.Image, data: bytes) -> int:
    """Bits a channel as stored: Pillow cuts 16-bit colour to 8 bits without a word in several formats."""
    stored = 8
    if image.format == "PNG":
        stored = data[24]
    elif image.format == "TIFF":
        stored = int(np.max(image.tag_v2.get(_BITS, 1)))  # type: ignore[attr-defined]
    elif image.format == "PPM":
        stored = _ppm_bits(data)
    elif image.format == "JPEG2000":
        at = data.find(b"\xff\x4f\xff\x51") + 2
        count = int.from_bytes(data[at + 38 : at + 40], "big")
        stored = max((byte & 0x7F) + 1 for byte in data[at + 40 : at + 40 + 3 * count : 3])
    elif image.format == "SGI":
        stored = 8 * data[3]
    elif image.format == "AVIF":
        stored = 10 if data[data.find(b"av1C") + 6] & 0x40 else 8
    elif str(getattr(image, "pixel_format", "")).startswith("BC6"):
        stored = 16
    by_mode = 32 if image.mode in ("I", "F") and stored <= 8 else 16 if image.mode.startswith("I;16") else 8
    return max(stored, by_mode)


def _check_tiff(where: str, image: Image.Image, depth: int) -> None:
    """Refuse samples that Pillow leaves out, or hands over unscaled, without inverting them, or without their sign."""
    if image.format != "TIFF" or depth > 16:
        return
    tags: Any = image.tag_v2  # type: ignore[attr-defined]
    if tags.get(_SAMPLES, 1) > len(image.getbands()):
        raise PdsError(
            f"{where} has {tags[_SAMPLES]} samples a pixel, of which {len(image.getbands())} would be read; save those "
            "that are meant, with a fourth as alpha, or all as .npy (H, W, C)"
        )
    bits = int(np.max(tags.get(_BITS, 1)))
    if 8 < bits < 16:
        what = f"samples of {bits} bits"
    elif bits == 16 and tags.get(_PHOTOMETRIC) == 0:
        what = "samples of 16 bits with 0 as white (PhotometricInterpretation is WhiteIsZero)"
    elif 2 in np.atleast_1d(tags.get(_SAMPLE_FORMAT, 1)):
        what = "signed samples"
    else:
        return
    raise PdsError(f"{where} has {what}; save it as unsigned 8 or 16 bits with 0 as black")


def _ppm_bits(data: bytes) -> int:
    """Of a .pgm or .ppm: 16 if its largest value, the third number after the magic, is above 255."""
    magic, words = data[:2], []
    lines = data[2:1024].split(b"\n")
    for line in lines:
        words += line.partition(b"#")[0].split()
        if len(words) >= 3:
            break
    if magic in (b"Pf", b"PF"):
        return 32
    if magic in (b"P1", b"P4") or len(words) < 3:
        return 8
    return 16 if words[2].isdigit() and int(words[2]) > 255 else 8


def _check_png(where: str, data: bytes) -> None:
    """Compare the checksum of every chunk of a PNG; Pillow does not, for those that hold the pixels."""
    if not data.startswith(_PNG):
        return
    at = len(_PNG)
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if end > len(data):
            break
        if zlib.crc32(data[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            raise _unreadable(where, f"damaged at byte {at}")
        if data[at + 4 : at + 8] == b"IEND":
            return
        at = end
    raise _unreadable(where, "truncated")


# --- pixels --------------------------------------------------------------------------------------------------------


def _pixels(image: Image.Image, rule: Rule) -> np.ndarray:
    upright = ImageOps.exif_transpose(image)
    blended = image.has_transparency_data and rule.target in _EXACT.values()
    if rule.convert and (blended or _BANDS.get(image.mode) != rule.target):
        upright = _converted(upright, rule.target)
    elif upright.mode == "1":
        upright = upright.convert("L")
    pixels = np.asarray(upright)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _converted(image: Image.Image, channels: int) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits
        values = np.asarray(image).astype(np.int64)
        image = Image.fromarray(np.clip(values >> 8, 0, 255).astype(np.uint8))
    if image.has_transparency_data:
        visible = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", visible.size, "white"), visible)
    if image.mode not in ("1", "L"):
        image = image.convert("RGB")
    return image.convert("L" if channels == 1 else "RGB")


def fit(
    pixels: np.ndarray, size: tuple[int, int], resampling: Image.Resampling = Image.Resampling.LANCZOS
) -> np.ndarray:
    """Cut the largest central box with the aspect ratio of ``size`` and resize it with antialiasing.

    Args:
      pixels: (h, w, C) uint8.
      size: (H, W).
      resampling: the filter.

    Returns:
      (H, W, C) uint8.
    """
    height, width = size
    h, w = pixels.shape[:2]
    if h * width >= w * height:
        h, w = max(round(w * height / width), 1), w
    else:
        h, w = h, max(round(h * width / height), 1)
    top, left = (pixels.shape[0] - h) // 2, (pixels.shape[1] - w) // 2
    box = pixels[top : top + h, left : left + w]
    # A channel at a time: Pillow would weight colours by the fourth.
    bands = [Image.fromarray(np.ascontiguousarray(box[..., c])) for c in range(box.shape[2])]
    return np.stack([np.asarray(band.resize((width, height), resampling)) for band in bands], axis=-1)
