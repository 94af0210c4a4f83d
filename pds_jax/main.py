"""``python -m pds_jax.main``: the command line, which lives in ``cli.main``."""

from pds_jax.cli.main import main, run

__all__ = ["main", "run"]

if __name__ == "__main__":
    run()
