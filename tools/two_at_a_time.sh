# shellcheck shell=bash
# Runs of a study side by side (sourced by mini_study.sh and ablation.sh).

# Runs "FUNCTION line" for every line of standard input, two at a time; fails if one of them did.
two_at_a_time() {
  local line failed=0
  while read -r line; do
    while (($(jobs -rp | wc -l) >= 2)); do wait -n || failed=1; done
    # shellcheck disable=SC2086 # the line is a list of words
    "$1" $line &
  done
  while (($(jobs -rp | wc -l) > 0)); do wait -n || failed=1; done
  return "$failed"
}
