"""What the pages say holds: links lead somewhere, names are real, code runs (commands: test_documented_commands.py)."""

import ast
import importlib
import pathlib
import re
import subprocess
import sys

import pytest

import pds_jax
from pds_jax import predictors, solvers  # noqa: F401  (solvers enters its predictors)
from pds_jax.cli import flags
from pds_jax.predictors import PREDICTORS

ROOT = pathlib.Path(__file__).parent.parent
DOCS = ROOT / "docs"
CARDS = [ROOT / f"{name}.md" for name in ("README", "CHANGELOG", "CONTRIBUTING")]
CARDS += sorted(ROOT.glob("checkpoints/**/README.md"))
PAGES = [*sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts), *CARDS]
SHORT = ("development.md", "migrate.md", "api/index.md")


def blocks(path, language):
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.M | re.S)


def flags_of(script):
    return set(
        re.findall(r'(?:DEFINE_\w+|define_config|add_argument)\(\s*"(?:--)?(\w+)"', (ROOT / script).read_text())
    ) | {"help"}


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
    internal = {"main", "ops", "batches", "loading", "options", "automatic", "config_defaults"}
    missing = top - {name.split(".")[0] for name in shown} - internal
    assert not missing, f"add to docs/api, or to the internal ones of this test: {missing}"


def test_every_public_name_is_on_the_first_page_of_the_api_reference():
    page = (DOCS / "api" / "index.md").read_text()
    shown = {*re.findall(r"autofunction:: pds_jax\.(\w+)", page), *re.findall(r"\{py:\w+\}`(\w+) <pds_jax\.", page)}
    assert shown == set(pds_jax.__all__) - {"__version__"}
    for module, name in re.findall(r"<pds_jax\.(\w+)\.(\w+)>", page):
        assert hasattr(importlib.import_module(f"pds_jax.{module}"), name), name


def test_the_drawing_of_the_modules_agrees_with_the_levels():
    """Every module is in the drawing, higher levels above lower ones."""
    from test_imports import LEVELS

    drawing = re.search(r"^```text\n(.*?)^```", (DOCS / "development.md").read_text(), re.M | re.S).group(1)
    rows = [re.findall(r"\w+", line[15:73]) for line in drawing.splitlines()]  # between the level and its comment
    assert {word for line in rows for word in line} == set(LEVELS) - {"version"}
    for pick in (min, max):
        heights = [pick(LEVELS[word] for word in line) for line in rows]
        assert heights == sorted(heights, reverse=True), heights


@pytest.mark.parametrize(
    "page",
    [ROOT / "README.md", *(pytest.param(DOCS / name, marks=pytest.mark.slow) for name in SHORT)],
    ids=lambda page: page.name,
)
def test_code_of_readme_and_of_short_pages_runs(page, tmp_path):
    """Block by block, each in a process of its own: a name may be registered once."""
    for number, block in enumerate(blocks(page, "python")):
        (tmp_path / f"block{number}.py").write_text(block)
        program = [sys.executable, tmp_path / f"block{number}.py"]
        done = subprocess.run(program, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr
