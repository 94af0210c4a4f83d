"""Kinds of files that people have, with the right value of each.

``PYTHONPATH=. python tests/data/kinds.py`` writes the tables of docs/files.md.

An expected value is an array, or words of the refusal.
"""

from __future__ import annotations

import dataclasses
import io
import os
import pathlib
import re
import struct
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from PIL import Image

from pds_jax.data.image_files import open_images
from pds_jax.data.masks import read_mask
from pds_jax.types import PdsError

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "files.md"
RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (6, 4, 3), dtype=np.uint8)
GRAY = RGB[..., :1]
STACK = np.stack([GRAY[..., 0]] * 5)
FLAT = np.full((16, 16, 3), (200, 100, 50), np.uint8)  # survives lossy formats
BITS = (RNG.random((6, 4, 1)) < 0.5) * np.uint8(255)
DEEP = RNG.integers(0, 65536, (6, 4, 1), dtype=np.uint16)
ALPHA = np.array([0, 255], np.uint8)[RNG.integers(0, 2, (6, 4, 1))]
WHITE = np.where(ALPHA > 0, RGB, 255).astype(np.uint8)
COLOURS = np.array([[255, 0, 0], [0, 0, 255]], np.uint8)[RNG.integers(0, 2, (6, 4))]
SIDEWAYS = np.zeros((16, 32, 3), np.uint8)  # 16 high; upright 32 high, white above
SIDEWAYS[:, :16] = 255
UPRIGHT = np.rot90(SIDEWAYS, -1)


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of image file: how to make it, and what it is as it is and with --convert_images."""

    label: str
    suffix: str
    make: Callable[[], bytes]
    plain: Any
    converted: Any
    within: int = 0  # of the right value, for lossy formats


def saved(array: Any, form: str, **options: Any) -> Callable[[], bytes]:
    def make() -> bytes:
        image = array
        if isinstance(array, np.ndarray):
            image = Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)
        buffer = io.BytesIO()
        image.save(buffer, form, **options)
        return buffer.getvalue()

    return make


def image(array: np.ndarray, mode: str | None = None) -> Image.Image:
    found = Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)
    return found if mode is None else found.convert(mode)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *extra: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + body


def png_rgb16() -> bytes:
    rows = b"".join(b"\0" + (row.astype(">u2") * 257).tobytes() for row in RGB)
    return png(4, 6, 16, 2, rows)


def png_huge() -> bytes:
    return png(40000, 40000, 8, 0, b"")


def png_key() -> bytes:
    """RGB, one colour of which is declared transparent."""
    rows = b"".join(b"\0" + row.tobytes() for row in RGB)
    return png(4, 6, 8, 2, rows, chunk(b"tRNS", RGB[0, 0].astype(">u2").tobytes()))


def png_low_key() -> bytes:
    """Gray of 4 bits, one value of which is declared transparent."""
    rows = b"".join(b"\0" + bytes([a << 4 | b, c << 4 | d]) for a, b, c, d in (GRAY[..., 0] >> 4).tolist())
    return png(4, 6, 4, 0, rows, chunk(b"tRNS", struct.pack(">H", GRAY[0, 0, 0] >> 4)))


def low_keyed() -> np.ndarray:
    gray = (GRAY >> 4) * np.uint8(17)
    return np.where(gray == gray[0, 0], 255, gray).astype(np.uint8)


def keyed() -> np.ndarray:
    hidden = (RGB == RGB[0, 0]).all(-1, keepdims=True)
    return np.where(hidden, 255, RGB).astype(np.uint8)


def tifffile(array: np.ndarray, **options: Any) -> Callable[[], bytes]:
    def make() -> bytes:
        import tifffile as library

        buffer = io.BytesIO()
        library.imwrite(buffer, array, **options)
        return buffer.getvalue()

    return make


def tiff(bits: int, data: bytes, photometric: int = 1, sample_format: int = 1) -> bytes:
    """A 6x4 gray TIFF with these numbers."""
    tags = {256: 4, 257: 6, 258: bits, 259: 1, 262: photometric, 273: 134, 277: 1, 278: 6, 279: len(data)}
    entries = [struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in (tags | {339: sample_format}).items()]
    header = struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + b"".join(entries) + bytes(4)
    return header.ljust(134, b"\0") + data


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


def cut(make: Callable[[], bytes], share: float = 0.6) -> Callable[[], bytes]:
    return lambda: (lambda data: data[: int(len(data) * share)])(make())


def flipped(make: Callable[[], bytes], at: int) -> Callable[[], bytes]:
    def damage() -> bytes:
        data = bytearray(make())
        data[at] ^= 1
        return bytes(data)

    return damage


def several(count: int, mode: str | None = None) -> dict[str, Any]:
    return {"save_all": True, "append_images": [image(np.roll(RGB, k + 1), mode) for k in range(count - 1)]}


def rgb(array: np.ndarray) -> np.ndarray:
    return np.repeat(array, 3, axis=-1)


TWELVE = "has samples of 12 bits"
INVERTED = "has samples of 16 bits with 0 as white"
SIGNED = "has signed samples"
MODE, DEPTH, ALPHAS, FRAMES, BROKEN, RANGE = (
    "has the colour mode",
    "has more than 8 bits a channel",
    "has transparency",
    "frames, pages or layers",
    "is not a readable image",
    "whose range is not known",
)
ALL_KINDS = (
    Kind("PNG, 1 bit", ".png", saved(image(BITS, "1"), "PNG"), BITS, rgb(BITS)),
    Kind("PNG, gray", ".png", saved(GRAY, "PNG"), GRAY, rgb(GRAY)),
    Kind("PNG, gray, 16 bits", ".png", saved(DEEP, "PNG"), DEPTH, rgb((DEEP >> 8).astype(np.uint8))),
    Kind("PNG, RGB", ".PNG", saved(RGB, "PNG"), RGB, RGB),
    Kind("PNG, RGB, 16 bits", ".png", png_rgb16, DEPTH, RGB),
    Kind("PNG, palette", ".png", saved(image(COLOURS).quantize(2), "PNG"), MODE, COLOURS),
    Kind("PNG, gray and alpha", ".png", saved(np.dstack([GRAY, ALPHA]), "PNG"), ALPHAS,
         rgb(np.where(ALPHA > 0, GRAY, 255).astype(np.uint8))),
    Kind("PNG, RGBA", ".png", saved(np.dstack([RGB, ALPHA]), "PNG"), ALPHAS, WHITE),
    Kind("PNG, RGBA, all opaque", ".png", saved(np.dstack([RGB, 255 + 0 * ALPHA]), "PNG"), ALPHAS, RGB),
    Kind("PNG, RGB with a transparent colour", ".png", png_key, ALPHAS, keyed()),
    Kind("PNG, gray of 4 bits with a transparent value", ".png", png_low_key, ALPHAS, rgb(low_keyed())),
    Kind("PNG with an orientation tag", ".png", saved(SIDEWAYS, "PNG", exif=exif(6)), UPRIGHT, UPRIGHT),
    Kind("PNG, animated", ".png", saved(image(RGB), "PNG", **several(2)), FRAMES, FRAMES),
    Kind("PNG, cut off", ".png", cut(saved(RGB, "PNG")), BROKEN, BROKEN),
    Kind("PNG, one bit of the pixels flipped", ".png", flipped(saved(RGB, "PNG"), 60), BROKEN, BROKEN),
    Kind("PNG, 40000x40000 pixels in a few bytes", ".png", png_huge, "has 40000x40000", "has 40000x40000"),
    Kind("JPEG, gray", ".jpg", saved(FLAT[..., :1], "JPEG", quality=95), FLAT[..., :1], rgb(FLAT[..., :1]), 2),
    Kind("JPEG, RGB", ".jpeg", saved(FLAT, "JPEG", quality=95), FLAT, FLAT, 2),
    Kind("JPEG, CMYK", ".jpg", saved(image(FLAT, "CMYK"), "JPEG", quality=95), MODE, FLAT, 3),
    Kind("JPEG with an orientation tag", ".jpg", saved(SIDEWAYS, "JPEG", quality=95, exif=exif(6)), UPRIGHT,
         UPRIGHT, 2),
    Kind("JPEG, several pictures (.mpo)", ".jpg",
         saved(image(FLAT), "MPO", quality=95, save_all=True, append_images=[image(255 - FLAT)]), "holds 2 pictures",
         FLAT, 2),
    Kind("JPEG, cut off", ".jpg", cut(saved(RGB.repeat(9, 0).repeat(9, 1), "JPEG")), BROKEN, BROKEN),
    Kind("JPEG named .png", ".png", saved(FLAT, "JPEG", quality=95), FLAT, FLAT, 2),
    Kind("GIF", ".gif", saved(image(COLOURS).quantize(2), "GIF"), MODE, COLOURS),
    Kind("GIF, animated", ".gif", saved(image(RGB, "P"), "GIF", **several(3, "P")), FRAMES, FRAMES),
    Kind("WebP", ".webp", saved(RGB, "WEBP", lossless=True), RGB, RGB),
    Kind("WebP with alpha", ".webp", saved(np.dstack([RGB, ALPHA]), "WEBP", lossless=True, exact=True), ALPHAS, WHITE),
    Kind("WebP, animated", ".webp", saved(image(RGB), "WEBP", **several(2)), FRAMES, FRAMES),
    Kind("BMP", ".bmp", saved(RGB, "BMP"), RGB, RGB),
    Kind("BMP, palette", ".bmp", saved(image(COLOURS).quantize(2), "BMP"), MODE, COLOURS),
    Kind("TIFF, gray", ".tif", saved(GRAY, "TIFF"), GRAY, rgb(GRAY)),
    Kind("TIFF, RGB, compressed", ".tiff", saved(RGB, "TIFF", compression="tiff_lzw"), RGB, RGB),
    Kind("TIFF, gray, 16 bits", ".tif", saved(DEEP, "TIFF"), DEPTH, rgb((DEEP >> 8).astype(np.uint8))),
    Kind("TIFF, RGB, 16 bits", ".tif", tifffile(RGB.astype(np.uint16) * 257, photometric="rgb"), DEPTH, RGB),
    Kind("TIFF, gray, 12 bits", ".tif", lambda: tiff(12, b"\xff" * 36), TWELVE, TWELVE),
    Kind("TIFF, gray, 8 bits, 0 is white", ".tif", lambda: tiff(8, GRAY.tobytes(), 0), 255 - GRAY, rgb(255 - GRAY)),
    Kind("TIFF, gray, 16 bits, 0 is white", ".tif", lambda: tiff(16, DEEP.tobytes(), 0), INVERTED, INVERTED),
    Kind("TIFF, gray, 16 bits, signed", ".tif", lambda: tiff(16, DEEP.tobytes(), 1, 2), SIGNED, SIGNED),
    Kind("TIFF, gray, 8 bits, signed", ".tif", lambda: tiff(8, GRAY.tobytes(), 1, 2), SIGNED, SIGNED),
    Kind("TIFF, 32 bits", ".tif", saved(np.full((6, 4, 1), 70000, np.int32), "TIFF"), RANGE, RANGE),
    Kind("TIFF, floating point", ".tif", saved(np.full((6, 4, 1), 0.5, np.float32), "TIFF"), RANGE, RANGE),
    Kind("TIFF, CMYK", ".tif", saved(image(FLAT, "CMYK"), "TIFF"), MODE, FLAT),
    Kind("TIFF, several pages", ".tif", saved(image(RGB), "TIFF", **several(5)), FRAMES, FRAMES),
    Kind("TIFF, several pages, of which one is listed", ".tif",
         tifffile(STACK, photometric="minisblack", truncate=True), FRAMES, FRAMES),
    Kind("TIFF, stack of ImageJ, of which one page is listed", ".tif",
         tifffile(STACK, photometric="minisblack", truncate=True, imagej=True), FRAMES, FRAMES),
    Kind("TIFF, volume", ".tif",
         tifffile(STACK, photometric="minisblack", volumetric=True, tile=(1, 16, 16)), FRAMES, FRAMES),
    Kind("TIFF, gray and a band that is not alpha", ".tif",
         tifffile(np.dstack([GRAY, GRAY]), photometric="minisblack", planarconfig="contig"), "has 2 samples a pixel",
         "has 2 samples a pixel"),
    Kind("TIFF, RGB and a band that is not alpha", ".tif",
         tifffile(np.dstack([RGB, GRAY]), photometric="rgb", extrasamples=["unspecified"]), "has 4 samples a pixel",
         "has 4 samples a pixel"),
    Kind("TIFF with an orientation tag", ".tif", saved(SIDEWAYS, "TIFF", tiffinfo={0x0112: 6}), UPRIGHT, UPRIGHT),
    Kind("PPM", ".ppm", saved(RGB, "PPM"), RGB, RGB),
    Kind("PGM, 16 bits", ".pgm", lambda: b"P5\n# a remark\n4 6\n65535\n" + DEEP.astype(">u2").tobytes(), DEPTH,
         rgb((DEEP >> 8).astype(np.uint8))),
    Kind("PGM, 4 bits", ".pgm", lambda: b"P5 4 6 15\n" + (GRAY >> 4).tobytes(), (GRAY >> 4) * np.uint8(17),
         rgb((GRAY >> 4) * np.uint8(17))),
    Kind("PBM", ".pbm", saved(image(BITS, "1"), "PPM"), BITS, rgb(BITS)),
    Kind("JPEG 2000", ".jp2", saved(RGB, "JPEG2000"), RGB, RGB),
    Kind("JPEG 2000, 16 bits", ".jp2", saved(DEEP, "JPEG2000"), DEPTH, rgb((DEEP >> 8).astype(np.uint8))),
    Kind("AVIF", ".avif", saved(FLAT, "AVIF", quality=95), FLAT, FLAT, 3),
    Kind("TGA", ".tga", saved(RGB, "TGA"), RGB, RGB),
    Kind("ICO, several sizes", ".ico", saved(image(FLAT.repeat(4, 0).repeat(4, 1)), "ICO", sizes=[(16, 16), (32, 32)]),
         FRAMES, FRAMES),
    Kind("QOI", ".qoi", saved(RGB, "QOI"), RGB, RGB),
    Kind("SGI", ".sgi", saved(RGB, "SGI"), RGB, RGB),
    Kind("PCX", ".pcx", saved(RGB, "PCX"), RGB, RGB),
    Kind("an empty file", ".png", lambda: b"", BROKEN, BROKEN),
    Kind("text with an image's suffix", ".jpg", lambda: b"<html>404</html>", BROKEN, BROKEN),
)  # fmt: skip


def writable(kind: Kind) -> bool:
    """Whether this build of Pillow writes the format."""
    Image.init()
    return Image.registered_extensions().get(kind.suffix.lower()) in Image.SAVE


KINDS = tuple(kind for kind in ALL_KINDS if writable(kind))


@dataclasses.dataclass(frozen=True)
class ArrayKind:
    """One kind of array, and what it is, perhaps with options of ``open_images``."""

    label: str
    array: Any
    expected: Any
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


UNIT = RNG.random((5, 6, 4, 2)).astype(np.float32)
ARRAYS = (
    ArrayKind("uint8 (n, H, W, C), any C", RNG.integers(2, 256, (5, 6, 4, 7), dtype=np.uint8), "same"),
    ArrayKind("bool", np.arange(120).reshape(5, 6, 4, 1) % 3 == 0, (np.arange(120).reshape(5, 6, 4, 1) % 3 == 0) * 1.0),
    ArrayKind("float in [0, 1]", UNIT, UNIT),
    ArrayKind("float64, or another byte order", UNIT.astype(">f8"), UNIT),
    ArrayKind("float in [-1, 1]", UNIT * 2 - 1, "holds values from"),
    ArrayKind("float in [-1, 1], declared", UNIT * 2 - 1, UNIT, {"value_range": (-1, 1)}),
    ArrayKind("float from 0 to 255", UNIT * 255, "holds values from"),
    ArrayKind("float beyond the declared range", UNIT * 3, "the declared range is", {"value_range": (-1, 1)}),
    ArrayKind("uint16, int32, ...", np.full((5, 6, 4, 1), 9, np.uint16), "holds uint16"),
    ArrayKind("uint16, declared", (UNIT * 4095).astype(np.uint16), (UNIT * 4095).astype(np.uint16) / 4095,
              {"value_range": (0, 4095)}),
    ArrayKind("uint8 of 0 and 1 only", np.eye(6, dtype=np.uint8)[None, :, :, None], "of 0 and 1 only"),
    ArrayKind("NaN or infinity anywhere", np.where(UNIT == UNIT[4, 3, 2, 1], np.nan, UNIT), "image 4 holds NaN"),
    ArrayKind("(n, C, H, W)", RNG.integers(0, 256, (5, 3, 8, 8), dtype=np.uint8), "looks like (n, C, H, W)"),
    ArrayKind("(n, H, W)", np.zeros((5, 8, 8), np.uint8), "images are (n, H, W, C)"),
    ArrayKind("no image", np.zeros((0, 8, 8, 3), np.uint8), "holds no images"),
    ArrayKind("Python objects", np.full((5, 4, 4, 1), None), "never loaded"),
)  # fmt: skip


def entries(root: pathlib.Path) -> dict[str, str]:
    """Fill a folder with what folders hold; name -> the reason that it is skipped for, "" for images."""
    (root / "a").mkdir(parents=True)
    (root / ".thumbnails").mkdir()
    (root / "__MACOSX").mkdir()
    picture = saved(RGB, "PNG")()
    for name in ("0.png", "a/1.PNG", ".thumbnails/0.png", ".2.png", "__MACOSX/._0.png", "a/._1.PNG"):
        (root / name).write_bytes(picture)
    (root / "3.bmp").write_bytes(saved(RGB, "BMP")())
    (root / "notes.txt").write_text("text")
    (root / "raw.heic").write_bytes(b"heic")
    with zipfile.ZipFile(root / "more.zip", "w") as archive:
        archive.writestr("4.png", picture)
    np.save(root / "labels.npy", np.arange(3))
    os.symlink("nowhere.png", root / "5.png")
    os.symlink("0.png", root / "6.png")
    os.symlink("a", root / "b")
    return {
        "0.png": "", "a/1.PNG": "", "3.bmp": "", ".thumbnails/": "hidden", ".2.png": "hidden",
        "__MACOSX/": "made by an operating system", "a/._1.PNG": "made by an operating system",
        "notes.txt": "no image by its suffix", "raw.heic": "a format that is not read",
        "more.zip": "an archive inside (give it by itself, or unpack it)", "labels.npy": "an array beside image files",
        "5.png": "a link to nothing", "6.png": "a link to what is read already", "b/": "a link to what is read already",
    }  # fmt: skip


@dataclasses.dataclass(frozen=True)
class MaskKind:
    """One kind of mask: file name, its content, and whether it is a mask ("" or words of the refusal)."""

    label: str
    suffix: str
    make: Callable[[], bytes]
    refusal: str = ""


def npy(array: np.ndarray) -> Callable[[], bytes]:
    def make() -> bytes:
        buffer = io.BytesIO()
        np.save(buffer, array)
        return buffer.getvalue()

    return make


KNOWN = (BITS > 0).astype(np.float32)
OPAQUE = np.full_like(BITS, 255)
MASKS = (
    MaskKind("1 bit", ".png", saved(image(BITS, "1"), "PNG")),
    MaskKind("gray", ".png", saved(BITS, "PNG")),
    MaskKind("gray, 16 bits", ".png", saved(BITS.astype(np.uint16) * 257, "PNG")),
    MaskKind("gray and alpha, opaque", ".png", saved(np.dstack([BITS, OPAQUE]), "PNG")),
    MaskKind("RGB with equal channels", ".bmp", saved(rgb(BITS), "BMP")),
    MaskKind("RGBA with equal channels, opaque", ".webp", saved(np.dstack([rgb(BITS), OPAQUE]), "WEBP", lossless=True)),
    MaskKind("palette of black and white", ".png", saved(image(rgb(BITS)).quantize(2), "PNG")),
    MaskKind("GIF", ".gif", saved(image(BITS, "1"), "GIF")),
    MaskKind("TIFF, 1 bit", ".tif", saved(image(BITS, "1"), "TIFF")),
    MaskKind(".npy of bool, true where known", ".npy", npy(BITS[..., 0] > 0)),
    MaskKind(".npy of 0 and 1", ".npy", npy(KNOWN)),
    MaskKind(".npy of 0 and 255", ".npy", npy(BITS[..., 0])),
    MaskKind("gray of 1 and 255", ".png", saved(np.maximum(BITS, 1), "PNG"), "threshold it first"),
    MaskKind("gray of 0 and 1", ".png", saved(BITS // 255, "PNG"), "threshold it first"),
    MaskKind("soft edges, JPEG", ".jpg", saved(GRAY, "JPEG"), "threshold it first"),
    MaskKind("colours", ".png", saved(COLOURS, "PNG"), "has colours"),
    MaskKind("transparent pixels", ".png", saved(np.dstack([BITS, ALPHA]), "PNG"), "has transparent pixels"),
    MaskKind("CMYK", ".tif", saved(image(rgb(BITS), "CMYK"), "TIFF"), "has the colour mode CMYK"),
    MaskKind("all white", ".png", saved(OPAQUE, "PNG"), "nothing is to be found"),
    MaskKind("all black", ".png", saved(0 * OPAQUE, "PNG"), "nothing is known"),
)  # fmt: skip


# --- the page ------------------------------------------------------------------------------------------------------


def attempt(what: Callable[[], np.ndarray], path: pathlib.Path) -> np.ndarray | str:
    """The pixels, or the refusal without the file's name."""
    try:
        return what()
    except PdsError as error:
        return str(error).replace(str(path), "").replace(path.name, "").strip(" :")


