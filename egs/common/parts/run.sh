# shellcheck shell=bash
# Training and evaluation, on what prepare.sh made.
#
#   10 pre-train   one encoder predicts the tokens of both teachers from masked speech and sounds
#   11 average     the encoder of the averaged model, as a folder for load_encoder
#   12 fine-tune   by the run.sh of the other recipes, from this encoder, each on its own part
#   13 evaluate    likewise
#   14 report      report.md, report.html, report.json
#   15 benchmarks  the tasks of conf/benchmarks on the frozen encoder; only where it is asked for (--stop-stage 15)
#
# Examples:
#   ./run.sh --mini true
#   ./run.sh --nproc 8                                     (8 GPUs of this machine)
#   ./run.sh --strategy joint --exp-dir exp/joint          (after prepare.sh --strategy joint)

# shellcheck disable=SC2154 # "option NAME" below sets the variable NAME
set -euo pipefail
caller_dir=$PWD
cd "$(dirname "$0")"
# shellcheck disable=SC2034 # for --help
help_file=../common/parts/run.sh
# shellcheck source=../parse_options.sh
source ../common/parse_options.sh
# shellcheck source=../stages.sh
source ../common/stages.sh
# shellcheck source=../../mixed/local/corpus.sh
source local/corpus.sh
# shellcheck source=parts.sh
source ../common/parts/parts.sh

option stage 10 "First stage to run" int
option stop_stage 14 "Last stage to run" int
option mini false "The small corpora: sets the default of --conf" bool
option conf "" "Size of everything: NAME of conf/*/NAME.yaml, here or in ../common (default: mini with --mini true, else base)"
option pretrain_conf "" "How the encoder is pre-trained: NAME of conf/pretrain/NAME.yaml (default: that of --conf)"
option group small "Which parts, as for prepare.sh" "$groups"
option data_dir data "What prepare.sh filled" path
option exp_dir exp "Where all of this goes" path
option strategy asymmetrical "Which teachers a cut is trained on; prepare.sh made the tokens for it" "asymmetrical|joint|disjoint"
option compare_scratch false "Fine-tune from scratch as well" bool
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
choose_group
part_facts "$conf"
# Models of one domain are those of its own recipe.
declare -A recipe_of_domain=([speech]=../librispeech [audio]=../audioset ["speech audio"]="")
pretrain_config=$(config_file pretrain "${pretrain_conf:-$conf}" "${recipe_of_domain[$domains]}")
if [[ $mini == true ]]; then report_title="$report_title, synthesised mini corpora"; fi

# Noise is optional: stage 2 leaves no cuts where the parts have none.
noise=()
if [[ -f $(noise_manifest) ]]; then noise=(--data.noise_cuts "$(list_of "$(noise_manifest)")"); fi
local_copies=()
if [[ -n $local_dir ]]; then local_copies=(--data.local_dir "$local_dir"); fi

stage_10() {
  local teacher store
  local -a fields=() quantizers=() train=() valid=() repeats=()
  for teacher in $domains; do
    store=$(store_of "$teacher" "$(first_part_of "$teacher")" train)/store.json
    fields+=("$(json_value "$store" field)")
    quantizers+=("$(json_value "$store" quantizer_id)")
  done
  for_parts add_cuts
  launch spear_lib.bin.pretrain --config "$pretrain_config" --experiment_dir "$exp_dir/pretrain" \
    --data.train_cuts "$(list_of "${train[@]}")" --valid_cuts "$(list_of "${valid[@]}")" "${noise[@]}" \
    --data.token_fields "$(list_of "${fields[@]}")" --data.quantizer_ids "$(list_of "${quantizers[@]}")" \
    --data.train_repeats "[$(IFS=,; printf "%s" "${repeats[*]}")]" --objective.strategy "$strategy" \
    --training.seed "$seed" "${local_copies[@]}"
}
# One manifest of each part.
add_cuts() {
  train+=("$(token_cuts "$part-train")")
  valid+=("$(token_cuts "$part-dev")")
  repeats+=("$(repeats_of "$part" "$conf")")
}
# first_part_of DOMAIN: a part whose cuts have the tokens of the domain's teacher.
first_part_of() { for_parts print_part_of "$1" | head -n 1; }
print_part_of() { if [[ $domain == "$1" ]]; then printf '%s\n' "$part"; fi; }

stage_11() {
  "$python" -m spear_lib.bin.average_checkpoints --experiment_dir "$exp_dir/pretrain" \
    --output "$exp_dir/pretrain/encoder"
}

stage_12() { for_parts own_stage 12; }

stage_13() { for_parts own_stage 13; }

# own_stage STAGE: a stage of this part's own recipe, with our encoder; nothing where it ends before.
own_stage() {
  if [[ $(fact_of "$recipe" finetune) == none ]]; then
    log "the part $part has no stage $1: ../$recipe ends with the encoder (finetune=none in its local/corpus.sh)"
    return 0
  fi
  "../$recipe/run.sh" --conf "$(conf_of_parts "$conf")" --data-dir "$data_dir/$part" --exp-dir "$exp_dir/$part" \
    --encoder "$exp_dir/pretrain/encoder" --compare-scratch "$compare_scratch" --seed "$seed" --nproc "$nproc" \
    --num-nodes "$num_nodes" --node-rank "$node_rank" --rendezvous "$rendezvous" --local-dir "$local_dir" \
    --stage "$1" --stop-stage "$1"
}

stage_14() {
  local folder
  local -a folders=("$exp_dir/pretrain")
  for folder in "$exp_dir"/*/finetune_*; do
    if [[ -d $folder ]]; then folders+=("$folder"); fi
  done
  "$python" -m spear_lib.bin.report --data_dir "$data_dir" --experiment_dirs "$(list_of "${folders[@]}")" \
    --output_dir "$exp_dir/report" --exp_dir "$exp_dir" --title "$report_title"
}

benchmarks_config=$(config_file benchmarks "$conf")
stage_15() {
  "$python" -m spear_lib.bin.benchmark --suite "$benchmarks_config" --encoders "$(list_of "$exp_dir/pretrain/encoder")" \
    --corpora_dir "$benchmark_data" --data_dir "$data_dir" --output_dir "$exp_dir/benchmarks" --seed "$seed" \
    --title "$report_title: benchmarks"
}

# shellcheck source=/dev/null
if [[ -f local/stages.sh ]]; then source local/stages.sh; fi

run_stage 10 "pre-training" stage_10 --machines all --after "6 2" --options "group strategy seed" --config "$pretrain_config" \
  --leaves "$exp_dir/pretrain"
run_stage 11 "averaging" stage_11 --after 10 --leaves "$exp_dir/pretrain/encoder"
run_stage 12 "fine-tuning" stage_12 --machines all --after "11 7" --options "compare_scratch seed"
run_stage 13 "evaluation" stage_13 --after 12 --options seed
run_stage 14 "report" stage_14 --after 13 --leaves "$exp_dir/report/report.html"
run_stage 15 "benchmarks" stage_15 --after 11 --options "benchmark_data seed" --config "$benchmarks_config" \
  --leaves "$exp_dir/benchmarks/report.html"
