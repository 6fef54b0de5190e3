#!/usr/bin/env bash
# Compares our transducer losses with k2 1.23.4 and times both: makes a Python 3.10 environment with k2 and
# torch 1.13.1 (about 3 GB) in .venv-k2, then runs k2_parity.py and benchmark_transducer.py in it. No CI part.
#
#   tools/benchmarks/k2_parity.sh               everything (a few minutes after the first time)
#   tools/benchmarks/k2_parity.sh --batches 20  options of k2_parity.py; a short run without the benchmark
#
#   PYTHON310=/path/to/python3.10    the Python to use (default: PATH, then pyenv's, then uv's)
#   SPEAR_K2_VENV=/path/to/venv      another place for the environment
set -euo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
venv=${SPEAR_K2_VENV:-$repository/.venv-k2}

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

is_310() {
  "$1" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 10))' 2>/dev/null
}

# Prints a Python 3.10 of this machine; nothing when there is none.
find_python310() {
  local candidate candidates=()
  if [[ -n ${PYTHON310:-} ]]; then
    candidates=("$PYTHON310")  # named: used or refused, never replaced
  else
    candidates=(python3.10 python3 python)
    if command -v pyenv >/dev/null; then candidates+=("$(pyenv root)"/versions/3.10*/bin/python3.10); fi
    if command -v uv >/dev/null; then candidates+=("$(uv python find 3.10 2>/dev/null || true)"); fi
  fi
  for candidate in "${candidates[@]}"; do
    if [[ -n $candidate ]] && is_310 "$candidate"; then
      printf '%s\n' "$candidate"
      return
    fi
  done
}

python=$venv/bin/python
if [[ ! -x $python ]] || ! "$python" -c 'import k2, torch' 2>/dev/null; then
  base=$(find_python310)
  if [[ -z $base ]]; then
    fail "no Python 3.10 found${PYTHON310:+ at PYTHON310=$PYTHON310}, and k2 1.23.4 from PyPI runs on no other: install it (pyenv install 3.10, uv python install 3.10) or name it with PYTHON310=/path/to/python3.10"
  fi
  printf '== making %s: k2 1.23.4, torch 1.13.1\n' "$venv" >&2
  "$base" -m venv --clear "$venv" || fail "$base could not make a virtual environment: install its venv module"
  "$python" -m pip --disable-pip-version-check install -q k2==1.23.4 torch==1.13.1 'numpy<2' \
    >"$venv/install.log" 2>&1 ||
    fail "pip could not install k2 1.23.4 and torch 1.13.1; the reason is at the end of $venv/install.log"
  "$python" -c 'import k2, torch' || fail "k2 was installed in $venv but cannot be imported: remove $venv and run this again"
fi

export PYTHONPATH=$repository # the environment of k2 does not have us installed
# k2's C++ prints a line for every utterance without a path; the comparison contains some on purpose.
"$python" "$repository/tools/benchmarks/k2_parity.py" "$@" 2>&1 | grep -v 'mutual_information backprop'
if (($# == 0)); then
  OMP_NUM_THREADS=${OMP_NUM_THREADS:-2} "$python" "$repository/tools/benchmarks/transducer.py" --peer k2
fi
