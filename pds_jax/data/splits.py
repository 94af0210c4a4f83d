"""The names of the two parts of every data set."""

from __future__ import annotations

from pds_jax.types import check_choice


def check_split(split: str) -> str:
    """The split, if it is "train" or "test"."""
    return check_choice("split", split, ("train", "test"))
