"""List the images in a folder or an archive; every other entry is skipped with a reason.

A .zip or .tar is listed by the same rules as the folder that it was made of, so both give the same images.
"""

from __future__ import annotations

import abc
import bz2
import contextlib
import dataclasses
import functools
import gzip
import lzma
import os
import pathlib
import posixpath
import re
import stat
import tarfile
import threading
import weakref
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import IO, Any

from pds_jax.data import foreign
from pds_jax.data.pictures import suffixes
from pds_jax.io.npy import spill
from pds_jax.types import PdsError

MAX_BYTES = 1 << 30  # of one file, unpacked
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar", ".npz")
_OTHER_PICTURES = (
    ".heic .heif .jxl .exr .hdr .svg .svgz .dng .cr2 .cr3 .nef .arw .orf .rw2 .raf .eps .ps .pdf .ai .xcf .wmf .emf "
    ".mp4 .mov .avi .mkv .webm .mpg .mpeg .h5 .hdf .hdf5 .dcm .nii .mat .tfrecord .tfrecords .parquet .pt .pth"
).split()
_SYSTEM = ("__macosx", "@eadir", "$recycle.bin", "system volume information")
_OF_A_RUN = re.compile(r"\d{3,}/\d{6,}\.(png|npy)$")
_SHOWN = 3  # names in the one line
_MAX_LINKS = 8  # from link to link

HIDDEN = "hidden"
SYSTEM = "made by an operating system"
NO_IMAGE = "no image by its suffix"
OTHER_PICTURE = "a format that is not read"
ARCHIVE = "an archive inside (give it by itself, or unpack it)"
ARRAY = "an array beside image files"
BROKEN_LINK = "a link to nothing"
KNOWN_LINK = "a link to what is read already"
SPECIAL = "not a regular file"
OLDER = "an older entry of the same name"
NOT_OF_THE_RUN = "not an image of the sampling run"


@dataclasses.dataclass(frozen=True)
class Listing:
    """What was found in a place.

    Attributes:
      names: of the images, sorted, with / between folders.
      passed_over: reason -> names.
    """

    names: Sequence[str]
    passed_over: Mapping[str, Sequence[str]]

    def summary(self) -> str:
        """What was skipped and why, in one line; empty if nothing was."""
        if not self.passed_over:
            return ""
        count = sum(map(len, self.passed_over.values()))
        parts = [
            f"{len(names)} {reason} ({', '.join(map(shown, names[:_SHOWN]))}{', ...' if len(names) > _SHOWN else ''})"
            for reason, names in self.passed_over.items()
        ]
        return f"skipped {count}: {'; '.join(parts)}"

    def record(self) -> dict[str, Any]:
        """The same for a manifest: images read, and reason -> how many and the first names."""
        passed = {
            reason: {"count": len(names), "first": [shown(name) for name in names[:_SHOWN]]}
            for reason, names in self.passed_over.items()
        }
        return {"images": len(self.names), "passed_over": passed}


def shown(name: str) -> str:
    """A name that can be printed, whatever bytes the file system holds."""
    return name.encode("utf-8", "backslashreplace").decode()


def list_names(entries: Iterable[str], passed: Mapping[str, list[str]]) -> Listing:
    """Sort regular files into images and what is skipped.

    Args:
      entries: names of regular files, with / between folders.
      passed: reason -> names of what is no regular file.
    """
    found: dict[str, list[str]] = {reason: list(names) for reason, names in passed.items()}
    images: list[str] = []
    arrays: list[str] = []
    has_manifest = False
    for name in entries:
        has_manifest |= name == "manifest.json"
        reason = _reason(name)
        if reason is None:
            (arrays if name.lower().endswith(".npy") else images).append(name)
        else:
            found.setdefault(reason, []).append(name)
    if has_manifest and any(_OF_A_RUN.match(name) for name in (*images, *arrays)):
        others = [name for name in (*images, *arrays) if not _OF_A_RUN.match(name)]
        found.setdefault(NOT_OF_THE_RUN, []).extend(others)
        images, arrays = ([name for name in names if _OF_A_RUN.match(name)] for names in (images, arrays))
    if images and arrays:
        found.setdefault(ARRAY, []).extend(arrays)
    order = {reason: sorted(names) for reason, names in sorted(found.items()) if names}
    return Listing(sorted(images or arrays), order)


def _reason(name: str) -> str | None:
    """Why a regular file is no image; None if it is one."""
    parts = name.split("/")
    if any(part.lower() in _SYSTEM for part in parts) or parts[-1].startswith("._"):
        return SYSTEM
    if any(part.startswith(".") and part not in (".", "..") for part in parts):
        return HIDDEN
    suffix = posixpath.splitext(parts[-1])[1].lower()
    if suffix in suffixes() or suffix == ".npy":
        return None
    if suffix in _ARCHIVES:
        return ARCHIVE
    return OTHER_PICTURE if suffix in _OTHER_PICTURES else NO_IMAGE


