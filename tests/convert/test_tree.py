"""The layout of a network's parameters, which is remembered between processes."""

import json

import jax
import pytest

from configs import digits
from pds_jax.convert import tree
from pds_jax.models import utils


@pytest.fixture
def folder(tmp_path):
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    tree._template.cache_clear()
    yield tmp_path
    tree._template.cache_clear()
    jax.config.update("jax_compilation_cache_dir", before)


def config(nf=8):
    return digits.get_config(f"nf={nf},ch_mult=1:1,num_res_blocks=1")


def test_a_layout_is_remembered_and_is_that_of_the_network(folder, monkeypatch):
    found = tree.template(config())
    tree._template.cache_clear()
    with monkeypatch.context() as patched:
        patched.setattr(tree, "init_model", lambda *_, **__: pytest.fail("traced again"))
        assert tree.template(config()) == found
    params = jax.eval_shape(lambda: utils.init_model(jax.random.key(0), config()))
    assert found == {path: leaf.shape for path, leaf in tree.flatten(params).items()}
    assert tree.template(config(nf=16)) != found


@pytest.mark.parametrize("rows", [[["a", [1.5]]], [["a"]], {"a": [1]}, [["a", "b"]]])
def test_a_damaged_layout_is_traced_again(folder, rows):
    found = tree.template(config())
    (path,) = folder.glob("layout-*.json")
    path.write_text(json.dumps(rows))
    tree._template.cache_clear()
    assert tree.template(config()) == found


def test_the_layout_of_somebodys_own_network_is_not_remembered(folder, monkeypatch):
    builder = utils.get_model("ncsnpp")
    monkeypatch.setitem(utils.MODELS, "mine", lambda config: builder(config))
    own = config()
    own.model.name = "mine"
    assert tree.template(own) == tree.template(config())
    assert len(list(folder.glob("layout-*.json"))) == 1
