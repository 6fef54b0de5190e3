# shellcheck shell=bash
# Training and evaluation, on what prepare.sh made.
#
#   10 pre-train   the encoder predicts the teacher's tokens from masked input; with --method spidr, without a teacher, how
#                  a slow copy of itself clusters the audio
#   11 average     the encoder of the averaged model, as a folder for load_encoder
#   12 fine-tune   on the labelled set, with the encoder and (for comparison) from scratch: speech recognition, or
#                  audio tagging in a recipe of sounds
#   13 evaluate    word error rates (mean average precisions) of dev and the test sets; probes of the frozen features
#   14 report      report.md, report.html, report.json
#   15 benchmarks  the tasks of conf/benchmarks on the frozen encoder, log-mels and random weights; only where it is asked for
#                  (--stop-stage 15)
#
# Examples:
#   ./run.sh --mini true
#   ./run.sh --nproc 8                                     (8 GPUs of this machine)
#   ./run.sh --method spidr --nproc 8                      (self-distillation; needs stages 0 to 2 alone)
#   ./run.sh --stage 12 --encoder /models/spear-base.pt    (fine-tune another encoder, of speech or of sounds)
#   ./run.sh --stage 15 --stop-stage 15 --mini true --benchmark-data /corpora     (ESC-10, TIMIT, AN4, AMI, ... in there)

# The run.sh of a recipe sources this file; the recipe's facts are in its local/corpus.sh. Where facts are not enough,
# its local/stages.sh may define a function of a stage again (stage_12, say): it is read after the functions below and
# before any of them runs. What such a stage depends on beside the options named at the end is listed in stage_facts
# (stages.sh).
# shellcheck disable=SC2154 # "option NAME" below sets the variable NAME
set -euo pipefail
caller_dir=$PWD
cd "$(dirname "$0")"
# shellcheck disable=SC2034 # for --help
help_file=../common/run.sh
# shellcheck source=parse_options.sh
source ../common/parse_options.sh
# shellcheck source=stages.sh
source ../common/stages.sh
# shellcheck source=../librispeech/local/corpus.sh
source local/corpus.sh

option stage 10 "First stage to run" int
option stop_stage 14 "Last stage to run" int
option mini false "The small corpus: sets the defaults of --conf and --compare-scratch" bool
option conf "" "Size of everything: NAME of conf/*/NAME.yaml, here or in ../common (default: mini with --mini true, else base)"
option data_dir data "What prepare.sh filled" path
option exp_dir exp "Where all of this goes" path
option method spear "Pre-training: spear (a teacher's tokens), spidr or dinosr (self-distillation), spidr-z (that, on the Zipformer), spear-spidr (both)" "$methods"
option teacher "$default_teacher" "Whose tokens are predicted"
option encoder "" "Fine-tune this encoder (folder or checkpoint) instead of the one of stage 11" path
option labelled_set "$labelled_set" "The set that fine-tuning reads"
option pretrain_conf "" "How the encoder is pre-trained: NAME of conf/pretrain/NAME.yaml, here or in ../common (default: that of --conf)"
option finetune_conf "" "How it is fine-tuned: NAME of conf/finetune/NAME.yaml, here or in ../common (default: that of --conf)"
option decode_lm false "Recognise with the language model of stage 7 as well, its weights chosen on dev (slow)" bool
option compare_scratch "" "Fine-tune from scratch as well, true or false (default: that of --mini)"
option benchmark_data "" "Stage 15: the folder of the corpora that conf/benchmarks names; tasks whose data is not there are left out" path
option seed 0 "Every random choice follows from it" int
option nproc 1 "Processes on this machine, one per GPU" int
option num_nodes 1 "Machines, on a shared folder; start the same command on each, with its --node-rank (under Slurm: tools/slurm)" int
option node_rank 0 "Number of this machine, from 0; the others train with machine 0, which does the rest alone" int
option rendezvous "" "HOST:PORT of machine 0 that all can reach, with --num-nodes"
option local_dir "" "A disk of each machine for copies of token shards and Shar archives, removed afterwards (default: SLURM_TMPDIR, where Slurm sets it)" path
parse_options "$@"

