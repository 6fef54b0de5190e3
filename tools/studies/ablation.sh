#!/usr/bin/env bash
# The paper's ablations at mini scale, in one command: short pre-trainings of one recipe with one thing changed, and
# linear probes of what was learnt. Some runs go side by side, one thread each; what is finished is not done again.
#
#   tools/studies/ablation.sh             everything, then the table (about an hour on two cores with the default seeds)
#   tools/studies/ablation.sh speech      alpha, mixing, tokens, number of codebooks, encoder: on egs/librispeech's mini corpus
#   tools/studies/ablation.sh strategies  joint, disjoint, asymmetrical and the two single models: on egs/mixed's mini corpus
#   tools/studies/ablation.sh table       the results so far as a table
#
# From the environment: SEEDS="0 1 2"; STEPS=500, of 16 s each; RUNS, the rows of the table to make (default: all);
# JOBS=2, runs side by side; CONF=mini (tiny: to try the script); EXP_DIR (default: egs/mixed/exp/ablation), SPEECH_DATA
# (default: the data folder of egs/librispeech) and MIXED_DATA (default: a folder of its own, because joint needs more
# tokens than egs/mixed makes by itself). What is missing there is made.
set -euo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
exp=${EXP_DIR:-$repository/egs/mixed/exp/ablation}
speech_data=${SPEECH_DATA:-$repository/egs/librispeech/data}
mixed_data=${MIXED_DATA:-$exp/mixed/data}
seeds=${SEEDS:-0 1 2}
steps=${STEPS:-500}
conf=${CONF:-mini}
python=${PYTHON:-$repository/.venv/bin/python}
export PYTHON=$python OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export PYTHONPATH=$repository${PYTHONPATH:+:$PYTHONPATH}
cd "$repository"
# shellcheck source=side_by_side.sh
source "$repository/tools/studies/side_by_side.sh"

# run_of STEPS: the schedules of conf/pretrain for a run of so many steps.
run_of() {
  printf '%s\n' --training.max_steps "$1" --training.lr_batches $(($1 / 2)) \
    --training.warmup_batches $((($1 + 9) / 10)) --training.save_interval "$1" --training.valid_interval 0 \
    --training.average_period $((($1 + 29) / 30)) --training.keep_checkpoints 1 --probe.every 0
}

# wanted: of the lines "NAME SEED ..." of standard input those whose rows are asked for.
wanted() {
  local line
  while read -r line; do
    if [[ -z ${RUNS:-} || " $RUNS " == *" ${line%% *} "* ]]; then printf '%s\n' "$line"; fi
  done
}

# store_value FILE KEY
store_value() {
  "$python" "$repository/egs/common/json_value.py" "$1" "$2"
}

# Manifests may hold paths relative to the recipe's folder, so everything of a recipe runs there.

# The tokens to compare: multi-codebook ones of 4, 8 and 16 codebooks and k-means ones, of the same embeddings.
token_kinds="mvq4 mvq8 mvq16 kmeans500"

speech_tokens() {
  if [[ -f $exp/speech/train.jsonl.gz ]]; then return; fi
  cd "$repository/egs/librispeech"
  ./prepare.sh --mini true --conf "$conf" --stop-stage 3 --data-dir "$speech_data"
  local kind set folder embeddings=$speech_data/embeddings/spectral
  local quantizers="" stores
  for kind in $token_kinds; do
    folder=$exp/speech/quantizers/$kind
    quantizers+=${quantizers:+,}$folder
    if [[ -f $folder/quantizer.safetensors ]]; then continue; fi
    case $kind in
      kmeans*) "$python" -m spear_lib.bin.train_quantizer --kind kmeans --kmeans.num_clusters "${kind#kmeans}" --kmeans.normalisation half \
        --embeddings "$embeddings" --output_dir "$folder" ;;
      mvq*) "$python" -m spear_lib.bin.train_quantizer --config "../common/conf/quantizer/$conf.yaml" \
        --training.num_codebooks "${kind#mvq}" --embeddings "$embeddings" --output_dir "$folder" ;;
    esac
  done
  for set in dev train; do
    stores=""
    for kind in $token_kinds; do stores+=${stores:+,}$exp/speech/tokens/$kind/$set; done
    local cuts=$speech_data/manifests/librispeech_cuts_$set.jsonl.gz
    "$python" -m spear_lib.bin.dump_tokens --cuts "$cuts" --quantizer "[$quantizers]" --output_dir "[$stores]"
    "$python" -m spear_lib.bin.check_tokens --cuts "$cuts" --store "[$stores]" --quantizer "[$quantizers]" \
      --output_cuts "$exp/speech/$set.jsonl.gz"
  done
}

