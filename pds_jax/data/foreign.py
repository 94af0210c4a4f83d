"""Data files that people have and that are not read: what they are, and what to do with them."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import math
import pathlib
import re
import zlib
from collections.abc import Callable, Mapping, Sequence

_START = 64  # bytes
_LEAST_SIDE = 8


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is known of a place.

    Attributes:
      names: of the files in it; of a single file its own.
      start: first bytes of a single file, unpacked if it is a .gz.
      side: of the square RGB images in the rows of its array ``data``; 0 for none.
    """

    names: Sequence[str]
    start: bytes = b""
    side: int = 0


def _like(names: str, start: bytes = rb"(?!)") -> Callable[[Facts], bool]:
    """A test of names, anywhere in one, or of the first bytes of a file."""
    by_name, by_start = re.compile(names, re.IGNORECASE), re.compile(start, re.DOTALL)
    return lambda facts: bool(by_start.match(facts.start)) or any(map(by_name.search, facts.names))


# Test, what it is, what to do; the first that fits is said.
_TABLE: Sequence[tuple[Callable[[Facts], bool], str, str]] = (
    (
        lambda facts: facts.side > 0,
        "rows of numbers (n, {row}), as downsampled ImageNet is",
        'np.save("images.npy", np.load(FILE)["data"].reshape(-1, 3, {side}, {side}).transpose(0, 2, 3, 1))',
    ),
    (
        _like(r"(train|val)_data(_batch_\d+)?(\.npz)?$"),
        "downsampled ImageNet",
        'convert a file: np.save("images.npy", np.load(FILE, allow_pickle=True)["data"].reshape(-1, 3, SIDE, SIDE)'
        ".transpose(0, 2, 3, 1))",
    ),
    (
        _like(r"(^|/)(data|test)_batch(_\d)?\.bin$|cifar-10-binary"),
        "CIFAR-10's binary version",
        "use data.dataset=CIFAR10, or convert a file: "
        'np.save("images.npy", np.fromfile(FILE, np.uint8).reshape(-1, 3073)[:, 1:].reshape(-1, 3, 32, 32)'
        ".transpose(0, 2, 3, 1))",
    ),
    (
        _like(r"(^|/)(data_batch_\d|test_batch|batches\.meta)$|cifar-100?-(batches-py|python)", rb"\x80.*batch_label"),
        "CIFAR's Python version",
        "use data.dataset=CIFAR10 for CIFAR-10, or convert a batch: "
        'np.save("images.npy", np.load(FILE, allow_pickle=True, encoding="bytes")[b"data"].reshape(-1, 3, 32, 32)'
        ".transpose(0, 2, 3, 1))",
    ),
    (
        _like(r"\.mdb$", rb".{16}\xde\xc0\xef\xbe"),
        "an LMDB database, as LSUN is",
        "use data.dataset=LSUN with data.category, or write each of its values, which are image files, to a file",
    ),
    (
        _like(r"idx[13]-ubyte", rb"\x00\x00\x08[\x01\x03]"),
        "IDX, as MNIST is",
        "use data.dataset=fashion for Fashion-MNIST, or unpack the images' .gz and convert them: "
        'np.save("images.npy", np.fromfile(FILE, np.uint8, offset=16).reshape(-1, 28, 28, 1))',
    ),
    (
        _like(r"\.(parquet|arrow)$", rb"PAR1|ARROW1"),
        "a table of Hugging Face datasets",
        'write its images to files: pandas.read_parquet(FILE)["image"] holds the bytes of one file a row',
    ),
    (
        _like(r"\.mat$", rb"MATLAB "),
        "a MATLAB file",
        "use data.dataset=SVHN for SVHN, or convert it: scipy.io.loadmat(FILE), h5py.File(FILE) of version 7.3, then "
        "np.save of its images as (n, H, W, C)",
    ),
    (
        _like(r"\.(h5|hdf5?)$", rb"\x89HDF\r\n\x1a\n"),
        "HDF5",
        'convert it: np.save("images.npy", h5py.File(FILE)[NAME][:]), as (n, H, W, C)',
    ),
    (
        _like(r"\.tfrecords?(-\d+-of-\d+)?$"),
        "TFRecords",
        "use data.dataset=FFHQ or CelebAHQ with data.tfrecords_path for those of progressive GAN, and write the images "
        "of others to files",
    ),
    (
        _like(r"\.(pt|pth)$|(^|/)data\.pkl$", rb"\x80\x02\x8a\nl\xfc\x9c"),
        "a file of PyTorch",
        'convert it: np.save("images.npy", torch.load(FILE).permute(0, 2, 3, 1).numpy()) for a tensor (n, C, H, W)',
    ),
    (
        _like(r"\.(pkl|pickle)$", rb"\x80[\x02-\x05]"),
        "a Python pickle, which is never loaded",
        "convert it: np.save of its images as (n, H, W, C)",
    ),
)


def advice(path: pathlib.Path, names: Sequence[str] = (), shapes: Mapping[str, Sequence[int]] | None = None) -> str:
    """One sentence on a place that no images were found in: its format and what to do; empty if it is not known.

    Args:
      path: where.
      names: of the files in a folder or an archive.
      shapes: of the arrays in a .npz, by name.
    """
    rows = (shapes or {}).get("data", ())
    facts = Facts([path.name, *names], _start(path), _side(rows[1]) if len(rows) == 2 else 0)
    for test, what, remedy in _TABLE:
        if test(facts):
            words = f"{what}; {remedy}".format(side=facts.side, row=3 * facts.side**2)
            return f"{path} is {words}"
    return ""


def _side(row: int) -> int:
    side = math.isqrt(row // 3)
    return side if row == 3 * side**2 and side >= _LEAST_SIDE else 0


def _start(path: pathlib.Path) -> bytes:
    """First bytes of a file, unpacked; none of a folder or of what cannot be read."""
    found = b""
    with contextlib.suppress(OSError, EOFError, zlib.error):
        with open(path, "rb") as file:
            found = file.read(_START)
        if found.startswith(b"\x1f\x8b"):
            with gzip.open(path) as unpacked:
                found = unpacked.read(_START)
    return found
