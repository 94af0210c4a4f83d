"""Reference statistics, in files of pds_jax and of other programs.

The format of pds_jax is a .npz with ``mu`` and ``sigma`` (so pytorch-fid and EDM read it too), ``n``, ``provenance``
(JSON, how it was made) and optionally ``features``. ``mu, sigma`` of pytorch-fid and EDM and ``pool_3`` of score_sde
are read too.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from typing import Any

import numpy as np

from pds_jax.io import files
from pds_jax.io.npy import read_npz
from pds_jax.metrics.extractors import Extractor
from pds_jax.metrics.frechet import FeatureMoments, Gaussian
from pds_jax.types import PdsError
from pds_jax.version import __version__

FORMAT = 1
_BLOCK = 512


@dataclasses.dataclass(frozen=True)
class Reference:
    """Statistics of the features of reference images.

    Attributes:
      mu: (D,) float64 mean.
      sigma: (D, D) float64 covariance.
      count: number of images; None where the file does not say.
      provenance: how it was made; empty for files of other programs.
      features: (n, D) float32, or None.
      name: for messages.
    """

    mu: np.ndarray
    sigma: np.ndarray
    count: int | None
    provenance: dict[str, Any]
    features: np.ndarray | None = None
    name: str = "the reference"

    @functools.cached_property
    def gaussian(self) -> Gaussian:
        """The statistics, checked and ready for distances.

        Raises:
          PdsError: sigma is not a covariance.
        """
        return Gaussian.of(self.mu, self.sigma, self.name)

    @property
    def notes(self) -> list[str]:
        """What a reader of the figure must know about this reference."""
        if self.provenance:
            return []
        return [
            f"{self.name} does not say its extractor, image size or resize rule: FID is right only if they are yours "
            "(EDM, StyleGAN, torch-fidelity, score_sde: --resize=tf1; pytorch-fid: --resize=half_pixel)"
        ]

    def check(self, extractor: Extractor, shape: tuple[int, int, int]) -> None:
        """Raise if images are of another size than the reference's, or features of another extractor.

        Args:
          extractor: of the images to be judged.
          shape: (H, W, C) of those images.

        Raises:
          PdsError: the sizes or the extractors differ.
        """
        theirs = self.provenance.get("extractor", {})
        for key in sorted(set(theirs) | set(extractor.identity)) if theirs else ():
            if theirs.get(key) != extractor.identity.get(key):
                raise PdsError(
                    f"{self.name} was made with {key}={theirs.get(key)!r}, this run has "
                    f"{key}={extractor.identity.get(key)!r}; their features cannot be compared"
                )
        size = self.provenance.get("image_shape")
        if size is not None and tuple(size) != tuple(shape):
            raise PdsError(
                f"{self.name} is of images (H, W, C) = {tuple(size)}, these are {tuple(shape)}; make a reference "
                "of that size"
            )


def check_path(path: str | os.PathLike[str]) -> None:
    """Find out before long work whether a reference can be written to a file.

    Raises:
      PdsError: a name that does not end in .npz, or a place that cannot be written.
    """
    if not str(path).endswith(".npz"):
        raise PdsError(f"a reference file ends in .npz, {path} does not; choose another name")
    files.check_writable(path)


def save_reference(path: str | os.PathLike[str], reference: Reference) -> str:
    """Write a reference file atomically.

    Args:
      path: a name ending in .npz.
      reference: with its provenance.

    Returns:
      SHA-256 of the file.

    Raises:
      PdsError: another ending, or the file cannot be written.
    """
    check_path(path)
    arrays: dict[str, Any] = {"mu": reference.mu, "sigma": reference.sigma, "n": np.int64(reference.count or 0)}
    if reference.features is not None:
        arrays["features"] = reference.features
    provenance = json.dumps({**reference.provenance, "format": FORMAT, "pds_jax": __version__}, sort_keys=True)
    files.atomic_write(path, lambda file: np.savez(file, provenance=provenance, **arrays))
    return files.sha256(path)


def load_reference(path: str | os.PathLike[str]) -> Reference:
    """Read a reference file of pds_jax, pytorch-fid, EDM or score_sde.

    Args:
      path: .npz.

    Returns:
      The statistics; :attr:`Reference.notes` says what is not known about them.

    Raises:
      PdsError: missing or damaged file, pickled statistics, or none of the known contents.
    """
    if str(path).endswith((".pkl", ".pt", ".pth")):
        raise PdsError(f"{path} is a pickle, which is never loaded; save mu and sigma as .npz")
    stored = read_npz(path)
    if "provenance" in stored:
        return _ours(stored, str(path))
    if {"mu", "sigma"} <= set(stored):
        return _plain(stored["mu"], stored["sigma"], None, str(path))
    if "pool_3" in stored:
        return _score_sde(stored["pool_3"], str(path))
    raise PdsError(
        f"{path} holds {sorted(stored)}; a reference holds mu and sigma, or pool_3: make one with scripts/fid.py ref"
    )


def _ours(stored: dict[str, np.ndarray], name: str) -> Reference:
    try:
        provenance = json.loads(str(stored["provenance"]))
        mu, sigma, count = stored["mu"], stored["sigma"], int(stored["n"])
    except (KeyError, ValueError) as error:
        raise PdsError(f"{name} is no whole reference file ({error!r}); make it again") from error
    if provenance.get("format", 0) > FORMAT:
        raise PdsError(f"{name} was written by a newer version, {provenance.get('pds_jax')}; update pds_jax")
    return dataclasses.replace(_plain(mu, sigma, count, name), provenance=provenance, features=stored.get("features"))


def _plain(mu: np.ndarray, sigma: np.ndarray, count: int | None, name: str) -> Reference:
    numeric = all(np.issubdtype(array.dtype, np.floating) for array in (mu, sigma))
    if not numeric or mu.ndim != 1 or sigma.shape != (mu.size, mu.size):
        raise PdsError(
            f"{name}: mu is {mu.dtype} {mu.shape}, sigma {sigma.dtype} {sigma.shape}; expected floats (D,) and (D, D)"
        )
    return Reference(mu.astype(np.float64), sigma.astype(np.float64), count, {}, None, name)


def _score_sde(pool: np.ndarray, name: str) -> Reference:
    if pool.ndim != 2 or len(pool) < 2 or not np.issubdtype(pool.dtype, np.floating):
        raise PdsError(f"{name}: pool_3 is {pool.dtype} {pool.shape}; expected float features (n, D)")
    moments = FeatureMoments.empty(pool.shape[1])
    for start in range(0, len(pool), _BLOCK):
        moments.add(pool[start : start + _BLOCK])
    return Reference(moments.mean, moments.covariance, len(pool), {}, pool, name)
