#!/usr/bin/env bash
# Data preparation: from the data folders of a speech and an audio recipe to cuts with the tokens of two teachers.
#
#   0 corpus       link the data folders of the other recipes (or, with --mini true, let them synthesise small ones)
#   1 manifests    their cuts, with paths that hold here
#   2 noise        their noise cuts
#   3 embeddings   of each teacher whose quantiser is not given
#   4 quantisers   link those that are given, train the others
#   5 tokens       of every cut and teacher that --strategy needs; what the other recipes have is linked
#   6 attach       cuts with all their token fields, checked
#   7 text units   those of the other recipes
#
# Examples:
#   ./prepare.sh --mini true
#   ./prepare.sh --speech-data ../librispeech/data --speech-quantizer ../librispeech/data/quantizers/wavlm \
#                --audio-data ../audioset/data --audio-quantizer ../audioset/data/quantizers/dasheng

# shellcheck disable=SC2154 # "option NAME" below sets the variable NAME
set -euo pipefail
caller_dir=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")"
# shellcheck source=../common/parse_options.sh
source ../common/parse_options.sh
# shellcheck source=../common/stages.sh
source ../common/stages.sh
# shellcheck source=local/corpus.sh
source local/corpus.sh
# shellcheck source=local/parts.sh
source local/parts.sh

option stage 0 "First stage to run" int
option stop_stage 7 "Last stage to run" int
option mini false "Let the other recipes synthesise small corpora instead of linking finished ones" bool
option conf "" "Size of everything: the stem of conf/*/*.yaml, here or in ../common (default: mini with --mini true, else base)"
option data_dir data "Where all of this goes" path
option exp_dir exp "Where run.sh writes" path
declare_part() { option "$1_data" "" "Data folder of the part $1, filled by ../$3/prepare.sh" path; }
every_part declare_part
for domain in speech audio; do
  default=default_${domain}_teacher
  option "${domain}_quantizer" "" "Finished quantiser of the $domain teacher, to be linked (empty: train one)" path
  option "${domain}_teacher" "${!default}" "Teacher of $domain, where its quantiser is trained here"
  option "${domain}_teacher_path" "" "Weights of that teacher: a folder, a file, or hub:OWNER/NAME" path
  option "${domain}_teacher_layer" "" "Layer of that teacher (empty: its own default)"
done
option teacher_dtype float32 "Number format of the teachers' blocks" "float32|bfloat16"
option strategy asymmetrical "Which teachers a cut is to be trained on, hence which tokens it needs" "asymmetrical|joint|disjoint"
option seed 0 "Every random choice follows from it" int
option num_jobs 2 "Processes for synthesis and manifests" int
option num_splits 1 "Parts in which stage 5 divides each set" int
option split 0 "Only this part of stage 5, 1 to --num-splits (0: all parts, and the stage is closed)" int
parse_options "$@"

check_stage_range 0 7
stage_5_part=""
if ((split != 0)); then
  if ((stage != 5 || stop_stage != 5)); then usage_error "--split is for stage 5 alone: add --stage 5 --stop-stage 5"; fi
  if ((split < 0 || split > num_splits)); then usage_error "--split $split: it goes from 1 to --num-splits $num_splits"; fi
  stage_5_part=$split/$num_splits
fi
refuse_data_of_mini() {
  if [[ $mini == true ]] && option_given "$1_data"; then
    usage_error "--mini true synthesises the part $1, --$1-data names a finished one: give one of them"
  fi
}
every_part refuse_data_of_mini
find_python
if [[ -z $conf ]]; then
  if [[ $mini == true ]]; then conf=mini; else conf=base; fi
fi
check_conf pretrain "$conf" --conf

# part_stage NAME DOMAIN RECIPE STAGE: a stage of the part's own recipe: run where the part is synthesised, else checked.
part_stage() {
  local marker=$data_dir/$1/.done/stage-$4.json
  if [[ $mini == true ]]; then
    "../$3/prepare.sh" --mini true --conf "$(conf_of_parts "$conf")" --data-dir "$data_dir/$1" --seed "$seed" --num-jobs "$num_jobs" \
      --stage "$4" --stop-stage "$4"
  elif [[ ! -f $marker ]]; then
    die "the part $1 has no finished stage $4 (no $marker): run ../$3/prepare.sh --stage $4 --stop-stage $4 on its data folder"
  fi
}

