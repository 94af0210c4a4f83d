"""Run what the documentation tells its reader to type: the shell commands and Python blocks of README.md and docs/*.md.

    python scripts/dev/run_documented_commands.py --list
    python scripts/dev/run_documented_commands.py --page=README.md --page=docs/training.md --timeout=600
    python scripts/dev/run_documented_commands.py --quick

Each page runs in a copy of the repository of its own, block after block, as printed. The Python blocks of a page are
one session; one that begins with the name of a file, as "# my_steps.py", is saved there. Files that a page calls the
reader's own (my_folder, my.pth, ...) are stand-ins of documented_stand_ins.py, and are listed.
A block that cannot be run says so in the page's source, in a comment in front of it:

    <!-- not run: needs the official weights -->
    <!-- not run "bash scripts/check.sh": it is the test suite -->
    <!-- only with --quick: trains for hours -->

The second form, for either, means the commands of the block that begin with the words quoted. All are listed with their
reason. --quick asks for fewer images, evaluations and steps, and prints every command that it changed. Without --fresh
the current interpreter runs everything and `pip install` is skipped; with it, each page gets a new virtual
environment.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHELL, PYTHON = "shell", "python"
PROGRAMS = ("pds_jax", "python", "pip", "bash", "sphinx-build", "tensorboard", "curl")
_LANGUAGES = {"bash": SHELL, "console": SHELL, "sh": SHELL, "python": PYTHON}
_MARK = re.compile(r'<!-- (?P<what>not run|only with --quick)(?: "(?P<words>[^"]+)")?: (?P<reason>.+?) -->$')
_SAVED_AS = re.compile(r"# (\w+\.py)\n")
_FENCE = re.compile(r"^( *)```+(.*)$")
_INSTALLS = "changes this environment; --fresh makes one for it"


def _fewer(seeds: re.Match[str]) -> str:
    first, last = int(seeds[1]), int(seeds[2])
    return f"--seeds={first}-{min(last, first + 7)}"


# What --quick changes: pattern and what becomes of it. Stand-ins of weights are of the small form of a network.
_QUICK = (
    (r"(--mode=train.*--config=configs/[\w/]+\.py)(?=\s|$)", r"\1:runlocal"),
    (r"(--config=configs/own\.py:|train_own\.sh \S+ \S+ )", r"\1runlocal,"),
    (r"(configs/ve/cifar10_ncsnpp_continuous\.py)(?=\s)", r"\1:runlocal,data.image_size=32"),
    (r"(?<=n_iters=)(\d+)000\b", r"\1"),
    (r"--seeds=(\d+)-(\d+)", _fewer),
    (r"--nfe=\d{3,}", "--nfe=50"),
    (r"(fid\.py calc (?!.*--allow_fewer).*)", r"\1 --allow_fewer"),
)


@dataclasses.dataclass(frozen=True)
class Typed:
    """Something to type: a shell command, or a block of Python.

    Attributes:
      page, line: where it stands.
      kind: SHELL or PYTHON.
      text: as printed; of a command, with its continuation lines.
      reason: why it is not run, "" if it is.
      slow: it is run with --quick.
    """

    page: pathlib.Path
    line: int
    kind: str
    text: str
    reason: str = ""
    slow: bool = False

    @property
    def title(self) -> str:
        """Where it stands and how it begins."""
        first = self.text.replace("\\\n", " ").strip() if self.kind == SHELL else f"{self.text.split()[0]} ..."
        return f"{self.page.relative_to(ROOT)}:{self.line}  {' '.join(first.split())}"


def pages() -> list[pathlib.Path]:
    """The pages that are read from the first line to the last."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def typed(page: pathlib.Path) -> list[Typed]:
    """Everything that a page tells its reader to type, in order."""
    found: list[Typed] = []
    for line, kind, text, marks in _blocks(page.read_text().splitlines()):
        items = list(_commands(text, line)) if kind == SHELL else [(line, text)]
        for number, item in items:
            mark = next((mark for mark in marks if item.startswith(mark["words"] or "")), None)
            words = ("", False) if mark is None else (mark["reason"], mark["what"] != "not run")
            found.append(Typed(page, number, kind, item, *words))
        for mark in marks:
            if mark["words"] and not any(item.startswith(mark["words"]) for _, item in items):
                raise ValueError(f"{page}:{line}: no command of the block begins with {mark['words']!r}")
    return found


