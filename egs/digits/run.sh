#!/usr/bin/env bash
# Stages and options: ./run.sh --help. They stand in ../common/run.sh; what is of this corpus, in local/ and conf/.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common/run.sh"
