"""One pass over images: features in batches, moments in constant memory, nothing lost when it stops.

Images are taken in blocks of fixed size, so the sums do not depend on the batch size. With a folder, a pass that was
killed or met a broken file is resumed: the sums so far are kept, or, where features themselves are wanted
(KID, precision and recall), every image's features under the hash of its content. Several processes deal the blocks
among themselves and put together what they found.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from pds_jax import processes
from pds_jax.io import files
from pds_jax.io.npy import read_npz
from pds_jax.metrics.extractors import Extractor
from pds_jax.metrics.frechet import FeatureMoments
from pds_jax.metrics.image_sets import ImageSet
from pds_jax.types import PdsError

BLOCK = 512
_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Extracted:
    """What a pass found.

    Attributes:
      moments: of the features.
      digest: SHA-256 over all images' keys, in order.
      kept: output name -> (n, D) float32, for the outputs that were asked for.
    """

    moments: FeatureMoments
    digest: str
    kept: dict[str, np.ndarray]


def extract(
    images: ImageSet,
    extractor: Extractor,
    *,
    keep: Sequence[str] = (),
    batch_size: int = 64,
    folder: str | os.PathLike[str] | None = None,
    save_every: float = 30.0,
    dims: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Extracted:
    """Pass once over images.

    Args:
      images: the set.
      extractor: maps batches to named outputs; "features" feeds the moments.
      keep: outputs to return whole; needs memory for n rows of each.
      batch_size: images at once (512 are the most it uses); results do not depend on it.
      folder: where partial sums and features are kept; None keeps nothing.
      save_every: seconds between savings of partial sums; they are also saved when the pass fails.
      dims: how many features there must be; found wrong at the first batch.
      progress: called with (images done, images in all).

    Returns:
      Moments, digest and the outputs kept.

    Raises:
      PdsError: no images, wrong channels, an unreadable image, an extractor without that output or of another width,
        or features that are not finite; what was computed until then is in the folder.
    """
    if len(images) == 0:
        raise PdsError(f"{images.name} holds no images")
    if batch_size < 1:
        raise PdsError(f"batch_size={batch_size} must be at least 1")
    extractor.check_shape(images.shape, images.name)
    run = _Pass(images, extractor, min(batch_size, BLOCK), dims, progress or (lambda done, total: None))
    if keep:
        return _extract_keeping(run, tuple(dict.fromkeys(("features", *keep))), keep, folder)
    return _extract_moments(run, folder, save_every)


@dataclasses.dataclass(frozen=True)
class _Pass:
    images: ImageSet
    extractor: Extractor
    batch_size: int
    dims: int | None
    progress: Callable[[int, int], None]

    def blocks(self, start: int = 0) -> Iterator[range]:
        for first in range(start, len(self.images), BLOCK):
            block = range(first, min(first + BLOCK, len(self.images)))
            yield block
            self.progress(block.stop, len(self.images))

    def outputs(self, indices: Sequence[int], names: Sequence[str]) -> dict[str, np.ndarray]:
        """Named outputs of some images; the last batch is padded, so one program serves all."""
        parts: dict[str, list[np.ndarray]] = {name: [] for name in names}
        for first in range(0, len(indices), self.batch_size):
            chosen = list(indices[first : first + self.batch_size])
            batch = self.images.images(chosen)
            if len(self.images) > self.batch_size and len(batch) < self.batch_size:
                batch = np.concatenate([batch, np.repeat(batch[-1:], self.batch_size - len(batch), axis=0)])
            found = self.extractor.outputs(batch)
            for name in names:
                parts[name].append(self._checked(found, name, len(batch), chosen))
        return {name: np.concatenate(rows) for name, rows in parts.items()}

    def _checked(self, found: Any, name: str, size: int, chosen: list[int]) -> np.ndarray:
        if name not in found:
            raise PdsError(f"the extractor {self.extractor.name!r} gives {sorted(found)}, not {name!r}")
        rows = np.asarray(found[name], np.float32)
        if rows.ndim != 2 or len(rows) != size:
            raise PdsError(f"the extractor {self.extractor.name!r} gave {name} {rows.shape} for {size} images")
        if name == "features" and self.dims not in (None, rows.shape[1]):
            raise PdsError(
                f"the reference has {self.dims} features, the extractor {self.extractor.name!r} gives {rows.shape[1]}"
            )
        rows = rows[: len(chosen)]
        bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        if len(bad):
            raise PdsError(f"{images_name(self.images, chosen[bad[0]])} has {name} that are not finite")
        return rows


def images_name(images: ImageSet, index: int) -> str:
    """How messages call one image of a set."""
    return f"{images.name}: image {index} (seed {images.seeds[index]})"


# --- sums only -----------------------------------------------------------------------------------------------------


def _extract_moments(run: _Pass, folder: str | os.PathLike[str] | None, save_every: float) -> Extracted:
    partial = _Partial(pathlib.Path(folder), run) if folder is not None else None
    done = partial.load() if partial else _Done(hashlib.sha256(), None, 0)
    saved = time.monotonic()
    try:
        for block in run.blocks(done.position):
            done = done.after(block, run)
            if partial and time.monotonic() - saved >= save_every:
                partial.save(done)
                saved = time.monotonic()
    except BaseException:
        if partial:
            partial.save(done)
        raise
    moments = _of_all_processes(done.moments)
    if partial:
        partial.path.unlink(missing_ok=True)
    return Extracted(moments, done.digest.hexdigest(), {})


class _Done(NamedTuple):
    """Sums of the first images of a set. Never changed in place: an interrupt leaves those before a block or after it.

    Attributes:
      digest: SHA-256 over the keys.
      moments: of this process's blocks; None before the first.
      position: how many images.
    """

    digest: Any
    moments: FeatureMoments | None
    position: int

    def after(self, block: range, run: _Pass) -> _Done:
        """With one more block."""
        digest, moments = self.digest.copy(), self.moments
        for key in run.images.keys(block):
            digest.update(key)
        if _is_mine(block.start):
            rows = run.outputs(block, ("features",))["features"]
            moments = dataclasses.replace(moments) if moments else FeatureMoments.empty(rows.shape[1])
            moments.add(rows)
        return _Done(digest, moments, block.stop)


def _is_mine(first: int) -> bool:
    """Whether the block that begins at an image is this process's."""
    index, count = processes.process_share()
    return first // BLOCK % count == index