stage_0() {
  every_part corpus_of
}
corpus_of() {
  local folder=$1_data
  if [[ $mini == true ]]; then
    part_stage "$@" 0
  else
    "$python" local/link_part.py --part "$1" --recipe "$3" --folder "${!folder}" --output "$data_dir/$1"
  fi
}

stage_1() {
  every_part manifests_of
}
manifests_of() {
  local set
  part_stage "$@" 1
  for set in $token_sets; do
    "$python" local/take_cuts.py --cuts "$(part_manifest "$1" "$3" "$set")" --output "$(set_manifest "$1-$set")"
  done
  cp "$data_dir/$1"/manifests/*_statistics.json "$data_dir/manifests/"
}

stage_2() {
  rm -f "$(noise_manifest)"
  every_part noise_of
}
# The first part that has noise gives it to all.
noise_of() {
  part_stage "$@" 2
  if [[ ! -f $(noise_manifest) && -f $data_dir/$1/manifests/noise_cuts.jsonl.gz ]]; then
    "$python" local/take_cuts.py --cuts "$data_dir/$1/manifests/noise_cuts.jsonl.gz" --output "$(noise_manifest)"
  fi
}

stage_3() {
  every_part embeddings_of
}
embeddings_of() {
  local given=$2_quantizer teacher=$2_teacher path=$2_teacher_path layer=$2_teacher_layer cuts
  if [[ $1 != "$2" || -n ${!given} ]]; then return 0; fi
  cuts=$(quantizer_cuts "$@")
  "$python" -m spear_lib.bin.extract_embeddings --config "$(conf_file "quantizer/$2" "$conf")" \
    --cuts "$cuts" --output_dir "$data_dir/embeddings/$2" --teacher "${!teacher}" \
    --teacher_path "${!path}" ${!layer:+--teacher_layer "${!layer}"} --teacher_dtype "$teacher_dtype" --seed "$seed"
}
# The set on which the part's own recipe trains quantisers, with paths that hold here.
quantizer_cuts() {
  local set
  set=$(part_fact "$3" quantizer_set)
  if [[ " $token_sets " != *" $set "* ]]; then
    "$python" local/take_cuts.py --cuts "$(part_manifest "$1" "$3" "$set")" --output "$(set_manifest "$1-$set")"
  fi
  set_manifest "$1-$set"
}

stage_4() {
  local domain given
  mkdir -p "$data_dir/quantizers"
  for domain in speech audio; do
    given=${domain}_quantizer
    if [[ -n ${!given} ]]; then
      link_folder "${!given}" "$(domain_quantizer "$domain")"
    else
      "$python" -m spear_lib.bin.train_quantizer --config "$(conf_file "quantizer/$domain" "$conf")" \
        --embeddings "$data_dir/embeddings/$domain" --output_dir "$(domain_quantizer "$domain")" --seed "$seed"
    fi
  done
  "$python" local/check_teachers.py --speech "$(domain_quantizer speech)" --audio "$(domain_quantizer audio)"
}
link_folder() {
  if [[ ! -d $1 ]]; then die "$1 is not a folder"; fi
  ln -sfn "$(realpath "$1")" "$2"
}

# domains_of DOMAIN: the teachers (by their domains) whose tokens the strategy wants on cuts of DOMAIN.
domains_of() {
  "$python" -c 'import sys
from spear_lib.pretraining import ObjectiveConfig
print(*ObjectiveConfig(strategy=sys.argv[1]).fields_by_domain(["speech", "audio"])[sys.argv[2]])' "$strategy" "$1"
}

stage_5() {
  every_part tokens_of
}
tokens_of() {
  local set domain store own wanted=""
  local -a missing
  wanted=$(domains_of "$2")
  for set in $token_sets; do
    missing=()
    for domain in $wanted; do
      mkdir -p "$data_dir/tokens/$domain"
      store=$(field_store "$domain" "$1" "$set")
      own=$(own_store "$1" "$set" "$domain")
      # A store that was begun here is finished here.
      if [[ -n $own && (-L $store || ! -e $store) ]]; then link_folder "$own" "$store"; else missing+=("$domain"); fi
    done
    if ((${#missing[@]})); then dump "$1" "$set" "${missing[@]}"; fi
  done
}
# own_store PART SET DOMAIN: the tokens that the part's own recipe made with the very quantiser; nothing where it has none.
own_store() {
  local store wanted
  wanted=$(json_value "$(domain_quantizer "$3")/report.json" quantizer_id)
  for store in "$data_dir/$1"/tokens/*/"$2"; do
    if [[ -f $store/store.json && $(json_value "$store/store.json" quantizer_id) == "$wanted" ]]; then
      printf '%s' "$store"
      return 0
    fi
  done
}
# dump PART SET DOMAINS...: one pass over the audio for all of these teachers.
dump() {
  local part=$1 set=$2 domain path quantizers="" stores="" paths=""
  shift 2
  for domain in "$@"; do
    path=${domain}_teacher_path
    quantizers+=${quantizers:+,}$(domain_quantizer "$domain")
    stores+=${stores:+,}$(field_store "$domain" "$part" "$set")
    paths+=${paths:+,}\"${!path}\"
  done
  "$python" -m spear_lib.bin.dump_tokens --cuts "$(set_manifest "$part-$set")" --quantizer "[$quantizers]" \
    --output_dir "[$stores]" --teacher_path "[$paths]" --num_splits "$num_splits" --split "$split"
}

