# shellcheck shell=bash
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
cd "$(dirname "$0")"
# shellcheck disable=SC2034 # for --help
help_file=../common/parts/prepare.sh
# shellcheck source=../parse_options.sh
source ../common/parse_options.sh
# shellcheck source=../stages.sh
source ../common/stages.sh
# shellcheck source=../../mixed/local/corpus.sh
source local/corpus.sh
# shellcheck source=parts.sh
source ../common/parts/parts.sh

option stage 0 "First stage to run" int
option stop_stage 7 "Last stage to run" int
option mini false "Let the other recipes synthesise small corpora instead of linking finished ones" bool
option conf "" "Size of everything: NAME of conf/*/NAME.yaml, here or in ../common (default: mini with --mini true, else base)"
option quantizer_conf "" "How quantisers are made: NAME of conf/quantizer (default: that of --conf)"
option data_dir data "Where all of this goes" path
option exp_dir exp "Where run.sh writes" path
add_data_option() {
  local what="Data folder of the part $part, filled by ../$recipe/prepare.sh"
  if [[ $recipe == - ]]; then what="Folder of the corpus $part, as published"; fi
  option "${part}_data" "" "$what" path
}
for_parts add_data_option
option corpus_dir "" "Folder of every part without a recipe that has no folder of its own (--PART-data)" path
option group small "Which parts of local/corpus.sh: small, or where there are more, a data group of the paper's Table 2" "$groups"
option noise_dir "" "Folder of noises, as local/prepare_noise.py reads them: MUSAN (empty: those of the first part that has some)" path
for teacher in $domains; do
  option "${teacher}_quantizer" "" "Finished quantiser of the $teacher teacher, to be linked (empty: train one)" path
  default=default_${teacher}_teacher
  option "${teacher}_teacher" "${!default}" "Teacher of $teacher, where its quantiser is trained here"
  option "${teacher}_teacher_path" "" "Weights of that teacher: a folder, a file, or hub:OWNER/NAME" path
  option "${teacher}_teacher_layer" "" "Layer of that teacher (empty: its own default)"
done
option teacher_dtype float32 "Number format of the teachers' blocks" "float32|bfloat16"
option strategy asymmetrical "Which teachers a cut is to be trained on, hence which tokens it needs" "asymmetrical|joint|disjoint"
option seed 0 "Every random choice follows from it" int
option num_jobs 2 "Processes for synthesis and manifests" int
option num_splits 1 "Parts in which stage 5 divides each set" int
option split 0 "Only this part of stage 5, 1 to --num-splits (0: all; with --num-splits it checks that all are made, and closes the stage)" int
option shard_hours 0 "Audio of a shard of tokens at most, h: what a killed job of stage 5 makes again (0: 22)"
parse_options "$@"

check_stage_range 0 7
check_split
if [[ $mini == true && $group != small ]]; then usage_error "--mini true synthesises the parts of --group small, not $group"; fi
choose_group
stage_5_part=$part
refuse_data_of_mini() {
  if [[ $mini == true ]] && option_given "${part}_data"; then
    usage_error "--mini true synthesises the part $part, --$part-data names a finished one: give one of them"
  fi
}
for_parts refuse_data_of_mini
refuse_mini_of_recordings() {
  if [[ $mini == true && $recipe == - ]]; then
    usage_error "--mini true: no recipe synthesises the part $part, it is a corpus of recordings: give --conf mini and --corpus-dir DIR"
  fi
}
for_parts refuse_mini_of_recordings
take_corpus_dir() {
  local name=${part}_data
  if [[ $recipe == - && -z ${!name} ]]; then printf -v "$name" '%s' "$corpus_dir"; fi
}
for_parts take_corpus_dir
# A quantiser is trained on the part with its domain's name, or given.
has_part() { for_parts print_part "$1"; }
print_part() { if [[ $part == "$1" ]]; then printf yes; fi; }
for teacher in $domains; do
  if [[ -z $(option_of "$teacher" quantizer) && -z $(has_part "$teacher") ]]; then
    usage_error "--group $group has no part $teacher to train a quantiser on: give --$teacher-quantizer DIR (stages 3 and 4 of egs/librispeech or egs/audioset make it)"
  fi
done
find_python
choose_conf
part_facts "$conf"

# own_stage STAGE: a stage of this part's own recipe: run where the part is synthesised, else checked.
own_stage() {
  local marker=$data_dir/$part/.done/stage-$1.json
  if [[ $recipe == - ]]; then
    if (($1 == 1)); then
      "$python" local/prepare_part.py --corpus "$part" --corpus-dir "$data_dir/$part/corpus" \
        --output "$data_dir/$part/manifests" --num-jobs "$num_jobs" "${part_options[@]}"
    fi
    return 0
  fi
  if [[ $mini == true ]]; then
    "../$recipe/prepare.sh" --mini true --conf "$(conf_of_parts "$conf")" --data-dir "$data_dir/$part" --seed "$seed" \
      --num-jobs "$num_jobs" --stage "$1" --stop-stage "$1"
  elif [[ ! -f $marker ]]; then
    die "the part $part has no finished stage $1 (no $marker): run ../$recipe/prepare.sh --stage $1 --stop-stage $1 on its data folder"
  fi
}