# pretrain_and_probe FOLDER SEED PROBE_SETS... -- OPTIONS...: one row of the table for one seed.
pretrain_and_probe() {
  local folder=$1 seed=$2
  shift 2
  local -a sets=()
  while [[ $1 != -- ]]; do
    sets+=("$1")
    shift
  done
  shift
  if [[ -f $folder/probe/probes.json ]]; then return; fi
  mkdir -p "$folder"
  {
    "$python" -m spear_lib.bin.pretrain "$@" --experiment_dir "$folder" --training.seed "$seed" &&
      "$python" -m spear_lib.bin.average_checkpoints --experiment_dir "$folder" --output "$folder/encoder" &&
      "$python" -m spear_lib.bin.probe --config "$repository/egs/common/conf/probe/$conf.yaml" \
        --encoder "$folder/encoder" --train_cuts "${sets[0]}" --dev_cuts "${sets[1]}" \
        --test_cuts "${sets[2]}" --output_dir "$folder/probe" --seed "$seed"
  } >"$folder/output.txt" 2>&1 || {
    printf 'error: %s failed, see %s/output.txt\n' "$folder" "$folder" >&2
    return 1
  }
  printf '%s\n' "$folder: done" >&2
}

# speech NAME SEED TOKENS OPTIONS...
speech() {
  local name=$1 seed=$2 kind=$3 manifests=$speech_data/manifests/librispeech_cuts
  shift 3
  cd "$repository/egs/librispeech"
  local store=$exp/speech/tokens/$kind/train/store.json
  # shellcheck disable=SC2046 # run_of prints options without spaces
  pretrain_and_probe "$exp/runs/$name/seed-$seed" "$seed" \
    "[${manifests}_train.jsonl.gz]" "[${manifests}_dev.jsonl.gz]" \
    "[${manifests}_test-clean.jsonl.gz,${manifests}_test-other.jsonl.gz]" -- \
    --config "../common/conf/pretrain/$conf.yaml" --data.train_cuts "[$exp/speech/train.jsonl.gz]" \
    --valid_cuts "[$exp/speech/dev.jsonl.gz]" --data.noise_cuts "[$speech_data/manifests/noise_cuts.jsonl.gz]" \
    --data.token_fields "[$(store_value "$store" field)]" \
    --data.quantizer_ids "[$(store_value "$store" quantizer_id)]" $(run_of "$steps") "$@"
}

speech_runs() {
  local seed
  # A Transformer of about the same number of parameters; it reads waveforms and has no mel bins to mask.
  local transformer="--encoder_type transformer --data.masking.channel_probability 0 --transformer.conv_channels 32
    --transformer.hidden_dim 128 --transformer.num_layers 6 --transformer.num_heads 4
    --transformer.feedforward_dim 512 --transformer.position_kernel 32 --transformer.position_groups 8"
  for seed in $seeds; do
    printf '%s\n' \
      "base $seed mvq4" \
      "alpha-0 $seed mvq4 --objective.alpha 0" \
      "alpha-1 $seed mvq4 --objective.alpha 1" \
      "mixing-none $seed mvq4 --data.mixing.token_probability 0" \
      "mixing-denoising $seed mvq4 --data.mixing.token_probability 0 --data.mixing.utterance_probability 0.1" \
      "tokens-mvq8 $seed mvq8" \
      "tokens-mvq16 $seed mvq16" \
      "tokens-kmeans500 $seed kmeans500" \
      "encoder-transformer $seed mvq4 ${transformer//$'\n'/ }"
  done | wanted | side_by_side speech
}

