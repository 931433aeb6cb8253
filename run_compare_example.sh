#!/usr/bin/env bash
# Which head is better? Trains Mask2Former, UPerNet and a linear head side by side on one frozen DINOv3, and reports it.
#
# Costs   after installing: about 7 minutes and 2 GB of memory on two CPU cores.
# Makes   checkpoints/comparison_example/report/report.html, which opens in a browser without a network.
#
# Own data, as they were exported (docs/data.md), or named file by file:
#   DATA=/data/export bash run_compare_example.sh --budget epochs=50
#   IMAGES='/data/images/*.jpg' MASKS='/data/masks/*.png' NUM_CLASSES=11 bash run_compare_example.sh --budget epochs=50
# Further words are flags of demo/compare_heads.py (see its --help); they win over what stands here.
#
# Variable        default                what it is
#   DATA          (the drawn demo set)   data set as it was exported: its layout is recognized
#   IMAGES        (the drawn demo set)   quoted glob of images
#   MASKS         (the drawn demo set)   quoted glob of masks: PNGs of class ids, named as the images
#   VAL_IMAGES    (empty)                images to validate on; empty: a tenth of IMAGES is held out
#   VAL_MASKS     (empty)                their masks
#   NUM_CLASSES   5 (the demo set's)     classes, the background among them; needed with IMAGES
#   BACKBONE      dinov3_vits16          dinov3_vits16 ... dinov3_vit7b16, dinov3_convnext_tiny ..., or a timm name
#   WEIGHTS       auto                   auto (from the hub), a local file or folder, a hub name, random
#   CHECKPOINT_DIR  checkpoints/comparison_example  where all files go; a number is added while that holds a run
#   VENV, PYTHON  .venv, python3         environment, and the Python to make it from (VENV=none: use it as it is)
#
# The sizes below make small runs on a CPU good. On a GPU take instead (change SIZES, or pass flags):
#   --image-size 512 --lr 1e-4 --drop-path 0.3 --budget epochs=50 --set m2f.hidden-dim=256 m2f.m2f-size=paper upernet.hidden-dim=512

set -euo pipefail
source "$(dirname "$(readlink -f "$0")")/demo/environment.sh"
source "$ROOT/demo/example_data.sh" comparison_example "$@"

if [ -n "$IS_DEMO" ]; then
  SIZES=(--demo)
else
  SIZES=(
    "${DATA[@]}"
    --image-size 128
    --batch-size 8
    --budget epochs=5
    --lr 1e-3              # small heads on a small set take ten times the usual rate
    --weight-decay 0.05
    --warmup-epochs 1
    --drop-path 0          # no stochastic depth: the runs are too short to overfit
    --num-workers 1
    --set m2f.hidden-dim=64 m2f.m2f-size=paper m2f.num-points=1024 upernet.hidden-dim=64
  )
fi

"$PYTHON" "$ROOT/demo/compare_heads.py" "${SIZES[@]}" \
  --backbone "${BACKBONE:-dinov3_vits16}" --weights "${WEIGHTS:-auto}" --allow-random-weights \
  --checkpoint-dir "$CHECKPOINT_DIR" "$@"
