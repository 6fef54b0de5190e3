#!/usr/bin/env bash
# The measurements of RESULTS.md on the mini corpus, through the recipe's own commands; needs what
# tools/quickstart.sh leaves in egs/librispeech/data. Two runs go side by side, one thread each.
#
#   tools/studies/mini_study.sh grid     learning rates of both arms, on dev (fine-tuning from the encoder of exp/pretrain)
#   tools/studies/mini_study.sh seeds    three seeds of pre-training, both fine-tuning arms, decoding and probes
#   tools/studies/mini_study.sh table    the numbers of both as a table
set -euo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
recipe=$repository/egs/librispeech
data=${DATA_DIR:-$recipe/data}
exp=${EXP_DIR:-$recipe/exp}
python=${PYTHON:-$repository/.venv/bin/python}
export PYTHON=$python OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export PYTHONPATH=$repository${PYTHONPATH:+:$PYTHONPATH}
cd "$recipe"
# shellcheck source=side_by_side.sh
source "$repository/tools/studies/side_by_side.sh"

# finetune NAME ARM [OPTIONS]: one fine-tuning run of the grid, validated on dev at its end.
finetune() {
  local name=$1 arm=$2
  shift 2
  if [[ -f $exp/study/grid/$name/decode/wer-dev.json ]]; then return; fi
  local start=(--config conf/finetune/mini.yaml --encoder "$exp/pretrain/encoder")
  if [[ $arm == scratch ]]; then start+=(--config conf/finetune/scratch/mini.yaml --scratch true); fi
  "$python" -m spear_lib.bin.finetune_asr "${start[@]}" --experiment_dir "$exp/study/grid/$name" \
    --units "$data/units" --data.train_cuts "[$data/manifests/librispeech_cuts_labelled.jsonl.gz]" \
    --data.noise_cuts "[$data/manifests/noise_cuts.jsonl.gz]" \
    --dev_cuts "[$data/manifests/librispeech_cuts_dev.jsonl.gz]" "$@" 2>"$exp/study/grid/$name.log"
  "$python" -m spear_lib.bin.decode --config ../common/conf/decode/mini.yaml --experiment_dir "$exp/study/grid/$name" \
    --units "$data/units" --cuts "[$data/manifests/librispeech_cuts_dev.jsonl.gz]" 2>>"$exp/study/grid/$name.log"
}

grid() {
  mkdir -p "$exp/study/grid"
  local rate scale
  {
    for rate in 0.045 0.065 0.09 0.13; do echo "scratch-$rate scratch --training.learning_rate $rate"; done
    for rate in 0.045 0.065 0.09; do
      for scale in 0.1 0.3 0.6; do
        echo "pretrained-$rate-$scale pretrained --training.learning_rate $rate --encoder_lr_scale $scale"
      done
    done
  } | side_by_side finetune
}

seed() {
  local options=(--mini true --data-dir "$data" --exp-dir "$exp/study/seed-$1" --seed "$1" --stop-stage 13)
  ./run.sh "${options[@]}" >"$exp/study/seed-$1.log" 2>&1
}

seeds() {
  mkdir -p "$exp/study"
  printf '%s\n' 0 1 2 | side_by_side seed
}

table() {
  "$python" "$repository/tools/studies/mini_study_table.py" "$exp/study"
}

case ${1:-} in
  grid | seeds | table) "$1" ;;
  *)
    sed -n '2,8s/^# \{0,1\}//p' "$repository/tools/studies/mini_study.sh"
    exit 2
    ;;
esac
