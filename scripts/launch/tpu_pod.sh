#!/usr/bin/env bash
# pds_jax on all hosts of a TPU pod slice; run it on your own machine.
#   TPU=my-slice ZONE=us-central2-b WORKDIR=/mnt/shared/photos \
#     scripts/launch/tpu_pod.sh --mode=train --config=configs/photos.py
# WORKDIR must be a folder that all hosts see (a mounted file system). pds_jax must be installed on them:
#   gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command='pip install -e pds_jax "jax[tpu]"'
set -euo pipefail
: "${TPU:?name of the slice}" "${ZONE:?its zone}" "${WORKDIR:?folder that all hosts see}"

# 1: jax.distributed asks the TPU's metadata for the coordinator, the number of processes and this one's index.
printf -v words '%q ' "$@"
gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all \
  --command="cd pds_jax && PDS_JAX_DISTRIBUTED=1 pds_jax --workdir=$(printf '%q' "$WORKDIR") $words"
