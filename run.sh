#!/usr/bin/env bash
# Sets up a virtual environment in the checkout and runs the main job, or the tests.
#   ./run.sh                trains and evaluates SEMCo on the embedded data set
#   ./run.sh test           runs the tests; further arguments go to pytest
#   ./run.sh FLAGS          passes flags to `python -m experiments.main`
# JAXCOLD_ACCELERATOR=cuda|tpu picks the JAX build, JAXCOLD_PYTHON the interpreter (>= 3.11).
set -euo pipefail
cd "$(dirname "$0")"

fail() { echo "run.sh: $*" >&2; exit 1; }

extras=dev
case "${JAXCOLD_ACCELERATOR:-cpu}" in
  cpu) ;;
  cuda | tpu) extras="dev,$JAXCOLD_ACCELERATOR" ;;
  *) fail "JAXCOLD_ACCELERATOR=$JAXCOLD_ACCELERATOR is unknown; use cpu, cuda or tpu" ;;
esac

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }
python=""
for candidate in ${JAXCOLD_PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
  if new_enough "$candidate"; then python="$candidate"; break; fi
done
[ -n "$python" ] || fail "Python 3.11 or newer is needed; name one with JAXCOLD_PYTHON=/path/to/python3"

# The stamp names what was installed: another extra or a changed pyproject.toml installs again, and
# an environment whose installation was cut short has no stamp.
stamp=".venv/installed"
want="$extras $(cksum < pyproject.toml)"
if [ "$(cat "$stamp" 2>/dev/null || true)" != "$want" ]; then
  echo "run.sh: setting up .venv ($extras); the first time takes a minute or two"
  [ -x .venv/bin/python ] || "$python" -m venv .venv
  rm -f "$stamp"
  .ci/install .venv/bin/python --editable ".[$extras]"
  echo "$want" > "$stamp"
fi

# Real data sets, where a checkout has them beside it.
if [ -z "${JAXCOLD_DATA:-}" ] && [ -d ../shared/data ]; then
  JAXCOLD_DATA="$(cd ../shared/data && pwd)"
  export JAXCOLD_DATA
fi

if [ "${1:-}" = test ]; then
  shift
  # Most of the tests' time is XLA's: a program that two tests share is compiled once.
  export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$PWD/.pytest_cache/xla}"
  export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.3
  # One process per core; a later -n among the arguments wins.
  exec .venv/bin/python -m pytest -n logical "$@"
elif [ $# -gt 0 ]; then
  exec .venv/bin/python -m experiments.main "$@"
fi
exec .venv/bin/python -m experiments.main --config=experiments/quickstart.py \
  --workdir=runs/quickstart --overwrite
