# Sourced by the example launchers: from DATA, or IMAGES, MASKS ..., the flags that name the data, in the array DATA;
# IS_DEMO, empty where these are own data; and a folder without a run, in $CHECKPOINT_DIR. Its words: the run's default
# name, and those of the launcher.

IS_DEMO=
if [ -n "${DATA:-}" ]; then
  if [ -n "${IMAGES:-}" ] || [ -n "${MASKS:-}" ]; then
    echo "error: own data are named by DATA, or by IMAGES and MASKS, not by both" >&2
    exit 2
  fi
  DATA=(--data "$DATA" --validate ${NUM_CLASSES:+--num-classes "$NUM_CLASSES"})
elif [ -n "${IMAGES:-}" ] || [ -n "${MASKS:-}" ]; then
  if [ -z "${IMAGES:-}" ] || [ -z "${MASKS:-}" ] || [ -z "${NUM_CLASSES:-}" ]; then
    echo "error: own data needs all three of IMAGES, MASKS and NUM_CLASSES" >&2
    exit 2
  fi
  DATA=(--image-paths "$IMAGES" --mask-paths "$MASKS" --num-classes "$NUM_CLASSES" --validate)
  if [ -n "${VAL_IMAGES:-}" ] || [ -n "${VAL_MASKS:-}" ]; then
    DATA+=(--val-image-paths "${VAL_IMAGES:-}" --val-mask-paths "${VAL_MASKS:-}")
  fi
else
  IS_DEMO=yes
  demo="$ROOT/data/demo"
  "$PYTHON" "$ROOT/demo/make_demo_data.py" --output "$demo"
  DATA=(
    --image-paths "$demo/images/train/*.png" --mask-paths "$demo/masks/train/*.png"
    --val-image-paths "$demo/images/val/*.png" --val-mask-paths "$demo/masks/val/*.png"
    --num-classes 5 --class-names "$demo/classes.txt"
  )
fi

source "$ROOT/demo/example_folder.sh" "$@"
