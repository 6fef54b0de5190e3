#!/usr/bin/env bash
# Training and evaluation, on what prepare.sh made.
#
#   10 pre-train   the encoder predicts the teacher's tokens from masked input
#   11 average     the encoder of the averaged model, as a folder for load_encoder
#   12 fine-tune   speech recognition on the labelled set, with the encoder and (for comparison) from scratch
#   13 evaluate    word error rates of dev and the test sets; probes of the frozen features
#   14 report      report.md, report.html, report.json
#
# Examples:
#   ./run.sh --mini true
#   ./run.sh --nproc 8                                     (8 GPUs of this machine)
#   ./run.sh --stage 12 --encoder /models/spear-base.pt    (fine-tune another encoder)

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

option stage 10 "First stage to run" int
option stop_stage 14 "Last stage to run" int
option mini false "The small corpus: sets the defaults of --conf and --compare-scratch" bool
option conf "" "Size of everything: the stem of conf/*/*.yaml (default: mini with --mini true, else base)"
option data_dir data "What prepare.sh filled" path
option exp_dir exp "Where all of this goes" path
option teacher "$default_teacher" "Whose tokens are predicted"
option encoder "" "Fine-tune this encoder (folder or checkpoint) instead of the one of stage 11" path
option compare_scratch "" "Fine-tune from scratch as well, true or false (default: that of --mini)"
option seed 0 "Every random choice follows from it" int
option nproc 1 "Processes on this machine, one per GPU" int
option num_nodes 1 "Machines; start the same command on each" int
option rendezvous localhost:29400 "HOST:PORT of one machine that all can reach, with --num-nodes"
parse_options "$@"

check_stage_range 10 14
find_python
if [[ -z $conf ]]; then
  if [[ $mini == true ]]; then conf=mini; else conf=base; fi
fi
compare_scratch=${compare_scratch:-$mini}
corpus_facts "$conf"
