"""The notebooks: stored with their pictures, one first cell that spares the installed jax, and they run."""

import importlib.util
import json
import pathlib
import re
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "scripts" / "colab").glob("*.ipynb"))


def cells(path, kind):
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


def source(cell):
    return "".join(cell["source"])


def test_all_five_are_there():
    assert [path.stem[0] for path in NOTEBOOKS] == list("12345")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_shows_its_pictures_without_running(path):
    code = cells(path, "code")
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"stream", "display_data"}  # no error, no bare value
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert any(key.startswith("image/") for output in outputs for key in output.get("data", {}))
    printed = "".join("".join(output.get("text", "")) for output in outputs)
    assert not re.search(r"/(tmp|root|home|work|content)/", printed)
    assert path.stat().st_size < 2_500_000


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_badge_opens_this_notebook(path):
    assert f"/scripts/colab/{path.name})" in source(cells(path, "markdown")[0])
    for cell in cells(path, "code"):
        compile(source(cell), path.name, "exec")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_first_cell_installs_without_touching_jax(path):
    first = source(cells(path, "code")[0])
    assert first == source(cells(NOTEBOOKS[0], "code")[0])
    installs = [line.strip() for line in first.splitlines() if line.strip().startswith("pip(")]
    assert installs == ['pip("--no-deps", REPOSITORY)', 'pip("--constraint", "kept.txt", *missing)']


def test_the_first_cell_asks_for_what_is_missing_and_keeps_jax(monkeypatch, tmp_path):
    """Run it with pip, the installed packages and their versions replaced."""
    import importlib.metadata as metadata
    import subprocess

    import jax

    jax.default_backend()  # looks for plugins among the installed packages, once

    class Dist:
        def __init__(self, name, version):
            self.name, self.version = name, version

    there = {"jax": "0.9.1", "jaxlib": "0.9.1", "numpy": "2.1.0", "flax": "0.1.0"}
    calls = []

    def version(name):
        if name not in there:
            raise metadata.PackageNotFoundError(name)
        return there[name]

    needs = ["jax>=99", "numpy>=1.26", "flax>=0.12", "diffrax>=0.7", 'torch>=2; extra == "convert"']
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(metadata, "requires", lambda name: needs)
    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(metadata, "distributions", lambda: [Dist(*item) for item in there.items()])
    monkeypatch.setattr(subprocess, "run", lambda words, check: calls.append(words))
    exec(compile(source(cells(NOTEBOOKS[0], "code")[0]), "first cell", "exec"), {})
    install = [sys.executable, "-m", "pip", "install", "--quiet"]
    assert [words[:5] for words in calls] == [install, install]
    assert calls[0][5] == "--no-deps"
    assert calls[1][5:] == ["--constraint", "kept.txt", "flax>=0.12", "diffrax>=0.7"]
    assert (tmp_path / "kept.txt").read_text().split() == ["jax==0.9.1", "jaxlib==0.9.1", "numpy==2.1.0"]


def executed(path, tmp_path):
    pytest.importorskip("nbclient", reason="needs the extra 'notebooks'")
    pytest.importorskip("ipykernel", reason="needs the extra 'notebooks'")
    spec = importlib.util.spec_from_file_location("run_notebooks", ROOT / "scripts" / "dev" / "run_notebooks.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.execute(path, tmp_path)
    ran = json.loads((tmp_path / path.name).read_text())
    stored = tmp_path / "stored.ipynb"
    stored.write_text(path.read_text())
    script.store(tmp_path / path.name, stored)
    assert [source(cell) for cell in cells(stored, "code")] == [source(cell) for cell in cells(path, "code")]
    shown = [key for cell in ran["cells"] for output in cell.get("outputs", []) for key in output.get("data", {})]
    assert sum(key.startswith("image/") for key in shown) >= 1
    assert list((tmp_path / path.stem).iterdir())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=[pytest.mark.slow] if p.stem[0] in "2345" else [], id=p.stem) for p in NOTEBOOKS],
)
def test_a_notebook_runs(path, tmp_path):
    executed(path, tmp_path)
