# Sourced by the example launchers: a folder without a run, in $CHECKPOINT_DIR. Its words: the run's default name, and those
# of the launcher. A second start makes a second run, so that what was trained is not written over; with
# --resume-checkpoint or --overwrite it is the same folder.

CHECKPOINT_DIR="${CHECKPOINT_DIR:-$ROOT/checkpoints/$1}"
case " ${*//_/-} " in
  *" --resume-checkpoint"* | *" --overwrite "*) ;;
  *)
    first="$CHECKPOINT_DIR"
    number=2
    while compgen -G "$CHECKPOINT_DIR/*.pth" > /dev/null || compgen -G "$CHECKPOINT_DIR/*/*.pth" > /dev/null; do
      CHECKPOINT_DIR="${first}_$number"
      number=$((number + 1))
    done
    ;;
esac
