# shellcheck shell=bash
# Data preparation: from a corpus to cuts with teacher tokens.
#
#   0 corpus       link the corpus (or, with --mini true, synthesise a small one in the same folder layout)
#   1 manifests    lhotse cuts of every set, validated
#   2 noise        noise cuts for augmentation
#   3 embeddings   teacher embeddings of the quantiser's training subset
#   4 quantiser    multi-codebook quantiser of the embeddings
#   5 tokens       packed uint8 tokens of every cut
#   6 attach       cuts with their token field, checked
#   7 text units   BPE of the transcripts, and an n-gram language model
#
# Examples:
#   ./prepare.sh --mini true
#   ./prepare.sh --corpus-dir /corpora/LibriSpeech --noise-dir /corpora/musan
#   ./prepare.sh --stage 5 --stop-stage 5 --num-splits 100 --split 7      (one task of a batch array)

# The prepare.sh of a recipe sources this file; the recipe's facts are in its local/corpus.sh. Where facts are not enough,
# its local/stages.sh may define a function of a stage again (stage_2, say): it is read after the functions below and
# before any of them runs. What such a stage depends on beside the options named at the end is listed in stage_facts
# (stages.sh).
# shellcheck disable=SC2154 # "option NAME" below sets the variable NAME
set -euo pipefail
caller_dir=$PWD
cd "$(dirname "$0")"
# shellcheck disable=SC2034 # for --help
help_file=../common/prepare.sh
# shellcheck source=parse_options.sh
source ../common/parse_options.sh
# shellcheck source=stages.sh
source ../common/stages.sh
# shellcheck source=../librispeech/local/corpus.sh
source local/corpus.sh

option stage 0 "First stage to run" int
option stop_stage 7 "Last stage to run" int
option mini false "Synthesise a small corpus instead of using a real one" bool
option corpus_dir "" "Folder of the real corpus, for stage 0" path
option noise_dir "" "Noises for stage 2: MUSAN, or folders noise and rir, whose rooms --mini true speaks in (empty: no noise, or with --mini true a synthesised set)" path
option conf "" "Size of everything: NAME of conf/*/NAME.yaml, here or in ../common (default: mini with --mini true, else base)"
option quantizer_conf "" "How the quantiser is made: NAME of conf/quantizer/NAME.yaml, here or in ../common (default: that of --conf)"
option data_dir data "Where all of this goes" path
option exp_dir exp "Where run.sh writes" path
option method spear "How run.sh pre-trains: spear predicts a teacher's tokens; spidr, dinosr and spidr-z need none (no stages 3 to 6)" "$methods"
option teacher "$default_teacher" "Whose embeddings are quantised: spectral, wavlm, hubert, dasheng, atst_frame, resemblyzer, speech_embedding, or spear (an encoder of ours)"
option teacher_path "" "Weights of the teacher: a folder, a file, hub:OWNER/NAME, or package:NAME (without it a teacher says what it needs)" path
option teacher_layer "" "Layer of the teacher (empty: its own default)"
option teacher_dtype float32 "Number format of the teacher's blocks; stage 5 reports how many tokens bfloat16 changes" "float32|bfloat16"
option labelled_ids "" "Utterances of the labelled subset: a list of ids, or a folder of audio files named by them (empty: drawn, over all speakers)" path
option lm_path "" "ARPA file of the language model of stage 7 (empty: a 3-gram of the labelled transcripts)" path
option clusters 0 "Tokens of k-means with this many clusters, the ablation of paper F.4 (0: multi-codebook tokens)" int
option seed 0 "Every random choice follows from it" int
option num_jobs 2 "Processes for synthesis and manifests" int
option num_splits 1 "Parts in which stage 5 divides each set" int
option split 0 "Only this part of stage 5, 1 to --num-splits (0: all; with --num-splits it checks that all are made, and closes the stage)" int
option shard_hours 0 "Audio of a shard of tokens at most, h: what a killed job of stage 5 makes again (0: 22)"
parse_options "$@"

check_stage_range 0 7
check_split
find_python
choose_conf
corpus_facts "$conf"
if [[ $finetune != asr ]]; then end_before 7 "text units are for speech recognition (finetune=$finetune in local/corpus.sh)"; fi

manifests=$data_dir/manifests
embeddings=$data_dir/embeddings/$teacher
quantizer=$data_dir/quantizers/$teacher
quantizer_config=$(config_file quantizer "${quantizer_conf:-$conf}")
noise_cuts=$(noise_manifest)

stage_0() {
  "$python" local/prepare_corpus.py --mini "$mini" --corpus-dir "$corpus_dir" --noise-dir "$noise_dir" \
    --output "$data_dir/corpus" --seed "$seed" --num-jobs "$num_jobs" "${corpus_options[@]}"
  if declare -F check_corpus >/dev/null; then check_corpus; fi
}

