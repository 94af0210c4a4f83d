"""Sphinx extension: mathematics by KaTeX, from ``_static/katex`` and no network; long words of code are marked."""

from typing import Any

from docutils import nodes

FILES = ("katex/katex.min.js", "typeset.js")
LONG = 36  # letters of code that fit into a line of a phone


def inline(writer: Any, node: nodes.math) -> None:
    """A formula within a line."""
    _write(writer, node, "span")


def display(writer: Any, node: nodes.math_block) -> None:
    """A formula on lines of its own."""
    _write(writer, node, "div")


def _write(writer: Any, node: nodes.Element, tag: str) -> None:
    start = writer.starttag(node, tag, "", CLASS="math notranslate nohighlight")
    writer.body.append(f"{start}{writer.encode(node.astext())}</{tag}>")
    raise nodes.SkipNode


def add_files(app: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Load KaTeX on the pages that have formulas."""
    if app.env.get_domain("math").has_equations(page):
        app.add_css_file("katex/katex.min.css")
        for name in FILES:
            app.add_js_file(name, loading_method="defer")


def mark_long(app: Any, doctree: nodes.document, page: str) -> None:
    """Give code with a word that is wider than a phone the class ``long``, which may break."""
    for node in doctree.findall(nodes.literal):
        if max(map(len, node.astext().split()), default=0) > LONG:
            node["classes"].append("long")


def setup(app: Any) -> dict[str, Any]:
    """Called by Sphinx."""
    app.add_html_math_renderer("katex", inline_renderers=(inline, None), block_renderers=(display, None))
    app.connect("html-page-context", add_files)
    app.connect("doctree-resolved", mark_long)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