# --- places --------------------------------------------------------------------------------------------------------


class Place(abc.ABC):
    """A folder, an archive or one file; images are read by name.

    Attributes:
      path: where.
      listing: what is in it.
    """

    path: pathlib.Path
    listing: Listing

    def read(self, name: str, count: int = -1) -> bytes:
        """The first bytes of a file inside, all for -1.

        Raises:
          PdsError: it cannot be read, or is larger than 1 GiB.
        """
        try:
            data = self._read(name, count if count >= 0 else MAX_BYTES + 1)
        except _DAMAGED as error:
            what = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise PdsError(f"cannot read {self.where(name)}: {what}") from error
        if len(data) > MAX_BYTES:
            raise PdsError(f"{self.where(name)} holds more than {MAX_BYTES} bytes; no image file of that size is read")
        return data

    def where(self, name: str) -> str:
        """How messages call a file inside."""
        return shown(f"{self.path}/{name}")

    @abc.abstractmethod
    def _read(self, name: str, count: int) -> bytes:
        """At most so many bytes of a file inside."""


_DAMAGED = (
    OSError,
    KeyError,
    ValueError,
    EOFError,
    RuntimeError,
    NotImplementedError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    tarfile.TarError,
)


def open_place(path: str | os.PathLike[str]) -> Place:
    """Open a folder, a .zip, a .tar (also compressed), or a single image file, and list it.

    Raises:
      PdsError: nothing there, not one of these, or a damaged or encrypted archive.
    """
    place = pathlib.Path(path)
    if not place.exists():
        raise PdsError(f"{place} does not exist; give a folder, an image, an archive (.zip, .tar), a .npz or a .npy")
    if place.is_dir():
        return FolderPlace(place)
    if not place.is_file():
        raise PdsError(f"{place} is {SPECIAL}; give a folder, an image, an archive (.zip, .tar), a .npz or a .npy")
    if place.suffix.lower() in suffixes():
        return FilePlace(place)
    with _archive_errors(place):
        with open(place, "rb") as file:
            start = file.read(4)
        # By its beginning: a .tar with a .zip inside also ends like a .zip.
        return ZipPlace(place) if start in (b"PK\x03\x04", b"PK\x05\x06") else TarPlace(place)


