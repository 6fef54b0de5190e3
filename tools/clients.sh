#!/usr/bin/env bash
# Makes the environment of a client of the encoders, and runs its tests in it: s3prl (SUPERB), X-ARES, hearvalidator.
# Each pins packages that others forbid, so each has an environment of its own.
#
#   tools/clients.sh superb|xares|hear [--folder DIR] [--borrow VENV] [--no-tests]
#
#   --folder DIR    where the environment goes (default: .clients/NAME in the repository)
#   --borrow VENV   use the packages of that environment (torch and all of requirements.txt) instead of installing them
#   --no-tests      install only
#   PYTHON          makes the environment (default: python3)
#
# Where the registry cannot give a package the script says which, and ends with status 3.

set -euo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

usage() { sed -n '2,13{s/^# \{0,1\}//p;}' "${BASH_SOURCE[0]}"; }
fail() {
  printf 'error: %s\n' "$1" >&2
  exit "${2:-2}"
}

client=""
folder=""
borrow=""
tests=true
while (($# > 0)); do
  case $1 in
    -h | --help)
      usage
      exit 0
      ;;
    --folder | --borrow)
      (($# > 1)) || fail "$1 needs a folder"
      if [[ $1 == --folder ]]; then folder=$2; else borrow=$2; fi
      shift
      ;;
    --no-tests) tests=false ;;
    superb | xares | hear)
      [[ -z $client ]] || fail "one client at a time: $client or $1"
      client=$1
      ;;
    *) fail "unexpected argument '$1': $(usage | sed -n '4p' | sed 's/^ *//')" ;;
  esac
  shift
done
[[ -n $client ]] || fail "which client? superb, xares or hear"
folder=${folder:-$repository/.clients/$client}

# needs ARGUMENTS...: pip install, or the end.
needs() {
  "$folder/bin/python" -m pip --disable-pip-version-check install --quiet "$@" >"$folder/pip.log" 2>&1 && return 0
  grep -v '^WARNING' "$folder/pip.log" | tail -3 >&2
  fail "the registry did not give: $* (whole log: $folder/pip.log)" 3
}

if [[ ! -f $folder/made ]]; then
  "${PYTHON:-python3}" -m venv --clear "$folder"
  if [[ -n $borrow ]]; then
    packages=("$borrow"/lib/python3*/site-packages)
    [[ -d ${packages[0]} ]] || fail "$borrow is no virtual environment"
    printf '%s\n' "${packages[0]}" >"$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/borrowed.pth"
  else
    needs -r "$repository/requirements.txt"
  fi
  case $client in
    superb)
      # Without torchaudio: a stand-in of ours takes its place. The rest s3prl imports without declaring it;
      # pkg_resources is gone from later versions of setuptools.
      needs --no-deps s3prl==0.4.18
      needs omegaconf pandas librosa editdistance more_itertools sed_eval dcase_util tensorboardX "setuptools<81"
      # Witnesses and measures of our own heads.
      needs dtw-python pesq pystoi
      ;;
    xares)
      needs --no-deps xares==0.1.3
      needs loguru jiwer torchmetrics pytorch-ignite webdataset
      ;;
    hear)
      # Declared for Python below 3.9 and TensorFlow, which its checks of a PyTorch model do not need.
      needs --no-deps --ignore-requires-python hearvalidator==2021.0.6
      ;;
  esac
  touch "$folder/made"
fi
printf '%s: %s\n' "$client" "$folder/bin/python"
if [[ $tests == true ]]; then
  cd "$repository"
  PYTHONPATH=$repository HOME=$folder "$folder/bin/python" -m pytest -p no:cacheprovider -q -m "slow or not slow" \
    -rs "tests/clients/test_client_$client.py"
fi