def _of_all_processes(moments: FeatureMoments | None) -> FeatureMoments:
    """The moments that all processes found, merged in their order; one of them at least had a block."""
    dims = max(int(width) for width in processes.gather(np.int64(0 if moments is None else moments.mean.size)))
    here = moments or FeatureMoments.empty(dims)
    parts = processes.gather((np.int64(here.count), here.mean, here.scatter))
    if len(parts) == 1:
        return here
    total = FeatureMoments.empty(dims)
    for number, mean, scatter in parts:
        total.merge(FeatureMoments(int(number), mean, scatter))
    return total


class _Partial:
    """Sums of the first images of a set, in one file with its manifest."""

    def __init__(self, folder: pathlib.Path, run: _Pass):
        self.run = run
        share = "{} of {}".format(*processes.process_share())
        name = f"{os.path.abspath(run.images.name)} {run.images.seeds[0]} {run.extractor.digest} {share}"
        self.path = folder / f"partial-{hashlib.sha256(name.encode()).hexdigest()[:16]}.npz"

    def save(self, done: _Done) -> None:
        moments = done.moments
        if moments is None:
            return
        manifest = {
            "format": _FORMAT,
            "extractor": self.run.extractor.identity,
            "images": self.run.images.name,
            "position": done.position,
            "images_sha256": done.digest.hexdigest(),
        }
        arrays: dict[str, Any] = {"mean": moments.mean, "scatter": moments.scatter, "count": np.int64(moments.count)}
        files.atomic_write(self.path, lambda file: np.savez(file, manifest=json.dumps(manifest), **arrays))

    def load(self) -> _Done:
        """What was done; nothing if the images have changed, or the sums are not of as many."""
        fresh = _Done(hashlib.sha256(), None, 0)
        try:
            stored = read_npz(self.path) if self.path.exists() else None
        except PdsError:
            return fresh  # torn by a crash of the machine: computed again
        if stored is None:
            return fresh
        manifest = json.loads(str(stored["manifest"]))
        position = manifest["position"]
        same = manifest["format"] == _FORMAT and manifest["extractor"] == self.run.extractor.identity
        if not same or position > len(self.run.images):
            return fresh
        digest, count = hashlib.sha256(), 0
        for first in range(0, position, BLOCK):
            keys = self.run.images.keys(range(first, min(first + BLOCK, position)))
            for key in keys:
                digest.update(key)
            count += len(keys) if _is_mine(first) else 0
        if digest.hexdigest() != manifest["images_sha256"] or count != int(stored["count"]):
            return fresh
        return _Done(digest, FeatureMoments(count, stored["mean"], stored["scatter"]), position)


# --- features kept -------------------------------------------------------------------------------------------------


