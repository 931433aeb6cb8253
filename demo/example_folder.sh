# Sourced by the example launchers: a folder without a run, in $CHECKPOINT_DIR. Its one word is the run's default name.
# A second start makes a second run: what was trained is not written over.

first="${CHECKPOINT_DIR:-$ROOT/checkpoints/$1}"
CHECKPOINT_DIR="$first"
number=2
while compgen -G "$CHECKPOINT_DIR/*.pth" > /dev/null || compgen -G "$CHECKPOINT_DIR/*/*.pth" > /dev/null; do
  CHECKPOINT_DIR="${first}_$number"
  number=$((number + 1))
done
