#!/usr/bin/env bash
# From a folder of images to a trained model, samples, a Fréchet distance and an export. Goes on where it was stopped.
#   scripts/train_own.sh MY_IMAGES RUN [key=value,... for configs/own.py, e.g. image_size=32,n_iters=20000]
# PYTHON: the interpreter (default python). SEEDS: which images are drawn (default 0-255). NFE: evaluations each (40).
# EXTRACTOR: of the FID; "inception" needs the file that docs/metrics.md names (default pixels, for small images).
set -euo pipefail
images="${1:?say which folder: scripts/train_own.sh MY_IMAGES RUN}"
run="${2:?say where the run goes: scripts/train_own.sh MY_IMAGES RUN}"
options="${3:-}"
python="${PYTHON:-python}"
seeds="${SEEDS:-0-255}"
scripts="$(cd "$(dirname "$0")" && pwd)"
size="$(sed -n 's/.*image_size=\([0-9]*\).*/\1/p' <<<"$options")"
size="${size:-32}"
mkdir -p "$run"
# Linux: memory in huge pages, which CPUs compute about 1.2 times faster with (docs/scale.md).
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"

if [ ! -s "$run/facts" ]; then # mean, deviation and sigma_max decide the network's scales: measured once
  "$python" "$scripts/make_statistics.py" --images="$images" --image_size="$size" --channels=3 --convert_images \
    --out="$run/measured.npz" | tee "$run/measured.log"
  tail -n 1 "$run/measured.log" | "$python" -c '
import json, sys
found = json.load(sys.stdin)
values = (found["estimate_sigma_max"], *found["pixel_moments"])
print("sigma_max={:.4g},data_mean={:.4g},sigma_data={:.4g}".format(*values))' >"$run/facts.part"
  mv "$run/facts.part" "$run/facts"
fi

"$python" -m pds_jax.main --mode=train --workdir="$run" \
  --config="configs/own.py:${options:+$options,}dataset=$images,$(cat "$run/facts")"
"$python" "$scripts/export_model.py" --workdir="$run" --out="$run/model"
"$python" "$scripts/plot_denoiser.py" --checkpoint="$run/model" --out="$run/model/denoiser.png"
"$python" -m pds_jax.main --mode=sample --checkpoint="$run/model" --workdir="$run" --seeds="$seeds" \
  --nfe="${NFE:-40}" --alpha=tune
"$python" -m pds_jax.main --mode=eval --workdir="$run" --nfe="${NFE:-40}" --alpha=auto --metrics=fid \
  --extractor="${EXTRACTOR:-pixels}" --allow_fewer --eval_images=1024
echo "Model: $run/model; images: $run/samples; denoiser: $run/model/denoiser.png"
