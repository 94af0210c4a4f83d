#!/usr/bin/env bash
# From a folder of images to a trained model, samples, a Fréchet distance and an export. Resumes if interrupted.
#   scripts/train_own.sh MY_IMAGES RUN [key=value,... for configs/own.py, e.g. image_size=32,n_iters=20000]
# The images are measured for sigma_max, data_mean and sigma_data; one that is among the options is used instead.
# PYTHON: the interpreter (default python). SEEDS: which images are drawn (default 0-255). NFE: evaluations each (40).
# EXTRACTOR: of the FID; "inception" needs the file that docs/metrics.md names (default pixels, for small images).
set -euo pipefail
trap 'exit 130' INT   # a training that is stopped saves and ends well; what follows it waits for the rest
trap 'exit 143' TERM
images="${1:?say which folder: scripts/train_own.sh MY_IMAGES RUN}"
run="${2:?say where the run goes: scripts/train_own.sh MY_IMAGES RUN}"
options="${3:-}"
python="${PYTHON:-python}"
seeds="${SEEDS:-0-255}"
scripts="$(cd "$(dirname "$0")" && pwd)"
mkdir -p "$run"
# Linux: memory in huge pages, which CPUs compute about 1.2 times faster with (docs/scale.md).
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"

if [ ! -s "$run/facts" ]; then # mean, deviation and sigma_max decide the network's scales: measured once
  data="$("$python" -c '
import sys
from configs import own
try:
    data = own.get_config(sys.argv[1]).data
except ValueError as error:
    sys.exit(f"configs/own.py: {error}")
size = data.image_size
height, width = (size, size) if isinstance(size, int) else size
print(f"{height}x{width}", data.num_channels, int(data.centered))' "$options")"
  read -r size channels centered <<<"$data"
  "$python" "$scripts/make_statistics.py" --images="$images" --image_size="$size" --channels="$channels" \
    --convert_images --out="$run/measured.npz" | tee "$run/measured.log"
  tail -n 1 "$run/measured.log" | "$python" -c '
import json, sys
found, centered = json.load(sys.stdin), int(sys.argv[1])
scale = 1 + centered  # pixels are in [0, 1], or in [-1, 1] if centered
sigma_max, (mean, deviation) = found["estimate_sigma_max"], found["pixel_moments"]
if not sigma_max:
    sys.exit("train_own: all images are the same, so there is nothing to learn")
values = (scale * sigma_max, scale * mean - centered, scale * deviation)
print("sigma_max={:.4g},data_mean={:.4g},sigma_data={:.4g}".format(*values))' "$centered" >"$run/facts.part"
  mv "$run/facts.part" "$run/facts"
fi

"$python" -m pds_jax.main --mode=train --workdir="$run" \
  --config="configs/own.py:$(cat "$run/facts")${options:+,$options}" --config.data.dataset="$images"
"$python" "$scripts/export_model.py" --workdir="$run" --out="$run/model"
"$python" "$scripts/plot_denoiser.py" --checkpoint="$run/model" --out="$run/model/denoiser.png"
"$python" -m pds_jax.main --mode=sample --checkpoint="$run/model" --workdir="$run" --seeds="$seeds" \
  --nfe="${NFE:-40}" --alpha=tune
"$python" -m pds_jax.main --mode=eval --workdir="$run" --nfe="${NFE:-40}" --alpha=auto --metrics=fid \
  --extractor="${EXTRACTOR:-pixels}" --allow_fewer --eval_images=1024
echo "Model: $run/model; images: $run/samples; denoiser: $run/model/denoiser.png"