def _blocks(lines: Sequence[str]) -> Iterator[tuple[int, str, str, list[re.Match[str]]]]:
    """(line, kind, text, marks) of the fenced and indented blocks."""
    marks: list[re.Match[str]] = []
    number = 0
    while number < len(lines):
        fence, mark = _FENCE.match(lines[number]), _MARK.match(lines[number].strip())
        if mark is not None:
            marks.append(mark)
        elif fence is not None:
            end = next(n for n in range(number + 1, len(lines)) if lines[n].strip().startswith("```"))
            kind = _LANGUAGES.get(fence[2].strip())
            if kind is not None:
                yield number + 2, kind, _dedented(lines[number + 1 : end]), marks
            number, marks = end, []
        elif lines[number].startswith("    ") and (number == 0 or not lines[number - 1].strip()):
            end = next((n for n in range(number, len(lines)) if lines[n] and lines[n][:4].strip()), len(lines))
            text = _dedented(lines[number:end]).rstrip()
            kind = _kind_of(text)
            if kind is not None:
                yield number + 1, kind, text, marks
            number, marks = end - 1, []
        elif lines[number].strip():
            marks = []
        number += 1


def _dedented(lines: Sequence[str]) -> str:
    indent = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    return "\n".join(line[indent:] for line in lines) + "\n"


def _kind_of(text: str) -> str | None:
    """What an indented block is: commands, Python, or neither, such as an equation."""
    first = text.split(maxsplit=1)[0]
    if first in PROGRAMS:
        return SHELL
    return PYTHON if re.match(r"(from \S+ import|import) ", text) else None


def _commands(text: str, line: int) -> Iterator[tuple[int, str]]:
    """(line, command) of a block; a backslash continues one, ``$ `` may stand before it."""
    held: list[str] = []
    for number, row in enumerate(text.splitlines()):
        if not held and (not row.strip() or row.startswith("#")):
            continue
        held.append(row.removeprefix("$ "))
        if not row.endswith("\\"):
            yield line + number + 1 - len(held), "\n".join(held)
            held = []


def saved_as(item: Typed) -> str | None:
    """Name of the file that a block of Python is, whose first line says so: ``# my_steps.py``."""
    found = _SAVED_AS.match(item.text) if item.kind == PYTHON else None
    return found[1] if found else None


def quick(command: str) -> str:
    """A command with less to do."""
    for pattern, becomes in _QUICK:
        command = re.sub(pattern, becomes, command)
    return command


# --- the copy in which a page runs


def copy_of_the_repository(place: pathlib.Path) -> None:
    """The files that git knows, as they are now."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        target = place / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_file():
            shutil.copy2(ROOT / name, target)


def environment(place: pathlib.Path, copy: pathlib.Path, fresh: bool) -> dict[str, str]:
    """An environment in which ``python``, ``pip`` and ``pds_jax`` are those that the page is read with."""
    base = {**os.environ, "MPLBACKEND": "agg"}
    if fresh:
        subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
        base.pop("PYTHONPATH", None)
        return {**base, "PATH": os.pathsep.join([str(place / "bin"), base["PATH"]]), "VIRTUAL_ENV": str(place)}
    (place / "bin").mkdir(parents=True)
    for name, words in {"python": "", "pip": " -m pip", "pds_jax": " -m pds_jax.main"}.items():
        (place / "bin" / name).write_text(f'#!/bin/sh\nexec {sys.executable}{words} "$@"\n')
        (place / "bin" / name).chmod(0o755)
    path = os.pathsep.join([str(place / "bin"), str(pathlib.Path(sys.executable).parent), base["PATH"]])
    return {**base, "PATH": path, "PYTHONPATH": str(copy)}


def stand_ins(page: pathlib.Path, copy: pathlib.Path) -> list[str]:
    """Make what the page calls the reader's own; their names."""
    spec = importlib.util.spec_from_file_location("documented_stand_ins", ROOT / "scripts/dev/documented_stand_ins.py")
    assert spec is not None and spec.loader is not None
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    text = " ".join(item.text for item in typed(page) if not item.reason or item.slow)
    names = [name for name in maker.MAKERS if re.search(rf"(?<![\w/]){re.escape(name)}(?![\w.])", text)]
    if names:
        env = {**os.environ, "PYTHONPATH": str(copy)}
        subprocess.run([sys.executable, str(spec.origin), *names], cwd=copy, env=env, check=True)
    return names


# --- running


@dataclasses.dataclass(frozen=True)
class Options:
    """See the command line."""

    timeout: float
    quick: bool
    fresh: bool
    folder: pathlib.Path


