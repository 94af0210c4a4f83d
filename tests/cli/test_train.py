"""--mode=train: what cannot be done is said before anything is made."""

import pytest

from pds_jax.cli import train
from pds_jax.cli.options import RunOptions
from pds_jax.types import PdsError


def test_an_included_model_is_no_state_of_a_training(tmp_path):
    with pytest.raises(PdsError, match="--checkpoint=photos: an included model has no optimizer state"):
        train.train(RunOptions("train", tmp_path / "run", checkpoint="photos"))
    assert not (tmp_path / "run").exists()
