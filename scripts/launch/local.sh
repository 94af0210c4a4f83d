#!/usr/bin/env bash
# Several processes on this machine, to try out what the other launch scripts do.
#   PROCESSES=2 scripts/launch/local.sh --mode=sample --checkpoint=digits --workdir=runs/two --seeds=0-15
# SIGTERM is handed on: every process saves and ends.
set -euo pipefail
count="${PROCESSES:-2}"
port="${PORT:-12345}"
pids=()
trap 'kill -TERM "${pids[@]}" 2>/dev/null || true' TERM INT
for ((i = 0; i < count; i++)); do
  "${PDS_JAX:-pds_jax}" --coordinator="localhost:$port" --num_processes="$count" --process_id="$i" "$@" &
  pids+=("$!")
done
status=0
for pid in "${pids[@]}"; do wait "$pid" || status=$?; done
exit "$status"
