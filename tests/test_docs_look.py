"""The documentation as a browser shows it: nothing cut, every picture there, every formula typeset."""

import importlib.util
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts" / "dev"))
import screenshots  # noqa: E402

needs_chromium = pytest.mark.skipif(screenshots.program() is None, reason="no Chromium on PATH")
BAD = {
    "wide": ("<table><td><pre>" + 300 * "x" + "</pre></table>", "the page is wider than the window"),
    "cut": ('<div style="overflow: hidden"><p style="width: 3000px">x</p></div>', "cut at the right: p x"),
    "picture": ('<img src="missing.png">', "no picture: img missing.png"),
    "formula": ('<span class="math">x^2</span>', "formula not typeset: span x^2"),
    "latex": ("<p>so $x^2$</p>", "LaTeX in the text: p so $x^2$"),
    "flag": (
        '<p style="width: 7em"><code class="literal">a <span class="pre">--predictor=auto-a</span></code></p>',
        "flag",
    ),
}


@pytest.fixture
def browser():
    with screenshots.browser() as page:
        yield page


@needs_chromium
@pytest.mark.slow
def test_faults_are_found(browser, tmp_path):
    for name, (body, fault) in BAD.items():
        page = f'<!doctype html><body><div class="content"><article>{body}</article></div></body>'
        (tmp_path / f"{name}.html").write_text(page)
        found = screenshots.faults(browser, tmp_path, name, (390,))
        assert any(line.startswith(f"{name} at 390: {fault}") for line in found), (name, found)
    (tmp_path / "good.html").write_text('<!doctype html><div class="content"><article><p>so</p></article></div>')
    assert screenshots.faults(browser, tmp_path, "good", (390,), tmp_path) == []
    assert (tmp_path / "good_390.png").read_bytes().startswith(b"\x89PNG")


@needs_chromium
@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("sphinx") is None, reason="the extra docs is not installed")
def test_every_page_at_three_widths(browser, tmp_path):
    build = [sys.executable, "-m", "sphinx", "-W", "-q", "-b", "html", ROOT / "docs", tmp_path]
    built = subprocess.run(build, capture_output=True, text=True, cwd=ROOT)
    assert built.returncode == 0, built.stderr
    names = screenshots.pages(tmp_path)
    assert {"index", "theory", "api/sampling", "genindex"} <= set(names)
    found = [fault for name in names for fault in screenshots.faults(browser, tmp_path, name)]
    assert not found, "\n".join(found)
