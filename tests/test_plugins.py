"""Files of a user that register things by name."""

import hashlib

import pytest

from pds_jax.plugins import load_plugin
from pds_jax.predictors import PREDICTORS
from pds_jax.types import PdsError

GOOD = """
import dataclasses
from pds_jax.predictors import register_predictor

@dataclasses.dataclass
class Scale:
    value: float = 0.5

@register_predictor("of_a_plugin")
def of_a_plugin(x, t, z, *, sde, score_fn, preconditioner, **_):
    return x, Scale().value * x
"""


def test_a_plugin_is_run_once_and_known_by_its_hash(tmp_path):
    (tmp_path / "good.py").write_text(GOOD)
    try:
        plugin = load_plugin(tmp_path / "good.py")
        assert plugin == load_plugin(tmp_path / "good.py") and plugin.file == "good.py"
        assert plugin.sha256 == hashlib.sha256(GOOD.encode()).hexdigest()
        assert "of_a_plugin" in PREDICTORS
    finally:
        PREDICTORS.pop("of_a_plugin", None)


@pytest.mark.parametrize(
    "text, match",
    [
        ("x = 1\nimport no_such_module\n", "bad.py: line 2: ModuleNotFoundError: No module named 'no_such_module'"),
        ("def f(:\n", "bad.py: line 1: SyntaxError"),
        (
            "from pds_jax.predictors import register_predictor\n\n@register_predictor('none')\ndef f(x): ...\n",
            "bad.py: line 3: PdsError: a predictor named 'none' is registered already",
        ),
    ],
)
def test_a_plugin_that_fails_is_refused_with_its_line(tmp_path, text, match):
    (tmp_path / "bad.py").write_text(text)
    with pytest.raises(PdsError, match=match):
        load_plugin(tmp_path / "bad.py")


def test_a_plugin_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(PdsError, match="--plugin=.*nowhere.py: No such file"):
        load_plugin(tmp_path / "nowhere.py")
