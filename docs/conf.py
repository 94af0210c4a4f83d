"""The documentation's settings. ``sphinx-build -W -q -b html docs docs/_build``."""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

from pds_jax.version import __version__  # noqa: E402

REPOSITORY = "https://github.com/pds-jax/pds_jax"

project = "pds_jax"
author = "the pds_jax authors"
project_copyright = author
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "typeset",
]
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "substitution"]
myst_dmath_allow_space = myst_dmath_allow_digits = False
myst_heading_anchors = 3
myst_substitutions = {"repository": REPOSITORY}

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
autodoc_type_aliases = {name: name for name in ("Array", "Key", "ScoreFn", "SDE", "Params")}
napoleon_use_rtype = False
napoleon_use_ivar = True
python_maximum_signature_line_length = 100
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = f"pds_jax {__version__}"
html_math_renderer = "katex"
html_static_path = ["_static"]
html_css_files = ["wide.css"]
html_show_sphinx = False
html_copy_source = False
html_theme_options = {"source_repository": REPOSITORY, "source_branch": "main", "source_directory": "docs/"}
copybutton_prompt_text = r"\$ |>>> "
copybutton_prompt_is_regexp = True

# What lies outside docs/ (../README.md, ../checkpoints/...), but for pictures, and folders are shown in the repository.
_OUTSIDE = re.compile(r"\]\(\.\./((?!\.\./|[^)]*\.png\))[^)]+)\)")
_FOLDER = re.compile(r"\]\((?!https?:|\.\./)([\w./-]+/)\)")
_ENTRY = re.compile(r"^[a-z_]+(/[a-z_*]+)*$")
_EQUATION = re.compile(r"^ {4}\S")
_SECTION = re.compile(r"^(Args|Attributes|Returns|Raises|Yields):$")


def prepare(app: object, name: str, source: list[str]) -> None:
    """Point relative links that leave docs/ at the repository; head pages that are bare tables; list what is there."""
    folder, _, page = name.partition("/")
    if folder in ("results", "benchmarks", "lab") and page and not source[0].lstrip().startswith("#"):
        source[0] = f"# {folder}: {page.replace('_', ' ').replace('/', ', ')}\n\n{source[0]}"
    if name == "index":
        lines = [line for line in source[0].splitlines() if not _ENTRY.match(line) or _pages(line)]
        source[0] = "\n".join(lines)
    source[0] = _OUTSIDE.sub(rf"]({REPOSITORY}/blob/main/\1)", source[0])
    source[0] = _FOLDER.sub(rf"]({REPOSITORY}/tree/main/docs/\1)", source[0])


def _pages(entry: str) -> list[pathlib.Path]:
    return [path for path in (ROOT / "docs").glob(f"{entry}.*") if path.suffix in (".md", ".rst")]


def as_text(app: object, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Docstrings are plain text with ``code``: show indented equations as they stand, and | and * as themselves."""
    plain: list[str] = []
    literal, section = False, False
    for line in lines:
        section = section or bool(_SECTION.match(line))
        indented = bool(_EQUATION.match(line)) and not section
        if indented and not literal:
            plain += ["", "::", ""]
            literal = True
        elif literal and line.strip() and not line.startswith("    "):
            plain.append("")
            literal = False
        plain.append(line if literal else re.sub(r"([|*])", r"\\\1", line) if "``" not in line else _escaped(line))
    lines[:] = [line.replace("docs/theory.md", ":doc:`docs/theory.md </theory>`") for line in plain]


def short_names(
    app: object, what: str, name: str, thing: object, options: object, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Type aliases by their names."""

    def short(text: str | None) -> str | None:
        return text and re.sub(r"TypeAliasForwardRef\('(\w+)'\)", r"\1", text)

    return short(signature), short(returns)


def _escaped(line: str) -> str:
    parts = re.split(r"(``.*?``)", line)
    return "".join(part if part.startswith("``") else re.sub(r"([|*])", r"\\\1", part) for part in parts)


def setup(app) -> None:  # noqa: ANN001
    """Called by Sphinx."""
    app.connect("source-read", prepare)
    app.connect("autodoc-process-docstring", as_text, priority=400)
    app.connect("autodoc-process-signature", short_names)
