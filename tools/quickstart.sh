#!/usr/bin/env bash
# The whole method on a small synthesised corpus: environment, corpus, teacher tokens, pre-training, fine-tuning,
# word error rates, report. Takes no arguments; run it again after an interruption and it goes on.
set -euo pipefail

if (($# > 0)); then
  sed -n '2,3s/^# //p' "$0"
  if [[ $1 == --help || $1 == -h ]]; then exit 0; fi
  printf 'error: unexpected argument %s; for options use egs/librispeech/prepare.sh and run.sh\n' "'$1'" >&2
  exit 2
fi

# shellcheck source=environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

ensure_environment
started=$SECONDS
recipe=$repository/egs/librispeech
"$python" "$repository/tools/check_environment.py" --folder "$recipe" || exit 1

say "1/2 data: corpus, manifests, noise, teacher embeddings, quantiser, tokens, text units (egs/librispeech/prepare.sh)"
"$recipe/prepare.sh" --mini true
say "2/2 models: pre-training, fine-tuning with and without it, decoding, report (egs/librispeech/run.sh)"
"$recipe/run.sh" --mini true

say "done in $(((SECONDS - started + 59) / 60)) minutes"
"$python" "$repository/egs/common/headline.py" "$recipe/exp"
