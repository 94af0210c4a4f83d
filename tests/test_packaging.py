"""The source distribution and the wheel, built and used outside the tree; the metadata."""

import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile

import yaml

from pds_jax.cli import parse
from pds_jax.version import __version__

ROOT = pathlib.Path(__file__).parent.parent
SOURCES = ("pds_jax", "configs", "checkpoints", "setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in")
SOURCES += ("CHANGELOG.md", "CITATION.cff")


def run(*words, **options):
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=600, **options)
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_a_configuration_is_found_beside_the_package_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words in (["x", "--config=configs/photos.py:speed_up=20"], ["x", "--config", "configs/photos.py:speed_up=20"]):
        assert parse.with_installed_configs(words)[-1].endswith(f"{ROOT}/configs/photos.py:speed_up=20")
    kept = ["x", "--config=mine.py", "--config.sampling.snr=0.1", "--workdir=configs/photos.py", "configs/photos.py"]
    assert parse.with_installed_configs(kept) == kept
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "photos.py").write_text("")
    assert parse.with_installed_configs(["x", "--config=configs/photos.py"])[-1] == "--config=configs/photos.py"


def test_the_source_distribution_makes_a_wheel_that_samples_outside_the_tree(tmp_path):
    tree, wheels, venv, out = (tmp_path / name for name in ("tree", "wheels", "venv", "out"))
    tree.mkdir()
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        copy(ROOT / name, tree / name)
    run(sys.executable, "setup.py", "--quiet", "sdist", "--dist-dir", wheels, cwd=tree)
    (source,) = wheels.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "CHANGELOG.md", "CITATION.cff", "README.md", "checkpoints/photos/model.safetensors"} <= inside
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", wheels, source)
    (wheel,) = wheels.glob("*.whl")
    assert __version__ in wheel.name
    run(sys.executable, "-m", "venv", "--without-pip", venv)
    place = run(venv / "bin" / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    place = pathlib.Path(place)
    run(sys.executable, "-m", "pip", "--python", venv / "bin" / "python", "install", "--quiet", "--no-deps", wheel)
    # The other packages are those of this environment; a path in a .pth brings no editable install with it.
    (place / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    where = run(venv / "bin" / "python", "-c", "import pds_jax; print(pds_jax.__file__)", cwd=tmp_path).strip()
    assert where == str(place / "pds_jax" / "__init__.py")
    assert (place / "pds_jax" / "py.typed").is_file()
    command = [venv / "bin" / "pds_jax", "--mode=sample", "--seeds=0-1", "--speed_up=100", f"--workdir={out}"]
    text = run(*command, "--checkpoint=photos", "--eval_folder=a", cwd=tmp_path)
    assert "Manifest:" in text and (out / "a" / "grid.png").is_file()
    run(*command, "--checkpoint=digits", "--config=configs/digits.py", "--eval_folder=b", cwd=tmp_path)
    assert (out / "b" / "grid.png").is_file()


def test_changelog_and_citation_file_are_of_this_version_and_cite_the_article_of_readme():
    assert re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M).group(1) == __version__
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(cited)  # what the format requires
    assert cited["cff-version"] == "1.2.0" and str(cited["version"]) == __version__
    described = run(sys.executable, "setup.py", "--quiet", "--name", "--version", "--license", cwd=ROOT).split()
    assert described == ["pds_jax", cited["version"], cited["license"]]
    (article,) = cited["references"]
    authors = " and ".join(f"{author['family-names']}, {author['given-names']}" for author in article["authors"])
    readme = (ROOT / "README.md").read_text()
    for words in (article["title"], authors, article["journal"], article["url"], str(article["year"])):
        assert words in readme
