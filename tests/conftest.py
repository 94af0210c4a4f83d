"""Strict JAX manners for every test: several CPU devices, no silent promotion of dtype or rank."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Little of LLVM's optimisation: most of the suite's time is compiling; a fifth less of it.
_FLAGS = ("--xla_force_host_platform_device_count=4", "--xla_backend_optimization_level=1")
os.environ["XLA_FLAGS"] = " ".join((os.environ.get("XLA_FLAGS", ""), *_FLAGS)).strip()

import pathlib  # noqa: E402

import jax  # noqa: E402
import pytest  # noqa: E402

from pds_jax.cache import set_cpu_flags  # noqa: E402

set_cpu_flags()
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow"):
        return
    skip = pytest.mark.skip(reason="slow: run with --slow (scripts/check.sh --all)")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def golden() -> pathlib.Path:
    """The folder of recorded numbers."""
    return pathlib.Path(__file__).parent / "golden"