def _extract_keeping(
    run: _Pass, names: tuple[str, ...], keep: Sequence[str], folder: str | os.PathLike[str] | None
) -> Extracted:
    cache = FeatureCache(folder, run.extractor, names) if folder is not None else None
    digest, here = hashlib.sha256(), {}
    index, count = processes.process_share()
    for block in run.blocks():
        keys = run.images.keys(block)
        for key in keys:
            digest.update(key)
        number = block.start // BLOCK
        if number % count == index:
            here[number] = cache.through(keys, block, run.outputs) if cache else run.outputs(block, names)
    parts = _rows_of_all_processes(here, names, len(run.images))
    whole = {name: np.concatenate([part[name] for part in parts]) for name in names}
    moments = FeatureMoments.empty(whole["features"].shape[1])
    for part in parts:
        moments.add(part["features"])
    return Extracted(moments, digest.hexdigest(), {name: whole[name] for name in keep})


def _rows_of_all_processes(
    here: dict[int, dict[str, np.ndarray]], names: tuple[str, ...], total: int
) -> list[dict[str, np.ndarray]]:
    """The outputs of every block in order, given those of this process by the block's number; one round at a time."""
    index, count = processes.process_share()
    known = next(iter(here.values()), {})
    widths = np.max(processes.gather(np.array([known[name].shape[1] if known else 0 for name in names])), axis=0)
    parts = []
    for first in range(0, -(-total // BLOCK), count):
        mine = {name: np.zeros((BLOCK, width), np.float32) for name, width in zip(names, widths, strict=True)}
        for name, rows in here.get(first + index, {}).items():
            mine[name][: len(rows)] = rows
        for number, found in enumerate(processes.gather(mine), first):
            if number * BLOCK < total:
                parts.append({name: found[name][: total - number * BLOCK] for name in names})
    return parts


class FeatureCache:
    """Outputs of one extractor by the hash of the image, in shards of up to 512 images."""

    def __init__(self, folder: str | os.PathLike[str], extractor: Extractor, names: tuple[str, ...]):
        """Open the folder and read which images it knows.

        Args:
          folder: of all extractors' features.
          extractor: whose features.
          names: which of its outputs.
        """
        self.names = names
        self.root = pathlib.Path(folder) / f"features-{extractor.digest[:16]}-{'-'.join(names)}"
        if not (self.root / "manifest.json").exists():
            files.write_json(self.root / "manifest.json", {"format": _FORMAT, "extractor": extractor.identity})
        self._where: dict[bytes, tuple[pathlib.Path, int]] = {}
        for shard in sorted(self.root.glob("*.keys")):
            self._learn(shard.with_suffix(".npz"), shard.read_bytes())
        self._open: tuple[pathlib.Path | None, dict[str, np.ndarray]] = (None, {})

    def _learn(self, shard: pathlib.Path, keys: bytes) -> None:
        for row in range(len(keys) // 32):
            self._where[keys[32 * row : 32 * row + 32]] = (shard, row)

    def through(
        self,
        keys: Sequence[bytes],
        indices: Sequence[int],
        compute: Callable[[Sequence[int], Sequence[str]], dict[str, np.ndarray]],
    ) -> dict[str, np.ndarray]:
        """Outputs of images, from the folder where it knows them, computed and stored where not.

        Args:
          keys: of the images.
          indices: of the images, for compute.
          compute: (indices, names) -> name -> (b, D).

        Returns:
          name -> (len(keys), D) float32.
        """
        rows = [self._find(key) for key in keys]
        missing = [place for place, row in enumerate(rows) if row is None]
        if missing:
            fresh = compute([indices[place] for place in missing], self.names)
            self._store([keys[place] for place in missing], fresh)
            for number, place in enumerate(missing):
                rows[place] = {name: fresh[name][number] for name in self.names}
        return {name: np.stack([row[name] for row in rows if row is not None]) for name in self.names}

    def _find(self, key: bytes) -> dict[str, np.ndarray] | None:
        if key not in self._where:
            return None
        shard, row = self._where[key]
        if self._open[0] != shard:
            try:
                self._open = (shard, read_npz(shard))
            except PdsError:
                self._open = (shard, {})  # torn: computed again
        stored = self._open[1]
        return {name: stored[name][row] for name in self.names} if stored else None

    def _store(self, keys: Sequence[bytes], outputs: dict[str, Any]) -> None:
        joined = b"".join(keys)
        shard = self.root / f"{hashlib.sha256(joined).hexdigest()[:24]}.npz"
        files.atomic_write(shard, lambda file: np.savez(file, **outputs))
        files.atomic_write(shard.with_suffix(".keys"), lambda file: file.write(joined))
        self._learn(shard, joined)
