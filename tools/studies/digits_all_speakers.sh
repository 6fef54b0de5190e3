#!/usr/bin/env bash
# egs/digits with each of its four speakers held out in turn, pre-trained and from scratch; ends with a table.
# What is finished is skipped, so the same command goes on after an interruption.
#
#   tools/studies/digits_all_speakers.sh --corpus-dir /corpora/fsdd
#   tools/studies/digits_all_speakers.sh --corpus-dir /corpora/fsdd --speakers theo --conf tiny --seed 1

# shellcheck disable=SC2154 # "option NAME" below sets the variable NAME
set -euo pipefail
caller_dir=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")"
# shellcheck source=../../egs/common/parse_options.sh
source ../../egs/common/parse_options.sh

option corpus_dir "" "Folder of the Free Spoken Digit Dataset" path
option speakers "jackson nicolas theo yweweler" "Who is held out, one after another"
option conf mini "Size of everything: mini or tiny"
option seed 0 "Every random choice follows from it" int
option data_dir ../../egs/digits/data "Data folders: here, one per speaker" path
option exp_dir ../../egs/digits/exp "Experiments: here, one per speaker" path
parse_options "$@"
if [[ -z $corpus_dir ]]; then usage_error "--corpus-dir DIR is needed: where the recordings are"; fi
mkdir -p "$data_dir" "$exp_dir"
# The recipe works in its own folder.
data_dir=$(cd "$data_dir" && pwd)
exp_dir=$(cd "$exp_dir" && pwd)
folder_of() {
  # Other seeds and sizes beside the first.
  local name=$1
  if [[ $conf != mini ]]; then name+=-$conf; fi
  if ((seed != 0)); then name+=-seed$seed; fi
  printf '%s' "$name"
}

for speaker in $speakers; do
  folder=$(folder_of "$speaker")
  printf '\n== %s\n' "$folder" >&2
  export DIGITS_HELD_OUT_SPEAKER=$speaker
  ../../egs/digits/prepare.sh --conf "$conf" --seed "$seed" --corpus-dir "$corpus_dir" \
    --data-dir "$data_dir/$folder" --exp-dir "$exp_dir/$folder"
  ../../egs/digits/run.sh --conf "$conf" --seed "$seed" --compare-scratch true \
    --data-dir "$data_dir/$folder" --exp-dir "$exp_dir/$folder"
done

# awk: the one number that is wanted, from "wer" of wer-SET.json.
rate_of() {
  awk -F'[:,]' '/^ *"wer":/ { printf "%.2f", $2; exit }' "$exp_dir/$1/finetune_$2/decode/wer-$3.json"
}
printf '\n%-20s %12s %12s %12s %12s\n' "WER in percent" dev dev unseen unseen
printf '%-20s %12s %12s %12s %12s\n' "held out" pretrained scratch pretrained scratch
for speaker in $speakers; do
  folder=$(folder_of "$speaker")
  printf '%-20s' "$folder"
  for set in dev "test-$speaker"; do
    printf ' %12s' "$(rate_of "$folder" pretrained "$set")" "$(rate_of "$folder" scratch "$set")"
  done
  printf '\n'
done
