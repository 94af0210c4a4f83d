"""Imports only go down: a file imports strictly lower levels, or its siblings inside a folder."""

import ast
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / "pds_jax"

LEVELS = {
    "types": 0,
    "version": 0,
    "alpha": 1,
    "config_defaults": 1,
    "io": 1,
    "keys": 1,
    "ops": 1,
    "plugins": 1,
    "scores": 1,
    "steps": 1,
    "train_state": 1,
    "cache": 2,
    "data": 2,
    "filters": 2,
    "operators": 2,
    "processes": 2,
    "replaying": 2,
    "sde_lib": 2,
    "statistics": 2,
    "adapters": 3,
    "guidance": 3,
    "levels": 3,
    "likelihood": 3,
    "preconditioner": 3,
    "spectral": 3,
    "table": 3,
    "choose": 4,
    "classes": 4,
    "controllable_generation": 4,
    "correctors": 4,
    "denoisers": 4,
    "models": 4,
    "predictors": 4,
    "runner": 4,
    "score_fn": 4,
    "solenoidal": 4,
    "time_grids": 4,
    "convert": 5,
    "gits": 5,
    "losses": 5,
    "sampler_checks": 5,
    "solvers": 5,
    "strength": 5,
    "checkpoints": 6,
    "ode_sampler": 6,
    "spectral_steps": 6,
    "stability": 6,
    "metrics": 7,
    "sampling": 7,
    "parallel": 8,
    "pilot": 8,
    "teacher": 8,
    "batches": 9,
    "train_config": 9,
    "train_log": 9,
    "training": 10,
    "loading": 11,
    "options": 12,
    "automatic": 13,
    "assembly": 14,
    "bench": 15,
    "latent": 15,
    "cli": 16,
    "main": 17,
}

# A file that a lower level takes; it needs no file of its folder that is above its own level.
BELOW_THEIR_FOLDER = {"latent.pixels": 10}


def level(module: str) -> int:
    name, inner = module.split(".")[1], ".".join(module.split(".")[1:3])
    assert name in LEVELS, f"give {module} a level in this test"
    return BELOW_THEIR_FOLDER.get(inner, LEVELS[name])


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


def test_a_file_below_its_folder_needs_nothing_above_it():
    code = (
        "import sys, pds_jax.latent.pixels; "
        "names = {'pds_jax.loading', 'pds_jax.options', 'pds_jax.assembly', 'pds_jax.latent.trained'}; "
        "assert not names & set(sys.modules), names & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["predictors", "correctors", "solvers", "sampling"])
def test_a_sampler_knows_a_score_function_never_a_model(name):
    files = [path for path in FILES if path.relative_to(PACKAGE).parts[0].removesuffix(".py") == name]
    imported = set().union(*map(package_imports, files))
    assert files
    assert not {other for other in imported if other.startswith(("pds_jax.models", "pds_jax.score_fn"))}


def test_devices_are_named_in_parallel_only():
    words = ("pmap", "device_count", "process_index", "process_count", "local_devices", "axis_index", "pmean", "psum")
    for path in FILES:
        if path.name not in ("parallel.py", "processes.py"):
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
        "import sys, pds_jax.cli.run_lib; "
        "names = {'optax', 'orbax', 'diffrax', 'scipy.special', 'matplotlib', 'tensorflow', 'torch'}; "
        "assert not names & set(sys.modules), names & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
