#!/usr/bin/env bash
# Trains a UPerNet head on a frozen DINOv3, from nothing: environment, data, training, images of the result.
#
# Costs   after installing: about 5 minutes and 2 GB of memory on two CPU cores.
# Reaches validation mIoU over 0.80 on the drawn demo set, also with random backbone weights.
#
# Own data, as they were exported (docs/data.md), or named file by file:
#   DATA=/data/export bash run_train_upernet_example.sh --epochs 50
#   IMAGES='/data/images/*.jpg' MASKS='/data/masks/*.png' NUM_CLASSES=11 bash run_train_upernet_example.sh --epochs 50
# Further words are flags of demo/train_upernet_head.py (see its --help); they win over what stands here.
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
#   CHECKPOINT_DIR  checkpoints/upernet_example  where all files go; a number is added while that holds a run
#   VENV, PYTHON  .venv, python3         environment, and the Python to make it from (VENV=none: use it as it is)
#
# The sizes below make a small run on a CPU good. On a GPU take instead (change SIZES, or pass flags):
#   --hidden-dim 512 --image-size 512 --lr 1e-4 --drop-path 0.3 --epochs 50

set -euo pipefail
source "$(dirname "$(readlink -f "$0")")/demo/environment.sh"
source "$ROOT/demo/example_data.sh" upernet_example "$@"

SIZES=(
  --hidden-dim 64        # width of the head
  --image-size 128
  --batch-size 8
  --epochs 5
  --lr 1e-3              # a small head on a small set takes ten times the usual rate
  --weight-decay 0.05
  --warmup-epochs 1
  --drop-path 0          # no stochastic depth: the run is too short to overfit
  --num-workers 1
)
if [ -n "$IS_DEMO" ]; then
  SIZES+=(--no-random-scale --no-color-jitter)  # the demo set is drawn at one scale, in all colours
fi

"$PYTHON" "$ROOT/demo/train_upernet_head.py" "${DATA[@]}" \
  --backbone "${BACKBONE:-dinov3_vits16}" --weights "${WEIGHTS:-auto}" --allow-random-weights \
  --checkpoint-dir "$CHECKPOINT_DIR" --best-metric miou "${SIZES[@]}" "$@"
