#!/usr/bin/env bash
# Trains a Mask2Former head for instance segmentation on a frozen DINOv3, from nothing: environment, data, training.
#
# Costs   after installing: 3 to 6 minutes and 2 GB of memory on two CPU cores.
# Reaches validation AP50 over 0.5 on the drawn demo set, also with random backbone weights.
#
# Own data: a COCO export with train/ and valid/ (and test/), each with _annotations.coco.json and its images, or another
# layout of objects (docs/data.md):
#   DATA=/data/export bash demo/run_train_instance_example.sh --epochs 50
# Further words are flags of demo/train_m2f_head.py (see its --help); they win over what stands here.
#
# Variable        default                what it is
#   DATA          (the drawn demo set)   data set as it was exported: its layout is recognized
#   COCO_DIR      (empty)                folder of a COCO export, in place of DATA
#   BACKBONE      dinov3_vits16          dinov3_vits16 ... dinov3_vit7b16, dinov3_convnext_tiny ..., or a timm name
#   WEIGHTS       auto                   auto (from the hub), a local file or folder, a hub name, random
#   CHECKPOINT_DIR  checkpoints/instance_example  where all files go; a number is added while that holds a run
#   VENV, PYTHON  .venv, python3         environment, and the Python to make it from (VENV=none: use it as it is)
#
# The sizes below make a small run on a CPU good. On a GPU take a recipe instead:
#   python demo/train_m2f_head.py --config configs/m2f_instance_vitsplus.json --coco-dir /data/export

set -euo pipefail
source "$(dirname "$(readlink -f "$0")")/environment.sh"
source "$ROOT/demo/example_folder.sh" instance_example "$@"

SIZES=(
  --hidden-dim 64        # width of the head
  --m2f-size paper       # feed-forward layers in the paper's proportion to the width
  --num-points 1024      # points at which masks are compared
  --image-size 128
  --batch-size 8
  --epochs 6
  --lr 1e-3              # a small head on a small set takes ten times the usual rate
  --weight-decay 0.05
  --warmup-epochs 1
  --drop-path 0          # no stochastic depth: the run is too short to overfit
  --num-workers 1
)
if [ -n "${DATA:-}" ]; then
  FILES=(--data "$DATA" --validate)
elif [ -n "${COCO_DIR:-}" ]; then
  FILES=(--coco-dir "$COCO_DIR")
else
  COCO_DIR="$ROOT/data/demo_coco"
  FILES=(--coco-dir "$COCO_DIR")
  "$PYTHON" "$ROOT/demo/make_demo_data.py" --coco --output "$COCO_DIR"
  # The demo set: few objects need few queries, which then learn faster; it is drawn at one scale, in all colours.
  SIZES+=(--num-queries 16 --no-random-scale --no-color-jitter)
fi

"$PYTHON" "$ROOT/demo/train_m2f_head.py" --task instance "${FILES[@]}" \
  --backbone "${BACKBONE:-dinov3_vits16}" --weights "${WEIGHTS:-auto}" --allow-random-weights \
  --checkpoint-dir "$CHECKPOINT_DIR" --best-metric map "${SIZES[@]}" "$@"
