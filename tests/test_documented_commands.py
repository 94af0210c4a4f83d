"""Commands and code of README.md and docs/*.md: they can be run as printed, or say why not."""

import pathlib
import re
import shlex
import subprocess
import sys

import load_script
import pytest
from absl import flags as absl_flags

from pds_jax import predictors, sampling  # noqa: F401  (sampling enters the predictors of all modules)
from pds_jax.cli import flags, parse
from pds_jax.correctors import CORRECTORS
from pds_jax.predictors import PREDICTORS

ROOT = pathlib.Path(__file__).parent.parent
documented = load_script.load("run_documented_commands")
stand_ins = load_script.load("documented_stand_ins")
FILES = re.compile(r"(my_\w+/?|[\w.-]*\w/[\w./*-]*|[\w-]+\.(py|sh|npz|npy|pth|pt|pkl|png|txt|json|csv|yaml))(:.*)?$")
PAGES = [ROOT / "README.md", *sorted(path for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts)]
VALUES = {"predictor": {*PREDICTORS, "auto"}, "corrector": set(CORRECTORS)}


def flags_of(script):
    return set(
        re.findall(r'(?:DEFINE_\w+|define_config|add_argument)\(\s*"(?:--)?(\w+)"', (ROOT / script).read_text())
    ) | {"help"}


def mistakes(command, made):
    """What is wrong with a command; adds what it makes to ``made``."""
    words = shlex.split(command.replace("\\\n", " "), comments=True)
    while "=" in words[0] and not words[0].startswith("-"):
        words = words[1:]  # VARIABLE=value before the command
    given = dict(word[2:].partition("=")[::2] for word in words[1:] if word.startswith("--"))
    made |= {given[name] for name in ("out", "workdir") if name in given}
    if words[0].endswith("train_own.sh"):
        made.add(words[2])
    if words[0] == "sphinx-build":
        made.add(words[-1])
    script = words[1] if words[0] in ("python", "bash") else words[0]
    if words[0] == "pds_jax":
        yield from mistakes_of_pds_jax(words, given)
    elif script.startswith("scripts/"):
        if not (ROOT / script).is_file():
            yield f"there is no {script}"
        elif script.endswith(".py") and set(given) - flags_of(script):
            yield f"{script} has no flags {set(given) - flags_of(script)}"
    elif words[0] not in documented.PROGRAMS:
        yield f"{words[0]} is not known here"
    for text in [*given.values(), *(word for word in words[1:] if not word.startswith("-"))]:
        found = FILES.match(text)
        if found and not there(found[1].rstrip("/"), made):
            yield f"there is no {text}"


def mistakes_of_pds_jax(words, given):
    values = absl_flags.FlagValues()
    flags.define(values)
    try:
        if words[1:] not in (["doctor"], ["--help"]):
            parse.read([word for word in words if not word.startswith("--config=my_")], values)
    except Exception as error:
        yield str(error)
    for name, known in VALUES.items():
        if given.get(name, next(iter(known))) not in known:
            yield f"--{name}={given[name]}"


def there(name, made):
    """In the repository, the reader's own, or made by a command before."""
    return (ROOT / name).exists() or name in stand_ins.MAKERS or any(f"{name}/".startswith(f"{m}/") for m in made)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_says_to_type_can_be_run_or_says_why_not(page):
    made = set()
    for item in documented.typed(page):
        if item.kind == documented.PYTHON:
            compile(item.text, item.title, "exec")
            made |= {documented.saved_as(item), *re.findall(r'np\.save\("([^"]+)"', item.text)} - {None}
        elif "..." in item.text:
            assert item.reason, item.title
        else:
            found = list(mistakes(item.text, made))
            if item.reason and not item.slow:  # files that nobody here has are why it is not run
                found = [text for text in found if not re.match("there is no|.* is not known here", text)]
            assert not found, f"{item.title}: {found}"