check_stage_range 10 15
check_machines
find_python
choose_conf
finetune_conf=${finetune_conf:-$conf}
compare_scratch=${compare_scratch:-$mini}
corpus_facts "$conf"
# What stages 12 and 13 call, the labels they read, the configuration and the folder of the evaluation.
labels=() evaluation_labels=() labels_stage="" finetune_command="" evaluation_command="" evaluation="" searches=false
case $finetune in
  asr)
    labels=(--units "$data_dir/units")
    evaluation_labels=("${labels[@]}")
    labels_stage=7 finetune_command=finetune_asr evaluation_command=decode evaluation=decode searches=true
    ;;
  tagging)
    labels=(--classes "$class_list")
    finetune_command=finetune_tagging evaluation_command=evaluate_tagging evaluation=evaluation
    ;;
  none) if ((stage < 15)); then end_before 12 "it has no labels to fine-tune on (finetune=none in local/corpus.sh); the encoder is $exp_dir/pretrain/encoder"; fi ;;
  *) die "finetune=$finetune in local/corpus.sh: use asr, tagging or none" ;;
esac
if [[ $mini == true ]]; then report_title="$report_title, synthesised mini corpus"; fi

noise_cuts=$(noise_manifest)
# Noise is optional: stage 2 leaves no cuts where it was given none.
noise=()
if [[ -f $noise_cuts ]]; then noise=(--data.noise_cuts "$(list_of "$noise_cuts")"); fi
local_copies=()
if [[ -n $local_dir ]]; then local_copies=(--data.local_dir "$local_dir"); fi
# Beside the encoder that is probed.
probe_dir=$exp_dir/pretrain/probe
if [[ -n $encoder ]]; then probe_dir=$exp_dir/finetune_pretrained/probe; fi
# Pre-training with SPEAR's objective has no word in the markers: they are those of before there was another.
pretrain_kind=pretrain pretrain_options="teacher seed" average_method=range
if [[ $method != spear ]]; then
  pretrain_kind=$method pretrain_options="method teacher seed"
  if ! needs_tokens; then pretrain_options="method seed"; fi
fi
# SpidR and DinoSR are used with their last weights (reference).
if [[ $method == spidr || $method == dinosr ]]; then average_method=none; fi
pretrain_config=$(config_file "$pretrain_kind" "${pretrain_conf:-$conf}")
finetune_config=$(config_file finetune "$finetune_conf")
scratch_config=$(config_file finetune/scratch "$finetune_conf") # there need be none
evaluation_config=$(config_file "$evaluation" "$conf")
probe_config=$(config_file probe "$conf")
lm_config=$(config_file decode/lm "$conf")
benchmarks_config=$(config_file benchmarks "$conf")
evaluation_made=(--config "$evaluation_config")
if [[ $probe == true ]]; then
  evaluation_made+=(--config "$probe_config" --leaves "$probe_dir/probes.json")
fi
if [[ $decode_lm == true ]]; then
  if [[ $searches != true ]]; then die "--decode-lm is for speech recognition (finetune=$finetune in local/corpus.sh)"; fi
  evaluation_made+=(--config "$lm_config")
fi
encoder_of_stage_12=${encoder:-$exp_dir/pretrain/encoder}
arms="pretrained"
arms_made=(--leaves "$exp_dir/finetune_pretrained")
finetune_configs=(--config "$finetune_config")
if [[ $compare_scratch == true ]]; then
  arms="pretrained scratch"
  arms_made+=(--leaves "$exp_dir/finetune_scratch")
  if [[ -f $scratch_config ]]; then finetune_configs+=(--config "$scratch_config"); fi
fi

stage_10() {
  local field quantizer_id command=pretrain
  if [[ $method != spear ]]; then command=self_distill; fi
  if ! needs_tokens; then
    launch spear_lib.bin.self_distill --config "$pretrain_config" --experiment_dir "$exp_dir/pretrain" \
      --data.train_cuts "$(list_of "$(set_manifest train)")" --valid_cuts "$(list_of "$(set_manifest dev)")" \
      --training.seed "$seed" "${local_copies[@]}"
    return
  fi
  field=$(json_value "$(token_store train)/store.json" field)
  quantizer_id=$(json_value "$(token_store train)/store.json" quantizer_id)
  launch "spear_lib.bin.$command" --config "$pretrain_config" --experiment_dir "$exp_dir/pretrain" \
    --data.train_cuts "$(list_of "$(token_cuts train)")" --valid_cuts "$(list_of "$(token_cuts dev)")" "${noise[@]}" \
    --data.token_fields "$(list_of "$field")" --data.quantizer_ids "$(list_of "$quantizer_id")" \
    --training.seed "$seed" "${local_copies[@]}"
}

stage_11() {
  "$python" -m spear_lib.bin.average_checkpoints --experiment_dir "$exp_dir/pretrain" \
    --output "$exp_dir/pretrain/encoder" --method "$average_method"
}