# take_set SET: its cuts of this part, with paths that hold here.
take_set() {
  "$python" ../common/parts/take_cuts.py --cuts "$(own_manifest "$1")" --output "$(set_manifest "$part-$1")"
}

stage_0() { for_parts take_corpus; }
take_corpus() {
  if [[ $mini == true ]]; then
    own_stage 0
  else
    "$python" ../common/parts/link_part.py --part "$part" --recipe "$recipe" --folder "$(option_of "$part" data)" --output "$data_dir/$part"
  fi
}

stage_1() { for_parts take_manifests; }
take_manifests() {
  local set
  own_stage 1
  for set in $token_sets; do take_set "$set"; done
  cp "$data_dir/$part"/manifests/*_statistics.json "$data_dir/manifests/"
}

stage_2() {
  rm -f "$(noise_manifest)"
  if [[ -n $noise_dir ]]; then "$python" local/prepare_noise.py --noise-dir "$noise_dir" --output "$(noise_manifest)"; fi
  for_parts take_noise
}
# The first part that has noise gives it to all.
take_noise() {
  own_stage 2
  if [[ ! -f $(noise_manifest) && -f $data_dir/$part/manifests/noise_cuts.jsonl.gz ]]; then
    "$python" ../common/parts/take_cuts.py --cuts "$data_dir/$part/manifests/noise_cuts.jsonl.gz" --output "$(noise_manifest)"
  fi
}

# quantizer_config TEACHER: conf/quantizer/TEACHER, or where it has no file that of the recipe of the teacher's domain.
quantizer_config() {
  local chosen=${quantizer_conf:-$conf}
  local own=conf/quantizer/$1/$chosen.yaml
  if [[ -f $own ]]; then printf '%s' "$own"; else config_file quantizer "$(conf_of_parts "$chosen")" "../$(recipe_of_part "$1")"; fi
}
recipe_of_part() { for_parts print_recipe "$1"; }
print_recipe() { if [[ $part == "$1" ]]; then printf '%s' "$recipe"; fi; }

stage_3() { for_parts embed; }
# A domain's teacher embeds the part with the domain's name: the set on which the part's own recipe trains quantisers.
embed() {
  local set layer
  if [[ $part != "$domain" || -n $(option_of "$domain" quantizer) ]]; then return 0; fi
  set=$(fact_of "$recipe" quantizer_set)
  if [[ " $token_sets " != *" $set "* ]]; then take_set "$set"; fi
  layer=$(option_of "$domain" teacher_layer)
  "$python" -m spear_lib.bin.extract_embeddings --config "$(quantizer_config "$domain")" \
    --cuts "$(set_manifest "$part-$set")" --output_dir "$data_dir/embeddings/$domain" \
    --teacher "$(option_of "$domain" teacher)" --teacher_path "$(option_of "$domain" teacher_path)" \
    ${layer:+--teacher_layer "$layer"} --teacher_dtype "$teacher_dtype" --seed "$seed"
}

stage_4() {
  local teacher given
  mkdir -p "$data_dir/quantizers"
  for teacher in $domains; do
    given=$(option_of "$teacher" quantizer)
    if [[ -n $given ]]; then
      link_folder "$given" "$(quantizer_of "$teacher")"
    else
      "$python" -m spear_lib.bin.train_quantizer --config "$(quantizer_config "$teacher")" \
        --embeddings "$data_dir/embeddings/$teacher" --output_dir "$(quantizer_of "$teacher")" --seed "$seed"
    fi
  done
  if [[ $strategy != single ]]; then
    "$python" ../common/parts/check_teachers.py --speech "$(quantizer_of speech)" --audio "$(quantizer_of audio)"
  fi
}
link_folder() {
  if [[ ! -d $1 ]]; then die "$1 is not a folder"; fi
  ln -sfn "$(realpath "$1")" "$2"
}

# The teachers whose tokens the strategy wants on cuts of a domain.
declare -A wanted_teachers=()
find_wanted_teachers() {
  local each
  for each in $domains; do
    wanted_teachers[$each]=$each
    if [[ $strategy != single ]]; then
      wanted_teachers[$each]=$("$python" ../common/parts/teachers_of.py --strategy "$strategy" --domain "$each")
    fi
  done
}

stage_5() {
  find_wanted_teachers
  for_sets make_tokens
}
make_tokens() {
  local teacher store own
  local -a missing=()
  for teacher in ${wanted_teachers[$domain]}; do
    mkdir -p "$data_dir/tokens/$teacher"
    store=$(store_of "$teacher" "$part" "$set")
    own=$(own_store "$teacher")
    # A store that was begun here is finished here.
    if [[ -n $own && (-L $store || ! -e $store) ]]; then link_folder "$own" "$store"; else missing+=("$teacher"); fi
  done
  if ((${#missing[@]})); then dump_tokens "${missing[@]}"; fi
}
# own_store TEACHER: the tokens that this part's recipe made of the set with the very quantiser; nothing where it has none.
own_store() {
  local store wanted
  wanted=$(json_value "$(quantizer_of "$1")/report.json" quantizer_id)
  for store in "$data_dir/$part"/tokens/*/"$set"; do
    if [[ -f $store/store.json && $(json_value "$store/store.json" quantizer_id) == "$wanted" ]]; then
      printf '%s' "$store"
      return 0
    fi
  done
}
# dump_tokens TEACHERS...: one pass over the audio of this set for all of them.
dump_tokens() {
  local teacher
  local -a quantizers=() stores=() paths=()
  for teacher in "$@"; do
    quantizers+=("$(quantizer_of "$teacher")")
    stores+=("$(store_of "$teacher" "$part" "$set")")
    paths+=("$(option_of "$teacher" teacher_path)")
  done
  check_parts "$(set_manifest "$part-$set")" "$(list_of "${stores[@]}")"
  "$python" -m spear_lib.bin.dump_tokens --cuts "$(set_manifest "$part-$set")" --quantizer "$(list_of "${quantizers[@]}")" \
    --output_dir "$(list_of "${stores[@]}")" --teacher_path "$(list_of "${paths[@]}")" --num_splits "$num_splits" --split "$split" \
    --shard_hours "$shard_hours"
}

