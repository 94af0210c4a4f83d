"""Execute the notebooks of scripts/colab on small settings, and write them with their outputs.

    python scripts/dev/run_notebooks.py --out=runs/notebooks
    python scripts/dev/run_notebooks.py --only=1_plane,3_filters --full

Pictures go to OUT/NAME/. The notebooks in scripts/colab stay as they are, without outputs.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import time

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


def main() -> None:
    """Run those that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="runs/notebooks", help="folder of the executed notebooks")
    parser.add_argument("--only", default="", help="names, separated by commas; by default all")
    parser.add_argument("--full", action="store_true", help="full settings instead of small ones")
    args = parser.parse_args()
    names = [name for name in args.only.split(",") if name] or sorted(path.stem for path in FOLDER.glob("*.ipynb"))
    for name in names:
        seconds = execute(FOLDER / f"{name}.ipynb", pathlib.Path(args.out), small=not args.full)
        print(f"{name}: {seconds:.1f} s, pictures in {pathlib.Path(args.out) / name}", flush=True)


if __name__ == "__main__":
    main()