@contextlib.contextmanager
def _archive_errors(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except (PdsError, *_DAMAGED) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise PdsError(f"cannot read {path}: {error.strerror}") from error
        known = foreign.advice(path)
        if isinstance(error, PdsError) and not known:
            raise
        what = "neither a folder, an image, .npz or .npy, nor a whole .zip or .tar"
        raise PdsError(known or f"{path} is {what} ({error})") from error


class FilePlace(Place):
    """One image file."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        self.listing = Listing([path.name], {})

    def where(self, name: str) -> str:
        """The file's own path."""
        return shown(str(self.path))

    def _read(self, name: str, count: int) -> bytes:
        with open(self.path, "rb") as file:
            return file.read(count)


class FolderPlace(Place):
    """A folder with all below it; links to folders are followed, each folder once."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        try:
            self.listing = _list_folder(path)
        except OSError as error:
            raise PdsError(f"cannot list {error.filename or path}: {error.strerror or error}") from error

    def _read(self, name: str, count: int) -> bytes:
        with open(self.path / name, "rb") as file:
            return file.read(count)


def _list_folder(root: pathlib.Path) -> Listing:
    files: list[str] = []
    links: list[tuple[str, str]] = []
    passed: dict[str, list[str]] = {}
    todo: list[str] = [""]
    linked: list[str] = []
    visited: set[str] = set()
    while todo or linked:
        prefix = todo.pop() if todo else linked.pop(0)  # links come after all real folders
        real = os.path.realpath(root / prefix)
        if real in visited:
            passed.setdefault(KNOWN_LINK, []).append(prefix)
            continue
        visited.add(real)
        with os.scandir(root / prefix) as entries:
            for entry in entries:
                name = prefix + entry.name
                try:
                    mode = entry.stat().st_mode if entry.is_symlink() else None
                except OSError:
                    passed.setdefault(BROKEN_LINK, []).append(name)
                    continue
                if entry.is_dir():
                    reason = _reason(f"{name}/x.png")
                    if reason is not None:
                        passed.setdefault(reason, []).append(name + "/")
                    else:
                        (todo if mode is None else linked).append(name + "/")
                elif not entry.is_file():
                    passed.setdefault(SPECIAL, []).append(name)
                elif mode is None:
                    files.append(name)
                else:
                    links.append((name, os.path.realpath(entry.path)))
    return list_names([*files, *_new_links(root, files, links, passed)], passed)


def _new_links(
    root: pathlib.Path, files: Sequence[str], links: Sequence[tuple[str, str]], passed: dict[str, list[str]]
) -> Iterator[str]:
    """Links to files that are not read already."""
    seen: set[str] = {os.path.realpath(root / name) for name in files} if links else set()
    for name, target in sorted(links):
        if target in seen:
            passed.setdefault(KNOWN_LINK, []).append(name)
        else:
            seen.add(target)
            yield name


class ZipPlace(Place):
    """A .zip file."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        self._zip = zipfile.ZipFile(path)
        weakref.finalize(self, self._zip.close)
        passed: dict[str, list[str]] = {}
        links: dict[str, str] = {}
        self._members: dict[str, zipfile.ZipInfo] = {}
        for info in self._zip.infolist():
            name = _relative(info.filename)
            if info.is_dir():
                continue
            if stat.S_ISLNK(info.external_attr >> 16):
                links[name] = posixpath.normpath(
                    posixpath.join(posixpath.dirname(name), self._zip.read(info).decode("utf-8", "surrogateescape"))
                )
                continue
            if name in self._members:
                passed.setdefault(OLDER, []).append(name)
            self._members[name] = info
        _follow_links(links, self._members, passed)
        self.listing = list_names(self._members, passed)

    def _read(self, name: str, count: int) -> bytes:
        with self._zip.open(self._members[name]) as file:
            return file.read(count)


class TarPlace(Place):
    """A .tar file; a compressed one is unpacked into a temporary file first."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        self._lock = threading.Lock()
        file = _uncompressed(path)
        weakref.finalize(self, file.close)
        self._tar = tarfile.open(fileobj=file, mode="r:")
        passed: dict[str, list[str]] = {}
        links: dict[str, str] = {}
        self._members: dict[str, tarfile.TarInfo] = {}
        for info in self._tar.getmembers():
            name = _relative(info.name)
            if info.isdir():
                continue
            if info.issym():
                links[name] = posixpath.normpath(posixpath.join(posixpath.dirname(name), info.linkname))
                continue
            if not (info.isreg() or info.islnk()):
                passed.setdefault(SPECIAL, []).append(name)
                continue
            if name in self._members:
                passed.setdefault(OLDER, []).append(name)
            self._members[name] = info
        self._check_end()
        _follow_links(links, self._members, passed)
        self.listing = list_names(self._members, passed)

    def _check_end(self) -> None:
        """Refuse an archive that ends without its mark: Python's reader takes a damaged header for the end."""
        file: Any = self._tar.fileobj
        file.seek(self._tar.offset - tarfile.BLOCKSIZE if self._tar.offset else 0)
        tail = file.read(2 * tarfile.BLOCKSIZE)
        if len(tail) < tarfile.BLOCKSIZE or not tail.endswith(bytes(tarfile.BLOCKSIZE)):
            raise PdsError(f"{self.path} is damaged or cut off: it has no mark at its end; copy it again")

    def _read(self, name: str, count: int) -> bytes:
        with self._lock:
            file = self._tar.extractfile(self._members[name])
            if file is None:
                raise OSError(None, "no data")
            return file.read(count)


def _uncompressed(path: pathlib.Path) -> IO[bytes]:
    """The bytes of a tar file, open for reading at any place."""
    openers: dict[bytes, Callable[..., Any]] = {
        b"\x1f\x8b": gzip.open,
        b"BZh": bz2.open,
        b"\xfd7zXZ": lzma.open,
    }
    file = open(path, "rb")
    start = file.read(8)
    file.seek(0)
    for magic, opener in openers.items():
        if start.startswith(magic):
            with file, opener(file) as stream:
                return spill(stream, str(path))
    return file


def _relative(name: str) -> str:
    """A name as a folder would have it: without a leading ./ and with / between folders."""
    return posixpath.normpath(name.replace("\\", "/")).lstrip("/")


def _follow_links(links: Mapping[str, str], members: dict[str, Any], passed: dict[str, list[str]]) -> None:
    """Links in an archive: to a file that is not read by its own name, to what is read already, or to nothing."""
    folders = {parent for name in members for parent in _above(posixpath.dirname(name))} if links else set()
    for name, target in sorted(links.items()):
        for _ in range(_MAX_LINKS):
            target = links.get(target, target)
        if target in members and _reason(target) is not None:
            members[name] = members[target]
        else:
            known = target in members or target in folders
            passed.setdefault(KNOWN_LINK if known else BROKEN_LINK, []).append(name)


@functools.lru_cache(maxsize=4096)
def _above(folder: str) -> tuple[str, ...]:
    return (folder, *_above(posixpath.dirname(folder))) if folder else ()
