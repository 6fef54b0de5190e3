# shellcheck shell=bash
# Runs of a study side by side (sourced by mini_study.sh and ablation.sh).

# Runs "FUNCTION line" for every line of standard input, JOBS (2) at a time; fails if one of them did.
side_by_side() {
  local line failed=0
  while read -r line; do
    while (($(jobs -rp | wc -l) >= ${JOBS:-2})); do wait -n || failed=1; done
    # shellcheck disable=SC2086 # the line is a list of words
    "$1" $line &
  done
  while (($(jobs -rp | wc -l) > 0)); do wait -n || failed=1; done
  return "$failed"
}
