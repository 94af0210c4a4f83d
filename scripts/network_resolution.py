"""How many iterations plain sampling and a flat M need for the scores of PDS, on networks of several resolutions.

    python scripts/reproduce_table.py --table=photos    # and digits, fashion
    python scripts/network_resolution.py --tables runs/tables/*/table.json --at=20

Writes networks.md and networks.png; the last line on stdout is JSON.
"""

from __future__ import annotations

import json
import pathlib

from pds_jax.bench import resolution
from pds_jax.cli import scripts
from pds_jax.cli.failures import one_line_errors
from pds_jax.io import files
from pds_jax.types import PdsError


def main() -> None:
    """Compare, draw, print."""
    parser = scripts.Arguments(__doc__)
    parser.add_argument("--tables", nargs="+", required=True, help="table.json of scripts/reproduce_table.py")
    parser.add_argument("--at", type=int, default=20, help="iterations of PDS")
    parser.add_argument("--out", default="runs/resolution")
    args = parser.read()
    tables = [files.read_json(path) for path in args.tables]
    for path, table in zip(args.tables, tables, strict=True):
        if not {"pixels", "model", "rows"} <= set(table):
            raise PdsError(f"{path} is no table of a shipped model by scripts/reproduce_table.py")
    rows, out = resolution.rows_of(tables, args.at), pathlib.Path(args.out)
    head = (
        "# Iterations for equal scores\n\nIterations that plain sampling and a flat M at its best c need for the score "
        f"of PDS at its best alpha with {args.at} iterations, each block of seeds by itself. ≤ and >: the fewest or "
        "the most iterations measured.\n\n"
    )
    files.atomic_write(out / "networks.md", lambda file: file.write((head + resolution.markdown(rows)).encode()))
    resolution.draw(rows, args.at, out / "networks.png")
    print(json.dumps({"out": str(out), "networks": [table["model"] for table in tables], "at": args.at}))


if __name__ == "__main__":
    with one_line_errors():
        main()