def passed_over(item: Typed, options: Options) -> str:
    """Why something is not run, "" if it is."""
    if item.reason and not (item.slow and options.quick):
        return item.reason
    return _INSTALLS if item.text.startswith("pip install") and not options.fresh else ""


def run_page(page: pathlib.Path, options: Options) -> int:
    """Run a page; prints a line for each thing that is typed.

    Returns:
      How many failed.
    """
    items = typed(page)
    for item in items:
        if passed_over(item, options):
            print(f"not run            {item.title}\n                   ({passed_over(item, options)})", flush=True)
    items = [item for item in items if not passed_over(item, options)]
    if not items:
        return 0
    place = pathlib.Path(tempfile.mkdtemp(prefix=f"{page.stem}_", dir=options.folder))
    copy = place / "clone"
    copy_of_the_repository(copy)
    env = environment(place / "environment", copy, options.fresh)
    for name in stand_ins(page, copy):
        print(f"stand-in           {page.name}: {name}", flush=True)
    if options.fresh and not any(item.text.startswith("pip install") for item in items):
        print(f"before             {page.name}: pip install -e .", flush=True)
        subprocess.run(["pip", "install", "--quiet", "-e", "."], cwd=copy, env=env, check=True)
    return sum(not run_item(item, items, options, copy, env, place) for item in items)


def run_item(
    item: Typed, items: Sequence[Typed], options: Options, copy: pathlib.Path, env: dict[str, str], place: pathlib.Path
) -> bool:
    """Run one command or block; whether it ended well."""
    name = saved_as(item)
    if name is not None:
        (copy / name).write_text(item.text)
        words = ["python", "-m", "py_compile", name]
    elif item.kind == PYTHON:
        # The blocks before it again: the session of a reader still holds what they made.
        before = items[: items.index(item) + 1]
        (place / "session.py").write_text(
            "\n".join(block.text for block in before if block.kind == PYTHON and not saved_as(block))
        )
        words = ["python", str(place / "session.py")]
    else:
        text = quick(item.text) if options.quick else item.text
        if text != item.text:
            print(f"quick              {item.title}\n            typed  {' '.join(text.split())}", flush=True)
        words = ["bash", "-c", text]
    return _run(item, words, copy, env, place / f"line{item.line}.log", options.timeout)


def _run(
    item: Typed, words: list[str], copy: pathlib.Path, env: dict[str, str], log: pathlib.Path, timeout: float
) -> bool:
    start = time.perf_counter()
    with log.open("w") as file:
        job = subprocess.Popen(words, cwd=copy, env=env, stdout=file, stderr=file, start_new_session=True)
        try:
            code = job.wait(timeout)
            word = "ok" if code == 0 else f"FAILED ({code})"
        except subprocess.TimeoutExpired:
            word = "OVER TIME"
            os.killpg(job.pid, signal.SIGKILL)  # and what it has started
            job.wait()
    print(f"{word:<10}{time.perf_counter() - start:6.1f} s  {item.title}", flush=True)
    if word != "ok":
        print("\n".join(f"    {line}" for line in log.read_text().splitlines()[-12:]) + f"\n    {log}", flush=True)
    return word == "ok"


def main() -> None:
    """Run or list the pages that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", action="append", default=[], help="README.md or docs/NAME.md; again for more")
    parser.add_argument("--list", action="store_true", help="print what would be run and what not, and run nothing")
    parser.add_argument("--quick", action="store_true", help="fewer images and evaluations; every change is printed")
    parser.add_argument("--fresh", action="store_true", help="a new virtual environment for each page")
    parser.add_argument("--timeout", type=float, default=600, help="seconds that a command may take")
    parser.add_argument("--folder", default="", help="where the copies and logs lie; by default a new one in $TMPDIR")
    args = parser.parse_args()
    chosen = [ROOT / name for name in args.page] or pages()
    missing = [str(page) for page in chosen if not page.is_file()]
    if missing:
        parser.error(f"no such page: {', '.join(missing)}")
    if args.list:
        for item in (item for page in chosen for item in typed(page)):
            word = item.kind if not item.reason else "quick" if item.slow else "not run"
            print(f"{word:<8} {item.title}{item.reason and f'  ({item.reason})'}")
        return
    folder = pathlib.Path(args.folder or tempfile.mkdtemp(prefix="documented_"))
    folder.mkdir(parents=True, exist_ok=True)
    options = Options(args.timeout, args.quick, args.fresh, folder.resolve())
    failed = sum(run_page(page, options) for page in chosen)
    print(f"{failed} failed; copies and logs: {options.folder}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
