#!/usr/bin/env bash
# The core tests on the oldest JAX that setup.py allows and on the newest there is.
#   scripts/check_jax_versions.sh [oldest|newest]
# PDS_VENVS: folder of the two virtual environments (default .venv_jax).
set -euo pipefail
cd "$(dirname "$0")/.."
venvs="${PDS_VENVS:-.venv_jax}"
tests=(tests/test_sampling.py tests/test_preconditioner.py tests/models/test_ncsnpp.py tests/test_parallel.py)

# The lower bounds of JAX's family in setup.py, as pins.
oldest() {
  grep -oE '"(jax|flax|optax|diffrax|orbax-checkpoint)>=[0-9.]+"' setup.py | tr -d '"' | sed 's/>=/==/' | sort -u
}

for which in ${1:-oldest newest}; do
  venv="$venvs/$which"
  [ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
  pins=()
  if [ "$which" = oldest ]; then mapfile -t pins < <(oldest); fi
  "$venv/bin/python" -m pip install --quiet --upgrade pip
  "$venv/bin/python" -m pip install --quiet --upgrade ${pins[@]+"${pins[@]}"} -e . "pytest>=8.2" "hypothesis>=6.100"
  echo "$which: $("$venv/bin/python" -c 'import jax, flax; print("jax", jax.__version__, "flax", flax.__version__)')"
  JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}" "$venv/bin/python" -m pytest -q -p no:cacheprovider "${tests[@]}"
done
