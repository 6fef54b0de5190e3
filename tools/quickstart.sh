#!/usr/bin/env bash
# The whole method on a small synthesised corpus: environment, corpus, teacher tokens, pre-training, fine-tuning,
# word error rates, report. Run it again after an interruption and it goes on.
#
#   tools/quickstart.sh                 a synthesised corpus (egs/librispeech), about 20 minutes on two cores
#   tools/quickstart.sh --corpus DIR    real recordings: CMU AN4 in DIR (egs/an4), about two hours on two cores
set -euo pipefail

usage() {
  printf 'error: %s; for options use the prepare.sh and run.sh of a recipe\n' "$1" >&2
  exit 2
}

corpus=""
if (($# > 0)); then
  case $1 in
    --help | -h)
      sed -n '2,6s/^# \{0,1\}//p' "$0"
      exit 0
      ;;
    --corpus | --corpus=*)
      if [[ $1 == --corpus=* ]]; then set -- --corpus "${1#*=}" "${@:2}"; fi
      if (($# < 2)) || [[ -z $2 ]]; then usage "--corpus needs a value: --corpus DIR, the folder of CMU AN4"; fi
      if (($# > 2)); then usage "unexpected argument '$3'"; fi
      if [[ ! -d $2 ]]; then usage "--corpus $2 is not a folder: give that of CMU AN4 (egs/an4/README.md)"; fi
      corpus=$(cd "$2" && pwd)
      ;;
    *) usage "unexpected argument '$1'" ;;
  esac
fi

# shellcheck source=environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

ensure_environment
started=$SECONDS
recipe=$repository/egs/librispeech
prepare_options=(--mini true) run_options=(--mini true)
if [[ -n $corpus ]]; then
  recipe=$repository/egs/an4
  prepare_options=(--conf mini --corpus-dir "$corpus")
  run_options=(--conf mini --compare-scratch true --decode-lm true)
fi
"$python" "$repository/tools/check_environment.py" --folder "$recipe" || exit 1

say "1/2 data: corpus, manifests, noise, teacher embeddings, quantiser, tokens, text units (${recipe#"$repository"/}/prepare.sh)"
"$recipe/prepare.sh" "${prepare_options[@]}"
say "2/2 models: pre-training, fine-tuning with and without it, decoding, report (${recipe#"$repository"/}/run.sh)"
"$recipe/run.sh" "${run_options[@]}"

say "done in $(((SECONDS - started + 59) / 60)) minutes"
"$python" "$repository/egs/common/headline.py" "$recipe/exp"