stage_6() {
  every_part attach
}
attach() {
  local set domain stores quantizers wanted=""
  wanted=$(domains_of "$2")
  for set in $token_sets; do
    stores="" quantizers=""
    for domain in $wanted; do
      stores+=${stores:+,}$(field_store "$domain" "$1" "$set")
      quantizers+=${quantizers:+,}$(domain_quantizer "$domain")
    done
    "$python" -m spear_lib.bin.check_tokens --cuts "$(set_manifest "$1-$set")" --store "[$stores]" \
      --quantizer "[$quantizers]" --output_cuts "$(token_cuts "$1-$set")"
  done
}

stage_7() {
  every_part units_of
}
units_of() {
  if [[ $(part_fact "$3" finetune) == asr ]]; then part_stage "$@" 7; fi
}

# What the stages leave, and what they depend on beside the options.
folders=() data_options="" manifests_made=() cuts_made=() quantizer_options="" quantizers_made=() confs=()
leaves_of() {
  local set
  folders+=(--leaves "$data_dir/$1")
  data_options+=" $1_data"
  for set in $token_sets; do
    manifests_made+=(--leaves "$(set_manifest "$1-$set")")
    cuts_made+=(--leaves "$(token_cuts "$1-$set")")
  done
}
every_part leaves_of
# A linked folder that was made again is another one.
linked_stages=""
stage_of_link() {
  local folder=$1_data
  if [[ -n ${!folder} && -f ${!folder}/.done/stage-1.json ]]; then
    linked_stages+="${linked_stages:+ }$1:$(json_value "${!folder}/.done/stage-1.json" id)"
  fi
}
every_part stage_of_link
for domain in speech audio; do
  given=${domain}_quantizer
  quantizer_options+=" ${domain}_quantizer ${domain}_teacher ${domain}_teacher_path ${domain}_teacher_layer"
  quantizers_made+=(--leaves "$(domain_quantizer "$domain")")
  quantizers_made+=(--identity "$domain=$(domain_quantizer "$domain")/report.json:quantizer_id")
  if [[ -z ${!given} ]]; then confs+=(--config "$(conf_file "quantizer/$domain" "$conf")"); fi
done

run_stage 0 "corpus" stage_0 --options "mini seed linked_stages$data_options" "${folders[@]}"
run_stage 1 "manifests" stage_1 --after 0 "${manifests_made[@]}"
run_stage 2 "noise" stage_2 --after 0
run_stage 3 "teacher embeddings" stage_3 --after 1 --options "teacher_dtype seed$quantizer_options" "${confs[@]}"
run_stage 4 "quantisers" stage_4 --after 3 --options "seed$quantizer_options" "${confs[@]}" "${quantizers_made[@]}"
run_stage 5 "tokens" stage_5 --after "1 4" --options strategy --leaves "$data_dir/tokens" --part "$stage_5_part"
run_stage 6 "attaching tokens" stage_6 --after 5 --options strategy "${cuts_made[@]}"
run_stage 7 "text units" stage_7 --after 1
if ((stop_stage == last_stage)); then log "the data is ready in $data_dir"; fi