stage_1() {
  "$python" local/prepare_manifests.py --corpus-dir "$data_dir/corpus" --output "$manifests" --num-jobs "$num_jobs" \
    "${manifest_options[@]}"
  local subset which
  for subset in $labelled_subsets; do
    # Drawn from the labelled set; given utterances may come from anywhere in train.
    which=(--cuts "$(set_manifest "$labelled_set")" --hours "${subset#*=}" --seed "$seed")
    if [[ -n $labelled_ids ]]; then which=(--cuts "$(set_manifest train)" --ids "$labelled_ids"); fi
    "$python" -m spear_lib.bin.select_cuts "${which[@]}" --output_cuts "$(set_manifest "${subset%%=*}")"
  done
}

stage_2() {
  "$python" local/prepare_noise.py --corpus-dir "$data_dir/corpus" --output "$noise_cuts"
}

stage_3() {
  local layer=()
  if [[ -n $teacher_layer ]]; then layer=(--teacher_layer "$teacher_layer"); fi
  "$python" -m spear_lib.bin.extract_embeddings --config "$quantizer_config" --cuts "$(set_manifest "$quantizer_set")" \
    --output_dir "$embeddings" --teacher "$teacher" --teacher_path "$teacher_path" "${layer[@]}" \
    --teacher_dtype "$teacher_dtype" --seed "$seed"
}

stage_4() {
  local kind=()
  if ((clusters)); then kind=(--kind kmeans --kmeans.num_clusters "$clusters"); fi
  "$python" -m spear_lib.bin.train_quantizer --config "$quantizer_config" --embeddings "$embeddings" \
    --output_dir "$quantizer" --seed "$seed" "${kind[@]}"
}

stage_5() {
  local set
  local -a cuts=() stores=()
  for set in $token_sets; do
    cuts+=("$(set_manifest "$set")")
    stores+=("$(token_store "$set")")
  done
  check_parts "$(list_of "${cuts[@]}")" "$(list_of "${stores[@]}")"
  for set in $token_sets; do
    "$python" -m spear_lib.bin.dump_tokens --cuts "$(set_manifest "$set")" --quantizer "$quantizer" \
      --output_dir "$(token_store "$set")" --teacher_path "$teacher_path" --num_splits "$num_splits" --split "$split" \
      --shard_hours "$shard_hours"
  done
}

stage_6() {
  local set
  for set in $token_sets; do
    "$python" -m spear_lib.bin.check_tokens --cuts "$(set_manifest "$set")" --store "$(token_store "$set")" \
      --quantizer "$quantizer" --output_cuts "$(token_cuts "$set")"
  done
}

stage_7() {
  "$python" -m spear_lib.bin.train_units --cuts "$(list_of "$(set_manifest "$labelled_set")")" --output_dir "$data_dir/units" \
    --vocab_size "$num_units"
  local source=(--cuts "$(list_of "$(set_manifest "$labelled_set")")")
  if [[ -n $lm_path ]]; then source=(--arpa "$lm_path"); fi
  "$python" -m spear_lib.bin.train_lm "${source[@]}" --test_cuts "$(list_of "$(set_manifest dev)")" --output_dir "$data_dir/lm"
}

# shellcheck source=/dev/null
if [[ -f local/stages.sh ]]; then source local/stages.sh; fi

noise_result=()
if [[ $mini == true || -n $noise_dir ]]; then noise_result=(--leaves "$noise_cuts"); fi

run_stage 0 "corpus" stage_0 --options "mini corpus_dir noise_dir seed corpus_options" --leaves "$data_dir/corpus"
manifests_made=()
for set in train $labelled_set dev $test_sets; do manifests_made+=(--leaves "$(set_manifest "$set")"); done
for subset in $labelled_subsets; do manifests_made+=(--leaves "$(set_manifest "${subset%%=*}")"); done
subset_options=""
if [[ -n $labelled_subsets ]]; then subset_options="labelled_subsets labelled_ids seed"; fi
run_stage 1 "manifests" stage_1 --after 0 --options "manifest_options $subset_options" "${manifests_made[@]}"
run_stage 2 "noise" stage_2 --after 0 "${noise_result[@]}"
if needs_tokens; then
  run_stage 3 "teacher embeddings" stage_3 --after 1 --options "teacher teacher_path teacher_layer teacher_dtype quantizer_set seed" \
    --config "$quantizer_config" --leaves "$embeddings"
  run_stage 4 "quantiser" stage_4 --after 3 --options "clusters seed" --config "$quantizer_config" --leaves "$quantizer" \
    --identity "quantizer=$quantizer/report.json:quantizer_id"
  run_stage 5 "tokens" stage_5 --after "1 4" --leaves "$data_dir/tokens/$teacher" --part "$part"
  cuts_made=()
  for set in $token_sets; do cuts_made+=(--leaves "$(token_cuts "$set")"); done
  run_stage 6 "attaching tokens" stage_6 --after 5 "${cuts_made[@]}"
elif ((stage <= 6 && stop_stage >= 3)); then
  log "stages 3 to 6 are skipped: --method $method needs no tokens of a teacher"
fi
run_stage 7 "text units" stage_7 --after 1 --options "num_units lm_path" --leaves "$data_dir/units/bpe.model" \
  --leaves "$data_dir/lm/lm.npz"
if ((stop_stage == last_stage)); then log "the data is ready in $data_dir"; fi
