#!/usr/bin/env bash
# The core tests on the oldest JAX that setup.py allows, and on the newest Python and the newest JAX there are.
#   scripts/check_jax_versions.sh [oldest|newest]
#   scripts/check_jax_versions.sh --smoke [oldest|newest]    samples a shipped model with PDS instead of running tests
# PDS_VENVS: folder of the two virtual environments (default .venv_jax).
set -euo pipefail
cd "$(dirname "$0")/.."
venvs="${PDS_VENVS:-.venv_jax}"
tests=(tests/test_ops.py tests/test_sde_lib.py tests/test_preconditioner.py tests/test_sampling.py tests/test_scores.py
  tests/test_extending.py tests/models/test_ncsnpp.py tests/test_parallel.py)
smoke=no
[ "${1:-}" = --smoke ] && { smoke=yes; shift; }

# The lower bounds of JAX's family in setup.py, as pins.
oldest_pins() {
  grep -oE '"(jax|flax|optax|diffrax|orbax-checkpoint)>=[0-9.]+"' setup.py | tr -d '"' | sed 's/>=/==/' | sort -u
}

# The newest Python that can be found, by name or among pyenv's.
newest_python() {
  local version found
  for version in 3.14 3.13 3.12 3.11; do
    found="$(command -v "python$version" || true)"
    if [ -n "$found" ] && "$found" -c '' 2>/dev/null; then echo "$found"; return; fi
    if command -v pyenv >/dev/null; then
      found="$(find "$(pyenv root)/versions" -maxdepth 1 -name "$version.*" 2>/dev/null | sort -V | tail -n 1)"
      if [ -n "$found" ]; then echo "$found/bin/python"; return; fi
    fi
  done
  echo python3
}

for which in ${1:-oldest newest}; do
  venv="$venvs/$which"
  python="${PYTHON:-python3}"
  pins=()
  if [ "$which" = oldest ]; then mapfile -t pins < <(oldest_pins); else python="$(newest_python)"; fi
  [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
  "$venv/bin/python" -m pip install --quiet --no-compile --upgrade pip
  "$venv/bin/python" -m pip install --quiet --no-compile --upgrade ${pins[@]+"${pins[@]}"} \
    -e . "pytest>=8.2" "pytest-xdist>=3.5"
  "$venv/bin/python" -c "import sys, jax, flax, numpy
print('$which: Python', sys.version.split()[0], 'jax', jax.__version__, 'flax', flax.__version__, 'numpy', numpy.__version__)"
  export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
  if [ "$smoke" = yes ]; then
    work="$(mktemp -d)"
    "$venv/bin/python" -m pds_jax.main --mode=sample --checkpoint=photos --workdir="$work" --seeds=0-3 --speed_up=50 --alpha=5
    rm -r "$work"
  else
    "$venv/bin/python" -m pytest -q -n 2 --dist loadfile -p no:cacheprovider "${tests[@]}"
  fi
done
