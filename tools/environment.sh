# shellcheck shell=bash
# The environment of quickstart.sh, check.sh and check_full.sh (sourced): .venv with the pins of requirements.txt.
#
#   PYTHON=/path/to/python3.12   the Python that .venv is made with (default: the first suitable one found)
#   SPEAR_VENV=/path/to/venv     another place for the environment (default: .venv in the repository)

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${SPEAR_VENV:-$repository/.venv}

say() {
  printf '\n== %s\n' "$*" >&2
}

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# Prints the first Python of this machine that the pins install on (3.11 to 3.13); nothing when there is none.
find_base_python() {
  local candidate
  for candidate in ${PYTHON:+"$PYTHON"} python3.12 python3.11 python3.13 python3 python; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12), (3, 13)))' 2>/dev/null; then
      command -v "$candidate"
      return 0
    fi
    # A Python that was named is used or refused, never replaced.
    if [[ $candidate == "${PYTHON:-}" ]]; then return 0; fi
  done
}

# Makes or updates the environment; afterwards $python is its interpreter and PYTHON is exported for the recipes.
ensure_environment() {
  local base stamp wanted
  stamp=$venv/.requirements.stamp
  wanted=$(cat "$repository/requirements.txt" "$repository/setup.py" | cksum)
  if [[ ! -x $venv/bin/python ]] || ! "$venv/bin/python" -c '' 2>/dev/null; then
    base=$(find_base_python)
    if [[ -z $base ]]; then
      fail "no Python 3.11, 3.12 or 3.13 found${PYTHON:+ at PYTHON=$PYTHON}: install one, or name it with PYTHON=/path/to/python3.12"
    fi
    "$base" "$repository/tools/check_environment.py" --folder "$repository" || exit 1
    say "making the environment $venv with $("$base" --version)"
    "$base" -m venv --clear "$venv" ||
      fail "$base could not make a virtual environment: install its venv module (on Debian: python3-venv), then run this again"
  fi
  python=$venv/bin/python
  if [[ ! -f $stamp || $(<"$stamp") != "$wanted" ]]; then
    say "installing the packages of requirements.txt (a few minutes the first time; log: $venv/install.log)"
    install_packages -r "$repository/requirements.txt"
    install_packages --no-deps -e "$repository"
    "$python" "$repository/tools/check_environment.py" --no-disk --packages || exit 1
    printf '%s\n' "$wanted" >"$stamp"
  fi
  export PYTHON=$python
  export PATH=$venv/bin:$PATH
  # Once for everything that is started from here; prints nothing where OMP_NUM_THREADS is set.
  eval "$("$python" "$repository/spear_lib/runtime/threads.py")"
}

# pip install ARGS, its steps on the screen and everything in the log; one line says what to do when it fails.
install_packages() {
  local status
  set +e
  "$python" -m pip --disable-pip-version-check install --retries 2 --timeout 30 "$@" 2>&1 |
    tee -a "$venv/install.log" | grep --line-buffered -E '^(Collecting|Installing collected|Successfully|ERROR)' >&2
  status=${PIPESTATUS[0]}
  set -e
  if ((status == 0)); then return 0; fi
  if grep -qi 'no space left' "$venv/install.log"; then
    fail "the disk is full: free some space and run this again (log: $venv/install.log)"
  fi
  if grep -qiE 'connection|resolution|timed out|proxy|no matching distribution' "$venv/install.log"; then
    fail "the packages could not be fetched: check the network (behind a proxy set HTTPS_PROXY, with a mirror PIP_INDEX_URL) and run this again (log: $venv/install.log)"
  fi
  fail "pip could not install the packages; the reason is at the end of $venv/install.log"
}
