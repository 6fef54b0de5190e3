#!/usr/bin/env bash
# Builds the optional package kaldifeat (data.fbank_backend: kaldifeat) against the installed torch: about ten minutes
# of one core, a C++20 compiler, cmake 3.24 and make. Sources come from the Python registry alone: kaldifeat's own build
# would fetch pybind11 from GitHub and compile as C++14, which present versions of torch refuse.
#
#   tools/install_kaldifeat.sh             into the environment of tools/quickstart.sh
#   PYTHON=/path/to/python tools/install_kaldifeat.sh
set -euo pipefail

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
version=1.24
python=${PYTHON:-$repository/.venv/bin/python}
if (($# > 0)); then
  sed -n '2,8s/^# \{0,1\}//p' "$0"
  exit 2
fi
if ! "$python" -c 'import torch' 2>/dev/null; then
  printf 'error: %s has no torch: run tools/quickstart.sh first, or name another Python with PYTHON=...\n' "$python" >&2
  exit 1
fi
for program in cmake make c++; do
  if ! command -v "$program" >/dev/null; then
    printf 'error: %s is missing (on Debian: apt install build-essential cmake)\n' "$program" >&2
    exit 1
  fi
done

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$python" -m pip --disable-pip-version-check install --quiet "setuptools<82" wheel
# The sources of kaldifeat and, for its headers and CMake files, the built pybind11.
"$python" -m pip --disable-pip-version-check download --quiet --no-deps --no-build-isolation --no-binary kaldifeat \
  --dest "$folder" "kaldifeat==$version" "pybind11==2.13.6"
mkdir "$folder/pybind11"
"$python" -m zipfile -e "$folder"/pybind11-*.whl "$folder/wheel"
printf '%s\n' "set(CMAKE_FIND_PACKAGE_TARGETS_GLOBAL TRUE)" \
  "find_package(pybind11 CONFIG REQUIRED PATHS $folder/wheel/pybind11/share/cmake/pybind11 NO_DEFAULT_PATH)" \
  >"$folder/pybind11/CMakeLists.txt"
export KALDIFEAT_CMAKE_ARGS="-DCMAKE_BUILD_TYPE=Release -DCMAKE_CXX_STANDARD=20 -DCMAKE_INSTALL_INCLUDEDIR=include
  -DCMAKE_INSTALL_LIBDIR=lib -DFETCHCONTENT_SOURCE_DIR_PYBIND11=$folder/pybind11 -DPYTHON_EXECUTABLE=$python"
KALDIFEAT_CMAKE_ARGS=${KALDIFEAT_CMAKE_ARGS//$'\n'/ }
export KALDIFEAT_MAKE_ARGS=${KALDIFEAT_MAKE_ARGS:--j$(nproc)}
"$python" -m pip --disable-pip-version-check install --no-deps --no-build-isolation "$folder"/kaldifeat-*.tar.gz
"$python" -c 'import kaldifeat; print("kaldifeat", kaldifeat.__version__, "is installed")'
