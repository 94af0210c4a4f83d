"""Look at the built documentation in headless Chromium: pages that overflow, pictures and formulas that are missing.

    sphinx-build -W -q -b html docs docs/_build
    python scripts/dev/screenshots.py                                  every page at 390, 1366 and 1920 pixels
    python scripts/dev/screenshots.py --only=theory,results --out=runs/look     with screenshots, OUT/PAGE_WIDTH.png

Prints a line a fault (faults.js says what is one) and returns 1 where there is one. Chromium is found on PATH.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import IO, Any

WIDTHS = (390, 1366, 1920)
PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe")

# The protocol wants file descriptors 3 and 4.
LAUNCH = """
import fcntl, os, sys
high = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3]]
os.dup2(high[0], 3)
os.dup2(high[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
FAULTS = (pathlib.Path(__file__).parent / "faults.js").read_text()


class Browser:
    """Chromium, told what to do through a pipe by the DevTools protocol."""

    def __init__(self, process: subprocess.Popen[bytes], commands: IO[bytes], answers: IO[bytes]):
        self._process, self._commands, self._answers = process, commands, answers
        self._number, self._rest, self._session = 0, b"", ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Page.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command; returns its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._commands.write(json.dumps(message).encode() + b"\0")
        answer = self._wait(lambda got: got.get("id") == self._number)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def open(self, url: str) -> None:
        """Load a page, with its scripts and pictures."""
        self.call("Page.navigate", url=url)
        self._wait(lambda got: got.get("method") == "Page.loadEventFired")

    def resize(self, width: int, height: int = 900) -> None:
        """Set the window, in CSS pixels."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression; promises are awaited."""
        got = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in got:
            raise RuntimeError(got["exceptionDetails"]["exception"]["description"])
        return got["result"].get("value")

    def picture(self, path: pathlib.Path) -> None:
        """The whole page as PNG."""
        got = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(got["data"]))

    def _wait(self, wanted: Any) -> dict[str, Any]:
        while True:
            line, found, self._rest = self._rest.partition(b"\0")
            if not found:
                more = self._answers.read(1 << 16)
                if not more:
                    raise RuntimeError(f"the browser ended, exit status {self._process.wait()}")
                self._rest = line + more
            elif wanted(message := json.loads(line)):
                return message


def program() -> str | None:
    """Path of Chromium, or None."""
    return next((path for name in PROGRAMS if (path := shutil.which(name))), None)


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """A browser with a profile of its own, ended afterwards."""
    chromium = program()
    if chromium is None:
        raise FileNotFoundError(f"no {', '.join(PROGRAMS)} on PATH; for instance: apt-get install chromium")
    reads, commands = os.pipe()
    answers, writes = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        launch = [sys.executable, "-c", LAUNCH, str(reads), str(writes)]
        words = [*launch, chromium, *OPTIONS, f"--user-data-dir={profile}"]
        process = subprocess.Popen(words, pass_fds=(reads, writes), stderr=subprocess.DEVNULL)
        os.close(reads)
        os.close(writes)
        try:
            with os.fdopen(commands, "wb", buffering=0) as to, os.fdopen(answers, "rb", buffering=0) as back:
                yield Browser(process, to, back)
        finally:
            process.terminate()
            process.wait()


def faults(
    page: Browser, site: pathlib.Path, name: str, widths: tuple[int, ...] = WIDTHS, out: pathlib.Path | None = None
) -> list[str]:
    """What is wrong with one page.

    Args:
      page: the browser.
      site: folder that sphinx-build wrote.
      name: of the page, without ".html".
      widths: of the window, in pixels.
      out: folder of screenshots, or None.

    Returns:
      A line a fault.
    """
    found = []
    page.open((site / f"{name}.html").resolve().as_uri())
    for width in widths:
        page.resize(width)
        found += [f"{name} at {width}: {fault}" for fault in json.loads(page.evaluate(FAULTS))]
        if out is not None:
            page.resize(width, int(page.evaluate("document.documentElement.scrollHeight")))
            page.picture(out / f"{name.replace('/', '_')}_{width}.png")
    return found


def pages(site: pathlib.Path) -> list[str]:
    """Names of all pages, without ".html"."""
    return sorted(str(path.relative_to(site).with_suffix("")) for path in site.rglob("*.html"))


def main() -> int:
    """Look at what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--site", default="docs/_build", help="folder that sphinx-build wrote")
    parser.add_argument("--only", default="", help="pages, for instance theory,api/sampling; default: all")
    parser.add_argument("--widths", default=",".join(map(str, WIDTHS)), help="of the window, in pixels")
    parser.add_argument("--out", default="", help="folder of screenshots; default: none are kept")
    args = parser.parse_args()
    site = pathlib.Path(args.site)
    names = [name for name in args.only.split(",") if name]
    names = names or pages(site)
    missing = [name for name in names if not (site / f"{name}.html").is_file()]
    if missing or not names:
        parser.error(f"no pages {missing or '*.html'} in {site}; run: sphinx-build -W -q -b html docs {site}")
    out = pathlib.Path(args.out) if args.out else None
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    widths = tuple(int(width) for width in args.widths.split(","))
    with browser() as page:
        found = [fault for name in names for fault in faults(page, site, name, widths, out)]
    print("\n".join([*found, f"{len(names)} pages at {len(widths)} widths: {len(found)} faults"]))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