# strategies NAME SEED PARTS DOMAINS OPTIONS...: PARTS are the corpora trained on, DOMAINS the teachers, with commas.
strategies() {
  local name=$1 seed=$2 trained=$3 teachers=$4 part train="" valid="" fields="" quantizers="" store
  shift 4
  cd "$repository/egs/mixed"
  for part in ${trained//,/ }; do
    train+=${train:+,}$mixed_data/cuts/mixed_cuts_$part-train.jsonl.gz
    valid+=${valid:+,}$mixed_data/cuts/mixed_cuts_$part-dev.jsonl.gz
  done
  for part in ${teachers//,/ }; do
    store=$mixed_data/tokens/$part/speech-train/store.json
    fields+=${fields:+,}$(store_value "$store" field)
    quantizers+=${quantizers:+,}$(store_value "$store" quantizer_id)
  done
  local of_part=$mixed_data/manifests/mixed_cuts_ of_test=$exp/mixed
  # shellcheck disable=SC2046 # run_of prints options without spaces
  pretrain_and_probe "$exp/runs/$name/seed-$seed" "$seed" "[${of_part}speech-train.jsonl.gz,${of_part}audio-train.jsonl.gz]" \
    "[${of_part}speech-dev.jsonl.gz,${of_part}audio-dev.jsonl.gz]" \
    "[$of_test/test-clean.jsonl.gz,$of_test/test-other.jsonl.gz,$of_test/eval.jsonl.gz]" -- \
    --config "conf/pretrain/$conf.yaml" --data.train_cuts "[$train]" --valid_cuts "[$valid]" \
    --data.noise_cuts "[$mixed_data/manifests/noise_cuts.jsonl.gz]" --data.token_fields "[$fields]" \
    --data.quantizer_ids "[$quantizers]" $(run_of "$steps") "$@"
}

# Test sets are no business of the mixture: they stay in its parts, with paths that hold there.
test_sets() {
  local set part recipe
  cd "$repository/egs/mixed"
  for set in test-clean test-other eval; do
    part=speech recipe=librispeech
    if [[ $set == eval ]]; then part=audio recipe=audioset; fi
    "$python" ../common/parts/take_cuts.py --cuts "$mixed_data/$part/manifests/${recipe}_cuts_$set.jsonl.gz" \
      --output "$exp/mixed/$set.jsonl.gz"
  done
}

strategy_runs() {
  local seed strategy
  # joint needs every token on every cut; the other strategies read fewer of them.
  "$repository/egs/mixed/prepare.sh" --mini true --conf "$conf" --strategy joint --stop-stage 6 --data-dir "$mixed_data"
  (test_sets)
  for seed in $seeds; do
    for strategy in joint disjoint asymmetrical; do
      printf '%s\n' "strategy-$strategy $seed speech,audio speech,audio --objective.strategy $strategy"
    done
    # Audio is never token-mixed.
    printf '%s\n' "single-speech $seed speech speech" \
      "single-audio $seed audio audio --data.mixing.token_probability 0"
  done | wanted | side_by_side strategies
}

table() {
  "$python" tools/studies/ablation_table.py "$exp/runs"
}

case ${1:-all} in
  speech)
    (speech_tokens)
    speech_runs
    ;;
  strategies) strategy_runs ;;
  table) ;;
  all)
    (speech_tokens)
    speech_runs
    strategy_runs
    ;;
  *)
    sed -n '2,14s/^# \{0,1\}//p' "$repository/tools/studies/ablation.sh"
    exit 2
    ;;
esac
table
