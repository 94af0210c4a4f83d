"""What the pages say holds: links lead somewhere, commands have the flags they are typed with, code runs."""

import ast
import importlib
import pathlib
import re
import subprocess
import sys

import pytest
from absl import flags as absl_flags

from pds_jax import predictors, solvers  # noqa: F401  (solvers enters its predictors)
from pds_jax.cli import flags, parse
from pds_jax.correctors import CORRECTORS
from pds_jax.predictors import PREDICTORS

ROOT = pathlib.Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [*sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts), ROOT / "README.md"]
HAND_WRITTEN = ("getting_started", "conditional", "development")
SHORT = ("development.md", "migrate.md")
STAND_INS = ("my_", "cifar10_train/", "checkpoint_", "ffhq_", "freq.npy", "space.npy")


def blocks(path, language):
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.M | re.S)


def commands(path):
    for block in blocks(path, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            if line.strip() and not line.startswith("#"):
                yield line.split("  #")[0].split()


def flags_of(script):
    return set(re.findall(r'(?:DEFINE_\w+|add_argument)\(\s*"(?:--)?(\w+)"', (ROOT / script).read_text())) | {"help"}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_pictures_of_a_page_exist(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        if "://" not in target:
            here = page.parent / target
            assert any(p.exists() for p in (here, here.with_suffix(".md"), here.with_suffix(".rst"))), target
    assert not re.search(r"@[A-Z]+@|TODO|TBD", text), f"{page.name} is not finished"
    for path in re.findall(r"`((?:scripts|configs|docs|tests|checkpoints)/[\w./-]+\.\w+)", text):
        assert (ROOT / path).exists(), f"{page.name} names {path}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_of_a_page_have_known_flags_and_values(page):
    known = {flag.name: flag for flag in flags.table()}
    for words in commands(page):
        while "=" in words[0] and not words[0].startswith("-"):
            words = words[1:]  # VARIABLE=value before the command
        program = words[1] if words[0] in ("python", "bash") else words[0]
        if program.startswith("scripts/"):
            assert (ROOT / program).is_file(), " ".join(words)
        given = [word[2:].partition("=") for word in words[1:] if word.startswith("--")]
        if program == "pds_jax":
            for name, _, value in given:
                if name.startswith("config."):
                    continue
                assert name in known, f"{page.name}: --{name} in {' '.join(words)}"
                kind = known[name].kind
                assert not isinstance(kind, tuple) or value in kind, f"{page.name}: --{name}={value}"
                if name == "predictor":
                    assert value in {*PREDICTORS, "auto"}
                if name == "corrector":
                    assert value in CORRECTORS
                if name in ("config", "checkpoint") and "/" in value:
                    assert (ROOT / value.partition(":")[0]).exists() or value.startswith(STAND_INS)
            names = {name for name, _, _ in given}
            assert {"mode", "workdir"} <= names or "help" in names or "..." in words
            if {"mode", "workdir"} <= names and "help" not in names:
                values = absl_flags.FlagValues()
                flags.define(values)
                parse.read([word for word in words if not word.startswith("--config=my_")], values)
        elif program.endswith(".py"):
            unknown = {name for name, _, _ in given} - flags_of(program)
            assert not unknown, f"{page.name}: {program} has no {unknown}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_names_of_flags_and_modules_in_the_text_are_real(page):
    text = page.read_text()
    for name in re.findall(r"`(pds_jax(?:\.\w+)+)`", text):
        module, _, last = name.rpartition(".")
        try:
            importlib.import_module(name)
        except ImportError:
            assert hasattr(importlib.import_module(module), last), name
    for name in re.findall(r"`--predictor=(\w+)", text):
        assert name in {*PREDICTORS, "auto"}
    known = {flag.name for flag in flags.table()} | {"no-deps", "config.section.field", "config.sampling.snr", "slow"}
    known |= {"logdir"}  # TensorBoard's
    for script in (ROOT / "scripts").rglob("*.py"):
        known |= flags_of(script.relative_to(ROOT))
    spans = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
    if page.name != "migrate.md":  # whose left columns are other programs'
        named = {name for span in spans for name in re.findall(r"(?<!\S)--([\w.-]+)", span)}
        missing = {name for name in named - known - {"all"} if not name.startswith("config.")}
        assert not missing, f"{page.name} names flags that are not there: {missing}"
    for block in blocks(page, "python"):
        ast.parse(block)


def test_every_module_of_the_package_is_in_the_api_reference_or_internal():
    text = "".join(page.read_text() for page in (DOCS / "api").glob("*.rst"))
    shown = set(re.findall(r"automodule:: pds_jax\.(\S+)", text))
    for name in shown:
        assert (ROOT / "pds_jax" / (name.replace(".", "/") + ".py")).is_file() or (ROOT / "pds_jax" / name).is_dir()
    top = {path.stem for path in (ROOT / "pds_jax").glob("*.py")} - {"__init__", "version"}
    internal = {"main", "ops", "batches"}
    missing = top - {name.split(".")[0] for name in shown} - internal
    assert not missing, f"add to docs/api, or to the internal ones of this test: {missing}"


def test_the_drawing_of_the_modules_agrees_with_the_levels():
    """Every module is in the drawing, higher levels above lower ones."""
    from test_imports import LEVELS

    drawing = re.search(r"^```text\n(.*?)^```", (DOCS / "development.md").read_text(), re.M | re.S).group(1)
    rows = [re.findall(r"\w+", line[15:73]) for line in drawing.splitlines()]  # between the level and its comment
    assert {word for line in rows for word in line} == set(LEVELS) - {"version"}
    for pick in (min, max):
        heights = [pick(LEVELS[word] for word in line) for line in rows]
        assert heights == sorted(heights, reverse=True), heights


@pytest.mark.parametrize("page", [ROOT / "README.md", *(DOCS / name for name in SHORT)], ids=lambda page: page.name)
def test_code_of_readme_and_of_short_pages_runs(page, tmp_path):
    """Block by block, each in a process of its own: a name may be registered once."""
    for number, block in enumerate(blocks(page, "python")):
        (tmp_path / f"block{number}.py").write_text(block)
        program = [sys.executable, tmp_path / f"block{number}.py"]
        done = subprocess.run(program, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", HAND_WRITTEN)
def test_code_of_a_page_runs(name, tmp_path):
    (tmp_path / "page.py").write_text("\n".join(blocks(DOCS / f"{name}.md", "python")))
    done = subprocess.run([sys.executable, tmp_path / "page.py"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["getting_started", "metrics"])
def test_commands_of_a_page_that_need_no_file_of_yours_run(name, tmp_path):
    """Every one but training, installing and drawing many images, in a folder like a clone."""
    for folder in ("scripts", "configs", "checkpoints"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    (tmp_path / "runs").mkdir()
    ran = 0
    left_out = (*STAND_INS, "pip ", "--mode=train", "runs/train", "quickstart.sh", "runs/cifar10")
    fewer = {"0-255": "0-63", "1000-1255": "1000-1063", "=200": "=40"}
    for words in commands(DOCS / f"{name}.md"):
        line = " ".join(words)
        if any(word in line for word in left_out):
            continue
        program = [] if words[0] == "python" else ["-m", "pds_jax.main"]
        for old, new in fewer.items():
            words = [word.replace(old, new) for word in words]
        words = [sys.executable, *program, *words[1:]]
        done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        ran += 1
    assert ran >= 2
