# shellcheck shell=bash
# The single checks of check.sh and check_full.sh (sourced after environment.sh).
# shellcheck disable=SC2154 # repository and python come from environment.sh

passed=0
failed=0
results=()
# The recipes of the checks write here and nowhere else.
scratch=$(mktemp -d "${TMPDIR:-/tmp}/spear-check.XXXXXX")
trap 'rm -rf "$scratch"' EXIT

# Where the parts that passed at this commit are noted; empty: nowhere.
passed_parts=""

# remember_passed_parts: from here on run_check notes what passed, and does not run it again at the same commit.
remember_passed_parts() {
  if [[ -n $(git -C "$repository" status --porcelain 2>/dev/null || echo unknown) ]]; then return 0; fi
  passed_parts=$repository/.checked/$(git -C "$repository" rev-parse HEAD)
  mkdir -p "$passed_parts"
}

# run_check NAME COMMAND...: runs it, whatever came before, and counts it.
run_check() {
  local name=$1 started=$SECONDS status
  shift
  if [[ -n $passed_parts && -f $passed_parts/$name ]]; then
    passed=$((passed + 1))
    results+=("ok      $name ($(<"$passed_parts/$name") s, earlier at this commit)")
    return 0
  fi
  say "$name"
  set +e
  (
    set -euo pipefail
    "$@"
  )
  status=$?
  set -e
  if ((status == 0)); then
    passed=$((passed + 1))
    results+=("ok      $name ($((SECONDS - started)) s)")
    if [[ -n $passed_parts ]]; then printf '%s' "$((SECONDS - started))" >"$passed_parts/$name"; fi
  else
    failed=$((failed + 1))
    results+=("FAILED  $name ($((SECONDS - started)) s, status $status)")
  fi
}

finish_checks() {
  say "summary"
  printf '%s\n' "${results[@]}"
  if [[ -s $scratch/tests.txt ]]; then printf 'tests: %s\n' "$(<"$scratch/tests.txt")"; fi
  printf '%s passed, %s failed\n' "$passed" "$failed"
  ((failed == 0))
}

check_shell_scripts() {
  local -a scripts
  mapfile -t scripts < <(find .ci egs tools tests -type f \( -name '*.sh' -o -path '.ci/run' \) \
    -not -path '*/data/*' -not -path '*/exp/*' | sort)
  printf '%s scripts\n' "${#scripts[@]}"
  shellcheck --external-sources "${scripts[@]}"
}

# Tests are many and tiny: one thread each is faster than two that wait for each other.
run_tests() {
  local status
  set +e
  OMP_NUM_THREADS=1 "$python" -m pytest -p no:cacheprovider --durations=10 "$@" | tee "$scratch/pytest.txt"
  status=${PIPESTATUS[0]}
  set -e
  tail -n 1 "$scratch/pytest.txt" >>"$scratch/tests.txt"
  return "$status"
}

# SPEAR_JUNIT=FILE: also writes pytest's record there, for tools/results.py tests FILE.
quick_tests() {
  run_tests -m "not slow" ${SPEAR_JUNIT:+--junit-xml="$SPEAR_JUNIT"}
}

# fuzz SECONDS SEED: the user's commands on inputs that hypothesis draws.
fuzz() {
  "$python" tools/fuzz.py --seconds "$1" --seed "$2"
}

# The shortened recipe: the real scripts and stages, with conf/*/tiny.yaml.
tiny_recipe() {
  run_recipe librispeech tiny 8
  "$python" egs/common/headline.py "$scratch/librispeech-tiny/exp"
}

mini_recipe() {
  run_recipe librispeech mini 8
  "$python" egs/common/headline.py "$scratch/librispeech-mini/exp"
}

# Sounds: ends with tagging; its tiny size is among the quick tests.
mini_audioset() {
  run_recipe audioset mini 7
}

# Speech and sounds in one encoder; its tiny size is among the slow tests.
mini_mixed() {
  run_recipe mixed mini 8
  "$python" egs/common/headline.py "$scratch/mixed-mini/exp"
}

# run_recipe RECIPE CONF STAGES: both scripts, then prepare.sh again, which must skip its STAGES finished stages.
run_recipe() {
  local folder=$scratch/$1-$2
  local -a options=(--mini true --conf "$2" --data-dir "$folder/data" --exp-dir "$folder/exp")
  "egs/$1/prepare.sh" "${options[@]}"
  "egs/$1/run.sh" "${options[@]}"
  "egs/$1/prepare.sh" "${options[@]}" >"$scratch/again.txt"
  if [[ $(grep -c 'skipped$' "$scratch/again.txt") != "$3" ]]; then
    printf 'error: the second run of prepare.sh did not skip its %s stages:\n' "$3" >&2
    cat "$scratch/again.txt" >&2
    return 1
  fi
}

# client_tests NAME: the tests of a client in an environment of its own; skipped, with the reason, where the registry
# does not have it.
client_tests() {
  local status=0
  PYTHON=$python "$repository/tools/clients.sh" "$1" --borrow "$(dirname "$(dirname "$python")")" || status=$?
  if ((status == 3)); then
    printf 'skipped: the environment of %s cannot be made here\n' "$1"
    status=0
  fi
  return "$status"
}
