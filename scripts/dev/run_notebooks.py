"""Execute the notebooks of scripts/colab, and write them with their outputs.

    python scripts/dev/run_notebooks.py --out=runs/notebooks
    python scripts/dev/run_notebooks.py --only=1_plane,3_filters --full
    python scripts/dev/run_notebooks.py --store

Pictures go to OUT/NAME/. --store uses full settings and puts the outputs into the notebooks of scripts/colab, so that
a reader sees the pictures without running anything; do so when a notebook, a figure or an included model has changed.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import time

from pds_jax.io.files import atomic_write

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "colab"


def execute(path: pathlib.Path, out: pathlib.Path, *, small: bool = True, timeout: int = 1800) -> float:
    """Run one notebook.

    Args:
      path: the notebook.
      out: folder for the executed notebook and, in a folder of its name, its pictures.
      small: set PDS_SMALL.
      timeout: seconds a cell may take.

    Returns:
      Seconds it took.

    Raises:
      nbclient.exceptions.CellExecutionError: a cell failed.
    """
    import nbformat
    from nbclient import NotebookClient

    pictures = (out / path.stem).resolve()
    pictures.mkdir(parents=True, exist_ok=True)
    book = nbformat.read(path, as_version=4)
    environment = {**os.environ, "PDS_PICTURES": str(pictures), "PDS_SMALL": "1" if small else ""}
    place = {"metadata": {"path": str(pictures)}}
    client = NotebookClient(book, timeout=timeout, kernel_name="python3", resources=place)
    start = time.perf_counter()
    client.execute(env=environment)
    nbformat.write(book, out / path.name)
    return time.perf_counter() - start


def store(executed: pathlib.Path, original: pathlib.Path) -> None:
    """Put the outputs of an executed notebook into the original: without progress bars and the machine's metadata."""
    import nbformat

    ran, book = (nbformat.read(path, as_version=4) for path in (executed, original))
    for cell, done in zip(book.cells, ran.cells, strict=True):
        if cell.cell_type == "code":
            cell.execution_count = done.execution_count
            cell.outputs = [output for output in done.outputs if output.get("name") != "stderr"]
    text = nbformat.writes(book) + "\n"
    atomic_write(original, lambda file: file.write(text.encode()))


def main() -> None:
    """Run those that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="runs/notebooks", help="folder of the executed notebooks")
    parser.add_argument("--only", default="", help="names, separated by commas; by default all")
    parser.add_argument("--full", action="store_true", help="full settings instead of small ones")
    parser.add_argument("--store", action="store_true", help="full settings; outputs go into scripts/colab")
    args = parser.parse_args()
    names = [name for name in args.only.split(",") if name] or sorted(path.stem for path in FOLDER.glob("*.ipynb"))
    for name in names:
        seconds = execute(FOLDER / f"{name}.ipynb", pathlib.Path(args.out), small=not (args.full or args.store))
        if args.store:
            store(pathlib.Path(args.out) / f"{name}.ipynb", FOLDER / f"{name}.ipynb")
        print(f"{name}: {seconds:.1f} s, pictures in {pathlib.Path(args.out) / name}", flush=True)


if __name__ == "__main__":
    main()
