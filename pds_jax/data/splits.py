"""The names of the two parts of every data set."""

from __future__ import annotations

from pds_jax.types import PdsError


def check_split(split: str) -> str:
    """The split, if it is "train" or "test"."""
    if split not in ("train", "test"):
        raise PdsError(f"split {split!r} is not known; use 'train' or 'test'")
    return split
