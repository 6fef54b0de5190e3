# shellcheck shell=bash
# Stage 13 of run.sh: the frozen encoder is measured beside random weights and log-mels.
# shellcheck disable=SC2154 # the options are those of run.sh

# shellcheck source=evaluation.sh
source local/evaluation.sh

stage_13() {
  evaluate_frozen "$exp_dir/evaluation" "$data_dir/speech/corpus:$data_dir/audio/corpus" \
    --encoders "$(list_of "SPEAR=$exp_dir/pretrain/encoder")" --seed "$seed"
}
