#!/usr/bin/env bash
# tools/check.sh and what takes longer: the slow tests (kill and rerun, copied recipes) and the whole mini recipes, in
# named parts. A part that passed at this commit is not run again, so an interrupted check goes on with the same command
# (a working tree with changes is checked whole).
#
#   tools/check_full.sh                 all parts
#   tools/check_full.sh slow mini       these parts

set -euo pipefail

# shellcheck source=environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
# shellcheck source=checks.sh
source "$repository/tools/checks.sh"

parts=(
  lint format shell quick fuzz tiny
  slow-clients slow-data slow-distributed slow-evaluation slow-numerics slow-recipes slow-slurm slow-unit
  mutants client-superb client-xares client-hear mini mini-audioset mini-mixed
)
if [[ ${1:-} == --help || ${1:-} == -h ]]; then
  sed -n '2,7{s/^# \{0,1\}//p;}' "${BASH_SOURCE[0]}"
  printf 'parts: %s\n' "${parts[*]}"
  exit 0
fi
# means NAME PART: does the name mean this part.
means() { [[ $2 == "$1" || $2 == "$1"-* ]]; }
wanted=()
for part in "${parts[@]}"; do
  for name in "$@"; do
    if means "$name" "$part"; then
      wanted+=("$part")
      break
    fi
  done
done
for name in "$@"; do
  known=false
  for part in "${wanted[@]}"; do
    if means "$name" "$part"; then known=true; fi
  done
  if [[ $known == false ]]; then fail "unexpected argument '$name': the parts are ${parts[*]}"; fi
done
if ((${#wanted[@]} == 0)); then wanted=("${parts[@]}"); fi

ensure_environment
cd "$repository"
remember_passed_parts
for part in "${wanted[@]}"; do
  case $part in
    lint) run_check "$part" ruff check . ;;
    format) run_check "$part" ruff format --check . ;;
    shell) run_check "$part" check_shell_scripts ;;
    quick) run_check "$part" quick_tests ;;
    slow-*) run_check "$part" run_tests -m slow "tests/${part#slow-}" ;;
    mutants) run_check "$part" "$python" tools/mutants.py ;;
    fuzz) run_check "$part" fuzz 600 "$(date +%Y%m%d)" ;; # other inputs each day
    client-*) run_check "$part" client_tests "${part#client-}" ;;
    tiny) run_check "$part" tiny_recipe ;;
    mini) run_check "$part" mini_recipe ;;
    mini-audioset) run_check "$part" mini_audioset ;;
    mini-mixed) run_check "$part" mini_mixed ;;
  esac
done
finish_checks