stage_6() {
  find_wanted_teachers
  for_sets attach_tokens
}
attach_tokens() {
  local teacher
  local -a stores=() quantizers=()
  for teacher in ${wanted_teachers[$domain]}; do
    stores+=("$(store_of "$teacher" "$part" "$set")")
    quantizers+=("$(quantizer_of "$teacher")")
  done
  "$python" -m spear_lib.bin.check_tokens --cuts "$(set_manifest "$part-$set")" --store "$(list_of "${stores[@]}")" \
    --quantizer "$(list_of "${quantizers[@]}")" --output_cuts "$(token_cuts "$part-$set")"
}

stage_7() { for_parts make_units; }
make_units() {
  if [[ $(fact_of "$recipe" finetune) == asr ]]; then own_stage 7; fi
}

# shellcheck source=/dev/null
if [[ -f local/stages.sh ]]; then source local/stages.sh; fi

# What the stages leave, and what they depend on beside the options.
folders=() manifests_made=() cuts_made=() quantizers_made=() configs=()
data_options="" quantizer_options="" linked_stages=""
note_part() {
  local folder marker
  folders+=(--leaves "$data_dir/$part")
  data_options+=" ${part}_data"
  # A linked folder that was made again is another one.
  folder=$(option_of "$part" data)
  marker=$folder/.done/stage-1.json
  if [[ -n $folder && -f $marker ]]; then linked_stages+="${linked_stages:+ }$part:$(json_value "$marker" id)"; fi
}
note_set() {
  manifests_made+=(--leaves "$(set_manifest "$part-$set")")
  cuts_made+=(--leaves "$(token_cuts "$part-$set")")
}
for_parts note_part
for_sets note_set
for teacher in $domains; do
  quantizer_options+=" ${teacher}_quantizer ${teacher}_teacher ${teacher}_teacher_path ${teacher}_teacher_layer"
  quantizers_made+=(--leaves "$(quantizer_of "$teacher")")
  quantizers_made+=(--identity "$teacher=$(quantizer_of "$teacher")/report.json:quantizer_id")
  if [[ -z $(option_of "$teacher" quantizer) ]]; then configs+=(--config "$(quantizer_config "$teacher")"); fi
done

run_stage 0 "corpus" stage_0 --options "mini group seed linked_stages$data_options" "${folders[@]}"
run_stage 1 "manifests" stage_1 --after 0 "${manifests_made[@]}"
run_stage 2 "noise" stage_2 --after 0 --options noise_dir
run_stage 3 "teacher embeddings" stage_3 --after 1 --options "teacher_dtype seed$quantizer_options" "${configs[@]}"
run_stage 4 "quantisers" stage_4 --after 3 --options "seed$quantizer_options" "${configs[@]}" "${quantizers_made[@]}"
run_stage 5 "tokens" stage_5 --after "1 4" --options strategy --leaves "$data_dir/tokens" --part "$stage_5_part"
run_stage 6 "attaching tokens" stage_6 --after 5 --options strategy "${cuts_made[@]}"
run_stage 7 "text units" stage_7 --after 1
if ((stop_stage == last_stage)); then log "the data is ready in $data_dir"; fi
