"""Atomic writes, checksums, folder locks, and parsing of seed lists and shards."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import pathlib
import re
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, Any

from pds_jax.types import PdsError

_RANGE = re.compile(r"^\s*(\d+)\s*(?:-\s*(\d+)\s*)?$")
_SHARD = re.compile(r"^\s*(\d{1,9})\s*/\s*(\d{1,9})\s*$")
_MAX_SEEDS = 10_000_000
_MAX_JSON = 256 << 20


class Stopped(BaseException):
    """SIGTERM or Ctrl-C was received; not a subclass of Exception, so ``except Exception`` does not catch it."""


@contextlib.contextmanager
def on_stop(act: Callable[[str], None]) -> Iterator[None]:
    """Call ``act`` with the signal's name when the first SIGTERM or SIGINT (Ctrl-C) comes; a second one acts as before.

    Elsewhere than in the main thread nothing is done.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def stop(number: int, _: object) -> None:
        restore()
        act(signal.Signals(number).name)

    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        restore()


def _raise_stopped(name: str) -> None:
    raise Stopped(name)


def stoppable() -> contextlib.AbstractContextManager[None]:
    """Raise :class:`Stopped` in the block when SIGTERM or Ctrl-C comes."""
    return on_stop(_raise_stopped)


def atomic_write(path: str | os.PathLike[str], write: Callable[[IO[bytes]], object]) -> None:
    """Write a file through a temporary neighbour and one rename.

    Args:
      path: where the file goes; missing folders are made.
      write: called with a binary file object to write into.

    Raises:
      PdsError: no permission, no space or no such place; nothing is left half-written.
    """
    target = pathlib.Path(path)
    temporary = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except BaseException as error:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
        if not isinstance(error, OSError):
            raise
        raise PdsError(
            f"cannot write {target}: {error.strerror or error}; free some space or choose another folder"
        ) from error


def check_writable(path: str | os.PathLike[str], size: int = 0) -> None:
    """Find out before long work whether a file can be written after it.

    Args:
      path: where the file will go; missing folders are made.
      size: bytes that will be written there, in all.

    Raises:
      PdsError: no permission, no such place, or less free space than that.
    """
    target = pathlib.Path(path)
    try:
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, "is a folder", str(target))
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=target.parent):
            free = shutil.disk_usage(target.parent).free
    except OSError as error:
        raise PdsError(f"cannot write {target}: {error.strerror or error}; choose another folder") from error
    if free < size:
        raise PdsError(
            f"{target.parent} has {free / 2**20:.0f} MiB free, about {size / 2**20:.0f} MiB are needed; free some "
            "space or choose another folder"
        )


def hold(folder: pathlib.Path) -> IO[str]:
    """Keep every other process that asks for the folder out of it, until the result is closed or this process ends.

    Where the file system or the platform has no locks, nothing is held.

    Raises:
      PdsError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = open(folder / ".lock", "a")  # noqa: SIM115  (open for as long as the folder is held)
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise PdsError(f"{folder}: another process writes there; wait for it or take another folder") from None
    except (ImportError, OSError):
        pass
    return file


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write a value as readable JSON, atomically (see :func:`atomic_write`)."""
    text = json.dumps(value, indent=1, sort_keys=True, default=str) + "\n"
    atomic_write(path, lambda file: file.write(text.encode()))


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read JSON.

    Raises:
      PdsError: the file is missing or is not JSON.
    """
    try:
        if os.path.getsize(path) > _MAX_JSON:
            raise PdsError(f"cannot read {path} as JSON: it is larger than {_MAX_JSON >> 20} MiB")
        return json.loads(pathlib.Path(path).read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise PdsError(f"cannot read {path} as JSON: {error}") from error


def sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def parse_seeds(text: str, flag: str = "--seeds", noun: str = "seed") -> list[int]:
    """Read a list of numbers such as ``"0-63"`` or ``"0-7,12,20-29"``, both ends included, in the order given.

    >>> parse_seeds("0-3,9")
    [0, 1, 2, 3, 9]

    Raises:
      PdsError: malformed, empty, descending or repeated numbers; the message names ``flag``.
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = _RANGE.match(part)
        if match is None:
            raise PdsError(f"{flag}={text!r}: {part!r} is neither a {noun} like 7 nor a range like 0-63")
        first = int(match[1])
        last = int(match[2]) if match[2] else first
        if last < first:
            raise PdsError(f"{flag}={text!r}: the range {part.strip()!r} runs backwards")
        if last >= 2**32:
            raise PdsError(f"{flag}={text!r}: {last} is not below 2^32")
        if len(seeds) + last - first + 1 > _MAX_SEEDS:
            raise PdsError(f"{flag}={text!r}: more than {_MAX_SEEDS} {noun}s; split the run")
        seeds.extend(range(first, last + 1))
    repeated = _first_repeated(seeds)
    if repeated is not None:
        raise PdsError(f"{flag}={text!r}: {noun} {repeated} is given twice")
    return seeds


def format_seeds(seeds: Sequence[int]) -> str:
    """The text that :func:`parse_seeds` reads as these seeds.

    >>> format_seeds([0, 1, 2, 9])
    '0-2,9'
    """
    runs: list[list[int]] = []
    for seed in seeds:
        if runs and seed == runs[-1][1] + 1:
            runs[-1][1] = seed
        else:
            runs.append([seed, seed])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def parse_shard(text: str | None) -> tuple[int, int]:
    """Read ``"i/n"``, the i-th of n shares, i counting from 0.

    >>> parse_shard("1/4")
    (1, 4)

    Args:
      text: as above, or None for everything.

    Returns:
      (i, n).

    Raises:
      PdsError: malformed, or i not below n.
    """
    if text is None:
        return 0, 1
    match = _SHARD.match(text)
    if match is None or not int(match[1]) < int(match[2]):
        raise PdsError(f"--shard={text!r}: write i/n with i from 0 to n - 1, for example 0/4 for the first of four")
    return int(match[1]), int(match[2])


def _first_repeated(values: Iterable[int]) -> int | None:
    seen: set[int] = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    return None
