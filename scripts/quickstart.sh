#!/usr/bin/env bash
# One command for a newcomer: a virtual environment, the install, and a shipped model sampled at few steps
# without and with PDS from the same seeds. Results: runs/quickstart/. Takes a few minutes on two cores.
#   scripts/quickstart.sh [flags of scripts/quickstart.py, e.g. --model=digits]
# PDS_VENV: folder of the virtual environment (default .venv).
set -euo pipefail
cd "$(dirname "$0")/.."
venv="${PDS_VENV:-.venv}"
if [ ! -x "$venv/bin/python" ]; then
  echo "Making a virtual environment in $venv"
  "${PYTHON:-python3}" -m venv "$venv"
fi
echo "Installing pds_jax and what it needs (about two minutes the first time)"
"$venv/bin/python" -m pip install --quiet --no-compile --disable-pip-version-check -e .
# Linux: memory in huge pages, which CPUs compute about 1.2 times faster with (docs/scale.md).
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"
exec "$venv/bin/python" scripts/quickstart.py "$@"
