# Sourced by the launchers and run_tests.sh: makes the Python environment once and sets $ROOT and $PYTHON.
#
#   VENV     folder of the environment, default .venv beside the README; "none" uses the current Python as it is
#   PYTHON   the Python to make it from, 3.11 or newer, default python3

ROOT="$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd)"
PYTHON="${PYTHON:-python3}"
VENV="${VENV:-$ROOT/.venv}"

if [ "$VENV" != none ]; then
  # The mark holds the sum of requirements.txt: a second start is immediate, a changed file is installed again.
  mark="$VENV/installed-$(sha256sum "$ROOT/requirements.txt" | cut -c1-16)"
  if [ ! -e "$mark" ]; then
    if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
      echo "error: $PYTHON is missing or older than 3.11: install Python 3.11 or newer, or name it with PYTHON=..." >&2
      exit 2
    fi
    echo "Making the environment $VENV (once; a few minutes, most of it PyTorch) ..." >&2
    if ! "$PYTHON" -m venv "$VENV"; then
      echo "error: no environment could be made: on Debian and Ubuntu, apt install python3-venv" >&2
      exit 2
    fi
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check -r "$ROOT/requirements.txt"
    touch "$mark"
  fi
  PYTHON="$VENV/bin/python"
fi