@pytest.mark.parametrize(
    "command, word",
    [
        ("pds_jax --mode=sample --checkpoint=photos --workdir=runs/a --nef=40", "did you mean --nfe?"),
        ("pds_jax --mode=sample --checkpoint=photos --workdir=runs/a --predictor=hoin", "--predictor=hoin"),
        ("pds_jax --mode=sample --checkpoint=other.pth --workdir=runs/a", "there is no other.pth"),
        ("python scripts/make_statistics.py --image=my_folder", "has no flags {'image'}"),
        ("python scripts/nothing.py", "there is no scripts/nothing.py"),
        ("pdsjax --mode=sample", "pdsjax is not known"),
    ],
)
def test_a_command_that_cannot_work_is_found(command, word):
    assert any(word in text for text in mistakes(command, set()))


def test_blocks_commands_and_marks_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(documented, "ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text(
        "```bash\npip install -e .   # all\n# a remark\npds_jax --mode=sample \\\n  --nfe=1000\n```\n\n"
        "    an = equation\n\n<!-- only with --quick: long -->\n\n    python a.py\n    python b.py\n\n"
        '<!-- not run "python": slow -->\n```console\n$ python c.py\n$ bash d.sh\n```\n```python\nx = 1\n```\n'
    )
    found = [
        (item.line, item.kind, item.text.split("#")[0].strip(), item.reason, item.slow)
        for item in documented.typed(page)
    ]
    assert found == [
        (2, "shell", "pip install -e .", "", False),
        (4, "shell", "pds_jax --mode=sample \\\n  --nfe=1000", "", False),
        (12, "shell", "python a.py", "long", True),
        (13, "shell", "python b.py", "long", True),
        (17, "shell", "python c.py", "slow", False),
        (18, "shell", "bash d.sh", "", False),
        (21, "python", "x = 1", "", False),
    ]
    page.write_text('<!-- not run "pyton": slow -->\n```bash\npython c.py\n```\n')
    with pytest.raises(ValueError, match="no command of the block begins with 'pyton'"):
        documented.typed(page)


def test_a_page_runs_in_a_copy_and_says_what_failed(tmp_path, monkeypatch, capsys):
    page = ROOT / "page_of_this_test.md"
    text = "```bash\ntest -f setup.py && touch made\n```\n```python\na = 1\n```\n```python\nassert a == 1\n```\n"
    text += "```bash\nbash -c 'echo because; exit 3'\n```\n<!-- not run: long -->\n```bash\nbash long.sh\n```\n"
    page.write_text(text + "```bash\npip install x\n```\n")
    try:
        failed = documented.run_page(page, documented.Options(60, False, False, tmp_path))
    finally:
        page.unlink()
    said = capsys.readouterr().out
    assert failed == 1 and not (ROOT / "made").exists() and len(list(tmp_path.glob("*/clone/made"))) == 1
    assert re.search(r"FAILED \(3\).*bash -c 'echo because", said) and "    because" in said
    assert "(long)" in said and "--fresh" in said and said.count("ok  ") == 3


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("pds_jax --mode=train --config=configs/photos.py --workdir=a", "configs/photos.py:runlocal"),
        ("pds_jax --mode=sample --seeds=1000-1255 --nfe=200", "--seeds=1000-1007 --nfe=50"),
        ("python scripts/fid.py calc --images=a --ref=b.npz", "--ref=b.npz --allow_fewer"),
        (
            "scripts/train_own.sh my_images runs/a image_size=32,n_iters=20000",
            "runs/a runlocal,image_size=32,n_iters=20",
        ),
        ("pds_jax --mode=sample --seeds=0-3 --nfe=40", "--seeds=0-3 --nfe=40"),
    ],
)
def test_quick_asks_for_less(text, wanted):
    assert wanted in documented.quick(text)


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", ["README.md", "docs/getting_started.md", "docs/conditional.md", "docs/metrics.md", "docs/recipes.md"]
)
def test_what_a_page_says_to_type_runs(page):
    program = [sys.executable, documented.__file__, f"--page={page}", "--quick"]
    done = subprocess.run(program, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
