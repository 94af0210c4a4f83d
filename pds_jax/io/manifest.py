"""The manifest of a sampling run: its settings, and which images are finished.

A run's folder holds ``manifest.json`` (identity, versions, seconds), one small file a batch in ``shards/`` with the
SHA-256 of every image, and in ``parts/`` what each process did. A killed run loses at most the batch it was in; a
second run with the same identity goes on; another identity is refused. Several processes may work in one folder at
once: no two of them write a file of the same name but the manifest, and that is the same from all.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import os
import pathlib
import platform
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

from pds_jax.io import files, images
from pds_jax.types import PdsError
from pds_jax.version import __version__

_PACKAGES = ("jax", "jaxlib", "flax", "numpy")
_VARIABLES = ("JAX_", "XLA_", "PDS_JAX_", "GLIBC_TUNABLES")


def versions() -> dict[str, str]:
    """Versions of this package, Python and the numerical libraries."""
    found = {"pds_jax": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        found[name] = importlib.metadata.version(name)
    return found


def in_force() -> dict[str, Any]:
    """What the environment and JAX's settings were: they decide speed and rounding, not what is drawn."""
    settings = {"x64": "jax_enable_x64", "matmul_precision": "jax_default_matmul_precision"}
    settings |= {"compilation_cache": "jax_compilation_cache_dir"}
    variables = {name: value for name, value in os.environ.items() if name.startswith(_VARIABLES)}
    return {
        "platform": jax.default_backend(),
        **{name: getattr(jax.config, setting, None) for name, setting in settings.items()},
        "environment": dict(sorted(variables.items())),
    }


def plain(value: Any) -> Any:
    """Turn a configuration into what JSON can hold: infinities become strings, tuples lists."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, str | int | float | bool) or value is None:
        return value
    return plain(value.item()) if hasattr(value, "item") else str(value)


class RunFolder:
    """The output folder of one sampling run."""

    def __init__(
        self,
        folder: str | os.PathLike[str],
        identity: dict[str, Any],
        image_format: images.ImageFormat = images.ImageFormat(),  # noqa: B008 (frozen)
    ):
        """Open or make the folder.

        Args:
          folder: where images and manifest go.
          identity: everything that decides the images except the seeds.
          image_format: how images are written; in the identity where it is not PNG.

        Raises:
          PdsError: the folder holds another run, or cannot be written.
        """
        self.folder = pathlib.Path(folder)
        self.format = image_format
        # A PNG is what every earlier run wrote, and a run goes on in the folder of an earlier one.
        self.identity = plain(identity | ({} if image_format.suffix == ".png" else {"files": image_format.describe()}))
        files.check_writable(self.manifest_path)
        # Listed first: a process that starts at the same time writes its manifest before anything else.
        occupied = self.folder.is_dir() and any(not path.name.startswith(".") for path in self.folder.iterdir())
        if self.manifest_path.exists():
            self._check_same_run()
        elif occupied:
            raise PdsError(
                f"{self.folder} is not empty and holds no manifest.json of a run; choose another --eval_folder"
            )
        else:
            files.write_json(self.manifest_path, {"identity": self.identity, "state": "running"})

    @property
    def manifest_path(self) -> pathlib.Path:
        """Where the manifest is."""
        return self.folder / "manifest.json"

    @property
    def complete(self) -> bool:
        """Whether the run finished."""
        return bool(_dictionary(files.read_json(self.manifest_path)).get("state") == "complete")

    def _check_same_run(self) -> None:
        there = _dictionary(files.read_json(self.manifest_path)).get("identity")
        if there == self.identity:
            return
        difference = _first_difference(there, self.identity, "")
        raise PdsError(
            f"{self.folder} holds another run: {difference}; choose another folder (--eval_folder of pds_jax)"
        )

    def done(self) -> dict[int, str]:
        """Seeds whose image is there and unharmed, with the image's SHA-256."""
        good: dict[int, str] = {}
        for shard in sorted((self.folder / "shards").glob("*.json")):
            try:
                entries = files.read_json(shard)
            except PdsError:
                continue  # a torn shard file: its images are simply made again
            for seed_text, digest in _dictionary(entries).items():
                if not (seed_text.isascii() and seed_text.isdigit()):
                    continue  # a name is made of a number, so that it cannot lead out of the folder
                path = images.seed_path(self.folder, int(seed_text), self.format.suffix)
                if path.is_file() and files.sha256(path) == digest:
                    good[int(seed_text)] = digest
        return good

    def save_batch(self, seeds: Iterable[int], batch: Any) -> None:
        """Write one batch of images, then its shard file.

        Args:
          seeds: one seed an image.
          batch: (B, H, W, C) uint8, or float32 in the format's range.
        """
        entries = {
            str(seed): self.format.save(self.folder, seed, image) for seed, image in zip(seeds, batch, strict=True)
        }
        first, last = min(map(int, entries)), max(map(int, entries))
        # A batch mended later may have the same ends; it must not take the place of the others' checksums.
        mark = hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()[:8]
        files.write_json(self.folder / "shards" / f"{first:07d}-{last:07d}-{mark}.json", entries)

    def load(self, seed: int) -> Any:
        """The image (H, W, C) of a seed, as it was written."""
        return self.format.load(self.folder, seed)

    def visible(self, seeds: Iterable[int]) -> Any:
        """Images of seeds as they can be shown, see ``images.visible``; (n, H, W, 1 or 3) uint8."""
        return images.visible(np.stack([self.load(seed) for seed in seeds]), self.format.value_range)

    def check_room(self, count: int, shape: Sequence[int]) -> None:
        """Refuse before any work what the disk cannot hold: ``count`` images of (H, W, C).

        Raises:
          PdsError: how much is free and how much is needed.
        """
        files.check_writable(self.manifest_path, count * self.format.size(shape))

    def part(self, share: tuple[int, int]) -> dict[str, Any]:
        """What the (index, count)-th process noted; nothing if it has not."""
        try:
            return _dictionary(files.read_json(self._part_path(share)))
        except PdsError:
            return {}

    def note_part(self, share: tuple[int, int], **facts: Any) -> None:
        """Note what the (index, count)-th process did."""
        files.write_json(self._part_path(share), plain(facts))

    def _part_path(self, share: tuple[int, int]) -> pathlib.Path:
        return self.folder / "parts" / f"{share[0]}-of-{share[1]}.json"

    def finish(self, **facts: Any) -> None:
        """Write the manifest of a complete run: identity, versions, the facts given and what the processes noted."""
        parts = {path.stem: files.read_json(path) for path in sorted((self.folder / "parts").glob("*-of-*.json"))}
        files.write_json(
            self.manifest_path,
            {
                "identity": self.identity,
                "state": "complete",
                "files": self.format.describe(),
                "versions": versions(),
                "in_force": in_force(),
                **plain(facts),
                "parts": parts,
            },
        )


def _dictionary(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _first_difference(old: Any, new: Any, path: str) -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(set(old) | set(new)):
            if old.get(key) != new.get(key):
                return _first_difference(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    return f"{path} was {json.dumps(old)} there and is {json.dumps(new)} now"