stage_12() {
  local arm
  local -a start
  for arm in $arms; do
    # The configuration may name other labels: characters, for CTC.
    start=("${labels[@]}" --config "$finetune_config" --encoder "$encoder_of_stage_12")
    if [[ $arm == scratch ]]; then
      # Random weights want another learning rate and no freezing, or the comparison would be unfair.
      if [[ -f $scratch_config ]]; then start+=(--config "$scratch_config"); fi
      start+=(--scratch true)
    fi
    launch "spear_lib.bin.$finetune_command" "${start[@]}" --experiment_dir "$exp_dir/finetune_$arm" \
      --data.train_cuts "$(list_of "$(set_manifest "$labelled_set")")" "${noise[@]}" --dev_cuts "$(list_of "$(set_manifest dev)")" \
      --training.seed "$seed" "${local_copies[@]}"
  done
}

stage_13() {
  local arm name
  local -a cuts=()
  for name in dev $test_sets; do cuts+=("$(set_manifest "$name")"); done
  for arm in $arms; do
    "$python" -m "spear_lib.bin.$evaluation_command" --config "$evaluation_config" \
      --experiment_dir "$exp_dir/finetune_$arm" "${evaluation_labels[@]}" --cuts "$(list_of "${cuts[@]}")"
    if [[ $decode_lm == true ]]; then
      "$python" -m spear_lib.bin.decode --config "$lm_config" --search.lm "$data_dir/lm/lm.npz" \
        --experiment_dir "$exp_dir/finetune_$arm" "${evaluation_labels[@]}" --cuts "$(list_of "${cuts[@]}")" \
        --output_dir "$exp_dir/finetune_$arm/decode_lm"
    fi
  done
  if [[ $probe != true ]]; then return 0; fi
  "$python" -m spear_lib.bin.probe --config "$probe_config" --encoder "$encoder_of_stage_12" \
    --train_cuts "$(list_of "$(set_manifest train)")" --dev_cuts "$(list_of "$(set_manifest dev)")" --test_cuts "$(list_of "${cuts[@]:1}")" \
    --output_dir "$probe_dir" --seed "$seed"
}

stage_14() {
  local arm
  local -a folders=()
  if [[ -z $encoder ]]; then folders=("$exp_dir/pretrain"); fi
  for arm in $arms; do folders+=("$exp_dir/finetune_$arm"); done
  "$python" -m spear_lib.bin.report --data_dir "$data_dir" --experiment_dirs "$(list_of "${folders[@]}")" \
    --output_dir "$exp_dir/report" --exp_dir "$exp_dir" --title "$report_title"
}

stage_15() {
  "$python" -m spear_lib.bin.benchmark --suite "$benchmarks_config" --encoders "$(list_of "$encoder_of_stage_12")" \
    --corpora_dir "$benchmark_data" --data_dir "$data_dir" --output_dir "$exp_dir/benchmarks" --seed "$seed" \
    --title "$report_title: benchmarks"
}

# shellcheck source=/dev/null
if [[ -f local/stages.sh ]]; then source local/stages.sh; fi

for arm in $arms; do
  evaluation_made+=(--leaves "$exp_dir/finetune_$arm/$evaluation")
  if [[ $decode_lm == true ]]; then evaluation_made+=(--leaves "$exp_dir/finetune_$arm/decode_lm"); fi
done

# An encoder that was named replaces stages 10 and 11.
encoder_stage=11
if [[ -n $encoder ]]; then encoder_stage=""; fi

pretrain_after="6 2"
if ! needs_tokens; then pretrain_after=1; fi
run_stage 10 "pre-training" stage_10 --machines all --after "$pretrain_after" --options "$pretrain_options" --config "$pretrain_config" \
  --leaves "$exp_dir/pretrain"
run_stage 11 "averaging" stage_11 --after 10 --leaves "$exp_dir/pretrain/encoder"
run_stage 12 "fine-tuning" stage_12 --machines all --after "$encoder_stage $labels_stage 1 2" \
  --options "encoder labelled_set compare_scratch seed" "${finetune_configs[@]}" "${arms_made[@]}"
run_stage 13 "evaluation" stage_13 --after 12 --options "test_sets probe decode_lm seed" "${evaluation_made[@]}"
run_stage 14 "report" stage_14 --after 13 --leaves "$exp_dir/report/report.html"
run_stage 15 "benchmarks" stage_15 --after "$encoder_stage" --options "encoder benchmark_data seed" --config "$benchmarks_config" \
  --leaves "$exp_dir/benchmarks/report.html"
