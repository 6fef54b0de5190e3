#!/usr/bin/env bash
# The paper's Tables 6 and 7 on real recordings at mini size, in one command: short pre-trainings on egs/realmini's data
# with one thing changed, and linear read-outs of the frozen encoders beside random weights and log-mels. What is finished
# is not done again.
#
#   tools/studies/realmini.sh CORPUS_DIR [ROWS...]   data, the rows (default: all), and the table
#   tools/studies/realmini.sh table                  the table of the results so far
#
# Rows: speech (SPEAR_s), audio (SPEAR_a), asymmetrical, joint, disjoint (SPEAR_s+a by strategy), no-mixing (asymmetrical
# without token mixing). CORPUS_DIR is what egs/realmini/prepare.sh --corpus-dir takes; noises come from its noise_rir.
#
# From the environment: SEEDS="0 1 2"; STEPS=2400, of 16 s each; JOBS=2, runs side by side; CONF=mini (tiny: to try the
# script); STUDY_DIR (default: egs/realmini/exp/study); OPTIONS, more options of pretrain for all rows.
set -euo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
study=${STUDY_DIR:-$repository/egs/realmini/exp/study}
study=$(mkdir -p "$study" && cd "$study" && pwd)
data=$study/data
seeds=${SEEDS:-0 1 2}
steps=${STEPS:-2400}
conf=${CONF:-mini}
known="asymmetrical speech audio no-mixing joint disjoint"
if (($# == 0)) || [[ $1 == --help || $1 == -h ]]; then
  sed -n '2,15s/^# \{0,1\}//p' "$0"
  exit 2
fi
corpora=$1
rows=${*:2}
for row in $rows; do
  if [[ " $known " != *" $row "* ]]; then
    printf 'error: there is no row %s: use %s\n' "'$row'" "$known" >&2
    exit 2
  fi
done
if [[ $corpora != table ]]; then
  if [[ ! -d $corpora/noise_rir ]]; then
    printf 'error: %s has no folder noise_rir: egs/realmini/README.md says what the folder must hold\n' "$corpora" >&2
    exit 2
  fi
  corpora=$(cd "$corpora" && pwd)
fi

cd "$repository/egs/realmini"
# shellcheck source=../../egs/common/stages.sh
source ../common/stages.sh
# shellcheck source=../../egs/realmini/local/corpus.sh
source local/corpus.sh
# shellcheck source=../../egs/realmini/local/evaluation.sh
source local/evaluation.sh
part_facts "$conf"
# shellcheck source=side_by_side.sh
source "$repository/tools/studies/side_by_side.sh"
# Runs go side by side, one thread each.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
find_python
export PYTHON=$python

# store_fact DOMAIN KEY: of the tokens of a domain's teacher.
store_fact() {
  json_value "$data/tokens/$1/audio-train/store.json" "$2"
}

# row NAME SEED: one pre-training and its averaged encoder.
row() {
  local name=$1 seed=$2 folder=$study/runs/$1/seed-$2 strategy=$1 domains="speech audio" domain
  local -a fields=() quantizers=() train=() changed=()
  if [[ -f $folder/encoder/model.safetensors ]]; then return; fi
  case $name in
    speech | audio) strategy=single domains=$name ;;
    no-mixing) strategy=asymmetrical changed=(--data.mixing.token_probability 0) ;;
  esac
  # Sounds are never token-mixed.
  if [[ $name == audio ]]; then changed=(--data.mixing.token_probability 0); fi
  for domain in $domains; do
    fields+=("$(store_fact "$domain" field)")
    quantizers+=("$(store_fact "$domain" quantizer_id)")
    train+=("$data/cuts/realmini_cuts_$domain-train.jsonl.gz")
  done
  mkdir -p "$folder"
  {
    # shellcheck disable=SC2086 # OPTIONS is a list of words
    "$python" -m spear_lib.bin.pretrain --config "conf/pretrain/$conf.yaml" --experiment_dir "$folder" \
      --data.train_cuts "$(list_of "${train[@]}")" --data.noise_cuts "$(list_of "$data/manifests/noise_cuts.jsonl.gz")" \
      --data.token_fields "$(list_of "${fields[@]}")" --data.quantizer_ids "$(list_of "${quantizers[@]}")" \
      --objective.strategy "$strategy" --training.seed "$seed" --training.max_steps "$steps" \
      --training.lr_batches $((steps / 2)) --training.warmup_batches $(((steps + 9) / 10)) \
      --training.save_interval $(((steps + 1) / 2)) --training.average_period $(((steps + 29) / 30)) \
      --training.valid_interval 0 --training.keep_checkpoints 2 --probe.every 0 "${changed[@]}" ${OPTIONS:-} &&
      "$python" -m spear_lib.bin.average_checkpoints --experiment_dir "$folder" --output "$folder/encoder"
  } >"$folder/output.txt" 2>&1 || {
    printf 'error: %s failed, see %s/output.txt\n' "$folder" "$folder" >&2
    return 1
  }
  log "$name, seed $seed: done"
}

# All finished encoders; log-mels once, random weights with every seed.
evaluate() {
  local seed path name
  local -a encoders
  for seed in $seeds; do
    encoders=()
    for name in $known; do
      path=$study/runs/$name/seed-$seed/encoder
      if [[ -f $path/model.safetensors ]]; then encoders+=("$name=$path"); fi
    done
    if ((${#encoders[@]})); then
      evaluate_frozen "$study/evaluation/seed-$seed" "$corpora" --encoders "$(list_of "${encoders[@]}")" --seed "$seed"
    fi
  done
}

if [[ $corpora != table ]]; then
  # Joint needs every token on every cut; the other strategies read fewer of them.
  ./prepare.sh --conf "$conf" --corpus-dir "$corpora" --noise-dir "$corpora/noise_rir" --data-dir "$data" \
    --exp-dir "$study/exp" --strategy joint --stop-stage 6
  for seed in $seeds; do
    for name in ${rows:-$known}; do printf '%s\n' "$name $seed"; done
  done | side_by_side row
  evaluate
fi
"$python" "$repository/tools/studies/realmini_table.py" "$study/evaluation"
