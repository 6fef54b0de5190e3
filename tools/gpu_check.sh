#!/usr/bin/env bash
# Everything that only a GPU can show, in one command of less than eight minutes: what runs, how fast, beside the plan.
#
#   tools/gpu_check.sh [--device cuda|cpu] [--tiny] [--out DIR] [--minutes N] [--only STEP,STEP] [--wheels DIR]
#                      [--train-cuts FILE --valid-cuts FILE --data-dir DIR]
#
#   --device cuda     cpu tries the command itself, with --tiny in a minute or two (default: cuda)
#   --tiny            the smallest sizes
#   --out DIR         takes gpu_report.json, gpu_report.md and gpu_logs.txt (default: $OUT where it is set, else gpu_check)
#   --minutes 7.5     steps that would begin later are not run (on a CPU 75)
#   --only a,b        these steps alone; --list prints them
#   --wheels DIR      packages that the environment lacks, installed from there for this run, from no registry
#   --train-cuts, --valid-cuts, --data-dir
#                     cuts with tokens for the loss curves, and the folder that their paths count from (egs/librispeech
#                     after prepare.sh --mini true); without them a corpus of tones is made
#   PYTHON            runs all (default: python3); its environment needs torch 2.11 or later
#
# No step stops the others; the status is 1 where one failed. What is missing is said first, with the command that fetches
# it where there is a network, in the repository's root (then --wheels .whl):
#
#   python3 -m pip download --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
#     --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
#     --platform manylinux1_x86_64 -d .whl lhotse==1.33.0 audioread intervaltree cytoolz urllib3==2.8.0 \
#     kaldialign==0.12.0 soundfile==0.14.0 cffi pycparser jsonargparse==4.53.0 docstring-parser typeshed-client pytest-timeout
#
# (13 wheels, 7 MB, beside what an image with torch, transformers, scikit-learn, sentencepiece and pytest has.)

set -euo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}
out=${OUT:-gpu_check}
wheels=""
arguments=()
while (($# > 0)); do
  case $1 in
    -h | --help)
      sed -n '2,30{s/^# \{0,1\}//p;}' "${BASH_SOURCE[0]}"
      exit 0
      ;;
    --out | --wheels)
      (($# > 1)) || { echo "error: $1 needs a folder" >&2 && exit 2; }
      if [[ $1 == --out ]]; then out=$2; else wheels=$2; fi
      shift
      ;;
    *) arguments+=("$1") ;;
  esac
  shift
done
mkdir -p "$out"
out=$(cd "$out" && pwd)
if [[ -n $wheels ]]; then
  compgen -G "$wheels/*.whl" >/dev/null || { echo "error: $wheels holds no wheels (*.whl)" >&2 && exit 2; }
  # Outside --out: what lies there may be carried back, and is read by nobody.
  site=$(mktemp -d)
  trap 'rm -rf "$site"' EXIT
  "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$wheels"/*.whl
  export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi
export PYTHONPATH="$repository${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
"$python" "$repository/tools/gpu_check.py" --out "$out" "${arguments[@]}"
