#!/usr/bin/env bash
# Runs the tests, in the same environment as the launchers (made at the first start). Needs no network after that.
# --fast runs a core of them in about a minute; further arguments go to pytest: bash run_tests.sh -k losses
set -euo pipefail
source "$(dirname "$(readlink -f "$0")")/demo/environment.sh"
cd "$ROOT"
# One worker a core, up to four: the tests use one thread and about one GB of memory each.
workers="$(nproc)"
if [[ "${1:-}" == --fast ]]; then
  set -- -m "not slow" "${@:2}"
fi
# The tests of a file run in one of them, since they share what takes long to make.
exec "$PYTHON" -m pytest -n "$((workers < 4 ? workers : 4))" --dist loadfile "$@"
