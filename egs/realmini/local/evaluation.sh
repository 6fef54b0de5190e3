# shellcheck shell=bash
# What the frozen encoders are asked (sourced by local/stages.sh and tools/studies/realmini.sh).
# shellcheck disable=SC2154 # python is of the script that sources it, the facts are of corpus.sh

# evaluate_frozen OUTPUT CORPUS_DIRS OPTIONS...: every task of evaluation_tasks whose corpus is there, for the encoders of
# OPTIONS, to OUTPUT/results.json. CORPUS_DIRS are separated by colons.
evaluate_frozen() {
  local output=$1 task
  local -a folders kind
  IFS=: read -ra folders <<<"$2"
  shift 2
  if [[ -z $evaluation_tasks ]]; then
    log "nothing is measured: evaluation_tasks is empty in local/corpus.sh"
    return
  fi
  # shellcheck disable=SC2086 # a list of words
  "$python" local/evaluation_tables.py --corpus-dir "${folders[@]}" --output "$output/tables" --tasks $evaluation_tasks \
    "${table_options[@]}"
  for task in $evaluation_tasks; do
    if [[ ! -f $output/tables/$task.tsv ]]; then continue; fi
    kind=(--clips "$(list_of "$output/tables/$task.tsv")")
    # A table with times labels stretches of recordings, hence frames.
    if [[ $(head -n 1 "$output/tables/$task.tsv") == *start* ]]; then kind[0]=--frames; fi
    "$python" -m spear_lib.bin.evaluate_linear --task "$task" "${kind[@]}" --positive "${positive_labels[$task]:-}" \
      --output_dir "$output" "$@"
  done
}
