#!/usr/bin/env bash
# The tests: a virtual environment, the install, ruff, types, tests, doctests, documentation, the newest Python with the
# newest JAX, the main job on the oldest JAX, the audit of dependencies.
#   scripts/check.sh          what CI runs
#   scripts/check.sh --all    the slow tests too
# PDS_VENV: folder of the virtual environment (default .venv). PDS_TORCH: the torch that the converter tests use.
set -euo pipefail
cd "$(dirname "$0")/.."
venv="${PDS_VENV:-.venv}"
slow=()
[ "${1:-}" = "--all" ] && slow=(--slow)

[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
# --no-compile: most of what is installed is never imported.
"$venv/bin/python" -m pip install --quiet --no-compile --upgrade pip
"$venv/bin/python" -m pip install --quiet --no-compile "${PDS_TORCH:-torch==2.13.0}" -e '.[test,convert,docs,notebooks]'

# Linux: memory in huge pages, which CPUs compute about 1.2 times faster with (docs/scale.md).
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
"$venv/bin/ruff" check .
"$venv/bin/mypy"
"$venv/bin/python" -m pytest -q -n 2 --dist loadfile ${slow[@]+"${slow[@]}"}
"$venv/bin/python" -m pytest -q -n 2 --doctest-modules pds_jax
"$venv/bin/sphinx-build" -W -q -b html docs docs/_build
# The newest JAX is what users install; the oldest supported one must pass the smoke test.
bash scripts/check_jax_versions.sh newest
bash scripts/check_jax_versions.sh --smoke oldest
# Known vulnerabilities in dependencies are reported, not fatal: they are fixed upstream.
audit="$("$venv/bin/pip-audit" --progress-spinner off --skip-editable 2>&1 || true)"
grep -v 'could not be audited' <<<"$audit" || true
echo "pip-audit: $(grep -c 'could not be audited' <<<"$audit" || true) packages could not be looked up"
