"""Imports only go down: a file imports strictly lower levels; inside models/, metrics/, convert/ siblings too."""

import ast
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / "pds_jax"

LEVELS = {
    "types": 0,
    "version": 0,
    "ops": 0.5,
    "files": 0.5,
    "npy": 0.5,
    "cache": 0.6,
    "flags": 0.5,
    "alpha": 0.5,
    "timing": 0.5,
    "sde_lib": 1,
    "statistics": 1,
    "preconditioner": 1,
    "spectral": 1.2,
    "time_grids": 1.5,
    "operators": 2,
    "predictors": 2,
    "correctors": 2,
    "solvers": 2.2,
    "models": 2,
    "sampler_checks": 2.4,
    "ode_sampler": 2.6,
    "score_fn": 3,
    "sampling": 3.5,
    "likelihood": 3.5,
    "losses": 4,
    "controllable_generation": 4,
    "train_state": 4,
    "images": 4,
    "image_files": 4.5,
    "parallel": 5,
    "tfds_source": 4.8,
    "datasets": 5,
    "checkpoints": 5.4,
    "manifest": 5,
    "figures": 5,
    "convert": 5.2,
    "metrics": 5.5,
    "assembly": 5.8,
    "quality": 5.8,
    "lab": 5.8,
    "training": 5.8,
    "sampling_job": 5.9,
    "evaluation_job": 5.95,
    "conditional_job": 5.95,
    "run_lib": 6,
    "main": 7,
}


def level(module: str) -> float:
    name = module.split(".")[1]
    assert name in LEVELS, f"give {module} a level in this test"
    return LEVELS[name]


def package_imports(path: pathlib.Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("pds_jax.")}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "pds_jax":
            if node.module == "pds_jax":
                found |= {f"pds_jax.{alias.name}" for alias in node.names}
            else:
                found.add(node.module)
    return {name for name in found if not name.split(".")[1].startswith("__")}


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_only_go_down(path):
    here = "pds_jax." + ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    for other in package_imports(path):
        sibling = other.split(".")[1] == here.split(".")[1]
        assert sibling or level(other) < level(here), f"{here} imports {other}"


@pytest.mark.parametrize("name", ["predictors", "correctors", "solvers", "sampling"])
def test_a_sampler_knows_a_score_function_never_a_model(name):
    imported = package_imports(PACKAGE / f"{name}.py")
    assert not {other for other in imported if other.startswith(("pds_jax.models", "pds_jax.score_fn"))}


def test_devices_are_named_in_parallel_only():
    words = ("pmap", "device_count", "process_index", "process_count", "local_devices", "axis_index", "pmean", "psum")
    for path in FILES:
        if path.name != "parallel.py":
            names = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
            assert not names & set(words), f"{path.name} uses {names & set(words)}"


def test_import_is_light():
    code = (
        "import sys, time, jax; start = time.process_time(); "
        "import pds_jax; pds_jax.get_pc_sampler, pds_jax.VESDE; "
        "seconds = time.process_time() - start; "
        "names = {'tensorflow', 'torch', 'matplotlib', 'sklearn', 'skimage', 'tensorflow_datasets'}; "
        "heavy = names & set(sys.modules); "
        "print(seconds, sorted(heavy)); assert not heavy and seconds < 2"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_sampling_waits_for_nothing_that_only_other_jobs_need():
    code = (
        "import sys, pds_jax.run_lib; "
        "names = {'optax', 'orbax', 'diffrax', 'scipy.special', 'matplotlib', 'tensorflow', 'torch'}; "
        "assert not names & set(sys.modules), names & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
