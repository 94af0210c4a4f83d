"""The names of the two parts of every data set."""

from __future__ import annotations

from pds_jax.types import PdsError, unknown_name


def check_split(split: str) -> str:
    """The split, if it is "train" or "test"."""
    if split not in ("train", "test"):
        raise PdsError(unknown_name("split", split, ("train", "test")))
    return split
