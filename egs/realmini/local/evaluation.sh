# shellcheck shell=bash
# What the frozen encoders are asked (sourced by local/stages.sh and tools/studies/realmini.sh).
# shellcheck disable=SC2154 # python and evaluation_tasks are of the script that sources it

# evaluate_frozen OUTPUT CORPUS_DIRS OPTIONS...: every task of evaluation_tasks whose corpus is there, for the encoders of
# OPTIONS, to OUTPUT/results.json. CORPUS_DIRS are separated by colons.
evaluate_frozen() {
  local output=$1 task
  local -a folders kind
  IFS=: read -ra folders <<<"$2"
  shift 2
  # shellcheck disable=SC2086 # a list of words
  "$python" local/evaluation_tables.py --corpus-dir "${folders[@]}" --output "$output/tables" --tasks $evaluation_tasks
  for task in $evaluation_tasks; do
    if [[ ! -f $output/tables/$task.tsv ]]; then continue; fi
    case $task in
      timit-phones) kind=(--frames "$(list_of "$output/tables/$task.tsv")") ;;
      ami-overlap) kind=(--frames "$(list_of "$output/tables/$task.tsv")" --positive overlap) ;;
      *) kind=(--clips "$(list_of "$output/tables/$task.tsv")") ;;
    esac
    "$python" -m spear_lib.bin.evaluate_linear --task "$task" "${kind[@]}" --output_dir "$output" "$@"
  done
}