def read(kind: Kind, folder: pathlib.Path, **options: Any) -> np.ndarray | str:
    path = folder / f"file{kind.suffix}"
    path.write_bytes(kind.make())
    return attempt(lambda: open_images(path, **options).stored([0])[0], path)


def read_array(kind: ArrayKind, folder: pathlib.Path) -> np.ndarray | str:
    path = folder / "array.npy"
    np.save(path, kind.array, allow_pickle=True)

    def everything() -> np.ndarray:
        found = open_images(path, **kind.options)
        return found.stored(range(len(found)))

    return attempt(everything, path)


def mask_of(kind: MaskKind, folder: pathlib.Path) -> np.ndarray | str:
    path = folder / f"mask{kind.suffix}"
    path.write_bytes(kind.make())
    return attempt(lambda: read_mask(path), path)


def cell(found: np.ndarray | str) -> str:
    if isinstance(found, str):
        words = re.sub(r"(is not a readable image) .*", r"\1", found.split("; ")[0])
        return "**refused**: " + words.replace(" (a small file can unpack to more than the memory)", "")
    return f"{found.shape[-1]} channel{'s' * (found.shape[-1] > 1)}"


def lines(folder: pathlib.Path) -> Iterator[str]:
    yield from ("| image file | as it is | with `--convert_images` |", "|---|---|---|")
    for kind in KINDS:
        yield f"| {kind.label} | {cell(read(kind, folder))} | {cell(read(kind, folder, convert=True))} |"
    yield from ("", "| array, .npy or .npz | |", "|---|---|")
    for array in ARRAYS:
        yield f"| {array.label} | {cell(read_array(array, folder))} |"
    yield from ("", "| in a folder, .zip or .tar | |", "|---|---|")
    entries(folder / "entries")
    listing = open_images(folder / "entries", size=8).place.listing
    yield from (f"| {name} | read |" for name in listing.names)
    for reason, names in listing.passed_over.items():
        yield from (f"| {name} | skipped: {reason} |" for name in names)
    yield from ("", "| mask | |", "|---|---|")
    for mask in MASKS:
        found = mask_of(mask, folder)
        yield f"| {mask.label} | {cell(found) if isinstance(found, str) else 'read'} |"


def tables() -> str:
    with tempfile.TemporaryDirectory() as folder:
        return "\n".join(lines(pathlib.Path(folder))) + "\n"


START, END = "<!-- tables: PYTHONPATH=. python tests/data/kinds.py -->\n", "<!-- end of tables -->"


def page_with(text: str) -> str:
    before, rest = PAGE.read_text().split(START)
    return before + START + "\n" + text + "\n" + END + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(page_with(tables()))
    sys.stdout.write(f"{PAGE}\n")
