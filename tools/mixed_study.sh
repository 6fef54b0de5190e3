#!/usr/bin/env bash
# SPEAR_s, SPEAR_a and SPEAR_s+a on the mini corpora, at the same size, steps and seconds per step: pre-training, then
# linear probes of words and speakers (speech) and of sound event classes, on cuts that no encoder has heard.
#
#   tools/mixed_study.sh DATA OUT [STEPS [BATCH_SECONDS]]
#
# DATA is the data folder that egs/mixed/prepare.sh filled. Run again, it goes on.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if (($# < 2)); then
  printf 'usage: %s DATA OUT [STEPS [BATCH_SECONDS]]\n' "$0" >&2
  exit 2
fi
data=$(realpath "$1")
mkdir -p "$2"
out=$(realpath "$2")
steps=${3:-1200}
seconds=${4:-16}
models=${MODELS:-s a sa}
python=${PYTHON:-python}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}

cuts() { printf '%s/cuts/mixed_cuts_%s.jsonl.gz' "$data" "$1"; }
field() { "$python" -c 'import json, sys; print(json.load(open(sys.argv[1]))["field"])' "$data/tokens/$1/$1-train/store.json"; }

for model in $models; do
  case $model in
    s) parts=(speech) objective=single fields=$(field speech) ;;
    a) parts=(audio) objective=single fields=$(field audio) ;;
    sa) parts=(speech audio) objective=asymmetrical fields=$(field speech),$(field audio) ;;
  esac
  train="" valid=""
  for part in "${parts[@]}"; do
    train+=${train:+,}$(cuts "$part-train")
    valid+=${valid:+,}$(cuts "$part-dev")
  done
  "$python" -m spear_lib.bin.pretrain --config egs/mixed/conf/pretrain/mini.yaml --experiment_dir "$out/$model" \
    --data.train_cuts "[$train]" --valid_cuts "[$valid]" --data.noise_cuts "[$data/manifests/noise_cuts.jsonl.gz]" \
    --data.token_fields "[$fields]" --objective.strategy "$objective" --data.batch_seconds "$seconds" \
    --training.max_steps "$steps" --training.valid_interval $((steps / 4)) --training.save_interval $((steps / 8))
  "$python" -m spear_lib.bin.average_checkpoints --experiment_dir "$out/$model" --output "$out/$model/encoder"
done

# Test sets are no business of the mixture: they stay in its parts.
taken() {
  local manifest=$data/$1/manifests/$2_cuts_$3.jsonl.gz
  "$python" egs/mixed/local/take_cuts.py --cuts "$manifest" --output "$out/cuts/$1-$3.jsonl.gz"
  printf '%s' "$out/cuts/$1-$3.jsonl.gz"
}
test_clean=$(taken speech librispeech test-clean)
test_other=$(taken speech librispeech test-other)
eval_clips=$(taken audio audioset eval)
for model in $models; do
  for seed in ${SEEDS:-0}; do
    "$python" -m spear_lib.bin.probe --encoder "$out/$model/encoder" --output_dir "$out/probes/$model-$seed" \
      --train_cuts "[$(cuts speech-train),$(cuts audio-train)]" --dev_cuts "[$(cuts speech-dev),$(cuts audio-dev)]" \
      --test_cuts "[$test_clean,$test_other,$eval_clips]" --num_seeds 5 --seed "$seed" --batch_seconds 60
  done
done
